"""What benchmarks share: rounds that alternate, a table of ratios, the memory of a process.

A busy machine slows whatever runs at the moment. So the sides of a comparison take turns, a round is one turn of each,
and it is the ratio within a round that is reported, as the median over the rounds.
"""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.progress import Reporter

Play = Callable[[int], float]
"""One turn: from the round's number to a rate, for instance agent-steps per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of those compared."""

    name: str
    play: Play


def alternate(
    reporter: Reporter, title: str, sides: Sequence[Side], rounds: int
) -> dict[str, list[float]]:
    """Rates of every side, round by round, after one round that is not counted."""
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    turns = [(number, side) for number in range(rounds + 1) for side in sides]
    with reporter.stage(title) as stage:
        for done, (number, side) in enumerate(turns):
            stage.update(done, len(turns), f"turns; {side.name}")
            rate = side.play(number)
            if number:  # the first one imports, allocates and warms caches
                rates[side.name].append(rate)
    return rates


def fastest(plays: Mapping[int, Play]) -> int:
    """The setting, for instance a number of environments, whose second turn is the fastest."""
    return max(plays, key=lambda setting: [plays[setting](number) for number in range(2)][1])


def print_ratios(title: str, rates: Mapping[str, Sequence[float]], *, unit: str) -> None:
    """One line a side: median rate and its range, and the median of its ratios to the first side, with their range."""
    base = next(iter(rates.values()))
    width = max(map(len, rates))
    print(f"\n{title}: {unit}, median of {len(base)} rounds (range)")
    for name, rate in rates.items():
        ratio = [mine / theirs for mine, theirs in zip(rate, base, strict=True)]
        print(
            f"  {name:<{width}} {statistics.median(rate):>9,.0f}  ({min(rate):>9,.0f} to {max(rate):>9,.0f})"
            f"   {statistics.median(ratio):6.2f}x  ({min(ratio):.2f} to {max(ratio):.2f})",
            flush=True,
        )


def use_one_core() -> None:
    """From now on this process and its children have one core, whatever threads a library starts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def peak_rss_mib() -> float:
    """The most memory that this process had so far. Not `ru_maxrss`: a child inherits that of its parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM; peak memory is measured on Linux only")


def num_cores() -> int:
    """Physical cores that this process may use: two hyperthreads of one count once."""
    allowed = os.sched_getaffinity(0)
    siblings = Path("/sys/devices/system/cpu")
    return len(
        {
            (siblings / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
            for cpu in allowed
        }
    )
