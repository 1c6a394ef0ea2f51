"""What a dictionary has found that nobody asked for, and what several of its latents tell together.

    sparsight concepts discover --recording r-1234... --dictionary d-1234...
    sparsight concepts discover --recording r-1234... --dictionary d-1234... --labels altar_soon carrying_ore@within8
    sparsight concepts show                      # which tables there are
    sparsight concepts show f-1234... g-1234...
    sparsight concepts show f-1234... --json | jq '.[0].rows[] | {name, type, strength, evidence}'

Latents that fire together are a cluster; held-out episodes give it a name (what stands out in the observations and
labels where it peaks), a type (what explains it best: action, place, time or objects) and a shape. Latents that share a
label are a group, which beats its best latent, or does not. docs/concepts.md tells how to read the tables.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import pyarrow as pa
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster import policies, recordings
from cluster.discovery import Discover, FindingsConfig, check_discover, discover
from cluster.results import Kind, read_table
from cluster.staging import Split
from cluster.store import Store
from interp.concepts.discovery import leading_kind
from interp.identity import nulled, parse_json
from jobs.factories import allow_factories
from jobs.main import run_as_module
from jobs.progress import Reporter

SHOWN: tuple[Kind, ...] = ("findings", "groups", "concepts")
"""Tables that can be shown."""
MOST_LATENTS = 6
"""Latents of a row that are named; how many more there are is said."""


@dataclass(frozen=True, kw_only=True)
class DiscoverVerb:
    """Find groups of latents and concepts without labels in a recording. Prints both tables and their ids.

    Episodes are played again from their recorded actions, in this process. The same question asked again is read from
    the store; what was cut short goes on with the table that is missing.
    """

    recording: str
    """Recording of every step; `sparsight recordings list` shows them."""
    dictionary: str
    """Dictionary of one of its sites; `sparsight dictionaries list` shows them."""
    labels: tuple[str, ...] | None = None
    """Labels that latents are grouped by and that may name them, also made of others ('carrying_ore&!landmark',
    'altar_soon@within8'); by default all that were recorded."""
    split: Split = field(default_factory=Split)
    findings: FindingsConfig = field(default_factory=FindingsConfig)
    factory: tuple[str, ...] = ()
    """package.module:callable of a label of your own that the recording has (docs/concepts.md)."""
    seed: int = 0
    """Of the moments that are compared, permutations and resamples."""
    json: bool = False
    """Print the tables as JSON, and progress on standard error."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Show tables of the store: findings (f-...), groups (g-...), scored concepts (c-...). Without ids, say which there
    are.
    """

    tables: tyro.conf.Positional[tuple[str, ...]] = ()
    """Ids of tables."""
    json: bool = False
    """Print JSON: a list of {id, kind, rows}; what has no value is null."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


class Named(NamedTuple):
    """A table of the store."""

    table_id: str
    kind: Kind


Verb = (
    Annotated[DiscoverVerb, tyro.conf.subcommand("discover")]
    | Annotated[Show, tyro.conf.subcommand("show")]
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, looks or shows."""
    verb = tyro.cli(Verb, args=list(arguments), prog="sparsight concepts", description=__doc__)
    store = Store.open(verb.store)
    match verb:
        case DiscoverVerb() as config:
            allow_factories(config.factory)
            look(store, config)
        case Show(tables=()) as show:
            print_list(store, as_json=show.json)
        case Show() as show:
            wanted = [Named(table_id, kind_of(store, table_id)) for table_id in show.tables]
            print_tables(store, wanted, as_json=show.json)


def look(store: Store, config: DiscoverVerb) -> None:
    """Finds both tables and prints them."""
    plan = recordings.open_manifest(store, config.recording).plan
    asked = Discover(
        policy_name=policies.read_card(store, plan.inputs["policy"]).name,
        recording_id=config.recording,
        dict_id=config.dictionary,
        labels=config.labels,
        split=config.split,
        config=config.findings,
        seed=config.seed,
    )
    check_discover(store, asked)
    store.probe()
    reporter = Reporter(Console(stderr=config.json))
    with reporter.stage("discover") as stage:
        groups, findings = discover(store, asked, stage.update)
    named = sum(not math.isnan(row["strength"]) for row in findings.to_pylist())
    better = sum(groups.column("beats_best").to_pylist())
    reporter.done(
        "discover",
        f"{len(findings)} clusters of latents, {named} with a name; {len(groups)} groups, {better} better than their "
        "best latent",
    )
    tables = [Named(one.id, one.kind) for one in (asked.findings_question, asked.groups_question)]
    print_tables(store, tables, as_json=config.json)


def kind_of(store: Store, table_id: str) -> Kind:
    """FileNotFoundError if the store has no such table."""
    for kind in SHOWN:
        if store.exists(f"{kind}/{table_id}.json"):
            return kind
    raise FileNotFoundError(
        f"store {store.url} has no table {table_id} of {', '.join(SHOWN)}; `sparsight concepts show` lists them"
    )


def print_list(store: Store, *, as_json: bool) -> None:
    """Every table that can be shown. Ids are to be copied, so never cut."""
    found = []
    for kind in SHOWN:
        for key in sorted(key for key in store.list(kind) if key.endswith(".json")):
            note = parse_json(store.get(key), source=key)
            table_id = key.split("/")[1].removesuffix(".json")
            found.append(
                {"id": table_id, "kind": kind, "rows": note["rows"], "inputs": note["inputs"]}
            )
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table(box=SIMPLE_HEAD)
    for heading in ("table", "kind", "rows", "recording", "dictionary"):
        table.add_column(heading, justify="right" if heading == "rows" else "left", overflow="fold")
    for entry in found:
        inputs = entry["inputs"]
        table.add_row(
            entry["id"],
            entry["kind"],
            f"{entry['rows']:,}",
            inputs.get("recording", ""),
            inputs.get("dictionary", ""),
        )
    Console().print(table)


def print_tables(
    store: Store,
    wanted: Sequence[Named],
    *,
    as_json: bool,
    console: Console | None = None,
) -> None:
    """For people, each with its id below it, or as JSON."""
    tables = [(table_id, kind, read_table(store, kind, table_id)) for table_id, kind in wanted]
    if as_json:
        listed = [
            {"id": table_id, "kind": kind, "rows": [nulled(row) for row in table.to_pylist()]}
            for table_id, kind, table in tables
        ]
        print(json.dumps(listed, indent=2, allow_nan=False))
        return
    console = console or Console()
    views = {"findings": findings_view, "groups": groups_view, "concepts": concepts_view}
    for table_id, kind, table in tables:
        console.print(views[kind](table))
        console.print(f"{kind}/{table_id}.parquet", highlight=False)


def findings_view(findings: pa.Table) -> Table:
    """One row per cluster."""
    table = _table(
        "found without labels",
        ("cluster", "name", "strength", "evidence", "type", "share", "q", "shape", "episodes"),
    )
    for row in findings.to_pylist():
        kind, share, q = leading_kind(row)
        is_typed = row["type"] != "undecided"
        table.add_row(
            str(row["cluster"]),
            f"[bold]{escape(row['name'])}[/]\n[dim]{_latents(row['latents'])}[/]",
            _figure(row["strength"], "+.1f"),
            _evidence(row["evidence"]),
            row["type"] if row["type"] == kind else f"{row['type']}\n[dim]first {kind}[/]",
            _figure(share, ".0%") if is_typed else f"[dim]{_figure(share, '.0%')}[/]",
            _figure(q, ".2g"),
            f"{row['shape']}\n[dim]{_profile(row['profile'])}[/]",
            str(row["active_episodes"]),
        )
    table.caption = (
        "strength: log odds of the name at strong moments against others; evidence: 1 - q of it.\n"
        "share, q: of the held-out variance, by the kind that explains most."
    )
    return table


def groups_view(groups: pa.Table) -> Table:
    """One row per group."""
    table = _table(
        "groups of latents",
        (
            "label",
            "latents",
            "F1 together",
            "F1 of the best",
            "gain [95 % interval]",
            "beats its best",
        ),
    )
    for row in groups.to_pylist():
        table.add_row(
            escape(row["label"]),
            _latents(row["latents"]),
            f"{_figure(row['union_f1'], '.2f')} [dim]{_interval(row['union_lo'], row['union_hi'], '.2f')}[/]",
            _figure(row["best_f1"], ".2f"),
            f"{_figure(row['gain'], '+.2f')} [dim]{_interval(row['gain_lo'], row['gain_hi'], '+.2f')}[/]",
            "[bold green]yes[/]" if row["beats_best"] else "no",
        )
    table.caption = "A group beats its best latent if the whole interval of the gain is above 0."
    return table


def concepts_view(concepts: pa.Table) -> Table:
    """One row per latent that stands for a label."""
    table = _table(
        "concepts",
        ("concept", "policy", "kind", "strength", "evidence", "base rate", "description"),
    )
    named = [row for row in concepts.to_pylist() if row["concept"] is not None]
    for row in sorted(named, key=lambda row: (row["policy_name"], -row["auroc"])):
        table.add_row(
            f"[bold]{escape(row['concept'])}[/]",
            escape(row["policy_name"]),
            row["kind"],
            _figure(row["strength"], ".3f"),
            _evidence(row["evidence"]),
            _figure(row["base_rate"], ".1%"),
            escape(row["description"]),
        )
    table.caption = "strength: held-out AUROC; evidence: 1 - q."
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", caption_justify="left")
    for heading in headings:
        is_number = heading in ("strength", "evidence", "share", "q", "episodes", "base rate")
        table.add_column(
            heading, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    return table


def _figure(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _interval(lo: float, hi: float, form: str) -> str:
    return rf"\[{_figure(lo, form)}, {_figure(hi, form)}]"


def _evidence(value: float) -> str:
    """Never 1: certain is nothing."""
    return ">.999" if value > 0.999 else _figure(value, ".3f")


def _latents(latents: Sequence[int]) -> str:
    rest = len(latents) - MOST_LATENTS
    return ", ".join(map(str, latents[:MOST_LATENTS])) + (f" and {rest} more" if rest > 0 else "")


def _profile(profile: Sequence[float]) -> str:
    """Mean activation around onsets, in eighths of its highest value."""
    top = max(profile, default=0.0)
    return "".join(
        "▁▂▃▄▅▆▇█"[min(7, int(8 * value / top))] if top > 0 else "▁" for value in profile
    )


if __name__ == "__main__":
    run_as_module("concepts")
