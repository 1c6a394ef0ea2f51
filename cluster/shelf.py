"""One copy of every policy that a pool plays: read from the store and verified once, and then shared by all actors.

Other actors, and other nodes, get it from Ray's object store: a policy is read once whether two actors play it or
sixty-four.
"""

import logging
from dataclasses import dataclass
from typing import cast

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from cluster import policies
from cluster.store import Store
from interp.policies.bundle import PolicyBundle

logger = logging.getLogger(__name__)


class Shelf:
    """Puts policies into Ray's object store; plain class, `Shelf.open` makes an actor of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refs: dict[str, ObjectRef] = {}

    def find(self, policy_id: str) -> list[ObjectRef]:
        """Where architecture and weights are; in a list, because Ray would resolve a bare reference."""
        if policy_id not in self._refs:
            bundle = policies.read_bundle(self._store, policy_id)
            weights = np.frombuffer(
                bundle.weights, np.uint8
            )  # not pickled, but handed on as it lies
            self._refs[policy_id] = ray.put((bundle.architecture, weights))
        return [self._refs[policy_id]]


@dataclass(frozen=True, slots=True)
class SharedPolicies:
    """What an actor holds of the shelf: a function from a policy's id to the policy.

    The shelf is a cache. If it is lost, with its node for instance, the store is read.
    """

    store: Store
    shelf: ActorHandle

    @classmethod
    def of(cls, store: Store) -> "SharedPolicies":
        """Needs a running Ray; the shelf goes when nobody holds it any more."""
        shelf = ray.remote(num_cpus=0)(Shelf).remote(store)
        return cls(store, cast(ActorHandle, shelf))

    def __call__(self, policy_id: str) -> PolicyBundle:
        try:
            (ref,) = ray.get(self.shelf.find.remote(policy_id))
            architecture, weights = ray.get(ref)
        except RayTaskError as error:
            raise error.cause from error
        except (RayActorError, ObjectLostError) as error:
            logger.warning("policy %s: its shared copy is lost (%s)", policy_id, error)
            return policies.read_bundle(self.store, policy_id)
        return PolicyBundle(architecture=architecture, weights=weights.tobytes())
