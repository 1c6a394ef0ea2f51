"""A sweep on W&B: a run a trial in one group, a table of all, and the way from the recording to what was kept."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from cluster import recordings
from cluster.recordings import Plan, ShardPlan
from cluster.search import SearchResult
from cluster.store import Store
from cluster.tracking import letters
from cluster.tracking.mirror import Mirror
from interp.study import DictionaryEntry
from jobs.sync import main as sync
from tests.fakes.wandb_server import WandbServer

pytestmark = pytest.mark.slow
GROUP = "h-0123"
KEPT = DictionaryEntry(
    dict_id="d-1", d_in=4, d_sae=8, family="topk", fvu=0.25, l0=4.0, dead_fraction=0.0
)


def trial(number: int, fvu: float, *, is_whole: bool = True) -> dict[str, object]:
    return {
        "site": "lstm.h",
        "seed": number,
        "family.name": "topk",
        "family": json.dumps({"k": 4}),
        "d_sae": 8,
        "lr": 1e-3,
        "fvu": fvu,
        "l0": 4.0,
        "dead_fraction": 0.0,
        "coverage": 0.5 if is_whole else float("nan"),
        "is_whole": is_whole,
        "trial_s": 1.0,
        "curve.step": [10, 20],
        "curve.fvu": [0.9, fvu],
        "curve.loss": [float("nan"), 2.0],
    }


@pytest.fixture
def searched(store: Store) -> tuple[str, SearchResult]:
    shards = (ShardPlan(shard="s0", env_seeds=(1,)),)
    config = {"site_widths": {"lstm.h": 4}, "num_episodes": 1}
    plan = Plan(config=config, inputs={}, shards=shards)
    recordings.begin(store, plan)
    recordings.write_shard(store, plan, "s0", pa.table({"env_seed": [1]}))
    recordings.commit(store, plan)
    for name in ("config.json", "weights.safetensors", "card.json"):
        store.create(f"dictionaries/d-1/{name}", name.encode())
    result = SearchResult(
        search_id=GROUP,
        trials=pa.Table.from_pylist([trial(0, 0.5, is_whole=False), trial(1, 0.25)]),
        front=(1,),
        chosen=1,
        rule="lowest FVU",
        entry=KEPT,
        stability=None,
    )
    return plan.recording_id, result


def mirrored(store: Store, mode, recording_id: str, result: SearchResult) -> str:
    with Mirror.open(store, GROUP, mode, say=lambda line: None) as mirror:
        mirror.post(letters.search_letters(store, result, recording_id=recording_id))
        return mirror.close(wait_s=60)


def test_trials_of_a_sweep_are_a_group_with_curves_a_table_and_lineage(
    wandb_server: WandbServer, store: Store, searched, capsys
) -> None:
    recording_id, result = searched
    assert mirrored(store, "offline", recording_id, result) == "wandb: pending (4)"
    assert not wandb_server.model.runs
    sync(["--store", store.url])
    assert "wandb: synced" in capsys.readouterr().out

    model = wandb_server.model
    assert {(run["group"], run["state"]) for run in model.runs.values()} == {(GROUP, "finished")}
    assert sorted(run["jobType"] for run in model.runs.values()) == [
        "record",
        "sae",
        "sae",
        "sweep",
    ]
    first, second = (model.run(f"trial {number}: topk lstm.h") for number in (0, 1))
    assert [row["fvu"] for row in second["_history"]] == [0.9, 0.25]
    assert second["_config"]["lr"]["value"] == 1e-3
    assert first["_summary"]["is_whole"] is False
    (recording,), (dictionary,) = model.versions(recording_id), model.versions("d-1")
    assert second["_inputs"] == [recording]
    sweep = model.run(f"sweep {GROUP}")
    assert sweep["_inputs"] == [recording]
    assert dictionary in sweep["_outputs"]  # beside the table, which is an artifact as well
    (table,) = (c for name, c in sweep["_files"].items() if name.startswith("media/table"))
    shown = json.loads(table)
    kept = shown["columns"].index("kept")
    assert [row[kept] for row in shown["data"]] == [False, True]

    requests = len(wandb_server.requests)
    assert mirrored(store, "online", recording_id, result) == "wandb: synced"
    assert len(wandb_server.requests) == requests + 1  # is it there? nothing else
    changed = replace(result, rule="another")
    assert mirrored(store, "online", recording_id, changed) == "wandb: synced"
    assert len(model.runs) == 4


def test_every_kind_of_table_has_a_place_in_the_order_of_delivery() -> None:
    assert set(letters.STAGE_OF.values()) <= set(letters.STAGES)
