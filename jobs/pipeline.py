"""The main job: train, evaluate, record, decompose, score, steer, follow, report.

Every stage asks the store first, so the same command goes on after an interruption and is quick when all is there.
"""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import tyro

from cluster.dictionaries import TrainDictionary, load as load_dictionary
from cluster.evaluation import UNIFORM, Evaluate, ReturnEstimate
from cluster.evolution import ScoreCheckpoint, lineage_question
from cluster.laboratory import Laboratory
from cluster.recorder import plan_recording
from cluster.recordings import Manifest
from cluster.scoring import ScoreConcepts, ShowConcepts
from cluster.staging import Split
from cluster.steering import effects_question, steering_blocks
from cluster.store import Store
from cluster.studies import check_study_name, report_of, save_study
from cluster.training import TrainedRun, run_name
from interp.comparison.evolution import FollowedConcept
from interp.steering.arms import SteeredLatent
from interp.study import DictionaryEntry, PolicyEntry, RecordingEntry, Study
from interp.worlds.mettagrid import MettagridFactory
from jobs.progress import Reporter, TrainingNote
from jobs.recipes import PIPELINES, PipelineConfig
from jobs.summary import print_summary


def main(arguments: Sequence[str]) -> None:
    """Parses the recipe's name and its changes, and runs it."""
    config = tyro.extras.overridable_config_cli(
        PIPELINES, args=list(arguments), prog="sparsight pipeline", description=__doc__
    )
    run(config, Reporter())


def run(config: PipelineConfig, reporter: Reporter) -> Study:
    """Runs the whole study and writes study.json, figures and report.html."""
    check_study_name(config.study)
    store = Store.open(config.store)
    store.probe()
    with Laboratory(
        store, num_actors=config.actors, worlds_per_actor=config.worlds_per_actor
    ) as laboratory:
        return _Pipeline(config, laboratory, reporter).run()


class _Pipeline:
    """The stages of one run of the pipeline, in order; each leaves what the next ones need."""

    def __init__(self, config: PipelineConfig, laboratory: Laboratory, reporter: Reporter) -> None:
        self.config = config
        self.laboratory = laboratory
        self.store = laboratory.store
        self.reporter = reporter
        self.factories = {
            world: MettagridFactory.load(world) for world in dict.fromkeys(config.train.worlds)
        }

    def run(self) -> Study:
        runs = self._train()
        returns, random_returns = self._evaluate(runs)
        recordings, untrained = self._record(runs)
        sweep, dictionaries, untrained_dictionaries = self._decompose(recordings, untrained)
        concept_ids, concepts = self._score(
            runs, recordings, dictionaries, untrained, untrained_dictionaries
        )
        latents = [
            self._latents_to_follow(table, entry)
            for table, entry in zip(concepts, dictionaries, strict=True)
        ]
        effect_ids = self._steer(runs, concept_ids, latents)
        lineage_ids = self._follow(runs, dictionaries, latents)
        window_ids = self._show(runs, recordings, dictionaries, latents)
        study = Study(
            study=self.config.study,
            seeds={
                "study": self.config.seed,
                **{
                    f"train.{run_name(ppo, self.factories[ppo.world])}": ppo.seed
                    for ppo in self.config.train.runs
                },
                "evaluate.first_env_seed": self.config.evaluate.first_env_seed,
                "record.first_env_seed": self.config.record.first_env_seed,
                "steer.first_env_seed": self.config.steer.first_env_seed,
                "evolve.first_env_seed": self.config.evolve.first_env_seed,
            },
            policies=tuple(
                PolicyEntry(
                    policy_id=card.policy_id,
                    name=card.name,
                    run=card.run,
                    world=card.world,
                    step=card.step,
                    return_mean=returns[card.policy_id].mean,
                    return_se=returns[card.policy_id].se,
                    n_episodes=returns[card.policy_id].n_episodes,
                )
                for trained in runs
                for card in trained.checkpoints
            ),
            random_return=random_returns[runs[0].world].mean,
            random_returns={world: found.mean for world, found in random_returns.items()},
            recordings=tuple(_recording_entry(manifest) for manifest in recordings + untrained),
            sweep=sweep,
            dictionaries=tuple(dictionaries + untrained_dictionaries),
            concepts=tuple(concept_ids),
            effects=tuple(effect_ids),
            lineages=tuple(lineage_ids),
            windows=tuple(window_ids),
            wall_s=self.reporter.wall_s,
        )
        report = report_of(self.store, study)
        with self.reporter.stage("report"):
            path = save_study(self.store, report)
        print_summary(self.reporter, report, path)
        return study

    def _train(self) -> list[TrainedRun]:
        with self.reporter.stage("train") as stage:
            runs = self.laboratory.train(self.config.train.runs, TrainingNote(stage))
        self.reporter.done(
            "train",
            ", ".join(f"{run.name} ({len(run.checkpoints)} checkpoints)" for run in runs),
        )
        return runs

    def _evaluate(
        self, runs: list[TrainedRun]
    ) -> tuple[dict[str, ReturnEstimate], dict[str, ReturnEstimate]]:
        """Returns of every checkpoint by policy, and of the random policy by world."""
        returns: dict[str, ReturnEstimate] = {}
        random_returns: dict[str, ReturnEstimate] = {}
        with self.reporter.stage("evaluate") as stage:
            for factory in self.factories.values():
                players = [
                    UNIFORM,
                    *(
                        card.policy_id
                        for run in runs
                        if run.world == factory.name
                        for card in run.checkpoints
                    ),
                ]
                found = self.laboratory.evaluate(
                    [
                        Evaluate(policy_id=player, factory=factory, config=self.config.evaluate)
                        for player in dict.fromkeys(players)
                    ],
                    stage.update,
                )
                random_returns[factory.name] = found.pop(UNIFORM)
                returns |= found
        last = [returns[run.checkpoints[-1].policy_id] for run in runs]
        self.reporter.done(
            "evaluate",
            ", ".join(
                f"{run.name} {found.mean:.2f} ± {found.se:.2f} (random {random_returns[run.world].mean:.2f})"
                for run, found in zip(runs, last, strict=True)
            ),
        )
        return returns, random_returns

    def _record(self, runs: list[TrainedRun]) -> tuple[list[Manifest], list[Manifest]]:
        """The last checkpoint of each run at play, and the untrained one shown the same observations."""
        with self.reporter.stage("record") as stage:
            plans = [
                (
                    plan_recording(
                        self.store,
                        run.checkpoints[-1].policy_id,
                        self._factory(run),
                        self.config.record,
                    ),
                    self._factory(run),
                )
                for run in runs
            ]
            played = self.laboratory.record(plans, stage.update)
            untrained_config = replace(self.config.record, sites=(self.config.sweep.site,))
            replays = [
                (
                    plan_recording(
                        self.store,
                        run.checkpoints[0].policy_id,
                        self._factory(run),
                        untrained_config,
                        replay_of=manifest.plan.recording_id,
                    ),
                    self._factory(run),
                )
                for run, manifest in zip(runs, played, strict=True)
            ]
            shown = self.laboratory.record(replays, stage.update)
        rows = sum(manifest.rows for manifest in played + shown)
        self.reporter.done("record", f"{rows:,} rows in {len(played + shown)} recordings")
        return played, shown

    def _factory(self, run: TrainedRun) -> MettagridFactory:
        return next(factory for factory in self.factories.values() if factory.name == run.world)

    def _decompose(self, recordings: list[Manifest], untrained: list[Manifest]):  # noqa: ANN202
        """The sweep on the first recording, and its chosen recipe on all others."""
        config = self.config
        with self.reporter.stage("sweep") as stage:
            sweep = self.laboratory.sweep(
                recordings[0].plan.recording_id,
                config.sweep.site,
                config.sweep.trials,
                split=config.split,
                seed=config.seed,
                target_l0=config.sweep.target_l0,
                on_progress=lambda trial: stage.update(
                    trial.num_done,
                    trial.num_trials,
                    f"trials; {trial.config.family.name} FVU {trial.progress.fvu:.3f} L0 {trial.progress.l0:.1f}",
                ),
            )
        self.reporter.done(
            "sweep",
            f"{len(sweep.trials)} trials; kept {sweep.chosen.family} "
            f"FVU {sweep.chosen.fvu:.3f} L0 {sweep.chosen.l0:.1f} dead {sweep.chosen.dead_fraction:.0%}",
        )
        with self.reporter.stage("dictionaries") as stage:
            entries = self.laboratory.train_dictionaries(
                [
                    TrainDictionary(
                        recording_id=manifest.plan.recording_id,
                        site=config.sweep.site,
                        config=sweep.chosen_config,
                        split=config.split,
                        seed=config.seed,
                    )
                    for manifest in [*recordings, *untrained]
                ],
                stage.update,
            )
        self.reporter.done("dictionaries", f"{len(entries)} of the chosen recipe")
        return sweep.trials, entries[: len(recordings)], entries[len(recordings) :]

    def _score(
        self,
        runs: list[TrainedRun],
        recordings: list[Manifest],
        dictionaries: list[DictionaryEntry],
        untrained: list[Manifest],
        untrained_dictionaries: list[DictionaryEntry],
    ) -> tuple[list[str], list[pa.Table]]:
        with self.reporter.stage("score") as stage:
            tasks = [
                ScoreConcepts(
                    policy_name=run.name,
                    recording_id=recording.plan.recording_id,
                    dict_id=dictionary.dict_id,
                    random_init_recording_id=control.plan.recording_id,
                    random_init_dict_id=control_dictionary.dict_id,
                    labels=self.config.record.labels,
                    split=self.config.split,
                    config=self.config.score,
                    seed=self.config.seed,
                )
                for run, recording, dictionary, control, control_dictionary in zip(
                    runs, recordings, dictionaries, untrained, untrained_dictionaries, strict=True
                )
            ]
            tables = self.laboratory.answer(tasks, stage.update)
        named = sum(len(table) - table.column("concept").null_count for table in tables)
        self.reporter.done(
            "score", f"{sum(len(table) for table in tables):,} latent-label pairs, {named} concepts"
        )
        return [task.question.id for task in tasks], tables

    def _latents_to_follow(
        self, concepts: pa.Table, dictionary: DictionaryEntry
    ) -> list[SteeredLatent]:
        """The named concepts that training made most of: largest lead over the untrained policy, one per latent."""
        named = [row for row in concepts.to_pylist() if row["concept"] is not None]
        named.sort(key=lambda row: row["random_init_auroc"] - row["auroc"])
        chosen = {row["latent"]: row for row in reversed(named)}
        rows = [row for row in named if chosen[row["latent"]] is row]
        weights = load_dictionary(self.store, dictionary.dict_id)
        latents = []
        for row in rows[: self.config.concepts_per_policy]:
            direction = weights.direction(row["latent"])
            latents.append(
                SteeredLatent(
                    concept=row["concept"],
                    label=row["label"],
                    latent=row["latent"],
                    site=row["site"],
                    scale=row["scale"],
                    write_D=direction.write_D.numpy(),
                    read_D=direction.read_D.numpy(),
                    read_bias=direction.read_bias,
                    threshold=direction.threshold,
                )
            )
        return latents

    def _steer(
        self, runs: list[TrainedRun], concept_ids: list[str], latents: list[list[SteeredLatent]]
    ) -> list[str]:
        labels = self.config.record.labels
        questions = []
        for run, concepts_id, chosen in zip(runs, concept_ids, latents, strict=True):
            policy_id = run.checkpoints[-1].policy_id
            factory = self._factory(run)
            questions.append(
                (
                    effects_question(
                        policy_id,
                        factory,
                        concepts_id,
                        chosen,
                        self.config.steer,
                        seed=self.config.seed,
                        labels=labels,
                    ),
                    steering_blocks(
                        policy_id,
                        factory,
                        chosen,
                        self.config.steer,
                        seed=self.config.seed,
                        labels=labels,
                    ),
                    run.name,
                )
            )
        with self.reporter.stage("steer") as stage:
            self.laboratory.steer(questions, stage.update, seed=self.config.seed)
        episodes = sum(len(blocks) for _, blocks, _ in questions)
        self.reporter.done(
            "steer",
            f"{sum(len(chosen) for chosen in latents)} concepts in {episodes} blocks; dose 0 changed nothing",
        )
        return [question.id for question, _, _ in questions]

    def _follow(
        self,
        runs: list[TrainedRun],
        dictionaries: list[DictionaryEntry],
        latents: list[list[SteeredLatent]],
    ) -> list[str]:
        config = self.config
        with self.reporter.stage("evolve") as stage:
            plans = [
                (
                    plan_recording(self.store, card.policy_id, self._factory(run), recording),
                    self._factory(run),
                )
                for run in runs
                for card, recording in config.evolve.bank(run)
            ]
            banks = [
                manifest.plan.recording_id
                for manifest in self.laboratory.record(plans, stage.update)
            ]
            questions = []
            for number, (run, dictionary, chosen) in enumerate(
                zip(runs, dictionaries, latents, strict=True)
            ):
                bank = tuple(banks[3 * number : 3 * number + 3])
                concepts = tuple(
                    FollowedConcept(concept=one.concept, label=one.label, latent=one.latent)
                    for one in chosen
                )
                question = lineage_question(
                    run,
                    bank,
                    dictionary.dict_id,
                    concepts,
                    config.evolve,
                    split=Split(held_out_fraction=0.5, salt="probe"),
                    seed=config.seed,
                )
                tasks = [
                    ScoreCheckpoint(
                        checkpoint=card,
                        factory=self._factory(run),
                        bank=bank,
                        config=config.evolve,
                        dict_id=dictionary.dict_id,
                        concepts=concepts,
                        split=Split(held_out_fraction=0.5, salt="probe"),
                        seed=config.seed,
                    )
                    for card in (run.checkpoints if concepts else ())
                ]
                questions.append((question, run, tasks))
            self.laboratory.follow(questions, stage.update)
        self.reporter.done(
            "evolve", f"{sum(len(tasks) for _, _, tasks in questions)} checkpoints on frozen replay"
        )
        return [question.id for question, _, _ in questions]

    def _show(
        self,
        runs: list[TrainedRun],
        recordings: list[Manifest],
        dictionaries: list[DictionaryEntry],
        latents: list[list[SteeredLatent]],
    ) -> list[str]:
        tasks = [
            ShowConcepts(
                policy_id=run.checkpoints[-1].policy_id,
                factory=self._factory(run),
                recording_id=recording.plan.recording_id,
                dict_id=dictionary.dict_id,
                latents=tuple(chosen),
                split=self.config.split,
            )
            for run, recording, dictionary, chosen in zip(
                runs, recordings, dictionaries, latents, strict=True
            )
            if chosen
        ]
        with self.reporter.stage("show") as stage:
            tables = self.laboratory.answer(tasks, stage.update)
        self.reporter.done(
            "show", f"{sum(len(table) for table in tables)} windows of strongest responses"
        )
        return [task.question.id for task in tasks]


def _recording_entry(manifest: Manifest) -> RecordingEntry:
    config = manifest.plan.config
    return RecordingEntry(
        recording_id=manifest.plan.recording_id,
        rows=manifest.rows,
        episodes=config["num_episodes"],
        sites=tuple(config["site_widths"]),
    )
