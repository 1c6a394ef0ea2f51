"""Actors that are not there, and actors that do nothing."""

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from cluster.crew import Answer
from cluster.studio import Studio


@dataclass(slots=True)
class SimulatedCrew:
    """Actors of which each does one task after the other, in a time that is given. For `cluster.pool.schedule`."""

    size: int
    task_s: float
    work: Callable[[object], object]
    """What an actor makes of a task; it happens at once, when the answer is asked for."""
    cpu_s: float = 0.0
    """Spent here."""
    names: Sequence[str] = ()
    _number: int = 0
    _tasks: dict[Hashable, object] = field(default_factory=dict)
    _free_at: dict[str, float] = field(default_factory=dict)
    _busy: list[tuple[float, int]] = field(default_factory=list)
    """When each task ends: a heap."""
    _ready: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.names = tuple(f"a{number}" for number in range(self.size))

    def send(self, name: str, task: object) -> int:
        now = time.perf_counter()
        self._number += 1
        self._tasks[self._number] = task
        ends = self._free_at[name] = max(now, self._free_at.get(name, 0.0)) + self.task_s
        heappush(self._busy, (ends, self._number))
        return self._number

    def ping(self, name: str) -> int:
        self._number += 1
        self._tasks[self._number] = None
        self._ready.append(self._number)
        return self._number

    def wait(self, handles: Sequence[Hashable], timeout_s: float) -> Sequence[Hashable]:
        start = time.thread_time()
        if not self._ready and self._busy:
            time.sleep(max(0.0, min(timeout_s, self._busy[0][0] - time.perf_counter())))
        now = time.perf_counter()
        while self._busy and self._busy[0][0] <= now:
            self._ready.append(heappop(self._busy)[1])
        ready = list(self._ready)
        self._ready.clear()
        self.cpu_s += time.thread_time() - start
        return ready

    def collect(self, handle: Hashable) -> Answer:
        start = time.thread_time()
        task = self._tasks.pop(handle)
        value = None if task is None else self.work(task)
        self.cpu_s += time.thread_time() - start
        return Answer(value=value, run_s=self.task_s, node="simulated")

    def replace(self, name: str) -> None:
        raise AssertionError(f"{name} cannot be lost")

    def dismiss(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class NamedTask:
    """A task that is only scheduled."""

    key: str

    def run(self, studio: Studio) -> None:
        raise AssertionError(f"{self.key} is never run")


class Idler:
    """What the actors of Ray run."""

    def run(self, task: NamedTask) -> str:
        return task.key
