"""Write a recording for other tools: Parquet with float lists, numpy arrays, or a Hugging Face dataset folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from cluster.export import Layout, Precision, export
from cluster.handed_in import check_lasting
from cluster.staging import Split
from cluster.store import Store
from jobs.main import run_as_module
from jobs.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Config:
    recording: str
    """Recording id; `sparsight recordings` lists them."""
    out: Path
    """Folder to write; it must not exist yet."""
    layout: Layout = "parquet"
    """parquet: a file a shard, activations as lists of floats; npy: an array per site, to be mapped into memory, and
    rows.parquet; hf: a folder that Hugging Face's load_dataset reads, divided into train and test by episode."""
    sites: tuple[str, ...] = ()
    """Activations to write; all that were recorded by default."""
    precision: Precision = "float32"
    """Of the activations in the export; recordings are float16."""
    split: Split = field(default_factory=Split)
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, exports and prints the folder."""
    config = tyro.cli(Config, args=list(arguments), prog="sparsight export", description=__doc__)
    check_lasting("--out", config.out)
    reporter = Reporter()
    with reporter.stage("export") as stage:
        rows = export(
            Store.open(config.store),
            config.recording,
            config.out,
            layout=config.layout,
            sites=config.sites,
            precision=config.precision,
            split=config.split,
            note=stage.update,
        )
    reporter.done("export", f"{rows:,} rows")
    print(config.out)


if __name__ == "__main__":
    run_as_module("export")
