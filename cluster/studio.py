"""What a worker keeps between tasks, and the tasks' one shape: a small record with a `run`.

A task is a value: its key says what it is, so that it can be repeated, and its result depends on nothing but itself and
the store. The studio only saves a worker from opening the same policy and converting the same world again.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Protocol, TypeVar

import torch

from cluster import policies
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
    ) -> None:
        """By default policies are read from the store.

        Args:
            factories: The functions that may build networks here, see `interp.policies.factories`.
            bundles: From a policy's id to the policy as it is kept, for instance `cluster.shelf.SharedPolicies`.
        """
        torch.set_num_threads(1)
        allow(*factories)
        self.store = store
        self._bundles = bundles or partial(policies.read_bundle, store)
        self.policy = lru_cache(maxsize=16)(self._policy)
        self.world = lru_cache(maxsize=4)(self._world)

    def _policy(self, policy_id: str) -> PolicyNetwork:
        return self._bundles(policy_id).open()

    def _world(self, factory: WorldFactory, num_worlds: int) -> World:
        return factory(num_worlds)

    def run(self, task: "Task[Result_co]") -> Result_co:
        return task.run(self)


class Task(Protocol[Result_co]):
    """Work for a studio: picklable, and safe to repeat."""

    @property
    def key(self) -> str:
        """Unique among the tasks of one call, for messages."""
        ...

    def run(self, studio: Studio) -> Result_co: ...
