"""List, show and fetch policies: what a file, a W&B run or the store holds, without running code from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster import policies
from cluster.store import Store
from cluster.tracking.service import WandbService
from cluster.trajectories import (
    Checkpoint,
    Trajectory,
    choose,
    fetched,
    list_checkpoints,
    open_run,
    training_step,
)
from interp.policies.bundle import PolicyBundle
from interp.policies.formats.reading import read_policy_file
from interp.policies.policy import PolicyNetwork
from interp.policies.policy_file import PolicyFile
from interp.policies.recognition import recognise
from interp.policies.translation import TokenNetwork, Translation
from interp.worlds.catalogue import load_world
from interp.worlds.world import WorldSpec
from jobs.factories import allow_factories
from jobs.main import run_as_module
from jobs.progress import Reporter

SHORT = 100
"""Characters of a metadata value that are shown, unless all are asked for."""
SHOWN_BY_KEY = ("config", "summary", "metadata", "run")
"""Mappings of which every value has a line of its own."""


@dataclass(frozen=True, kw_only=True)
class List:
    """The policies of a store."""

    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """The card of a policy, whether it can be run or not: source, tensors, architecture, sites, metadata."""

    uri: tyro.conf.Positional[str]
    """A policy id of the store, or an address: entity/project/run_id, entity/project/name:alias, s3://bucket/key,
    zoo:name, a file or a folder."""
    checkpoints: str = "last"
    """Which checkpoints to open: all, last, log:N, A:B; the others are only listed."""
    factory: tuple[str, ...] = ()
    """package.module:callable that makes the network, where it is one of your own; it wants --world. This is the only
    code that is run."""
    full: bool = False
    """Show values whole, however long they are."""
    world: str | None = None
    """World that a network of your own is for; of one of another time, how it would understand that world."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Fetch policies into the store, so that they can be recorded, swept and steered."""

    uri: tyro.conf.Positional[str]
    """As for `show`."""
    checkpoints: str = "all"
    """Which checkpoints: all, last, log:N, A:B."""
    name: str | None = None
    """What to call the run; by default as its source does."""
    world: str | None = None
    """World to play in, if the policy does not say which one it was trained in."""
    factory: tuple[str, ...] = ()
    """package.module:callable that makes the network, where it is one of your own; it wants --world. This is the only
    code that is run."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


Verb = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Fetch, tyro.conf.subcommand("fetch")]
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and prints."""
    verb = tyro.cli(Verb, args=list(arguments), prog="sparsight policies", description=__doc__)
    match verb:
        case List(store=store):
            print_policies(Store.open(store))
        case Show() as show:
            allow_factories(show.factory)
            print_cards(Store.open(show.store), show)
        case Fetch() as fetch:
            fetch_run(fetch)


def print_policies(store: Store) -> None:
    """A table of all policies of a store, run by run."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("policy", "name", "step", "world", "run"):
        table.add_column(
            heading,
            justify="right" if heading == "step" else "left",
            no_wrap=heading in ("policy", "run"),
        )
    for card in sorted(policies.list_cards(store), key=lambda card: (card.name, card.step)):
        table.add_row(card.policy_id, card.name, f"{card.step:,}", card.world, card.run)
    Console().print(table)


def print_cards(store: Store, show: Show) -> None:
    """What is known of each chosen checkpoint, and of the run behind it."""
    console = Console(highlight=False)
    if show.uri.startswith("p-") and store.exists(f"policies/{show.uri}/card.json"):
        card = policies.read_card(store, show.uri)
        _print_fields(
            console,
            {
                "policy": f"{card.policy_id}  {card.name}, step {card.step:,} of run {card.run}",
                "world": card.world,
                **_network_fields(policies.read_bundle(store, show.uri), _spec(show)),
                **_flat("source", card.source),
            },
            full=show.full,
        )
        return
    with WandbService() as service:
        trajectory = list_checkpoints(store, show.uri, service)
        listed = trajectory.checkpoints
        _print_run(console, trajectory, full=show.full)
        for checkpoint in choose(listed, [one.order for one in listed], show.checkpoints):
            _print_checkpoint(console, store, checkpoint, show, service)


def _print_run(console: Console, trajectory: Trajectory, *, full: bool) -> None:
    labels = [one.label for one in trajectory.checkpoints]
    shown = ", ".join(labels if len(labels) <= 8 else [*labels[:4], "...", *labels[-3:]])
    _print_fields(
        console,
        {
            "run": trajectory.name,
            "checkpoints": f"{len(labels)}: {shown}",
            **_flat("run", trajectory.about),
        },
        full=full,
    )


def _print_checkpoint(
    console: Console, store: Store, checkpoint: Checkpoint, show: Show, service: WandbService
) -> None:
    if isinstance(checkpoint.place, str):
        print_cards(store, replace(show, uri=checkpoint.place))
        return
    with fetched(store, checkpoint, service) as path:
        file = read_policy_file(path)
    num_parameters = sum(tensor.numel() for tensor in file.tensors.values())
    table = Table("tensor", "shape", "dtype", box=SIMPLE_HEAD)
    for name, tensor in file.tensors.items():
        table.add_row(name, " x ".join(map(str, tensor.shape)), str(tensor.dtype).split(".")[-1])
    console.print()
    _print_fields(
        console,
        {
            "checkpoint": checkpoint.label,
            "training step": _step(checkpoint, file),
            "format": file.format,
            "sha256": file.sha256,
            "size": f"{num_parameters:,} numbers in {len(file.tensors)} tensors",
            **_recognised_fields(file, show),
            **_flat("source", checkpoint.metadata),
            **_flat("file", file.metadata),
        },
        full=show.full,
    )
    console.print(table)


def _step(checkpoint: Checkpoint, file: PolicyFile) -> str:
    step = training_step(checkpoint, file)
    return f"{step:,}" if step is not None else f"not told; place {checkpoint.order:,} in its run"


def _recognised_fields(file: PolicyFile, show: Show) -> dict[str, Any]:
    try:
        bundle = recognise(file, factories=show.factory, world=_spec(show))
    except ValueError as error:
        return {"cannot run": str(error)}
    return {"policy": bundle.policy_id, **_network_fields(bundle, _spec(show))}


def _spec(show: Show) -> WorldSpec | None:
    return load_world(show.world).spec if show.world else None


def _network_fields(bundle: PolicyBundle, spec: WorldSpec | None) -> dict[str, Any]:
    try:
        policy = bundle.open()
    except ValueError as error:
        return {"architecture": bundle.architecture.get("family"), "cannot run": str(error)}
    return {
        "architecture": bundle.architecture["family"],
        "parameters": f"{sum(parameter.numel() for parameter in policy.parameters()):,}",
        "sites": ", ".join(f"{site} [{width}]" for site, width in policy.sites.items()),
        "actions": _actions(policy),
        **(_translation_fields(policy, spec) if spec and isinstance(policy, TokenNetwork) else {}),
    }


def _actions(policy: PolicyNetwork) -> str:
    names = policy.action_names
    return ", ".join(names) if not names[0].isdigit() else f"{len(names)}, without names"


def _translation_fields(policy: TokenNetwork, spec: WorldSpec) -> dict[str, str]:
    try:
        told = Translation.between(policy.language, spec).describe()
    except ValueError as error:
        return {f"in {spec.name}": str(error)}
    return {f"in {spec.name}: {name}": text for name, text in told.items()}


def _flat(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """One entry for each value of a config, a summary or another mapping; deeper ones stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in said.items():
        inner = value if isinstance(value, Mapping) and key in SHOWN_BY_KEY else {"": value}
        flat |= {f"{name}.{key}.{sub}".removesuffix("."): one for sub, one in inner.items()}
    return flat


def _print_fields(console: Console, fields: Mapping[str, Any], *, full: bool) -> None:
    """Two columns; what a file says of itself may be long, so it is cut, and may not style the terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        text = str(value)
        spoken = name.startswith(("file.", "source.", "run."))
        table.add_row(
            _plain(name),
            _plain(text[:SHORT] + "..." if spoken and not full and len(text) > SHORT else text),
        )
    console.print(table)


def _plain(text: str) -> str:
    """Without markup and without characters that a terminal would obey."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def fetch_run(fetch: Fetch) -> None:
    """Keeps the chosen checkpoints as policies of the store, and lists them."""
    allow_factories(fetch.factory)
    store = Store.open(fetch.store)
    store.probe()
    reporter = Reporter()
    with reporter.stage("fetch") as stage:
        run = open_run(
            store,
            fetch.uri,
            choice=fetch.checkpoints,
            name=fetch.name,
            world=fetch.world,
            factories=fetch.factory,
            note=stage.update,
        )
    reporter.done("fetch", f"{len(run.checkpoints)} checkpoints of {run.name}")
    for card in run.checkpoints:
        print(f"{card.policy_id}  step {card.step:,}")


if __name__ == "__main__":
    run_as_module("policies")
