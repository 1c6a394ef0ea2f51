"""The stages of a study, each of which finds what the store has and makes what it lacks.

Ray starts when there is first something to make, and one pool of actors serves all stages but trainings and sweeps,
which have the cores to themselves. A study that is complete is read without starting anything.
"""

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import pyarrow as pa
import ray

from cluster import (
    crosscoders,
    dictionaries,
    logs,
    recordings,
    runtime,
    search,
    steering,
    tally,
    training,
)
from cluster.bank import PlayShard, ReplayShard
from cluster.clips import ShowEdits
from cluster.crosscoders import CrosscoderEntry, TrainCrosscoder
from cluster.dictionaries import SweepResult, TrainDictionary
from cluster.discovery import Discover, Discovered
from cluster.evaluation import Evaluate, ReturnEstimate, find_returns
from cluster.evolution import ScoreCheckpoint, lineage_table
from cluster.logs import Journal
from cluster.metrics import Metrics, SweepMetrics, TrainingMetrics
from cluster.notes import Note, silent
from cluster.placement import check_gpus, check_placement, device_of
from cluster.pool import ATTEMPTS, Pool, Several, Unwatched, Watcher
from cluster.pulse import Pulse
from cluster.quarantine import Quarantine
from cluster.recorder import RecordShard
from cluster.recordings import Manifest, Plan, Receipt, ShardPlan
from cluster.results import Question
from cluster.scoring import ScoreConcepts, ShowConcepts
from cluster.search import Runner, SearchConfig, SearchResult
from cluster.shelf import SharedPolicies
from cluster.splicing import SpliceDictionary
from cluster.staging import Split
from cluster.steering import Experiment
from cluster.store import Store
from cluster.studio import Studio, Task
from cluster.sweep import TrialProgress
from cluster.training import TrainedRun, TrainingProgress
from interp.dictionaries.training import SaeConfig
from interp.policies.bundle import PolicyCard
from interp.policies.factories import allow
from interp.policies.ppo import PpoConfig
from interp.rollout import CaptureSteps, EveryStep
from interp.study import DictionaryEntry
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.world import WorldFactory

Value = TypeVar("Value")


class Laboratory:
    """A store and, once needed, a pool of actors to fill it with."""

    def __init__(
        self,
        store: Store,
        *,
        num_actors: int | None = None,
        worlds_per_actor: int | None = None,
        factories: Sequence[str] = (),
        say: Callable[[str], None] = lambda _: None,
        gpus_per_actor: float = 0.0,
        attempts: int = ATTEMPTS,
        gpus_per_trial: float = 0.0,
        needs_pool: bool = False,
        study: str | None = None,
    ) -> None:
        """`factories` are the functions that may build networks, in this process and in its actors.

        `say` is told of the Ray that is started or joined, in one line.

        `worlds_per_actor` are played at once while recording, by default as many as are fast. Actors with
        `gpus_per_actor`, perhaps a part of one, compute there what was planned for device "cuda", and all else on
        their cores; with `gpus_per_trial` the trials of sweeps and searches compute there. If it `needs_pool` later, a
        Ray that is too small for it is refused when it is started or joined. `attempts` is how often a task is tried
        whose actor was lost; a training is begun once more, and the trial of a sweep twice as often. `study` is what
        the work is for, as heartbeats and logs tell it.
        """
        allow(*factories)
        for name, value in (
            ("actors", num_actors),
            ("worlds_per_actor", worlds_per_actor),
            ("attempts", attempts),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: at least 1")
        check_gpus("gpus_per_actor", gpus_per_actor)
        check_gpus("gpus_per_trial", gpus_per_trial)
        self.store = store
        self.gpus_per_actor = gpus_per_actor
        self.attempts = attempts
        self.gpus_per_trial = gpus_per_trial
        self.needs_pool = needs_pool
        self.num_actors = num_actors or runtime.worker_count()
        self.worlds_per_actor = worlds_per_actor
        self.factories = tuple(factories)
        self._say = say
        self.study = study
        self.num_unsent: Callable[[], int] = lambda: 0
        """How many letters the study's mirror has still to deliver, for metrics."""
        self._pulse: Pulse | None = None
        self._pool: Pool | None = None
        self._shared_policies: SharedPolicies | None = None
        self._owns_ray = False
        self.worked = False
        """Set whenever something had to be made; whoever asks resets it."""
        self._stage = "tasks"
        self._watcher: Watcher = Unwatched()
        self._metrics: dict[str, Metrics] = {}
        self._of_trials: SweepMetrics | TrainingMetrics | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_pool()
        if self._pulse is not None:
            self._pulse.__exit__(None, None, None)
            self._pulse = None
        if self._owns_ray:
            runtime.stop()

    def watch(self, stage: str, watcher: Watcher | None = None) -> None:
        """From now on runs tell this watcher, and metrics and logs name this stage."""
        self._stage = stage
        self._watcher = watcher or Unwatched()
        self._of_trials = None
        if self._pulse is not None:
            self._pulse.at(stage)

    def start_ray(self) -> None:
        """A CPU for every actor, trial or training, and one for Ray Data; the pool gives up its own."""
        self.worked = True
        self._close_pool()
        if not ray.is_initialized():
            started = runtime.start(
                self.num_actors + 1,
                dashboard=os.environ.get(runtime.DASHBOARD) == "1",
                logging_config=logs.for_workers(),
            )
            self._owns_ray = True
            self._say(str(started))
        # what no node can give is refused before the first stage works, and not when its turn comes
        if self.needs_pool:
            runtime.check_cpus(self.num_actors, beside_ray_data=True)
        check_placement(name="gpus_per_actor", gpus=self.gpus_per_actor, processes=self.num_actors)
        check_placement(name="gpus_per_trial", gpus=self.gpus_per_trial)
        if self._pulse is None:
            pulse = Pulse(self.store, study=self.study, on_beat=self._tell, on_tick=self._refresh)
            pulse.at(self._stage)  # before the first beat
            self._pulse = pulse.__enter__()

    def _metrics_now(self) -> Metrics:
        """Of the present stage; Ray is running by then."""
        stage = self._stage
        if stage not in self._metrics:
            # the pulse's thread may have been quicker
            self._metrics.setdefault(stage, Metrics(stage))
        return self._metrics[stage]

    def _tell(self) -> None:
        """Tells Prometheus what does not come with a task: this process's use of the store, and the mirror's spool."""
        metrics = self._metrics_now()
        metrics.stored(tally.take())
        metrics.unsent(self.num_unsent())

    def _refresh(self) -> None:
        """Tells gauges of the present stage again; those of other stages end."""
        for one in (self._metrics_now(), self._of_trials):
            if one is not None:
                one.refresh()

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.__exit__(None, None, None)
            self._pool = self._shared_policies = None

    def make(self, tasks: Sequence[Task[Value]], note: Note = silent) -> list[Value]:
        """Results of tasks, in their order; the pool is opened if it is not yet."""
        if not tasks:
            return []
        self.worked = True
        if self._pool is None:
            self.start_ray()
            self._shared_policies = SharedPolicies.of(self.store)
            self._pool = Pool(
                Studio,
                args=(self.store, self.factories, self._shared_policies),
                kwargs={"gpus": self.gpus_per_actor},
                size=self.num_actors,
                num_gpus=self.gpus_per_actor,
                tasks_at_once=2,
                attempts=self.attempts,
                beside_ray_data=True,
            ).__enter__()
        values: dict[str, Value] = {}
        metrics = self._metrics_now()
        metrics.begin(len(tasks))
        watcher = Several(
            metrics,
            Journal(self._stage, tasks),
            Quarantine(self.store, self._stage),
            self._watcher,
        )
        try:
            for result in self._pool.run(tasks, watcher):
                values[result.task.key] = result.value
                if self._pulse is not None:
                    self._pulse.at(self._stage, len(values), len(tasks))
                note(len(values), len(tasks), result.task.key)
        finally:
            metrics.end()
            metrics.stored(tally.take())
        return [values[task.key] for task in tasks]

    # --- stages, in the order of a study

    def train(
        self,
        configs: Sequence[PpoConfig],
        on_progress: Callable[[TrainingProgress], None] = lambda _: None,
    ) -> list[TrainedRun]:
        """Demo policies; in the order of `configs`."""
        factories = [MettagridFactory.load(config.world) for config in configs]
        found = [
            training.find_run(self.store, config, factory)
            for config, factory in zip(configs, factories, strict=True)
        ]
        if None in found:
            self.start_ray()
            self._of_trials = TrainingMetrics(self._stage, on_progress)
            return training.train_all(
                self.store, configs, max_losses=self.attempts, on_progress=self._of_trials
            )
        return [run for run in found if run is not None]

    def evaluate(self, tasks: Sequence[Evaluate], note: Note = silent) -> dict[str, ReturnEstimate]:
        """Returns by policy; "uniform" is the random policy. All tasks must be of one world."""
        self.make([task for task in tasks if task.question.find(self.store) is None], note)
        return find_returns(self.store, tasks)

    def record(
        self,
        plans: Sequence[tuple[Plan, WorldFactory]],
        note: Note = silent,
        *,
        steps: CaptureSteps = EveryStep(),  # noqa: B008 - frozen
    ) -> list[Manifest]:
        """Recordings in the order of their plans; shards that an earlier attempt left are kept."""
        return self.complete(
            [
                (
                    plan,
                    lambda shard, plan=plan, factory=factory: RecordShard(
                        plan=plan.only(shard.shard),
                        shard=shard,
                        factory=factory,
                        steps=steps,
                        num_worlds=self.worlds_per_actor,
                    ),
                )
                for plan, factory in plans
            ],
            note,
        )

    def fill_bank(self, plan: Plan, factory: WorldFactory, note: Note = silent) -> Manifest:
        """A replay bank."""
        (manifest,) = self.complete(
            [(plan, lambda shard: PlayShard(plan.only(shard.shard), shard, factory))], note
        )
        return manifest

    def replay(
        self,
        plans: Sequence[Plan],
        factory: WorldFactory,
        note: Note = silent,
        *,
        steps: CaptureSteps = EveryStep(),  # noqa: B008 - frozen
    ) -> list[Manifest]:
        """What policies compute when they are shown a bank, in the order of the plans, all of one world."""
        wanted: list[tuple[Plan, Callable[[ShardPlan], Task[Receipt]]]] = []
        for plan in plans:
            bank = recordings.open_manifest(self.store, plan.inputs["bank"])
            shown = {receipt.shard: receipt for receipt in bank.receipts}
            wanted.append(
                (
                    plan,
                    lambda shard, plan=plan, shown=shown: ReplayShard(
                        plan.only(shard.shard), shard, shown[shard.shard], factory, steps
                    ),
                )
            )
        return self.complete(wanted, note)

    def complete(
        self,
        wanted: Sequence[tuple[Plan, Callable[[ShardPlan], Task[Receipt]]]],
        note: Note = silent,
    ) -> list[Manifest]:
        """Recordings, each with what makes a task of one of its shards; what is in the store is not made again."""
        tasks = []
        for plan, task_of in wanted:
            if self.store.exists(recordings.manifest_key(plan.recording_id)):
                continue
            recordings.begin(self.store, plan)
            tasks += [task_of(shard) for shard in recordings.missing_shards(self.store, plan)]
        self.make(tasks, note)
        manifests = []
        for plan, _ in wanted:
            if not self.store.exists(recordings.manifest_key(plan.recording_id)):
                recordings.commit(self.store, plan)
            manifests.append(recordings.open_manifest(self.store, plan.recording_id))
        return manifests

    def sweep(
        self,
        recording_id: str,
        site: str,
        configs: Sequence[SaeConfig],
        *,
        split: Split,
        seed: int,
        target_l0: tuple[float, float] | None,
        on_progress: Callable[[TrialProgress], None] | None = None,
    ) -> SweepResult:
        """All trials of a sweep, and the dictionary chosen among them."""
        identity = dictionaries.sweep_id(
            recording_id,
            site,
            configs,
            split=split,
            seed=seed,
            device=device_of(self.gpus_per_trial),
        )
        found = dictionaries.find_sweep(self.store, identity)
        if found is not None:
            return found
        self.start_ray()
        self._of_trials = SweepMetrics(self._stage, on_progress)
        return dictionaries.run_sweep(
            self.store,
            recording_id,
            site,
            configs,
            split=split,
            seed=seed,
            target_l0=target_l0,
            max_concurrent=self.num_actors,
            max_losses=2 * self.attempts - 1,
            gpus_per_trial=self.gpus_per_trial,
            on_progress=self._of_trials,
        )

    def search(
        self,
        recording_id: str,
        config: SearchConfig,
        *,
        split: Split,
        tensorboard: bool = False,
        on_progress: Callable[[TrialProgress], None] | None = None,
    ) -> SearchResult:
        """All trials of a search over configurations, and the dictionary chosen among them."""
        device = device_of(self.gpus_per_trial)
        identity = search.search_id(recording_id, config, split=split, device=device)
        found = search.find(self.store, identity)
        if found is not None:
            return found
        self.start_ray()
        self._of_trials = SweepMetrics(self._stage, on_progress)
        runner = Runner(
            max_concurrent=self.num_actors,
            gpus_per_trial=self.gpus_per_trial,
            tensorboard=tensorboard,
            on_progress=self._of_trials,
        )
        return search.run_search(self.store, recording_id, config, split=split, runner=runner)

    def train_dictionaries(
        self, tasks: Sequence[TrainDictionary], note: Note = silent
    ) -> list[DictionaryEntry]:
        """Dictionaries of known configs, in the order of the tasks."""
        found = [dictionaries.find(self.store, task.dict_id) for task in tasks]
        made = iter(
            self.make(
                [task for task, entry in zip(tasks, found, strict=True) if entry is None], note
            )
        )
        return [entry if entry is not None else next(made) for entry in found]

    def train_crosscoders(
        self, tasks: Sequence[TrainCrosscoder], note: Note = silent
    ) -> list[CrosscoderEntry]:
        """Crosscoders of replays of one bank, in the order of the tasks."""
        found = {task.key: crosscoders.find(self.store, task.crosscoder_id) for task in tasks}
        missing = [task for task in tasks if found[task.key] is None]
        made = dict(zip([task.key for task in missing], self.make(missing, note), strict=True))
        return [found[task.key] or made[task.key] for task in tasks]

    def answer(
        self,
        tasks: (
            Sequence[ScoreConcepts]
            | Sequence[ShowConcepts]
            | Sequence[ShowEdits]
            | Sequence[SpliceDictionary]
        ),
        note: Note = silent,
    ) -> list[pa.Table]:
        """Tables that single tasks compute, in their order."""
        found = [task.question.find(self.store) for task in tasks]
        made = iter(
            self.make(
                [task for task, table in zip(tasks, found, strict=True) if table is None], note
            )
        )
        return [table if table is not None else next(made) for table in found]

    def discover(self, tasks: Sequence[Discover], note: Note = silent) -> list[Discovered]:
        """Groups of latents and concepts without labels, in the order of the tasks."""
        found = [task.find(self.store) for task in tasks]
        made = iter(
            self.make(
                [task for task, tables in zip(tasks, found, strict=True) if tables is None], note
            )
        )
        return [tables if tables is not None else next(made) for tables in found]

    def steer(
        self, experiments: Sequence[Experiment], note: Note = silent
    ) -> list[steering.Findings]:
        """Effects and verdicts of each policy's concepts, in the order of the experiments."""
        return steering.conduct(self.store, experiments, lambda tasks: self.make(tasks, note))

    def follow(
        self,
        questions: Sequence[tuple[Question, TrainedRun, Sequence[ScoreCheckpoint]]],
        note: Note = silent,
    ) -> list[pa.Table]:
        """Lineages of each run's concepts; a question comes with one task per checkpoint."""
        found = [question.find(self.store) for question, _, _ in questions]
        todo = [
            task
            for (_, _, tasks), table in zip(questions, found, strict=True)
            if table is None
            for task in tasks
        ]
        scores: dict[str, Any] = dict(
            zip((task.key for task in todo), self.make(todo, note), strict=True)
        )
        tables = []
        for (question, run, tasks), table in zip(questions, found, strict=True):
            if table is None:
                scored: list[tuple[PolicyCard, Any]] = [
                    (task.checkpoint, scores[task.key]) for task in tasks
                ]
                table = lineage_table(run, scored)
                question.answer(self.store, table)
            tables.append(table)
        return tables
