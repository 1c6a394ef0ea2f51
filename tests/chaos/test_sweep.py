"""A sweep whose driver is killed goes on where it was, and ends with what an undisturbed one would have given."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import recordings
from cluster.recorder import RecordShard, plan_recording
from cluster.store import Store
from cluster.studio import Studio
from tests.chaos.disturbed import CONFIG, FACTORY, add_policy

pytestmark = [pytest.mark.ray, pytest.mark.mettagrid, pytest.mark.chaos]


def a_recording(store: Store) -> str:
    plan = plan_recording(store, add_policy(store), FACTORY, CONFIG)
    recordings.begin(store, plan)
    studio = Studio(store)
    for shard in plan.shards:
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY))
    recordings.commit(store, plan)
    return plan.recording_id


def start(store: Store, recording: str, tmp_path: Path) -> subprocess.Popen:
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "auth_token")}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "jobs.main", "sweep", "--store", store.url),
            *("--recording", recording, "--site", "lstm.h", "--families", "batch_topk", "topk"),
            *("--k", "4", "8", "--d-sae", "128", "--samples", "150000", "--actors", "1"),
            *("--stability-seeds", "0"),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(store: Store) -> dict[str, int]:
    """Dictionaries of finished trials in the workspace, and when they were written."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in store.workspace("sweeps").rglob("weights.safetensors")
    }


def outcome(store: Store) -> tuple[str, dict[str, bytes]]:
    """Figures of all trials, and the dictionary that was kept."""
    (key,) = [key for key in store.list("sweeps") if key.endswith("trials.parquet")]
    trials = pq.read_table(pa.BufferReader(store.get(key))).drop_columns("trial_s")
    weights = {key: store.get(key) for key in store.list("dictionaries") if "weights" in key}
    return str(trials.to_pylist()), weights


def test_driver_killed_between_trials_goes_on_and_repeats_none(tmp_path: Path) -> None:
    whole, killed = (Store.open(tmp_path / name) for name in ("whole", "killed"))
    recording = a_recording(whole)
    assert a_recording(killed) == recording
    undisturbed = start(whole, recording, tmp_path)
    _, errors = undisturbed.communicate(timeout=150)
    assert undisturbed.returncode == 0, errors

    first = start(killed, recording, tmp_path)
    deadline = time.monotonic() + 90
    while not finished(killed):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=30)
    done = finished(killed)
    assert 1 <= len(done) < 4
    assert not [key for key in killed.list("sweeps") if key.endswith(".parquet")]

    second = start(killed, recording, tmp_path)
    said, errors = second.communicate(timeout=150)
    assert second.returncode == 0, errors
    assert done.items() <= finished(killed).items(), "a finished trial was trained again"
    assert outcome(killed) == outcome(whole)
    assert said.strip().splitlines()[-1].startswith("d-")
