"""Policies on S3: one object, one checkpoint below a prefix, or a whole training run."""

from pathlib import Path

import boto3
import pytest

from cluster.backends import StoreError
from cluster.store import Store
from cluster.tracking.service import WandbService
from cluster.trajectories import Trajectory, checkpoints_among, list_checkpoints, open_run
from tests.cluster.tracking.test_source import bundle, checkpoint
from tests.fakes.fault_proxy import FaultProxy

pytestmark = pytest.mark.slow


def put(s3_url: str, upstream: str, folder: str, files: dict[str, str]) -> str:
    """Copies files below a folder of the bucket; its address."""
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=upstream)
    for name, path in files.items():
        client.put_object(
            Bucket=bucket, Key=f"{prefix}/{folder}/{name}", Body=Path(path).read_bytes()
        )
    return f"{s3_url}/{folder}"


def listed(store: Store, uri: str) -> Trajectory:
    with WandbService() as service:
        return list_checkpoints(store, uri, service)


def test_a_prefix_of_many_is_a_run(
    s3_url: str, s3_upstream: str, store: Store, tmp_path: Path
) -> None:
    for step in (100, 20, 3):
        put(s3_url, s3_upstream, f"run/model_{step}", dict(checkpoint(tmp_path, step).files))
    uri = put(s3_url, s3_upstream, "run", {"notes.txt": __file__})
    assert [one.label for one in listed(store, uri).checkpoints] == [
        "model_3",
        "model_20",
        "model_100",
    ]
    run = open_run(store, uri)
    assert run.name == "run"
    assert [card.policy_id for card in run.checkpoints] == [
        bundle(step).policy_id for step in (3, 20, 100)
    ]


def test_a_prefix_of_one_and_a_single_object_are_one_checkpoint(
    s3_url: str, s3_upstream: str, store: Store, tmp_path: Path
) -> None:
    files = dict(checkpoint(tmp_path, 7).files)
    one = put(s3_url, s3_upstream, "policy", files)
    assert [card.step for card in open_run(store, one).checkpoints] == [7]
    weights = {"model_7.safetensors": files["weights.safetensors"]}
    single = f"{put(s3_url, s3_upstream, 'single', weights)}/model_7.safetensors"
    trajectory = listed(store, single)
    assert trajectory.name == "model_7"
    assert [(one.label, one.order) for one in trajectory.checkpoints] == [
        ("model_7.safetensors", 7)
    ]
    with pytest.raises(ValueError, match="no known network"):  # the file tells no architecture
        open_run(store, single)


def test_nothing_there_and_a_server_that_refuses_are_told_apart(
    s3_server: FaultProxy, s3_url: str, store: Store
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such object, and no policy below it"):
        listed(store, f"{s3_url}/gone")
    with (
        s3_server.failing("403"),
        pytest.raises(StoreError, match=r"s3://.*/gone: access denied"),
    ):
        listed(store, f"{s3_url}/gone")


def test_only_policies_are_looked_at() -> None:
    keys = [
        "a.pt",
        "b.txt",
        "c/policy_spec.json",
        "c/weights.safetensors",
        "d/e/card.json",
        "f/x.pt",
    ]
    assert checkpoints_among(keys) == {
        "a.pt": ("a.pt",),
        "c": ("c/policy_spec.json", "c/weights.safetensors"),
    }
    assert checkpoints_among(["weights.safetensors", "a.pt"]) == {
        "": ("weights.safetensors", "a.pt")
    }
