"""Recordings: the same bytes whoever makes them, and clear refusals."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster import policies, recordings
from cluster.backends import Corrupt
from cluster.laboratory import Laboratory
from cluster.placement import Device
from cluster.pool import Pool
from cluster.recorder import (
    RecordingConfig,
    RecordShard,
    estimate_recording,
    plan_recording,
)
from cluster.recordings import Plan
from cluster.scoring import read_tracks
from cluster.staging import Split, stage
from cluster.store import Store
from cluster.studio import Studio
from interp.policies.bundle import PolicyBundle
from interp.policies.policy import PolicyNetwork
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.recording import activations
from interp.rollout import SequenceEnd
from interp.sampling import mean
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.world import World, WorldFactory

pytestmark = pytest.mark.mettagrid
FACTORY = MettagridFactory.load("forage")
CONFIG = RecordingConfig(
    num_episodes=6, episodes_per_shard=2, sites=("lstm.h",), labels=("landmark", "exploration")
)


def add_policy(store: Store, seed: int = 0) -> str:
    torch.manual_seed(seed)
    policy = TokenLstmPolicy(architecture_for(FACTORY))
    bundle = PolicyBundle.of(policy.architecture, policy.state_dict())
    return policies.save(
        store, bundle, name=f"fresh-{seed}", run="t-0", step=0, world="forage"
    ).policy_id


def record_here(store: Store, plan: Plan, *, num_worlds: int = 2) -> None:
    """In this process, without a pool."""
    studio = Studio(store)
    for shard in recordings.missing_shards(store, plan):
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY, num_worlds=num_worlds))
    recordings.commit(store, plan)


def objects(store: Store, folder: str) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list(folder)}


@pytest.fixture
def recorded(store: Store) -> tuple[Store, Plan]:
    plan = plan_recording(store, add_policy(store), FACTORY, CONFIG)
    record_here(store, plan)
    return store, plan


def test_the_number_of_worlds_at_once_changes_no_byte(recorded, tmp_path: Path) -> None:
    store, plan = recorded
    for num_worlds in (1, 16):
        other = Store.open(tmp_path / f"k{num_worlds}")
        assert plan_recording(other, add_policy(other), FACTORY, CONFIG) == plan
        record_here(other, plan, num_worlds=num_worlds)
        assert objects(other, "recordings") == objects(store, "recordings")


def test_two_batches_in_turns_change_no_byte(recorded, tmp_path: Path) -> None:
    class OnAGpu(Studio):
        """Plays in two batches, as it would if its policies computed elsewhere."""

        def batches(
            self, factory: WorldFactory, num_worlds: int, device: Device = "cpu"
        ) -> tuple[World, ...]:
            assert device == "cpu"
            worlds = super().batches(factory, num_worlds, "cuda")
            assert [world.num_worlds for world in worlds] == [1, 1]
            assert worlds[0] is not worlds[1]
            return worlds

    store, plan = recorded
    other = Store.open(tmp_path / "turns")
    add_policy(other)
    recordings.begin(other, plan)
    studio = OnAGpu(other)
    for shard in plan.shards:
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY))
    recordings.commit(other, plan)
    assert objects(other, "recordings") == objects(store, "recordings")


def test_rows_carry_their_key_and_stay_together_by_episode(recorded) -> None:
    store, plan = recorded
    manifest = recordings.open_manifest(store, plan.recording_id)
    table = pa.concat_tables(recordings.shard_tables(store, manifest))
    assert table.num_rows == 6 * 256 * 4
    seeds = table.column("env_seed").to_numpy()
    np.testing.assert_array_equal(seeds, np.repeat(CONFIG.env_seeds, 256 * 4))
    np.testing.assert_array_equal(table.column("t").to_numpy()[: 256 * 4], np.repeat(range(256), 4))
    np.testing.assert_array_equal(table.column("agent").to_numpy()[:8], [0, 1, 2, 3] * 2)
    assert set(table.column("policy_id").to_pylist()) == {plan.inputs["policy"]}
    assert np.isfinite(activations(table, "lstm.h")).all()


def test_a_replay_of_the_same_policy_gives_the_same_activations(recorded) -> None:
    store, plan = recorded
    replay = plan_recording(
        store, plan.inputs["policy"], FACTORY, CONFIG, replay_of=plan.recording_id
    )
    assert replay.recording_id != plan.recording_id
    record_here(store, replay)
    tables = [
        pa.concat_tables(
            recordings.shard_tables(store, recordings.open_manifest(store, one.recording_id))
        )
        for one in (plan, replay)
    ]
    assert tables[0].replace_schema_metadata(None).equals(tables[1].replace_schema_metadata(None))


def test_shards_of_a_replay_open_the_manifest_once(recorded, monkeypatch) -> None:
    store, plan = recorded
    replay = plan_recording(
        store, plan.inputs["policy"], FACTORY, CONFIG, replay_of=plan.recording_id
    )
    opened, real = [], recordings.open_manifest

    def counted(store: Store, recording_id: str) -> recordings.Manifest:
        opened.append(recording_id)
        return real(store, recording_id)

    monkeypatch.setattr(recordings, "open_manifest", counted)
    studio = Studio(store)
    for shard in replay.shards[:2]:
        RecordShard(plan=replay, shard=shard, factory=FACTORY).rows(studio)
    assert opened == [plan.recording_id]


def test_a_replay_shows_another_policy_the_same_episodes(recorded) -> None:
    store, plan = recorded
    replay = plan_recording(
        store, add_policy(store, seed=1), FACTORY, CONFIG, replay_of=plan.recording_id
    )
    record_here(store, replay)
    played, shown = (
        pa.concat_tables(
            recordings.shard_tables(store, recordings.open_manifest(store, one.recording_id))
        )
        for one in (plan, replay)
    )
    for column in ("env_seed", "t", "agent", "action", "reward", "label.landmark"):
        assert played.column(column).equals(shown.column(column)), column
    assert not np.array_equal(activations(played, "lstm.h"), activations(shown, "lstm.h"))


def test_sequence_end_keeps_one_row_per_agent(store: Store) -> None:
    plan = plan_recording(store, add_policy(store), FACTORY, CONFIG, steps=SequenceEnd())
    studio = Studio(store)
    for shard in plan.shards:
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY, steps=SequenceEnd()))
    manifest = recordings.commit(store, plan)
    table = pa.concat_tables(recordings.shard_tables(store, manifest))
    assert set(table.column("t").to_pylist()) == {255}
    assert table.num_rows == 6 * 4


def test_a_flipped_bit_is_found_before_anything_is_computed_from_it(recorded) -> None:
    store, plan = recorded
    key = recordings.open_manifest(store, plan.recording_id).receipts[1].key
    path = store.local_path(key)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=key):
        read_tracks(store, plan.recording_id, site="lstm.h", labels=("landmark",), stride_steps=1)


@pytest.mark.parametrize(
    ("site", "label", "said"),
    [
        ("lstm.c", "landmark", "site 'lstm.c' is not in recording .*; it has lstm.h"),
        ("lstm.h", "combat", "label 'combat' is not in recording .*; it has exploration, landmark"),
    ],
)
def test_what_was_not_recorded_is_named(recorded, site: str, label: str, said: str) -> None:
    store, plan = recorded
    with pytest.raises(ValueError, match=said):
        read_tracks(store, plan.recording_id, site=site, labels=(label,), stride_steps=1)


def test_bad_requests_are_refused_before_work(store: Store) -> None:
    policy_id = add_policy(store)
    with pytest.raises(FileNotFoundError, match="policy p-0000 is not in store"):
        plan_recording(store, "p-0000", FACTORY, CONFIG)
    with pytest.raises(ValueError, match=r"site 'lstm.z' not in policy"):
        plan_recording(store, policy_id, FACTORY, RecordingConfig(sites=("lstm.z",)))
    with pytest.raises(ValueError, match="explorations"):
        plan_recording(store, policy_id, FACTORY, RecordingConfig(labels=("explorations",)))
    with pytest.raises(ValueError, match="num_episodes 0"):
        RecordingConfig(num_episodes=0)
    with pytest.raises(FileNotFoundError, match="r-0000"):
        plan_recording(store, policy_id, FACTORY, CONFIG, replay_of="r-0000")


SAMPLED = replace(CONFIG, num_episodes=12, rows_per_shard=64)


def read_table(store: Store, plan: Plan) -> pa.Table:
    manifest = recordings.open_manifest(store, plan.recording_id)
    return pa.concat_tables(recordings.shard_tables(store, manifest))


def test_limits_that_are_not_reached_leave_the_recording_as_it_is(store: Store) -> None:
    policy_id = add_policy(store)
    whole = plan_recording(store, policy_id, FACTORY, CONFIG)
    assert "sampling" not in whole.config
    roomy = replace(CONFIG, max_bytes=10**9, rows_per_shard=2 * 256 * 4, label_share=0.25)
    assert plan_recording(store, policy_id, FACTORY, roomy) == whole


def test_a_sample_is_other_rows_and_so_another_recording(store: Store) -> None:
    policy_id = add_policy(store)
    variants = [
        SAMPLED,
        replace(SAMPLED, rows_per_shard=65),
        replace(SAMPLED, label_share=0.25),
        replace(SAMPLED, sample_salt="other"),
        replace(SAMPLED, episodes_per_shard=3),
        replace(SAMPLED, rows_per_shard=None),
    ]
    ids = [plan_recording(store, policy_id, FACTORY, one).recording_id for one in variants]
    assert len(set(ids)) == len(variants)


def test_a_sampled_recording_keeps_rows_of_the_whole_with_weights_that_tell_its_rates(
    store: Store,
) -> None:
    policy_id = add_policy(store)
    whole = plan_recording(store, policy_id, FACTORY, replace(SAMPLED, rows_per_shard=None))
    sample = plan_recording(store, policy_id, FACTORY, SAMPLED)
    for plan in (whole, sample):
        record_here(store, plan)
    every, kept = read_table(store, whole), read_table(store, sample)
    manifest = recordings.open_manifest(store, sample.recording_id)
    assert all(0 < receipt.rows <= 64 for receipt in manifest.receipts)
    key = ["env_seed", "t", "agent"]
    matched = kept.drop_columns(["inclusion"]).join(every, key, right_suffix=" of all")
    assert matched.num_rows == kept.num_rows
    assert matched.column("site.lstm.h").equals(matched.column("site.lstm.h of all"))
    labels = ["label.landmark", "label.exploration"]
    value, all_values = (
        np.stack([one.column(label).to_numpy() for label in labels], 1) for one in (kept, every)
    )
    rates = mean(value, kept.column("inclusion").to_numpy())
    np.testing.assert_allclose(rates, all_values.mean(0), atol=0.08)  # about 360 rows are kept


def test_a_budget_is_kept_and_used(store: Store) -> None:
    policy_id = add_policy(store)
    budget = 600_000
    config = replace(SAMPLED, rows_per_shard=None, labels=None, max_bytes=budget)
    estimate = estimate_recording(store, policy_id, FACTORY, config)
    assert estimate.whole_bytes > 5 * budget
    plan = plan_recording(store, policy_id, FACTORY, config)
    assert plan.config["sampling"]["rows"] == estimate.kept_rows
    record_here(store, plan)
    folder = f"recordings/{plan.recording_id}"
    used = sum(len(content) for content in objects(store, folder).values())
    assert 0.7 * budget < used <= estimate.bytes <= budget


def test_the_estimate_bounds_what_is_recorded(recorded) -> None:
    store, plan = recorded
    estimate = estimate_recording(store, plan.inputs["policy"], FACTORY, CONFIG)
    used = sum(len(content) for content in objects(store, "recordings").values())
    assert 0.8 * estimate.bytes < used <= estimate.bytes
    assert estimate.num_shards * estimate.shard_rows == read_table(store, plan).num_rows


def test_a_budget_without_room_for_every_label_is_refused(store: Store) -> None:
    policy_id = add_policy(store)
    with pytest.raises(ValueError, match=r"2 labels with label_share 0.5 want at least 4: keep at"):
        plan_recording(store, policy_id, FACTORY, replace(CONFIG, max_bytes=1000))
    with pytest.raises(ValueError, match=r"leave 3 rows for each of 3 shards"):
        plan_recording(store, policy_id, FACTORY, replace(CONFIG, rows_per_shard=3))
    with pytest.raises(ValueError, match=r"max_bytes 0: at least 1"):
        RecordingConfig(max_bytes=0)


def test_what_needs_every_row_refuses_a_sample(store: Store) -> None:
    sample = plan_recording(store, add_policy(store), FACTORY, replace(CONFIG, rows_per_shard=40))
    record_here(store, sample)
    with pytest.raises(ValueError, match=r"is a sample of at most 40 rows a shard; a replay needs"):
        plan_recording(
            store, sample.inputs["policy"], FACTORY, CONFIG, replay_of=sample.recording_id
        )
    with pytest.raises(ValueError, match=r"is a sample .*; scoring by episodes needs every row"):
        read_tracks(store, sample.recording_id, site="lstm.h", labels=(), stride_steps=1)


def test_what_is_fitted_to_a_sample_is_told_of_it(store: Store, caplog) -> None:
    sample = plan_recording(store, add_policy(store), FACTORY, replace(CONFIG, rows_per_shard=40))
    record_here(store, sample)
    staged = stage(store, sample.recording_id, "lstm.h", Split(held_out_fraction=0.5))
    assert "is a sample in which rare labels are frequent" in caplog.text
    assert len(np.load(staged.train_path)) < 3 * 40


def test_a_recording_with_gaps_is_not_replayed(store: Store) -> None:
    policy_id = add_policy(store)
    plan = plan_recording(store, policy_id, FACTORY, CONFIG, steps=SequenceEnd())
    studio = Studio(store)
    for shard in plan.shards:
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY, steps=SequenceEnd()))
    recordings.commit(store, plan)
    with pytest.raises(ValueError, match=r"a replay needs every step"):
        plan_recording(store, policy_id, FACTORY, CONFIG, replay_of=plan.recording_id)


class _DeadlyStudio(Studio):
    """Kills its own process once, in the middle of a shard, as if the machine had."""

    def __init__(self, store: Store, scar: Path) -> None:
        super().__init__(store)
        self._scar = scar

    def policy(self, policy_id: str, device: Device = "cpu") -> PolicyNetwork:
        if not self._scar.exists():
            self._scar.touch()
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().policy(policy_id, device)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_killed_actor_changes_nothing(recorded, tmp_path: Path) -> None:
    store, plan = recorded
    other = Store.open(tmp_path / "killed")
    add_policy(other)
    recordings.begin(other, plan)
    tasks = [
        RecordShard(plan=plan, shard=shard, factory=FACTORY)
        for shard in recordings.missing_shards(other, plan)
    ]
    with Pool(_DeadlyStudio, args=(other, tmp_path / "scar"), size=2) as pool:
        attempts = [result.attempts for result in pool.run(tasks)]
    recordings.commit(other, plan)
    assert (tmp_path / "scar").exists()
    assert max(attempts) > 1
    assert objects(other, "recordings") == objects(store, "recordings")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_pool_records_what_one_process_records(recorded, tmp_path: Path) -> None:
    store, plan = recorded
    other = Store.open(tmp_path / "pool")
    add_policy(other)
    laboratory = Laboratory(other, num_actors=2, worlds_per_actor=3)
    pool = Pool(Studio, args=(other,), size=2)
    with pool:
        laboratory._pool = pool  # the session's Ray stays up after this test
        laboratory.record([(plan, FACTORY)])
    assert objects(other, "recordings") == objects(store, "recordings")


def test_a_shard_has_as_many_episodes_as_fill_a_batch_and_fit_memory(store: Store, caplog) -> None:
    policy_id = add_policy(store)

    def episodes(num_episodes: int, **more) -> int:
        config = RecordingConfig(num_episodes=num_episodes, sites=("lstm.h", "lstm.c"), **more)
        return len(plan_recording(store, policy_id, FACTORY, config).shards[0].env_seeds)

    assert episodes(10_000) == 64  # 256 rows of 4 agents
    assert episodes(80) == 20
    assert episodes(1) == 1
    assert caplog.records == []
    assert episodes(10_000, episodes_per_shard=1024) == 1024
    assert "a shard takes up to" in caplog.text
    assert "within 1.5 GiB" in caplog.text


def test_a_shard_of_256_episodes_is_within_what_an_actor_may_take(store: Store, caplog) -> None:
    config = RecordingConfig(num_episodes=1024, episodes_per_shard=256, sites=("lstm.h", "lstm.c"))
    plan_recording(store, add_policy(store), FACTORY, config)
    assert caplog.records == []


def test_an_episode_that_no_actor_could_hold_is_refused_before_it_is_played(store: Store) -> None:
    config = FACTORY.mettagrid_config.model_copy(deep=True)
    config.game.max_steps = 1_000_000
    endless = MettagridFactory(name="endless", config_json=config.model_dump_json())
    policy_id = add_policy(store)
    with pytest.raises(ValueError, match=r"up to 1000000 steps.*every n-th step.*max_steps"):
        plan_recording(store, policy_id, endless, CONFIG)
    assert plan_recording(store, policy_id, endless, CONFIG, steps=SequenceEnd()).shards
