"""What `sparsight status` says of whole, half-written and lost things, and how often it asks for it."""

import os
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cluster import milestones, pulse, quarantine, recordings, status
from cluster.backends import LocalFolder
from cluster.milestones import Milestones
from cluster.pool import Result
from cluster.pulse import Pulse
from cluster.quarantine import Quarantine
from cluster.store import Store
from tests.cluster.test_recordings import make_plan, make_table


def begin(store: Store, *, shards: int, done: int, **config: object) -> recordings.Plan:
    plan = make_plan(shards, **config)
    recordings.begin(store, plan)
    for shard in plan.shards[:done]:
        recordings.write_shard(store, plan, shard.shard, make_table(shard, rows=4))
    return plan


def only_recording(store: Store) -> status.RecordingState:
    (one,) = status.read(store).recordings
    return one


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting(LocalFolder):
    """A folder that counts what a network would be asked."""

    asked: Counter[str] = field(default_factory=Counter)

    def get(self, key):
        self.asked["data" if "/data/" in key else "get"] += 1
        return LocalFolder.get(self, key)

    def size(self, key):
        self.asked["size"] += 1
        return LocalFolder.size(self, key)

    def list(self, folder):
        self.asked["list"] += 1
        return LocalFolder.list(self, folder)

    def folders(self, folder):
        self.asked["list"] += 1
        return LocalFolder.folders(self, folder)

    def inventory(self, folder):
        self.asked["list"] += 1
        return LocalFolder.inventory(self, folder)


@pytest.mark.parametrize(
    ("done", "committed", "wanted"),
    [
        (0, False, ("unfinished", 3, 0, None)),
        (1, False, ("unfinished", 3, 1, None)),
        (3, False, ("unfinished", 3, 3, None)),
        (3, True, ("finished", 3, 3, 12)),
    ],
)
def test_a_recording_is_as_far_as_its_receipts(store, done, committed, wanted):
    plan = begin(store, shards=3, done=done)
    if committed:
        recordings.commit(store, plan)
    found = only_recording(store)
    assert (found.state, found.shards, found.shards_done, found.rows) == wanted
    assert (found.recording, found.policy) == (plan.recording_id, "p-0123456789abcdef")
    assert (found.last_shard_s is None) == (done == 0 or committed)


def test_rows_without_a_receipt_are_not_done(store):
    """A writer died between the two."""
    plan = begin(store, shards=3, done=2)
    store.remove(plan.receipt_key("s00001"))
    assert only_recording(store).shards_done == 1


def test_what_is_left_without_a_plan_or_damaged_is_said_and_hides_nothing_else(store):
    whole = begin(store, shards=1, done=1, world="whole")
    recordings.commit(store, whole)
    torn = begin(store, shards=2, done=2, world="torn")
    store.remove(torn.key)
    broken = begin(store, shards=1, done=1, world="broken")
    recordings.commit(store, broken)
    Path(store.local_path(recordings.manifest_key(broken.recording_id))).write_text("{")
    found = {one.recording: one for one in status.read(store).recordings}
    assert found[whole.recording_id].state == "finished"
    assert found[torn.recording_id].state == "without a plan"
    assert found[torn.recording_id].shards_done == 2
    assert found[broken.recording_id].state == "unreadable"
    assert "not readable as JSON" in found[broken.recording_id].problem


def test_pages_of_a_long_manifest_are_not_opened(store, monkeypatch):
    monkeypatch.setattr(recordings, "MANIFEST_SHARDS", 2)
    recordings.commit(store, begin(store, shards=5, done=5))
    for key in store.list("recordings"):
        if "/manifests/" in key:
            store.remove(key)
    assert only_recording(store).shards == 5


def asked(root: Path, *, num_recordings: int, shards: int, unfinished: int) -> Counter[str]:
    backend = Counting(root=root)
    store = Store(url=str(root), backend=backend)
    for number in range(num_recordings):
        plan = begin(store, shards=shards, done=shards, world=number)
        recordings.commit(store, plan)
    for number in range(unfinished):
        begin(store, shards=shards, done=shards - 1, world=-1 - number)
    backend.asked.clear()
    assert len(status.read(store).recordings) == num_recordings + unfinished
    return Counter(backend.asked)


def test_shards_are_never_opened_and_a_finished_recording_costs_one_request(tmp_path):
    few = asked(tmp_path / "few", num_recordings=2, shards=2, unfinished=1)
    long = asked(tmp_path / "long", num_recordings=2, shards=9, unfinished=1)
    many = asked(tmp_path / "many", num_recordings=7, shards=2, unfinished=3)
    assert few["data"] == few["size"] == 0
    assert long == few
    assert many.total() - few.total() == 5 * 1 + 2 * 3


def test_on_s3_it_says_the_same(s3_store, s3_server):
    plan = begin(s3_store, shards=2, done=2, world="whole")
    recordings.commit(s3_store, plan)
    begin(s3_store, shards=2, done=1, world="half")
    s3_server.requests.clear()
    found = status.read(s3_store)
    assert sorted((one.state, one.shards_done) for one in found.recordings) == [
        ("finished", 2),
        ("unfinished", 1),
    ]
    assert not any("/data/" in path or method == "PUT" for method, path, _ in s3_server.requests)


def test_a_shard_that_was_set_aside_is_named_until_it_is_done(store):
    plan = begin(store, shards=3, done=1)
    key = f"{plan.recording_id}/s00001"
    Quarantine(store, "record").quarantined(key, MemoryError("too large"))
    Quarantine(store, "steer").quarantined("p-0 8 arms", OSError("gone"))
    assert only_recording(store).quarantined == ("s00001",)
    first, second = status.read(store).quarantined
    assert (first.task, first.stage, first.cause) == ("p-0 8 arms", "steer", "OSError: gone")
    assert (second.task, second.cause) == (key, "MemoryError: too large")

    @dataclass(frozen=True)
    class Task:
        key: str

    result = Result(task=Task(key), value=None, attempts=1, actor="a0", node="n", run_s=0.0)
    Quarantine(store, "record").done(result)
    assert only_recording(store).quarantined == ()
    assert [one.task for one in quarantine.read(store)] == ["p-0 8 arms"]


def test_a_shard_that_another_store_client_finished_is_no_longer_set_aside(store):
    plan = begin(store, shards=3, done=1)
    Quarantine(store, "record").quarantined(f"{plan.recording_id}/s00001", MemoryError())
    begin(store, shards=3, done=3)
    found = status.read(store)
    assert found.recordings[0].quarantined == ()
    assert found.quarantined == ()


def test_a_job_is_at_work_while_it_says_so_and_silent_once_it_was_killed(store):
    begin(store, shards=1, done=0)
    with Pulse(store, study="demo", every_s=0.01) as job:
        job.at("steer", 3, 8)
        wait_until(lambda: [one.beat.stage for one in pulse.heard(store)] == ["steer"])
        (one,) = status.read(store).running
        assert (one.beat.study, one.beat.done, one.beat.total) == ("demo", 3, 8)
        assert one.beat.pid == os.getpid()
        (key,) = store.list(pulse.FOLDER)
        note = store.get(key)
    assert status.read(store).running == ()
    store.replace(key, note)  # as if it had been killed
    for age_s, running, silent in ((0.0, 1, 0), (2 * pulse.FRESH_S, 0, 1), (90_000.0, 0, 0)):
        then_s = time.time() - age_s
        os.utime(store.local_path(key), (then_s, then_s))
        found = status.read(store)
        assert (len(found.running), len(found.silent)) == (running, silent)


def test_a_job_that_cannot_say_so_goes_on(store, caplog, monkeypatch):
    def full(self, key, content):
        raise OSError(28, "No space left on device", key)

    monkeypatch.setattr(LocalFolder, "replace", full)
    with Pulse(store, every_s=0.001):
        wait_until(lambda: "cannot say that it is at work" in caplog.text)
        time.sleep(0.02)
    assert caplog.text.count("cannot say") == 1  # not at every beat


def test_a_study_lacks_the_stages_whose_artifacts_are_not_there(store):
    stones = Milestones(study="mine", stages=("open", "record", "sweep", "report"))
    stones.begin(store)
    plan = begin(store, shards=2, done=1)
    store.create("policies/p-0/card.json", b"{}")
    stones.passed(store, "open", milestones.cards("policies", ["p-0"]))
    (found,) = status.read(store).studies
    assert (found.study, found.is_finished) == ("mine", False)
    assert (found.passed, found.pending) == (("open",), ("record", "sweep", "report"))
    stones.passed(store, "record", [recordings.manifest_key(plan.recording_id)])
    assert status.read(store).studies[0].passed == ("open",)  # not committed: no artifact
    begin(store, shards=2, done=2)
    recordings.commit(store, plan)
    assert status.read(store).studies[0].passed == ("open", "record")
    replace(stones, left={}).begin(store)
    assert status.read(store).studies[0].passed == ()


def test_letters_without_a_receipt_are_counted(store):
    for key in ("07-s-1.json", "08-s-2.json", "sent/s-1.json"):
        store.replace(f"studies/mine/mirror/{key}", b"{}")
    (found,) = status.read(store).studies
    assert (found.letters_unsent, found.stages_known) == (1, False)


def test_a_store_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is empty or not there; name the folder"):
        status.read(Store.open(tmp_path / "nowhere"))


def wait_until(holds, *, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
