"""What a dictionary has found in a recording that nobody asked for, and what it tells in several parts.

Two tables: `groups/<id>` of latents that share a label, `findings/<id>` of clusters of latents with names and types;
their first columns tell of which policy, recording, dictionary and site. For the second the episodes are played again
from their actions, since recordings keep no observations: no policy is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64, UInt8

from cluster import dictionaries, recordings
from cluster.notes import Note, silent
from cluster.recorder import check_replayable, recorded_actions
from cluster.recordings import Plan
from cluster.results import Question
from cluster.scoring import check_scorable, read_tracks
from cluster.staging import Split
from cluster.store import Store
from cluster.studio import Studio
from interp.concepts.catalogue import Representation, scales
from interp.concepts.discovery import (
    Cluster,
    DiscoveryConfig,
    cluster_activation,
    find_clusters,
    findings_table,
    shapes,
)
from interp.concepts.explanation import Family, explain, predictors_of, stacked
from interp.concepts.groups import GroupConfig, find_groups, groups_table
from interp.concepts.naming import (
    Contrast,
    Moments,
    choose_moments,
    contrast,
    joined,
    label_items,
    token_items,
)
from interp.concepts.tracks import Tracks
from interp.records import LabelKind
from interp.stats.episodes import MIN_EPISODES
from interp.trajectories import witness
from interp.worlds.catalogue import recorded_world
from interp.worlds.labels import check_labels, compute_labels, label_named
from interp.worlds.world import WorldFactory


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingsConfig:
    """How groups of latents, and concepts without labels, are looked for in a recording."""

    stride_steps: int = 2
    """Every so manieth step is looked at."""
    max_episodes: int = 150
    """Training episodes, and held-out ones, that are looked at: the first of the recording, so many of each at most."""
    groups: GroupConfig = field(default_factory=GroupConfig)
    discovery: DiscoveryConfig = field(default_factory=DiscoveryConfig)

    def __post_init__(self) -> None:
        if self.stride_steps < 1:
            raise ValueError(f"stride_steps {self.stride_steps}: at least 1")
        if self.max_episodes < MIN_EPISODES:
            raise ValueError(f"max_episodes {self.max_episodes}: at least {MIN_EPISODES}")


@dataclass(frozen=True, kw_only=True)
class Discover:
    """Task: what to look for, and where."""

    policy_name: str
    """What both tables call the policy."""
    recording_id: str
    dict_id: str
    labels: tuple[str, ...] | None = None
    """Labels that latents are grouped by and that may name them, also made of others; all recorded ones if None."""
    split: Split = field(default_factory=Split)
    config: FindingsConfig = field(default_factory=FindingsConfig)
    seed: int = 0

    @property
    def key(self) -> str:
        return f"findings of {self.policy_name} ({self.recording_id}, {self.dict_id})"

    @property
    def groups_question(self) -> Question:
        return Question(
            "groups", {**self._shared, "groups": asdict(self.config.groups)}, self._inputs
        )

    @property
    def findings_question(self) -> Question:
        return Question(
            "findings", {**self._shared, "discovery": asdict(self.config.discovery)}, self._inputs
        )

    @property
    def _shared(self) -> dict[str, object]:
        return {
            "policy_name": self.policy_name,
            "labels": None if self.labels is None else list(self.labels),
            "split": asdict(self.split),
            "stride_steps": self.config.stride_steps,
            "max_episodes": self.config.max_episodes,
            # decides which latents are live, so groups depend on it too
            "min_active_episodes": self.config.discovery.min_active_episodes,
            "seed": self.seed,
        }

    @property
    def _inputs(self) -> dict[str, str]:
        return {"recording": self.recording_id, "dictionary": self.dict_id}

    def find(self, store: Store) -> "Discovered | None":
        """Both tables if the store has them."""
        groups, findings = self.groups_question.find(store), self.findings_question.find(store)
        return None if groups is None or findings is None else Discovered(groups, findings)

    def run(self, studio: Studio) -> "Discovered":
        return discover(studio.store, self)


class Discovered(NamedTuple):
    """Both tables, as the store has them now."""

    groups: pa.Table
    findings: pa.Table


class _Side(NamedTuple):
    """Training or held-out episodes."""

    tracks: Tracks
    latent_ESF: Float32[np.ndarray, "E S F"]


def discover(store: Store, asked: Discover, note: Note = silent) -> Discovered:
    """Finds both tables in the store, or computes and keeps them.

    Raises:
        ValueError: a recording that did not keep every step of every row, lacks a label or the dictionary's site, is of
            a world that is not known any more, or has too few episodes on either side. Before work starts.
    """
    found = asked.find(store)
    if found is not None:
        return found
    manifest = recordings.open_manifest(store, asked.recording_id)
    factory, labels = _checked(asked, manifest.plan)
    dictionary = dictionaries.load(store, asked.dict_id)
    check_scorable(manifest, dictionary.site, labels)
    config, identity = asked.config, _identity(asked, dictionary.site)
    note(0, 3, "reading")
    tracks = read_tracks(
        store,
        asked.recording_id,
        site=dictionary.site,
        labels=labels,
        stride_steps=config.stride_steps,
    )
    held_out_E = asked.split.held_out(tracks.env_seed_E)
    train, held_out = (
        tracks.select(_first(side_E, config.max_episodes)) for side_E in (~held_out_E, held_out_E)
    )
    note(1, 3, "encoding")
    represented = Representation(train=train, held_out=held_out, dictionary=dictionary)
    latents = [represented.latents(side) for side in (train, held_out)]
    live_F = np.all(
        [
            (latent_ESF > 0).any(1).sum(0) >= config.discovery.min_active_episodes
            for latent_ESF in latents
        ],
        axis=0,
    )
    latent_F = np.flatnonzero(live_F).tolist()
    sides = [
        _Side(side, latent_ESF[..., latent_F])
        for side, latent_ESF in zip((train, held_out), latents, strict=True)
    ]
    note(2, 3, f"grouping {len(latent_F):,} live latents")
    groups = find_groups(
        sides[0].latent_ESF,
        train.targets,
        sides[1].latent_ESF,
        held_out.targets,
        labels=labels,
        num_agents=train.num_agents,
        stride_steps=config.stride_steps,
        config=config.groups,
        seed=asked.seed,
    )
    kept = asked.groups_question.answer(store, _about(identity, groups_table(groups, latent_F)))
    findings = _findings(store, asked, factory, labels, sides, latent_F, note)
    return Discovered(kept, asked.findings_question.answer(store, _about(identity, findings)))


def check_discover(store: Store, asked: Discover) -> None:
    """Raises what `discover` would, without work: also FileNotFoundError, for what the store lacks."""
    manifest = recordings.open_manifest(store, asked.recording_id)
    _, labels = _checked(asked, manifest.plan)
    check_scorable(manifest, dictionaries.load(store, asked.dict_id).site, labels)


def _checked(asked: Discover, plan: Plan) -> tuple[WorldFactory, tuple[str, ...]]:
    """The world of the recording, and the labels that are asked for."""
    check_replayable(plan)
    if "world" not in plan.config:
        raise ValueError(
            f"recording {plan.recording_id} is of no world that plays ({plan.config.get('kind', 'a bank')}); wanted "
            "one made by `sparsight record`"
        )
    factory = recorded_world(plan.config["world"], source=f"recording {plan.recording_id}")
    labels = tuple(plan.config["labels"]) if asked.labels is None else asked.labels
    check_labels(labels, factory.labels)
    seed_E = np.array([seed for shard in plan.shards for seed in shard.env_seeds], np.int64)
    held_out_E = asked.split.held_out(seed_E)
    for name, side_E in (("training", ~held_out_E), ("held-out", held_out_E)):
        if (num_episodes := int(side_E.sum())) < MIN_EPISODES:
            raise ValueError(
                f"recording {plan.recording_id} has {num_episodes} {name} episodes, wanted at least {MIN_EPISODES}; "
                "record more, or set split.held_out_fraction"
            )
    return factory, labels


def _identity(asked: Discover, site: str) -> dict[str, str]:
    return {
        "policy_name": asked.policy_name,
        "recording_id": asked.recording_id,
        "dict_id": asked.dict_id,
        "site": site,
    }


def _about(identity: Mapping[str, str], table: pa.Table) -> pa.Table:
    """The table with what it is about in its first columns."""
    about = {name: [value] * len(table) for name, value in identity.items()}
    return pa.table(
        {name: pa.array(values, pa.string()) for name, values in about.items()}
        | dict(zip(table.column_names, table.columns, strict=True))
    )


def _first(side_E: Bool[np.ndarray, " E"], most: int) -> Bool[np.ndarray, " E"]:
    return side_E & (np.cumsum(side_E) <= most)


def _findings(
    store: Store,
    asked: Discover,
    factory: WorldFactory,
    labels: Sequence[str],
    sides: Sequence[_Side],
    latent_F: Sequence[int],
    note: Note,
) -> pa.Table:
    (train, train_ESF), (held_out, held_out_ESF) = sides
    config, num_agents = asked.config.discovery, train.num_agents
    stride_steps = asked.config.stride_steps
    strided = {"num_agents": num_agents, "config": config, "stride_steps": stride_steps}
    clusters = find_clusters(train_ESF, train.mask_ES, **strided)
    active_C = [
        int((held_out_ESF[..., list(cluster.latents)] > 0).any((1, 2)).sum())
        for cluster in clusters
    ]
    order = np.argsort(-np.array(active_C, np.int64), kind="stable")[: config.max_clusters]
    clusters: list[Cluster] = [clusters[c] for c in order]
    scale_F = scales(train_ESF[train.mask_ES]).astype(np.float32)
    train_ESC, held_out_ESC = (
        cluster_activation(latent_ESF, clusters, scale_F) for _, latent_ESF in sides
    )
    moments_C = [
        choose_moments(
            held_out_ESC[..., c],
            held_out.mask_ES,
            num_agents=num_agents,
            config=config.naming,
            seed=asked.seed + c,
        )
        for c in range(len(clusters))
    ]
    replays = _Replays(store, asked, factory, labels)
    total = len(train.env_seed_E) + len(held_out.env_seed_E)

    def progress(done: int) -> None:
        note(done, total, "episodes played again")

    train_predictors, _ = replays.play(train, [], progress)
    held_out_predictors, seen_C = replays.play(
        held_out, moments_C, lambda done: progress(len(train.env_seed_E) + done)
    )
    explanations = explain(
        train_ESC,
        train_predictors,
        train.mask_ES,
        held_out_ESC,
        held_out_predictors,
        held_out.mask_ES,
        num_agents=num_agents,
        stride_steps=stride_steps,
        config=config.explanation,
        seed=asked.seed,
    )
    contrasts = []
    for c, moments in enumerate(moments_C):
        contrasts.append(_contrast(asked, factory, held_out, moments, seen_C[c]))
        note(c + 1, len(clusters), "concepts named")
    shape_C = shapes(held_out_ESC, held_out.mask_ES, **strided)
    return findings_table(
        clusters, latent_F, held_out_ESC, held_out.mask_ES, contrasts, explanations, shape_C
    )


def _contrast(
    asked: Discover,
    factory: WorldFactory,
    held_out: Tracks,
    moments: Moments,
    seen_W: UInt8[np.ndarray, "W N 3"] | None,
) -> Contrast:
    at = (moments.episode_W, moments.sample_W)
    targets = held_out.targets
    parts = [label_items(targets.label_ESC[at], targets.known_ESC[at], held_out.label_names)]
    if seen_W is not None:
        assert factory.spec.vocabulary is not None
        parts.insert(0, token_items(seen_W, factory.spec.vocabulary))
    return contrast(moments, joined(parts), config=asked.config.discovery.naming, seed=asked.seed)


class _Replays:
    """Recorded episodes, played again from their actions."""

    def __init__(
        self, store: Store, asked: Discover, factory: WorldFactory, labels: Sequence[str]
    ) -> None:
        self._store = store
        self._asked = asked
        self._factory = factory
        self._labels = tuple(labels)
        self._kinds: dict[str, LabelKind] = {
            name: label_named(name, factory.labels).kind for name in labels
        }
        self._world = factory(1)

    def play(
        self, tracks: Tracks, moments_C: Sequence[Moments], progress: Callable[[int], None]
    ) -> tuple[Mapping[Family, np.ndarray], list[UInt8[np.ndarray, "W N 3"] | None]]:
        """Predictors of every sample; and what was seen at the moments, if it is tokens."""
        spec, stride = self._factory.spec, self._asked.config.stride_steps
        seen_C = [
            np.full((len(moments.episode_W), spec.vocabulary.num_tokens, 3), 0xFF, np.uint8)
            if spec.vocabulary is not None
            else None
            for moments in moments_C
        ]
        manifest = recordings.open_manifest(self._store, self._asked.recording_id)
        action_of = recorded_actions(self._store, manifest, set(tracks.env_seed_E.tolist()))
        predictors = []
        for e, env_seed in enumerate(tracks.env_seed_E.tolist()):
            action_TA = action_of[env_seed]
            seen = witness(self._world, env_seed, action_TA)
            every = predictors_of(
                seen.facts,
                action_TA,
                compute_labels(seen.facts, self._labels),
                self._kinds,
                num_actions=len(spec.action_names),
                max_steps=spec.max_steps,
            )
            predictors.append({family: x_TAP[::stride] for family, x_TAP in every.items()})
            for moments, seen_W in zip(moments_C, seen_C, strict=True):
                if seen_W is not None:
                    here = np.flatnonzero(moments.episode_W == e)
                    t, agent = np.divmod(moments.sample_W[here], tracks.num_agents)
                    seen_W[here] = seen.observation_TA[t * stride, agent]
            progress(e + 1)
        longest: Int64 = max(len(one["temporal"]) for one in predictors)
        return stacked(predictors, range(longest), tracks.mask_ES.shape[1]), seen_C
