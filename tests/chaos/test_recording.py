"""Whatever happens to a recording on the way, it ends with the manifest and the bytes that it would have had anyway.

`make chaos` runs all of these and prints what was compared; those of every day run with `make test`, too.
"""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from cluster import recordings
from cluster.placement import Device
from cluster.pool import Pool, Result, TaskError, TasksLost
from cluster.recorder import RecordShard
from cluster.store import Store
from cluster.studio import Studio, Task
from interp.policies.policy import PolicyNetwork
from tests.chaos.disturbed import (
    Counter,
    Job,
    Recorded,
    add_policy,
    missing_tasks,
    objects,
    record_on,
)
from tests.fakes.fault_proxy import FaultProxy

pytestmark = [pytest.mark.ray, pytest.mark.mettagrid, pytest.mark.chaos]

ROOM_BYTES = 2 << 20
"""For some of the shards."""


class Disturbed(Studio):
    """A studio whose process comes to harm in the shards that are named; a scar tells that it has happened."""

    def __init__(self, store: Store, scars: Path, harm: Callable[[], None], *shards: str) -> None:
        super().__init__(store)
        self._scars = scars
        self._harm = harm
        self._shards = shards

    def run(self, task: Task) -> object:
        assert isinstance(task, RecordShard)
        if task.shard.shard in self._shards:
            self._scars.mkdir(exist_ok=True)
            scar = self._scars / task.shard.shard
            if not scar.exists():
                scar.touch()
                self._harm()
        return super().run(task)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.everyday
def test_killed_workers(
    undisturbed: Recorded, policy_store: Store, tmp_path: Path, ray_session: None
) -> None:
    arguments = (policy_store, tmp_path / "scars", die, "s00002", "s00005")
    with Pool(Disturbed, args=arguments, size=2, tasks_at_once=2) as pool:
        counter = record_on(pool, policy_store, undisturbed.plan)
    assert len(list((tmp_path / "scars").iterdir())) == 2
    assert counter.retries >= 2
    undisturbed.compare("worker SIGKILL, twice", policy_store, retries=counter.retries)


class KilledWhileWriting(Studio):
    """Dies after the rows of a shard are in the store, and before its receipt."""

    def __init__(self, store: Store, scar: Path) -> None:
        super().__init__(store)
        self._scar = scar

    def run(self, task: Task) -> object:
        if not self._scar.exists():
            create, calls = Store.create, []

            def create_and_die(store: Store, key: str, content: bytes) -> bool:
                calls.append(key)
                if "/receipts/" in key:
                    self._scar.touch()
                    die()
                return create(store, key, content)

            Store.create = create_and_die  # type: ignore[method-assign]
        return super().run(task)


def test_worker_killed_between_its_rows_and_their_receipt(
    undisturbed: Recorded, policy_store: Store, tmp_path: Path, ray_session: None
) -> None:
    with Pool(KilledWhileWriting, args=(policy_store, tmp_path / "scar"), size=1) as pool:
        counter = record_on(pool, policy_store, undisturbed.plan)
    assert (tmp_path / "scar").exists()
    undisturbed.compare("SIGKILL between rows and receipt", policy_store, retries=counter.retries)


class Poisoned(Studio):
    """Ends with every attempt at one shard, until the antidote is there."""

    def __init__(self, store: Store, antidote: Path) -> None:
        super().__init__(store)
        self._antidote = antidote

    def run(self, task: Task) -> object:
        assert isinstance(task, RecordShard)
        if task.shard.shard == "s00003" and not self._antidote.exists():
            die()
        return super().run(task)


@pytest.mark.everyday
def test_a_poison_shard_is_set_aside_and_named_while_the_others_complete(
    undisturbed: Recorded, policy_store: Store, tmp_path: Path, ray_session: None
) -> None:
    plan, counter = undisturbed.plan, Counter()
    with Pool(Poisoned, args=(policy_store, tmp_path / "antidote"), size=2) as pool:
        with pytest.raises(TasksLost, match=r"/s00003 failed on all 3 attempts.*7 others are done"):
            list(pool.run(missing_tasks(policy_store, plan), counter))
        assert [key.split("/")[1] for key in counter.quarantined_keys] == ["s00003"]
        left = recordings.missing_shards(policy_store, plan)
        assert [shard.shard for shard in left] == ["s00003"]
        (tmp_path / "antidote").touch()
        record_on(pool, policy_store, plan)
    undisturbed.compare(
        "poison s00003 set aside, then cured", policy_store, retries=counter.retries
    )


def test_a_node_that_goes_away(
    undisturbed: Recorded, policy_store: Store, start_script: Callable[..., str]
) -> None:
    """Three raylets on this machine; the tasks of the one that is removed move to the others."""
    said = start_script("node_removed.py", policy_store.url, undisturbed.plan.recording_id)
    lost, retries = (int(word) for word in said.split()[-2:])
    assert lost >= 1
    undisturbed.compare("node removed", policy_store, retries=retries)


def test_an_actor_that_takes_too_much_memory(
    undisturbed: Recorded, policy_store: Store, start_script: Callable[..., str]
) -> None:
    """Ray's own memory monitor ends it; its limit is set a gigabyte above what the machine uses at the time."""
    said = start_script("out_of_memory.py", policy_store.url, undisturbed.plan.recording_id)
    lost, retries = (int(word) for word in said.split()[-2:])
    assert (lost, retries) >= (1, 1)
    undisturbed.compare("actor out of memory", policy_store, retries=retries)


def exhaust() -> None:
    raise MemoryError("Unable to allocate 40.0 GiB")


def test_an_allocation_that_fails_is_tried_again(
    undisturbed: Recorded, policy_store: Store, tmp_path: Path, ray_session: None
) -> None:
    arguments = (policy_store, tmp_path / "scars", exhaust, "s00001")
    with Pool(Disturbed, args=arguments, size=2) as pool:
        counter = record_on(pool, policy_store, undisturbed.plan)
    assert (counter.retries, counter.lost) == (1, 0)
    undisturbed.compare("MemoryError", policy_store, retries=counter.retries)


def test_a_driver_that_is_killed_resumes(
    undisturbed: Recorded, policy_store: Store, start_job: Callable[..., Job]
) -> None:
    job = start_job(policy_store)
    job.wait_for_receipts(2)
    job.process.kill()
    job.end()
    assert job.num_receipts < 8
    assert start_job(policy_store).end()[0] == 0
    undisturbed.compare("driver SIGKILL, then resumed", policy_store)


def test_a_job_that_is_asked_to_end_commits_what_it_has_in_hand(
    undisturbed: Recorded, policy_store: Store, start_job: Callable[..., Job]
) -> None:
    job = start_job(policy_store)
    job.wait_for_receipts(1)
    job.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    status, said = job.end()
    assert (status, time.monotonic() - start < 30) == (143, True), said
    assert "stopped by SIGTERM" in said
    assert "The same command goes on from here" in said
    finished = int(said.split("stopped by SIGTERM: ")[1].split()[0])
    assert (
        finished == job.num_receipts < 8
    )  # every shard in hand has its receipt, and none was begun
    assert start_job(policy_store).end()[0] == 0
    undisturbed.compare("driver SIGTERM, then resumed", policy_store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which `resize` makes small and large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount on this machine; the test with a limit on files stands for it")
    if mounted.returncode:
        pytest.skip(f"{mounted.stderr.strip()}; the test with a limit on files stands for it")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, num_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(disk)], check=True)


def test_a_disk_that_is_really_full(
    undisturbed: Recorded, small_disk: Path, ray_session: None
) -> None:
    """Shards that fitted are kept and whole, nothing of the others is; with room the recording goes on."""
    store, plan = Store.open(small_disk / "store"), undisturbed.plan
    add_policy(store)
    resize(small_disk, shutil.disk_usage(small_disk).used + ROOM_BYTES)
    with (
        Pool(Studio, args=(store,), size=2) as pool,
        pytest.raises(TaskError, match=rf"No space left on device: .*{plan.recording_id}/"),
    ):
        list(pool.run(missing_tasks(store, plan)))
    kept = objects(store)
    assert 0 < sum("/data/" in key for key in kept) < len(plan.shards)
    assert kept.items() <= undisturbed.objects.items()
    files = {path for path in (small_disk / "store").rglob("*") if path.is_file()}
    assert len(files) == len(store.list(""))  # no half of a file under another name
    resize(small_disk, 64 << 20)
    with Pool(Studio, args=(store,), size=2) as pool:
        record_on(pool, store, plan)
    undisturbed.compare("file system full (ENOSPC), then room", store)


class Cramped(Studio):
    """May write no file larger than a few kilobytes until there is room, as on a full disk."""

    def __init__(self, store: Store, room: Path) -> None:
        super().__init__(store)
        self._room = room

    def run(self, task: Task) -> object:
        limit = resource.RLIM_INFINITY if self._room.exists() else 4096
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return super().run(task)


def test_a_file_that_may_grow_no_more_is_named_and_leaves_nothing_half_written(
    undisturbed: Recorded, policy_store: Store, tmp_path: Path, ray_session: None
) -> None:
    plan = undisturbed.plan
    with Pool(Cramped, args=(policy_store, tmp_path / "room"), size=2) as pool:
        with pytest.raises(TaskError, match=rf"File too large: .*{plan.recording_id}/data/"):
            list(pool.run(missing_tasks(policy_store, plan)))
        assert policy_store.list(f"recordings/{plan.recording_id}/receipts") == []
        assert policy_store.list(f"recordings/{plan.recording_id}/data") == []
        (tmp_path / "room").touch()
    with Pool(Cramped, args=(policy_store, tmp_path / "room"), size=2) as pool:
        record_on(pool, policy_store, plan)
    undisturbed.compare("files limited (EFBIG), then room", policy_store)


def test_the_same_job_three_times_at_once(
    undisturbed: Recorded, policy_store: Store, start_job: Callable[..., Job]
) -> None:
    ends = [job.end() for job in [start_job(policy_store) for _ in range(3)]]
    assert [status for status, _ in ends] == [0, 0, 0], ends
    undisturbed.compare("submitted three times at once", policy_store)


class Skewed(Studio):
    """While it works its clock is a day off, ahead in one process and behind in the next: `time.time` as Python's code
    reads it. Ray's own threads keep the true time, and a file system its own.
    """

    def run(self, task: Task) -> object:
        skew_s = 86_400 * (1 if os.getpid() % 2 else -1)
        now, now_ns = time.time, time.time_ns
        time.time = lambda: now() + skew_s
        time.time_ns = lambda: now_ns() + skew_s * 10**9
        try:
            return super().run(task)
        finally:
            time.time, time.time_ns = now, now_ns


def test_clocks_that_are_a_day_apart(
    undisturbed: Recorded, policy_store: Store, ray_session: None
) -> None:
    with Pool(Skewed, args=(policy_store,), size=2) as pool:
        counter = record_on(pool, policy_store, undisturbed.plan)
    undisturbed.compare("clocks a day apart", policy_store, retries=counter.retries)


@pytest.mark.everyday
@pytest.mark.parametrize("actors", [1, 2])
def test_the_number_of_actors(
    undisturbed: Recorded, policy_store: Store, actors: int, ray_session: None
) -> None:
    with Pool(Studio, args=(policy_store,), size=actors, tasks_at_once=2) as pool:
        counter = record_on(pool, policy_store, undisturbed.plan)
    undisturbed.compare(f"{actors} actor(s)", policy_store, retries=counter.retries)


def test_a_store_on_s3(
    undisturbed: Recorded,
    s3_store: Store,
    s3_server: FaultProxy,
    start_job: Callable[..., Job],
) -> None:
    add_policy(s3_store)
    status, said = start_job(s3_store).end()
    assert status == 0, said
    undisturbed.compare("on S3", s3_store)


class SlowToOpen(Studio):
    def policy(self, policy_id: str, device: Device = "cpu") -> PolicyNetwork:
        time.sleep(0.5)
        return super().policy(policy_id, device)


def test_an_actor_killed_from_outside_again_and_again(
    undisturbed: Recorded, policy_store: Store, ray_session: None
) -> None:
    """A task that waits behind another is not blamed three times for what it did not do."""
    with Pool(SlowToOpen, args=(policy_store,), size=2) as pool:
        assert pool._crew is not None
        actors = pool._crew._actors

        def kill(result: Result) -> None:
            if result.actor == "a0":
                ray.kill(actors["a0"], no_restart=False)

        counter = record_on(pool, policy_store, undisturbed.plan, between=kill)
    assert counter.lost >= 1
    assert counter.quarantined_keys == []
    undisturbed.compare("one actor killed after every shard", policy_store, retries=counter.retries)
