"""`sparsight concepts`: what was planted is found from the command line, and shown again from the store."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.recordings import open_manifest
from cluster.results import Question
from cluster.scoring import read_tracks
from cluster.store import Store
from interp.concepts.catalogue import CONCEPT_SCHEMA
from interp.concepts.rivals import CONTROLS
from interp.identity import nulled
from interp.worlds import labels
from jobs.factories import allow_factories
from jobs.main import main
from tests.fakes import planted_recording
from tests.fakes.planted_recording import DICT_ID, HALVES, WALL

pytestmark = pytest.mark.mettagrid
DOCUMENT = Path(__file__).parents[2] / "docs" / "concepts.md"
QUICK = ("--split.held-out-fraction", "0.5", "--findings.groups.num-resamples", "300")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    store = Store.open(tmp_path_factory.mktemp("concepts") / "store")
    return store, planted_recording.record(store)


@pytest.fixture
def ask(planted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")

    def ask(verb: str, *arguments: str) -> tuple[str, str]:
        assert main(["concepts", verb, "--store", planted[0].url, *arguments]) == 0
        said = capsys.readouterr()
        return said.out, said.err

    return ask


def discover(ask, planted, *arguments: str) -> tuple[str, str]:
    return ask("discover", "--recording", planted[1], "--dictionary", DICT_ID, *QUICK, *arguments)


def test_what_was_planted_is_shown_to_people(ask, planted) -> None:
    out, _ = discover(ask, planted)
    assert "5 clusters of latents, 3 with a name; 1 groups, 1 better than their best latent" in out
    wall = next(line for line in out.splitlines() if "wall next to it" in line)
    assert re.search(r"\+\d\.\d +>?0?\.\d+ +spatial +(99|100)% +0\.00", wall), wall
    group = next(line for line in out.splitlines() if line.lstrip().startswith("battery_proximity"))
    assert re.search(
        r"1\.00 \[1\.00, 1\.00\] +0\.6\d +\+0\.3\d \[\+0\.\d\d, \+0\.\d\d\] +yes", group
    ), group
    assert re.search(r"findings/f-\w+\.parquet", out) and re.search(r"groups/g-\w+\.parquet", out)


def test_json_has_every_column_and_nothing_else_on_standard_output(ask, planted) -> None:
    out, err = discover(ask, planted, "--json")
    findings, groups = json.loads(out)
    assert "discover" in err
    assert (findings["kind"], groups["kind"]) == ("findings", "groups")
    (wall,) = [row for row in findings["rows"] if row["latents"] == [WALL]]
    assert wall["type"] == "spatial" and wall["strength"] > 0.7 and wall["evidence"] > 0.95
    assert wall["mean_phi"] is None  # of one latent
    assert sorted(groups["rows"][0]["latents"]) == sorted(HALVES)


def test_tables_are_listed_and_shown_again(ask, planted) -> None:
    first, _ = discover(ask, planted, "--json")
    ids = [table["id"] for table in json.loads(first)]
    again, _ = ask("show", *ids, "--json")
    assert again == first
    listed, _ = ask("show")
    assert all(re.search(rf"{table_id}.*{planted[1]}.*{DICT_ID}", listed) for table_id in ids)
    assert {entry["id"] for entry in json.loads(ask("show", "--json")[0])} >= set(ids)
    assert "groups of latents" in ask("show", ids[1])[0]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_labels_at_lags_are_scored_by_actors_and_shown(ask, planted) -> None:
    asked = ("--recording", planted[1], "--dictionary", DICT_ID, "--split.held-out-fraction", "0.5")
    asked += ("--labels", "wall_proximity", "battery_proximity@within4", "--lags", "-8", "0", "8")
    out, err = ask("score", *asked, "--num-permutations", "199", "--actors", "1", "--json")
    (table,) = json.loads(out)
    assert "12 latents x 2 labels x 3 lags" in err
    assert table["kind"] == "scores" and len(table["rows"]) == 12 * 2 * 3
    wall, soon = [row for row in table["rows"] if row["is_best"]]
    assert (wall["label"], wall["latent"], wall["lag"]) == ("wall_proximity", WALL, 0)
    assert wall["auroc"] > 0.95 and wall["auroc_lo"] > 0.9 and wall["family_p_value"] < 0.05
    assert soon["latent"] in HALVES
    shown, _ = ask("show", table["id"])
    line = next(line for line in shown.splitlines() if "wall_proximity" in line)
    assert re.search(rf" {WALL} +\+0 +(0\.9\d+|1\.000) \[", line), line
    again, said = ask("score", *asked, "--num-permutations", "199", "--json")
    assert again == out and "Ray" not in said, "it is read from the store"


def test_concepts_are_shown_with_what_they_beat_and_the_state(ask, planted) -> None:
    row = {
        "policy_name": "p",
        "concept": "wall:3",
        "latent": 3,
        "label": "wall",
        "kind": "spatial",
        "strength": 0.91,
        "evidence": 0.99,
        "base_rate": 0.25,
        "auroc": 0.91,
        **{f"{name}_auroc": 0.8 for name in CONTROLS},
        "strongest_rival": "probe",
        "lead": -0.02,
        "lead_lo": -0.03,
        "lead_hi": -0.01,
        "beats": "neuron, pca, random_direction, random_init",
        "better": "probe",
        "state_f1": 0.41,
        "state_lo": 0.3,
        "state_hi": 0.5,
        "board_f1": 0.33,
    }
    question = Question("concepts", {"made": "up"}, {})
    question.answer(planted[0], pa.Table.from_pylist([row], schema=CONCEPT_SCHEMA))
    shown = " ".join(ask("show", question.id)[0].split())
    assert "linear probe better; difference of means and sparse probe level" in shown
    assert "-0.020 [-0.03, -0.01]" in shown
    assert "p: state F1 of latents 0.41 [0.30, 0.50]" in shown
    old = Question("concepts", {"made": "earlier"}, {})
    old.answer(planted[0], pa.Table.from_pylist([{"policy_name": "p"}]))
    with pytest.raises(SystemExit):
        main(["concepts", "show", old.id, "--store", planted[0].url])


def refused(planted, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["concepts", *arguments, "--store", planted[0].url])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_asked_is_refused_in_one_line(planted, capsys) -> None:
    here = ("discover", "--dictionary", DICT_ID, "--recording", planted[1])
    cases = (
        (
            ("show", "f-0"),
            r"has no table f-0 of scores, findings, groups, concepts; `sparsight concepts show`",
        ),
        ((*here[:3], "--recording", "r-0"), r"r-0"),
        ((*here, "--labels", "landmark"), r"label 'landmark' is not in recording"),
        ((*here, "--split.held-out-fraction", "0.02"), r"held-out episodes, wanted at least 10"),
    )
    for arguments, message in cases:
        said = refused(planted, capsys, *arguments)
        assert re.search(message, said) and said.startswith("error: ")


def test_what_has_no_value_is_null_at_any_depth() -> None:
    nested = {"a": [float("nan"), {"b": float("inf")}], "c": 1.5, "d": None, "e": "nan"}
    assert nulled(nested) == {"a": [None, {"b": None}], "c": 1.5, "d": None, "e": "nan"}


@pytest.fixture
def own_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module of docs/concepts.md, where it can be imported from; forgotten afterwards."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "my_labels.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_labels", None)
    labels._registry.pop("altar_alone", None)


@pytest.mark.usefixtures("own_label")
def test_a_label_of_five_lines_is_recorded_and_combined_as_documented(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    allow_factories(["my_labels:altar_alone"])
    recording = planted_recording.record(store, labels=("altar_alone", "wall_proximity"))
    plan = open_manifest(store, recording).plan
    assert plan.config["labels"]["altar_alone"] == (
        "State: an altar stands within distance 3 and no enemy is in view."
    )
    tracks = read_tracks(
        store, recording, site=planted_recording.SITE, labels=("altar_alone",), stride_steps=1
    )
    assert 0.01 < tracks.label("altar_alone").mean() < 0.5
    asked = ["concepts", "discover", "--recording", recording, "--dictionary", DICT_ID, *QUICK]
    (documented,) = re.findall(r"--labels (altar_alone .*)", DOCUMENT.read_text())
    asked += ["--factory", "my_labels:altar_alone", "--labels", *shlex.split(documented)]
    capsys.readouterr()
    assert main([*asked, "--json", "--store", store.url]) == 0
    findings, _ = json.loads(capsys.readouterr().out)
    assert len(findings["rows"]) == 5
    labels._registry.pop("altar_alone")
    with pytest.raises(SystemExit):  # who does not name the module does not know the label
        main([*asked[:8], "--labels", "altar_alone", "--store", store.url])
    assert "altar_alone" in capsys.readouterr().err
