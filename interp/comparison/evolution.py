"""When was a concept born? Its scores at every checkpoint of a training run, on one frozen set of observations.

All checkpoints see the same observation trajectories, open-loop from the first step of each episode: a concept that
seems to change because the policy visits other states would be a confusion of behaviour and representation. The
trajectories come from several players, so that late and early checkpoints are both partly at home in them.

Two scores per checkpoint. The *latent's* AUROC asks whether the dictionary of the last checkpoint already reads the
concept there; the *probe's* asks whether the concept can be read at all, along a direction refitted at each
checkpoint. Above the null band in the second and inside it in the first: the concept is there, but written
elsewhere.
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
    dictionary: Dictionary,
    concepts: Sequence[FollowedConcept],
    *,
    seed: int,
) -> list[ConceptScores]:
    """Scores of every concept; `fitted_E` marks the episodes on which probes are fitted, the others are scored."""
    fitted, scored = tracks.select(fitted_E), tracks.select(~fitted_E)
    latent_NF = dictionary.encode_rows(scored.activation_ESD.reshape(-1, dictionary.d_in))
    latent_ESF = latent_NF.reshape(*scored.mask_ES.shape, -1)
    results = []
    for concept in concepts:
        direction_D = diff_in_means(
            fitted.activation_ESD[fitted.mask_ES], fitted.label(concept.label)[fitted.mask_ES]
        )
        pair_ES2 = np.stack(
            [latent_ESF[..., concept.latent], scored.activation_ESD @ direction_D], axis=-1
        )
        label_ES1 = scored.label(concept.label)[..., None]
        table = auroc(pair_ES2, label_ES1, scored.mask_ES)
        interval = auroc_interval(table, seed=seed)
        null = null_auroc_quantile(
            pair_ES2[..., :1],
            label_ES1,
            scored.mask_ES,
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
