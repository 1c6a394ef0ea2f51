"""Garbage: what nobody needs is found and removed, and nothing else is."""

import os
import time
from dataclasses import replace

import pytest

from cluster import garbage, pulse, quarantine, recordings, staging
from cluster.backends import StoreError
from cluster.pulse import Pulse
from cluster.quarantine import Quarantine
from cluster.recordings import begin, commit, open_manifest, verify, write_shard
from cluster.staging import Split, stage
from cluster.store import Store
from interp.identity import canonical_json
from tests.cluster.test_recordings import make_plan, make_table
from tests.cluster.test_staging import make_recording

SPLIT = Split(held_out_fraction=0.4)


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch) -> Store:
    if request.param == "s3":
        monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "cache"))
        return request.getfixturevalue("s3_store")
    return Store.open(tmp_path / "store")


@pytest.fixture
def finished(store):
    return make_recording(store)


@pytest.fixture
def begun(store):
    """Two of three shards are done, and one more has its data but no receipt."""
    plan = make_plan()
    begin(store, plan)
    for shard in plan.shards:
        write_shard(store, plan, shard.shard, make_table(shard))
    store.backend.delete(plan.receipt_key("s00001"))
    return plan


def contents(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list() if not key.startswith("scratch/")}


def test_finished_and_unfinished_work_is_no_garbage(store, finished, begun):
    stage(store, finished.recording_id, "h", SPLIT)
    assert garbage.find(store) == []
    assert garbage.find(store, older_than_days=1.0) == []


def test_data_that_no_manifest_lists_is_removed_and_the_rest_stays(store, finished):
    before = contents(store)
    orphan = f"recordings/{finished.recording_id}/data/s00000-0123456789abcdef.parquet"
    store.create(orphan, b"written by another writer")
    store.create(f"recordings/{finished.recording_id}/notes.txt", b"not ours")
    (found,) = garbage.find(store)
    assert (found.kind, found.keys, found.bytes) == ("orphans", (orphan,), 25)
    assert store.exists(orphan)
    garbage.remove(store, [found])
    assert garbage.find(store) == []
    assert contents(store) == {
        **before,
        f"recordings/{finished.recording_id}/notes.txt": b"not ours",
    }
    verify(store, open_manifest(store, finished.recording_id))


def test_pages_of_a_manifest_are_no_garbage(store, monkeypatch):
    monkeypatch.setattr(recordings, "MANIFEST_SHARDS", 2)
    plan = make_recording(store)
    assert len(open_manifest(store, plan.recording_id).pages) == 3
    assert garbage.find(store) == []


def test_a_named_unfinished_recording_is_removed_whole(store, finished, begun):
    (found,) = garbage.find(store, unfinished=[begun.recording_id])
    assert (found.kind, len(found.keys)) == ("unfinished", 6)
    assert [key.endswith(".parquet") for key in found.keys] == [False] * 3 + [True] * 3
    garbage.remove(store, [found])
    assert recordings.known_ids(store) == [finished.recording_id]
    verify(store, open_manifest(store, finished.recording_id))


def test_a_removal_cut_short_leaves_an_unfinished_recording(store, begun):
    (found,) = garbage.find(store, unfinished=[begun.recording_id])
    for key in found.keys[:4]:
        store.remove(key)
    assert recordings.missing_shards(store, begun) == begun.shards
    begin(store, begun)
    for shard in begun.shards:
        write_shard(store, begun, shard.shard, make_table(shard))
    verify(store, commit(store, begun))


def test_age_is_told_by_the_clock_of_the_store(store, begun, monkeypatch):
    days = 3 * garbage.DAY_S
    storage_time = garbage._storage_time
    monkeypatch.setattr(garbage, "_storage_time", lambda of: storage_time(of) + days)
    assert [one.what for one in garbage.find(store, older_than_days=2.9)] == [begun.recording_id]
    assert garbage.find(store, older_than_days=3.1) == []


def test_asking_for_the_time_leaves_nothing_behind(store, begun):
    before = store.list()
    assert abs(garbage._storage_time(store) - time.time()) < 60
    assert store.list() == before
    assert store.folders() == ["recordings"]


@pytest.mark.parametrize("key", ["studies/s/study.json", "banks/b-0/plan.json"])
def test_what_something_refers_to_is_kept(store, begun, key, monkeypatch):
    store.create(key, canonical_json({"made_from": {"recording": begun.recording_id}}))
    assert garbage.references(store, [begun.recording_id]) == {begun.recording_id: key}
    with pytest.raises(ValueError, match=rf"{begun.recording_id} is not finished, but {key} ref"):
        garbage.find(store, unfinished=[begun.recording_id])
    monkeypatch.setattr(garbage, "_storage_time", lambda of: time.time() + 9 * garbage.DAY_S)
    assert garbage.find(store, older_than_days=1.0) == []


def test_a_recording_that_another_replays_is_kept(store, begun):
    replay = replace(make_plan(steps=3), inputs={"replay_of": begun.recording_id})
    begin(store, replay)
    assert garbage.references(store, [begun.recording_id, replay.recording_id]) == {
        begun.recording_id: replay.key
    }


def test_wrong_names_are_refused(store, finished):
    with pytest.raises(FileNotFoundError, match="r-0000 is not in store"):
        garbage.find(store, unfinished=["r-0000"])
    with pytest.raises(ValueError, match=rf"{finished.recording_id} is finished"):
        garbage.find(store, unfinished=[finished.recording_id])
    with pytest.raises(ValueError, match=r"older_than_days -1.0: at least 0"):
        garbage.find(store, older_than_days=-1.0)


def test_what_was_finished_in_the_meantime_stays(store, begun):
    found = garbage.find(store, unfinished=[begun.recording_id])
    write_shard(store, begun, "s00001", make_table(begun.shards[1]))
    manifest = commit(store, begun)
    with pytest.raises(StoreError, match="was finished a moment ago"):
        garbage.remove(store, found)
    verify(store, manifest)


def test_staged_activations_go_with_their_recording_or_when_unused(store, finished):
    staged = stage(store, finished.recording_id, "h", SPLIT)
    week_ago = time.time() - 7 * garbage.DAY_S
    os.utime(staged.about_path, (week_ago, week_ago))
    assert garbage.find(store) == []
    (old,) = garbage.find(store, older_than_days=6.0)
    assert (old.kind, old.folder) == ("staged", staged.folder)
    assert "not used for 7 days" in old.why
    stage(store, finished.recording_id, "h", SPLIT)
    assert garbage.find(store, older_than_days=6.0) == []
    store.backend.delete(recordings.manifest_key(finished.recording_id))
    (lost,) = garbage.find(store)
    assert "which is not in the store" in lost.why
    garbage.remove(store, [lost])
    assert not staged.folder.exists()


def test_staging_under_way_is_no_garbage(store, finished, monkeypatch):
    seen = []
    original = recordings.read_shard

    def read(*arguments):
        seen.append(garbage.find(store, older_than_days=0.0))
        return original(*arguments)

    monkeypatch.setattr(recordings, "read_shard", read)
    stage(store, finished.recording_id, "h", SPLIT)
    assert seen == [[]] * 5
    left = staging.workspace(store) / "a-0123456789abcdef.partial"
    left.mkdir()
    (found,) = garbage.find(store)
    garbage.remove(store, [found])
    assert not left.exists()


def test_notes_of_jobs_not_heard_of_for_a_day_are_removed(store, monkeypatch):
    store.replace(f"{pulse.FOLDER}/j-killed.json", b"{}")
    assert garbage.find(store) == []
    storage_time = garbage._storage_time
    monkeypatch.setattr(garbage, "_storage_time", lambda of: storage_time(of) + 0.9 * garbage.DAY_S)
    assert garbage.find(store) == []
    monkeypatch.setattr(garbage, "_storage_time", lambda of: storage_time(of) + 1.1 * garbage.DAY_S)
    (found,) = garbage.find(store)
    assert (found.kind, found.keys) == ("notes", (f"{pulse.FOLDER}/j-killed.json",))
    assert store.list(pulse.FOLDER), "nothing goes before it is asked for"
    with Pulse(store, every_s=0.05) as alive:  # one that goes on says so again
        garbage.remove(store, [found])
        until = time.monotonic() + 5
        while store.list(pulse.FOLDER) != [alive._key] and time.monotonic() < until:
            time.sleep(0.01)
        assert store.list(pulse.FOLDER) == [alive._key]


def test_notes_of_shards_set_aside_go_with_their_recording(store, finished, begun):
    kept = Quarantine(store, "record")
    for recording_id in (finished.recording_id, begun.recording_id, "r-0123456789abcdef"):
        kept.quarantined(f"{recording_id}/s00001", MemoryError("large"))
    kept.quarantined("p-0 3 arms seeds 1-2", MemoryError("large"))
    (found,) = garbage.find(store)
    assert (found.kind, len(found.keys)) == ("notes", 2)
    garbage.remove(store, [found])
    assert [one.task for one in quarantine.read(store)] == [
        "p-0 3 arms seeds 1-2",
        f"{begun.recording_id}/s00001",
    ]
    assert garbage.find(store) == []


def test_only_recordings_and_scratch_can_be_removed(store):
    with pytest.raises(ValueError, match=r"only objects below recordings/ and scratch/"):
        store.remove("studies/s/study.json")
