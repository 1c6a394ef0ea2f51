"""Fixtures of the whole suite: a local Ray that touches nothing outside its own folder, and a store."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch or Ray, which read them once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray for all tests: 4 logical CPUs, no dashboard, a token of its own."""
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(tmp_path_factory.mktemp("ray") / "auth_token")
    from cluster import runtime

    runtime.start(num_cpus=4, object_store_bytes=256 * runtime.MIB)
    yield
    runtime.stop()


@pytest.fixture
def store(tmp_path: Path):
    """An empty store in a folder of its own."""
    from cluster.store import Store

    return Store.open(tmp_path / "store")
