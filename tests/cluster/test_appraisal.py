"""A dictionary judged on a recording of which we know what its latents are about, by task and by command."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from cluster import dictionaries, recordings
from cluster.appraisal import plan_appraisal
from cluster.recordings import Plan, ShardPlan
from cluster.staging import Split
from cluster.store import Store
from interp.concepts.appraisal import AppraisalConfig
from jobs.main import main
from tests.fakes.planted_recording import DICT_ID, SITE, dictionary, record

pytestmark = pytest.mark.mettagrid
LABELS = ("battery_proximity", "wall_proximity")
CONFIG = AppraisalConfig(k=(1, 2), max_pairs=200, num_permutations=99, num_resamples=100)
OPTIONS = (
    *("--figures.k", "1", "2", "--figures.max-pairs", "200", "--figures.num-permutations", "99"),
    *("--figures.num-resamples", "100", "--labels", *LABELS),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    store = Store.open(tmp_path_factory.mktemp("appraisal") / "store")
    return store, record(store, LABELS)


def plan(store: Store, recording_id: str | None, dict_id: str = DICT_ID, labels=LABELS):
    return plan_appraisal(
        store,
        dict_id,
        recording_id=recording_id,
        labels=labels,
        config=CONFIG,
        split=Split(),
        seed=0,
    )


def test_planted_latents_are_found_out_once_and_the_command_prints_what_the_store_has(
    recorded: tuple[Store, str], capsys: pytest.CaptureFixture[str]
) -> None:
    store, recording_id = recorded
    task = plan(store, recording_id)
    assert task.question.find(store) is None
    notes = []
    figures = task.answer(store, lambda *note: notes.append(note))
    assert notes[0][2] == "reading"
    assert notes[-1][:2] == (4, 4)
    found = {(r["figure"], r["label"], r["reads"], r["k"]): r for r in figures.to_pylist()}
    halves = found["splitting", "battery_proximity", "latents", None]
    assert (halves["value"], sorted(halves["latents"])) == (2, [4, 9])  # they take turns
    assert found["splitting gain", "battery_proximity", "latents", None]["lo"] > 0
    assert found["splitting", "wall_proximity", "latents", None]["latents"] == [6]
    assert found["AUROC", "wall_proximity", "latents", 1]["lo"] > 0.95
    assert found["AUROC", "wall_proximity", "latents", 1]["q_value"] < 0.05

    def silent(*_: object) -> None:
        raise AssertionError("it was answered before")

    assert plan(store, recording_id).answer(store, silent).equals(figures)
    where = ("--recording", recording_id, "--store", store.url)
    main(["dictionaries", "evaluate", DICT_ID, *OPTIONS, *where])
    said = capsys.readouterr()
    assert said.out.strip().endswith(task.question.id)
    for heading in ("explained variance", "AUROC of probes", "absorption", "isolation"):
        assert heading in said.out + said.err
    main(["dictionaries", "evaluate", DICT_ID, *OPTIONS, *where, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["evaluation"] == task.question.id
    assert len(told["rows"]) == figures.num_rows


def test_what_cannot_be_judged_is_refused_before_anything_is_read(
    recorded: tuple[Store, str],
) -> None:
    store, recording_id = recorded
    with pytest.raises(ValueError, match="does not tell which recording"):
        plan(store, None)
    with pytest.raises(ValueError, match="label 'combat' is not in recording"):
        plan(store, recording_id, labels=("combat",))
    with pytest.raises(ValueError, match="wall_proximity are named twice"):
        plan(store, recording_id, labels=("wall_proximity", "wall_proximity"))
    with pytest.raises(FileNotFoundError, match="d-nowhere"):
        plan(store, recording_id, dict_id="d-nowhere")
    others = {
        "d-elsewhere": (dictionary(site="encoder"), "site 'encoder' is not in recording"),
        "d-transcoder": (
            replace(dictionary(), target_site="lstm.c", out_mean=torch.zeros(12), out_scale=1.0),
            r"writes 12 of lstm\.c",
        ),
    }
    for dict_id, (other, message) in others.items():
        dictionaries.save(store, dict_id, other, {"recording": recording_id})
        with pytest.raises(ValueError, match=message):
            plan(store, None, dict_id=dict_id)


def test_a_sample_of_a_recording_is_refused(store: Store) -> None:
    config = {
        "site_widths": {SITE: 12},
        "labels": {name: "" for name in LABELS},
        "sampling": {"rows": 5},
    }
    shard = ShardPlan(shard="s00000", env_seeds=tuple(range(12)))
    sampled = Plan(config=config, inputs={"policy": "p-0123456789abcdef"}, shards=(shard,))
    recordings.begin(store, sampled)
    seeds = pa.array(range(12), pa.int64())
    recordings.write_shard(store, sampled, shard.shard, pa.table({"env_seed": seeds}))
    recordings.commit(store, sampled)
    dictionaries.save(store, DICT_ID, dictionary(), {"recording": sampled.recording_id})
    with pytest.raises(ValueError, match="is a sample of at most 5 rows a shard"):
        plan(store, None)
