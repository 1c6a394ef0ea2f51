"""Actors build a network of the user's only if the laboratory was told to allow it."""

from pathlib import Path

import pyarrow as pa
import pytest

from cluster import policies, recordings
from cluster.laboratory import Laboratory
from cluster.pool import TaskError
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.recordings import Plan
from cluster.store import Store
from cluster.studio import Studio
from interp.policies import factories
from interp.policies.bundle import PolicyBundle
from interp.policies.torch_module import TorchModuleArchitecture
from interp.recording import activations
from interp.worlds.gymnasium import GymnasiumFactory
from tests.fakes.modules import seeded

NAME = "tests.fakes.modules:remembering"
WORLD = GymnasiumFactory.load("gym:CartPole-v1?max_steps=20")
ARCHITECTURE = TorchModuleArchitecture(
    factory=NAME,
    observation_shape=WORLD.spec.observation_shape,
    observation_dtype=WORLD.spec.observation_dtype,
    action_names=WORLD.spec.action_names,
)
CONFIG = RecordingConfig(num_episodes=4, episodes_per_shard=2, sites=("memory.h", "encoder"))


def planned(store: Store) -> Plan:
    bundle = PolicyBundle.of(ARCHITECTURE, seeded().state_dict())
    card = policies.save(store, bundle, name="own", run="t-0", step=0, world=WORLD.name)
    return plan_recording(store, card.policy_id, WORLD, CONFIG)


def recorded_here(store: Store, plan: Plan) -> pa.Table:
    studio = Studio(store, [NAME])
    return pa.concat_tables(
        RecordShard(plan=plan, shard=shard, factory=WORLD).rows(studio) for shard in plan.shards
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_actors_get_the_permission_from_the_laboratory(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factories, "_allowed", {})
    with Laboratory(store, num_actors=2, factories=[NAME]) as laboratory:
        plan = planned(store)
        (manifest,) = laboratory.record([(plan, WORLD)])
    recorded = pa.concat_tables(recordings.shard_tables(store, manifest))
    here = recorded_here(store, plan)
    for site in CONFIG.sites:
        assert (activations(recorded, site) == activations(here, site)).all()
        assert activations(recorded, site).any()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_this_process_may_run_is_not_for_actors_to_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factories, "_allowed", {})
    factories.allow(NAME)
    store = Store.open(tmp_path / "store")
    plan = planned(store)
    with (
        Laboratory(store, num_actors=1) as laboratory,
        pytest.raises(TaskError, match=f"code: allow it with --factory {NAME}"),
    ):
        laboratory.record([(plan, WORLD)])
