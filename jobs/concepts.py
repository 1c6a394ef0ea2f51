"""What latents tell, and when; what a dictionary has found that nobody asked for; what several latents tell together.

    sparsight concepts score --recording r-1234... --dictionary d-1234... --lags -8 -4 0 4 8
    sparsight concepts discover --recording r-1234... --dictionary d-1234...
    sparsight concepts discover --recording r-1234... --dictionary d-1234... --labels altar_soon carrying_ore@within8
    sparsight concepts show                      # which tables there are
    sparsight concepts show s-1234... f-1234... g-1234...
    sparsight concepts replay CARD.json          # its episodes, played again, as a page that opens offline
    sparsight concepts show f-1234... --json | jq '.[0].rows[] | {name, type, strength, evidence}'

A label at lag 8 asks at every step what will hold 8 steps later, at lag -8 what held 8 steps before: a latent that
tells the former is a plan, one that tells the latter a memory. Latents that fire together are a cluster; held-out
episodes give it a name (what stands out in the observations and labels where it peaks), a type (what explains it best:
action, place, time or objects) and a shape. Latents that share a label are a group, which beats its best latent, or
does not. docs/concepts.md tells how to read the tables.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster import dictionaries, policies, recordings
from cluster.discovery import Discover, FindingsConfig, check_discover, discover
from cluster.laboratory import Laboratory
from cluster.replays import replay
from cluster.results import Kind, read_table
from cluster.scoring import ScoreLatents, check_scorable, score_lags
from cluster.staging import Split
from cluster.store import Store
from cluster.studio import Task
from interp.concepts.catalogue import CONCEPT_SCHEMA, STATE_OF
from interp.concepts.discovery import leading_kind
from interp.concepts.rivals import CONTROLS, verdict
from interp.identity import nulled, parse_json
from interp.report.document import replay_page
from jobs.factories import allow_factories
from jobs.main import run_as_module
from jobs.progress import Reporter

SHOWN: tuple[Kind, ...] = ("scores", "findings", "groups", "concepts")
"""Tables that can be shown."""
MOST_LATENTS = 6
"""Latents of a row that are named; how many more there are is said."""


@dataclass(frozen=True, kw_only=True)
class ScoreVerb:
    """Score all latents of a dictionary against labels at lags, over all episodes of a recording. Prints the table's id
    and, for each label, the latent and lag that tell it best.

    Latents are divided among actors, each of which reads shard after shard, so that neither the recording nor the
    dictionary has to fit in memory. Latent and lag are chosen on training episodes, and published of held-out ones.
    """

    recording: str
    """Recording of every step; `sparsight recordings list` shows them."""
    dictionary: str
    """Dictionary of one of its sites; `sparsight dictionaries list` shows them."""
    labels: tuple[str, ...] | None = None
    """Labels, also made of others ('carrying_ore&!landmark', 'altar_soon@within8'); by default all that were
    recorded."""
    lags: tuple[int, ...] = (0,)
    """Steps by which labels are moved: at 8 it is asked what will hold 8 steps later, at -8 what held before."""
    stride_steps: int = 4
    """Every so manieth step is scored."""
    num_permutations: int = 1000
    """Episode permutations behind each p-value; more of them reach smaller ones."""
    min_positive_episodes: int = 10
    """Held-out episodes in which a label must hold, and fail to hold, to be tested."""
    split: Split = field(default_factory=Split)
    seed: int = 0
    """Of permutations and resamples."""
    latents_per_task: int = 512
    """Latents of a task, a multiple of 64: fewer need less memory and more reading. Never changes a number."""
    actors: int | None = None
    """Actor processes; by default one per core. Never changes a number."""
    factory: tuple[str, ...] = ()
    """package.module:callable of a label of your own that the recording has (docs/concepts.md)."""
    json: bool = False
    """Print the table as JSON, all latents and lags, and progress on standard error."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


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
    """Show tables of the store: scores at lags (s-...), findings (f-...), groups (g-...), scored concepts (c-...).
    Without ids, say which there are.
    """

    tables: tyro.conf.Positional[tuple[str, ...]] = ()
    """Ids of tables."""
    json: bool = False
    """Print JSON: a list of {id, kind, rows}; what has no value is null."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Play the episodes of a concept card again from their seeds, whole, and write a page that opens offline.

    Cards lie in the store, at studies/STUDY/cards/*.json.
    """

    card: tyro.conf.Positional[str]
    """The card: a file, or its key in the store."""
    out: Path | None = None
    """Page to write; by default the card's name with .html, in this folder."""
    world: str | None = None
    """World of the recording, if the policy's card names another."""
    factory: tuple[str, ...] = ()
    """package.module:callable that makes the policy's network, if it is one of your own."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


class Named(NamedTuple):
    """A table of the store."""

    table_id: str
    kind: Kind


Verb = (
    Annotated[ScoreVerb, tyro.conf.subcommand("score")]
    | Annotated[DiscoverVerb, tyro.conf.subcommand("discover")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, looks or shows."""
    verb = tyro.cli(Verb, args=list(arguments), prog="sparsight concepts", description=__doc__)
    store = Store.open(verb.store)
    match verb:
        case ScoreVerb() as config:
            allow_factories(config.factory)
            score(store, config)
        case DiscoverVerb() as config:
            allow_factories(config.factory)
            look(store, config)
        case Replay() as config:
            allow_factories(config.factory)
            print(play_again(store, config))
        case Show(tables=()) as show:
            print_list(store, as_json=show.json)
        case Show() as show:
            wanted = [Named(table_id, kind_of(store, table_id)) for table_id in show.tables]
            print_tables(store, wanted, as_json=show.json)


def score(store: Store, config: ScoreVerb) -> None:
    """Scores what the store has no table of, and prints it."""
    manifest = recordings.open_manifest(store, config.recording)
    dictionary = dictionaries.load(store, config.dictionary)
    labels = tuple(manifest.plan.config["labels"]) if config.labels is None else config.labels
    whole = ScoreLatents(
        recording_id=config.recording,
        dict_id=config.dictionary,
        labels=labels,
        split=config.split,
        lags=config.lags,
        stride_steps=config.stride_steps,
        num_permutations=config.num_permutations,
        min_positive_episodes=config.min_positive_episodes,
        seed=config.seed,
    )
    check_scorable(manifest, dictionary.site, labels)
    config.split.check(manifest)
    whole.divided(dictionary.d_sae, config.latents_per_task)
    store.probe()
    reporter = Reporter(Console(stderr=config.json))
    laboratory = Laboratory(
        store, num_actors=config.actors, factories=config.factory, say=reporter.say
    )
    with laboratory, reporter.stage("score") as stage:
        laboratory.watch("score", stage)

        def make(tasks: Sequence[Task[Any]]) -> Sequence[Any]:
            return laboratory.make(tasks, stage.update)

        score_lags(store, whole, make, latents_per_task=config.latents_per_task)
    reporter.done(
        "score",
        f"{dictionary.d_sae:,} latents x {len(labels)} labels x {len(config.lags)} lags",
    )
    print_tables(store, [Named(whole.question.id, whole.question.kind)], as_json=config.json)


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


def play_again(store: Store, config: Replay) -> Path:
    """Writes the page of a card's episodes; where it is."""
    file = Path(config.card)
    if not file.exists() and not store.exists(config.card):
        raise FileNotFoundError(
            f"card {config.card} is neither a file nor in store {store.url}; cards lie at studies/STUDY/cards/*.json"
        )
    content = file.read_bytes() if file.exists() else store.get(config.card)
    card = parse_json(content, source=config.card)
    windows = replay(store, card, world=config.world)
    out = config.out or Path(file.with_suffix(".html").name)
    out.write_text(replay_page(f"{card['policy']} · {card['name']}", windows), encoding="utf-8")
    return out


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
    views = {
        "scores": scores_view,
        "findings": findings_view,
        "groups": groups_view,
        "concepts": concepts_view,
    }
    for table_id, kind, table in tables:
        console.print(views[kind](table))
        console.print(f"{kind}/{table_id}.parquet", highlight=False)


def scores_view(scores: pa.Table) -> Table:
    """One row per label: the latent that tells it best, at all lags."""
    table = _table(
        "latents at lags",
        ("label", "latent", "lag", "strength", "evidence", "family p", "AUROC by lag", "episodes"),
    )
    label_N = np.array(scores.column("label").to_pylist())
    latent_N = scores.column("latent").to_numpy()
    for row in scores.filter(scores.column("is_best")).to_pylist():
        mine = pa.array((label_N == row["label"]) & (latent_N == row["latent"]))
        curve = [
            f"[bold]{at['lag']:+d} {_figure(at['auroc'], '.2f')}[/]"
            if at["is_best"]
            else f"{at['lag']:+d} {_figure(at['auroc'], '.2f')}"
            for at in sorted(scores.filter(mine).to_pylist(), key=lambda at: at["lag"])
        ]
        table.add_row(
            escape(row["label"]),
            str(row["latent"]),
            f"{row['lag']:+d}",
            f"{_figure(row['auroc'], '.3f')} [dim]{_interval(row['auroc_lo'], row['auroc_hi'], '.2f')}[/]",
            _evidence(1 - row["q_value"]),
            _figure(row["family_p_value"], ".2g"),
            ", ".join(curve),
            str(row["n_episodes"]),
        )
    table.caption = (
        "Latent and lag are chosen on training episodes; figures are of held-out ones. A positive lag looks ahead.\n"
        "evidence: 1 - q over all latents, labels and lags; family p: no false one among them."
    )
    return table


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
    """One row per latent that stands for a label. ValueError for a table of an earlier version."""
    if missing := sorted({*CONCEPT_SCHEMA.names} - {*concepts.column_names}):
        raise ValueError(
            f"this table of concepts has no column {missing[0]!r}: an earlier version made it; score again to see it"
        )
    table = _table(
        "concepts",
        (
            "concept",
            "policy",
            "kind",
            "strength",
            "evidence",
            "base rate",
            "lead",
            "against controls",
        ),
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
            _lead(row),
            verdict(row),
        )
    state = [f"{escape(name)}: {line}" for name, line in state_lines(concepts)]
    table.caption = "\n".join(state) + (
        "\nstrength: held-out AUROC; evidence: 1 - q; lead: over the strongest control, with its 95 % interval.\n"
        "A control is beaten if the lead over it, of the same episodes, is surely above 0, corrected for their number."
    )
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", caption_justify="left")
    for heading in headings:
        is_number = heading in (
            "latent",
            "lag",
            "family p",
            "strength",
            "evidence",
            "share",
            "q",
            "episodes",
            "base rate",
        )
        table.add_column(
            heading, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    return table


def state_lines(concepts: pa.Table) -> list[tuple[str, str]]:
    """Of every policy, how much of the state of the world its latents tell together, and others instead of them."""
    first = {row["policy_name"]: row for row in reversed(concepts.to_pylist())}
    return [
        (
            name,
            "state F1 of "
            + ", ".join(
                f"{who} {_figure(row[f'{prefix}state_f1'], '.2f')} "
                f"{_interval(row[f'{prefix}state_lo'], row[f'{prefix}state_hi'], '.2f')}"
                for prefix, who in STATE_OF.items()
            )
            + "; boards "
            + ", ".join(_figure(row[f"{prefix}board_f1"], ".2f") for prefix in STATE_OF)
            + "; coverage of boards "
            + ", ".join(_figure(row[f"{prefix}board_coverage"], ".2f") for prefix in STATE_OF),
        )
        for name, row in sorted(first.items())
    ]


def _lead(row: Mapping[str, Any]) -> str:
    if row["lead"] is None:
        return "–"
    interval = _interval(row["lead_lo"], row["lead_hi"], "+.2f")
    return f"{row['lead']:+.3f} [dim]{interval}\n{CONTROLS[row['strongest_rival']]}[/]"


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)


def _interval(lo: float | None, hi: float | None, form: str) -> str:
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
