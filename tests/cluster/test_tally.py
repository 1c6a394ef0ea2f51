"""What a process asked of its store is counted once, failures apart, and repeated requests apart from both."""

import errno
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster import tally
from cluster.backends import LocalFolder, StoreError
from cluster.store import Store
from cluster.tally import NOTHING, Tally

KEY = "policies/p-0/card.json"


@pytest.fixture(autouse=True)
def counted_from_nothing() -> None:
    tally.take()


def test_every_operation_counts_once_and_what_is_taken_is_gone(store: Store) -> None:
    store.create(KEY, b"{}")
    store.get(KEY)
    store.exists(KEY)
    store.list("policies")
    store.inventory("policies")
    store.folders()
    assert tally.take() == Tally(operations=6)
    assert tally.take() == NOTHING


def test_what_is_not_there_is_an_answer_and_no_failure(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.get(KEY)
    assert not store.exists(KEY)
    assert tally.take() == Tally(operations=2)


def test_an_operation_that_fails_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalFolder, "create", full)
    with pytest.raises(OSError, match="No space"):
        store.create(KEY, b"{}")
    assert tally.take() == Tally(operations=1, errors=1)


def test_counts_of_many_threads_are_all_there(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: store.exists(KEY), range(400)))
    assert tally.take() == Tally(operations=400)


def test_a_request_that_s3_repeats_is_a_retry_of_one_operation(s3_store, s3_server) -> None:
    s3_store.create(KEY, b"{}")
    tally.take()
    with s3_server.failing("503", times=1, on="GET"):
        assert s3_store.get(KEY) == b"{}"
    found = tally.take()
    assert (found.operations, found.errors) == (1, 0)
    assert found.retries >= 1
    with s3_server.failing("403", on="GET"), pytest.raises(StoreError):
        s3_store.get(KEY)
    found = tally.take()
    assert (found.operations, found.errors) == (1, 1)
