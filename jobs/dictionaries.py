"""Dictionaries of a store, and their exchange with SAELens: cfg.json and sae_weights.safetensors.

What is written takes recorded activations as they are, centring and scaling included, and SAELens opens it with
SAE.load_from_disk. What is read is data alone: nothing of SAELens is needed, and no code of a file runs.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster import dictionaries
from cluster.staging import Split
from cluster.store import Store
from interp.dictionaries.saelens import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Architecture,
    from_saelens,
    to_saelens,
)
from jobs.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class List:
    """The dictionaries of a store: widths, family, error and sparsity on held-out episodes."""

    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a dictionary of the store in the layout of SAELens. Prints the folder."""

    dictionary: str
    """Dictionary id; `sparsight dictionaries list` shows them."""
    out: Path
    """Folder to write; it must not exist yet."""
    architecture: Architecture | None = None
    """What it is called there; by default what fits: jumprelu for latents with a threshold (as SAELens does with its
    BatchTopK), standard for plain ReLU, topk for the k largest of a row. gated can say the same as jumprelu."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Keep a dictionary of SAELens in the store, measured on held-out rows of a recording. Prints its id.

    One that reads another width, or explains no more than the mean row does, is refused.
    """

    folder: Path
    """Folder with cfg.json and sae_weights.safetensors."""
    recording: str | None = None
    """Recording of the policy that it was trained on; `sparsight recordings list` shows them. Without one, a dictionary
    that Sparsight wrote keeps the figures that it brought, and another is refused."""
    site: str | None = None
    """Site that it reads; by default what cfg.json calls its hook."""
    split: Split = field(default_factory=Split)
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


Verb = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Import, tyro.conf.subcommand("import")]
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, writes or reads."""
    verb = tyro.cli(Verb, args=list(arguments), prog="sparsight dictionaries", description=__doc__)
    store = Store.open(verb.store)
    match verb:
        case List():
            print_list(store)
        case Export() as export:
            write(store, export)
        case Import() as import_:
            read(store, import_)


def print_list(store: Store) -> None:
    """A table. Ids are to be copied, so never cut."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("dictionary", "family", "d_in", "d_sae", "FVU", "L0", "dead"):
        is_name = heading in ("dictionary", "family")
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name)
    for entry in dictionaries.known(store):
        figures = (f"{entry.fvu:.3f}", f"{entry.l0:.1f}", f"{entry.dead_fraction:.0%}")
        table.add_row(entry.dict_id, entry.family, str(entry.d_in), str(entry.d_sae), *figures)
    Console().print(table)


def write(store: Store, config: Export) -> None:
    """Writes the folder, which appears when it is whole, and prints it."""
    if config.out.exists():
        raise FileExistsError(f"{config.out} exists; name a new folder, or remove it")
    dictionary = dictionaries.load(store, config.dictionary)
    files = to_saelens(dictionary, architecture=config.architecture)
    partial = config.out.with_name(f"{config.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    partial.rename(config.out)
    print(config.out)


def read(store: Store, config: Import) -> None:
    """Measures it, keeps it and prints its id."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (config.folder / name).is_file():
            raise FileNotFoundError(
                f"{config.folder} has no {name}; the layout of SAELens is {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    files = {name: (config.folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    dictionary = from_saelens(files, site=config.site)
    store.probe()
    reporter = Reporter()
    with reporter.stage("import") as stage:
        entry = dictionaries.adopt(
            store,
            dictionary,
            config.recording,
            split=config.split,
            origin={"imported": "SAELens"},
            note=stage.update,
        )
    reporter.done(
        "import",
        f"{entry.family}, {entry.d_sae:,} latents of {dictionary.site}: FVU {entry.fvu:.3f}, L0 {entry.l0:.1f}, "
        f"{entry.dead_fraction:.0%} dead",
    )
    print(entry.dict_id)
