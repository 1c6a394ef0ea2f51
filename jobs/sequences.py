"""Sequences to show and to look at: banks of trajectories, their replay through policies, stretches of recordings.

A bank keeps what there was to be seen while policies, random play and scripted strategies played; any number of
policies are then shown the same, and what they compute is a recording like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster import policies, recordings, sequences
from cluster.bank import UNIFORM, BankConfig, check_bank, plan_bank, plan_replay
from cluster.laboratory import Laboratory
from cluster.sequences import CutConfig
from cluster.store import Store
from interp.players import STRATEGIES
from interp.rollout import CaptureSteps, EveryStep
from interp.sequences import ByLength, Choice
from interp.worlds.catalogue import load_world
from jobs.factories import allow_factories
from jobs.progress import Reporter

SHOWN = 10
"""Sequences of which a line is printed."""


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
    """Cut sequences out of a recording or a bank that kept every step. Prints how many there are, and their id."""

    recording: str
    """Recording id."""
    by: Choice = field(default_factory=ByLength)
    """What makes a sequence: a length, an event, or a strategy that it follows."""
    cut: CutConfig = field(default_factory=CutConfig)
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


Verb = (
    Annotated[Bank, tyro.conf.subcommand("bank")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Cut, tyro.conf.subcommand("cut")]
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and prints."""
    verb = tyro.cli(Verb, args=list(arguments), prog="sparsight sequences", description=__doc__)
    store = Store.open(verb.store)
    store.probe()
    match verb:
        case Bank() as bank:
            make_bank(store, bank)
        case Replay() as replay:
            show_bank(store, replay)
        case Cut() as cut:
            print_sequences(store, cut)


def make_bank(store: Store, config: Bank) -> None:
    """Plays on the pool, and prints the id."""
    allow_factories(config.factory)
    factory = load_world(config.world)
    for player in config.players:
        if player != UNIFORM and player not in STRATEGIES:
            policies.load(store, player)  # one that cannot be opened is refused here
    plan = plan_bank(store, factory, config.players, config.bank)
    reporter = Reporter()
    with (
        Laboratory(store, num_actors=config.actors, factories=config.factory) as laboratory,
        reporter.stage("play") as stage,
    ):
        laboratory.watch("play", stage)
        manifest = laboratory.fill_bank(plan, factory, stage.update)
    num = plan.config["num_episodes"] * factory.spec.num_agents
    reporter.done(
        "play", f"{num:,} sequences of {len(config.players)} players, {manifest.rows:,} rows"
    )
    print(plan.recording_id)


def show_bank(store: Store, config: Replay) -> None:
    """Replays on the pool, and prints ids in the order of the policies."""
    allow_factories(config.factory)
    bank = recordings.open_manifest(store, config.bank).plan
    check_bank(bank)
    factory = load_world(config.world or bank.config["world"]["name"])
    for policy_id in config.policies:
        policies.load(store, policy_id)
    plans = [
        plan_replay(store, policy_id, config.bank, factory, config.sites, steps=config.steps)
        for policy_id in config.policies
    ]
    reporter = Reporter()
    with (
        Laboratory(store, num_actors=config.actors, factories=config.factory) as laboratory,
        reporter.stage("replay") as stage,
    ):
        laboratory.watch("replay", stage)
        manifests = laboratory.replay(plans, factory, stage.update, steps=config.steps)
    rows = sum(manifest.rows for manifest in manifests)
    reporter.done("replay", f"{rows:,} rows of {len(plans)} policies")
    for plan in plans:
        print(plan.recording_id)


def print_sequences(store: Store, config: Cut) -> None:
    """A table of the first ones, how many there are, and their id."""
    reporter = Reporter(Console(stderr=True))
    with reporter.stage("cut") as stage:
        sequences_id, found = sequences.cut(
            store, config.recording, config.by, config.cut, stage.update
        )
    columns = ("env_seed", "agent", "first_t", "num_steps", "onset_t", "strategy", "total_reward")
    table = Table(*columns, box=SIMPLE_HEAD)
    for row in found.slice(0, SHOWN).to_pylist():
        table.add_row(*("" if row[name] is None else _shown(row[name]) for name in columns))
    console = Console()
    console.print(table)
    episodes = len(set(found.column("env_seed").to_pylist()))
    console.print(f"{found.num_rows:,} sequences of {episodes:,} episodes", highlight=False)
    print(sequences_id)


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
