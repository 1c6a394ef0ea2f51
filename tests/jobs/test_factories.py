"""A network of one's own on the command line, as the README teaches it."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from interp.policies import factories
from jobs.main import main

README = Path(__file__).parents[2] / "README.md"
WORLD = "gym:CartPole-v1?max_steps=20"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the README's `my_policy.py`, and weights of its network."""
    (example,) = re.findall(
        r"```python\n(# my_policy\.py\n.*?)```", README.read_text(), flags=re.DOTALL
    )
    (tmp_path / "my_policy.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    namespace: dict = {}
    exec(example, namespace)
    torch.save(namespace["Network"]().state_dict(), "model_10.pt")
    monkeypatch.setattr(factories, "_allowed", {})
    yield tmp_path
    sys.modules.pop("my_policy", None)


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def refused(*arguments: str) -> str:
        factories._allowed.clear()  # as in a process of its own
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, "--store", "store"])
        assert exit_.value.code == 2
        return capsys.readouterr().err

    return refused


def test_the_network_of_the_readme_is_fetched_shown_and_refused_without_permission(
    refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--factory", "my_policy:Network", "--store", "store")
    main(["policies", "show", "model_10.pt", "--world", WORLD, *own])
    said = capsys.readouterr().out
    assert "torch-module" in said
    assert "memory.h [32]" in said
    main(["policies", "fetch", "model_10.pt", "--world", WORLD, *own])
    (policy_id,) = re.findall(r"(p-[0-9a-f]{16})  step 10", capsys.readouterr().out)
    main(["policies", "show", policy_id, *own])
    assert "memory.h [32]" in capsys.readouterr().out
    wanted = f"policy {policy_id}: it is built by my_policy:Network, which is code: allow it with --factory"
    factories._allowed.clear()
    main(["policies", "show", policy_id, "--store", "store"])
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot run" in said
    assert wanted in said
    assert wanted in refused("record", "--policy", policy_id, "--record.sites", "memory.h")
    assert not Path("store/recordings").exists()


def test_without_a_world_or_a_factory_a_file_of_ones_own_is_refused(
    refused: Callable[..., str],
) -> None:
    assert "name that with --world" in refused(
        "policies", "fetch", "model_10.pt", "--factory", "my_policy:Network"
    )
    assert "any torch module of yours, by --factory package.module:callable" in refused(
        "policies", "fetch", "model_10.pt"
    )
    assert "module my_policies cannot be imported: ModuleNotFoundError" in refused(
        "policies", "fetch", "model_10.pt", "--factory", "my_policies:Network"
    )


def test_a_network_for_another_world_is_refused(refused: Callable[..., str]) -> None:
    said = refused(
        *("policies", "fetch", "model_10.pt", "--factory", "my_policy:Network"),
        *("--world", "gym:Acrobot-v1?max_steps=20"),
    )
    assert "given observations [3, 6] torch.float32: RuntimeError" in said
