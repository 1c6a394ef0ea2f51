"""Our rollout loop beside those of mettagrid, RLlib and sb3-contrib: one core, one thread, one run, in turns.

    python -m benchmarks.rollout            # or: make bench BENCH=rollout

In mettagrid's worlds the peer is its own `Rollout`, which plays and keeps nothing. In gymnasium tasks the peers are
those that train recurrent policies there, with the environments, the observations and the very policy that ours then
plays; they use the number of environments at which they are fastest. The head of each peer's file says what it keeps.

A peer that is not installed is left out and named.
"""

import importlib
import statistics
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from benchmarks.measuring import Side, alternate, fastest, print_ratios, use_one_core
from benchmarks.rollout import mettagrid_peer
from benchmarks.rollout.memory import Length, record_apart
from benchmarks.rollout.ours import Kept, Player
from benchmarks.rollout.stages import measure, print_stages
from cluster.process import settle
from interp.policies.formats.reading import read_policy_file
from interp.policies.ppo import architecture_for
from interp.policies.recognition import recognise
from interp.policies.token_lstm import TokenLstmPolicy
from interp.rollout import Trial, roll
from interp.worlds.gymnasium import GymnasiumFactory
from interp.worlds.mettagrid import MettagridFactory
from jobs.progress import Reporter

Part = Literal["mettagrid", "gymnasium", "memory", "stages"]
WORLDS = (("forage", 128), ("arena", 128), ("forage", 512))
"""Preset, and width of the LSTM."""
PEERS = {
    "sb3": "pip install -e . sb3-contrib==2.9.2 -c constraints.txt",
    "rllib": "pip install -e '.[rllib]' -c constraints.txt",
}
SAID = {
    "nothing": "Sparsight, playing only",
    "arrays": "Sparsight, h and c in memory, float32",
    "rows": "Sparsight, h, c, keys as Parquet, float16",
    "rows and labels": "Sparsight, h, c, keys, labels as Parquet",
}
LENGTHS = (
    Length(num_episodes=512),
    Length(num_episodes=2048),
    Length(num_episodes=768, episodes_per_shard=256),
    Length(num_episodes=1024, episodes_per_shard=512),
    Length(num_episodes=256, hidden=512),
)


@dataclass(frozen=True)
class Config:
    parts: tuple[Part, ...] = ("mettagrid", "gymnasium", "memory", "stages")
    """What to measure; stages are where the time of a recorded row goes, by the processor's time."""
    rounds: int = 3
    """Rounds that count; one more goes before."""
    episodes: int = 128
    """Episodes of our side in a round in a world of mettagrid; its peer plays one."""
    tasks: tuple[str, ...] = ("gym:CartPole-v1?mask=1,3", "gym:MountainCar-v0?mask=1")
    """Gymnasium tasks. No policy is trained: an episode of the first has 22 steps then, one of the second 200."""
    steps: int = 40_000
    """Steps in a round in a gymnasium task, on every side."""


def ours(player: Player, *kinds: Kept) -> list[Side]:
    return [Side(name=SAID[kept], play=partial(player.play, kept=kept)) for kept in kinds]


def compare_in_mettagrid(config: Config, reporter: Reporter, world: str, hidden: int) -> None:
    torch.manual_seed(0)
    factory = MettagridFactory.load(world)
    policy = TokenLstmPolicy(architecture_for(factory, hidden=hidden)).requires_grad_(False)
    player = Player(policy, factory, num_trials=config.episodes)
    peer = mettagrid_peer.Player(world, hidden)
    sides = [Side(name=peer.name, play=peer.play), *ours(player, "nothing", "rows and labels")]
    title = f"{world}, LSTM({hidden})"
    rates = alternate(reporter, title, sides, config.rounds)
    print_ratios(title, rates, unit="agent-steps/s")
    del rates[peer.name]
    print_ratios(f"{title}, beside playing only", rates, unit="agent-steps/s")


def compare_in_gymnasium(config: Config, reporter: Reporter, task: str, peer: Any) -> None:
    factory = GymnasiumFactory.load(task)
    with reporter.stage(f"{peer.NAME}, how many environments"):
        collectors = {
            num_envs: peer.Collector(factory, num_envs, config.steps) for num_envs in peer.NUM_ENVS
        }
        num_envs = fastest({number: each.play for number, each in collectors.items()})
    collector = collectors[num_envs]
    with tempfile.TemporaryDirectory() as folder:
        policy = recognise(read_policy_file(collector.save(Path(folder)))).open()
    probes = roll(policy, factory(64), [Trial(env_seed=2**30 + seed) for seed in range(64)])
    episode_steps = statistics.mean(episode.num_steps for episode in probes)
    player = Player(policy, factory, num_trials=ceil(config.steps / episode_steps))
    sides = [
        Side(name=f"{peer.NAME}, {num_envs} environments", play=collector.play),
        *ours(player, "nothing", "arrays", "rows", "rows and labels"),
    ]
    rates = alternate(reporter, task, sides, config.rounds)
    title = f"{task}, {peer.POLICY}, episodes of {episode_steps:.0f} steps"
    print_ratios(title, rates, unit="steps/s")


def weigh(reporter: Reporter) -> None:
    print("\nforage: memory of the process that records, committed to a local store")
    for length in LENGTHS:
        with reporter.stage(f"{length.num_episodes} episodes"):
            recorded = record_apart("forage", length)
        print(
            f"  LSTM({length.hidden})  {length.num_episodes:>5} episodes in {recorded.num_shards:>2} shards"
            f" ({'as asked' if length.episodes_per_shard else 'by default'})"
            f"  {recorded.rows:>10,} rows  peak {recorded.peak_mib:>6,.0f} MiB"
            f" (before the first: {recorded.before_mib:,.0f})  {recorded.rows / recorded.seconds:>8,.0f} rows/s",
            flush=True,
        )


def installed_peers() -> list[Any]:
    """The modules of the peers that can be imported; the others are named, with what installs them."""
    found = []
    for name, remedy in PEERS.items():
        try:
            found.append(importlib.import_module(f"benchmarks.rollout.{name}_peer"))
        except ModuleNotFoundError as error:
            print(f"{name} is not compared ({error}): run `{remedy}`", file=sys.stderr)
    return found


def main(config: Config) -> None:
    """Prints a table of ratios for every comparison."""
    use_one_core()
    settle()
    reporter = Reporter(Console(stderr=True))
    if "mettagrid" in config.parts:
        for world, hidden in WORLDS:
            compare_in_mettagrid(config, reporter, world, hidden)
    if "gymnasium" in config.parts:
        peers = installed_peers()
        for task in config.tasks:
            for peer in peers:
                compare_in_gymnasium(config, reporter, task, peer)
    if "stages" in config.parts:
        columns = {}
        for world, hidden in WORLDS:
            with reporter.stage(f"stages of {world}, LSTM({hidden})"):
                columns[f"{world}, LSTM({hidden})"] = measure(
                    world, hidden, episodes=config.episodes, rounds=config.rounds
                )
        print_stages(columns)
    if "memory" in config.parts:
        weigh(reporter)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.rollout", description=__doc__))
