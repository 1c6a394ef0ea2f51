"""Sequences to show and to look at: banks of trajectories, their replay through policies, stretches of recordings.

A bank keeps what there was to be seen while policies, random play and scripted strategies played; any number of
policies are then shown the same, and what they compute is a recording like any other.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster import policies, recordings, sequences
from cluster.bank import UNIFORM, BankConfig, check_bank, plan_bank, plan_replay
from cluster.export import Precision, with_lists
from cluster.handed_in import check_lasting
from cluster.laboratory import Laboratory
from cluster.recordings import Plan
from cluster.results import read_table
from cluster.sequences import CutConfig
from cluster.store import Store
from interp.players import STRATEGIES
from interp.rollout import CaptureSteps, EveryStep
from interp.sequences import ByEvent, ByLength, ByStrategy
from interp.worlds.catalogue import load_world
from interp.worlds.world import WorldFactory
from jobs.factories import allow_factories
from jobs.main import run_as_module
from jobs.progress import Reporter

SHOWN = 10
"""Sequences of which a line is printed, unless all are asked for."""
By = (
    Annotated[ByLength, tyro.conf.subcommand("length")]
    | Annotated[ByEvent, tyro.conf.subcommand("event")]
    | Annotated[ByStrategy, tyro.conf.subcommand("strategy")]
)


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Play and keep what there was to be seen. Prints the bank's id."""

    world: str
    """Preset, MettaGridConfig .json file or gym:ENV_ID[?mask=1,3&max_steps=200]."""
    players: tuple[str, ...] = (UNIFORM,)
    """Who plays: ids of policies, uniform, and the strategies goal_seeking, exploration, resource_collection, combat,
    avoidance, which find their ways on the map of a mettagrid world."""
    factory: tuple[str, ...] = ()
    """package.module:callable that makes a policy's network, if it is one of your own; actors import it too."""
    actors: int | None = None
    """Actor processes; by default one per core. Never changes a number."""
    bank: BankConfig = field(default_factory=BankConfig)
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Show a bank to policies, from the first step of every trajectory on. Prints the id of a recording for each."""

    bank: str
    """Recording id of the bank."""
    policies: tuple[str, ...]
    """Policy ids; `sparsight policies list` shows them."""
    sites: tuple[str, ...] = ("lstm.h", "lstm.c")
    """Sites of the policies whose activations are kept."""
    world: str | None = None
    """World of the bank, if it is a .json file; by default the bank tells."""
    factory: tuple[str, ...] = ()
    """package.module:callable that makes a policy's network, if it is one of your own; actors import it too."""
    actors: int | None = None
    """Actor processes; by default one per core. Never changes a number."""
    steps: CaptureSteps = field(default_factory=EveryStep)
    """Which steps to keep: every one, every n-th, or the last of each trajectory."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Cut sequences out of a recording or a bank that kept every step: by length, around events, or where the label of
    a strategy holds at most steps; `by:event --help` and the others tell more. Prints their id.
    """

    recording: str
    """Recording id; `sparsight recordings list` shows them. A bank is one too."""
    by: By = field(default_factory=ByLength)
    """What makes a sequence."""
    cut: CutConfig = field(default_factory=CutConfig)
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class List:
    """The sets of sequences of a store."""

    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """What a set of sequences was cut from and how, which strategies are in it, and where its sequences are."""

    sequences: tyro.conf.Positional[str]
    """Id of the set; `sparsight sequences list` shows them."""
    full: bool = False
    """A line for every sequence, however many there are."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Write the rows of sequences, activations included, into a Parquet file: every step, or where each is complete."""

    sequences: tyro.conf.Positional[str]
    """Id of the set; `sparsight sequences list` shows them."""
    out: Path
    """File to write; it must not exist yet. Activations are lists of floats, and `sequence` is the number of the
    sequence."""
    recording: str | None = None
    """A recording that shows the same episodes to another policy, to take the rows from; by default the one that the
    sequences were cut from."""
    ends_only: bool = False
    """Only the last step of each sequence."""
    sites: tuple[str, ...] | None = None
    """Activations to write; all that were recorded by default."""
    precision: Precision = "float32"
    """Of the activations in the file; recordings are float16."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


Verb = (
    Annotated[Bank, tyro.conf.subcommand("bank")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Cut, tyro.conf.subcommand("cut")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Rows, tyro.conf.subcommand("rows")]
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and prints."""
    verb = tyro.cli(Verb, args=list(arguments), prog="sparsight sequences", description=__doc__)
    store = Store.open(verb.store)
    match verb:
        case Bank() as bank:
            make_bank(store, bank)
        case Replay() as replay:
            show_bank(store, replay)
        case Cut() as cut:
            cut_sequences(store, cut)
        case List():
            print_list(store)
        case Show() as show:
            print_sequences(store, show)
        case Rows() as rows:
            write_rows(store, rows)


def make_bank(store: Store, config: Bank) -> None:
    """Plays on the pool, and prints the id."""
    store.probe()
    allow_factories(config.factory)
    factory = load_world(config.world)
    for player in config.players:
        if player != UNIFORM and player not in STRATEGIES:
            policies.load(store, player)  # one that cannot be opened is refused here
    plan = plan_bank(store, factory, config.players, config.bank)
    reporter = Reporter()
    with (
        Laboratory(
            store, num_actors=config.actors, factories=config.factory, say=reporter.say
        ) as laboratory,
        reporter.stage("play") as stage,
    ):
        laboratory.watch("play", stage)
        manifest = laboratory.fill_bank(plan, factory, stage.update)
    num = plan.config["num_episodes"] * factory.spec.num_agents
    reporter.done(
        "play", f"{num:,} sequences of {len(config.players)} players, {manifest.rows:,} rows"
    )
    print(plan.recording_id)


def _world_of(bank: Plan, named: str | None) -> WorldFactory:
    """The bank's own world, by its name or the one given."""
    name = named or bank.config["world"]["name"]
    try:
        factory = load_world(name)
    except ValueError as error:
        raise ValueError(
            f"bank {bank.recording_id} shows world {name!r}: {error}; say --world"
        ) from error
    if factory.config != bank.config["world"]:
        raise ValueError(
            f"bank {bank.recording_id} shows another world than {name!r} is; give the file that it was made with as "
            "--world"
        )
    return factory


def show_bank(store: Store, config: Replay) -> None:
    """Replays on the pool, and prints ids in the order of the policies."""
    store.probe()
    allow_factories(config.factory)
    bank = recordings.open_manifest(store, config.bank).plan
    check_bank(bank)
    factory = _world_of(bank, config.world)
    for policy_id in config.policies:
        policies.load(store, policy_id)
    plans = [
        plan_replay(store, policy_id, config.bank, factory, config.sites, steps=config.steps)
        for policy_id in config.policies
    ]
    reporter = Reporter()
    with (
        Laboratory(
            store, num_actors=config.actors, factories=config.factory, say=reporter.say
        ) as laboratory,
        reporter.stage("replay") as stage,
    ):
        laboratory.watch("replay", stage)
        manifests = laboratory.replay(plans, factory, stage.update, steps=config.steps)
    rows = sum(manifest.rows for manifest in manifests)
    reporter.done("replay", f"{rows:,} rows of {len(plans)} policies")
    for plan in plans:
        print(plan.recording_id)


def cut_sequences(store: Store, config: Cut) -> None:
    """Says what was cut, and prints its id."""
    store.probe()
    reporter = Reporter()
    with reporter.stage("cut") as stage:
        sequences_id, found = sequences.cut(
            store, config.recording, config.by, config.cut, stage.update
        )
    reporter.done("cut", f"{_summary(found)}; strategies: {_strategies(found)}")
    print(sequences_id)


def _summary(found: pa.Table) -> str:
    steps_Q = found.column("num_steps").to_numpy()
    episodes = len(np.unique(found.column("env_seed").to_numpy()))
    return (
        f"{found.num_rows:,} sequences of {steps_Q.min():,} to {steps_Q.max():,} steps, {steps_Q.sum():,} in all, "
        f"from {episodes:,} episodes"
    )


def _strategies(found: pa.Table) -> str:
    counts = Counter(name or "none" for name in found.column("strategy").to_pylist())
    return ", ".join(f"{name} {number:,}" for name, number in counts.most_common())


def print_list(store: Store) -> None:
    """A table of all sets of sequences. Ids are to be copied, so never cut."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("sequences", "recording", "number", "how"):
        table.add_column(
            heading,
            justify="right" if heading == "number" else "left",
            no_wrap=heading in ("sequences", "recording"),
        )
    for sequences_id in sequences.known_ids(store):
        note = sequences.read_note(store, sequences_id)
        table.add_row(sequences_id, note.recording_id, f"{note.num_sequences:,}", note.how)
    Console().print(table)


def print_sequences(store: Store, config: Show) -> None:
    """Everything that is known of a set of sequences."""
    console = Console(highlight=False)
    note = sequences.read_note(store, config.sequences)
    found = read_table(store, "sequences", config.sequences)
    fields = {
        "sequences": config.sequences,
        "recording": note.recording_id,
        "how": note.how,
        "found": _summary(found),
        "strategies": _strategies(found),
    }
    for name, value in fields.items():
        console.print(f"{name:<20}{value}", markup=False, soft_wrap=True)
    columns = ("env_seed", "agent", "first_t", "num_steps", "onset_t", "strategy", "total_reward")
    table = Table(*columns, box=SIMPLE_HEAD)
    for column in table.columns:
        column.justify = "left" if column.header == "strategy" else "right"
    for row in found.slice(0, None if config.full else SHOWN).to_pylist():
        table.add_row(*("" if row[name] is None else _shown(row[name]) for name in columns))
    console.print(table)
    if not config.full and found.num_rows > SHOWN:
        console.print(f"and {found.num_rows - SHOWN:,} more; --full shows all")


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_rows(store: Store, config: Rows) -> None:
    """Writes the file, and prints its path."""
    check_lasting("--out", config.out)
    if config.out.exists():
        raise FileExistsError(f"{config.out} exists; name a new file, or remove it")
    recording_id = config.recording or sequences.read_note(store, config.sequences).recording_id
    recorded = recordings.open_manifest(store, recording_id).plan.config["site_widths"]
    sites = tuple(recorded) if config.sites is None else config.sites
    if unknown := [site for site in sites if site not in recorded]:
        raise ValueError(
            f"site {unknown[0]!r} is not in recording {recording_id}; it has {', '.join(recorded) or 'none'}"
        )
    reporter = Reporter()
    with reporter.stage("rows") as stage:
        found = sequences.read_rows(
            store,
            config.sequences,
            recording_id=recording_id,
            ends_only=config.ends_only,
            note=stage.update,
        )
        config.out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(with_lists(found, sites, config.precision), config.out)
    number = len(np.unique(found.column("sequence").to_numpy()))
    reporter.done("rows", f"{found.num_rows:,} rows of {number:,} sequences")
    print(config.out)


if __name__ == "__main__":
    run_as_module("sequences")
