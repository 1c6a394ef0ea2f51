"""List dictionaries, write one for tools that read SAELens, or take one of theirs in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from cluster import dictionaries
from cluster.store import Store
from interp.dictionaries import saelens
from interp.identity import content_id


@dataclass(frozen=True, kw_only=True)
class List:
    """Show the dictionaries of a store: width, family, error and sparsity on held-out episodes."""

    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a dictionary as cfg.json and sae_weights.safetensors, the layout of SAELens."""

    dictionary: str
    """Id of the dictionary; `sparsight dictionaries list` tells them."""
    out: Path
    """Folder to write; it must not exist yet."""
    architecture: saelens.Architecture | None = None
    """What it is to be called there; by default what fits: jumprelu for thresholds, standard for none, topk."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Take a dictionary from a folder in the layout of SAELens; no code is run. Prints its id."""

    folder: Path
    """Folder with cfg.json and sae_weights.safetensors."""
    site: str | None = None
    """Site of a policy that it reads; by default the hook that the file names."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Import, tyro.conf.subcommand("import")]
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and does what it says."""
    command: Command = tyro.cli(
        Command,
        args=list(arguments),
        prog="sparsight dictionaries",
        description=__doc__,
    )
    store = Store.open(command.store)
    match command:
        case List():
            show_all(store)
        case Export():
            write(store, command)
        case Import():
            print(take(store, command))


def show_all(store: Store) -> None:
    """One line each."""
    table = Table(title=f"Dictionaries of {store.url}", title_justify="left")
    for heading in ("id", "family", "d_in", "d_sae", "FVU", "L0", "dead"):
        table.add_column(heading, justify="left" if heading in ("id", "family") else "right")
    for entry in dictionaries.known(store):
        table.add_row(
            entry.dict_id,
            entry.family,
            str(entry.d_in),
            str(entry.d_sae),
            f"{entry.fvu:.3f}",
            f"{entry.l0:.1f}",
            f"{entry.dead_fraction:.0%}",
        )
    Console().print(table)


def write(store: Store, command: Export) -> None:
    """FileExistsError if the folder is there."""
    dictionary = dictionaries.load(store, command.dictionary)
    files = saelens.to_saelens(dictionary, architecture=command.architecture)
    command.out.mkdir(parents=True)
    for name, content in files.items():
        (command.out / name).write_bytes(content)
    print(command.out)


def take(store: Store, command: Import) -> str:
    """ValueError if the folder holds no dictionary that can be read."""
    names = (saelens.CONFIG_FILE, saelens.WEIGHTS_FILE)
    files = {
        name: (command.folder / name).read_bytes()
        for name in names
        if (command.folder / name).is_file()
    }
    dictionary = saelens.from_saelens(files, site=command.site)
    store.probe()
    content = dictionary.to_bytes()
    dict_id = content_id("d", {name: content[name].hex() for name in sorted(content)})
    origin = {"imported": {"layout": "saelens", "site": dictionary.site}}
    return dictionaries.save(store, dict_id, dictionary, origin).dict_id
