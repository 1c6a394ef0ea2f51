"""A bank is the same whoever fills it, and shows every policy the same."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster import policies, recordings
from cluster.backends import Corrupt
from cluster.bank import (
    BankConfig,
    PlayShard,
    ReplayShard,
    plan_bank,
    plan_replay,
)
from cluster.laboratory import Laboratory
from cluster.pool import Pool
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.recordings import Manifest, Plan
from cluster.store import Store
from cluster.studio import Studio
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.recording import activations
from interp.rollout import SequenceEnd
from interp.worlds.gymnasium import GymnasiumFactory
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.presets import load_config

pytestmark = pytest.mark.mettagrid
LABELS = ("landmark", "exploration", "goal_seeking")
CONFIG = BankConfig(episodes_per_player=3, episodes_per_shard=2, labels=LABELS)
STEPS = 64


def short(world: str) -> MettagridFactory:
    config = load_config(world)
    config.game.max_steps = STEPS
    return MettagridFactory(name=world, config_json=config.model_dump_json())


FACTORY = short("forage")


def add_policy(store: Store, seed: int) -> str:
    torch.manual_seed(seed)
    policy = TokenLstmPolicy(architecture_for(FACTORY))
    bundle = PolicyBundle.of(policy.architecture, policy.state_dict())
    card = policies.save(store, bundle, name=f"p{seed}", run="t-0", step=seed, world="forage")
    return card.policy_id


def fill(store: Store, plan: Plan) -> Manifest:
    studio = Studio(store)
    recordings.begin(store, plan)
    for shard in plan.shards:
        studio.run(PlayShard(plan, shard, FACTORY))
    return recordings.commit(store, plan)


def replay(store: Store, plan: Plan, **more) -> pa.Table:
    studio = Studio(store)
    recordings.begin(store, plan)
    bank = recordings.open_manifest(store, plan.inputs["bank"])
    for shard, shown in zip(plan.shards, bank.receipts, strict=True):
        studio.run(ReplayShard(plan, shard, shown, FACTORY, **more))
    return rows(store, recordings.commit(store, plan))


def rows(store: Store, manifest: Manifest) -> pa.Table:
    return pa.concat_tables(recordings.shard_tables(store, manifest))


def rows_by(table: pa.Table, player: str) -> pa.Table:
    chosen = np.array(table.column("player").to_pylist()) == player
    return table.filter(pa.array(chosen))


@pytest.fixture
def bank(store: Store) -> tuple[Store, str, Manifest]:
    policy_id = add_policy(store, 0)
    plan = plan_bank(store, FACTORY, [policy_id, "uniform", "goal_seeking"], CONFIG)
    return store, policy_id, fill(store, plan)


def test_every_row_names_its_player_and_no_two_players_share_a_map(bank) -> None:
    store, policy_id, manifest = bank
    table = rows(store, manifest)
    assert table.num_rows == 9 * STEPS * 4
    seeds_of = {
        player: set(rows_by(table, player).column("env_seed").to_pylist())
        for player in (policy_id, "uniform", "goal_seeking")
    }
    assert [sorted(seeds) for seeds in seeds_of.values()] == [
        [60_000, 60_001, 60_002],
        [60_003, 60_004, 60_005],
        [60_006, 60_007, 60_008],
    ]


def test_a_scripted_player_does_there_what_it_is_called_after(bank) -> None:
    store, _, manifest = bank
    table = rows(store, manifest)
    rate = {
        player: rows_by(table, player).column("label.goal_seeking").to_numpy().mean()
        for player in ("uniform", "goal_seeking")
    }
    assert rate["goal_seeking"] > 2 * rate["uniform"]


def test_the_policy_that_played_computes_what_its_own_recording_holds(bank) -> None:
    store, policy_id, manifest = bank
    sites = ("lstm.h", "lstm.c")
    shown = replay(store, plan_replay(store, policy_id, manifest.recording_id, FACTORY, sites))
    config = RecordingConfig(
        first_env_seed=60_000, num_episodes=3, episodes_per_shard=3, sites=sites, labels=LABELS
    )
    plan = plan_recording(store, policy_id, FACTORY, config)
    (shard,) = plan.shards
    played = RecordShard(plan=plan, shard=shard, factory=FACTORY).rows(Studio(store))
    own = rows_by(shown, policy_id)
    assert own.num_rows == played.num_rows == 3 * STEPS * 4
    for column in played.column_names:
        assert own.column(column).equals(played.column(column)), column


def test_every_policy_is_shown_the_same(bank) -> None:
    store, first, manifest = bank
    second = add_policy(store, 1)
    one, other = (
        replay(store, plan_replay(store, policy_id, manifest.recording_id, FACTORY, ("lstm.h",)))
        for policy_id in (first, second)
    )
    for column in ("env_seed", "agent", "t", "action", "reward", "label.exploration", "player"):
        assert one.column(column).equals(other.column(column)), column
    assert not np.array_equal(activations(one, "lstm.h"), activations(other, "lstm.h"))


def test_a_bank_whose_bytes_changed_is_shown_to_nobody(bank) -> None:
    """Its id says what was asked for; its manifest, by the hash of every shard, what came of it."""
    store, policy_id, manifest = bank
    shown = manifest.receipts[0]
    content = bytearray(store.get(shown.key))
    content[len(content) // 2] ^= 1
    store.backend.replace(shown.key, bytes(content))
    plan = plan_replay(store, policy_id, manifest.recording_id, FACTORY, ("lstm.h",))
    with pytest.raises(Corrupt, match=rf"{shown.key}: .*sha256"):
        ReplayShard(plan, plan.shards[0], shown, FACTORY).run(Studio(store))


def test_sequence_ends_are_one_row_an_agent(bank) -> None:
    store, policy_id, manifest = bank
    plan = plan_replay(
        store, policy_id, manifest.recording_id, FACTORY, ("lstm.h",), steps=SequenceEnd()
    )
    table = replay(store, plan, steps=SequenceEnd())
    assert table.num_rows == 9 * 4
    assert set(table.column("t").to_pylist()) == {STEPS - 1}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_pool_fills_and_shows_what_one_process_does(bank, tmp_path: Path) -> None:
    store, policy_id, manifest = bank
    other = Store.open(tmp_path / "pool")
    assert add_policy(other, 0) == policy_id
    laboratory = Laboratory(other, num_actors=2)
    with Pool(Studio, args=(other,), size=2, tasks_at_once=2) as pool:
        laboratory._pool = pool  # the session's Ray stays up after this test
        filled = laboratory.fill_bank(manifest.plan, FACTORY)
        plan = plan_replay(other, policy_id, filled.recording_id, FACTORY, ("lstm.h",))
        (shown,) = laboratory.replay([plan], FACTORY)
    assert filled.digest == manifest.digest
    replay(store, plan)
    assert shown.digest == recordings.open_manifest(store, plan.recording_id).digest


@pytest.mark.parametrize(
    ("players", "said"),
    [
        ([], r"name at least one"),
        (["uniform", "uniform"], r"none twice"),
        (["combat"], r"strategy combat: world forage lacks enemies"),
    ],
)
def test_impossible_players_are_refused_before_work(store: Store, players, said) -> None:
    with pytest.raises(ValueError, match=said):
        plan_bank(store, FACTORY, players, CONFIG)
    assert store.list("recordings") == []


def test_what_cannot_be_shown_is_refused(bank) -> None:
    store, policy_id, manifest = bank
    with pytest.raises(ValueError, match=r"shows world forage, not arena"):
        plan_replay(store, policy_id, manifest.recording_id, short("arena"), ("lstm.h",))
    with pytest.raises(ValueError, match=r"site 'lstm.z' not in policy"):
        plan_replay(store, policy_id, manifest.recording_id, FACTORY, ("lstm.z",))
    with pytest.raises(FileNotFoundError, match=r"p-0000"):
        plan_bank(store, FACTORY, ["p-0000"], CONFIG)
    config = RecordingConfig(num_episodes=1, sites=("lstm.h",), labels=LABELS)
    plan = plan_recording(store, policy_id, FACTORY, config)
    recordings.begin(store, plan)
    Studio(store).run(RecordShard(plan=plan, shard=plan.shards[0], factory=FACTORY))
    recordings.commit(store, plan)
    with pytest.raises(ValueError, match=r"keeps no observations, so it is no bank"):
        plan_replay(store, policy_id, plan.recording_id, FACTORY, ("lstm.h",))


def test_a_gymnasium_world_has_banks_too(store: Store) -> None:
    factory = GymnasiumFactory.load("gym:CartPole-v1?mask=1,3")
    plan = plan_bank(store, factory, ["uniform"], BankConfig(episodes_per_player=3))
    table = PlayShard(plan, plan.shards[0], factory).rows(Studio(store))
    assert table.column("observation")[0].as_py() != table.column("observation")[1].as_py()
    assert set(table.column("player").to_pylist()) == {"uniform"}
