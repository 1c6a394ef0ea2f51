"""The mirror on W&B: what it shows, and that no failure of the server costs what could not be repaired."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cluster.store import Store
from cluster.tracking import letters, mirror
from cluster.tracking.access import WandbError
from cluster.tracking.letters import Letter, OutgoingArtifact, ShownTable
from cluster.tracking.mirror import Courier, Mirror, deliver_pending
from cluster.tracking.service import WandbService
from jobs.sync import main as sync
from tests.conftest import WANDB_CANARY
from tests.fakes.wandb_server import Fault, WandbServer

pytestmark = pytest.mark.slow
CURVE = tuple({"step": step, "fvu": 1.0 / step} for step in (10, 20, 30))


@pytest.fixture
def filled(store: Store) -> Store:
    store.create("policies/p-1/weights", b"weights of p-1")
    store.create("dictionaries/d-1/weights", b"weights of d-1")
    store.replace("studies/demo/figures/a.svg", b"<svg><text>figure a</text></svg>")
    return store


def letter(stage: str, subject: str, **told: Any) -> Letter:
    return Letter(study="demo", stage=stage, subject=subject, name=f"{stage} {subject}", **told)


def artifact(name: str, key: str, kind: str) -> OutgoingArtifact:
    return OutgoingArtifact(name=name, type=kind, files={"weights": key}, aliases=("p-1",))


STUDY = (
    letter("policies", "t-1", logs=(artifact("forage-s0", "policies/p-1/weights", "model"),)),
    letter("sae", "w-1/0", curve=CURVE, config={"k": 16}),
    letter(
        "decompose",
        "d-1",
        summary={"fvu": 0.25},
        uses=("forage-s0:p-1",),
        logs=(artifact("d-1", "dictionaries/d-1/weights", "dictionary"),),
    ),
    letter(
        "report",
        "demo",
        uses=("d-1:latest",),
        pages={"figures/a": "studies/demo/figures/a.svg"},
        tables={
            "concepts": ShownTable(columns=("label", "auroc"), rows=(("near", 0.9), ("far", None)))
        },
    ),
)


@contextmanager
def opened(store: Store, mode: mirror.Mode = "auto") -> Iterator[tuple[Mirror, list[str]]]:
    said: list[str] = []
    with Mirror.open(store, "demo", mode, say=said.append) as found:
        yield found, said


def mirrored(store: Store, mode: mirror.Mode = "auto", *, wait_s: float = 60.0) -> str:
    """The last line of a job that tells of the whole study."""
    with opened(store, mode) as (found, _):
        found.post(STUDY)
        return found.close(wait_s=wait_s)


def delivered(store: Store) -> list[str]:
    with WandbService() as service:
        return deliver_pending(Courier(store, service), "demo")


def check_whole(server: WandbServer) -> None:
    """Everything of the study is on the server, once."""
    model = server.model
    assert {run["jobType"]: (run["group"], run["state"]) for run in model.runs.values()} == {
        one.stage: ("demo", "finished") for one in STUDY
    }
    assert len(model.runs) == len(STUDY)
    assert all(key[:2] == ("acme", "sparsight") for key in model.runs)
    trial = model.run("sae w-1/0")
    rows = [(row["_step"], row["fvu"]) for row in trial["_history"]]
    assert rows == [(row["step"], row["fvu"]) for row in CURVE]
    assert trial["_config"]["k"]["value"] == 16
    (policy,), (dictionary,) = model.versions("forage-s0"), model.versions("d-1")
    assert model.content(dictionary) == {"weights": b"weights of d-1"}
    assert model.content(policy) == {"weights": b"weights of p-1"}
    assert model.run("decompose d-1")["_inputs"] == [policy]
    assert model.run("decompose d-1")["_outputs"] == [dictionary]
    assert model.run("decompose d-1")["_summary"]["fvu"] == 0.25
    assert model.run("report demo")["_inputs"] == [dictionary]
    media = model.run("report demo")["_files"]
    pages = [content for name, content in media.items() if name.startswith("media/html")]
    assert [b"figure a" in page for page in pages] == [True]
    (table,) = (content for name, content in media.items() if name.startswith("media/table"))
    assert json.loads(table)["data"] == [["near", 0.9], ["far", None]]


def test_every_table_has_its_place_in_the_order_of_delivery() -> None:
    stages = [letters.STAGE_OF[kind] for kind in letters.STAGE_OF]
    assert set(stages) <= set(letters.STAGES)
    keys = [Letter(study="s", stage=stage, subject="t-0", name="t-0").key for stage in stages]
    assert all(key.startswith("studies/s/mirror/") for key in keys)


def test_a_study_is_mirrored_with_its_lineage_and_only_once(
    wandb_server: WandbServer, filled: Store
) -> None:
    assert mirrored(filled) == "wandb: synced"
    check_whole(wandb_server)
    requests = len(wandb_server.requests)
    assert mirrored(filled) == "wandb: synced"
    assert len(wandb_server.requests) == requests + 1  # is it there?
    assert letters.pending(filled, "demo") == []


def test_rows_are_shown_while_a_trial_trains_and_not_twice(
    wandb_server: WandbServer, filled: Store
) -> None:
    with opened(filled) as (found, _):
        for row in CURVE[:2]:
            found.feed(STUDY[1], row)
        deadline = time.monotonic() + 30
        while not any(run["jobType"] == "sae" for run in wandb_server.model.runs.values()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert wandb_server.model.run("sae w-1/0")["state"] == "running"
        found.post(STUDY)
        assert found.close() == "wandb: synced"
    check_whole(wandb_server)


def test_a_server_that_is_not_there_costs_five_seconds_and_one_line(
    wandb_server: WandbServer,
    filled: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as away:
        away.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        start = time.monotonic()
        with opened(filled) as (found, said):
            assert time.monotonic() - start < 5
            assert said == [
                "wandb: 127.0.0.1:9 does not answer ([Errno 111] Connection refused); going on offline, "
                "`sparsight sync` delivers later"
            ]
            found.post(STUDY)
            assert found.close() == "wandb: pending (4)"
        with pytest.raises(WandbError, match="nothing was delivered"):
            sync(["--store", filled.url])
    sync(["--store", filled.url])
    assert capsys.readouterr().out.splitlines()[-1] == "wandb: synced"
    check_whole(wandb_server)


def test_a_server_that_never_answers_is_given_up_at_once(
    wandb_server: WandbServer, filled: Store
) -> None:
    with wandb_server.failing(30.0):
        start = time.monotonic()
        with opened(filled) as (found, said):
            assert time.monotonic() - start < 5
            assert len(said) == 1
            found.post(STUDY)
            assert found.close() == "wandb: pending (4)"


@pytest.mark.parametrize(
    ("fault", "on"),
    [
        (403, "UpsertBucket"),
        (403, "file_stream"),
        (403, "CreateArtifactFiles"),
        (404, "PUT /storage"),
        *(
            pytest.param(fault, on, marks=pytest.mark.chaos)
            for fault, on in (
                (500, "CommitArtifact"),
                (503, "UpsertBucket"),
                ("drop", "CreateArtifact"),
                ("drop", "file_stream"),
                (60.0, "UseArtifact"),
                (60.0, "PUT /storage"),
            )
        ),
    ],
)
def test_a_failing_server_leaves_letters_that_are_delivered_later(
    wandb_server: WandbServer,
    filled: Store,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    on: str,
) -> None:
    monkeypatch.setattr(mirror, "DELIVER_S", 4.0)
    monkeypatch.setattr("cluster.tracking.service.START_S", 4.0)
    with wandb_server.failing(fault, on=on):
        assert mirrored(filled, wait_s=20.0).startswith("wandb: pending (")
    assert letters.pending(filled, "demo") != []
    monkeypatch.undo()
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    monkeypatch.setenv("WANDB_API_KEY", WANDB_CANARY)
    assert delivered(filled) == []
    check_whole(wandb_server)


def test_a_lost_receipt_makes_nothing_double(wandb_server: WandbServer, filled: Store) -> None:
    assert mirrored(filled) == "wandb: synced"
    for key in filled.list("studies/demo/mirror/sent"):
        filled.local_path(key).unlink()
    assert mirrored(filled) == "wandb: synced"
    assert len(wandb_server.model.versions("d-1")) == 1
    assert len(wandb_server.model.run("sae w-1/0")["_history"]) == len(CURVE)


def test_without_a_key_there_is_no_mirror(
    wandb_server: WandbServer, filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    assert mirrored(filled) == "wandb: off (no key)"
    assert filled.list("studies/demo/mirror") == []
    assert wandb_server.requests == []
    with pytest.raises(ValueError, match=r"--wandb online: no key for 127\.0\.0\.1"):
        mirrored(filled, "online")
    assert mirrored(filled, "offline") == "wandb: pending (4)"


def test_online_refuses_to_begin_without_a_server(
    filled: Store, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(WandbError, match="use --wandb offline"):
        mirrored(filled, "online")


def test_disabled_says_so_and_leaves_nothing(wandb_server: WandbServer, filled: Store) -> None:
    assert mirrored(filled, "disabled") == "wandb: disabled"
    assert filled.list("studies/demo/mirror") == []


def test_the_key_is_in_no_file_of_the_store(wandb_server: WandbServer, filled: Store) -> None:
    mirrored(filled)
    assert any("Basic" in request.authorization for request in wandb_server.requests)
    assert all(WANDB_CANARY.encode() not in filled.get(key) for key in filled.list())


def test_a_damaged_letter_is_named_and_holds_up_nothing(
    wandb_server: WandbServer, filled: Store
) -> None:
    filled.replace("studies/demo/mirror/00-s-1.json", b'{"study": "demo"}')
    with opened(filled) as (found, _):
        found.post(STUDY)
        assert found.close() == "wandb: pending (1)"
        assert found.reason is not None
        assert "studies/demo/mirror/00-s-1.json: not a letter" in found.reason
    check_whole(wandb_server)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("dryrun", "wandb: pending (4)"),
        (" OFFLINE", "wandb: pending (4)"),
        ("disabled", "wandb: disabled"),
    ],
)
def test_the_mode_of_the_environment_is_obeyed_as_the_client_understands_it(
    wandb_server: WandbServer,
    filled: Store,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    line: str,
) -> None:
    monkeypatch.setenv("WANDB_MODE", said)
    assert mirrored(filled) == line
    assert wandb_server.requests == []
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(ValueError, match="WANDB_MODE is 'onlin'"):
        mirrored(filled)


def test_rows_that_come_too_fast_leave_no_hole(
    wandb_server: WandbServer, filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "MAX_WAITING", 5)
    curve = tuple({"step": step, "fvu": 1.0 / step} for step in range(1, 200))
    trial = letter("sae", "w-1/0", curve=curve)
    with opened(filled) as (found, _):
        for row in curve:
            found.feed(trial, row)
        found.post([trial])
        assert found.close() == "wandb: synced"
    rows = wandb_server.model.run("sae w-1/0")["_history"]
    assert [row["_step"] for row in rows] == list(range(1, 200))


def test_what_a_study_finds_anew_takes_the_place_of_what_was_not_delivered(
    wandb_server: WandbServer, filled: Store
) -> None:
    with opened(filled, "offline") as (found, _):
        found.post([letter("report", "demo", summary={"content": "old"})])
        found.post([letter("report", "demo", summary={"content": "new"})])
        assert found.close() == "wandb: pending (1)"
    assert delivered(filled) == []
    assert wandb_server.model.run("report demo")["_summary"]["content"] == "new"
    with opened(filled) as (found, _):
        found.post([letter("report", "demo", summary={"content": "newest"})])
        assert found.close() == "wandb: synced"
    assert wandb_server.model.run("report demo")["_summary"]["content"] == "newest"


def test_one_process_at_a_time_delivers_a_study(wandb_server: WandbServer, filled: Store) -> None:
    with opened(filled) as (first, said), opened(filled) as (second, said_second):
        assert said == []
        assert said_second == [
            "wandb: another process delivers study demo now; this job delivers nothing"
        ]
        second.post(STUDY)
        assert second.close() == "wandb: pending (4)"
        with pytest.raises(WandbError, match="another process delivers study demo now"):
            sync(["--store", filled.url])
        assert first.close() == "wandb: synced"
    check_whole(wandb_server)


def test_a_store_without_letters_is_not_called_synced(
    wandb_server: WandbServer, store: Store
) -> None:
    with pytest.raises(ValueError, match="has nothing to mirror"):
        sync(["--store", store.url])


def test_a_process_that_hangs_is_not_waited_for(wandb_server: WandbServer) -> None:
    with WandbService() as service:
        with pytest.raises(FileNotFoundError):
            service.ask("describe_artifact", path="acme/p/none:v0", deadline_s=60)
        assert service._process is not None
        os.kill(service._process.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(WandbError, match="no answer to describe_artifact within 2 s"):
            service.ask("describe_artifact", path="x" * 300_000, deadline_s=2)
        assert time.monotonic() - start < 5
