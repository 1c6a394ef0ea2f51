"""What the study under faults is compared by: a byte of a finding is a difference, and a second is none."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.store import Store
from cluster.studies import draw_report, report_of, save_study
from cluster.tracking import letters
from interp.study import PolicyEntry, Study
from tests.chaos.comparison import contents, differences

STUDY = Study(
    study="small",
    seeds={"study": 0},
    policies=(
        PolicyEntry(
            policy_id="p-0",
            name="forage-s0",
            run="t-1",
            world="forage",
            step=0,
            return_mean=0.0,
            return_se=0.1,
            n_episodes=10,
        ),
    ),
    random_return=0.5,
    random_returns={"forage": 0.5},
    recordings=(),
    sweep=(),
    dictionaries=(),
    concepts=(),
    effects=(),
    lineages=(),
    windows=(),
    wall_s={},
)
"""Nothing was found in it."""


def filled(folder: Path, *, seconds: float) -> Store:
    """A store with an object of each sort; those that tell of one run only tell of the folder or of the seconds."""
    store = Store.open(folder)
    store.create("recordings/r-1/plan.json", b"plan")
    store.replace("scratch/steering/b-1.npy", b"played")
    store.replace("scratch/training/t-1.pt", folder.name.encode())
    store.replace("studies/small/mirror/sent/a.json", folder.name.encode())
    study = replace(STUDY, wall_s={"train": seconds, "record": 2 * seconds})
    report = report_of(store, study)
    study = replace(
        study, figures=draw_report(store, report), wall_s={**study.wall_s, "report": seconds}
    )
    save_study(store, study)
    letters.write(store, letters.report_letter(store, study))
    return store


@pytest.fixture
def left(tmp_path: Path) -> Store:
    return filled(tmp_path / "left", seconds=0.5)


@pytest.fixture
def right(tmp_path: Path) -> Store:
    return filled(tmp_path / "right", seconds=1234.5)


def compare(left: Store, right: Store) -> list[str]:
    return [said.split(":")[0] for said in differences(contents(left), contents(right))]


def test_what_tells_of_one_run_only_is_no_difference(left: Store, right: Store) -> None:
    assert left.get("studies/small/report.html") != right.get("studies/small/report.html")
    assert compare(left, right) == []


def test_a_byte_of_a_finding_is_a_difference(left: Store, right: Store) -> None:
    right.remove("recordings/r-1/plan.json")
    right.create("recordings/r-1/plan.json", b"plam")
    (said,) = differences(contents(left), contents(right))
    assert said.startswith("recordings/r-1/plan.json: differs from byte 3 on")
    right.replace("scratch/steering/b-2.npy", b"more")
    left.replace("studies/small/figures/more.svg", b"drawn")
    assert compare(left, right) == [
        "recordings/r-1/plan.json",
        "scratch/steering/b-2.npy",
        "studies/small/figures/more.svg",
    ]


def test_a_number_of_the_page_that_is_no_duration_is_a_difference(
    left: Store, right: Store
) -> None:
    for store in (left, right):  # else the letter, whose hash is of another page, is refused
        for key in letters.pending(store, "small"):
            store.replace(key, b'{"stage": "none"}')
    page = right.get("studies/small/report.html")
    assert page.count(b"0.00 \xc2\xb1 0.10") > 0
    right.replace(
        "studies/small/report.html", page.replace(b"0.00 \xc2\xb1 0.10", b"0.00 \xc2\xb1 0.11")
    )
    assert compare(left, right) == ["studies/small/report.html"]


def test_a_stage_more_is_a_difference(left: Store, tmp_path: Path) -> None:
    other = filled(tmp_path / "other", seconds=0.5)
    page = other.get("studies/small/report.html")
    more = b'<tr><td>steer</td><td class="n">0.5</td></tr>'
    other.replace(
        "studies/small/report.html",
        page.replace(b"<tr><td>record</td>", more + b"<tr><td>record</td>"),
    )
    for store in (left, other):
        for key in letters.pending(store, "small"):
            store.replace(key, b'{"stage": "none"}')
    assert compare(left, other) == ["studies/small/report.html"]


def test_a_letter_of_another_page_is_refused(left: Store) -> None:
    left.replace("studies/small/report.html", left.get("studies/small/report.html") + b" ")
    with pytest.raises(ValueError, match=r"says .* but the objects that it names give"):
        contents(left)
