"""What an edit did: paired differences per episode, their intervals, and where they stand among random directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from interp.stats.bootstrap import bootstrap_mean
from interp.stats.multiplicity import benjamini_hochberg
from interp.stats.sign_flip import paired_sign_flip
from interp.steering.arms import Arm, Rival, SteeredLatent
from interp.steering.diagnosis import MEASURE_FIELDS, Diagnosis, measures
from interp.steering.selection import spread


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptTrials:
    """All outcomes of one concept: unedited first, then every arm, on every environment seed."""

    latent: SteeredLatent
    arms: tuple[Arm, ...]
    outcome_names: tuple[str, ...]
    outcome_XEO: Float64[np.ndarray, "X E O"]
    diagnoses: Mapping[int, Diagnosis] = field(default_factory=dict)
    """Of arms by their place in `arms`, those that were diagnosed."""

    def difference(self, number: int) -> Float64[np.ndarray, "E O"]:
        """Edited minus unedited, of an arm by its place in `arms`."""
        return self.outcome_XEO[number + 1] - self.outcome_XEO[0]

    def rivals(self, of: Arm, rival: Rival) -> list[int]:
        """Places of an arm's rivals of one kind; random directions of the other sign serve as well."""
        return [
            number
            for number, arm in enumerate(self.arms)
            if arm.rival == rival
            and (arm.site, arm.mode, abs(arm.dose)) == (of.site, of.mode, abs(of.dose))
        ]


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
        ("features", pa.string()),
        ("random_lo", pa.float64()),
        ("random_hi", pa.float64()),
        ("random_latent_percentile", pa.float64()),
        ("n_random_latents", pa.int32()),
        ("mean_difference_effect", pa.float64()),
        ("d_z", pa.float64()),
        ("specificity", pa.float64()),
        *MEASURE_FIELDS,
    ]
)
"""One row per concept, site, mode, dose and outcome. `difference` is edited minus base; `random_lo` and `random_hi` are
the least and the largest mean difference of the random directions of the same mode and size; `random_latent_percentile`
is among `n_random_latents` latents that are alike in size and firing rate, `mean_difference_effect` the difference that
the label's difference of means makes at equal norm (both null where they were not played); `d_z` is the mean difference
over its standard deviation; `specificity` is the size of the effect over the root mean square of those on the other
outcomes, all in standard deviations of unedited episodes. From `kl_replay` on it is what the arm does step by step
(`interp.steering.diagnosis`), the same for all outcomes of an arm, and null for dose 0, which does nothing."""


def effects_table(
    trials: Sequence[ConceptTrials], *, policy_id: str, policy_name: str, seed: int
) -> pa.Table:
    """One row per concept, mode, dose and outcome.

    `difference` is the mean over episodes of edited minus base, with a percentile bootstrap interval over episodes and
    a two-sided sign-flip p-value; q is Benjamini-Hochberg over every row of the table but those of dose 0, which are
    exactly zero by construction. A percentile is the share (in %) of the rivals of the same mode and size whose mean
    difference is smaller in magnitude.
    """
    rows = [
        row
        for concept in trials
        for number, arm in enumerate(concept.arms)
        if arm.rival is None
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
    difference_EO = concept.difference(number)
    interval = bootstrap_mean(difference_EO, seed=seed)
    p_O = paired_sign_flip(difference_EO, seed=seed)
    mean_O, sd_O = difference_EO.mean(0), difference_EO.std(0, ddof=1)
    random_CO = _means(concept, arm, "random_direction")
    latent_CO = _means(concept, arm, "random_latent")
    plain_CO = _means(concept, arm, "diff_in_means")
    effect_O = mean_O / spread(base_EO)
    diagnosis = concept.diagnoses.get(number)
    measured = {} if diagnosis is None else measures(diagnosis, seed=seed)
    percentile_O = percentile(mean_O, random_CO)
    latent_percentile_O = percentile(mean_O, latent_CO)
    return [
        {
            "concept": concept.latent.concept,
            "label": concept.latent.label,
            "latent": concept.latent.latent,
            "site": arm.site,
            "mode": arm.mode,
            "dose": arm.dose,
            "outcome": outcome,
            "base": float(base_EO[:, o].mean()),
            "edited": float(concept.outcome_XEO[number + 1][:, o].mean()),
            "difference": float(mean_O[o]),
            "lo": float(interval.lo[o]),
            "hi": float(interval.hi[o]),
            "p_value": float(p_O[o]),
            "random_direction_percentile": float(percentile_O[o]),
            "n_episodes": len(base_EO),
            "features": concept.latent.kind,
            "random_lo": float(random_CO[:, o].min()) if len(random_CO) else None,
            "random_hi": float(random_CO[:, o].max()) if len(random_CO) else None,
            "random_latent_percentile": float(latent_percentile_O[o]) if len(latent_CO) else None,
            "n_random_latents": len(latent_CO),
            "mean_difference_effect": float(plain_CO[0, o]) if len(plain_CO) else None,
            "d_z": float(mean_O[o] / sd_O[o]) if sd_O[o] > 0 else None,
            "specificity": specificity(effect_O, o),
            **measured,
        }
        for o, outcome in enumerate(concept.outcome_names)
    ]


def _means(concept: ConceptTrials, arm: Arm, rival: Rival) -> Float64[np.ndarray, "C O"]:
    """Mean difference of each rival of an arm; of dose 0 there are none."""
    numbers = concept.rivals(arm, rival) if arm.dose else []
    means = [concept.difference(number).mean(0) for number in numbers]
    return np.array(means).reshape(len(means), len(concept.outcome_names))


def specificity(effect_O: Float64[np.ndarray, " O"], target: int) -> float | None:
    """|Δ_target| / √mean_j Δ_j² over the other outcomes j, in standard deviations; None if nothing else moves."""
    others = np.delete(effect_O, target)
    size = float(np.sqrt(np.mean(others**2))) if len(others) else 0.0
    return abs(float(effect_O[target])) / size if size > 0 else None


def percentile(
    mean_O: Float64[np.ndarray, " O"], rival_CO: Float64[np.ndarray, "C O"]
) -> Float64[np.ndarray, " O"]:
    """Share in % of the rivals with a smaller mean difference, ties counting one half; NaN if there are none."""
    if not len(rival_CO):
        return np.full(len(mean_O), np.nan)
    size_O, rival_size_CO = np.abs(mean_O), np.abs(rival_CO)
    return 100 * ((rival_size_CO < size_O) + 0.5 * (rival_size_CO == size_O)).mean(0)
