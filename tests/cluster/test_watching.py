"""What Prometheus and logs are told of a run with a retry, and that the log keeps secrets."""

import json
import logging
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from cluster import logs
from cluster.logs import Journal, JsonLines
from cluster.metrics import Metrics
from cluster.pool import Pool, Several
from cluster.recordings import Receipt

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Shard:
    key: str
    scar: Path | None = None


class Recorder:
    """Answers with a receipt of 100 rows; dies once where a scar is asked for."""

    def run(self, shard: Shard) -> Receipt:
        if shard.scar is not None and not shard.scar.exists():
            shard.scar.touch()
            os._exit(1)
        name = shard.key.split("/")[1]
        return Receipt(
            shard=name,
            plan_id="plan-0",
            key=f"recordings/r-0/data/{name}",
            sha256="0",
            bytes=70,
            rows=100,
            schema="",
        )


def scrape() -> dict[str, float]:
    """Our metrics of the stage "watched" on every node, by name."""
    found: dict[str, float] = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if (
                    line.startswith("ray_sparsight")
                    and 'stage="watched"' in line
                    and "_bucket" not in line
                ):
                    name, value = line.split("{")[0], float(line.rsplit(" ", 1)[1])
                    found[name.removeprefix("ray_sparsight_")] = value
    return found


def test_prometheus_and_the_journal_are_told_of_a_run(ray_session, tmp_path, caplog) -> None:
    shards = [
        Shard("r-0/s00000"),
        Shard("r-0/s00001", tmp_path / "scar"),
        Shard("r-0/s00002"),
    ]
    caplog.set_level(logging.INFO, logger="cluster.logs")
    with Pool(Recorder, size=1, in_flight=1) as pool:
        watcher = Several(Metrics("watched"), Journal("watched"))
        assert len(list(pool.run(shards, watcher))) == 3
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    story = [line["message"] for line in lines if line.get("task") == "r-0/s00001"]
    assert story[:2] == ["task submitted", "task retried"] or "task retried" in story
    assert story[-1] == "task done"
    done = [line for line in lines if line["message"] == "task done"]
    assert {line["shard"] for line in done} == {"s00000", "s00001", "s00002"}
    assert {(line["recording"], line["rows"], line["stage"]) for line in done} == {
        ("r-0", 100, "watched")
    }
    deadline = time.monotonic() + 40  # Ray exports every ten seconds
    while scrape().get("rows_recorded_total", 0) < 300 and time.monotonic() < deadline:
        time.sleep(1)
    told = scrape()
    assert told["tasks_done_total"] == 3
    assert told["rows_recorded_total"] == 300
    assert told["bytes_recorded_total"] == 210
    assert told["tasks_retried_total"] == told["actors_lost_total"] == 1
    assert told["task_seconds_count"] == 3
    assert told["tasks_in_flight"] == 0
    assert told["actors_present"] == 1


def test_json_logs_are_one_object_a_line_and_hold_no_secret(tmp_path: Path) -> None:
    """A verb that fails, with a key in its environment."""
    script = (
        "import logging; from cluster.logs import configure; configure();"
        "logging.getLogger('cluster.pool').warning('task %s failed', 's1', extra={'task': 's1', 'attempt': 2});"
        "logging.getLogger('ray').warning('another')"
    )
    environment = {**os.environ, "SPARSIGHT_LOG": "json", "WANDB_API_KEY": "c4n4ry" * 6}
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    first, second = (json.loads(line) for line in process.stderr.splitlines())
    assert (first["message"], first["task"], first["attempt"]) == ("task s1 failed", "s1", 2)
    assert {"time", "level", "logger"} <= second.keys()
    assert "c4n4ry" not in process.stderr


def test_another_kind_of_log_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIGHT_LOG", "xml")
    with pytest.raises(ValueError, match=r"SPARSIGHT_LOG is 'xml'; wanted text or json"):
        logs.configure()
