"""How fast are procedural sequences made, and shown to a policy? One core, one thread, no Ray.

    python -m benchmarks.sequences          # or: make bench BENCH=sequences

All strategies play (an agent's way through an episode is one sequence); then a policy that never saw these sequences
computes its states along them, keeping every step or the last alone. The recorder, in turn, plays as many episodes of
that policy in the simulator. Every side reads and writes a store, labels included.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.measuring import Play, Side, alternate, print_ratios, use_one_core
from benchmarks.untrained import save_untrained
from cluster import bank, recorder, recordings
from cluster.bank import BankConfig, PlayShard, ReplayShard
from cluster.recorder import RecordingConfig, RecordShard
from cluster.recordings import Manifest, Plan, Receipt
from cluster.store import Store
from cluster.studio import Studio, Task
from interp.players import STRATEGIES
from interp.rollout import CaptureSteps, EveryStep, SequenceEnd
from interp.worlds.mettagrid import MettagridFactory
from jobs.progress import Reporter

SITES = ("lstm.h", "lstm.c")
WORLD = "arena"
"""The preset in which every strategy finds what it needs."""


@dataclass(frozen=True)
class Config:
    rounds: int = 3
    """Rounds; the median counts."""
    episodes_per_strategy: int = 8
    """Episodes that each strategy plays."""
    hidden: int = 128
    """Width of the policy's LSTM."""


@dataclass(frozen=True)
class Workshop:
    """One process that makes, shows and records, each time in a store of its own."""

    config: Config
    factory: MettagridFactory
    folder: Path

    @property
    def num_episodes(self) -> int:
        return self.config.episodes_per_strategy * len(STRATEGIES)

    def studio(self, name: str) -> Studio:
        return Studio(Store.open(str(self.folder / name)))

    def make(self, number: int) -> float:
        return self._make(self.studio(f"make-{number}"), number)[1]

    def _make(self, studio: Studio, number: int) -> tuple[Manifest, float]:
        bank_config = BankConfig(
            first_env_seed=1000 * number, episodes_per_player=self.config.episodes_per_strategy
        )
        start = time.perf_counter()
        plan = bank.plan_bank(studio.store, self.factory, tuple(STRATEGIES), bank_config)
        tasks = [PlayShard(plan=plan, shard=shard, factory=self.factory) for shard in plan.shards]
        return self._run(studio, plan, tasks, start)

    def show(self, name: str, steps: CaptureSteps) -> Play:
        studio = self.studio(name)
        policy_id = save_untrained(studio.store, self.factory, hidden=self.config.hidden)

        def play(number: int) -> float:
            shown, _ = self._make(studio, number)
            start = time.perf_counter()
            plan = bank.plan_replay(
                studio.store, policy_id, shown.plan.recording_id, self.factory, SITES, steps=steps
            )
            tasks = [
                ReplayShard(
                    plan=plan, shard=shard, shown=receipt, factory=self.factory, steps=steps
                )
                for shard, receipt in zip(plan.shards, shown.receipts, strict=True)
            ]
            return self._run(studio, plan, tasks, start)[1]

        return play

    def record(self) -> Play:
        studio = self.studio("record")
        policy_id = save_untrained(studio.store, self.factory, hidden=self.config.hidden)

        def play(number: int) -> float:
            config = RecordingConfig(
                sites=SITES, first_env_seed=1000 * number, num_episodes=self.num_episodes
            )
            start = time.perf_counter()
            plan = recorder.plan_recording(studio.store, policy_id, self.factory, config)
            tasks = [
                RecordShard(plan=plan, shard=shard, factory=self.factory) for shard in plan.shards
            ]
            return self._run(studio, plan, tasks, start)[1]

        return play

    def _run(
        self, studio: Studio, plan: Plan, tasks: Sequence[Task[Receipt]], start: float
    ) -> tuple[Manifest, float]:
        """The finished recording, and sequences per second."""
        recordings.begin(studio.store, plan)
        for task in tasks:
            studio.run(task)
        manifest = recordings.commit(studio.store, plan)
        sequences = self.num_episodes * self.factory.spec.num_agents
        return manifest, sequences / (time.perf_counter() - start)


def main(config: Config) -> None:
    """Prints sequences per second, each as long as an episode of the world."""
    use_one_core()
    factory = MettagridFactory.load(WORLD)
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(config, factory, Path(folder))
        sides = [
            Side(name="the recorder, with the simulator", play=workshop.record()),
            Side(name="five strategies play a bank", play=workshop.make),
            Side(name="a policy is shown it, every step", play=workshop.show("all", EveryStep())),
            Side(name="a policy is shown it, the ends", play=workshop.show("ends", SequenceEnd())),
        ]
        rates = alternate(Reporter(), "sequences", sides, config.rounds)
    print_ratios(
        f"{WORLD}, LSTM({config.hidden}), {workshop.num_episodes} episodes of {factory.spec.num_agents} agents",
        rates,
        unit="sequences/s",
    )


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.sequences", description=__doc__))
