"""What does one driver spend on 100,000 shards and 1,000 actors, whatever is in the shards?

    python -m benchmarks.control_plane      # or: make bench BENCH=control_plane
    python -m benchmarks.control_plane --parts commit

The driver is real: `Laboratory.record` begins the recording, makes the tasks, hands them out by the scheduler of
`cluster.pool`, commits and opens. The actors are not there: a crew in the same process lets each of them be busy for so
long with a task, and puts a receipt and a data object of one byte into the store, without syncing them. What that takes
is measured and left out of the driver's share. What Ray takes for a task is measured last, with actors that are there
and do nothing.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import tyro
from rich.console import Console

from benchmarks.control_plane.driver import (
    Scheduling,
    commit_alone,
    record_all,
    schedule_on_ray,
    schedule_only,
)
from jobs.progress import Reporter

Part = Literal["recording", "paced", "ray", "commit"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Config:
    parts: tuple[Part, ...] = ("recording", "paced", "ray")
    """What to measure; `commit` is a recording whose shards are all there."""
    actors: int = 1000
    """Simulated actors."""
    shards: int = 100_000
    """Shards of the recording."""
    episodes: int = 16
    """Seeds that the plan lists for each shard."""
    shard_ms: float = 1.0
    """How long an actor is busy with a shard, ms. At 1 ms actors always wait for the driver."""
    paced_shards: int = 20_000
    """Shards of a second run, scheduled only, which the driver is to keep up with."""
    paced_shard_ms: float = 400.0
    """How long an actor is busy with one of those, ms: about 16 episodes of forage."""
    ray_tasks: int = 5000
    """Tasks that do nothing, on two actors of a real Ray."""


def main(config: Config) -> None:
    """Prints seconds and bytes of each stage, and the scheduler's share of a task."""
    reporter = Reporter(Console(stderr=True))
    for part in config.parts:
        match part:
            case "recording":
                measure_recording(config, reporter)
            case "paced":
                measure_paced(config, reporter)
            case "ray":
                measure_ray(config, reporter)
            case "commit":
                measure_commit(config, reporter)


def measure_recording(config: Config, reporter: Reporter) -> None:
    with reporter.stage(f"{config.shards:,} shards, {config.actors:,} simulated actors"):
        whole = in_fresh_process(
            partial(
                record_all,
                num_actors=config.actors,
                num_shards=config.shards,
                episodes_per_shard=config.episodes,
                shard_s=config.shard_ms / 1000,
            )
        )
    print(
        f"{config.shards:,} shards of {config.shard_ms:g} ms by {config.actors:,} simulated actors\n"
        f"  before: plan, what is missing, tasks   {whole.before_s:7.2f} s"
    )
    print_scheduling(whole.scheduling)
    print(
        f"  after: receipts, commit, open          {whole.after_s:7.2f} s\n"
        f"  open_manifest alone, once more         {whole.open_s:7.2f} s\n"
        f"  plan.json                              {whole.plan_bytes / 1e6:7.1f} MB\n"
        f"  manifest.json                          {whole.manifest_bytes / 1e6:7.1f} MB\n"
        f"  peak memory of the driver              {whole.peak_mib:7.0f} MiB (before: {whole.start_mib:.0f})",
        flush=True,
    )


def measure_paced(config: Config, reporter: Reporter) -> None:
    with reporter.stage(f"{config.paced_shards:,} tasks of {config.paced_shard_ms:g} ms"):
        scheduling = in_fresh_process(
            partial(
                schedule_only,
                num_actors=config.actors,
                num_tasks=config.paced_shards,
                task_s=config.paced_shard_ms / 1000,
            )
        )
    print(f"{config.paced_shards:,} tasks of {config.paced_shard_ms:g} ms, scheduled only")
    print_scheduling(scheduling)


def measure_ray(config: Config, reporter: Reporter) -> None:
    with reporter.stage(f"{config.ray_tasks:,} tasks on Ray"):
        wall_s, cpu_s = in_fresh_process(partial(schedule_on_ray, num_tasks=config.ray_tasks))
    print(
        f"{config.ray_tasks:,} tasks that do nothing, on two actors of Ray\n"
        f"  scheduler and Ray's part of the driver {cpu_s:7.2f} s of CPU,"
        f" {1e6 * cpu_s / config.ray_tasks:.0f} us a task; wall {1e6 * wall_s / config.ray_tasks:.0f} us a task"
    )


def measure_commit(config: Config, reporter: Reporter) -> None:
    with reporter.stage(f"committing {config.shards:,} shards"):
        found = in_fresh_process(
            partial(commit_alone, num_shards=config.shards, episodes_per_shard=config.episodes)
        )
    print(
        f"{config.shards:,} shards that are all there\n"
        f"  missing_shards                         {found.missing_s:7.2f} s\n"
        f"  receipts                               {found.receipts_s:7.2f} s\n"
        f"  commit, receipts included              {found.commit_s:7.2f} s\n"
        f"  open_manifest                          {found.open_s:7.2f} s\n"
        f"  sizes of all objects                   {found.sizes_s:7.2f} s\n"
        f"  plan.json                              {found.plan_bytes / 1e6:7.1f} MB\n"
        f"  peak memory                            {found.peak_mib:7.0f} MiB"
    )


def print_scheduling(scheduling: Scheduling) -> None:
    microseconds = 1e6 * scheduling.cpu_s / scheduling.num_tasks
    print(
        f"  scheduler                              {scheduling.cpu_s:7.2f} s of CPU, {microseconds:.1f} us a task\n"
        f"    wall {scheduling.seconds:.2f} s, of which {scheduling.simulation_s:.2f} simulate;"
        f" the actors alone would take {scheduling.ideal_s:.2f} s",
        flush=True,
    )


def in_fresh_process(work: Callable[[], Result]) -> Result:
    """For its peak memory is its own then."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work).result()


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.control_plane", description=__doc__))
