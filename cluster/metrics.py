"""What a job tells Prometheus, through Ray's own metrics endpoint on every node.

Names, with Ray's prefix, are `ray_sparsight_...`; each carries the label `stage`. docs/watching.md lists them. A
counter is on the endpoint from its first count on.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from cluster.arms import PlayArms
from cluster.dictionaries import TrainDictionary
from cluster.pool import Result
from cluster.recordings import Receipt
from cluster.sweep import TrialProgress
from cluster.tally import Tally
from cluster.training import TrainingProgress

SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
"""Upper bounds of the buckets of a task's time."""
SAE_ROWS = "Rows that dictionaries were trained on, with repeats"


def _counter(name: str, what: str) -> Counter:
    return Counter(f"sparsight_{name}", what, tag_keys=("stage",))


class _Standing:
    """A gauge that keeps its values. Ray exports a value once and forgets it, so it has to be told again and again."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._values: dict[tuple[tuple[str, str], ...], float] = {}

    def set(self, value: float, tags: Mapping[str, str]) -> None:
        self._values[tuple(tags.items())] = value
        self._gauge.set(value, dict(tags))

    def refresh(self) -> None:
        for tags, value in list(self._values.items()):
            self._gauge.set(value, dict(tags))


def _gauge(name: str, what: str, *tags: str) -> _Standing:
    return _Standing(Gauge(f"sparsight_{name}", what, tag_keys=("stage", *tags)))


class Refreshed:
    """Has gauges, which must be told again while they hold: every few seconds."""

    def refresh(self) -> None:
        """Tells them."""
        for one in list(vars(self).values()):
            if isinstance(one, _Standing):
                one.refresh()


class Metrics(Refreshed):
    """A watcher of runs that counts; one for each stage, in the process that runs the pool. Needs a running Ray."""

    def __init__(self, stage: str) -> None:
        self._tags = {"stage": stage}
        self._present: set[str] = set()
        self._in_flight = 0
        self._left = 0
        self._done = _counter(
            "tasks_done", "Tasks that were finished: shards, where a stage records"
        )
        self._retried = _counter(
            "tasks_retried", "Attempts that failed and were followed by another"
        )
        self._quarantined = _counter("tasks_quarantined", "Tasks that failed on their last attempt")
        self._lost = _counter("actors_lost", "Times that an actor was lost")
        self._rows = _counter("rows_recorded", "Agent-steps in committed shards")
        self._bytes = _counter("bytes_recorded", "Bytes of committed shards")
        self._arm_episodes = _counter(
            "arm_episodes_played",
            "Episodes times arms that steering played, unedited ones included",
        )
        self._sae_rows = _counter("sae_rows_trained", SAE_ROWS)
        self._seconds = Histogram(
            "sparsight_task_seconds",
            "Seconds that an actor had a task",
            boundaries=SECONDS,
            tag_keys=("stage",),
        )
        self._flying = _gauge("tasks_in_flight", "Tasks that actors have")
        self._waiting = _gauge("tasks_waiting", "Tasks that no actor has yet")
        self._actors = _gauge("actors_present", "Actors that answer")
        self._operations = _counter("store_operations", "Reads, writes and listings of the store")
        self._errors = _counter("store_errors", "Operations of the store that failed for good")
        self._retries = _counter("store_retries", "Requests to the store that were repeated")
        self._letters = _gauge("wandb_letters_unsent", "Letters to W&B that are to be delivered")

    def begin(self, num_tasks: int) -> None:
        """A run of so many tasks begins."""
        self._left = num_tasks
        self._in_flight = 0
        self._fly(0)

    def end(self) -> None:
        """The run is over, done or not: nothing waits and nothing flies."""
        self.begin(0)

    def submitted(self, key: str, actor: str) -> None:
        self._left = max(0, self._left - 1)
        self._fly(+1)

    def done(self, result: Result[Any]) -> None:
        self._fly(-1)
        self._done.inc(1, self._tags)
        self._seconds.observe(result.run_s, self._tags)
        if isinstance(result.value, Receipt):
            self._count(self._rows, max(result.value.rows, 0))
            self._count(self._bytes, result.value.bytes)
        if isinstance(task := result.task, PlayArms):
            self._count(self._arm_episodes, (1 + len(task.arms)) * len(task.env_seeds))
        if isinstance(task, TrainDictionary):
            self.trained(task)
        self.stored(result.tally)

    def retried(self, key: str, attempt: int, cause: BaseException) -> None:
        self._left += 1
        self._fly(-1)
        self._retried.inc(1, self._tags)

    def quarantined(self, key: str, cause: BaseException) -> None:
        self._fly(-1)
        self._quarantined.inc(1, self._tags)

    def actor_lost(self, actor: str, cause: BaseException) -> None:
        self._lost.inc(1, self._tags)
        self._present.discard(actor)
        self._actors.set(len(self._present), self._tags)

    def actor_back(self, actor: str) -> None:
        self._present.add(actor)
        self._actors.set(len(self._present), self._tags)

    def stored(self, tally: Tally) -> None:
        """What some process asked of the store."""
        self._count(self._operations, tally.operations)
        self._count(self._errors, tally.errors)
        self._count(self._retries, tally.retries)

    def trained(self, task: TrainDictionary) -> None:
        """A dictionary of a known configuration; its curve is not told, as those of trials are."""
        self._count(self._sae_rows, task.config.samples)

    def unsent(self, num_letters: int) -> None:
        """How much the W&B mirror still has to deliver."""
        self._letters.set(num_letters, self._tags)

    def _fly(self, change: int) -> None:
        self._in_flight += change
        self._flying.set(self._in_flight, self._tags)
        self._waiting.set(self._left, self._tags)

    def _count(self, counter: Counter, value: float) -> None:
        if value:  # Ray refuses to count nothing
            counter.inc(value, self._tags)


class SweepMetrics(Refreshed):
    """Tells of the trials of a sweep, and hands every report on."""

    def __init__(self, stage: str, then: Callable[[TrialProgress], None] | None) -> None:
        self._tags = {"stage": stage}
        self._then = then
        self._seen: dict[tuple[int, str], int] = {}
        """Rows of each trial so far."""
        self._rows = _counter("sae_rows_trained", SAE_ROWS)
        self._trials = _gauge("sae_trials", "Trials of the sweep")
        self._done = _gauge("sae_trials_done", "Trials that are done or were ended early")
        self._loss = _gauge("sae_loss", "Training loss a row, of a trial's last batch", "trial")
        self._fvu = _gauge("sae_fvu", "Variance unexplained on held-out rows", "trial")
        self._l0 = _gauge("sae_l0", "Active latents of a held-out row", "trial")
        self._dead = _gauge("sae_dead_share", "Latents silent on all held-out rows", "trial")

    def __call__(self, report: TrialProgress) -> None:
        progress = report.progress
        key = (report.trial, str(report.config))
        # of a trial that is resumed only what came since counts: as much as lies between two reports
        first = progress.samples / max(1, round(progress.step / report.config.report_steps))
        rows = progress.samples - self._seen[key] if key in self._seen else first
        self._seen[key] = progress.samples
        if rows > 0:
            self._rows.inc(rows, self._tags)
        self._trials.set(report.num_trials, self._tags)
        self._done.set(report.num_done, self._tags)
        of_trial = {**self._tags, "trial": str(report.trial)}
        self._loss.set(progress.loss, of_trial)
        self._fvu.set(progress.fvu, of_trial)
        self._l0.set(progress.l0, of_trial)
        self._dead.set(progress.dead_fraction, of_trial)
        if self._then is not None:
            self._then(report)


class TrainingMetrics(Refreshed):
    """Tells of demo policies that are trained, and hands every report on."""

    def __init__(self, stage: str, then: Callable[[TrainingProgress], None]) -> None:
        self._tags = {"stage": stage}
        self._then = then
        self._seen: dict[str, int] = {}
        self._steps = _counter("agent_steps_trained", "Agent-steps that policies were trained on")
        self._return = _gauge("training_return", "Mean return of an agent lately", "run")

    def __call__(self, report: TrainingProgress) -> None:
        # a run that is resumed begins where it was; its first report counts nothing
        steps = report.step - self._seen.get(report.run_id, report.step)
        self._seen[report.run_id] = report.step
        if steps > 0:
            self._steps.inc(steps, self._tags)
        if not math.isnan(report.return_mean):
            self._return.set(report.return_mean, {**self._tags, "run": report.run_id})
        self._then(report)
