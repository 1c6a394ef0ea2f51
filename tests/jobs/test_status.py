"""`sparsight status`: what people and machines are shown of a store."""

import json

import pytest

from cluster import recordings
from cluster.pulse import Pulse
from cluster.quarantine import Quarantine
from cluster.store import Store
from jobs.main import main
from tests.cluster.test_status import begin, wait_until


@pytest.fixture
def told(store, capsys, monkeypatch):
    """What the verb prints of the store."""
    monkeypatch.setenv("COLUMNS", "160")

    def ask(*options: str) -> str:
        capsys.readouterr()
        assert main(["status", store.url, *options]) == 0
        return capsys.readouterr().out

    return ask


def test_whole_things_are_counted_and_others_are_named(store, told):
    recordings.commit(store, begin(store, shards=3, done=3, world="whole"))
    half = begin(store, shards=3, done=1, world="half")
    full = begin(store, shards=2, done=2, world="full")
    Quarantine(store, "record").quarantined(f"{half.recording_id}/s00002", MemoryError("large"))
    with Pulse(store, study="mine") as job:
        job.at("record", 1, 3)
        wait_until(lambda: store.list("scratch/running"))
        said = told()
    assert "1 finished with 12 rows in 3 shards, 2 not" in said
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert "1 of 3" in lines[half.recording_id]
    assert "1 shards set aside: s00002" in lines[half.recording_id]
    assert "wants its commit" in lines[full.recording_id]
    assert "MemoryError: large" in lines[f"{half.recording_id}/s00002"]
    assert any("mine" in line and name.startswith("j-") for name, line in lines.items())


def test_machines_are_told_everything(store, told):
    plans = [begin(store, shards=2, done=1, world=number) for number in range(25)]
    said = json.loads(told("--json"))
    assert {one["recording"] for one in said["recordings"]} == {one.recording_id for one in plans}
    assert {one["state"] for one in said["recordings"]} == {"unfinished"}
    assert said["running"] == said["silent"] == said["quarantined"] == []
    assert "and 5 more: --json" in told()


@pytest.mark.ray
@pytest.mark.mettagrid
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_finished_study_has_passed_every_stage_and_one_that_lost_a_table_lacks_its_own(
    finished, told, store
):
    config, study = finished
    for name in Store.open(config.store).list():
        if not name.startswith(("scratch/steering", "scratch/sweeps", "recordings/")):
            store.create(name, Store.open(config.store).get(name))
    for entry in study.recordings:
        key = recordings.manifest_key(entry.recording_id)
        store.create(key, Store.open(config.store).get(key))
    (found,) = json.loads(told("--json"))["studies"]
    assert found["study"] == "tiny"
    assert found["is_finished"]
    assert found["passed"] == [
        *("train", "evaluate", "record", "sweep", "decompose", "score", "splice", "discover"),
        *("repeat", "steer", "evolve", "show", "report"),
    ]
    assert found["pending"] == []
    for key in (f"verdicts/{study.verdicts[0]}", f"findings/{study.findings[0]}"):
        store.local_path(f"{key}.json").unlink()
    (found,) = json.loads(told("--json"))["studies"]
    assert found["pending"] == ["discover", "steer"]
