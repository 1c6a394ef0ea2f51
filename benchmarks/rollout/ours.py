"""Our loop on one core, keeping as much of what it plays as it is asked to."""

import time
from collections.abc import Mapping, Sequence
from typing import Literal

from cluster.recorder import RecordingConfig
from cluster.recordings import parquet_bytes
from interp.policies.policy import Policy
from interp.recording import shard_rows
from interp.records import Episode
from interp.rollout import Capture, EveryStep, Trial, fitting_worlds, roll
from interp.worlds.labels import compute_labels_together
from interp.worlds.world import World, WorldFactory

Kept = Literal["nothing", "arrays", "rows", "rows and labels"]
"""nothing            playing only
arrays             h, c, action, reward, done of every step, float32, in memory: what a peer keeps
rows               the same with all keys, float16, as the bytes of a Parquet shard
rows and labels    and the facts that the simulator knows, and every label of them: what the recorder keeps
"""


class Player:
    """A policy and its world, made once: neither is part of what is timed."""

    def __init__(
        self,
        policy: Policy,
        factory: WorldFactory,
        *,
        num_trials: int,
        sites: Sequence[str] = ("lstm.h", "lstm.c"),
    ) -> None:
        self._policy = policy
        self._factory = factory
        self._num_trials = num_trials
        self._widths: Mapping[str, int] = {site: policy.sites[site] for site in sites}
        self._world: World = factory(fitting_worlds(factory.spec, self._widths, num_trials))
        recorded = RecordingConfig(num_episodes=4 * num_trials)
        self._shard_episodes = recorded.episodes_of_a_shard(factory, self._widths, EveryStep())

    def play(self, number: int, kept: Kept) -> float:
        """Agent-steps per second of one round, whose seeds are its own."""
        sites = () if kept == "nothing" else tuple(self._widths)
        capture = Capture(
            sites=sites,
            facts=kept == "rows and labels",
            precision="float16" if kept.startswith("rows") else "float32",
        )
        first = number * self._num_trials
        trials = [Trial(env_seed=first + index) for index in range(self._num_trials)]
        num_steps, episodes = 0, []
        start = time.perf_counter()
        for episode in roll(self._policy, self._world, trials, capture):
            num_steps += episode.action_TA.size
            if kept != "nothing":
                episodes.append(episode)
            if kept.startswith("rows") and len(episodes) == self._shard_episodes:
                self._encode(episodes)  # as the recorder divides them
                episodes = []
        if kept.startswith("rows") and episodes:
            self._encode(episodes)
        return num_steps / (time.perf_counter() - start)

    def _encode(self, episodes: Sequence[Episode]) -> None:
        facts = [episode.facts for episode in episodes if episode.facts is not None]
        table = shard_rows(
            episodes,
            compute_labels_together(facts, tuple(self._factory.labels)) if facts else {},
            policy_id="p-0000000000000000",
            step=0,
            world=self._factory.name,
            first_env_seed=0,
            site_widths=self._widths,
        )
        parquet_bytes(table)
