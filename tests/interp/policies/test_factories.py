"""Code comes from the command line only: a factory runs if this process allowed it, whatever a file or a store says."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from cluster import policies
from cluster.store import Store
from interp.identity import canonical_json
from interp.policies import factories
from interp.policies.bundle import PolicyBundle
from interp.policies.families import build
from interp.policies.formats.reading import read_policy_file
from interp.policies.recognition import recognise
from interp.policies.torch_module import TorchModuleArchitecture
from interp.worlds.gymnasium import GymnasiumFactory
from tests.fakes.modules import remembering, seeded

CANARY = "canary_of_the_factories"
NAMED = {
    "family": "torch-module",
    "factory": f"{CANARY}:make",
    "observation_shape": [4],
    "observation_dtype": "float32",
    "action_names": ["0", "1"],
}
ARCHITECTURE = TorchModuleArchitecture.from_json({**NAMED, "factory": "planted:make"})
SPEC = GymnasiumFactory.load("gym:CartPole-v1").spec


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factories, "_allowed", {})


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that can be imported, and leaves a mark when it is."""
    mark = tmp_path / "imported"
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / f"{CANARY}.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from tests.fakes.modules import remembering as make\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield mark
    sys.modules.pop(CANARY, None)


def test_the_canary_sings_when_it_is_allowed(canary: Path) -> None:
    factories.allow(f"{CANARY}:make")
    assert canary.exists()
    assert build(NAMED, {}).action_names == ("0", "1")


def test_a_file_that_names_a_factory_does_not_get_it_imported(canary: Path, tmp_path: Path) -> None:
    tensors = dict(seeded().state_dict())
    weights = save(tensors)
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "architecture.json").write_bytes(canonical_json(NAMED))
    metadata = {"architecture": canonical_json(NAMED).decode(), "factory": NAMED["factory"]}
    save_file(tensors, tmp_path / "said.safetensors", metadata=metadata)
    torch.save(
        {"state_dict": tensors, "architecture": NAMED, "factory": NAMED["factory"]},
        tmp_path / "checkpoint.pt",
    )
    for path in (folder, tmp_path / "said.safetensors", tmp_path / "checkpoint.pt"):
        file = read_policy_file(path)
        assert "canary" in str(file.metadata)
        with pytest.raises(ValueError, match="no known network has these"):
            recognise(file)
    assert not canary.exists()
    assert CANARY not in sys.modules


def test_a_policy_of_the_store_is_opened_only_with_permission(canary: Path, store: Store) -> None:
    factories._allowed["planted:make"] = remembering
    bundle = PolicyBundle.of(ARCHITECTURE, seeded().state_dict())
    card = policies.save(store, bundle, name="own", run="t-0", step=0, world=SPEC.name)
    assert policies.load(store, card.policy_id).sites == card.sites
    factories._allowed.clear()
    with pytest.raises(
        ValueError,
        match=rf"policy {card.policy_id}: it is built by planted:make, which is code: allow it with "
        r"--factory planted:make",
    ):
        policies.load(store, card.policy_id)


def test_a_policy_of_the_store_does_not_get_its_factory_imported(
    canary: Path, store: Store
) -> None:
    factories.allow("tests.fakes.modules:remembering")  # another one
    bundle = PolicyBundle(architecture=NAMED, weights=save(dict(seeded().state_dict())))
    folder = f"policies/{bundle.policy_id}"
    store.ensure(f"{folder}/weights.safetensors", bundle.weights)
    store.ensure(f"{folder}/architecture.json", canonical_json(NAMED))
    store.ensure(
        f"{folder}/card.json",
        canonical_json(
            {
                "policy_id": bundle.policy_id,
                "name": "planted",
                "run": "t-0",
                "step": 0,
                "world": SPEC.name,
                "num_parameters": 1,
                "sites": {},
            }
        ),
    )
    with pytest.raises(ValueError, match=f"allow it with --factory {CANARY}:make"):
        policies.load(store, bundle.policy_id)
    with pytest.raises(ValueError, match=f"allow it with --factory {CANARY}:make"):
        bundle.untrained(0)
    assert not canary.exists()
    assert CANARY not in sys.modules


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("", r"factory '': wanted package.module:callable"),
        ("module", r"factory 'module': wanted package.module:callable"),
        ("module:make()", r"wanted package.module:callable"),
        ("../module:make", r"wanted package.module:callable"),
        ("module:make\x1b[2J", r"wanted package.module:callable"),
        ("no_such_module_here:make", r"module no_such_module_here cannot be imported: ModuleNotFo"),
        ("tests.fakes.modules:absent", r"module tests.fakes.modules has no absent"),
        ("tests.fakes.modules:Remembering.absent", r"has no Remembering.absent"),
        ("tests.fakes.modules:HIDDEN", r"a int, wanted a function without arguments"),
    ],
)
def test_a_name_that_cannot_be_allowed_says_why(name: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        factories.allow(name)
    assert not factories._allowed


def test_a_module_that_fails_while_it_is_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_factory_module.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be imported: RuntimeError: no licence"):
        factories.allow("broken_factory_module:make")
