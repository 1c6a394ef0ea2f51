"""Train demo policies by recurrent PPO, as Ray tasks: checkpoints from step 0 on, reproducible by seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import tyro

from cluster.laboratory import Laboratory
from cluster.store import Store
from cluster.training import TrainedRun
from jobs.main import run_as_module
from jobs.progress import Reporter, TrainingNote
from jobs.recipes import TrainDemoConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    store: str = "./store"
    """Folder in which everything rests."""
    train: TrainDemoConfig = field(default_factory=TrainDemoConfig)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and trains."""
    config = tyro.cli(
        Config, args=list(arguments), prog="sparsight train-demo", description=__doc__
    )
    store = Store.open(config.store)
    store.probe()
    reporter = Reporter()
    with Laboratory(store, say=reporter.say) as laboratory, reporter.stage("train") as stage:
        runs = laboratory.train(config.train.runs, TrainingNote(stage))
    for run in runs:
        print_run(reporter, run)


def print_run(reporter: Reporter, run: TrainedRun) -> None:
    """One line per checkpoint."""
    for card in run.checkpoints:
        reporter.console.print(
            f"{card.policy_id}  {run.name:<12} step {card.step:>10,}", highlight=False
        )


if __name__ == "__main__":
    run_as_module("train-demo")
