"""A sweep on S3 whose machine is lost goes on from another, which has nothing but the store."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster import dictionaries, runtime, search
from cluster.search import Runner, SearchConfig
from cluster.staging import stage
from cluster.store import Store
from cluster.sweep import TrialProgress
from interp.dictionaries.training import Trainer
from tests.cluster.test_search import BASE, SPLIT, recorded

__all__ = ["recorded"]
CONFIG = SearchConfig(
    space={"family.k": [1, 3]},
    base=replace(BASE, samples=20_000, reports=20),
    stability_seeds=0,
    target_l0=None,
)
SAVED_S = 0.3
"""Between two reports; Tune notes once a second how things stand."""


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def drive(url: str, recording_id: str) -> None:
    """The process that is killed: says each report, then what was found."""

    def show(report: TrialProgress) -> None:
        say("report", report.trial, report.progress.step)
        time.sleep(SAVED_S * report.trial)

    runtime.start(2, dashboard=False)
    result = search.run_search(
        Store.open(url),
        recording_id,
        CONFIG,
        split=SPLIT,
        runner=Runner(max_concurrent=1, on_progress=show),
    )
    say("found", result.search_id, result.entry.dict_id)
    runtime.stop()


def start(url: str, recording_id: str, tmp_path: Path, machine: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "auth_token"),
        "SPARSIGHT_CACHE": str(tmp_path / machine),
    }
    environment.pop("RAY_ADDRESS", None)
    with (tmp_path / f"{machine}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, url, recording_id],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def reports(lines: list[str]) -> list[tuple[int, int]]:
    """Trial and step of each."""
    return [
        (int(words[1]), int(words[2]))
        for line in lines
        if (words := line.split()) and words[0] == "report"
    ]


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_sweep_goes_on_from_another_machine(recorded, s3_url, tmp_path):
    folder, recording_id = recorded
    store = Store.open(s3_url)
    for key in folder.list("recordings") + folder.list("policies"):
        store.create(key, folder.get(key))

    first = start(s3_url, recording_id, tmp_path, "lost")
    assert first.stdout is not None
    before: list[str] = []
    for line in first.stdout:
        before.append(line)
        if reports(before)[-1:] > [(1, 100)]:
            break
    else:
        pytest.fail((tmp_path / "lost.log").read_text())
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    shutil.rmtree(tmp_path / "lost")

    second = start(s3_url, recording_id, tmp_path, "fresh")
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, (tmp_path / "fresh.log").read_text()
    after = reports(said.splitlines())
    assert {trial for trial, _ in after} == {1}, "a finished trial was trained again"
    assert after[0][1] > reports(before)[0][1], "the trial that was cut short began anew"

    _, search_id, dict_id = said.splitlines()[-1].split()
    assert search_id == search.search_id(recording_id, CONFIG, split=SPLIT)
    found = search.find(store, search_id)
    assert found is not None
    candidate = CONFIG.checked_space().grid()[found.chosen]
    assert dict_id == dictionaries.dictionary_id(
        recording_id, "lstm.h", candidate.config, split=SPLIT, seed=0
    )
    staged = stage(folder, recording_id, "lstm.h", SPLIT)
    rows = np.load(staged.train_path), np.load(staged.held_out_path)
    torch.set_num_threads(1)
    undisturbed = Trainer(
        candidate.config, *rows, site="lstm.h", seed=0, known=staged.normalisation()
    )
    undisturbed.advance(candidate.config.num_steps)
    assert dictionaries.load(store, dict_id).to_bytes() == undisturbed.dictionary().to_bytes()
    assert not store.list("scratch/sweeps"), "what is of no use any more was left behind"


if __name__ == "__main__":
    drive(*sys.argv[1:])
