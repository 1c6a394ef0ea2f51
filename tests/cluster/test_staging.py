"""Staged arrays: the rows of the plan, divided by episode, made once on a machine."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from cluster import recordings, staging
from cluster.backends import Corrupt
from cluster.recordings import Plan, ShardPlan
from cluster.staging import Split, read_rows, stage
from cluster.store import Store
from cluster.sweep import StagedRows
from interp.dictionaries.training import normalisation
from interp.recording import STEP_KEY

SPLIT = Split(held_out_fraction=0.4)
WIDTH = 8
STEPS = 30
NUM_AGENTS = 3


def rows_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((STEPS + seed % 3, WIDTH)).astype("<f2")


def make_recording(store: Store, num_shards: int = 5) -> Plan:
    shards = tuple(
        ShardPlan(shard=f"s{index:05d}", env_seeds=tuple(range(4 * index, 4 * index + 4)))
        for index in range(num_shards)
    )
    plan = Plan(config={}, inputs={}, shards=shards)
    for shard in shards:
        parts = [rows_of(seed) for seed in shard.env_seeds]
        x_ND = np.concatenate(parts)
        seeds = np.repeat(shard.env_seeds, [len(part) for part in parts])
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(2 * WIDTH), len(x_ND), [None, pa.py_buffer(x_ND)]
        )
        t = np.concatenate([np.arange(len(part)) // NUM_AGENTS for part in parts])
        agent = np.concatenate([np.arange(len(part)) % NUM_AGENTS for part in parts])
        columns = dict(zip(STEP_KEY, (seeds, 0 * seeds, agent, t), strict=True))
        table = pa.table({**columns, "site.h": column})
        recordings.write_shard(store, plan, shard.shard, table)
    recordings.commit(store, plan)
    return plan


def test_each_train_row_knows_the_step_before_it(store, plan):
    without = stage(store, plan.recording_id, "h", SPLIT)
    assert not without.before_path.exists()
    staged = stage(store, plan.recording_id, "h", SPLIT, with_before=True)
    before_N, train_ND = np.load(staged.before_path), np.load(staged.train_path)
    seeds = np.arange(20)[~SPLIT.held_out(np.arange(20))]
    lengths = [len(rows_of(seed)) for seed in seeds]
    wanted = np.arange(len(train_ND)) - NUM_AGENTS
    for start in np.cumsum([0, *lengths[:-1]]):
        wanted[start : start + NUM_AGENTS] = -1
    np.testing.assert_array_equal(before_N, wanted)


@pytest.fixture
def plan(store) -> Plan:
    return make_recording(store)


def test_files_are_those_of_numpy_with_the_rows_in_the_order_of_the_plan(store, plan, tmp_path):
    staged = stage(store, plan.recording_id, "h", SPLIT)
    seeds = np.arange(20)
    held_out = SPLIT.held_out(seeds)
    for path, chosen in ((staged.train_path, ~held_out), (staged.held_out_path, held_out)):
        np.save(tmp_path / "whole.npy", np.concatenate([rows_of(seed) for seed in seeds[chosen]]))
        assert path.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    train_ND, held_out_ND = read_rows(store, plan.recording_id, "h", SPLIT)
    np.testing.assert_array_equal(train_ND, np.load(staged.train_path))
    np.testing.assert_array_equal(held_out_ND, np.load(staged.held_out_path))


def test_normalisation_is_that_of_training_rows_to_the_last_bit(store, plan):
    staged = stage(store, plan.recording_id, "h", SPLIT)
    known, fresh = staged.normalisation(), normalisation(np.load(staged.train_path))
    assert known.mean_D.equal(fresh.mean_D)
    assert known.scale == fresh.scale
    assert not known.mean_D.equal(normalisation(np.load(staged.held_out_path)).mean_D)


def test_one_shard_is_in_memory_at_a_time(store, plan, monkeypatch):
    written = []

    def read(store, receipt, columns):
        partial_folder = next(staging.workspace(store).glob("*.partial"))
        written.append(sum(path.stat().st_size for path in partial_folder.glob("*.npy")))
        return original(store, receipt, columns)

    original = recordings.read_shard
    monkeypatch.setattr(recordings, "read_shard", read)
    monkeypatch.setattr(staging, "_GrowingArray", _Unbuffered)
    stage(store, plan.recording_id, "h", SPLIT)
    assert len(written) == 5
    shard_bytes = min(np.diff(written))
    assert shard_bytes >= 4 * STEPS * WIDTH * 2


class _Unbuffered(staging._GrowingArray):
    def append(self, x_ND):
        super().append(x_ND)
        self._file.flush()


def test_what_is_there_is_found_and_what_is_not_is_made_again(store, plan, monkeypatch):
    first = stage(store, plan.recording_id, "h", SPLIT)
    rows = StagedRows.of(first.train_path)
    monkeypatch.setattr(recordings, "read_shard", None)
    assert stage(store, plan.recording_id, "h", SPLIT) == first
    monkeypatch.undo()
    assert stage(store, plan.recording_id, "h", Split(salt="other")) != first
    for path in first.folder.iterdir():
        path.unlink()
    first.folder.rmdir()
    restage = partial(stage, store, plan.recording_id, "h", SPLIT)
    np.testing.assert_array_equal(rows.open(restage), np.load(first.train_path))


def stage_in_another_process(url: str, recording_id: str, started) -> None:
    made = []
    original = recordings.read_shard

    def read(store, receipt, columns):
        made.append(receipt.shard)
        return original(store, receipt, columns)

    recordings.read_shard = read
    started.wait()
    stage(Store.open(url), recording_id, "h", SPLIT)
    os._exit(len(made))


def test_processes_of_one_machine_stage_once(store, plan):
    context = multiprocessing.get_context("spawn")
    started = context.Barrier(3)
    processes = [
        context.Process(
            target=stage_in_another_process, args=(store.url, plan.recording_id, started)
        )
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(process.exitcode or 0 for process in processes) == [0, 0, 5]
    assert [path.suffix for path in sorted(staging.workspace(store).iterdir())] == ["", ".lock"]


def test_cut_short_staging_is_begun_again(store, plan, monkeypatch):
    def fail(_rows):
        raise MemoryError

    monkeypatch.setattr(staging, "normalisation", fail)
    with pytest.raises(MemoryError):
        stage(store, plan.recording_id, "h", SPLIT)
    assert [cache.recording_id for cache in staging.caches(store)] == [None]
    monkeypatch.undo()
    staged = stage(store, plan.recording_id, "h", SPLIT)
    (cache,) = staging.caches(store)
    assert (cache.folder, cache.recording_id) == (staged.folder, plan.recording_id)
    assert cache.bytes > 20 * STEPS * WIDTH * 2


def test_damaged_shard_is_not_staged(store, plan):
    key = recordings.open_manifest(store, plan.recording_id).receipts[2].key
    content = bytearray(store.get(key))
    content[len(content) // 2] ^= 1
    store.backend.replace(key, bytes(content))
    with pytest.raises(Corrupt, match=key):
        stage(store, plan.recording_id, "h", SPLIT)
    assert all(cache.recording_id is None for cache in staging.caches(store))


def test_what_cannot_be_staged_is_refused_by_name(store, plan):
    with pytest.raises(ValueError, match=r"no column 'site\.lstm'; it has .*site\.h"):
        stage(store, plan.recording_id, "lstm", SPLIT)
    with pytest.raises(
        ValueError, match=r"20 episodes with held_out_fraction 0\.001 leave no held"
    ):
        stage(store, plan.recording_id, "h", Split(held_out_fraction=0.001))


def test_threads_of_one_process_stage_once_too(store, plan):
    with ThreadPoolExecutor(3) as pool:
        staged = set(pool.map(lambda _: stage(store, plan.recording_id, "h", SPLIT), range(3)))
    assert len(staged) == 1
