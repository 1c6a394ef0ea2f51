"""What a job's entry tells beyond its command line: policies of recordings and dictionaries, studies that name them."""

import threading

import pytest

from cluster import recordings
from cluster.milestones import Milestones
from cluster.provenance import MOST_IDS, look_up
from cluster.results import Question
from cluster.store import Store
from interp.identity import canonical_json
from tests.cluster.test_recordings import make_plan

POLICY = "p-0123456789abcdef"
"""Of `make_plan`."""
DICTIONARY, OTHER = "d-" + "1" * 16, "p-" + "2" * 16


@pytest.fixture
def recording(store: Store) -> str:
    """A recording, a dictionary of it, and a study that names both."""
    plan = make_plan()
    recordings.begin(store, plan)
    store.create(
        f"dictionaries/{DICTIONARY}/card.json",
        canonical_json({"recording": plan.recording_id, "site": "h"}),
    )
    named = {"recordings": [plan.recording_id], "policies": [{"policy_id": OTHER}]}
    store.create("studies/mine/study.json", canonical_json(named))
    store.create("studies/another/study.json", canonical_json({"policies": [OTHER]}))
    return plan.recording_id


def test_a_recording_tells_its_policy_and_its_study(store, recording):
    asked = {"verb": "sweep", "store": store.url, "recordings": recording}
    assert look_up(store, asked).by_kind == {**asked, "policies": POLICY, "study": "mine"}


def test_a_dictionary_and_a_table_tell_what_they_were_made_from(store, recording):
    assert look_up(store, {"dictionaries": DICTIONARY}).by_kind == {
        "dictionaries": DICTIONARY,
        "recordings": recording,
        "policies": POLICY,
    }
    question = Question("concepts", {}, {"dictionary": DICTIONARY, "recording": recording})
    store.create(
        f"concepts/{question.id}.json", canonical_json({"config": {}, "inputs": question.inputs})
    )
    found = look_up(store, {"concepts": question.id}).by_kind
    assert (found["policies"], found["dictionaries"]) == (POLICY, DICTIONARY)


def test_a_study_tells_what_it_has_come_to_so_far(store, recording):
    stones = Milestones(study="young", stages=("open", "decompose"))
    stones.passed(store, "open", [f"policies/{POLICY}/card.json"])
    stones.passed(store, "decompose", [f"dictionaries/{DICTIONARY}/card.json"])
    assert look_up(store, {"study": "young"}).by_kind == {
        "study": "young",
        "policies": POLICY,
        "dictionaries": DICTIONARY,
    }
    assert look_up(store, {"study": "unborn"}).by_kind == {"study": "unborn"}


def test_names_that_were_typed_come_first_and_of_many_some_are_told(store):
    ids = [f"p-{n:016x}" for n in range(2 * MOST_IDS)]
    store.create("studies/large/study.json", canonical_json({"policies": ids}))
    told = look_up(store, {"study": "large", "policies": "s3://b/runs/7"}).by_kind["policies"]
    assert told.split()[:2] == ["s3://b/runs/7", ids[0]]
    assert told.endswith(f"(and {len(ids) + 1 - MOST_IDS} more)")


def test_what_is_not_there_adds_nothing(store):
    asked = {"recordings": "r-" + "3" * 16, "dictionaries": DICTIONARY}
    known = look_up(store, asked)
    assert (known.by_kind, known.problem) == (asked, "")


def test_a_store_that_does_not_answer_is_not_waited_for(store, recording, monkeypatch):
    over = threading.Event()

    def wait(*_):
        over.wait(10)
        raise FileNotFoundError

    monkeypatch.setattr(Store, "get", wait)
    known = look_up(store, {"recordings": recording}, patience_s=0.05)
    over.set()
    assert known.by_kind == {"recordings": recording}
    assert known.problem == "no answer within 0.05 s"


def test_a_store_that_cannot_be_read_is_told_of(store, recording, monkeypatch):
    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(Store, "get", refuse)
    known = look_up(store, {"recordings": recording})
    assert known.by_kind == {"recordings": recording}
    assert known.problem == "not yours"


def test_without_an_id_nothing_is_asked(store, monkeypatch):
    monkeypatch.setattr(Store, "get", None)
    monkeypatch.setattr(Store, "folders", None)
    asked = {"verb": "train-demo", "store": "s3://b/s", "policies": "a/b/c"}
    assert look_up(store, asked).by_kind == asked
