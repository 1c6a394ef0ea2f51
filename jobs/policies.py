"""List the policies of a store, or show one: source run, step, architecture and the sites that can be recorded."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster import policies
from cluster.store import Store


@dataclass(frozen=True, kw_only=True)
class Config:
    store: str = "./store"
    """Folder in which everything rests."""
    show: str | None = None
    """Policy id to show; all are listed without it."""


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and prints."""
    config = tyro.cli(Config, args=list(arguments), prog="sparsight policies", description=__doc__)
    store = Store.open(config.store)
    console = Console()
    if config.show is not None:
        card = policies.read_card(store, config.show)
        policies.load(
            store, config.show
        )  # a card is only worth showing if the weights are what it says
        console.print(f"{card.policy_id}  {card.name}, step {card.step:,} of run {card.run}")
        console.print(f"world       {card.world}\nparameters  {card.num_parameters:,}")
        sites = ", ".join(f"{site} [{width}]" for site, width in card.sites.items())
        console.print(f"sites       {sites}", markup=False)
        return
    table = Table(box=SIMPLE_HEAD)
    for heading in ("policy", "name", "step", "world", "run"):
        table.add_column(
            heading,
            justify="right" if heading == "step" else "left",
            no_wrap=heading in ("policy", "run"),
        )
    for card in sorted(policies.list_cards(store), key=lambda card: (card.name, card.step)):
        table.add_row(card.policy_id, card.name, f"{card.step:,}", card.world, card.run)
    console.print(table)
