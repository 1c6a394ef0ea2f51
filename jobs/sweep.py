"""Train sparse autoencoders on a recording with Ray Tune, and keep the best of the wanted sparsity."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import tyro
from rich.table import Table

from cluster.laboratory import Laboratory
from cluster.staging import Split
from cluster.store import Store
from jobs.progress import Reporter, SweepNote
from jobs.recipes import SweepConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    recording: str
    """Recording id; `sparsight recordings` lists them."""
    store: str = "./store"
    """Folder in which everything rests."""
    seed: int = 0
    """Seed of weights and row order."""
    actors: int | None = None
    """Trials at once; by default one per core. Never changes a number."""
    split: Split = field(default_factory=Split)
    sweep: SweepConfig = field(default_factory=SweepConfig)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, sweeps and prints every trial."""
    config = tyro.cli(Config, args=list(arguments), prog="sparsight sweep", description=__doc__)
    store = Store.open(config.store)
    store.probe()
    reporter = Reporter()
    with (
        Laboratory(store, num_actors=config.actors) as laboratory,
        reporter.stage("sweep") as stage,
    ):
        result = laboratory.sweep(
            config.recording,
            config.sweep.site,
            config.sweep.trials,
            split=config.split,
            seed=config.seed,
            target_l0=config.sweep.target_l0,
            on_progress=SweepNote(stage),
        )
    table = Table(title=f"Trials on {config.recording} {config.sweep.site}", title_justify="left")
    for heading in ("family", "FVU", "L0", "dead"):
        table.add_column(heading, justify="left" if heading == "family" else "right")
    for trial in result.trials:
        family = dict(trial.config["family"])
        name = family.pop("name")
        strength = next(iter(family.items()))
        table.add_row(
            f"{name} {strength[0]}={strength[1]}",
            f"{trial.fvu:.3f}",
            f"{trial.l0:.1f}",
            f"{trial.dead_fraction:.0%}",
        )
    reporter.console.print(table)
    print(result.chosen.dict_id)
