"""A canary that any code run from a file would create, and a reader that expects a refusal."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from interp.policies.formats.reading import read_policy_file

CANARY_VARIABLE = "SPARSIGHT_CANARY"


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that does not exist. Torch is told to load anything, as a careless environment might."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    return tmp_path / "canary"


@pytest.fixture
def refusal(canary: Path) -> Callable[[Path], str]:
    """Why a file is refused, after the name of the file; nothing of it was run."""

    def why(path: Path) -> str:
        with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as caught:
            read_policy_file(path)
        assert not canary.exists()
        assert CANARY_VARIABLE not in os.environ
        said = str(caught.value)
        assert said.startswith(f"{path}: ")
        return said.removeprefix(f"{path}: ")

    return why
