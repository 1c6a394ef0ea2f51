"""The actors of a pool as its scheduler sees them: names that take tasks, and handles that become answers.

All that a running pool asks of Ray is here, so that the scheduler can be measured with actors that are not there.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

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

from cluster import tally
from cluster.concerns import at_work
from cluster.tally import NOTHING, Tally

GONE = (RayActorError, WorkerCrashedError, RaySystemError, ObjectLostError, OutOfMemoryError)
"""The process is gone, and its tasks with it: not an exception of theirs."""

Handle = Hashable
logger = logging.getLogger(__name__)


class ActorLost(Exception):
    """An actor ended with a task in hand, or does not answer."""

    def __init__(self, cause: BaseException, *, for_good: bool) -> None:
        super().__init__(said(cause))
        self.cause = cause
        self.for_good = for_good
        """Whether it will not come back by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an actor made of a task, or of a ping."""

    value: Any
    run_s: float
    """Seconds that it had the task, the wait for its turn included."""
    node: str
    """Id of the node on which the actor is."""
    tally: Tally = NOTHING
    """What the actor asked of the store since its last answer."""


class Crew(Protocol):
    """Actors by name."""

    @property
    def names(self) -> Sequence[str]: ...

    def send(self, name: str, task: object) -> Handle:
        """Hands a task to an actor."""
        ...

    def ping(self, name: str) -> Handle:
        """Asks an actor whether it is there; the answer comes when it is, or ActorLost."""
        ...

    def wait(self, handles: Sequence[Handle], timeout_s: float) -> Sequence[Handle]:
        """Those that have an answer; at least one, or none after the time is up."""
        ...

    def collect(self, handle: Handle) -> Answer:
        """The answer. Raises ActorLost, or what the task raised, its own exception or Ray's account of it."""
        ...

    def replace(self, name: str) -> None:
        """Hires anew under a name whose actor is lost for good."""
        ...

    def dismiss(self) -> None: ...


class RayCrew:
    """Actors of one plain class. The class is made by the first task of each actor."""

    def __init__(
        self,
        make: Callable[[], Callable[[Any], Any]],
        *,
        size: int,
        num_cpus: float,
        num_gpus: float,
        tasks_at_once: int,
    ) -> None:
        """`make` gives, in the actor, the function that tasks are handed to."""
        self._names = tuple(f"a{number}" for number in range(size))
        self._make = pickle.dumps(make)  # pyright: ignore[reportPrivateImportUsage]
        # max_restarts: a killed actor comes back by itself; max_task_retries: what it was doing is for us to decide.
        # One thread more than it has tasks, which answers pings.
        options: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "max_restarts": -1,
            "max_task_retries": 0,
            "concurrency_groups": {"tasks": tasks_at_once, "pings": 1},
        }
        self._hireling = ray.remote(**options)(_Host)
        self._actors = {name: self._hire() for name in self._names}

    @property
    def names(self) -> Sequence[str]:
        return self._names

    def _hire(self) -> ActorHandle:
        return cast(ActorHandle, self._hireling.remote(self._make))

    def send(self, name: str, task: object) -> ObjectRef:
        return self._actors[name].run.remote(task)

    def ping(self, name: str) -> ObjectRef:
        return self._actors[name].ping.remote()

    def wait(self, handles: Sequence[Handle], timeout_s: float) -> Sequence[Handle]:
        ready, others = ray.wait(
            cast(list[ObjectRef], list(handles)), num_returns=1, timeout=timeout_s
        )
        if (
            ready and others
        ):  # a call looks at all handles whatever it returns, so it shall return all it can
            more, _ = ray.wait(others, num_returns=len(others), timeout=0)
            ready += more
        return ready

    def collect(self, handle: Handle) -> Answer:
        try:
            return ray.get(cast(ObjectRef, handle))
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except GONE as error:
            raise ActorLost(error, for_good=isinstance(error, ActorDiedError)) from error

    def replace(self, name: str) -> None:
        ray.kill(self._actors[name])
        self._actors[name] = self._hire()

    def dismiss(self) -> None:
        if ray.is_initialized():
            for actor in self._actors.values():
                ray.kill(actor)
        self._actors = {}


class _Host:
    """Makes the worker at its first task, so that what is wrong with its making is an ordinary exception of that task
    and a crash there counts as an attempt; in an actor's constructor Ray would restart it for ever.
    """

    def __init__(self, make: bytes) -> None:
        self._make = make
        self._making = threading.Lock()
        self._work: Callable[[Any], Any] | None = None
        self._node = ray.get_runtime_context().get_node_id()

    @ray.method(concurrency_group="tasks")
    def run(self, task: object) -> Answer:
        start = time.monotonic()
        with self._making:
            if self._work is None:
                self._work = pickle.loads(self._make)()
        assert self._work is not None
        with at_work(task):
            logger.info("task begun")
            value = self._work(task)
            run_s = time.monotonic() - start
            logger.info("task ended", extra={"run_s": round(run_s, 3)})
        return Answer(value=value, run_s=run_s, node=self._node, tally=tally.take())

    @ray.method(concurrency_group="pings")
    def ping(self) -> Answer:
        return Answer(value=None, run_s=0.0, node=self._node)


def said(error: BaseException) -> str:
    """Kind and first line of an error."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
