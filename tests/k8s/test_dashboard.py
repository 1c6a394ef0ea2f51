"""The dashboard and the alarms ask for nothing that is not exported: names, labels, and values of labels."""

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
from pathlib import Path

import pytest
import ray
import yaml

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
SAMPLE = re.compile(r"^(ray_[a-z0-9_]+)(?:\{(.*)\})? ", re.MULTILINE)
PAIR = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GIVEN_BY_PROMETHEUS = {"ray_io_cluster", "instance"}
"""Labels that no endpoint has: PodMonitors add the first (tested below), Prometheus the second for whom it asks."""
ALARMS = [
    query.replace("\\|", "|")
    for query in re.findall(
        r"^\| `(.+?)` \|",
        (ROOT / "docs/operations.md").read_text().split("Worth an alarm")[1],
        re.MULTILINE,
    )
]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
QUERIES = [
    *EXPRESSIONS,
    *(one["definition"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"),
]
NOT_HERE = {
    "ray_node_gpus_utilization",  # of nodes with a GPU; none was at hand
    "ray_cluster_active_nodes",  # told by the dashboard of a head, which the Ray of these tests has not
}
"""Ray's own; looked up in the source of the Ray that is installed instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A metric of a query."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]
    """Label, operator, value."""
    grouped_by: frozenset[str]
    """Labels that the aggregation around it keeps."""
    query: str

    @property
    def labels(self) -> set[str]:
        """All that it must have for the query to mean anything."""
        return {label for label, _, _ in self.matchers} | self.grouped_by


def parse(query: str) -> list[Asked]:
    """The metrics of a query of Prometheus, or of a variable: label_values(metric, label)."""
    if variable := re.fullmatch(r"label_values\((ray_\w+), (\w+)\)", query):
        name, label = variable.groups()
        return [Asked(name=name, matchers=(), grouped_by=frozenset({label}), query=query)]
    by = re.findall(r"\bby \(([^)]*)\)", query)
    assert len(by) <= 1, f"only one aggregation is understood here: {query}"
    grouped = frozenset(label.strip() for label in by[0].split(",")) if by else frozenset()
    # labels are named in braces and in by (...); what is left are names of metrics
    rest = re.sub(r"\bby \([^)]*\)", "", query)
    return [
        Asked(
            name=name,
            matchers=tuple(MATCHER.findall(braces or "")),
            grouped_by=grouped,
            query=query,
        )
        for name, braces in re.findall(r"\b(ray_[a-z0-9_]+)(?:\{([^}]*)\})?", rest)
    ]


WANTED = [one for query in [*QUERIES, *ALARMS] for one in parse(query)]


def asked() -> set[str]:
    return {one.name for query in QUERIES for one in parse(query)}


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


def test_a_query_is_taken_apart_into_metrics_and_labels() -> None:
    (bucket,) = parse(
        'histogram_quantile(0.5, sum by (le, s) (rate(ray_a_bucket{x="1",y=~"$z"}[5m])))'
    )
    assert bucket.name == "ray_a_bucket"
    assert bucket.matchers == (("x", "=", "1"), ("y", "=~", "$z"))
    assert bucket.labels == {"le", "s", "x", "y"}
    assert [one.name for one in parse("ray_node_mem_used / ray_node_mem_total > .9")] == [
        "ray_node_mem_used",
        "ray_node_mem_total",
    ]
    (variable,) = parse("label_values(ray_a, stage)")
    assert variable.labels == {"stage"}


def test_a_label_or_a_value_that_no_endpoint_has_is_noticed() -> None:
    seen: Samples = {"ray_a_total": {"stage": {"record"}, "Name": {"CPU"}}}
    for query, problem in {
        "sum by (stage) (ray_a_total)": None,
        'sum by (instance) (ray_a_total{Name="CPU",ray_io_cluster=~"c"})': None,
        "sum by (trial) (ray_a_total)": "has no trial",
        'ray_a_total{run="1"}': "has no run",
        'ray_a_total{Name="GPU"}': 'has no Name="GPU"',
        "ray_b_total": "is not on the endpoint",
    }.items():
        (one,) = parse(query)
        found = refused(one, seen)
        assert (found == []) if problem is None else (problem in found[0]), query


def test_what_is_drawn_is_named_by_labels_that_are_left() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
                for one in parse(target["expr"]):
                    is_kept = label in one.grouped_by or not one.grouped_by
                    assert is_kept, f"{target['expr']} keeps no {label}"


def test_alarms_are_read_from_the_guide() -> None:
    assert len(ALARMS) >= 3
    assert {one.name for query in ALARMS for one in parse(query)} >= {
        "ray_sparsight_tasks_quarantined_total",
        "ray_node_mem_used",
    }


def test_pod_monitors_add_the_label_of_the_cluster() -> None:
    monitors = (ROOT / "k8s/components/monitoring/pod-monitors.yaml").read_text()
    endpoints = [
        endpoint
        for monitor in yaml.safe_load_all(monitors)
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
    ]
    assert len(endpoints) == 4
    for endpoint in endpoints:
        (relabeling,) = endpoint["relabelings"]
        assert relabeling["targetLabel"] == "ray_io_cluster"


def test_metrics_that_cannot_be_seen_here_are_ray_s() -> None:
    agents = Path(ray.__file__).parent / "dashboard"
    source = "".join(path.read_text() for path in agents.rglob("*.py"))
    for name in NOT_HERE:
        assert name.removeprefix("ray_") in source
    asked_of = {one.name: one.labels - GIVEN_BY_PROMETHEUS for one in WANTED}
    assert {name: asked_of[name] for name in NOT_HERE} == {
        "ray_node_gpus_utilization": set(),
        "ray_cluster_active_nodes": {"node_type"},
    }
    assert '"node_type"' in source


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


Samples = dict[str, dict[str, set[str]]]
"""Metric -> label -> values."""


def scraped() -> Samples:
    found: Samples = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            for name, braces in SAMPLE.findall(answer.read().decode()):
                labels = found.setdefault(name, {})
                for label, value in PAIR.findall(braces or ""):
                    labels.setdefault(label, set()).add(value)
    return found


def add(seen: Samples, more: Samples) -> None:
    for name, labels in more.items():
        for label, values in labels.items():
            seen.setdefault(name, {}).setdefault(label, set()).update(values)


def refused(one: Asked, seen: Samples) -> list[str]:
    """What the endpoint has not of what is asked of a metric."""
    if one.name not in seen:
        return [f"{one.name} is not on the endpoint: {one.query}"]
    has = seen[one.name]
    missing = one.labels - has.keys() - GIVEN_BY_PROMETHEUS
    wrong = {
        f'{label}="{value}"'
        for label, operator, value in one.matchers
        if operator == "=" and label in has and value not in has[label]
    }
    return [f"{one.name} has no {what}: {one.query}" for what in sorted(missing | wrong)]


@contextmanager
def watched() -> Iterator[Samples]:
    """All that comes by on the endpoint: gauges of a stage are gone when it is."""
    seen: Samples = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            add(seen, scraped())

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
@pytest.mark.long
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
        wanted = [one for one in WANTED if one.name not in NOT_HERE]
        deadline = time.monotonic() + 60  # Ray exports every ten seconds
        while any(refused(one, seen) for one in wanted) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert [problem for one in wanted for problem in refused(one, seen)] == []
        # two metrics are divided sample by sample: their labels must be the same
        for query in [*EXPRESSIONS, *ALARMS]:
            if " / " in query and not re.search(r"\b(on|ignoring|by) \(", query):
                first, second = parse(query)
                assert seen[first.name].keys() == seen[second.name].keys(), query
        # what holds now is still told when Ray has exported more than twice
        seen.clear()
        time.sleep(21)
        gauges = {f"ray_sparsight_{name}" for name in ("actors_present", "tasks_waiting")}
        assert gauges <= seen.keys()
