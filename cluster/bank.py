"""The replay bank: one set of observation trajectories that any number of policies and checkpoints are shown.

A bank is a recording of what there was to be seen, by whoever played: policies, uniformly random play, scripts.
It goes through the same protocol (plan, shards, receipts, manifest), and its id is a hash of all that decides it. Each
row names its player.

A replay of a bank by a policy is an ordinary recording: memory is rolled from the first step of each trajectory, the
policy's choices are ignored, labels are the bank's. So what is scored, swept or compared can be a replay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from cluster import policies, recordings
from cluster.recordings import Plan, Receipt, ShardPlan
from cluster.store import Store
from cluster.studio import Afterwards, Studio
from interp.players import STRATEGIES, check_strategy, play_strategies
from interp.policies.uniform import UniformPolicy
from interp.recording import episode_rows, label_columns
from interp.records import Episode
from interp.rollout import (
    Capture,
    CaptureSteps,
    EveryStep,
    Trial,
    check_sites,
    fitting_worlds,
    roll,
)
from interp.trajectories import (
    OBSERVATION,
    OBSERVATION_FIELD,
    PLAYER,
    PLAYER_FIELD,
    Trajectory,
    observation_column,
    observations_of,
    watch,
)
from interp.worlds.labels import label_parts
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.replayed import ReplayedWorlds
from interp.worlds.world import WorldFactory, check_env_seeds

UNIFORM = "uniform"
"""The player that acts at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BankConfig:
    """What a bank holds of each of its players."""

    first_env_seed: int = 60_000
    """Episodes use this environment seed and the ones after it, player by player: no two players share a map."""
    episodes_per_player: int = 16
    """Episodes that each player plays; each gives as many sequences as the world has agents."""
    labels: tuple[str, ...] | None = None
    """Ground-truth labels to keep; by default all that the world has."""
    episodes_per_shard: int = 16
    """Episodes of one shard, the unit of work of an actor."""

    def __post_init__(self) -> None:
        for name in ("episodes_per_player", "episodes_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: at least 1")
        check_env_seeds(self.first_env_seed, self.episodes_per_player)


def plan_bank(
    store: Store, factory: WorldFactory, players: Sequence[str], config: BankConfig
) -> Plan:
    """The work list of a bank. A player is the id of a policy, "uniform", or the name of a strategy.

    Raises:
        ValueError: no players or one twice, a strategy that cannot play in that world, an unknown label.
        FileNotFoundError: a policy that is not in the store.
    """
    if not players or len(set(players)) < len(players):
        raise ValueError(f"players {list(players)}: name at least one, and none twice")
    inputs = {}
    for number, player in enumerate(players):
        if player in STRATEGIES:
            check_strategy(player, factory)
        elif player != UNIFORM:
            policies.read_card(store, player)
            inputs[f"player {number}"] = player
    asked = tuple(factory.labels) if config.labels is None else config.labels
    labels = label_parts(asked, factory.labels)
    shards = []
    for number in range(len(players)):
        first = config.first_env_seed + number * config.episodes_per_player
        seeds = range(first, first + config.episodes_per_player)
        shards += [
            tuple(seeds[start : start + config.episodes_per_shard])
            for start in range(0, len(seeds), config.episodes_per_shard)
        ]
    return Plan(
        config={
            "kind": "bank",
            "world": factory.config,
            "players": list(players),
            "labels": {name: factory.labels[name].definition for name in labels},
            "site_widths": {},
            "steps": {"kind": EveryStep.__name__, "every": 1},
            "first_env_seed": config.first_env_seed,
            "num_episodes": len(players) * config.episodes_per_player,
        },
        inputs=inputs,
        shards=tuple(
            ShardPlan(shard=f"s{number:05d}", env_seeds=seeds)
            for number, seeds in enumerate(shards)
        ),
    )


@dataclass(frozen=True)
class PlayShard:
    """Task: play one shard of a bank, watch it, and commit what was seen."""

    plan: Plan
    shard: ShardPlan
    factory: WorldFactory

    @property
    def key(self) -> str:
        return f"{self.plan.recording_id}/{self.shard.shard}"

    @property
    def player(self) -> str:
        config: Mapping[str, Any] = self.plan.config
        each = config["num_episodes"] // len(config["players"])
        return config["players"][(self.shard.env_seeds[0] - config["first_env_seed"]) // each]

    def run(self, studio: Studio) -> Afterwards[Receipt]:
        table = self.rows(studio)
        return Afterwards(
            partial(recordings.write_shard, studio.store, self.plan, self.shard.shard, table)
        )

    def rows(self, studio: Studio) -> pa.Table:
        """The shard's rows, episode after episode in the order of its seeds."""
        config: Mapping[str, Any] = self.plan.config
        labels = tuple(config["labels"])
        step = 0
        if self.player not in STRATEGIES and self.player != UNIFORM:
            step = policies.read_card(studio.store, self.player).step
        tables = []
        for trajectory in watch(self.factory, self._played(studio), labels):
            table = episode_rows(
                _episode(trajectory),
                trajectory.labels,
                policy_id=self.player,
                step=step,
                world=self.factory.name,
                episode_number=trajectory.env_seed - config["first_env_seed"],
                site_widths={},
            )
            table = _with_player(table, self.player)
            tables.append(table.append_column(OBSERVATION_FIELD, observation_column(trajectory)))
        return pa.concat_tables(tables).replace_schema_metadata(
            {"recording_id": self.plan.recording_id}
        )

    def _played(self, studio: Studio) -> list[tuple[int, Int32[np.ndarray, "_ _"]]]:
        """Seeds and actions, in the order of the seeds."""
        seeds, spec = self.shard.env_seeds, self.factory.spec
        if self.player in STRATEGIES:
            assert isinstance(self.factory, MettagridFactory)
            return list(play_strategies(self.factory, [self.player], seeds))
        policy = (
            UniformPolicy(spec.action_names)
            if self.player == UNIFORM
            else studio.policy(self.player)
        )
        world = studio.world(self.factory, fitting_worlds(spec, {}, len(seeds)))
        episodes = roll(policy, world, [Trial(env_seed=seed) for seed in seeds])
        actions = {episode.env_seed: episode.action_TA for episode in episodes}
        return [(seed, actions[seed]) for seed in seeds]


def _episode(trajectory: Trajectory) -> Episode:
    return Episode(
        env_seed=trajectory.env_seed,
        index=0,
        action_TA=trajectory.action_TA,
        reward_TA=trajectory.reward_TA,
        done_TA=trajectory.done_TA,
        captured_t=np.arange(len(trajectory.action_TA), dtype=np.int32),
    )


def _with_player(table: pa.Table, player: str) -> pa.Table:
    return table.append_column(PLAYER_FIELD, pa.repeat(pa.scalar(player), table.num_rows))


def plan_replay(
    store: Store,
    policy_id: str,
    bank_id: str,
    factory: WorldFactory,
    sites: Sequence[str],
    *,
    steps: CaptureSteps = EveryStep(),  # noqa: B008 - frozen
) -> Plan:
    """The work list of showing a bank to a policy: a recording, in the shards of the bank.

    Raises:
        ValueError: a recording that is no bank, a bank of another world, or a site that the policy lacks.
        FileNotFoundError: a policy or a finished bank that is not in the store.
    """
    bank = recordings.open_manifest(store, bank_id).plan
    check_bank(bank)
    if bank.config["world"] != factory.config:
        raise ValueError(
            f"bank {bank_id} shows world {bank.config['world'].get('name', bank.config['world'])}, not {factory.name}"
        )
    card = policies.read_card(store, policy_id)
    check_sites(card.sites, sites)
    kept = ("world", "labels", "first_env_seed", "num_episodes")
    return Plan(
        config={
            **{name: bank.config[name] for name in kept},
            "step": card.step,
            "site_widths": {site: card.sites[site] for site in sites},
            "steps": {"kind": type(steps).__name__, "every": getattr(steps, "every", 1)},
        },
        inputs={"policy": policy_id, "bank": bank_id},
        shards=bank.shards,
    )


def check_bank(plan: Plan) -> None:
    """ValueError if the recording is no bank."""
    if plan.config.get("kind") != "bank":
        raise ValueError(
            f"recording {plan.recording_id} keeps no observations, so it is no bank; "
            "`sparsight sequences bank` makes one"
        )


@dataclass(frozen=True)
class ReplayShard:
    """Task: show one shard of a bank to a policy, and commit what it computes."""

    plan: Plan
    shard: ShardPlan
    shown: Receipt
    """Of the bank's shard."""
    factory: WorldFactory
    steps: CaptureSteps = field(default_factory=EveryStep)

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
        shown = recordings.read_shard(studio.store, self.shown)
        players = _players(shown)
        trajectories = read_trajectories(shown, self.factory, tuple(config["labels"]))
        trials = [
            Trial(env_seed=seed, action_TA=trajectories[seed].action_TA)
            for seed in self.shard.env_seeds
        ]
        capture = Capture(sites=tuple(site_widths), steps=self.steps, precision="float16")
        spec = self.factory.spec
        worlds = ReplayedWorlds(spec, trajectories)
        world = worlds(fitting_worlds(spec, site_widths, len(trials)))
        tables: dict[int, pa.Table] = {}
        for episode in roll(studio.policy(policy_id), world, trials, capture):
            table = episode_rows(
                episode,
                trajectories[episode.env_seed].labels,
                policy_id=policy_id,
                step=config["step"],
                world=self.factory.name,
                episode_number=episode.env_seed - config["first_env_seed"],
                site_widths=site_widths,
            )
            tables[episode.index] = _with_player(table, players[episode.env_seed])
        return pa.concat_tables(
            [tables[index] for index in sorted(tables)]
        ).replace_schema_metadata({"recording_id": self.plan.recording_id})


def _players(rows: pa.Table) -> dict[int, str]:
    """By env_seed."""
    each = rows.select(["env_seed", PLAYER]).group_by(["env_seed", PLAYER]).aggregate([])
    return dict(
        zip(each.column("env_seed").to_pylist(), each.column(PLAYER).to_pylist(), strict=True)
    )


def read_trajectories(
    rows: pa.Table, factory: WorldFactory, labels: Sequence[str]
) -> dict[int, Trajectory]:
    """Trajectories from the rows of a bank, by env_seed."""
    num_agents = factory.spec.num_agents
    seed_N = rows.column("env_seed").to_numpy()
    starts = np.flatnonzero(np.diff(seed_N, prepend=-1))
    trajectories = {}
    for start, stop in zip(starts, [*starts[1:], len(seed_N)], strict=True):
        part = rows.slice(start, stop - start)
        shape = (part.num_rows // num_agents, num_agents)
        label_NL = label_columns(part, labels)
        env_seed = int(seed_N[start])
        trajectories[env_seed] = Trajectory(
            env_seed=env_seed,
            observation_TA=observations_of(part.column(OBSERVATION), factory.spec, num_agents),
            action_TA=part.column("action").to_numpy().reshape(shape).astype(np.int32),
            reward_TA=part.column("reward").to_numpy().reshape(shape),
            done_TA=part.column("done").to_numpy().reshape(shape),
            labels={
                name: np.ascontiguousarray(label_NL[:, index]).reshape(shape)
                for index, name in enumerate(labels)
            },
        )
    return trajectories
