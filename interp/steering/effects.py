"""What an edit did: paired differences per episode, their intervals, and where they stand among random directions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from interp.stats.bootstrap import bootstrap_mean
from interp.stats.multiplicity import benjamini_hochberg
from interp.stats.sign_flip import paired_sign_flip
from interp.steering.arms import Arm, SteeredLatent
from interp.steering.trials import RETURN


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptTrials:
    """All outcomes of one concept: unedited first, then every arm, on every environment seed."""

    latent: SteeredLatent
    arms: tuple[Arm, ...]
    outcome_names: tuple[str, ...]
    outcome_XEO: Float64[np.ndarray, "X E O"]


EFFECT_SCHEMA = pa.schema(
    [
        ("policy_id", pa.string()),
        ("policy_name", pa.string()),
        ("concept", pa.string()),
        ("label", pa.string()),
        ("latent", pa.int32()),
        ("site", pa.string()),
        ("mode", pa.string()),
        ("dose", pa.float64()),
        ("outcome", pa.string()),
        ("base", pa.float64()),
        ("edited", pa.float64()),
        ("difference", pa.float64()),
        ("lo", pa.float64()),
        ("hi", pa.float64()),
        ("p_value", pa.float64()),
        ("q_value", pa.float64()),
        ("random_direction_percentile", pa.float64()),
        ("n_episodes", pa.int32()),
    ]
)


def effects_table(
    trials: Sequence[ConceptTrials], *, policy_id: str, policy_name: str, seed: int
) -> pa.Table:
    """One row per concept, mode, dose and outcome.

    `difference` is the mean over episodes of edited minus base, with a percentile bootstrap interval over episodes and
    a two-sided sign-flip p-value; q is Benjamini-Hochberg over every row of the table but those of dose 0, which are
    exactly zero by construction. `random_direction_percentile` is the share (in %) of the random directions of the same
    mode and size whose mean difference is smaller in magnitude.
    """
    rows = [
        row
        for concept in trials
        for number, arm in enumerate(concept.arms)
        if arm.random_direction is None
        for row in _rows(concept, number, seed=seed)
    ]
    tested = np.array([row["dose"] != 0 for row in rows], bool)
    p_value = np.array([row["p_value"] for row in rows], float)
    q_value = np.ones(len(rows))
    if tested.any():
        q_value[tested] = benjamini_hochberg(p_value[tested])
    return pa.Table.from_pylist(
        [
            {**row, "policy_id": policy_id, "policy_name": policy_name, "q_value": float(q)}
            for row, q in zip(rows, q_value, strict=True)
        ],
        schema=EFFECT_SCHEMA,
    )


def _rows(concept: ConceptTrials, number: int, *, seed: int) -> list[dict[str, object]]:
    arm = concept.arms[number]
    base_EO = concept.outcome_XEO[0]
    difference_EO = concept.outcome_XEO[number + 1] - base_EO
    interval = bootstrap_mean(difference_EO, seed=seed)
    p_O = paired_sign_flip(difference_EO, seed=seed)
    percentile_O = _random_percentile(concept, arm, np.abs(difference_EO.mean(0)))
    return [
        {
            "concept": concept.latent.concept,
            "label": concept.latent.label,
            "latent": concept.latent.latent,
            "site": concept.latent.site,
            "mode": arm.mode,
            "dose": arm.dose,
            "outcome": outcome,
            "base": float(base_EO[:, o].mean()),
            "edited": float(concept.outcome_XEO[number + 1][:, o].mean()),
            "difference": float(difference_EO[:, o].mean()),
            "lo": float(interval.lo[o]),
            "hi": float(interval.hi[o]),
            "p_value": float(p_O[o]),
            "random_direction_percentile": float(percentile_O[o]),
            "n_episodes": len(base_EO),
        }
        for o, outcome in enumerate(concept.outcome_names)
    ]


def _random_percentile(
    concept: ConceptTrials, arm: Arm, size_O: Float64[np.ndarray, " O"]
) -> Float64[np.ndarray, " O"]:
    """Share in % of the random directions with a smaller mean difference; NaN for dose 0, which has none."""
    controls = [
        number + 1
        for number, other in enumerate(concept.arms)
        if other.random_direction is not None
        and other.mode == arm.mode
        and other.dose == abs(arm.dose)
    ]
    if not controls:
        return np.full(len(size_O), np.nan)
    random_size_CO = np.abs((concept.outcome_XEO[controls] - concept.outcome_XEO[0]).mean(1))
    below = (random_size_CO < size_O) + 0.5 * (random_size_CO == size_O)
    return 100 * below.mean(0)


def outcome_names(labels: Sequence[str]) -> tuple[str, ...]:
    """What is measured of every episode: its return and the rate of every label."""
    return (RETURN, *labels)
