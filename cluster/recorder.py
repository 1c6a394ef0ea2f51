"""Recording: a policy plays its seeds on a pool of actors, which write committed shards of activations and labels.

A shard is a pure function of the plan: the same config, policy and seeds give the same bytes, whichever actor records
it, however many worlds it plays at once and however often it is killed on the way.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from cluster import policies, recordings
from cluster.placement import Device, in_identity
from cluster.recordings import Manifest, Plan, Receipt, ShardPlan
from cluster.store import Store
from cluster.studio import Afterwards, Studio
from interp.policies.bundle import PolicyCard
from interp.recording import shard_rows
from interp.records import KEY_FIELDS
from interp.rollout import (
    FULL_BATCH_ROWS,
    Capture,
    CaptureSteps,
    EveryStep,
    Trial,
    check_sites,
    fitting_worlds,
    roll,
)
from interp.sampling import Reservoir
from interp.worlds.labels import check_labels, compute_labels_together, label_parts
from interp.worlds.world import WorldFactory, check_env_seeds

logger = logging.getLogger(__name__)

SHARD_BYTES = 96 << 20
"""What a shard of default size takes in memory."""
ACTOR_BYTES = 1536 << 20
"""What an actor may take. Less what it takes without a shard, that is four times a shard: rows while they are played;
of the shard before, rows and bytes, twice while these are copied out of Parquet's buffer."""
IMPORT_BYTES = 560 << 20
"""What an actor takes before its first shard, and what its worlds and facts take besides, measured."""
MOST_SHARD_BYTES = (ACTOR_BYTES - IMPORT_BYTES) // 4


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
    """Ground-truth labels to compute; by default all that the world has. Of one made of others, as a&!b@within5, the
    parts are kept, and it is asked for again when concepts are scored."""
    episodes_per_shard: int | None = None
    """Episodes of one shard, the unit of work of an actor; by default as many as fill a batch of the policy and fit 96
    MiB, and a quarter of the recording at most."""
    max_bytes: int | None = None
    """Budget of the recording in the store, in bytes. If all rows could take more, every shard keeps an even share: the
    rows that a sample with weights chooses. A budget that has no room for one row of each label is refused."""
    rows_per_shard: int | None = None
    """Most rows that a shard keeps, chosen in the same way; of both limits the lower one holds."""
    label_share: float = 0.5
    """Where rows are sampled, the share of them set aside for rows where a rare label holds, evenly over all labels."""
    sample_salt: str = "sample-0"
    """Where rows are sampled, another salt draws other rows."""

    def __post_init__(self) -> None:
        for name in ("num_episodes", "episodes_per_shard", "max_bytes", "rows_per_shard"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value}: at least 1")
        Reservoir(rows=1, label_share=self.label_share, salt=self.sample_salt)
        check_env_seeds(self.first_env_seed, self.num_episodes)

    def labels_in(self, factory: WorldFactory) -> tuple[str, ...]:
        """The labels asked for in that world; ValueError if it lacks one."""
        if self.labels is None:
            return tuple(factory.labels)
        check_labels(self.labels, factory.labels)
        return self.labels

    def columns_in(self, factory: WorldFactory) -> tuple[str, ...]:
        """The labels to keep: those asked for, of one made of others its parts, from which it can be told."""
        return label_parts(self.labels_in(factory), factory.labels)

    @property
    def env_seeds(self) -> range:
        return range(self.first_env_seed, self.first_env_seed + self.num_episodes)

    def episodes_of_a_shard(
        self, factory: WorldFactory, site_widths: Mapping[str, int], steps: CaptureSteps
    ) -> int:
        """`episodes_per_shard`, or what it is by default; a warning if that is more than an actor should hold.

        Raises:
            ValueError: one episode alone may be more.
        """
        spec = factory.spec
        row_bytes = 2 * sum(site_widths.values()) + _KEY_BYTES + len(self.columns_in(factory))
        episode_bytes = len(steps.steps(spec.max_steps)) * spec.num_agents * row_bytes
        in_memory = max(1, int(SHARD_BYTES / episode_bytes))
        most = int(MOST_SHARD_BYTES / episode_bytes)
        if not most:
            raise ValueError(
                f"an episode of {spec.name} of up to {spec.max_steps} steps and {spec.num_agents} agents may take "
                f"{episode_bytes / (1 << 20):.0f} MiB of sites {', '.join(self.sites)}, but an actor that stays below "
                f"{ACTOR_BYTES >> 20} MiB in all holds {MOST_SHARD_BYTES >> 20} at a time: record every n-th step or "
                "the last one, fewer sites, or a world with a lower time limit (max_steps)"
            )
        if (asked := self.episodes_per_shard) is not None:
            if min(asked, self.num_episodes) > most:
                logger.warning(
                    "episodes_per_shard %d: a shard takes up to %.0f MiB, and an actor holds several copies; up to %d "
                    "leave it within 1.5 GiB",
                    asked,
                    min(asked, self.num_episodes) * episode_bytes / (1 << 20),
                    most,
                )
            return asked
        full = ceil(FULL_BATCH_ROWS / spec.num_agents)
        return min(full, in_memory, ceil(self.num_episodes / 4))


# Of a shard, from above, measured on Parquet of recordings: a number of an activation takes two bytes, which LZ4 cannot
# shrink; keys and the inclusion probability up to 24, a label .2; each chunk of a column has statistics and headers.
_ACTIVATION_OVERHEAD = 1.01
_KEY_BYTES, _LABEL_BYTES, _CHUNK_BYTES, _NOTE_BYTES = 24.0, 0.25, 290, 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How large a recording may become: bounds, reached if every episode lasts to its time limit."""

    num_shards: int
    shard_episodes: int
    shard_rows: int
    """Rows that a shard captures."""
    kept_rows: int
    """Rows of them that it keeps."""
    row_bytes: float
    group_bytes: int
    """What every group of `recordings.ROW_GROUP_ROWS` rows takes besides: statistics and headers of its columns."""
    shard_bytes: int
    """What a shard takes besides: schema, receipt, its lines in plan and manifest."""

    @classmethod
    def of(
        cls, card: PolicyCard, factory: WorldFactory, config: RecordingConfig, steps: CaptureSteps
    ) -> "Estimate":
        """ValueError if the budget cannot be kept."""
        labels = config.columns_in(factory)
        site_widths = {site: card.sites[site] for site in config.sites}
        widths = sum(site_widths.values())
        episodes = min(config.episodes_of_a_shard(factory, site_widths, steps), config.num_episodes)
        num_columns = len(KEY_FIELDS) + len(labels) + len(config.sites) + 1
        spec = factory.spec
        shard_rows = episodes * spec.num_agents * len(steps.steps(spec.max_steps))
        whole = cls(
            num_shards=ceil(config.num_episodes / episodes),
            shard_episodes=episodes,
            shard_rows=shard_rows,
            kept_rows=shard_rows,
            row_bytes=2 * widths * _ACTIVATION_OVERHEAD + _KEY_BYTES + _LABEL_BYTES * len(labels),
            group_bytes=num_columns * _CHUNK_BYTES,
            shard_bytes=_NOTE_BYTES + 20 * episodes,
        )
        limits = [shard_rows]
        if config.rows_per_shard is not None:
            limits.append(config.rows_per_shard)
        if config.max_bytes is not None:
            limits.append(whole._rows_within(config.max_bytes))
        kept = replace(whole, kept_rows=min(limits))
        needed = ceil(len(labels) / config.label_share) if config.label_share else 1
        if kept.is_sample and kept.kept_rows < needed:
            raise ValueError(
                f"max_bytes {config.max_bytes} and rows_per_shard {config.rows_per_shard} leave {kept.kept_rows} rows "
                f"for each of {kept.num_shards} shards, but {len(labels)} labels with label_share "
                f"{config.label_share} want at least {needed}: keep at least "
                f"{replace(whole, kept_rows=needed).bytes} bytes, or record fewer episodes, sites or labels, or more "
                "episodes_per_shard"
            )
        return kept

    def _rows_within(self, max_bytes: int) -> int:
        """Rows of every shard that a budget has room for."""
        group_rows = recordings.ROW_GROUP_ROWS
        groups, left = divmod(
            max_bytes / self.num_shards - self.shard_bytes,
            self.group_bytes + group_rows * self.row_bytes,
        )
        return max(
            0, int(groups) * group_rows + max(0, int((left - self.group_bytes) / self.row_bytes))
        )

    @property
    def is_sample(self) -> bool:
        """Whether rows may be left out."""
        return self.kept_rows < self.shard_rows

    @property
    def bytes(self) -> int:
        """In the store, once the recording is finished."""
        num_groups = ceil(self.kept_rows / recordings.ROW_GROUP_ROWS)
        shard = self.shard_bytes + num_groups * self.group_bytes + self.kept_rows * self.row_bytes
        return ceil(self.num_shards * shard)

    @property
    def whole_bytes(self) -> int:
        """The same if every row were kept."""
        return replace(self, kept_rows=self.shard_rows).bytes


def estimate_recording(
    store: Store,
    policy_id: str,
    factory: WorldFactory,
    config: RecordingConfig,
    *,
    steps: CaptureSteps = EveryStep(),  # noqa: B008 - frozen
) -> Estimate:
    """How large the recording of that policy may become. Raises as `plan_recording` does."""
    card = policies.read_card(store, policy_id)
    check_sites(card.sites, config.sites)
    return Estimate.of(card, factory, config, steps)


def plan_recording(
    store: Store,
    policy_id: str,
    factory: WorldFactory,
    config: RecordingConfig,
    *,
    steps: CaptureSteps = EveryStep(),  # noqa: B008 - frozen
    replay_of: str | None = None,
    device: Device = "cpu",
) -> Plan:
    """The work list of a recording, for actors that compute on that device, which is part of what is recorded.

    With `replay_of`, the policy is not played but run open-loop over the episodes of that recording: it sees the same
    observations and its choices are ignored. That is how two policies are compared on the same states.

    A recording that may be larger than `config` allows is planned as a sample, which is another recording; see
    `interp.sampling`. As rows are chosen shard by shard, its id depends on the division into shards too.

    Raises:
        ValueError: a site that the policy lacks, a label that the world lacks, a budget that is too small, or a
            recording to replay that did not keep every step.
        FileNotFoundError: a policy, or a recording to replay, that is not in the store.
    """
    card = policies.read_card(store, policy_id)
    check_sites(card.sites, config.sites)
    inputs = {"policy": policy_id}
    if replay_of is not None:
        check_replayable(recordings.open_manifest(store, replay_of).plan)
        inputs["replay_of"] = replay_of
    estimate = Estimate.of(card, factory, config, steps)
    sampling = (
        {
            "rows": estimate.kept_rows,
            "label_share": config.label_share,
            "salt": config.sample_salt,
            "episodes_per_shard": estimate.shard_episodes,
        }
        if estimate.is_sample
        else None
    )
    seeds = list(config.env_seeds)
    block = estimate.shard_episodes
    return Plan(
        config={
            "world": factory.config,
            "step": card.step,
            "site_widths": {site: card.sites[site] for site in config.sites},
            "labels": {
                name: factory.labels[name].definition for name in config.columns_in(factory)
            },
            "steps": {"kind": type(steps).__name__, "every": getattr(steps, "every", 1)},
            "first_env_seed": config.first_env_seed,
            "num_episodes": config.num_episodes,
            **({"sampling": sampling} if sampling else {}),
            **in_identity(device),
        },
        inputs=inputs,
        shards=tuple(
            ShardPlan(shard=f"s{start // block:05d}", env_seeds=tuple(seeds[start : start + block]))
            for start in range(0, len(seeds), block)
        ),
    )


def reservoir_of(plan: Plan) -> Reservoir | None:
    """What chooses the rows of a sampled recording."""
    sampling = plan.config.get("sampling")
    if sampling is None:
        return None
    return Reservoir(**{name: sampling[name] for name in ("rows", "label_share", "salt")})


def device_of_plan(plan: Plan) -> Device:
    """Where its policy computes, or has computed."""
    return plan.config.get("device", "cpu")


def check_replayable(plan: Plan) -> None:
    """ValueError if the recording did not keep every step."""
    recordings.check_whole(plan, "a replay")
    if plan.config["steps"]["kind"] != EveryStep.__name__:
        raise ValueError(
            f"recording {plan.recording_id} kept the steps {plan.config['steps']}; a replay needs every step"
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
        policy = studio.policy(policy_id, device_of_plan(self.plan))
        site_widths: Mapping[str, int] = config["site_widths"]
        replayed = self._replayed_actions(studio)
        trials = [
            Trial(env_seed=seed, action_TA=replayed.get(seed)) for seed in self.shard.env_seeds
        ]
        capture = Capture(
            sites=tuple(site_widths), steps=self.steps, facts=True, precision="float16"
        )
        fast = fitting_worlds(self.factory.spec, site_widths, len(trials))
        worlds = studio.batches(
            self.factory, min(self.num_worlds or fast, len(trials)), device_of_plan(self.plan)
        )
        played = roll(policy, worlds, trials, capture)
        episodes = sorted(played, key=lambda episode: episode.index)
        facts = [episode.facts for episode in episodes if episode.facts is not None]
        assert len(facts) == len(episodes)
        table = shard_rows(
            episodes,
            compute_labels_together(facts, tuple(config["labels"])),
            policy_id=policy_id,
            step=config["step"],
            world=self.factory.name,
            first_env_seed=config["first_env_seed"],
            site_widths=site_widths,
        )
        if (reservoir := reservoir_of(self.plan)) is not None:
            table = reservoir.sample(table)
        return table.replace_schema_metadata({"recording_id": self.plan.recording_id})

    def _replayed_actions(self, studio: Studio) -> dict[int, Int32[np.ndarray, "T A"]]:
        source = self.plan.inputs.get("replay_of")
        if source is None:
            return {}
        return recorded_actions(studio.store, studio.manifest(source), set(self.shard.env_seeds))


def recorded_actions(
    store: Store, manifest: Manifest, env_seeds: set[int]
) -> dict[int, Int32[np.ndarray, "T A"]]:
    """Actions of the episodes of those seeds. ValueError if the recording lacks one, or did not keep every step."""
    check_replayable(manifest.plan)
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
