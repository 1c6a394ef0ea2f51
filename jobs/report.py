"""Draw the report of a finished study again, from what the store has."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from cluster.store import Store
from cluster.studies import draw_report, load_report, report_address
from jobs.main import run_as_module


@dataclass(frozen=True, kw_only=True)
class Config:
    study: str = "demo"
    """Name of the study."""
    store: str = "./store"
    """Folder in which everything rests."""


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, draws and prints the report's path."""
    config = tyro.cli(Config, args=list(arguments), prog="sparsight report", description=__doc__)
    store = Store.open(config.store)
    draw_report(store, load_report(store, config.study))
    print(report_address(store, config.study))


if __name__ == "__main__":
    run_as_module("report")
