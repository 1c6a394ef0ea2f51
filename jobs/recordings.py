"""List the recordings of a store, or verify every byte of one."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster import recordings
from cluster.store import Store


@dataclass(frozen=True, kw_only=True)
class Config:
    store: str = "./store"
    """Folder in which everything rests."""
    verify: str | None = None
    """Recording id whose sizes, hashes, schemas and row counts are all checked; all are listed without it."""


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and prints."""
    config = tyro.cli(
        Config, args=list(arguments), prog="sparsight recordings", description=__doc__
    )
    store = Store.open(config.store)
    console = Console()
    if config.verify is not None:
        manifest = recordings.open_manifest(store, config.verify)
        recordings.verify(store, manifest)
        console.print(
            f"{config.verify}: {manifest.rows:,} rows in {len(manifest.receipts)} shards, every byte as committed"
        )
        return
    # ids are to be copied, so they are never cut: what a replay was shown stands below its policy
    table = Table("recording", "policy", box=SIMPLE_HEAD)
    for heading in ("rows", "episodes"):
        table.add_column(heading, justify="right")
    table.add_column("sites", overflow="fold")
    for column in table.columns[:2]:
        column.no_wrap = True
    for key in store.list("recordings"):
        if not key.endswith("/manifest.json"):
            continue
        manifest = recordings.open_manifest(store, key.split("/")[1])
        plan = manifest.plan
        shown = plan.inputs.get("replay_of")
        table.add_row(
            plan.recording_id,
            plan.inputs["policy"] + (f"\n on {shown}" if shown else ""),
            f"{manifest.rows:,}",
            str(plan.config["num_episodes"]),
            ", ".join(plan.config["site_widths"]) or "none",
        )
    console.print(table)
