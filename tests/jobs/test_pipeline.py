"""The main job, end to end and small: what it writes, that actors and batches change nothing, and that it resumes."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.laboratory import Laboratory
from cluster.store import Store
from interp.study import Study
from jobs.recipes import DemoPipelineConfig
from tests.jobs.small_study import run_quietly, tables, tiny

pytestmark = [pytest.mark.mettagrid, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

CONCEPT_COLUMNS = (
    "latent label kind auroc auroc_lo auroc_hi f1 base_rate p_value q_value neuron_auroc pca_auroc "
    "random_init_auroc n_episodes description"
).split()
EFFECT_COLUMNS = (
    "concept latent site mode dose outcome base edited difference lo hi p_value q_value "
    "random_direction_percentile n_episodes"
).split()


def test_the_study_says_what_it_is_made_of(finished: tuple[DemoPipelineConfig, Study]) -> None:
    config, study = finished
    store = Store.open(config.store)
    written = json.loads(store.get("studies/tiny/study.json"))
    assert Study.from_json(json.dumps(written)) == study
    steps = [policy["step"] for policy in written["policies"]]
    assert steps == [number * 4096 for number in (0, 1, 2, 4, 8)]
    assert written["policies"][0]["n_episodes"] == 10
    assert {trial["config"]["family"]["name"] for trial in written["sweep"]} == {
        "batch_topk",
        "relu_l1",
    }
    assert written["recordings"][0]["rows"] == 40 * 256 * 4
    for kind in ("concepts", "effects", "lineages", "windows", "groups", "findings"):
        assert written[kind], kind
        for table_id in written[kind]:
            assert store.exists(f"{kind}/{table_id}.parquet")
    assert set(written["wall_s"]) >= {
        "train",
        "record",
        "sweep",
        "score",
        "discover",
        "steer",
        "evolve",
        "report",
    }


def test_tables_have_the_columns_that_readers_rely_on(
    finished: tuple[DemoPipelineConfig, Study],
) -> None:
    config, study = finished
    store = Store.open(config.store)
    concepts = pq.read_table(store.local_path(f"concepts/{study.concepts[0]}.parquet"))
    effects = pq.read_table(store.local_path(f"effects/{study.effects[0]}.parquet"))
    assert set(concepts.column_names) >= set(CONCEPT_COLUMNS)
    assert set(effects.column_names) >= set(EFFECT_COLUMNS)
    assert effects.num_rows > 0
    no_op = [row for row in effects.to_pylist() if row["dose"] == 0]
    assert no_op
    assert all(row["difference"] == 0 and row["lo"] == 0 and row["hi"] == 0 for row in no_op)


def test_the_report_is_one_file(finished: tuple[DemoPipelineConfig, Study]) -> None:
    config, study = finished
    html = Store.open(config.store).get("studies/tiny/report.html").decode()
    assert study.policies[-1].policy_id in html
    assert "<script src" not in html
    found = pq.read_table(
        Store.open(config.store).local_path(f"findings/{study.findings[0]}.parquet")
    )
    assert found.num_rows > 0
    section = html[html.index('id="unlabelled"') : html.index('id="groups"')]
    assert section.count('<tr class="finding">') == found.num_rows


def test_one_actor_and_other_batches_give_the_same_bytes(
    finished: tuple[DemoPipelineConfig, Study], tmp_path: Path
) -> None:
    config, study = finished
    other = tiny(tmp_path / "store", actors=1, worlds_per_actor=5)
    again = run_quietly(other)
    assert replace(again, wall_s=study.wall_s) == study
    left, right = tables(Store.open(config.store)), tables(Store.open(other.store))
    assert left.keys() == right.keys()
    assert [key for key in left if left[key] != right[key]] == []


def test_a_second_run_finds_everything(
    finished: tuple[DemoPipelineConfig, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, study = finished

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a finished study needs no Ray")

    monkeypatch.setattr(Laboratory, "start_ray", forbidden)
    assert replace(run_quietly(config), wall_s=study.wall_s) == study


def test_a_lost_table_is_made_again_and_nothing_else(
    finished: tuple[DemoPipelineConfig, Study],
) -> None:
    config, study = finished
    store = Store.open(config.store)
    before = tables(store)
    for suffix in ("parquet", "json"):
        store.local_path(f"concepts/{study.concepts[0]}.{suffix}").unlink()
    run_quietly(config)
    assert tables(store) == before
