"""What several actors make of one experiment: arm-episodes per second, each number of actors with a Ray of its own."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from rich.console import Console

from benchmarks.measuring import num_cores
from benchmarks.steering.experiment import LABELS, random_arms
from benchmarks.untrained import save_untrained
from cluster.arms import PlayArms, Subject
from cluster.laboratory import Laboratory
from cluster.store import Store
from interp.worlds.mettagrid import MettagridFactory
from jobs.progress import Reporter

TASKS = 16
"""Of an experiment that is divided among actors."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is played."""

    world: str
    hidden: int
    arms: int
    """Of a task."""
    episodes: int
    """Of an arm in a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What an experiment's arms took."""

    rate: float
    """Arm-episodes per second."""
    driver_cpu_s: float


def compare(numbers: Sequence[int], work: Work, rounds: int) -> None:
    """Each number of actors once a round, with a driver of its own."""
    reporter = Reporter(Console(stderr=True))
    taken: dict[int, list[Taken]] = {actors: [] for actors in numbers}
    turns = [actors for _ in range(rounds) for actors in numbers]
    with reporter.stage("steering") as stage:
        for done, actors in enumerate(turns):
            stage.update(done, len(turns), f"experiments; {actors} actors")
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as driver:
                taken[actors].append(driver.submit(play, work, actors).result())
    cores = num_cores()
    alone = [one.rate for one in taken[numbers[0]]]
    print(
        f"\n{work.world}, LSTM({work.hidden}), {TASKS} tasks of {work.arms} arms x {work.episodes} episodes, "
        f"{cores} cores: medians of {rounds} rounds (range)"
    )
    print("  actors  arm-episodes/s            speed-up        efficiency  driver CPU s")
    for actors, each in taken.items():
        speed_ups = [one.rate / first * numbers[0] for one, first in zip(each, alone, strict=True)]
        speed_up = statistics.median(speed_ups)
        print(
            f"  {actors:>6}  {statistics.median(one.rate for one in each):>14,.0f}"
            f"  {speed_up:>7.2f} ({min(speed_ups):.2f} to {max(speed_ups):.2f})"
            f"  {speed_up / min(actors, cores):>10.0%}"
            f"  {statistics.median(one.driver_cpu_s for one in each):>12.2f}",
            flush=True,
        )


def play(work: Work, actors: int) -> Taken:
    """The clock runs after every actor has played; no task has episodes that another had."""
    factory = MettagridFactory.load(work.world)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        policy_id = save_untrained(store, factory, hidden=work.hidden)
        subject = Subject(policy_id=policy_id, factory=factory, labels=LABELS)

        def tasks(first_env_seed: int, num: int) -> list[PlayArms]:
            every = tuple(random_arms(work.hidden, work.arms))
            return [
                PlayArms(
                    subject=subject,
                    arms=every,
                    env_seeds=tuple(range(start, start + work.episodes)),
                )
                for start in range(
                    first_env_seed, first_env_seed + num * work.episodes, work.episodes
                )
            ]

        with Laboratory(store, num_actors=actors) as laboratory:
            laboratory.make(tasks(10**6, 2 * actors))
            timed = tasks(0, TASKS)
            cpu, start = time.process_time(), time.perf_counter()
            laboratory.make(timed)
            return Taken(
                rate=TASKS * work.arms * work.episodes / (time.perf_counter() - start),
                driver_cpu_s=time.process_time() - cpu,
            )
