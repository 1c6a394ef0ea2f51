"""What a person is shown of policies, wherever they are and whether they can be run or not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp.policies.mettagrid_flat import FlatNetwork
from jobs.main import main
from tests.cluster.tracking.test_source import bundle, checkpoint
from tests.fakes.wandb_client import log_run
from tests.fakes.wandb_server import WandbServer
from tests.interp.policies.test_mettagrid_networks import flat

Shown = Callable[..., dict[str, str]]


@pytest.fixture
def shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shown:
    """The fields of a card, by their names."""
    monkeypatch.setenv("COLUMNS", "400")

    def shown(*arguments: str) -> dict[str, str]:
        main(["policies", "show", *arguments, "--store", str(tmp_path / "store")])
        lines = [line.partition("  ") for line in capsys.readouterr().out.splitlines()]
        return {name.strip(): text.strip() for name, _, text in lines}

    return shown


@pytest.mark.slow
def test_a_run_of_wandb_is_shown_with_its_card_and_then_fetched(
    wandb_server: WandbServer, shown: Shown, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = "acme/foraging/abc123"
    logged = [checkpoint(tmp_path, step) for step in (10, 20)]
    log_run(run, logged, name="brave-fox", lr=0.003)
    card = shown(run)
    assert card["run"] == "brave-fox"
    assert card["checkpoints"] == "2: policy:v0, policy:v1"
    assert card["run.config.lr"] == "0.003"
    assert card["run.tags"] == "['trained']"
    assert card["run.summary.return"] == "1.5"
    assert card["checkpoint"] == "policy:v1"
    assert card["training step"] == "20"
    assert card["policy"] == bundle(20).policy_id
    assert "lstm.h [4]" in card["sites"]
    assert card["source.agent_step"] == "20"

    store = str(tmp_path / "store")
    main(["policies", "fetch", run, "--checkpoints", "20:", "--store", store])
    assert f"{bundle(20).policy_id}  step 20" in capsys.readouterr().out
    main(["policies", "list", "--store", store])
    said = capsys.readouterr().out
    assert bundle(20).policy_id in said
    assert bundle(10).policy_id not in said
    assert shown(bundle(20).policy_id)["world"] == "forage"


def test_a_network_of_another_time_says_how_it_understands_a_world(
    shown: Shown, tmp_path: Path
) -> None:
    path = tmp_path / "model_200.pt"
    torch.save(FlatNetwork(flat(recurrent=True)).state_dict(), path)
    card = shown(str(path), "--world", "forage")
    assert card["training step"] == "not told; place 200 in its run"
    assert card["actions"] == "6, without names"
    assert "move_north = logit 1" in card["in forage: actions"]
    assert "by position" in card["in forage: actions"]
    card = shown(str(path), "--world", "gym:CartPole-v1")
    assert "reads mettagrid tokens" in card["in gym:CartPole-v1"]


def test_what_cannot_be_run_is_shown_all_the_same(shown: Shown, tmp_path: Path) -> None:
    path = tmp_path / "mystery.pt"
    torch.save({"some.weight": torch.zeros(3, 4), "note": "[bold]red"}, path)
    card = shown(str(path))
    assert card["format"] == "state-dict"
    assert card["size"] == "12 numbers in 1 tensors"
    assert "no known network has these 1 tensors" in card["cannot run"]
    assert card["file.note"] == "[bold]red"  # shown, not obeyed
