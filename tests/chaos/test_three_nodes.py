"""A whole study on three nodes, under faults of every kind at once, is the study that nobody disturbed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.disturbed import end_all
from tests.chaos.three_nodes import IDLE, QUIET_S, Outcome, describe

SEED = 0


@pytest.fixture
def outcome(tmp_path: Path) -> Iterator[Outcome]:
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "auth_token"),
        "RAY_AUTH_MODE": "token",
        "PYTHONPATH": str(root),
    }
    environment.pop("RAY_ADDRESS", None)
    (tmp_path / "auth_token").write_text("ab" * 32)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.three_nodes", str(tmp_path), str(SEED)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complaints = process.communicate()
        assert process.returncode == 0, complaints[-3000:]
        yield Outcome.of(said.splitlines()[-1])
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.terminate()  # it takes its nodes down
            process.wait(30)
        end_all(tmp_path)


@pytest.mark.ray
@pytest.mark.mettagrid
@pytest.mark.chaos
@pytest.mark.timeout(2400)
def test_a_study_on_three_nodes_under_every_fault_at_once(
    outcome: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        sys.stdout.write(describe(outcome))
    assert outcome.own_ends == ()
    assert outcome.differing == ()
    assert outcome.rows > 0
    assert outcome.faults["node lost"] == outcome.faults["node joined"] == 1
    assert outcome.faults["W&B server gone"] == 1
    assert outcome.faults["driver SIGKILL"] == 3
    killed = {
        kind.removeprefix("worker SIGKILL "): number
        for kind, number in outcome.faults.items()
        if kind.startswith("worker SIGKILL")
    }
    slowness = max(1.0, outcome.undisturbed_s / QUIET_S)
    assert sum(killed.values()) >= outcome.disturbed_s / slowness / 8  # every few seconds
    assert sum(number for what, number in killed.items() if what != IDLE) >= 3
    for kind in ("500", "503", "drop", "lose the reply", "cut", "stall"):
        assert outcome.faults[f"S3 {kind}"] >= 1, kind
