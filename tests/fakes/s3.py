"""Fixtures: a real S3-protocol server behind a proxy that can misbehave, and a store on it."""

import logging
import secrets
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cluster.store import Store
from tests.fakes.fault_proxy import FaultProxy

CANARY = "c4n4ryS3cr3tK3y0000000000000000000000000"
"""The secret key of these tests: must turn up nowhere."""


@pytest.fixture(scope="session")
def s3_upstream() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_server(s3_upstream: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The server as the environment names it, with an empty bucket called `bucket-<random>`."""
    proxy = FaultProxy(s3_upstream)
    for name, value in {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "AKIDTEST",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    yield proxy
    forget_connections()
    proxy.close()


@pytest.fixture
def s3_url(s3_server: FaultProxy, s3_upstream: str) -> str:
    bucket = f"bucket-{secrets.token_hex(4)}"
    boto3.client("s3", endpoint_url=s3_upstream).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture
def s3_store(s3_url: str) -> Store:
    return Store.open(s3_url)


def forget_connections() -> None:
    """The process's client keeps the endpoint that it saw first."""
    from cluster import s3

    s3._filesystem_of.cache_clear()
