"""`sparsight recordings`: what it says of finished, sampled, unfinished and damaged recordings."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from cluster import recordings
from cluster.recordings import Plan, ShardPlan
from cluster.store import Store
from interp.sampling import Reservoir
from jobs.main import main

NUM_ROWS = 2000
RESERVOIR = Reservoir(rows=200, label_share=0.5, salt="s")


def make_plan(**config: object) -> Plan:
    shards = tuple(ShardPlan(shard=f"s{index:05d}", env_seeds=(index,)) for index in range(3))
    return Plan(
        config={
            "world": {"name": "toy"},
            "labels": {"often": "State: often.", "rare": "State: rarely."},
            "site_widths": {"h": 1},
            "steps": {"kind": "EveryStep", "every": 1},
            "first_env_seed": 0,
            "num_episodes": 3,
            **config,
        },
        inputs={"policy": "p-0123456789abcdef"},
        shards=shards,
    )


def make_table(shard: ShardPlan) -> pa.Table:
    row = np.arange(NUM_ROWS)
    return pa.table(
        {
            "env_seed": pa.array(np.full(NUM_ROWS, shard.env_seeds[0])),
            "agent": row % 4,
            "t": row // 4,
            "label.often": row % 4 == 0,
            "label.rare": row % 400 == 0,
            "site.h": pa.array([b"ab"] * NUM_ROWS, pa.binary(2)),
        }
    )


def write(store: Store, plan: Plan, *, num_shards: int = 3) -> None:
    recordings.begin(store, plan)
    for shard in plan.shards[:num_shards]:
        table = make_table(shard)
        sampled = "sampling" in plan.config
        table = RESERVOIR.sample(table) if sampled else table
        recordings.write_shard(store, plan, shard.shard, table)


@pytest.fixture
def ask(store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def ask(*arguments: str) -> str:
        assert main(["recordings", *arguments, "--store", store.url]) == 0
        return capsys.readouterr().out

    return ask


def line_of(text: str, word: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(word)]
    return line.split()


def test_every_recording_is_listed_with_its_state(store, ask):
    whole, begun = make_plan(), make_plan(step=1)
    write(store, whole)
    recordings.commit(store, whole)
    write(store, begun, num_shards=2)
    out = ask("list")
    policy = "p-0123456789abcdef"
    assert line_of(out, whole.recording_id)[1:] == [policy, "6,000", "3", "finished"]
    assert line_of(out, begun.recording_id)[1:] == [policy, "3", "2/3", "shards"]
    assert len([line for line in out.splitlines() if line.split() == ["h"]]) == 2


def test_finished_recording_is_shown_with_exact_base_rates(store, ask):
    plan = make_plan()
    write(store, plan)
    manifest = recordings.commit(store, plan)
    out = ask("show", plan.recording_id)
    assert line_of(out, "digest") == ["digest", manifest.digest]
    assert line_of(out, "rows") == ["rows", "6,000"]
    assert line_of(out, "often") == ["often", "1,500", "25.0000%"]
    assert line_of(out, "rare") == ["rare", "15", "0.2500%"]


def test_base_rates_of_a_sample_are_estimated_and_said_to_be(store, ask):
    sampling = {**asdict(RESERVOIR), "episodes_per_shard": 1}
    plan = make_plan(sampling=sampling)
    write(store, plan)
    recordings.commit(store, plan)
    out = ask("show", plan.recording_id)
    assert "estimated base rate" in out
    assert "at most 200 rows a shard of 1 episodes" in out
    name, kept, rate = line_of(out, "rare")
    assert (name, kept) == ("rare", "15")
    assert abs(float(rate.rstrip("%")) - 0.25) < 0.05
    assert abs(float(line_of(out, "often")[2].rstrip("%")) - 25) < 6


def test_unfinished_recording_is_shown_with_what_is_missing(store, ask):
    plan = make_plan()
    write(store, plan, num_shards=1)
    out = ask("show", plan.recording_id)
    assert line_of(out, "missing shards")[2:] == ["s00001,", "s00002"]
    assert "base rate" not in out


def test_verification_ends_at_a_damaged_recording(store, ask, capsys):
    plan = make_plan()
    write(store, plan)
    key = recordings.commit(store, plan).receipts[1].key
    assert f"{plan.recording_id}: 6,000 rows in 3 shards" in ask("verify", plan.recording_id)
    content = bytearray(store.get(key))
    content[len(content) // 2] ^= 1
    store.backend.replace(key, bytes(content))
    with pytest.raises(SystemExit) as exit_:
        main(["recordings", "verify", plan.recording_id, "--store", store.url])
    assert exit_.value.code == 2
    assert f"{key}: sha256 differs" in capsys.readouterr().err


def test_garbage_is_shown_and_removed_only_when_asked(store, ask):
    plan = make_plan()
    write(store, plan, num_shards=2)
    assert ask("gc") == "no garbage\n"
    shown = ask("gc", "--unfinished", plan.recording_id)
    assert "nothing was removed: add --delete" in shown
    assert recordings.known_ids(store) == [plan.recording_id]
    ask("gc", "--unfinished", plan.recording_id, "--delete")
    assert recordings.known_ids(store) == []
