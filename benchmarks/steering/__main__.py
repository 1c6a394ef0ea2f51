"""Arms x episodes per second of a steering experiment: as many arms as fill a batch of 512 rows, or one arm at a time.

    python -m benchmarks.steering            # or: make bench BENCH=steering

together    128 arms, rows of the same batch, with labels and returns of every episode
one arm     the same library and the same episodes, one arm after the other; on one episode at a time, and on 16 at once
by hand     a forward hook on the LSTM of a policy in mettagrid's `Rollout`; plays and keeps nothing

One core, one thread, one run, in turns.

    python -m benchmarks.steering --actors 1 2

plays one experiment's arms by so many actors instead, each number with a Ray of its own and in turns, and prints
arm-episodes per second and parallel efficiency: the speed-up over the first number, per core that is there for it.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

from benchmarks.measuring import Side, alternate, print_ratios, use_one_core
from benchmarks.scaling import prepare_drivers
from benchmarks.steering import hooked
from benchmarks.steering.actors import Work, compare
from benchmarks.steering.experiment import LABELS, random_arms
from cluster.process import settle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.rollout import fitting_worlds
from interp.steering.arms import Arm
from interp.steering.trials import play_arms
from interp.worlds.mettagrid import MettagridFactory
from jobs.progress import Reporter


@dataclass(frozen=True)
class Config:
    world: str = "forage"
    """Preset."""
    hidden: int = 128
    """Width of the LSTM."""
    arms: int = 128
    """Arms of the experiment, or of each of its tasks."""
    episodes: int = 4
    """Environment seeds that each arm plays in a turn of ours."""
    rounds: int = 3
    """Rounds that count; one more goes before."""
    actors: tuple[int, ...] = ()
    """Numbers of actors to compare, instead of ways to play on one core."""


class Player:
    """Ours: so many arms and episodes in a batch."""

    def __init__(
        self, config: Config, every: Sequence[Arm], *, at_once: int, episodes: int
    ) -> None:
        torch.manual_seed(0)
        self._factory = MettagridFactory.load(config.world)
        architecture = architecture_for(self._factory, hidden=config.hidden)
        self._policy = TokenLstmPolicy(architecture).requires_grad_(False)
        self._every, self._at_once, self._episodes = every, at_once, episodes
        trials = (1 + at_once) * episodes
        self._world = self._factory(fitting_worlds(self._factory.spec, {}, trials))

    def play(self, number: int) -> float:
        """Arm-episodes per second; the unedited episodes that arms are compared with count as time only."""
        first = number * self._at_once % len(self._every)
        some = [self._every[(first + n) % len(self._every)] for n in range(self._at_once)]
        start = time.perf_counter()
        play_arms(
            self._policy,
            self._world,
            some,
            range(number * self._episodes, (number + 1) * self._episodes),
            labels=LABELS,
        )
        return len(some) * self._episodes / (time.perf_counter() - start)


def main(config: Config) -> None:
    """Prints the table of ratios."""
    if config.actors:
        with tempfile.TemporaryDirectory() as folder:
            prepare_drivers(Path(folder))
            compare(
                config.actors,
                Work(config.world, config.hidden, config.arms, config.episodes),
                config.rounds,
            )
        return
    use_one_core()
    settle()
    every = random_arms(config.hidden, config.arms)
    sides = [
        Side(
            name=f"together: {config.arms} arms",
            play=Player(config, every, at_once=config.arms, episodes=config.episodes).play,
        ),
        Side(
            name="one arm, 16 episodes at once",
            play=Player(config, every, at_once=1, episodes=16).play,
        ),
        Side(
            name="one arm, one episode at a time",
            play=Player(config, every, at_once=1, episodes=1).play,
        ),
        Side(name="by hand", play=hooked.Player(config.world, config.hidden, every).play),
    ]
    title = f"{config.world}, LSTM({config.hidden})"
    reporter = Reporter(Console(stderr=True))
    rates = alternate(reporter, title, sides[::-1], config.rounds)
    print_ratios(title, rates, unit="arm-episodes/s")


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.steering", description=__doc__))
