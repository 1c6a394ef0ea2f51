"""Fixtures of the whole suite: a local Ray that touches nothing outside its own folder, a store, a W&B server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.wandb_server import WandbServer

pytest_plugins = ["tests.fakes.s3"]
WANDB_CANARY = "c4n4ryK3y" + "0" * 31
"""The W&B key of these tests: must turn up nowhere."""

# Before anything imports torch or Ray, which read them once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AUTO")  # as `cluster.process.round_alike` does
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Nobody's real account hears of what is tested.
os.environ["WANDB_MODE"] = "disabled"
os.environ.pop("WANDB_API_KEY", None)


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


@pytest.fixture
def wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server as the environment names it, which must understand all that it is asked."""
    server = WandbServer()
    for name, value in {
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": WANDB_CANARY,
        "WANDB_CONFIG_DIR": str(tmp_path / "wandb-config"),
        "NETRC": str(tmp_path / "no-netrc"),
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE")
    yield server
    server.close()
    assert server.unknown == []
