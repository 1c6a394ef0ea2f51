"""A whole study on three nodes, under faults of every kind at once, is the study that nobody disturbed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.store import Store
from tests.chaos.comparison import contents, differences
from tests.chaos.three_nodes import Outcome, describe

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
        with suppress(ProcessLookupError):
            process.terminate()  # it takes its nodes down
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


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
    assert sum(n for kind, n in outcome.faults.items() if kind.startswith("worker SIGKILL")) >= 3
    for kind in ("500", "503", "drop", "lose the reply", "stall"):
        assert outcome.faults[f"S3 {kind}"] >= 1, kind


def filled(folder: Path, **changes: bytes) -> Store:
    """A store with one object of each sort, some of them changed."""
    store = Store.open(folder)
    for key, content in {
        "recordings/r-1/plan.json": b"plan",
        "scratch/steering/b-1.npy": b"played",
        "scratch/training/t-1.pt": folder.name.encode(),
        "studies/s/mirror/sent/a.json": folder.name.encode(),
        "studies/s/study.json": json.dumps({"wall_s": {folder.name: 1}, "study": "s"}).encode(),
    }.items():
        store.replace(key, content) if key.startswith(("studies", "scratch")) else store.create(
            key, changes.get("plan", content)
        )
    return store


def test_what_tells_of_one_run_only_is_no_difference(tmp_path: Path) -> None:
    left, right = filled(tmp_path / "left"), filled(tmp_path / "right")
    assert list(differences(contents(left), contents(right))) == []


def test_a_byte_of_a_finding_is_a_difference(tmp_path: Path) -> None:
    left, right = filled(tmp_path / "left"), filled(tmp_path / "right", plan=b"plam")
    (said,) = differences(contents(left), contents(right))
    assert said.startswith("recordings/r-1/plan.json: differs from byte 3 on")
    right.replace("scratch/steering/b-2.npy", b"more")
    left.replace("studies/s/report.html", b"page")
    assert [said.split(":")[0] for said in differences(contents(left), contents(right))] == [
        "recordings/r-1/plan.json",
        "scratch/steering/b-2.npy",
        "studies/s/report.html",
    ]
