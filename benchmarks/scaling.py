"""Does recording grow with the number of actors and nodes, and what does a shard cost besides its work?

    python -m benchmarks.scaling            # or: make bench BENCH=scaling

The real recorder writes into a local store: by plain processes that share nothing, which is what this machine can do;
by actors of one Ray; and by actors of one CPU on nodes of a Ray cluster whose nodes are raylets of this machine. Every
run has a driver of its own, and times one recording after another has started all actors. The cases alternate.

More actors than cores cannot be faster: efficiency is against one plain process times the physical cores in use.
"""

import logging
import multiprocessing
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import ray
import tyro
from ray.cluster_utils import Cluster
from rich.console import Console

from benchmarks.measuring import num_cores, peak_rss_mib
from benchmarks.untrained import save_untrained
from cluster import recordings, runtime
from cluster.laboratory import Laboratory
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.recordings import Plan, ShardPlan
from cluster.store import Store
from cluster.studio import Studio
from interp.worlds.catalogue import load_world
from interp.worlds.world import WorldFactory
from jobs.progress import Reporter

WARM_UP_SEED = 2**20
"""Its episodes are recorded before the clock runs, and are none of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is recorded."""

    world: str
    num_shards: int
    episodes_per_shard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Who records."""

    kind: Literal["plain process", "actor", "node"]
    number: int

    def __str__(self) -> str:
        plural = {"plain process": "es", "actor": "s", "node": "s"}[self.kind]
        return f"{self.number} {self.kind}{plural if self.number > 1 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a recording took."""

    rows: int
    seconds: float
    driver_cpu_s: float
    """CPU seconds of the driver, all its threads."""
    driver_peak_mib: float


@dataclass(frozen=True)
class Config:
    rounds: int = 2
    """Rounds; the median counts."""
    actors: tuple[int, ...] = (1, 2)
    """Actors of one Ray."""
    nodes: tuple[int, ...] = (2, 3)
    """Nodes with one actor each, besides a head."""
    shards: int = 12
    """Shards of a recording."""
    episodes: int = 32
    """Episodes of a shard, of 1,024 agent-steps each."""
    tiny_shards: int = 300
    """Shards of one episode of two steps, which show what a shard costs whatever is in it."""


def main(config: Config) -> None:
    """Prints rates and efficiencies, and what a tiny shard takes with Ray and without."""
    with tempfile.TemporaryDirectory() as folder:
        prepare_drivers(Path(folder))
        measure(config)


def measure(config: Config) -> None:
    reporter = Reporter(Console(stderr=True))
    work = Work(world="forage", num_shards=config.shards, episodes_per_shard=config.episodes)
    cases = [
        *(Case(kind="plain process", number=n) for n in sorted({*config.actors, *config.nodes})),
        *(Case(kind="actor", number=n) for n in config.actors),
        *(Case(kind="node", number=n) for n in config.nodes),
    ]
    print_scaling(rounds_of(reporter, "scaling", work, cases, config.rounds))
    tiny = Work(
        world="gym:CartPole-v1?mask=1,3&max_steps=2",
        num_shards=config.tiny_shards,
        episodes_per_shard=1,
    )
    cases = [Case(kind="plain process", number=1), Case(kind="actor", number=1)]
    print_costs(rounds_of(reporter, "tiny shards", tiny, cases, config.rounds), config.tiny_shards)


def rounds_of(
    reporter: Reporter, title: str, work: Work, cases: list[Case], rounds: int
) -> dict[Case, list[Taken]]:
    """Each case once a round, in a process of its own."""
    taken: dict[Case, list[Taken]] = {case: [] for case in cases}
    turns = [case for _ in range(rounds) for case in cases]
    with reporter.stage(title) as stage:
        for done, case in enumerate(turns):
            stage.update(done, len(turns), f"recordings; {case}")
            with (
                tempfile.TemporaryDirectory() as folder,
                ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as driver,
            ):
                taken[case].append(driver.submit(record, case, work, folder).result())
    return taken


def print_scaling(taken: dict[Case, list[Taken]]) -> None:
    cores = num_cores()
    rate = {case: [one.rows / one.seconds for one in each] for case, each in taken.items()}
    alone = rate[next(iter(taken))]
    print(f"\nforage, LSTM(128), {cores} cores: medians of {len(alone)} rounds (range)")
    print(
        f"  {'':<20} agent-steps/s       speed-up        per core  of processes  driver CPU s  driver peak MiB"
    )
    for case, each in taken.items():
        processes = rate[Case(kind="plain process", number=case.number)]
        speed_ups = ratios(rate[case], alone)
        speed_up = statistics.median(speed_ups)
        print(
            f"  {case!s:<20} {statistics.median(rate[case]):>13,.0f}"
            f" {speed_up:>7.2f} ({min(speed_ups):.2f} to {max(speed_ups):.2f})"
            f" {speed_up / min(case.number, cores):>9.0%}"
            f" {statistics.median(ratios(rate[case], processes)):>13.0%}"
            f" {statistics.median(one.driver_cpu_s for one in each):>13.2f}"
            f" {max(one.driver_peak_mib for one in each):>16,.0f}",
            flush=True,
        )


def print_costs(taken: dict[Case, list[Taken]], num_shards: int) -> None:
    print(
        f"\n{num_shards} shards of one episode of two steps: ms a shard, median of {len(next(iter(taken.values())))}"
    )
    for case, each in taken.items():
        wall = statistics.median(one.seconds for one in each)
        cpu = statistics.median(one.driver_cpu_s for one in each)
        driver = (
            f", driver CPU {1000 * cpu / num_shards:.2f}" if case.kind != "plain process" else ""
        )
        print(f"  {case!s:<20} {1000 * wall / num_shards:>6.2f}{driver}", flush=True)


def ratios(rates: list[float], base: list[float]) -> list[float]:
    return [mine / theirs for mine, theirs in zip(rates, base, strict=True)]


def prepare_drivers(folder: Path) -> None:
    """What a driver finds in its environment: a token, which Ray reads when it is imported, and what
    `cluster.runtime` gives to workers, for nodes that it does not start.

    Ray's workers are nice to others, by 15, which plain processes are not: on a machine that does other things as well
    actors would seem slow. Here all are equal.
    """
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
    }
    os.environ.pop("METTAGRID_OBS_THREADS", None)


# --- in the driver's process


def record(case: Case, work: Work, folder: str) -> Taken:
    """Records a little, so that everybody is there, then records and measures."""
    store = Store.open(folder)
    factory = load_world(work.world)
    policy_id = save_untrained(store, factory)
    plan_of = partial(_plan, store, policy_id, factory, work)
    with recorder(case, store, factory) as make:
        make(plan_of(num_shards=2 * case.number, first_env_seed=WARM_UP_SEED))
        cpu, start = time.process_time(), time.perf_counter()
        rows = make(plan_of(num_shards=work.num_shards, first_env_seed=0))
        return Taken(
            rows=rows,
            seconds=time.perf_counter() - start,
            driver_cpu_s=time.process_time() - cpu,
            driver_peak_mib=peak_rss_mib(),
        )


def _plan(
    store: Store,
    policy_id: str,
    factory: WorldFactory,
    work: Work,
    *,
    num_shards: int,
    first_env_seed: int,
) -> Plan:
    config = RecordingConfig(
        first_env_seed=first_env_seed,
        num_episodes=num_shards * work.episodes_per_shard,
        episodes_per_shard=work.episodes_per_shard,
    )
    return plan_recording(store, policy_id, factory, config)


@contextmanager
def recorder(case: Case, store: Store, factory: WorldFactory) -> Iterator[Callable[[Plan], int]]:
    """From a plan to the number of rows recorded."""
    match case.kind:
        case "plain process":
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(case.number, context) as processes:
                yield partial(record_by_processes, processes, case.number, store, factory)
        case "actor":
            yield from by_laboratory(case, store, factory)
        case "node":
            with nodes(case.number):
                yield from by_laboratory(case, store, factory)


def by_laboratory(
    case: Case, store: Store, factory: WorldFactory
) -> Iterator[Callable[[Plan], int]]:
    with Laboratory(store, num_actors=case.number) as laboratory:
        yield lambda plan: laboratory.record([(plan, factory)])[0].rows


@contextmanager
def nodes(number: int) -> Iterator[None]:
    """A cluster of so many nodes besides its head, each of one CPU: no two actors fit on one."""
    node: dict[str, Any] = {
        "num_cpus": 1,
        "object_store_memory": runtime.SMALLEST_OBJECT_STORE_BYTES,
    }
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(number):
            cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def record_by_processes(
    processes: ProcessPoolExecutor, number: int, store: Store, factory: WorldFactory, plan: Plan
) -> int:
    """Each process has every n-th shard, and nobody to ask."""
    recordings.begin(store, plan)
    shares = [plan.shards[first::number] for first in range(number)]
    for done in [processes.submit(record_share, store, factory, plan, share) for share in shares]:
        done.result()
    return recordings.commit(store, plan).rows


def record_share(
    store: Store, factory: WorldFactory, plan: Plan, share: Sequence[ShardPlan]
) -> None:
    """As an actor does: one shard is encoded and stored while the next is played."""
    studio = _studio(store)
    tasks = [RecordShard(plan=plan, shard=shard, factory=factory) for shard in share]
    with ThreadPoolExecutor(max_workers=2) as threads:
        list(threads.map(studio.run, tasks))


_studio = lru_cache(maxsize=1)(Studio)
"""One a process."""


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.scaling", description=__doc__))
