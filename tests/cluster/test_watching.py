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
from cluster.pool import Pool, Several, TasksLost
from cluster.recordings import Plan, Receipt, ShardPlan

pytestmark = pytest.mark.ray


PLAN = Plan(
    config={"num_episodes": 3},
    inputs={"policy": "p-0"},
    shards=tuple(ShardPlan(shard=f"s0000{number}", env_seeds=(number,)) for number in range(3)),
)


@dataclass(frozen=True)
class Shard:
    """A shard of that plan; `scar` tells whether its actor has died under it."""

    plan: Plan
    shard: ShardPlan
    scar: Path | None = None

    @property
    def key(self) -> str:
        return f"{self.plan.recording_id}/{self.shard.shard}"


class Recorder:
    """Answers with a receipt of 100 rows; dies once where a scar is asked for, always where there can be none.

    Logs to a file, as Ray's workers do.
    """

    def __init__(self, log: Path) -> None:
        handler = logging.FileHandler(log)
        handler.setFormatter(JsonLines())
        logging.getLogger().addHandler(handler)
        logging.getLogger("cluster").setLevel(logging.INFO)

    def run(self, task: Shard) -> Receipt:
        logging.getLogger("cluster.store").warning("the disk is slow")
        if task.scar is not None and not task.scar.exists():
            if task.scar.parent.exists():
                task.scar.touch()
            os._exit(1)
        name = task.shard.shard
        return Receipt(
            shard=name,
            plan_id="plan-0",
            key=f"recordings/r-0/data/{name}",
            sha256="0",
            bytes=70,
            rows=100,
            schema="",
        )


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict]:
    return [json.loads(JsonLines().format(record)) for record in caplog.records]


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
        Shard(PLAN, shard, tmp_path / "scar" if shard.shard == "s00001" else None)
        for shard in PLAN.shards
    ]
    caplog.set_level(logging.INFO, logger="cluster.logs")
    with Pool(Recorder, args=(tmp_path / "log",), size=1, in_flight=1) as pool:
        watcher = Several(Metrics("watched"), Journal("watched", shards))
        assert len(list(pool.run(shards, watcher))) == 3
    lines = lines_of(caplog)
    of_tasks = [line for line in lines if "task" in line]
    assert {(line["recording"], line["policy"]) for line in of_tasks} == {
        (PLAN.recording_id, "p-0")
    }
    assert all(line["task"] == f"{PLAN.recording_id}/{line['shard']}" for line in of_tasks)
    story = [line["message"] for line in lines if "stage" in line and line.get("shard") == "s00001"]
    assert story == ["task submitted", "task retried", "task submitted", "task done"]
    done = [line for line in lines if line["message"] == "task done"]
    assert {(line["shard"], line["rows"]) for line in done} == {
        (shard.shard, 100) for shard in PLAN.shards
    }
    of_actors = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {(line["recording"], line["policy"]) for line in of_actors} == {
        (PLAN.recording_id, "p-0")
    }
    of_the_lost = [line["message"] for line in of_actors if line["shard"] == "s00001"]
    begun = ["task begun", "the disk is slow"]
    assert of_the_lost == [*begun, *begun, "task ended"]
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


def test_the_journal_says_of_whom_a_shard_was_that_is_set_aside(
    ray_session, tmp_path, caplog
) -> None:
    poison = Shard(PLAN, PLAN.shards[0], tmp_path / "no-folder" / "scar")
    caplog.set_level(logging.INFO, logger="cluster.logs")
    with (
        Pool(Recorder, args=(tmp_path / "log",), size=1, attempts=1) as pool,
        pytest.raises(TasksLost),
    ):
        list(pool.run([poison], Journal("watched", [poison])))
    (line,) = [line for line in lines_of(caplog) if line["message"] == "task quarantined"]
    assert (line["recording"], line["shard"], line["policy"]) == (
        PLAN.recording_id,
        "s00000",
        "p-0",
    )


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
