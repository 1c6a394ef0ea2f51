"""The one scheduler: actors that work through tasks, some of which kill them.

Ray's own retries are off, because a task that kills its actor would be retried for ever. Here a task has three attempts
and is then set aside: the others finish, and the run ends by naming it. A task must be safe to repeat, for an actor may
die after the work and before the answer.
"""

import inspect
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, cast

import ray
from ray import ObjectRef, cloudpickle as pickle
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.runtime import check_cpus

logger = logging.getLogger(__name__)

LOST = (RayActorError, WorkerCrashedError, RaySystemError, ObjectLostError, OutOfMemoryError)
"""The process is gone, and the task with it: not the task's own exception."""


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
        attempts: int = 3,
        retry: tuple[type[Exception], ...] = (),
        beside_ray_data: bool = False,
    ) -> None:
        """`retry` are exceptions of the worker's that another attempt may cure, such as those of a network.

        Args:
            size: Number of actors, one process each.
            in_flight: Tasks that an actor has at once: one runs, the others wait where it runs.
            attempts: How often a task is tried before it is set aside.
            beside_ray_data: A Ray Dataset runs while the pool is open, so one CPU must stay free.
        """
        for name, value in (("size", size), ("in_flight", in_flight), ("attempts", attempts)):
            if value < 1:
                raise ValueError(f"{name} is {value}; a pool needs at least 1")
        if not callable(inspect.getattr_static(worker, method, None)):
            raise ValueError(f"{worker.__name__} has no method {method!r} to hand tasks to")
        self._size = size
        self._num_cpus = num_cpus
        self._beside_ray_data = beside_ray_data
        self._in_flight = in_flight
        self._attempts = attempts
        self._retry = retry
        self._recipe = pickle.dumps((worker, tuple(args), dict(kwargs or {}), method))  # pyright: ignore[reportPrivateImportUsage]
        # max_restarts: a killed actor comes back by itself; max_task_retries: what it was doing is for us to decide.
        self._actor_class = ray.remote(_Host).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=-1, max_task_retries=0
        )
        self._actors: list[ActorHandle] = []

    def __enter__(self) -> Self:
        check_cpus(self._size * self._num_cpus, beside_ray_data=self._beside_ray_data)
        self._actors = [self._new_actor() for _ in range(self._size)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if ray.is_initialized():
            for actor in self._actors:
                ray.kill(actor)
        self._actors = []

    def run(self, tasks: Iterable[TaskT]) -> Iterator[Result[TaskT]]:
        """Results as they come, one per task, in any order. `tasks` is read as the work proceeds.

        Raises:
            TaskError: at once, when a task raises an exception that is not in `retry`.
            TasksLost: after all other results, when tasks used up their attempts.
        """
        if not self._actors:
            raise ValueError("the pool is closed; use it inside its `with` block")
        return _Run(self, tasks).results()

    def _new_actor(self) -> ActorHandle:
        return cast(ActorHandle, self._actor_class.remote(self._recipe))

    def _replace(self, dead: ActorHandle) -> ActorHandle:
        """Ray restarts an actor whose process ends; this is for one that it has given up."""
        ray.kill(dead)
        actor = self._new_actor()
        self._actors[self._actors.index(dead)] = actor
        return actor


@dataclass(slots=True)
class _Attempt(Generic[TaskT]):
    task: TaskT
    number: int = 1


@dataclass(slots=True)
class _Run(Generic[TaskT]):
    """The state of one `Pool.run`."""

    pool: Pool
    tasks: Iterable[TaskT]
    waiting: deque[_Attempt[TaskT]] = field(default_factory=deque)
    """First attempts, read ahead by one task per actor."""
    suspects: deque[_Attempt[TaskT]] = field(default_factory=deque)
    """Tasks whose actor died. Each runs alone, so that what kills an actor is not blamed on its neighbour."""
    flying: dict[ObjectRef, tuple[ActorHandle, _Attempt[TaskT]]] = field(default_factory=dict)
    lost: dict[str, BaseException] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    num_done: int = 0

    def results(self) -> Iterator[Result[TaskT]]:
        source = iter(self.tasks)
        while True:
            self._read_ahead(source)
            self._submit()
            if not self.flying:
                break
            ready, _ = ray.wait(list(self.flying), num_returns=1)
            for ref in ready:
                result = self._receive(ref)
                if result is not None:
                    self.num_done += 1
                    yield result
        if self.lost:
            raise TasksLost(self._account_of_losses())

    def _read_ahead(self, source: Iterator[TaskT]) -> None:
        while len(self.waiting) <= len(self.pool._actors):
            task = next(source, None)
            if task is None:
                return
            if task.key in self.seen:
                raise ValueError(f"task {task.key} is given twice; keys must differ")
            self.seen.add(task.key)
            self.waiting.append(_Attempt(task))

    def _submit(self) -> None:
        load = dict.fromkeys(self.pool._actors, 0)
        for actor, attempt in self.flying.values():
            if actor in load:  # else it was replaced, and this task's loss is still to be received
                load[actor] += self._weight(attempt)
        for depth in range(self.pool._in_flight):
            # A second task waits behind a first only while there is one for everybody: at the end nothing queues
            # behind a long task while another actor is idle.
            if depth and (self.suspects or len(self.waiting) < len(load)):
                return
            for actor in [actor for actor, tasks in load.items() if tasks == depth]:
                queue = self.suspects if depth == 0 and self.suspects else self.waiting
                if not queue:
                    break
                attempt = queue.popleft()
                self.flying[actor.run.remote(attempt.task)] = (actor, attempt)
                load[actor] += self._weight(attempt)

    def _weight(self, attempt: _Attempt[TaskT]) -> int:
        """How much of its actor a task takes: a suspect takes all of it."""
        return 1 if attempt.number == 1 else self.pool._in_flight

    def _receive(self, ref: ObjectRef) -> Result[TaskT] | None:
        actor, attempt = self.flying.pop(ref)
        try:
            return Result(task=attempt.task, value=ray.get(ref), attempts=attempt.number)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if not isinstance(cause, self.pool._retry):
                raise TaskError(f"task {attempt.task.key}: {_said(cause)}") from error
            self._set_aside(attempt, cause)
        except LOST as error:
            if isinstance(error, ActorDiedError) and actor in self.pool._actors:
                self.pool._replace(actor)
            self._set_aside(attempt, error)
        return None

    def _set_aside(self, attempt: _Attempt[TaskT], cause: BaseException) -> None:
        key = attempt.task.key
        logger.warning(
            "task %s: attempt %d of %d failed",
            key,
            attempt.number,
            self.pool._attempts,
            extra={"task": key, "attempt": attempt.number, "cause": _said(cause)},
        )
        if attempt.number < self.pool._attempts:
            self.suspects.append(_Attempt(attempt.task, attempt.number + 1))
            return
        self.lost[key] = cause
        if self.num_done == 0 and len(self.lost) > self.pool._size:
            raise TasksLost(
                f"no task succeeds, so it is not the tasks: {self._account_of_losses()}"
            )

    def _account_of_losses(self) -> str:
        key, cause = next(iter(self.lost.items()))
        others = f" (and {len(self.lost) - 1} more)" if len(self.lost) > 1 else ""
        return (
            f"task {key}{others} failed on all {self.pool._attempts} attempts: {_said(cause)}; "
            f"{self.num_done} others are done"
        )


class _Host:
    """Makes the worker at its first task, so that what is wrong with its making is an ordinary exception of that task
    and a crash there counts as an attempt; in an actor's constructor Ray would restart it for ever.
    """

    def __init__(self, recipe: bytes) -> None:
        self._recipe = recipe
        self._method: Any = None

    def run(self, task: Task) -> Any:  # noqa: ANN401 - whatever the worker returns
        if self._method is None:
            worker, args, kwargs, method = pickle.loads(self._recipe)
            self._method = getattr(worker(*args, **kwargs), method)
        return self._method(task)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
