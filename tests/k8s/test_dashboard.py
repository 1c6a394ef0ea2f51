"""The dashboard asks for nothing that is not exported."""

import ast
import json
import os
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import ray

from cluster.backends import StoreError
from cluster.laboratory import Laboratory
from cluster.pool import TasksLost
from cluster.recorder import RecordingConfig, plan_recording
from cluster.staging import Split
from cluster.studio import Studio
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.training import SaeConfig
from tests.cluster.test_steering import FORAGE, played
from tests.cluster.test_training import CONFIG as TRAINING
from tests.k8s.rules import ROOT

DASHBOARD = json.loads((ROOT / "k8s/grafana/sparsight.json").read_text())
METRIC = re.compile(r"\bray_[a-z0-9_]+")
LABELS = {"ray_io_cluster"}
"""Words of queries that look like metrics and are labels."""
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
QUERIES = [
    *EXPRESSIONS,
    *(one["definition"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"),
]
ON_GPU_NODES_ONLY = {"ray_node_gpus_utilization"}
WITH_A_DASHBOARD_ONLY = {"ray_cluster_active_nodes"}
"""Ray's own names that a local Ray without a dashboard does not export."""


def asked() -> set[str]:
    return {name for query in QUERIES for name in METRIC.findall(query)} - LABELS


def exported_by_us() -> set[str]:
    """Names on the endpoint, from the calls that define them: _counter(name), _gauge(name), Histogram(name)."""
    found = set()
    tree = ast.parse((ROOT / "cluster/metrics.py").read_text())
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        kind = getattr(call.func, "id", "")
        if not call.args or not isinstance(call.args[0], ast.Constant):
            continue
        name = str(call.args[0].value).removeprefix("sparsight_")
        match kind:
            case "_counter":
                found.add(f"ray_sparsight_{name}_total")
            case "_gauge":
                found.add(f"ray_sparsight_{name}")
            case "Histogram":
                found |= {f"ray_sparsight_{name}_{end}" for end in ("bucket", "sum", "count")}
    return found


def test_every_metric_of_ours_that_is_asked_for_is_defined() -> None:
    ours = {name for name in asked() if name.startswith("ray_sparsight_")}
    assert (
        len(exported_by_us()) == 12 + 11 + 3
    )  # else definitions have a form that is not read here
    assert ours <= exported_by_us()


def test_every_metric_of_ours_is_shown_and_described() -> None:
    told = (ROOT / "docs/watching.md").read_text()
    for name in exported_by_us():
        if not name.endswith(("_sum", "_count")):
            assert name in asked()
            assert name.removesuffix("_bucket") in told


def test_a_query_has_balanced_brackets_and_knows_its_cluster() -> None:
    for expression in EXPRESSIONS:
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression
        assert 'ray_io_cluster=~"$cluster"' in expression


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def scraped() -> set[str]:
    found = set()
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found |= set(METRIC.findall(answer.read().decode()))
    return found


@contextmanager
def watched() -> Iterator[set[str]]:
    """All names that come by on the endpoint: gauges of a stage are gone when it is."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            seen.update(scraped())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Deadly:
    """A task that ends its actor."""

    key: str = "deadly"

    def run(self, studio: Studio) -> None:
        os._exit(1)


@pytest.mark.ray
@pytest.mark.mettagrid
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_metric_that_is_asked_for_is_on_the_endpoint_after_a_small_study(
    ray_session, store, s3_store, s3_server
) -> None:
    with watched() as seen, Laboratory(store, num_actors=2, study="small") as laboratory:
        laboratory.watch("train")
        (run,) = laboratory.train([replace(TRAINING, seed=77)])
        laboratory.watch("record")
        recording = RecordingConfig(num_episodes=8, episodes_per_shard=4, sites=("lstm.h",))
        plan = plan_recording(store, run.checkpoints[-1].policy_id, FORAGE, recording)
        (manifest,) = laboratory.record([(plan, FORAGE)])
        laboratory.watch("sweep")
        laboratory.sweep(
            manifest.recording_id,
            "lstm.h",
            [SaeConfig(family=BatchTopK(k=4), d_sae=32, samples=8192)],
            split=Split(),
            seed=0,
            target_l0=None,
        )
        laboratory.watch("steer")
        laboratory.make([played(store)])
        s3_store.create("policies/p-0/card.json", b"{}")
        with s3_server.failing("503", times=1, on="GET"):
            s3_store.get("policies/p-0/card.json")
        with s3_server.failing("403", on="GET"), pytest.raises(StoreError):
            s3_store.get("policies/p-0/card.json")
        with pytest.raises(TasksLost):
            laboratory.make([Deadly()])
        wanted = asked() - ON_GPU_NODES_ONLY - WITH_A_DASHBOARD_ONLY
        deadline = time.monotonic() + 60  # Ray exports every ten seconds
        while not wanted <= seen and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not wanted - seen
        # what holds now is still told when Ray has exported more than twice
        seen.clear()
        time.sleep(21)
        gauges = {f"ray_sparsight_{name}" for name in ("actors_present", "tasks_waiting")}
        assert gauges <= seen
