import errno
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from cluster.backends import Conflict, LocalFolder, StoreError
from cluster.store import Store
from interp.identity import canonical_json, content_id, parse_json

KEY = "policies/p-0/card.json"


class OverwritingFolder(LocalFolder):
    """A storage server that ignores create-only."""

    def create(self, key: str, content: bytes) -> bool:
        self.replace(key, content)
        return True


@pytest.fixture(params=["folder", "s3"])
def any_store(request, tmp_path) -> Store:
    """For promises that hold of both kinds of store."""
    if request.param == "s3":
        return request.getfixturevalue("s3_store")
    return Store.open(tmp_path / "store")


def test_a_folder_that_goes_with_a_job_is_no_store(tmp_path, monkeypatch):
    job = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    (job / "sub").mkdir(parents=True)
    for place in (job, job / "sub"):
        monkeypatch.chdir(place)
        for store in ("./store", f"file://{job}/store", job):
            with pytest.raises(
                ValueError, match=r"--store .* into which Ray has unpacked this job"
            ):
                Store.open(store)
        assert Store.open(tmp_path / "store").url == str(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    assert Store.open("./store").url == "./store"


def test_create_keeps_the_first_object(any_store):
    assert any_store.create(KEY, b"one")
    assert any_store.create(KEY, b"one")
    assert not any_store.create(KEY, b"two")
    assert any_store.get(KEY) == b"one"
    assert any_store.size(KEY) == 3


def test_only_one_of_many_concurrent_writers_wins_and_nothing_partial_is_visible(store):
    contents = [bytes([writer]) * 200_000 for writer in range(8)]
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda content: store.create(KEY, content), contents))
    assert won.count(True) == 1
    assert store.get(KEY) == contents[won.index(True)]
    assert store.list() == [KEY]
    assert [path.name for path in store.local_path(KEY).parent.iterdir()] == ["card.json"]


def test_failed_write_leaves_nothing_behind(store, monkeypatch):
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        store.create(KEY, b"one")
    assert not store.exists(KEY)
    assert list(store.local_path(KEY).parent.iterdir()) == []


def test_partial_file_of_a_killed_writer_is_never_listed(store):
    store.create(KEY, b"one")
    (store.local_path(KEY).parent / ".weights.safetensors.0f").write_bytes(b"hal")
    assert store.list("policies") == [KEY]


def test_ensure_accepts_the_same_content_and_refuses_other(any_store):
    any_store.ensure(KEY, b"one")
    any_store.ensure(KEY, b"one")
    with pytest.raises(Conflict, match=KEY):
        any_store.ensure(KEY, b"two")


def test_only_pointers_and_scratch_are_replaced(any_store):
    for key in ("studies/demo/study.json", "scratch/training/t-0.pt"):
        any_store.replace(key, b"one")
        any_store.replace(key, b"two")
        assert any_store.get(key) == b"two"
    with pytest.raises(ValueError, match="only objects below studies/"):
        any_store.replace(KEY, b"one")


def test_absent_object_is_named(any_store):
    with pytest.raises(FileNotFoundError, match=KEY):
        any_store.get(KEY)
    assert not any_store.exists(KEY)
    assert any_store.list("policies") == []
    any_store.create(KEY, b"one")
    assert not any_store.exists("policies/p-0")
    with pytest.raises(FileNotFoundError, match=r"p-0/card\.json/x"):
        any_store.get(f"{KEY}/x")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.b",
        "a\\b",
        "a\0b",
        "a b",
        "x" * 129,
        "a\n",
    ],
)
def test_unsafe_key_is_refused(store, key):
    for operation in (
        store.get,
        store.exists,
        store.local_path,
        lambda key: store.create(key, b""),
    ):
        with pytest.raises(ValueError, match="not safe"):
            operation(key)


def test_probe_leaves_no_trace(any_store):
    any_store.probe()
    assert any_store.list() == []


def test_probe_refuses_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match="file stands where a folder is needed"):
            Store.open(root).probe()


def test_probe_refuses_a_folder_that_cannot_be_written():
    with pytest.raises(StoreError, match="choose another --store"):
        Store.open("/proc/sparsight").probe()


def test_probe_refuses_a_store_that_overwrites(tmp_path):
    store = Store(url="careless", backend=OverwritingFolder(root=tmp_path))
    with pytest.raises(StoreError, match="careless: a second create"):
        store.probe()


@pytest.mark.parametrize("url", ["s3://", "s3://No_Bucket/x", "gs://bucket", "http://host/x", ""])
def test_unsupported_url_says_what_is_supported(url):
    with pytest.raises(ValueError, match=r"wanted .*s3://bucket/prefix"):
        Store.open(url)


def test_url_is_not_repeated_in_the_refusal_since_it_may_hold_a_secret():
    with pytest.raises(ValueError, match="s3") as caught:
        Store.open("s3://key:secret@bucket/prefix")
    assert "secret" not in str(caught.value)


def test_store_survives_pickling_and_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Store.open("store").create(KEY, b"one")
    copy = pickle.loads(pickle.dumps(Store.open("store")))
    monkeypatch.chdir("/")
    assert copy.get(KEY) == b"one"
    assert Store.open(f"file://{tmp_path}/store").get(KEY) == b"one"
    assert copy.local_path(KEY) == Path(tmp_path / "store" / KEY)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values))
def test_identity_survives_writing_and_reading(payload):
    shuffled = dict(reversed(payload.items()))
    read = parse_json(canonical_json(payload), source="test")
    assert content_id("x", read) == content_id("x", payload) == content_id("x", shuffled)


def test_what_json_cannot_say_has_no_identity():
    for payload in (float("nan"), {1j}, {"a": object()}, {"a": 1, 2: 3}):
        with pytest.raises(ValueError, match="has no id"):
            content_id("x", payload)


@pytest.mark.parametrize(
    "content", [b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[1]", b"{", b"\xff", b"[" * 100_000]
)
def test_dubious_json_is_refused_by_name(content):
    with pytest.raises(ValueError, match=r"^plan\.json: "):
        parse_json(content, source="plan.json")
