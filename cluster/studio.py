"""What a worker keeps between tasks, and the tasks' one shape: a small record with a `run`.

A task is a value: its key says what it is, so that it can be repeated, and its result depends on nothing but itself and
the store. The studio only saves a worker from opening the same policy and manifest and converting the same world again.

Tasks may come from several threads, but they have the studio one at a time. One that has computed all that it needs
policies and worlds for returns the rest of its work as `Afterwards`: compressing and storing then go on beside the next
task, which they would otherwise keep waiting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from typing import Generic, Protocol, TypeVar

from cluster import policies, recordings
from cluster.placement import Device, device_of, take_device
from cluster.process import round_alike, settle
from cluster.store import Store
from interp.policies.bundle import PolicyBundle
from interp.policies.factories import allow
from interp.policies.policy import PolicyNetwork
from interp.worlds.world import World, WorldFactory

Result_co = TypeVar("Result_co", covariant=True)


class Studio:
    """Opened policies and worlds of one process. Plain class; the pool makes an actor of it."""

    def __init__(
        self,
        store: Store,
        factories: Sequence[str] = (),
        bundles: Callable[[str], PolicyBundle] | None = None,
        *,
        gpus: float = 0.0,
    ) -> None:
        """By default policies are read from the store.

        Args:
            factories: The functions that may build networks here, see `interp.policies.factories`.
            bundles: From a policy's id to the policy as it is kept, for instance `cluster.shelf.SharedPolicies`.
            gpus: That this process was given, perhaps a part of one; policies of tasks that were planned for "cuda"
                compute there.
        """
        settle()
        round_alike()
        allow(*factories)
        self.store = store
        self._device = take_device(device_of(gpus), gpus)
        self._turn = Lock()
        self._bundles = bundles or partial(policies.read_bundle, store)
        self._opened = lru_cache(maxsize=16)(self._open)
        self.world = lru_cache(maxsize=4)(self._world)
        # a manifest never changes; one of 100,000 shards takes two seconds to open
        self.manifest = lru_cache(maxsize=2)(partial(recordings.open_manifest, store))

    def policy(self, policy_id: str, device: Device = "cpu") -> PolicyNetwork:
        """The opened policy, on a processor unless its task was planned for a GPU.

        Raises:
            ValueError: this process has no such device.
        """
        if device not in ("cpu", self._device.type):
            raise ValueError(
                f"planned for device {device}, but actors compute on {self._device.type}; give them GPUs "
                "(--gpus-per-actor), or plan for processors"
            )
        return self._opened(policy_id, device)

    def _open(self, policy_id: str, device: Device) -> PolicyNetwork:
        network = self._bundles(policy_id).open()
        if device != "cpu":
            network.move(self._device)
        return network

    def _world(self, factory: WorldFactory, num_worlds: int, _number: int = 0) -> World:
        """Of equal batches, each number is another one."""
        return factory(num_worlds)

    def batches(
        self, factory: WorldFactory, num_worlds: int, device: Device = "cpu"
    ) -> tuple[World, ...]:
        """So many worlds in the batches that `interp.rollout.roll` plays in turns: on a GPU two, so that it computes
        for one while the other is stepped; on a CPU one, since there nobody would wait.
        """
        if device == "cpu" or num_worlds == 1:
            return (self.world(factory, num_worlds),)
        half = num_worlds // 2
        return self.world(factory, num_worlds - half, 0), self.world(factory, half, 1)

    def run(self, task: "Task[Result_co]") -> Result_co:
        with self._turn:
            result = task.run(self)
        if isinstance(result, Afterwards):
            return result.finish()
        return result


@dataclass(frozen=True, slots=True)
class Afterwards(Generic[Result_co]):
    """What is left to do of a task that needs the studio no more."""

    finish: Callable[[], Result_co]


class Task(Protocol[Result_co]):
    """Work for a studio: picklable, and safe to repeat."""

    @property
    def key(self) -> str:
        """Unique among the tasks of one call, for messages."""
        ...

    def run(self, studio: Studio) -> "Result_co | Afterwards[Result_co]": ...
