"""The one scheduler: actors that work through tasks, some of which kill them.

Ray's own retries are off, because a task that kills its actor would be retried for ever. Here a task has three attempts
and is then set aside: the others finish, and the run ends by naming it. A task must be safe to repeat, for an actor may
die after the work and before the answer.

An actor that was lost gets no task until it answers again. So a task that never started is not blamed for the loss, and
none waits for an actor that has no place to come back to.
"""

import inspect
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from ray.exceptions import RayTaskError

from cluster import stopping
from cluster.concerns import ids_of
from cluster.crew import ActorLost, Crew, Handle, RayCrew, said
from cluster.placement import check_placement
from cluster.runtime import check_cpus
from cluster.stopping import Stopped
from cluster.tally import NOTHING, Tally

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often a run that waits looks up: at signals, and at actors that were lost."""
ATTEMPTS = 3
"""How often a task is tried, unless more is asked for."""
ALONE_S = 30.0
"""After so long without any actor, and then again and again, a run says what it waits for."""


class Task(Protocol):
    """Anything picklable that says what it is."""

    @property
    def key(self) -> str:
        """Unique among the tasks of one run, for messages."""
        ...


TaskT = TypeVar("TaskT", bound=Task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Generic[TaskT]):
    """A task that was done, once."""

    task: TaskT
    value: Any
    attempts: int
    """1 unless actors died under it."""
    actor: str
    """Name of the actor that did it: a0, a1, ..."""
    node: str
    """Id of the node on which that actor is."""
    run_s: float
    """Seconds that the actor had it, the wait for its turn included."""
    tally: Tally = NOTHING
    """What its actor asked of the store since it last answered."""


class Watcher(Protocol):
    """Whoever wants to know how a run goes. Its methods are called in the run's own thread, and must be quick."""

    def submitted(self, key: str, actor: str) -> None: ...

    def done(self, result: Result[Any]) -> None: ...

    def retried(self, key: str, attempt: int, cause: BaseException) -> None:
        """Attempt number `attempt` failed, and there will be another."""
        ...

    def quarantined(self, key: str, cause: BaseException) -> None:
        """The last attempt failed; the task is set aside."""
        ...

    def actor_lost(self, actor: str, cause: BaseException) -> None: ...

    def actor_back(self, actor: str) -> None:
        """An actor answers: for the first time, or after a loss."""
        ...


class Unwatched:
    """The watcher that does nothing; a base for those who want to know one thing."""

    def submitted(self, key: str, actor: str) -> None:
        pass

    def done(self, result: Result[Any]) -> None:
        pass

    def retried(self, key: str, attempt: int, cause: BaseException) -> None:
        pass

    def quarantined(self, key: str, cause: BaseException) -> None:
        pass

    def actor_lost(self, actor: str, cause: BaseException) -> None:
        pass

    def actor_back(self, actor: str) -> None:
        pass


class Several:
    """Watchers that are all told."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def submitted(self, key: str, actor: str) -> None:
        for watcher in self._watchers:
            watcher.submitted(key, actor)

    def done(self, result: Result[Any]) -> None:
        for watcher in self._watchers:
            watcher.done(result)

    def retried(self, key: str, attempt: int, cause: BaseException) -> None:
        for watcher in self._watchers:
            watcher.retried(key, attempt, cause)

    def quarantined(self, key: str, cause: BaseException) -> None:
        for watcher in self._watchers:
            watcher.quarantined(key, cause)

    def actor_lost(self, actor: str, cause: BaseException) -> None:
        for watcher in self._watchers:
            watcher.actor_lost(actor, cause)

    def actor_back(self, actor: str) -> None:
        for watcher in self._watchers:
            watcher.actor_back(actor)


class TaskError(ValueError):
    """Our own code refused a task: to repeat it would end the same way. Its cause shows where."""


class TasksLost(OSError):
    """Tasks that ended their actors, or failed for outside reasons, on every attempt."""


class Pool:
    """Actors of one plain class, alive inside a `with` block and never after it.

    with Pool(Studio, args=(store,), size=worker_count()) as pool:
        for result in pool.run(tasks):
            ...

    Each task is handed to a method of the class, `run` by default. The object is made by the first task of its actor.
    """

    def __init__(
        self,
        worker: type,
        *,
        size: int,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        method: str = "run",
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        in_flight: int = 2,
        tasks_at_once: int = 1,
        attempts: int = ATTEMPTS,
        retry: tuple[type[Exception], ...] = (),
        beside_ray_data: bool = False,
    ) -> None:
        """`retry` are exceptions of the worker's that another attempt may cure, such as those of a network.

        Args:
            size: Number of actors, one process each.
            num_gpus: Of each actor, perhaps a part of one; refused when the pool opens if the nodes cannot give them.
            in_flight: Tasks that an actor has: some run, the others wait where they will run.
            tasks_at_once: How many of them run, each in a thread of its own; for a worker that stands it.
            attempts: How often a task is tried before it is set aside.
            beside_ray_data: A Ray Dataset runs while the pool is open, so one CPU must stay free.
        """
        for name, value in (
            ("size", size),
            ("in_flight", in_flight),
            ("tasks_at_once", tasks_at_once),
            ("attempts", attempts),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; a pool needs at least 1")
        if not callable(inspect.getattr_static(worker, method, None)):
            raise ValueError(f"{worker.__name__} has no method {method!r} to hand tasks to")
        self._size = size
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._beside_ray_data = beside_ray_data
        self._in_flight = in_flight
        self._attempts = attempts
        self._retry = (MemoryError, *retry)
        self._hire = partial(
            RayCrew,
            partial(_make, worker, tuple(args), dict(kwargs or {}), method),
            size=size,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            tasks_at_once=tasks_at_once,
        )
        self._crew: RayCrew | None = None

    def __enter__(self) -> Self:
        check_cpus(self._size * self._num_cpus, beside_ray_data=self._beside_ray_data)
        check_placement(
            name="gpus_per_actor",
            gpus=self._num_gpus,
            cpus=self._num_cpus,
            processes=self._size,
        )
        self._crew = self._hire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._crew is not None:
            self._crew.dismiss()
        self._crew = None

    def run(
        self, tasks: Iterable[TaskT], watcher: Watcher | None = None
    ) -> Iterator[Result[TaskT]]:
        """Results as they come, one per task, in any order. `tasks` is read as the work proceeds.

        Raises:
            TaskError: at once, when a task raises an exception that is not in `retry`.
            TasksLost: after all other results, when tasks used up their attempts.
            Stopped: the process was asked to end, and the tasks in hand have ended.
        """
        if self._crew is None:
            raise ValueError("the pool is closed; use it inside its `with` block")
        return schedule(
            self._crew,
            tasks,
            in_flight=self._in_flight,
            attempts=self._attempts,
            retry=self._retry,
            watcher=watcher,
        )


def _make(
    worker: type, args: tuple[Any, ...], kwargs: dict[str, Any], method: str
) -> Callable[[Any], Any]:
    return getattr(worker(*args, **kwargs), method)


def schedule(
    crew: Crew,
    tasks: Iterable[TaskT],
    *,
    in_flight: int = 2,
    attempts: int = ATTEMPTS,
    retry: tuple[type[Exception], ...] = (MemoryError,),
    watcher: Watcher | None = None,
) -> Iterator[Result[TaskT]]:
    """See `Pool.run`; the work for a task depends neither on the number of actors nor on that of tasks."""
    run = _Run(crew, tasks, in_flight, attempts, retry, watcher or Unwatched())
    with stopping.gracefully() as stop_asked:
        while run.goes_on(stop=stop_asked.is_set()):
            yield from run.next_results()
        run.account(stopped=stop_asked.is_set())


@dataclass(slots=True)
class _Attempt(Generic[TaskT]):
    task: TaskT
    number: int = 1


class _Run(Generic[TaskT]):
    """The state of one run."""

    def __init__(
        self,
        crew: Crew,
        tasks: Iterable[TaskT],
        in_flight: int,
        attempts: int,
        retry: tuple[type[Exception], ...],
        watcher: Watcher,
    ) -> None:
        self.crew = crew
        self.source: Iterator[TaskT] | None = iter(tasks)
        """None when it has been read to its end."""
        self.in_flight = in_flight
        self.attempts = attempts
        self.retry = retry
        self.watcher = watcher
        self.waiting: deque[_Attempt[TaskT]] = deque()
        """First attempts, read ahead by one task per actor."""
        self.suspects: deque[_Attempt[TaskT]] = deque()
        """Tasks whose actor died. Each runs alone, so that what kills an actor is not blamed on its neighbour."""
        self.flying: dict[Handle, tuple[str, _Attempt[TaskT]]] = {}
        self.load = dict.fromkeys(crew.names, 0)
        self.present: list[dict[str, None]] = [{} for _ in range(in_flight + 1)]
        """Names of the actors that are there, by load: dicts as sets that keep their order."""
        self.num_present = 0
        self.pings: dict[Handle, str] = {crew.ping(name): name for name in crew.names}
        self.ping_at: dict[str, float] = {}
        """When to ask actors again that did not answer."""
        self.alone_since = time.monotonic()
        self.lost: dict[str, BaseException] = {}
        self.seen: set[str] = set()
        self.num_done = 0
        self.stop_at: float | None = None

    def goes_on(self, *, stop: bool) -> bool:
        """Sends what can be sent; whether there is anything to wait for."""
        if stop and self.stop_at is None:
            self.stop_at = time.monotonic() + stopping.GRACE_S
            logger.warning("asked to stop: %d tasks in hand are finished", len(self.flying))
        if self.stop_at is not None:
            return bool(self.flying) and time.monotonic() < self.stop_at
        self._read_ahead()
        self._submit()
        return bool(self.flying or self.waiting or self.suspects)

    def next_results(self) -> Iterator[Result[TaskT]]:
        """Waits for answers, but not for ever."""
        self._ask_again()
        handles = [*self.flying, *self.pings]
        for handle in self.crew.wait(handles, LOOK_S) if handles else ():
            if handle in self.pings:
                self._receive_ping(handle)
            else:
                result = self._receive(handle)
                if result is not None:
                    self.num_done += 1
                    self.watcher.done(result)
                    yield result

    def account(self, *, stopped: bool) -> None:
        """Raises what there is to say at the end of a run that did not do everything."""
        if stopped:
            unfinished = f", {len(self.flying)} were cut off" if self.flying else ""
            raise Stopped(
                f"stopped by SIGTERM: {self.num_done} tasks were finished and are kept{unfinished}"
            )
        if self.lost:
            raise TasksLost(self._account_of_losses())

    def _read_ahead(self) -> None:
        while self.source is not None and len(self.waiting) <= len(self.load):
            task = next(self.source, None)
            if task is None:
                self.source = None
                return
            if task.key in self.seen:
                raise ValueError(f"task {task.key} is given twice; keys must differ")
            self.seen.add(task.key)
            self.waiting.append(_Attempt(task))

    def _submit(self) -> None:
        for depth in range(self.in_flight):
            # A second task waits behind a first only while there is one for everybody: at the end nothing queues
            # behind a long task while another actor is idle.
            if depth and (self.suspects or len(self.waiting) < self.num_present):
                return
            for name in list(self.present[depth]) if self.waiting or self.suspects else ():
                queue = self.suspects if depth == 0 and self.suspects else self.waiting
                if not queue:
                    break
                attempt = queue.popleft()
                self.flying[self.crew.send(name, attempt.task)] = (name, attempt)
                self._set_load(name, self.load[name] + self._weight(attempt))
                self.watcher.submitted(attempt.task.key, name)

    def _weight(self, attempt: _Attempt[TaskT]) -> int:
        """How much of its actor a task takes: a suspect takes all of it."""
        return 1 if attempt.number == 1 else self.in_flight

    def _set_load(self, name: str, load: int) -> None:
        before = self.present[self.load[name]]
        self.load[name] = load
        if name in before:
            del before[name]
            self.present[load][name] = None

    def _receive(self, handle: Handle) -> Result[TaskT] | None:
        name, attempt = self.flying.pop(handle)
        self._set_load(name, self.load[name] - self._weight(attempt))
        try:
            answer = self.crew.collect(handle)
        except ActorLost as loss:
            self._lose(name, loss)
            self._set_aside(attempt, loss.cause)
            return None
        except (Exception, RayTaskError) as cause:
            if not isinstance(cause, self.retry):
                raise TaskError(f"task {attempt.task.key}: {said(cause)}") from cause
            self._set_aside(attempt, cause)
            return None
        return Result(
            task=attempt.task,
            value=answer.value,
            attempts=attempt.number,
            actor=name,
            node=answer.node,
            run_s=answer.run_s,
            tally=answer.tally,
        )

    def _lose(self, name: str, loss: ActorLost) -> None:
        """Sends an actor nothing until it answers again."""
        there = self.present[self.load[name]]
        if name not in there:
            return  # it was noticed before
        del there[name]
        self.num_present -= 1
        if not self.num_present:
            self.alone_since = time.monotonic()
        self.watcher.actor_lost(name, loss.cause)
        if loss.for_good:
            self.crew.replace(name)
        self.pings[self.crew.ping(name)] = name

    def _receive_ping(self, handle: Handle) -> None:
        name = self.pings.pop(handle)
        try:
            self.crew.collect(handle)
        except ActorLost as loss:
            if loss.for_good:
                self.crew.replace(name)
            self.ping_at[name] = time.monotonic() + LOOK_S
            return
        self.present[self.load[name]][name] = None
        self.num_present += 1
        self.watcher.actor_back(name)

    def _ask_again(self) -> None:
        now = time.monotonic()
        for name in [name for name, at in self.ping_at.items() if at <= now]:
            del self.ping_at[name]
            self.pings[self.crew.ping(name)] = name
        if not self.num_present and now - self.alone_since > ALONE_S:
            self.alone_since = now
            logger.warning(
                "no actor has answered for %.0f s: %d wait for a node with free CPUs and memory, or for a new process; "
                "`ray status` tells what the cluster has",
                ALONE_S,
                len(self.load),
            )
        if not self.pings and not self.flying:
            time.sleep(LOOK_S)

    def _set_aside(self, attempt: _Attempt[TaskT], cause: BaseException) -> None:
        key = attempt.task.key
        logger.warning(
            "task %s: attempt %d of %d failed",
            key,
            attempt.number,
            self.attempts,
            extra={
                "task": key,
                "attempt": attempt.number,
                "cause": said(cause),
                **ids_of(attempt.task),
            },
        )
        if attempt.number < self.attempts:
            self.watcher.retried(key, attempt.number, cause)
            self.suspects.append(_Attempt(attempt.task, attempt.number + 1))
            return
        self.watcher.quarantined(key, cause)
        self.lost[key] = cause
        if self.num_done == 0 and len(self.lost) > len(self.load):
            raise TasksLost(
                f"no task succeeds, so it is not the tasks: {self._account_of_losses()}"
            )

    def _account_of_losses(self) -> str:
        key, cause = next(iter(self.lost.items()))
        others = f" (and {len(self.lost) - 1} more)" if len(self.lost) > 1 else ""
        return (
            f"task {key}{others} failed on all {self.attempts} attempts: {said(cause)}; "
            f"{self.num_done} others are done"
        )
