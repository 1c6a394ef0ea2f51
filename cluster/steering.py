"""Steering on the pool: one task plays all arms of one concept on one block of environment seeds."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float64

from cluster.results import CODE_VERSION, Question
from cluster.studio import Studio
from interp.identity import content_id, sha256
from interp.rollout import fitting_worlds
from interp.steering.arms import SteeredLatent, SteeringConfig, arms
from interp.steering.effects import ConceptTrials, outcome_names
from interp.steering.trials import play_arms
from interp.worlds.world import WorldFactory


@dataclass(frozen=True)
class SteerBlock:
    """Task: outcomes of every arm of one concept on some seeds, the unedited rollout first."""

    policy_id: str
    factory: WorldFactory
    latent: SteeredLatent
    config: SteeringConfig
    seed: int
    """Of the random directions."""
    env_seeds: tuple[int, ...]
    labels: tuple[str, ...]
    num_worlds: int | None = None
    """Worlds played at once, by default as many as are fast; changes speed and memory, never a number."""

    @property
    def key(self) -> str:
        return (
            f"{self.policy_id} {self.latent.concept} seeds {self.env_seeds[0]}-{self.env_seeds[-1]}"
        )

    @property
    def _scratch_key(self) -> str:
        """Of all that decides the outcomes, so that an interrupted experiment goes on block by block."""
        latent = self.latent
        identity = content_id(
            "b",
            {
                "policy": self.policy_id,
                "world": self.factory.config,
                "site": latent.site,
                "vectors": sha256(latent.write_D.tobytes() + latent.read_D.tobytes()),
                "scalars": [latent.latent, latent.scale, latent.read_bias, latent.threshold],
                "steering": asdict(self.config),
                "seed": self.seed,
                "env_seeds": self.env_seeds,
                "labels": self.labels,
                "code_version": CODE_VERSION,
            },
        )
        return f"scratch/steering/{identity}.npy"

    def run(self, studio: Studio) -> Float64[np.ndarray, "X E O"]:
        store = studio.store
        if store.exists(self._scratch_key):
            return np.load(io.BytesIO(store.get(self._scratch_key)), allow_pickle=False)
        played = arms(self.latent, self.config, seed=self.seed)
        fast = fitting_worlds(self.factory.spec, {}, len(played) * len(self.env_seeds))
        outcome_XEO = play_arms(
            studio.policy(self.policy_id),
            studio.world(self.factory, self.num_worlds or fast),
            played,
            self.env_seeds,
            labels=self.labels,
        )
        content = io.BytesIO()
        np.save(content, outcome_XEO)
        store.replace(self._scratch_key, content.getvalue())
        return outcome_XEO


def steering_blocks(
    policy_id: str,
    factory: WorldFactory,
    latents: Sequence[SteeredLatent],
    config: SteeringConfig,
    *,
    seed: int,
    labels: Sequence[str],
    seeds_per_block: int = 4,
) -> list[SteerBlock]:
    """The tasks of a steering experiment, concept by concept; the concept's own label is an outcome in any case."""
    env_seeds = list(config.env_seeds)
    return [
        SteerBlock(
            policy_id=policy_id,
            factory=factory,
            latent=latent,
            config=config,
            seed=seed,
            env_seeds=tuple(env_seeds[start : start + seeds_per_block]),
            labels=tuple(dict.fromkeys((*labels, latent.label))),
        )
        for latent in latents
        for start in range(0, len(env_seeds), seeds_per_block)
    ]


def assemble(
    outcomes: Sequence[tuple[SteerBlock, Float64[np.ndarray, "X E O"]]],
) -> list[ConceptTrials]:
    """Blocks of the same concept put together, in the order of their seeds and whatever order they came in."""
    by_concept: dict[str, list[tuple[SteerBlock, Float64[np.ndarray, "X E O"]]]] = {}
    for block, outcome in outcomes:
        by_concept.setdefault(block.latent.concept, []).append((block, outcome))
    trials = []
    for concept in sorted(by_concept):
        blocks = sorted(by_concept[concept], key=lambda pair: pair[0].env_seeds)
        first = blocks[0][0]
        trials.append(
            ConceptTrials(
                latent=first.latent,
                arms=tuple(arms(first.latent, first.config, seed=first.seed)),
                outcome_names=outcome_names(first.labels),
                outcome_XEO=np.concatenate([outcome for _, outcome in blocks], axis=1),
            )
        )
    return trials


def effects_question(
    policy_id: str,
    factory: WorldFactory,
    concepts_id: str,
    latents: Sequence[SteeredLatent],
    config: SteeringConfig,
    *,
    seed: int,
    labels: Sequence[str],
) -> Question:
    """What the table of effects is made from."""
    return Question(
        "effects",
        {
            "world": factory.config,
            "steering": asdict(config),
            "concepts": [latent.concept for latent in latents],
            "labels": list(labels),
            "seed": seed,
        },
        {"policy": policy_id, "concepts": concepts_id},
    )
