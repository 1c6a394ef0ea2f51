"""What a store holds, what is at work on it, and what is still missing.

    sparsight status ./store
    sparsight status s3://bucket/prefix --json | jq '.recordings[] | select(.state == "unfinished")'

Reads listings and small records, never rows; writes nothing.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster import status
from cluster.pulse import Heard
from cluster.status import RecordingState, StoreState, StudyState
from cluster.store import Store
from jobs.main import run_as_module

MOST_LINES = 20
"""Lines of a table; --json tells all."""


@dataclass(frozen=True, kw_only=True)
class Config:
    place: tyro.conf.Positional[str | None] = None
    """The store, without --store."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""
    json: bool = False
    """Print one JSON object instead of tables; times are seconds since 1970."""

    def __post_init__(self) -> None:
        if self.place is not None and self.store not in ("./store", self.place):
            raise ValueError(f"two stores: {self.place} and --store {self.store}; name one")


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and prints."""
    config = tyro.cli(Config, args=list(arguments), prog="sparsight status", description=__doc__)
    state = status.read(Store.open(config.place or config.store))
    if config.json:
        print(json.dumps(asdict(state), indent=2))
    else:
        show(Console(highlight=False), state)


def show(console: Console, state: StoreState) -> None:
    """The state for people: what is whole as counts, what is not one by one."""
    _print_holdings(console, state)
    left = [one for one in state.recordings if one.state != "finished"]
    _print_some(
        console,
        ("unfinished recording", "policy", "shards", "last shard", "state"),
        [_recording_row(one) for one in left],
    )
    _print_some(
        console,
        ("study", "state", "passed", "no artifact yet", "W&B letters to send"),
        [_study_row(one) for one in state.studies],
    )
    _print_some(
        console,
        ("job", "at work on", "stage", "tasks", "for", "last heard", "on"),
        [_job_row(one) for one in (*state.running, *state.silent)],
    )
    _print_some(
        console,
        ("set aside", "stage", "since", "cause"),
        [(one.task, one.stage, _ago(one.at_s), one.cause) for one in state.quarantined],
    )


def _print_holdings(console: Console, state: StoreState) -> None:
    finished = [one for one in state.recordings if one.state == "finished"]
    rows = sum(one.rows or 0 for one in finished)
    shards = sum(one.shards_done for one in finished)
    left = len(state.recordings) - len(finished)
    lines = {
        "store": state.store,
        "policies": f"{state.policies:,}",
        "recordings": f"{len(finished):,} finished with {rows:,} rows in {shards:,} shards, {left:,} not",
        "sweeps": f"{state.sweeps:,}",
        "dictionaries": f"{state.dictionaries:,}",
        **{kind: f"{count:,}" for kind, count in state.tables.items()},
    }
    for name, value in lines.items():
        console.print(f"{name:<16}{value}", markup=False, soft_wrap=True)


def _print_some(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(*headings, box=SIMPLE_HEAD)
    table.columns[0].no_wrap = True  # ids are to be copied
    for row in rows[:MOST_LINES]:
        table.add_row(*row)
    if (more := len(rows) - MOST_LINES) > 0:
        table.add_row(f"and {more:,} more: --json")
    console.print(table, markup=False)


def _recording_row(one: RecordingState) -> tuple[str, ...]:
    done = f"{one.shards_done:,}" + ("" if one.shards is None else f" of {one.shards:,}")
    state: str = one.state
    if one.problem:
        state = f"unreadable: {one.problem}"
    elif one.quarantined:
        shown = ", ".join(one.quarantined[:3])
        state = f"{len(one.quarantined):,} shards set aside: {shown}"
    elif one.shards_done == one.shards:
        state = "every shard is there; wants its commit"
    return (
        one.recording,
        one.policy or "",
        done,
        "" if one.last_shard_s is None else _ago(one.last_shard_s),
        state,
    )


def _study_row(one: StudyState) -> tuple[str, ...]:
    state = "finished" if one.is_finished else "unfinished"
    if one.running:
        state = "at work" if not one.is_finished else "finished, at work again"
    return (
        one.study,
        state,
        ", ".join(one.passed) if one.stages_known else "stages are not known",
        ", ".join(one.pending),
        str(one.letters_unsent or ""),
    )


def _job_row(one: Heard) -> tuple[str, ...]:
    beat = one.beat
    silent = "" if one.is_fresh else "silent for "
    return (
        beat.job,
        beat.study or "",
        beat.stage,
        f"{beat.done:,} of {beat.total:,}" if beat.total else "",
        _span(time.time() - beat.started_s),
        f"{silent}{_span(one.age_s)}",
        f"{beat.host} pid {beat.pid}",
    )


def _ago(at_s: float) -> str:
    return f"{_span(time.time() - at_s)} ago"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))


if __name__ == "__main__":
    run_as_module("status")
