"""When was a concept born? Its scores at every checkpoint of a training run, on one frozen set of observations.

All checkpoints see the same observation trajectories, open-loop from the first step of each episode: a concept that
seems to change because the policy visits other states would be a confusion of behaviour and representation. The
trajectories come from several players, so that late and early checkpoints are both partly at home in them.

Two scores per checkpoint. The *latent's* AUROC asks whether the dictionary of the last checkpoint already reads the
concept there; instead of latents, any features that were fixed at the last checkpoint (units, components, probes) can
be followed. The *probe's* asks whether the concept can be read at all, along a direction refitted at each checkpoint.
Above the null band in the second and inside it in the first: the concept is there, but written elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from interp.concepts.scoring import auroc, auroc_interval, null_auroc_quantile
from interp.concepts.tracks import Tracks
from interp.dictionaries.dictionary import Dictionary
from interp.features.directions import diff_in_means
from interp.features.feature_set import FeatureSet
from interp.features.sources import values_of

LINEAGE_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("policy_name", pa.string()),
        ("policy_id", pa.string()),
        ("step", pa.int64()),
        ("concept", pa.string()),
        ("label", pa.string()),
        ("latent", pa.int32()),
        ("auroc", pa.float64()),
        ("auroc_lo", pa.float64()),
        ("auroc_hi", pa.float64()),
        ("null_hi", pa.float64()),
        ("probe_auroc", pa.float64()),
        ("firing_rate", pa.float64()),
        ("emergence_step", pa.int64()),
        ("n_episodes", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedConcept:
    """A concept to follow: a latent of the last checkpoint's dictionary and the label that it answers to."""

    concept: str
    label: str
    latent: int
    """Its number; of another set of features, the feature's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptScores:
    """Scores of one concept at one checkpoint, on the episodes that no probe was fitted to."""

    concept: FollowedConcept
    auroc: float
    auroc_lo: float
    auroc_hi: float
    null_hi: float
    """95th percentile of the AUROC when whole label tracks are exchanged between episodes."""
    probe_auroc: float
    firing_rate: float
    """Share of agent-steps on which the latent is above 0."""
    n_episodes: int


def score_checkpoint(
    tracks: Tracks,
    fitted_E: Bool[np.ndarray, " E"],
    features: Dictionary | FeatureSet,
    concepts: Sequence[FollowedConcept],
    *,
    seed: int,
    sign: Sequence[int] | None = None,
) -> list[ConceptScores]:
    """Scores of every concept; `fitted_E` marks the episodes on which probes are fitted, the others are scored.

    The features are as they are at the last checkpoint, whichever checkpoint the tracks are of. `sign` is -1 for each
    concept whose feature is low where the label holds, as a unit may be; 1 for all if None.
    """
    fitted, scored = tracks.select(fitted_E), tracks.select(~fitted_E)
    value_NF = values_of(
        features, scored.activation_ESD.reshape(-1, tracks.activation_ESD.shape[2])
    )
    value_ESF = value_NF.reshape(*scored.mask_ES.shape, -1)
    fitted_known_ESL, known_ESL = fitted.targets.known_ESC, scored.targets.known_ESC
    results = []
    for concept, turned in zip(concepts, sign or [1] * len(concepts), strict=True):
        column = tracks.label_names.index(concept.label)
        fitted_ES, known_ES = fitted_known_ESL[..., column], known_ESL[..., column]
        direction_D = diff_in_means(
            fitted.activation_ESD[fitted_ES], fitted.label(concept.label)[fitted_ES]
        )
        pair_ES2 = np.stack(
            [turned * value_ESF[..., concept.latent], scored.activation_ESD @ direction_D], axis=-1
        )
        label_ES1 = scored.label(concept.label)[..., None]
        table = auroc(pair_ES2, label_ES1, known_ES)
        interval = auroc_interval(table, seed=seed)
        null = null_auroc_quantile(
            pair_ES2[..., :1],
            label_ES1,
            known_ES,
            quantile=0.95,
            seed=seed,
        )
        results.append(
            ConceptScores(
                concept=concept,
                auroc=float(table.auroc_FC[0, 0]),
                auroc_lo=float(interval.lo[0, 0]),
                auroc_hi=float(interval.hi[0, 0]),
                null_hi=float(null[0, 0]),
                probe_auroc=float(table.auroc_FC[1, 0]),
                firing_rate=float((pair_ES2[..., 0][scored.mask_ES] > 0).mean()),
                n_episodes=len(scored.env_seed_E),
            )
        )
    return results


def emergence_index(
    auroc_C: Float[np.ndarray, " C"], null_hi_C: Float[np.ndarray, " C"], *, persistence: int = 2
) -> int | None:
    """First checkpoint from which the score stays above the null band and near its final value; None if there is none.

    It must exceed the band there and at the next checkpoints, `persistence` in all (fewer at the end of the run), and
    its excess over 0.5 must be at least half of the last checkpoint's.
    """
    enough_C = (auroc_C > null_hi_C) & (auroc_C - 0.5 >= (auroc_C[-1] - 0.5) / 2)
    for index in range(len(auroc_C)):
        if enough_C[index : index + persistence].all():
            return index
    return None
