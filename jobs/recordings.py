"""List, show and verify the recordings of a store, and remove what is of no use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cluster import garbage, recordings
from cluster.fanout import in_threads
from cluster.notes import Note
from cluster.recordings import Manifest, Plan, Status
from cluster.store import Store
from interp.records import INCLUSION_FIELD, LABEL_PREFIX
from interp.sampling import total
from jobs.main import run_as_module
from jobs.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class List:
    """The recordings of a store, finished or not."""

    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """What a recording holds and was made from, how far it has come, and how often each label holds."""

    recording: tyro.conf.Positional[str]
    """Recording id; `sparsight recordings list` shows them."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read every byte of recordings: sizes, hashes, schemas and row counts are those of their manifests."""

    recordings: tyro.conf.Positional[tuple[str, ...]]
    """Recording ids."""
    threads: int = 4
    """Shards that are read at the same time; each takes its size in memory, twice."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""

    def __post_init__(self) -> None:
        if not self.recordings:
            raise ValueError("no recording to verify; `sparsight recordings list` shows their ids")
        if self.threads < 1:
            raise ValueError(f"threads {self.threads}: at least 1")


@dataclass(frozen=True, kw_only=True)
class Gc:
    """Show what is of no use: data that no manifest lists, staged activations of recordings that are gone, notes of
    jobs that were killed more than a day ago. Removes nothing without --delete, and never what a study or anything else
    in the store refers to.
    """

    unfinished: tuple[str, ...] = ()
    """Recordings that were begun and are given up; none of them may be under way."""
    older_than: float | None = None
    """Days. Unfinished recordings that have not changed for so long, by the clock of the store, and staged activations
    that were not used for so long are of no use either."""
    delete: bool = False
    """Remove what is shown."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


Verb = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Gc, tyro.conf.subcommand("gc")]
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and prints."""
    verb = tyro.cli(Verb, args=list(arguments), prog="sparsight recordings", description=__doc__)
    store = Store.open(verb.store)
    match verb:
        case List():
            print_list(store)
        case Show(recording=recording_id):
            print_recording(store, recording_id)
        case Verify() as verify:
            verify_all(store, verify)
        case Gc() as gc:
            collect(store, gc)


def print_list(store: Store) -> None:
    """A table of all recordings. Ids are to be copied, so never cut; sites and what is replayed stand below."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("recording", "policy", "rows", "episodes", "state"):
        table.add_column(
            heading,
            justify="right" if heading in ("rows", "episodes") else "left",
            no_wrap=heading != "recording",
        )
    known = recordings.known_ids(store)
    for status in in_threads(lambda known_id: recordings.status(store, known_id), known):
        config = status.plan.config if status.plan else {}
        inputs = status.plan.inputs if status.plan else {}
        shown = inputs.get("replay_of", inputs.get("bank"))
        who = inputs.get(
            "policy", f"bank of {len(players)}" if (players := config.get("players")) else ""
        )
        sites = ", ".join(config.get("site_widths", ())) or "no site"
        table.add_row(
            f"{status.recording_id}\n {sites}",
            who + (f"\n on {shown}" if shown else ""),
            f"{status.manifest.rows:,}" if status.manifest else "",
            str(config.get("num_episodes", "")),
            _state(status),
        )
    Console().print(table)


def _state(status: Status) -> str:
    if status.plan is None:
        return "without a plan"
    if status.manifest is None:
        return f"{status.num_done:,}/{len(status.plan.shards):,} shards"
    return "sample" if "sampling" in status.plan.config else "finished"


def print_recording(store: Store, recording_id: str) -> None:
    """Everything that the store knows of a recording."""
    console = Console(highlight=False)
    status = recordings.status(store, recording_id)
    fields: dict[str, Any] = {"recording": recording_id, "state": _state(status)}
    if status.plan is not None:
        fields |= _plan_fields(status.plan)
    if (manifest := status.manifest) is not None:
        size = [receipt.bytes for receipt in manifest.receipts]
        fields |= {
            "rows": f"{manifest.rows:,}",
            "size": f"{decimal(sum(size))}, {decimal(min(size))} to {decimal(max(size))} a shard",
            "digest": manifest.digest,
        }
    elif status.plan is not None:
        left = [shard.shard for shard in recordings.missing_shards(store, status.plan)]
        fields["missing shards"] = ", ".join(left[:8]) + (" ..." if len(left) > 8 else "")
    for name, value in fields.items():
        console.print(f"{name:<20}{value}", markup=False, soft_wrap=True)
    if manifest is not None and manifest.plan.config.get("labels"):
        reporter = Reporter(Console(stderr=True))
        with reporter.stage("labels") as stage:
            rates = base_rates(store, manifest, stage.update)
        _print_labels(console, manifest, rates)


def _plan_fields(plan: Plan) -> dict[str, Any]:
    config = plan.config
    fields: dict[str, Any] = {f"made from: {role}": name for role, name in plan.inputs.items()}
    if "world" in config:
        world = config["world"]
        fields["world"] = world.get("name", world) if isinstance(world, dict) else world
    if "players" in config:
        fields["players"] = ", ".join(config["players"])
    if "num_episodes" in config:
        first = config["first_env_seed"]
        fields["episodes"] = f"{config['num_episodes']:,}, seeds from {first}"
    if "site_widths" in config:
        sites = (f"{site} [{width}]" for site, width in config["site_widths"].items())
        fields["sites"] = ", ".join(sites) or "none"
    if "steps" in config:
        fields["steps"] = f"{config['steps']['kind']}, every {config['steps']['every']}"
    if (sampling := config.get("sampling")) is not None:
        fields["sample"] = (
            f"at most {sampling['rows']:,} rows a shard of {sampling['episodes_per_shard']} episodes, "
            f"{sampling['label_share']:.0%} of them set aside for rare labels; salt {sampling['salt']}"
        )
    return {**fields, "shards": f"{len(plan.shards):,}"}


def base_rates(store: Store, manifest: Manifest, note: Note) -> dict[str, tuple[int, float]]:
    """Of each label, kept rows where it holds and its rate among all rows, which a sample estimates."""
    labels = list(manifest.plan.config["labels"])
    is_sample = "sampling" in manifest.plan.config
    columns = [LABEL_PREFIX + label for label in labels]
    columns += [INCLUSION_FIELD.name] if is_sample else []

    def count(number: int) -> tuple[np.ndarray, np.ndarray, float]:
        table: pa.Table = recordings.read_columns(store, manifest.receipts[number], columns)
        holds_LN = np.array([table.column(name).to_numpy() for name in columns[: len(labels)]])
        inclusion_N = (
            table.column(INCLUSION_FIELD.name).to_numpy() if is_sample else np.ones(len(table))
        )
        ones_N = np.ones(len(table))
        return holds_LN.sum(1), total(holds_LN.T, inclusion_N), float(total(ones_N, inclusion_N))

    kept_L, weight_L, weight = np.zeros(len(labels), np.int64), np.zeros(len(labels)), 0.0
    for done, (kept, weighted, rows) in enumerate(in_threads(count, range(len(manifest.receipts)))):
        kept_L, weight_L, weight = kept_L + kept, weight_L + weighted, weight + rows
        note(done + 1, len(manifest.receipts), manifest.receipts[done].shard)
    return {
        label: (int(kept), float(part) / weight)
        for label, kept, part in zip(labels, kept_L, weight_L, strict=True)
    }


def _print_labels(
    console: Console, manifest: Manifest, rates: dict[str, tuple[int, float]]
) -> None:
    rate = "estimated base rate" if "sampling" in manifest.plan.config else "base rate"
    table = Table("label", "rows", rate, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, (kept, share) in rates.items():
        table.add_row(label, f"{kept:,}", f"{share:.4%}")
    console.print(table, markup=False)


def verify_all(store: Store, config: Verify) -> None:
    """Says of each recording that it is whole; the first that is not ends it."""
    reporter = Reporter()
    manifests = [recordings.open_manifest(store, name) for name in config.recordings]
    for manifest in manifests:
        with reporter.stage("verify") as stage:
            recordings.verify(store, manifest, stage.update, threads=config.threads)
        reporter.done(
            "verify",
            f"{manifest.recording_id}: {manifest.rows:,} rows in {len(manifest.receipts):,} shards, "
            f"{decimal(manifest.data_bytes)}, every byte as committed",
        )


def collect(store: Store, config: Gc) -> None:
    """Shows the garbage, and removes it if asked to."""
    found = garbage.find(store, unfinished=config.unfinished, older_than_days=config.older_than)
    console = Console()
    if not found:
        console.print("no garbage")
        return
    table = Table("what", "why", "objects", "size", box=SIMPLE_HEAD)
    for column in table.columns[2:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    for one in found:
        table.add_row(one.what, one.why, f"{len(one.keys):,}", decimal(one.bytes))
    console.print(table)
    size = decimal(sum(one.bytes for one in found))
    if not config.delete:
        console.print(f"{size} in all; nothing was removed: add --delete to remove it")
        return
    reporter = Reporter()
    with reporter.stage("gc") as stage:
        garbage.remove(store, found, stage.update)
    reporter.done("gc", f"removed {size}")


if __name__ == "__main__":
    run_as_module("recordings")
