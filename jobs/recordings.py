"""List the recordings of a store, or verify every byte of one."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro
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
    table = Table(title=f"Recordings in {config.store}", title_justify="left")
    for heading in ("recording", "policy", "rows", "episodes", "sites", "replay of"):
        table.add_column(heading, justify="right" if heading in ("rows", "episodes") else "left")
    for key in store.list("recordings"):
        if not key.endswith("/manifest.json"):
            continue
        manifest = recordings.open_manifest(store, key.split("/")[1])
        plan = manifest.plan
        table.add_row(
            plan.recording_id,
            plan.inputs["policy"],
            f"{manifest.rows:,}",
            str(plan.config["num_episodes"]),
            ", ".join(plan.config["site_widths"]) or "none",
            plan.inputs.get("replay_of", ""),
        )
    console.print(table)
