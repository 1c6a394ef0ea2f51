"""What a person sees of a run of tasks: rates, troubles, and who is at what."""

import io
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from cluster.pool import Result
from cluster.recordings import Receipt
from jobs import progress
from jobs.progress import Reporter, Stage


@dataclass(frozen=True)
class Task:
    key: str


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def finished(key: str, actor: str, rows: int = 1000) -> Result[Any]:
    receipt = Receipt(
        shard=key,
        plan_id="plan-0",
        key=f"recordings/r-0/data/{key}",
        sha256="",
        bytes=9,
        rows=rows,
        schema="",
    )
    return Result(task=Task(key), value=receipt, attempts=1, actor=actor, node="n" * 40, run_s=1.0)


def text_of(stage: Stage) -> str:
    output = io.StringIO()
    table = stage.actors_table()
    assert table is not None
    Console(file=output, width=120).print(table)
    return output.getvalue()


def test_a_log_gets_a_line_every_few_seconds_with_rate_and_time_left(clock) -> None:
    output = io.StringIO()
    with Reporter(Console(file=output, width=200)).stage("record") as stage:
        stage.actor_back("a0")
        for number in range(1, 5):
            stage.submitted(f"r-0/s{number}", "a0")
            clock[0] += 3
            stage.done(finished(f"r-0/s{number}", "a0"))
            stage.update(number, 8, "r-0/s")
    assert output.getvalue().splitlines() == [
        "record ...",
        "record: 2 of 8  333 agent-steps/s (mean 333), 0:00:18 left",
        "record: 4 of 8  333 agent-steps/s (mean 333), 0:00:12 left",
    ]


def test_the_rate_is_that_of_the_last_half_minute(clock) -> None:
    stage = Stage("record", Console(file=io.StringIO()))
    stage.actor_back("a0")
    for rows in (100_000, 3_000):
        stage.submitted("r-0/s", "a0")
        clock[0] += 31
        stage.done(finished("r-0/s", "a0", rows))
    assert stage._summary(clock[0]) == "100 agent-steps/s (mean 1,661)"


def test_every_actor_is_shown_with_what_it_has_in_hand(clock) -> None:
    stage = Stage("record", Console(file=io.StringIO()))
    for actor in ("a0", "a1"):
        stage.actor_back(actor)
    stage.submitted("r-0/s00000", "a0")
    stage.submitted("r-0/s00001", "a1")
    stage.submitted("r-0/s00002", "a0")
    clock[0] += 2
    stage.done(finished("r-0/s00000", "a0"))
    stage.actor_lost("a1", OSError("gone"))
    lines = text_of(stage).splitlines()
    assert lines[1].split() == ["a0", "nnnnnnnn", "1", "500", "s00002"]
    assert lines[2].split()[-1] == "lost"


def test_troubles_are_named(clock) -> None:
    stage = Stage("record", Console(file=io.StringIO()))
    stage.actor_back("a0")
    for attempt in (1, 2):
        stage.submitted("r-0/s00003", "a0")
        stage.retried("r-0/s00003", attempt, OSError("gone"))
    stage.submitted("r-0/s00003", "a0")
    stage.quarantined("r-0/s00003", OSError("gone"))
    assert stage._summary(clock[0]) == "2 retried, set aside: r-0/s00003"
    assert "s00003" not in text_of(stage)


def test_of_many_actors_the_slowest_and_the_lost_are_shown(clock) -> None:
    stage = Stage("record", Console(file=io.StringIO()))
    for number in range(1000):
        stage.actor_back(f"a{number}")
        stage.submitted(f"r-0/s{number}", f"a{number}")
    clock[0] += 1
    for number in range(1000):
        stage.done(finished(f"r-0/s{number}", f"a{number}", rows=10_000 - number))
    stage.actor_lost("a7", OSError("gone"))
    shown = text_of(stage)
    assert len(shown.splitlines()) == 1 + 16 + 1
    assert "a7 " in shown
    assert "a999" in shown
    assert "and 984 faster ones" in shown


def test_a_terminal_shows_the_bar_and_the_actors(clock) -> None:
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True)
    with Reporter(console).stage("record") as stage:
        stage.actor_back("a0")
        stage.submitted("r-0/s00000", "a0")
        stage.update(0, 8)
        assert stage._bar is not None
        stage._bar.refresh()
    assert "record" in output.getvalue()
    assert "s00000" in output.getvalue()
