"""The main job: train, evaluate, record, decompose, score, discover, steer, follow, report.

Every stage asks the store first, so the same command goes on after an interruption and is quick when all is there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import pyarrow as pa
import tyro

from cluster import milestones, policies
from cluster.clips import ShowEdits
from cluster.dictionaries import (
    SweepResult,
    TrainDictionary,
    load as load_dictionary,
    sweep_id,
)
from cluster.discovery import Discover
from cluster.evaluation import UNIFORM, Evaluate, ReturnEstimate
from cluster.evolution import followed_beside, lineage_tasks
from cluster.laboratory import Laboratory
from cluster.milestones import Milestones
from cluster.placement import device_of
from cluster.recorder import plan_recording
from cluster.recordings import Manifest
from cluster.results import Kind
from cluster.scoring import ScoreConcepts, ShowConcepts, steered_latent
from cluster.splicing import plan_splice
from cluster.stability import seed_stability
from cluster.steering import Experiment, Findings
from cluster.store import Store
from cluster.studies import (
    check_study_name,
    draw_report,
    find_same,
    read_times,
    report_address,
    report_of,
    save_study,
    save_times,
    study_keys,
)
from cluster.sweep import TrialProgress
from cluster.tracking import letters
from cluster.tracking.mirror import Mirror
from cluster.training import TrainedRun
from cluster.trajectories import open_run
from interp.concepts.naming import NOTHING
from interp.dictionaries.training import CurvePoint, SaeConfig
from interp.policies.bundle import PolicyCard
from interp.steering.arms import SteeredLatent
from interp.steering.splicing import DICTIONARY
from interp.study import DictionaryEntry, PolicyEntry, RecordingEntry, Study
from interp.worlds.catalogue import load_world
from interp.worlds.labels import label_named
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.world import WorldFactory
from jobs.factories import allow_factories
from jobs.main import run_as_module
from jobs.progress import Reporter, Stage, SweepNote, TrainingNote
from jobs.recipes import (
    PIPELINES,
    DemoPipelineConfig,
    PipelineConfig,
    TrainDemoConfig,
    TrainedPipelineConfig,
)
from jobs.summary import print_summary

STAGES = (
    *("evaluate", "record", "sweep", "decompose", "score", "splice", "discover", "repeat"),
    *("steer", "evolve", "show", "report"),
)
"""What follows once there are policies, in order."""
FOUND_AGAIN = 0.9
"""Cosine from which on a latent of another seed is taken to be the same."""
CLIP_SEEDS = 4
"""Episodes among which one is looked for that an edit changes."""


def main(arguments: Sequence[str]) -> None:
    """Parses the recipe's name and its changes, and runs it."""
    config = tyro.extras.overridable_config_cli(
        PIPELINES, args=list(arguments), prog="sparsight pipeline", description=__doc__
    )
    run(config, Reporter())


def run(config: PipelineConfig, reporter: Reporter) -> Study:
    """Runs the whole study and writes study.json, figures and report.html."""
    check_study_name(config.study)
    factories = config.factory if isinstance(config, TrainedPipelineConfig) else ()
    allow_factories(factories)
    store = Store.open(config.store)
    store.probe()
    with (
        Mirror.open(
            store,
            config.study,
            config.wandb,
            project=config.wandb_project,
            entity=config.wandb_entity,
            say=reporter.say,
        ) as mirror,
        Laboratory(
            store,
            num_actors=config.actors,
            worlds_per_actor=config.worlds_per_actor,
            factories=factories,
            say=reporter.say,
            attempts=config.attempts,
            gpus_per_actor=config.gpus_per_actor,
            gpus_per_trial=config.gpus_per_trial,
            needs_pool=True,
            study=config.study,
        ) as laboratory,
    ):
        laboratory.num_unsent = mirror.num_unsent
        study = _Pipeline(config, laboratory, mirror, reporter).run()
        with reporter.stage("mirror"):
            state = mirror.close()
        if mirror.reason:
            reporter.say(f"wandb: {mirror.reason}")
        reporter.say(state)
    return study


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """A training run, its last checkpoint at play, and the untrained one shown the same observations."""

    run: TrainedRun
    factory: WorldFactory
    recording: Manifest
    untrained: Manifest

    @property
    def policy_id(self) -> str:
        return self.run.checkpoints[-1].policy_id


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decomposed:
    """A recorded run with a dictionary of each of its two recordings."""

    recorded: _Recorded
    dictionary: DictionaryEntry
    untrained: DictionaryEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """A decomposed run with its concepts, and the few of them that are looked at more closely."""

    recorded: _Recorded
    dictionary: DictionaryEntry
    concepts_id: str
    latents: tuple[SteeredLatent, ...]


class _Pipeline:
    """The stages of one run of the pipeline, in order; each leaves what the next ones need."""

    def __init__(
        self,
        config: PipelineConfig,
        laboratory: Laboratory,
        mirror: Mirror,
        reporter: Reporter,
    ) -> None:
        self.config = config
        self.laboratory = laboratory
        self.mirror = mirror
        self.store = laboratory.store
        self.reporter = reporter
        self.factories: dict[str, WorldFactory] = {}
        """World of every run, by its name; known once the runs are."""
        self.earlier_s = read_times(self.store, config.study)
        """Of stages that this run need not repeat."""
        self.wall_s: dict[str, float] = {}
        """In the order of the stages, however often the study was interrupted."""
        first = "train" if isinstance(config, DemoPipelineConfig) else "open"
        self.milestones = Milestones(study=config.study, stages=(first, *STAGES))

    @contextmanager
    def _stage(self, name: str) -> Iterator[Stage]:
        """Shows a stage, and keeps how long it took if it did anything."""
        self.laboratory.worked = False
        with self.reporter.stage(name) as stage:
            self.laboratory.watch(name, stage)
            yield stage
        if self.laboratory.worked or name not in self.earlier_s:
            self.earlier_s[name] = self.reporter.wall_s[name]
            save_times(self.store, self.config.study, self.earlier_s)
        self.wall_s[name] = self.earlier_s[name]

    def _passed(self, stage: str, keys: Iterable[str]) -> None:
        """Tells `sparsight status` that a stage has left these objects."""
        self.milestones.passed(self.store, stage, keys)

    def run(self) -> Study:
        self.milestones.begin(self.store)
        match self.config:
            case DemoPipelineConfig(train=train):
                runs = self._train(train)
            case TrainedPipelineConfig() as trained:
                runs = self._open(trained)
            case other:
                raise TypeError(f"no pipeline for {type(other).__name__}")
        study_name = self.config.study
        checkpoints = [card.policy_id for run in runs for card in run.checkpoints]
        self._passed(self.milestones.stages[0], milestones.cards("policies", checkpoints))
        self.mirror.post(letters.policies_letter(self.store, study_name, run) for run in runs)
        returns, random_returns = self._evaluate(runs)
        recorded = self._record(runs)
        sweep = self._sweep(recorded[0])
        decomposed = self._decompose(recorded, sweep.chosen_config)
        scored = self._score(decomposed)
        splices = self._splice(decomposed)
        looked = self._discover(scored)
        stabilities = self._repeat(scored, sweep.chosen_config)
        steered = self._steer(scored)
        lineages = self._follow(scored)
        windows, clips = self._show(scored, steered)
        study = Study(
            study=study_name,
            seeds=self._seeds(runs),
            policies=tuple(
                PolicyEntry(
                    policy_id=card.policy_id,
                    name=run.name,
                    run=run.run_id,
                    world=run.world,
                    step=card.step,
                    return_mean=returns[card.policy_id].mean,
                    return_se=returns[card.policy_id].se,
                    n_episodes=returns[card.policy_id].n_episodes,
                )
                for run in runs
                for card in run.checkpoints
            ),
            random_return=random_returns[runs[0].world].mean,
            random_returns={world: found.mean for world, found in random_returns.items()},
            recordings=tuple(
                _recording_entry(manifest)
                for one in recorded
                for manifest in (one.recording, one.untrained)
            ),
            sweep=sweep.trials,
            dictionaries=tuple(
                entry for one in decomposed for entry in (one.dictionary, one.untrained)
            ),
            concepts=tuple(one.concepts_id for one in scored),
            effects=tuple(found.effects_id for _, found in steered),
            verdicts=tuple(found.verdicts_id for _, found in steered),
            clips=clips,
            stabilities=stabilities,
            splices=splices,
            groups=tuple(task.groups_question.id for task in looked),
            findings=tuple(task.findings_question.id for task in looked),
            lineages=lineages,
            windows=windows,
            wall_s=dict(self.wall_s),
        )
        report = report_of(self.store, study)
        before = find_same(self.store, study)
        if before is None:
            with self._stage("report"):
                self.laboratory.worked = True
                figures = draw_report(self.store, report)
            study = replace(study, wall_s=dict(self.wall_s), figures=figures)
            save_study(self.store, study)
        study = before or study
        self._passed("report", study_keys(study_name))
        self.mirror.post(letters.report_letter(self.store, one) for one in (study,))
        print_summary(self.reporter, report, report_address(self.store, study.study))
        return study

    def _seeds(self, runs: list[TrainedRun]) -> dict[str, int]:
        """Every seed, by what it decides."""
        config = self.config
        return {
            "study": config.seed,
            **(
                {
                    f"train.{run.name}": seed
                    for run, seed in zip(runs, config.train.seeds, strict=True)
                }
                if isinstance(config, DemoPipelineConfig)
                else {}
            ),
            "evaluate.first_env_seed": config.evaluate.first_env_seed,
            "record.first_env_seed": config.record.first_env_seed,
            "steer.first_selection_seed": config.steer.first_selection_seed,
            "steer.first_env_seed": config.steer.first_env_seed,
            "evolve.first_env_seed": config.evolve.first_env_seed,
        }

    def _train(self, config: TrainDemoConfig) -> list[TrainedRun]:
        worlds = dict.fromkeys(config.worlds)
        self.factories = _by_name(MettagridFactory.load(world) for world in worlds)
        with self._stage("train") as stage:
            runs = self.laboratory.train(config.runs, TrainingNote(stage))
        self.reporter.done(
            "train",
            ", ".join(f"{run.name} ({len(run.checkpoints)} checkpoints)" for run in runs),
        )
        return runs

    def _open(self, config: TrainedPipelineConfig) -> list[TrainedRun]:
        """The runs that the user named, fetched and kept as policies of the store."""
        names = config.names or (None,) * len(config.policies)
        with self._stage("open") as stage:
            runs = [
                open_run(
                    self.store,
                    uri,
                    choice=config.checkpoints,
                    name=name,
                    world=config.world,
                    factories=config.factory,
                    note=stage.update,
                )
                for uri, name in zip(config.policies, names, strict=True)
            ]
        worlds = {run.world: load_world(run.world) for run in runs}
        self.factories = _by_name(worlds.values())
        runs = [replace(run, world=worlds[run.world].name) for run in runs]
        taken = [run.name for run in runs]
        if repeated := {name for name in taken if taken.count(name) > 1}:
            raise ValueError(
                f"two runs are called {min(repeated)!r}; give every run a name of its own with --names"
            )
        self.reporter.done(
            "open", ", ".join(f"{run.name} ({len(run.checkpoints)} checkpoints)" for run in runs)
        )
        return runs

    def _evaluate(
        self, runs: list[TrainedRun]
    ) -> tuple[dict[str, ReturnEstimate], dict[str, ReturnEstimate]]:
        """Returns of every checkpoint by policy, and of the random policy by world."""
        returns: dict[str, ReturnEstimate] = {}
        random_returns: dict[str, ReturnEstimate] = {}
        tables: list[str] = []
        with self._stage("evaluate") as stage:
            for world, factory in self.factories.items():
                cards = [card for run in runs if run.world == world for card in run.checkpoints]
                players = dict.fromkeys([UNIFORM, *(card.policy_id for card in cards)])
                tasks = [
                    Evaluate(policy_id=player, factory=factory, config=self.config.evaluate)
                    for player in players
                ]
                found = self.laboratory.evaluate(tasks, stage.update)
                random_returns[world] = found.pop(UNIFORM)
                returns |= found
                tables += [task.question.id for task in tasks]
        self._passed("evaluate", milestones.tables("returns", tables))
        last = [returns[run.checkpoints[-1].policy_id] for run in runs]
        self.reporter.done(
            "evaluate",
            ", ".join(
                f"{run.name} {found.mean:.2f} ± {found.se:.2f} (random {random_returns[run.world].mean:.2f})"
                for run, found in zip(runs, last, strict=True)
            ),
        )
        return returns, random_returns

    def _record(self, runs: list[TrainedRun]) -> list[_Recorded]:
        config = self.config.record
        untrained_config = replace(config, sites=(self.config.sweep.site,))
        device = self.config.device
        factories = [self.factories[run.world] for run in runs]
        with self._stage("record") as stage:
            plans = [
                plan_recording(
                    self.store, run.checkpoints[-1].policy_id, factory, config, device=device
                )
                for run, factory in zip(runs, factories, strict=True)
            ]
            played = self.laboratory.record(list(zip(plans, factories, strict=True)), stage.update)
            replays = [
                plan_recording(
                    self.store,
                    self._untrained(run).policy_id,
                    factory,
                    untrained_config,
                    replay_of=manifest.plan.recording_id,
                    device=device,
                )
                for run, factory, manifest in zip(runs, factories, played, strict=True)
            ]
            shown = self.laboratory.record(list(zip(replays, factories, strict=True)), stage.update)
        self._passed("record", [manifest.key for manifest in played + shown])
        self._mirror_recordings(played + shown)
        rows = sum(manifest.rows for manifest in played + shown)
        self.reporter.done("record", f"{rows:,} rows in {len(played + shown)} recordings")
        return [
            _Recorded(run=run, factory=factory, recording=recording, untrained=untrained)
            for run, factory, recording, untrained in zip(
                runs, factories, played, shown, strict=True
            )
        ]

    def _mirror_recordings(self, manifests: Iterable[Manifest]) -> None:
        self.mirror.post(
            letters.recording_letter(self.store, self.config.study, manifest.plan.recording_id)
            for manifest in manifests
        )

    def _untrained(self, run: TrainedRun) -> PolicyCard:
        """The checkpoint before training, or else a fresh copy of the same network."""
        last = run.checkpoints[-1]
        return run.untrained or policies.save_untrained(self.store, last, seed=self.config.seed)

    def _sweep(self, first: _Recorded) -> SweepResult:
        """All trials on the first run; its chosen recipe serves for the others."""
        config = self.config
        recording_id, site = first.recording.plan.recording_id, config.sweep.site
        trials = config.sweep.trials
        identity = sweep_id(
            recording_id,
            site,
            trials,
            split=config.split,
            seed=config.seed,
            device=device_of(config.gpus_per_trial),
        )
        told = {"recording_id": recording_id}
        runs = [
            letters.trial_run(config.study, identity, number, trial.to_dict(), **told)
            for number, trial in enumerate(trials)
        ]
        with self._stage("sweep") as stage:
            note = SweepNote(stage)

            def on_progress(progress: TrialProgress) -> None:
                note(progress)
                point = CurvePoint.of(progress.progress)
                self.mirror.feed(runs[progress.trial], letters.curve_row(point))

            sweep = self.laboratory.sweep(
                recording_id,
                site,
                trials,
                split=config.split,
                seed=config.seed,
                target_l0=config.sweep.target_l0,
                on_progress=on_progress,
            )
        self._passed("sweep", [f"sweeps/{identity}.json"])
        self.mirror.post(letters.trial_letters(config.study, identity, sweep, **told))
        self.mirror.post([letters.sweep_letter(config.study, identity, sweep, **told)])
        self.reporter.done(
            "sweep",
            f"{len(sweep.trials)} trials; kept {sweep.chosen.family} "
            f"FVU {sweep.chosen.fvu:.3f} L0 {sweep.chosen.l0:.1f} dead {sweep.chosen.dead_fraction:.0%}",
        )
        return sweep

    def _decompose(self, recorded: list[_Recorded], recipe: SaeConfig) -> list[_Decomposed]:
        manifests = [manifest for one in recorded for manifest in (one.recording, one.untrained)]
        with self._stage("decompose") as stage:
            entries = self.laboratory.train_dictionaries(
                [
                    TrainDictionary(
                        recording_id=manifest.plan.recording_id,
                        site=self.config.sweep.site,
                        config=recipe,
                        split=self.config.split,
                        seed=self.config.seed,
                    )
                    for manifest in manifests
                ],
                stage.update,
            )
        self._passed(
            "decompose", milestones.cards("dictionaries", (entry.dict_id for entry in entries))
        )
        self.mirror.post(
            letters.dictionary_letter(
                self.config.study, entry, recording_id=manifest.plan.recording_id
            )
            for entry, manifest in zip(entries, manifests, strict=True)
        )
        self.reporter.done("decompose", f"{len(entries)} dictionaries of the chosen recipe")
        return [
            _Decomposed(recorded=one, dictionary=dictionary, untrained=untrained)
            for one, dictionary, untrained in zip(
                recorded, entries[::2], entries[1::2], strict=True
            )
        ]

    def _splice(self, decomposed: list[_Decomposed]) -> tuple[str, ...]:
        """What each policy keeps of its play with its dictionary in the loop."""
        tasks = [
            plan_splice(
                self.store,
                one.dictionary.dict_id,
                recording_id=one.recorded.recording.plan.recording_id,
                config=self.config.evaluate,
                split=self.config.split,
                seed=self.config.seed,
            )
            for one in decomposed
        ]
        with self._stage("splice") as stage:
            tables = self.laboratory.answer(tasks, stage.update)
        spliced = [task.question.id for task in tasks]
        self._passed("splice", milestones.tables("evaluations", spliced))
        self._mirror_tables("evaluations", spliced)
        recovered = [
            one.recorded.run.name
            + (" undefined" if isnan(row["value"]) else f" {row['value']:.2f}")
            for one, table in zip(decomposed, tables, strict=True)
            for row in table.to_pylist()
            if (row["replaced_by"], row["metric"]) == (DICTIONARY, "return recovered")
        ]
        self.reporter.done("splice", f"return recovered: {', '.join(recovered)}")
        return tuple(spliced)

    def _score(self, decomposed: list[_Decomposed]) -> list[_Scored]:
        config = self.config
        tasks = [
            ScoreConcepts(
                policy_name=one.recorded.run.name,
                recording_id=one.recorded.recording.plan.recording_id,
                dict_id=one.dictionary.dict_id,
                random_init_recording_id=one.recorded.untrained.plan.recording_id,
                random_init_dict_id=one.untrained.dict_id,
                factory=one.recorded.factory,
                labels=config.record.labels_in(one.recorded.factory),
                split=config.split,
                config=config.score,
                seed=config.seed,
            )
            for one in decomposed
        ]
        with self._stage("score") as stage:
            tables = self.laboratory.answer(tasks, stage.update)
        scored = [task.question.id for task in tasks]
        self._passed("score", milestones.tables("concepts", scored))
        self._mirror_tables("concepts", scored)
        named = sum(len(table) - table.column("concept").null_count for table in tables)
        self.reporter.done(
            "score", f"{sum(len(table) for table in tables):,} latent-label pairs, {named} concepts"
        )
        return [
            _Scored(
                recorded=one.recorded,
                dictionary=one.dictionary,
                concepts_id=task.question.id,
                latents=self._latents_to_follow(table, one.dictionary),
            )
            for one, task, table in zip(decomposed, tasks, tables, strict=True)
        ]

    def _discover(self, scored: list[_Scored]) -> list[Discover]:
        """Groups of latents, and what the dictionaries have found that nobody asked for."""
        config = self.config
        tasks = [
            Discover(
                policy_name=one.recorded.run.name,
                recording_id=one.recorded.recording.plan.recording_id,
                dict_id=one.dictionary.dict_id,
                labels=config.record.labels_in(one.recorded.factory),
                split=config.split,
                config=config.discover,
                seed=config.seed,
            )
            for one in scored
        ]
        with self._stage("discover") as stage:
            found = self.laboratory.discover(tasks, stage.update)
        grouped = [task.groups_question.id for task in tasks]
        clustered = [task.findings_question.id for task in tasks]
        self._passed(
            "discover",
            [*milestones.tables("groups", grouped), *milestones.tables("findings", clustered)],
        )
        self._mirror_tables("groups", grouped)
        self._mirror_tables("findings", clustered)
        findings = [row for one in found for row in one.findings.to_pylist()]
        better = [better for one in found for better in one.groups.column("beats_best").to_pylist()]
        self.reporter.done(
            "discover",
            f"{len(findings)} clusters of latents, {sum(row['name'] != NOTHING for row in findings)} with a name; "
            f"{len(better)} groups of latents, {sum(better)} better than their best one",
        )
        return tasks

    def _mirror_tables(self, kind: Kind, table_ids: Iterable[str]) -> None:
        self.mirror.post(
            letters.table_letter(self.store, self.config.study, kind, table_id)
            for table_id in table_ids
        )

    def _latents_to_follow(
        self, concepts: pa.Table, dictionary: DictionaryEntry
    ) -> tuple[SteeredLatent, ...]:
        """The concepts that training made most of: largest lead over the untrained policy, one per latent."""
        named = [row for row in concepts.to_pylist() if row["concept"] is not None]
        named.sort(key=lambda row: row["random_init_auroc"] - row["auroc"])
        best_of_latent: dict[int, dict[str, Any]] = {}
        for row in named:
            best_of_latent.setdefault(row["latent"], row)
        weights = load_dictionary(self.store, dictionary.dict_id)
        return tuple(
            steered_latent(weights, row)
            for row in list(best_of_latent.values())[: self.config.concepts_per_policy]
        )

    def _repeat(self, scored: list[_Scored], recipe: SaeConfig) -> tuple[str, ...]:
        """Dictionaries of other seeds, and whether the latents that are looked at are in them."""
        config = self.config
        seeds = [config.seed + 1 + n for n in range(config.stability_seeds)]
        with self._stage("repeat") as stage:
            entries = self.laboratory.train_dictionaries(
                [
                    TrainDictionary(
                        recording_id=one.recorded.recording.plan.recording_id,
                        site=config.sweep.site,
                        config=recipe,
                        split=config.split,
                        seed=seed,
                    )
                    for one in scored
                    for seed in seeds
                ],
                stage.update,
            )
            found = [
                seed_stability(
                    self.store,
                    one.dictionary.dict_id,
                    [entry.dict_id for entry in entries[n * len(seeds) : (n + 1) * len(seeds)]],
                    [latent.latent for latent in one.latents],
                    policy_name=one.recorded.run.name,
                    seed=config.seed,
                )
                for n, one in enumerate(scored)
                if seeds
            ]
        self._passed("repeat", milestones.tables("stabilities", (one for one, _ in found)))
        cosines = [row["cosine"] for _, table in found for row in table.to_pylist()]
        again = sum(cosine > FOUND_AGAIN for cosine in cosines)
        self.reporter.done(
            "repeat",
            f"{again} of {len(cosines)} times a latent is found again by another seed (cosine above {FOUND_AGAIN})",
        )
        return tuple(table_id for table_id, _ in found)

    def _steer(self, scored: list[_Scored]) -> list[tuple[Experiment, Findings]]:
        config = self.config
        experiments = []
        for one in scored:
            factory = one.recorded.factory
            behaviours = [
                name
                for name in config.record.labels_in(factory)
                if label_named(name, factory.labels).kind == "behavioural"
            ]
            experiments.append(
                Experiment(
                    policy_id=one.recorded.policy_id,
                    policy_name=one.recorded.run.name,
                    untrained_id=one.recorded.untrained.plan.inputs["policy"],
                    factory=factory,
                    concepts_id=one.concepts_id,
                    recording_id=one.recorded.recording.plan.recording_id,
                    dict_id=one.dictionary.dict_id,
                    split=config.split,
                    latents=one.latents,
                    config=config.steer,
                    labels=tuple(behaviours),
                    seed=config.seed,
                    device=config.device,
                )
            )
        with self._stage("steer") as stage:
            found = self.laboratory.steer(experiments, stage.update)
        self._passed(
            "steer",
            [
                *milestones.tables("effects", (one.effects_id for one in found)),
                *milestones.tables("verdicts", (one.verdicts_id for one in found)),
            ],
        )
        self._mirror_tables("effects", [one.effects_id for one in found])
        self._mirror_tables("verdicts", [one.verdicts_id for one in found])
        words = Counter(
            row["verdict"]
            for one in found
            for row in {row["concept"]: row for row in one.verdicts.to_pylist()}.values()
        )
        self.reporter.done(
            "steer",
            ", ".join(f"{count} {word}" for word, count in sorted(words.items()))
            + f" of {sum(words.values())} concepts; {config.steer.num_episodes} episodes of every arm; dose 0 changed "
            "nothing",
        )
        return list(zip(experiments, found, strict=True))

    def _follow(self, scored: list[_Scored]) -> tuple[str, ...]:
        config = self.config
        with self._stage("evolve") as stage:
            banks = [config.evolve.bank(one.recorded.run) for one in scored]
            plans = [
                (
                    plan_recording(self.store, card.policy_id, one.recorded.factory, recording),
                    one.recorded.factory,
                )
                for one, bank in zip(scored, banks, strict=True)
                for card, recording in bank
            ]
            bank_manifests = self.laboratory.record(plans, stage.update)
            manifests = iter(bank_manifests)
            questions = [
                lineage_tasks(
                    one.recorded.run,
                    one.recorded.factory,
                    tuple(next(manifests).plan.recording_id for _ in bank),
                    one.dictionary.dict_id,
                    one.latents,
                    config.evolve,
                    seed=config.seed,
                    beside=followed_beside(
                        self.store,
                        one.recorded.recording.plan.recording_id,
                        one.latents,
                        config.evolve.beside,
                        split=config.split,
                        seed=config.seed,
                    ),
                )
                for one, bank in zip(scored, banks, strict=True)
            ]
            self.laboratory.follow(questions, stage.update)
        followed = [question.id for question, _, _ in questions]
        self._passed("evolve", milestones.tables("lineages", followed))
        self._mirror_recordings(bank_manifests)
        self._mirror_tables("lineages", followed)
        checkpoints = sum(len(tasks) for _, _, tasks in questions)
        self.reporter.done("evolve", f"{checkpoints} checkpoints on frozen replay")
        return tuple(question.id for question, _, _ in questions)

    def _show(
        self, scored: list[_Scored], steered: list[tuple[Experiment, Findings]]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Windows of the strongest responses, and clips of what edits change."""
        responses = [
            ShowConcepts(
                policy_id=one.recorded.policy_id,
                factory=one.recorded.factory,
                recording_id=one.recorded.recording.plan.recording_id,
                dict_id=one.dictionary.dict_id,
                latents=one.latents,
                split=self.config.split,
            )
            for one in scored
            if one.latents and one.recorded.factory.spec.has_map
        ]
        edits = [
            ShowEdits(
                subject=experiment.subject,
                claimed=tuple(experiment.claimed(found.verdicts)),
                env_seeds=tuple(experiment.config.env_seeds[:CLIP_SEEDS]),
                registration_id=found.registration_id,
            )
            for experiment, found in steered
            if experiment.latents and experiment.factory.spec.has_map
        ]
        with self._stage("show") as stage:
            windows = self.laboratory.answer(responses, stage.update)
            clips = self.laboratory.answer(edits, stage.update)
        shown = [task.question.id for task in responses]
        clipped = [task.question.id for task in edits]
        self._passed(
            "show", [*milestones.tables("windows", shown), *milestones.tables("clips", clipped)]
        )
        self._mirror_tables("windows", shown)
        self._mirror_tables("clips", clipped)
        without_map = [name for name, factory in self.factories.items() if not factory.spec.has_map]
        skipped = f"; none of {', '.join(without_map)}, which has no map" if without_map else ""
        self.reporter.done(
            "show",
            f"{sum(map(len, windows))} windows of strongest responses, {sum(map(len, clips))} clips of edits{skipped}",
        )
        return tuple(shown), tuple(clipped)


def _by_name(factories: Iterable[WorldFactory]) -> dict[str, WorldFactory]:
    return {factory.name: factory for factory in factories}


def _recording_entry(manifest: Manifest) -> RecordingEntry:
    config = manifest.plan.config
    return RecordingEntry(
        recording_id=manifest.plan.recording_id,
        policy_id=manifest.plan.inputs["policy"],
        replay_of=manifest.plan.inputs.get("replay_of"),
        rows=manifest.rows,
        episodes=config["num_episodes"],
        sites=tuple(config["site_widths"]),
    )


if __name__ == "__main__":
    run_as_module("pipeline")
