"""Recording: a policy plays its seeds on a pool of actors, which write committed shards of activations and labels.

A shard is a pure function of the plan: the same config, policy and seeds give the same bytes, whichever actor records
it, however many worlds it plays at once and however often it is killed on the way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from cluster import policies, recordings
from cluster.recordings import Manifest, Plan, Receipt, ShardPlan
from cluster.store import Store
from cluster.studio import Afterwards, Studio
from interp.recording import episode_rows
from interp.rollout import (
    Capture,
    CaptureSteps,
    EveryStep,
    Trial,
    check_sites,
    fitting_worlds,
    roll,
)
from interp.worlds.labels import check_labels, compute_labels
from interp.worlds.world import WorldFactory


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingConfig:
    """What to record of a policy."""

    first_env_seed: int = 10_000
    """Episodes use this environment seed and the ones after it."""
    num_episodes: int = 208
    """Episodes; each plays all agents of one map to its end."""
    sites: tuple[str, ...] = ("lstm.h", "lstm.c")
    """Sites of the policy whose activations are kept."""
    labels: tuple[str, ...] | None = None
    """Ground-truth labels to compute; by default all that the world has."""
    episodes_per_shard: int = 16
    """Episodes of one shard, the unit of work of an actor."""

    def __post_init__(self) -> None:
        for name in ("num_episodes", "episodes_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: at least 1")
        if not 0 <= self.first_env_seed < 2**31 - self.num_episodes:
            raise ValueError(
                f"first_env_seed {self.first_env_seed}: from 0 to 2**31 - num_episodes, which is what maps accept"
            )

    def labels_in(self, factory: WorldFactory) -> tuple[str, ...]:
        """The labels to compute in that world; ValueError if it lacks one."""
        if self.labels is None:
            return tuple(factory.labels)
        check_labels(self.labels, factory.labels)
        return self.labels

    @property
    def env_seeds(self) -> range:
        return range(self.first_env_seed, self.first_env_seed + self.num_episodes)


def plan_recording(
    store: Store,
    policy_id: str,
    factory: WorldFactory,
    config: RecordingConfig,
    *,
    steps: CaptureSteps = EveryStep(),  # noqa: B008 - frozen
    replay_of: str | None = None,
) -> Plan:
    """The work list of a recording.

    With `replay_of`, the policy is not played but run open-loop over the episodes of that recording: it sees the same
    observations and its choices are ignored. That is how two policies are compared on the same states.

    Raises:
        ValueError: a site that the policy lacks, or a label that the world lacks.
        FileNotFoundError: a policy, or a recording to replay, that is not in the store.
    """
    card = policies.read_card(store, policy_id)
    check_sites(card.sites, config.sites)
    inputs = {"policy": policy_id}
    if replay_of is not None:
        recordings.open_manifest(store, replay_of)
        inputs["replay_of"] = replay_of
    seeds = list(config.env_seeds)
    block = config.episodes_per_shard
    return Plan(
        config={
            "world": factory.config,
            "step": card.step,
            "site_widths": {site: card.sites[site] for site in config.sites},
            "labels": {name: factory.labels[name].definition for name in config.labels_in(factory)},
            "steps": {"kind": type(steps).__name__, "every": getattr(steps, "every", 1)},
            "first_env_seed": config.first_env_seed,
            "num_episodes": config.num_episodes,
        },
        inputs=inputs,
        shards=tuple(
            ShardPlan(shard=f"s{start // block:05d}", env_seeds=tuple(seeds[start : start + block]))
            for start in range(0, len(seeds), block)
        ),
    )


@dataclass(frozen=True)
class RecordShard:
    """Task: play one shard of a plan and commit it."""

    plan: Plan
    shard: ShardPlan
    factory: WorldFactory
    steps: CaptureSteps = field(default_factory=EveryStep)
    num_worlds: int | None = None
    """Worlds played at once, by default as many as are fast; changes speed and memory, never a number."""

    @property
    def key(self) -> str:
        return f"{self.plan.recording_id}/{self.shard.shard}"

    def run(self, studio: Studio) -> Afterwards[Receipt]:
        table = self.rows(studio)
        return Afterwards(
            partial(recordings.write_shard, studio.store, self.plan, self.shard.shard, table)
        )

    def rows(self, studio: Studio) -> pa.Table:
        """The shard's rows, episode after episode in the order of its seeds."""
        config: Mapping[str, Any] = self.plan.config
        policy_id = self.plan.inputs["policy"]
        site_widths: Mapping[str, int] = config["site_widths"]
        replayed = self._replayed_actions(studio.store)
        trials = [
            Trial(env_seed=seed, action_TA=replayed.get(seed)) for seed in self.shard.env_seeds
        ]
        capture = Capture(
            sites=tuple(site_widths), steps=self.steps, facts=True, precision="float16"
        )
        fast = fitting_worlds(self.factory.spec, site_widths, len(trials))
        world = studio.world(self.factory, min(self.num_worlds or fast, len(trials)))
        tables: dict[int, pa.Table] = {}
        for episode in roll(studio.policy(policy_id), world, trials, capture):
            assert episode.facts is not None
            tables[episode.index] = episode_rows(
                episode,
                compute_labels(episode.facts, tuple(config["labels"])),
                policy_id=policy_id,
                step=config["step"],
                world=self.factory.name,
                episode_number=episode.env_seed - config["first_env_seed"],
                site_widths=site_widths,
            )
        table = pa.concat_tables([tables[index] for index in sorted(tables)])
        return table.replace_schema_metadata({"recording_id": self.plan.recording_id})

    def _replayed_actions(self, store: Store) -> dict[int, Int32[np.ndarray, "T A"]]:
        source = self.plan.inputs.get("replay_of")
        if source is None:
            return {}
        return recorded_actions(
            store, recordings.open_manifest(store, source), set(self.shard.env_seeds)
        )


def recorded_actions(
    store: Store, manifest: Manifest, env_seeds: set[int]
) -> dict[int, Int32[np.ndarray, "T A"]]:
    """Actions of the episodes of those seeds. ValueError if the recording lacks one, or did not keep every step."""
    if manifest.plan.config["steps"]["kind"] != EveryStep.__name__:
        raise ValueError(
            f"recording {manifest.plan.recording_id} kept the steps {manifest.plan.config['steps']}; "
            "a replay needs every step"
        )
    actions: dict[int, Int32[np.ndarray, "T A"]] = {}
    needed = ["env_seed", "agent", "action"]
    for receipt, shard in zip(manifest.receipts, manifest.plan.shards, strict=True):
        if env_seeds.isdisjoint(shard.env_seeds):
            continue
        table = recordings.read_shard(store, receipt, needed)
        seed_N, agent_N, action_N = (table.column(name).to_numpy() for name in needed)
        for seed in env_seeds.intersection(shard.env_seeds):
            rows = seed_N == seed
            num_agents = int(agent_N[rows].max()) + 1
            actions[seed] = action_N[rows].reshape(-1, num_agents).astype(np.int32)
    if missing := env_seeds - actions.keys():
        raise ValueError(
            f"recording {manifest.plan.recording_id} has no episode of env_seed {min(missing)}"
        )
    return actions
