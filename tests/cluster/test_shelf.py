"""Policies that actors share: read from the store once, and not lost with the shelf."""

from dataclasses import dataclass

import pytest
import ray

from cluster import policies
from cluster.backends import Corrupt
from cluster.pool import Pool, TaskError
from cluster.shelf import SharedPolicies
from cluster.store import Store
from cluster.studio import Studio
from tests.cluster.tracking.test_source import bundle

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class OpenPolicy:
    """Task: the id of a policy as an actor opens it."""

    policy_id: str
    number: int

    @property
    def key(self) -> str:
        return f"open {self.number}"

    def run(self, studio: Studio) -> int:
        return sum(parameter.numel() for parameter in studio.policy(self.policy_id).parameters())


@pytest.fixture
def policy_id(store: Store) -> str:
    return policies.save(store, bundle(1), name="p", run="r", step=1, world="forage").policy_id


def opened(store: Store, shared: SharedPolicies, policy_id: str, numbers: range) -> set[int]:
    """Results of a fresh actor."""
    with Pool(Studio, args=(store, (), shared), size=1) as pool:
        return {one.value for one in pool.run([OpenPolicy(policy_id, n) for n in numbers])}


def test_a_policy_is_read_from_the_store_once(
    ray_session: None, store: Store, policy_id: str
) -> None:
    shared = SharedPolicies.of(store)
    first = opened(store, shared, policy_id, range(1))
    for name in ("weights.safetensors", "architecture.json", "card.json"):
        store.local_path(f"policies/{policy_id}/{name}").unlink()
    assert opened(store, shared, policy_id, range(1, 9)) == first


def test_a_lost_shelf_costs_nothing_but_a_second_reading(
    ray_session: None, store: Store, policy_id: str
) -> None:
    shared = SharedPolicies.of(store)
    first = opened(store, shared, policy_id, range(1))
    ray.kill(shared.shelf)
    assert opened(store, shared, policy_id, range(1, 3)) == first


def test_a_damaged_policy_is_named_and_not_shared(
    ray_session: None, store: Store, policy_id: str
) -> None:
    weights = store.local_path(f"policies/{policy_id}/weights.safetensors")
    weights.unlink()
    weights.write_bytes(bundle(2).weights)
    shared = SharedPolicies.of(store)
    with pytest.raises(Corrupt, match=rf"policies/{policy_id}/weights.safetensors"):
        shared(policy_id)
    with pytest.raises(TaskError, match=rf"policies/{policy_id}/weights.safetensors"):
        opened(store, shared, policy_id, range(1))
