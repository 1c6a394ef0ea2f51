"""Deliver to W&B what studies could not deliver while they ran."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from cluster.store import Store
from cluster.tracking import letters
from cluster.tracking.access import Access, WandbError
from cluster.tracking.mirror import Courier, deliver_pending, hold_lock, state_line
from cluster.tracking.service import WandbService
from jobs.main import run_as_module
from jobs.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Config:
    study: str | None = None
    """Name of the study; by default all studies of the store."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and delivers; exits with 1 if something is still to be delivered."""
    config = tyro.cli(Config, args=list(arguments), prog="sparsight sync", description=__doc__)
    store = Store.open(config.store)
    known = letters.studies(store)
    if config.study is not None and config.study not in known:
        raise ValueError(
            f"study {config.study} of store {store.url} has nothing to mirror; it has {', '.join(known) or 'no study'} "
            "(run the pipeline with --wandb offline or with a key)"
        )
    if not known:
        raise ValueError(
            f"store {store.url} has nothing to mirror; run a pipeline there with --wandb offline or with a key"
        )
    access = Access.of_environment()
    if not access.has_key:
        raise ValueError(f"no key for {access.host}; set WANDB_API_KEY or run `wandb login`")
    if reason := access.probe():
        raise WandbError(f"{reason}; nothing was delivered, try again later")
    reporter = Reporter()
    failures: list[str] = []
    with WandbService() as service:
        courier = Courier(store, service)
        for study in known if config.study is None else [config.study]:
            with hold_lock(store, study), reporter.stage("sync") as stage:
                failures += deliver_pending(courier, study, stage.update)
            reporter.done("sync", study)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print(state_line(len(failures)))
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    run_as_module("sync")
