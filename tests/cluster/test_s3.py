"""What can go wrong between a store and an S3-protocol server, each fault made by a proxy before a real one."""

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from cluster import s3
from cluster.backends import Corrupt, StoreError
from cluster.recordings import begin, commit, open_manifest, shard_tables, verify, write_shard
from cluster.store import Store
from tests.cluster.test_recordings import make_plan, make_table
from tests.fakes.s3 import CANARY, forget_connections

KEY = "policies/p-0/card.json"

WRITER = """
import sys
from cluster.recordings import begin, commit, missing_shards, write_shard
from cluster.store import Store
from tests.cluster.test_recordings import make_plan, make_table

store, plan = Store.open(sys.argv[1]), make_plan(2)
begin(store, plan)
for shard in missing_shards(store, plan):
    write_shard(store, plan, shard.shard, make_table(shard))
commit(store, plan)
"""
PUTS = (
    "plan.json",
    "/data/s00000",
    "receipts/s00000",
    "/data/s00001",
    "receipts/s00001",
    "manifest",
)


def writer(url: str) -> subprocess.Popen[bytes]:
    """Another process that records the same plan."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url],
        env={**os.environ, "PYTHONPATH": "."},
        stderr=subprocess.PIPE,
    )


def assert_exact(store: Store) -> None:
    """The recording is whole: every row, once."""
    manifest = open_manifest(store, make_plan(2).recording_id)
    verify(store, manifest)
    for shard, table in zip(manifest.plan.shards, shard_tables(store, manifest), strict=True):
        assert table.equals(make_table(shard), check_metadata=True)


@pytest.fixture
def impatient(monkeypatch):
    """Short timeouts, so that a stall does not stall the tests."""
    monkeypatch.setattr(s3, "CONNECT_TIMEOUT_S", 1)
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 1)
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    forget_connections()


@pytest.mark.parametrize("fault", ["503", "500", "drop"])
def test_a_server_that_recovers_is_not_noticed(s3_store, s3_server, fault):
    with s3_server.failing(fault, times=1, on="PUT"):
        assert s3_store.create(KEY, b"one")
    with s3_server.failing(fault, times=1, on="GET"):
        assert s3_store.get(KEY) == b"one"
    with s3_server.failing(fault, times=1, on="HEAD"):
        assert s3_store.size(KEY) == 3
    with s3_server.failing(fault, times=1, on="GET"):
        assert s3_store.list("policies") == [KEY]


def test_a_reply_that_was_lost_is_no_lost_race(s3_store, s3_server):
    with s3_server.failing("lose the reply", times=1, on="PUT"):
        assert s3_store.create(KEY, b"one")
    plan = make_plan(1)
    with s3_server.failing("lose the reply", times=3, on="PUT"):
        begin(s3_store, plan)
        write_shard(s3_store, plan, "s00000", make_table(plan.shards[0]))
    assert commit(s3_store, plan).rows == make_table(plan.shards[0]).num_rows
    assert len(s3_store.list("recordings")) == 4


def test_half_a_body_is_never_taken_for_the_whole(s3_store, s3_server):
    content = bytes(range(256)) * 4000
    s3_store.create(KEY, content)
    with s3_server.failing("cut", times=1, on="GET"):
        assert s3_store.get(KEY) == content
    with s3_server.failing("cut", on="GET"), pytest.raises(StoreError, match=KEY):
        s3_store.get(KEY)


@pytest.mark.parametrize("fault", ["503", "drop", "stall"])
def test_a_server_that_stays_broken_ends_in_an_error_that_names_the_object(
    s3_store, s3_server, impatient, fault
):
    started = time.monotonic()
    with s3_server.failing(fault):
        for operation in (s3_store.get, s3_store.size, lambda key: s3_store.create(key, b"")):
            with pytest.raises(StoreError, match=f"some/prefix/{KEY}.*failed"):
                operation(KEY)
    assert time.monotonic() - started < 30


def test_a_refusal_is_said_at_once(s3_store, s3_server):
    with s3_server.failing("403"):
        with pytest.raises(StoreError, match=f"some/prefix/{KEY}: access denied"):
            s3_store.get(KEY)
        with pytest.raises(StoreError, match="access denied"):
            s3_store.probe()
    assert (
        len([fault for _, _, fault in s3_server.requests if fault]) == 2
    )  # no attempt was repeated


def test_a_server_that_ignores_create_only_is_refused(s3_store, s3_server):
    with (
        s3_server.failing("ignore create-only", on="PUT"),
        pytest.raises(StoreError, match="a second create of one key was accepted"),
    ):
        s3_store.probe()


def test_a_bucket_that_is_not_there_is_named(s3_server):
    with pytest.raises(StoreError, match="bucket no-such-bucket does not exist"):
        Store.open("s3://no-such-bucket/x").probe()


def test_an_endpoint_that_nobody_listens_at_is_said_soon(s3_store, monkeypatch, impatient):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"127\.0\.0\.1"):
        s3_store.probe()
    assert time.monotonic() - started < 15


def test_a_metadata_service_is_no_store(s3_store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://169.254.169.254")
    with pytest.raises(StoreError, match="metadata service"):
        s3_store.probe()


def test_neither_a_pickle_nor_an_error_holds_the_key(s3_store, s3_server):
    s3_store.create(KEY, b"one")
    pickled = pickle.dumps((s3_store, s3_store.backend.filesystem()))
    assert CANARY.encode() not in pickled
    copy = pickle.loads(pickled)[0]
    assert copy.get(KEY) == b"one"
    with s3_server.failing("403"), pytest.raises(StoreError) as caught:
        copy.get(KEY)
    assert CANARY not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_keys_outside_the_prefix_are_not_seen(s3_store, s3_url):
    s3_store.create(KEY, b"one")
    Store.open(f"{s3_url}-2").create("policies/other", b"")
    Store.open(s3_url.rsplit("/", 2)[0]).create("top", b"")
    assert s3_store.list() == [KEY]
    assert s3_store.list("policies") == [KEY]
    assert s3_store.list("pol") == []
    whole = Store.open(s3_url.rsplit("/", 2)[0])
    assert whole.list() == ["some/prefix-2/policies/other", f"some/prefix/{KEY}", "top"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "swapped", "deleted"])
def test_a_damaged_shard_is_refused_by_its_key(s3_store, damage):
    plan = make_plan(2)
    begin(s3_store, plan)
    receipts = [
        write_shard(s3_store, plan, shard.shard, make_table(shard)) for shard in plan.shards
    ]
    manifest = commit(s3_store, plan)
    first, second = (s3_store.get(receipt.key) for receipt in receipts)
    key = receipts[0].key
    match damage:
        case "truncated":
            s3_store.backend.replace(key, first[:-1])
        case "flipped":
            s3_store.backend.replace(key, first[:99] + bytes([first[99] ^ 1]) + first[100:])
        case "swapped":
            s3_store.backend.replace(key, second)
        case "deleted":
            s3_store.backend.delete(key)
    with pytest.raises(Corrupt, match=key):
        verify(s3_store, manifest)


@pytest.mark.slow
def test_three_submissions_at_once_make_one_recording(s3_store, s3_url):
    writers = [writer(s3_url) for _ in range(3)]
    for process in writers:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    assert_exact(s3_store)
    assert len(s3_store.list("recordings")) == len(PUTS)


@pytest.mark.slow
@pytest.mark.parametrize("arrived", [True, False], ids=["after-the-put", "before-the-put"])
@pytest.mark.parametrize(
    "put", [pytest.param(put, marks=[] if "s00001" in put else pytest.mark.chaos) for put in PUTS]
)
def test_a_writer_that_is_killed_leaves_nothing_half_done(
    s3_store, s3_url, s3_server, put, arrived
):
    process = writer(s3_url)

    def kill(request: str) -> str | None:
        if request.startswith("PUT") and put in request:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return "lose the reply" if arrived else "drop"
        return None

    s3_server.fault = kill
    assert process.wait(timeout=60) == -signal.SIGKILL
    s3_server.fault = lambda _request: None
    finished = put == "manifest" and arrived
    if not finished:
        with pytest.raises(FileNotFoundError, match="not committed"):
            open_manifest(s3_store, make_plan(2).recording_id)
    again = writer(s3_url)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said.decode()
    assert_exact(s3_store)
    assert len(s3_store.list("recordings")) == len(PUTS)


def test_missing_credentials_are_called_so(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    forget_connections()
    with pytest.raises(StoreError, match=r"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        s3_store.probe()
