"""What a run of tasks tells Prometheus, through Ray's own metrics endpoint on every node.

Names, with Ray's prefix, are `ray_sparsight_...`; each carries the label `stage`. docs/watching.md lists them.
"""

from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from cluster.pool import Result
from cluster.recordings import Receipt

SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
"""Upper bounds of the buckets of a task's time."""


class Metrics:
    """A watcher of runs that counts; one for each stage, in the process that runs the pool. Needs a running Ray."""

    def __init__(self, stage: str) -> None:
        self._tags = {"stage": stage}
        self._present: set[str] = set()
        self._in_flight = 0

        def counter(name: str, what: str) -> Counter:
            return Counter(f"sparsight_{name}", what, tag_keys=("stage",))

        self._done = counter(
            "tasks_done", "Tasks that were finished: shards, where a stage records"
        )
        self._retried = counter(
            "tasks_retried", "Attempts that failed and were followed by another"
        )
        self._quarantined = counter("tasks_quarantined", "Tasks that failed on their last attempt")
        self._lost = counter("actors_lost", "Times that an actor was lost")
        self._rows = counter("rows_recorded", "Agent-steps in committed shards")
        self._bytes = counter("bytes_recorded", "Bytes of committed shards")
        self._seconds = Histogram(
            "sparsight_task_seconds",
            "Seconds that an actor had a task",
            boundaries=SECONDS,
            tag_keys=("stage",),
        )
        self._flying = Gauge(
            "sparsight_tasks_in_flight", "Tasks that actors have", tag_keys=("stage",)
        )
        self._actors = Gauge("sparsight_actors_present", "Actors that answer", tag_keys=("stage",))

    def submitted(self, key: str, actor: str) -> None:
        self._fly(+1)

    def done(self, result: Result[Any]) -> None:
        self._fly(-1)
        self._done.inc(1, self._tags)
        self._seconds.observe(result.run_s, self._tags)
        if isinstance(result.value, Receipt):
            self._rows.inc(max(result.value.rows, 0), self._tags)
            self._bytes.inc(result.value.bytes, self._tags)

    def retried(self, key: str, attempt: int, cause: BaseException) -> None:
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

    def _fly(self, change: int) -> None:
        self._in_flight += change
        self._flying.set(self._in_flight, self._tags)
