"""Following concepts over the checkpoints of a run: a frozen bank of episodes, replayed through every checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from cluster import dictionaries
from cluster.features import STRIDE_STEPS, features_of
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.results import Question
from cluster.scoring import read_tracks
from cluster.staging import Split
from cluster.store import Store
from cluster.studio import Studio
from cluster.training import TrainedRun
from interp.comparison.evolution import (
    LINEAGE_SCHEMA,
    ConceptScores,
    FollowedConcept,
    emergence_index,
    score_checkpoint,
)
from interp.concepts.blocks import known_auroc
from interp.concepts.rivals import values
from interp.concepts.scoring import best_feature
from interp.concepts.tracks import Tracks
from interp.features.feature_set import SUPERVISED, FeatureKind, FeatureSet
from interp.policies.bundle import PolicyCard
from interp.rollout import EveryStep, Stride
from interp.steering.arms import SteeredLatent
from interp.worlds.expressions import looks_ahead, parse
from interp.worlds.world import WorldFactory, check_env_seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionConfig:
    """The replay bank on which checkpoints are compared."""

    first_env_seed: int = 40_000
    """Episodes use this environment seed and the ones after it; none of them should have been recorded."""
    episodes_per_player: int = 16
    """Episodes by each of three players: the untrained, a half-trained and the last checkpoint of the run. Where these
    are fewer than three, they share the episodes of all."""
    stride_steps: int = 4
    """One of so many steps is scored."""
    beside: tuple[FeatureKind, ...] = ()
    """Followed beside every latent: the unit, component or random direction that tells its label best at the last
    checkpoint, its difference of means or probe."""

    def __post_init__(self) -> None:
        if self.episodes_per_player < 8:
            raise ValueError(
                f"episodes_per_player {self.episodes_per_player}: at least 8, for 12 scored episodes in all"
            )
        if unfit := {*self.beside} & {"sae", "crosscoder"}:
            raise ValueError(
                f"beside {min(unfit)}: latents are followed in any case, crosscoders are of several policies; wanted "
                "units, components, directions or probes"
            )
        check_env_seeds(self.first_env_seed, 3 * self.episodes_per_player)

    def bank(self, run: TrainedRun) -> list[tuple[PolicyCard, RecordingConfig]]:
        """Who plays which episodes of the bank; no two players share a seed."""
        last = len(run.checkpoints) - 1
        players = [run.checkpoints[index] for index in sorted({0, (last + 1) // 2, last})]
        seeds = [self.episodes_of(number, len(players)) for number in range(len(players))]
        return [
            (
                player,
                RecordingConfig(first_env_seed=own.start, num_episodes=len(own), sites=()),
            )
            for player, own in zip(players, seeds, strict=True)
        ]

    def episodes_of(self, player: int, num_players: int) -> range:
        """Environment seeds of one of the players."""
        each = 3 * self.episodes_per_player // num_players
        first = self.first_env_seed + player * each
        return range(first, first + each)


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """Features of one kind as they are at the last checkpoint, and those of them that are followed."""

    features: FeatureSet
    concepts: tuple[FollowedConcept, ...]
    sign: tuple[int, ...]
    """-1 for those that are low where their label holds."""


@dataclass(frozen=True)
class ScoreCheckpoint:
    """Task: scores of all followed concepts at one checkpoint."""

    checkpoint: PolicyCard
    factory: WorldFactory
    bank: tuple[str, ...]
    """Recordings whose episodes are replayed."""
    config: EvolutionConfig
    dict_id: str
    concepts: tuple[FollowedConcept, ...]
    seed: int
    beside: tuple[Followed, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.checkpoint.name} at step {self.checkpoint.step}"

    def run(self, studio: Studio) -> list[ConceptScores]:
        dictionary = dictionaries.load(studio.store, self.dict_id)
        labels = tuple(dict.fromkeys(concept.label for concept in self.concepts))
        stride = self.config.stride_steps
        ahead = any(looks_ahead(parse(label, self.factory.labels)) for label in labels)
        steps = EveryStep() if ahead else Stride(stride)  # a horizon asks for every step
        rows = []
        for number, recording_id in enumerate(self.bank):
            seeds = self.config.episodes_of(number, len(self.bank))
            plan = plan_recording(
                studio.store,
                self.checkpoint.policy_id,
                self.factory,
                RecordingConfig(
                    first_env_seed=seeds.start,
                    num_episodes=len(seeds),
                    sites=(dictionary.site,),
                    labels=labels,
                ),
                steps=steps,
                replay_of=recording_id,
            )
            rows += [
                RecordShard(plan=plan, shard=shard, factory=self.factory, steps=steps).rows(studio)
                for shard in plan.shards
            ]
        table = pa.concat_tables([part.replace_schema_metadata(None) for part in rows])
        tracks = Tracks.of(
            table, site=dictionary.site, labels=labels, stride_steps=stride if ahead else 1
        )
        fitted_E = ~PROBE_SPLIT.held_out(tracks.env_seed_E)
        scores = score_checkpoint(tracks, fitted_E, dictionary, self.concepts, seed=self.seed)
        for one in self.beside:
            scores += score_checkpoint(
                tracks, fitted_E, one.features, one.concepts, seed=self.seed, sign=one.sign
            )
        return scores


PROBE_SPLIT = Split(held_out_fraction=0.5, salt="probe")
"""Which episodes of a bank probes are fitted to; the others are scored."""


def followed_beside(
    store: Store,
    recording_id: str,
    latents: Sequence[SteeredLatent],
    kinds: Sequence[FeatureKind],
    *,
    split: Split,
    seed: int,
) -> tuple[Followed, ...]:
    """Of each kind, for each latent's label, the feature that tells it best on training episodes of a recording."""
    labels = tuple(dict.fromkeys(latent.label for latent in latents))
    if not labels or not kinds:
        return ()
    site = latents[0].site
    tracks = read_tracks(store, recording_id, site=site, labels=labels, stride_steps=STRIDE_STEPS)
    train = tracks.select(~split.held_out(tracks.env_seed_E))
    found = []
    for kind in kinds:
        features = features_of(
            store,
            recording_id,
            kind,
            site=site,
            dict_id=None,
            labels=labels,
            split=split,
            seed=seed,
        )
        auroc_FL = known_auroc(values(features, train), train.targets)
        best_L = best_feature(auroc_FL, auroc_FL).index_C.tolist()
        number_L = list(range(len(labels))) if kind in SUPERVISED else best_L
        found.append(
            Followed(
                features=features,
                concepts=tuple(
                    FollowedConcept(
                        concept=features.steered(number, label=label).concept,
                        label=label,
                        latent=number,
                    )
                    for label, number in zip(labels, number_L, strict=True)
                ),
                sign=tuple(
                    -1 if auroc_FL[number, ell] < 0.5 else 1 for ell, number in enumerate(number_L)
                ),
            )
        )
    return tuple(found)


def lineage_tasks(
    run: TrainedRun,
    factory: WorldFactory,
    bank: tuple[str, ...],
    dict_id: str,
    latents: Sequence[SteeredLatent],
    config: EvolutionConfig,
    *,
    seed: int,
    beside: tuple[Followed, ...] = (),
) -> tuple[Question, TrainedRun, list[ScoreCheckpoint]]:
    """What the table of lineages of a run is made from, and one task for each of its checkpoints."""
    asked = asdict(config)
    if not config.beside:
        del asked["beside"]  # what was asked before there was a choice keeps its id
    concepts = tuple(
        FollowedConcept(concept=latent.concept, label=latent.label, latent=latent.latent)
        for latent in latents
    )
    question = Question(
        "lineages",
        {
            "evolution": asked,
            "concepts": [
                asdict(concept)
                for some in (concepts, *(one.concepts for one in beside))
                for concept in some
            ],
            "split": asdict(PROBE_SPLIT),
            "seed": seed,
        },
        {
            "run": run.run_id,
            "dictionary": dict_id,
            **{f"bank_{number}": recording for number, recording in enumerate(bank)},
        },
    )
    tasks = [
        ScoreCheckpoint(
            checkpoint=card,
            factory=factory,
            bank=bank,
            config=config,
            dict_id=dict_id,
            concepts=concepts,
            seed=seed,
            beside=beside,
        )
        for card in (run.checkpoints if concepts else ())
    ]
    return question, run, tasks


def lineage_table(
    run: TrainedRun, scores: Sequence[tuple[PolicyCard, Sequence[ConceptScores]]]
) -> pa.Table:
    """One row per concept and checkpoint, checkpoints ascending, with the step at which the concept emerged."""
    ordered = sorted(scores, key=lambda pair: pair[0].step)
    rows = []
    concepts = [found.concept for found in ordered[0][1]] if ordered else []
    for number, concept in enumerate(concepts):
        found_C = [found[number] for _, found in ordered]
        index = emergence_index(
            np.array([found.auroc for found in found_C]),
            np.array([found.null_hi for found in found_C]),
        )
        rows += [
            {
                "run": run.run_id,
                "policy_name": run.name,
                "policy_id": card.policy_id,
                "step": card.step,
                "concept": concept.concept,
                "label": concept.label,
                "latent": concept.latent,
                "auroc": found.auroc,
                "auroc_lo": found.auroc_lo,
                "auroc_hi": found.auroc_hi,
                "null_hi": found.null_hi,
                "probe_auroc": found.probe_auroc,
                "firing_rate": found.firing_rate,
                "emergence_step": None if index is None else ordered[index][0].step,
                "n_episodes": found.n_episodes,
            }
            for (card, _), found in zip(ordered, found_C, strict=True)
        ]
    return pa.Table.from_pylist(rows, schema=LINEAGE_SCHEMA)
