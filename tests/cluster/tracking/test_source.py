"""Policies of a W&B run: listed in the order of training, downloaded once and verified, whatever the server does."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cluster import trajectories
from cluster.store import Store
from cluster.tracking import letters, source
from cluster.tracking.access import WandbError
from cluster.tracking.service import WandbService
from cluster.trajectories import Trajectory, open_run
from cluster.uris import WandbArtifact
from interp.identity import canonical_json
from interp.policies.bundle import PolicyBundle
from interp.policies.token_lstm import TokenLstmArchitecture, TokenLstmPolicy
from tests.fakes.wandb_client import Logged, log_run
from tests.fakes.wandb_server import WandbServer

RUN = "acme/foraging/abc123"
pytestmark = pytest.mark.slow


def list_checkpoints(store: Store, uri: str) -> Trajectory:
    with WandbService() as service:
        return trajectories.list_checkpoints(store, uri, service)


def bundle(seed: int) -> PolicyBundle:
    torch.manual_seed(seed)
    architecture = TokenLstmArchitecture(
        window_rows=3,
        window_cols=3,
        features={"tag": 1},
        tags=("type:wall",),
        action_names=("noop", "move"),
        embedding=4,
        hidden=4,
    )
    return PolicyBundle.of(architecture, TokenLstmPolicy(architecture).state_dict())


def checkpoint(
    folder: Path, step: int, *, name: str = "policy", type: str = "model", **metadata: object
) -> Logged:
    """An artifact with the policy of that step."""
    place = folder / f"{name}-{step}"
    place.mkdir()
    policy = bundle(step)
    content = {
        "weights.safetensors": policy.weights,
        "architecture.json": canonical_json(policy.architecture),
        "card.json": json.dumps({"step": step, "world": "forage"}).encode(),
    }
    for file, data in content.items():
        (place / file).write_bytes(data)
    return Logged(
        name=name,
        type=type,
        files={file: str(place / file) for file in content},
        metadata=metadata or {"agent_step": step, "epoch": step // 10},
    )


def test_a_run_is_the_trajectory_of_its_model_artifacts(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    log_run(
        RUN,
        [
            checkpoint(tmp_path, 40),
            checkpoint(tmp_path, 20),
            checkpoint(tmp_path, 80),
            checkpoint(tmp_path, 80, name="policy_final"),
            checkpoint(tmp_path, 50, name="curve", type="run_table"),
        ],
        name="brave-fox",
        lr=0.003,
    )
    trajectory = list_checkpoints(store, RUN)
    assert trajectory.name == "brave-fox"
    assert [(one.label, one.order) for one in trajectory.checkpoints] == [
        ("policy:v1", 20),
        ("policy:v0", 40),
        ("policy:v2", 80),
    ]
    assert trajectory.about["config"] == {"lr": 0.003}
    assert trajectory.about["summary"]["return"] == 1.5
    assert trajectory.about["tags"] == ["trained"]
    address = f"{wandb_server.url}/acme/foraging/runs/abc123"
    assert trajectory.about["url"] == address
    assert list_checkpoints(store, address).checkpoints == trajectory.checkpoints

    run = open_run(store, RUN)
    assert [card.step for card in run.checkpoints] == [20, 40, 80]
    assert [card.policy_id for card in run.checkpoints] == [
        bundle(step).policy_id for step in (20, 40, 80)
    ]
    card = run.checkpoints[-1]
    assert card.world == "forage"
    assert card.source["origin"]["artifact"] == "acme/foraging/policy:v2"
    assert card.source["run"]["config"] == {"lr": 0.003}
    # the same again asks for no file
    downloads = wandb_server.count("GET /storage")
    assert open_run(store, RUN) == run
    assert wandb_server.count("GET /storage") == downloads


def test_epochs_order_what_tells_no_steps_and_versions_what_tells_nothing(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    log_run(
        "acme/foraging/epochs",
        [
            checkpoint(tmp_path, 10, name="a", epoch=2, agent_step=7),
            checkpoint(tmp_path, 20, name="a", epoch=1),
        ],
    )
    log_run(
        "acme/foraging/nothing",
        [checkpoint(tmp_path, step, name="b", note="x") for step in (30, 5, 1)],
    )
    epochs = list_checkpoints(store, "acme/foraging/epochs").checkpoints
    assert [(one.label, one.order) for one in epochs] == [("a:v1", 1), ("a:v0", 2)]
    versions = list_checkpoints(store, "acme/foraging/nothing").checkpoints
    assert [(one.label, one.order) for one in versions] == [("b:v0", 0), ("b:v1", 1), ("b:v2", 2)]


def test_artifacts_of_another_type_are_chosen_by_name(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    log_run(RUN, [checkpoint(tmp_path, 10, name="my_checkpoint", type="dataset")])
    with pytest.raises(
        FileNotFoundError, match=r"no artifact of type 'model'.*my_checkpoint:v0 \(dataset\)"
    ):
        list_checkpoints(store, RUN)
    found = list_checkpoints(store, f"{RUN}?name=*checkpoint*")
    assert [one.label for one in found.checkpoints] == ["my_checkpoint:v0"]


def test_an_alias_names_one_version_and_is_pinned(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    log_run(RUN, [checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)])
    (found,) = list_checkpoints(store, "wandb://acme/foraging/policy:latest").checkpoints
    assert found.label == "policy:v1"
    assert open_run(store, "acme/foraging/policy:v0").checkpoints[0].step == 10


def test_what_is_not_there_is_told_from_a_server_that_is_not_there(
    wandb_server: WandbServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"acme/foraging/none.*[Cc]ould not find"):
        list_checkpoints(store, "acme/foraging/none")
    with pytest.raises(FileNotFoundError, match=r"acme/foraging/policy:v7"):
        list_checkpoints(store, "acme/foraging/policy:v7")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(WandbError, match=r"127\.0\.0\.1:9 does not answer"):
        list_checkpoints(store, RUN)
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(ValueError, match="set WANDB_API_KEY"):
        list_checkpoints(store, RUN)


@pytest.mark.parametrize("damage", ["cut", "garble"])
def test_a_damaged_download_is_asked_for_again_and_then_refused(
    wandb_server: WandbServer, store: Store, tmp_path: Path, damage: str
) -> None:
    log_run(RUN, [checkpoint(tmp_path, 10)])
    with (
        wandb_server.failing(damage, on="weights.safetensors"),  # pyright: ignore[reportArgumentType]
        pytest.raises(WandbError, match=r"policy:v0: downloaded twice and damaged twice"),
    ):
        open_run(store, RUN)
    assert store.list("policies") == []
    with wandb_server.failing(damage, on="weights.safetensors", times=1):  # pyright: ignore[reportArgumentType]
        assert open_run(store, RUN).checkpoints[0].policy_id == bundle(10).policy_id


def test_a_server_that_stalls_is_given_up(
    wandb_server: WandbServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_run(RUN, [checkpoint(tmp_path, 10)])
    monkeypatch.setattr(source, "LIST_S", 4.0)
    monkeypatch.setattr("cluster.tracking.service.START_S", 6.0)
    with (
        wandb_server.failing(60.0, on="GET /storage"),
        pytest.raises(WandbError, match=r"policy:v0: W&B gave no answer to download within"),
    ):
        open_run(store, RUN)


def test_a_file_that_changes_in_the_cache_is_downloaded_again(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    log_run(RUN, [checkpoint(tmp_path, 10)])
    with WandbService() as service:
        artifact = source.find_artifact(
            WandbArtifact("acme", "foraging", "policy", "latest"), service
        )
        with source.downloaded(artifact, service, cache=tmp_path / "cache") as folder:
            weights = folder / "weights.safetensors"
            weights.write_bytes(b"x" * weights.stat().st_size)
        with source.downloaded(artifact, service, cache=tmp_path / "cache") as folder:
            assert (folder / "weights.safetensors").read_bytes() == bundle(10).weights


def test_many_that_ask_at_once_download_once(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    log_run(RUN, [checkpoint(tmp_path, 10)])
    with WandbService() as service:
        artifact = source.find_artifact(
            WandbArtifact("acme", "foraging", "policy", "latest"), service
        )

    def ask(_: int) -> bytes:
        with (
            WandbService() as service,
            source.downloaded(artifact, service, cache=tmp_path / "cache") as folder,
        ):
            return (folder / "weights.safetensors").read_bytes()

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(8))) == {bundle(10).weights}
    assert wandb_server.count("GET /storage/") == 1 + 3  # its manifest and its three files


def test_two_policies_of_one_run_are_not_mixed(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    log_run(
        RUN,
        [checkpoint(tmp_path, step, name=name) for name in ("prey", "fox") for step in (10, 20)],
    )
    with pytest.raises(
        ValueError, match=rf"logged 2 policies: fox, prey; choose .*{RUN}\?name=fox"
    ):
        list_checkpoints(store, RUN)
    found = list_checkpoints(store, f"{RUN}?name=prey*").checkpoints
    assert [one.label for one in found] == ["prey:v0", "prey:v1"]


def test_a_first_version_of_unknown_step_is_not_an_untrained_policy(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    files = dict(checkpoint(tmp_path, 10).files)
    Path(files["card.json"]).write_bytes(json.dumps({"world": "forage"}).encode())
    log_run(RUN, [Logged(name="policy", files=files, metadata={"note": "x"})])
    run = open_run(store, RUN)
    assert run.checkpoints[0].step == 0
    assert run.untrained is None


def test_references_are_not_followed(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    log_run(RUN, [checkpoint(tmp_path, 10)])
    secret = tmp_path / "secret.txt"
    secret.write_text("TOP SECRET")
    model = wandb_server.model
    (artifact,) = model.versions("policy")
    place = artifact["_manifest"]["file"]["storagePath"]
    manifest = json.loads(model.blobs[place])
    manifest["contents"]["extra"] = {"digest": "x", "ref": f"file://{secret}", "size": 10}
    model.blobs[place] = json.dumps(manifest).encode()
    with pytest.raises(WandbError, match="'extra' is a reference to another place"):
        open_run(store, RUN)
    kept = [path for path in Path(store.workspace("wandb")).rglob("*") if path.is_file()]
    assert not any(b"TOP SECRET" in path.read_bytes() for path in kept)


def test_a_record_of_a_download_that_was_cut_short_is_not_trusted(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    log_run(RUN, [checkpoint(tmp_path, 10)])
    first = open_run(store, RUN)
    for record in store.workspace("wandb").rglob("verified.json"):
        record.write_bytes(b'{"weights')
    assert open_run(store, RUN) == first


def test_a_file_cannot_claim_where_it_came_from(store: Store, tmp_path: Path) -> None:
    files = dict(checkpoint(tmp_path, 10).files)
    folder = Path(files["card.json"]).parent
    claim = {"step": 10, "world": "forage", "artifact": "victim/p/x:v0", "server": "api.wandb.ai"}
    (folder / "card.json").write_text(
        json.dumps({**claim, "origin": {"artifact": "victim/p/x:v0"}})
    )
    run = open_run(store, str(folder))
    assert run.checkpoints[0].source["origin"] is None
    written = letters.policies_letter(store, "demo", run)
    assert written.uses == ()
    assert len(written.logs) == 1
