"""What may be said of a concept: one word, from stated rules (docs/spec.md), and all that it rests on.

A hypothesis was registered before the episodes that test it were played. It is *confirmed* if, on these,

1. its q-value (Benjamini-Hochberg over all registered hypotheses of the policy) is at most 0.05,
2. its interval is on the side of zero that was registered, and
3. its effect is larger than those of all random directions of equal norm, written at the same steps.

It is *off the manifold* if the edited activations lie beyond 99.9 % of the training rows on more than 5 % of the steps
more than the unedited ones do. With S the confirmed sufficient claim and N the confirmed necessary one, both about the
same outcome:

    causal            S and N, on the manifold, in opposite directions: more of it does what taking it away undoes
    sufficient only   S, on the manifold
    necessary only    N, on the manifold (also if S moves the outcome the same way: more of it is then not the reason)
    off-manifold      S or N, but none on the manifold
    no effect         neither
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float64
from scipy.stats import rankdata

from interp.stats.bootstrap import bootstrap_mean, resample_weights
from interp.stats.multiplicity import benjamini_hochberg
from interp.stats.sign_flip import paired_sign_flip
from interp.steering.arms import BASELINES, Rival
from interp.steering.diagnosis import MEASURE_FIELDS, Diagnosis, measures
from interp.steering.effects import ConceptTrials, percentile, specificity
from interp.steering.selection import Hypothesis, spread

Verdict = Literal["causal", "sufficient only", "necessary only", "off-manifold", "no effect"]
MAX_Q = 0.05
MAX_OFF_MANIFOLD = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A hypothesis and what the confirmation says of it."""

    hypothesis: Hypothesis
    difference: float
    lo: float
    hi: float
    p_value: float
    q_value: float
    beyond_random: bool
    off_manifold: float

    @property
    def confirmed(self) -> bool:
        sign = self.hypothesis.sign
        return (
            self.q_value <= MAX_Q and min(sign * self.lo, sign * self.hi) > 0 and self.beyond_random
        )

    @property
    def on_manifold(self) -> bool:
        return self.off_manifold <= MAX_OFF_MANIFOLD


def verdict(tested: Sequence[Tested]) -> Verdict:
    """See the head of this file."""
    confirmed = [one for one in tested if one.confirmed]
    if not confirmed:
        return "no effect"
    claims = {one.hypothesis.claim: one for one in confirmed if one.on_manifold}
    match (claims.get("sufficient"), claims.get("necessary")):
        case (None, None):
            return "off-manifold"
        case (None, _):
            return "necessary only"
        case (_, None):
            return "sufficient only"
        case (more, less):
            opposite = more.hypothesis.sign != less.hypothesis.sign
            return "causal" if opposite else "necessary only"


VERDICT_SCHEMA = pa.schema(
    [
        ("policy_id", pa.string()),
        ("policy_name", pa.string()),
        ("concept", pa.string()),
        ("label", pa.string()),
        ("features", pa.string()),
        ("verdict", pa.string()),
        ("claim", pa.string()),
        ("confirmed", pa.bool_()),
        ("site", pa.string()),
        ("mode", pa.string()),
        ("dose", pa.float64()),
        ("outcome", pa.string()),
        ("sign", pa.int8()),
        ("difference", pa.float64()),
        ("lo", pa.float64()),
        ("hi", pa.float64()),
        ("p_value", pa.float64()),
        ("q_value", pa.float64()),
        ("n_episodes", pa.int32()),
        ("random_direction_percentile", pa.float64()),
        ("random_latent_percentile", pa.float64()),
        ("n_random_latents", pa.int32()),
        ("mean_difference_effect", pa.float64()),
        ("untrained_difference", pa.float64()),
        ("untrained_lo", pa.float64()),
        ("untrained_hi", pa.float64()),
        ("specificity", pa.float64()),
        ("monotonicity", pa.float64()),
        ("monotonicity_lo", pa.float64()),
        ("monotonicity_hi", pa.float64()),
        *MEASURE_FIELDS,
        *((f"{kind}_effect", pa.float64()) for kind in BASELINES),
        ("strongest_rival", pa.string()),
        ("lead", pa.float64()),
        ("lead_lo", pa.float64()),
        ("lead_hi", pa.float64()),
        ("beats", pa.string()),
        ("registration_id", pa.string()),
    ]
)
"""One row per registered hypothesis; `verdict` is of its concept. KL and entropy are in nats, `divergence_step` in
steps, shares from 0 to 1. `untrained_*` is the same edit on the policy before training. `specificity` is the size of
the effect over the root mean square of those on the other outcomes, all in standard deviations of unedited episodes;
`monotonicity` is Spearman's correlation of dose and effect along all added doses. Intervals are of episodes, at 95%.
`<kind>_effect` is what the best feature of each baseline kind does in the arm's place, `lead` how much farther the arm
moves the outcome in the registered direction than `strongest_rival` does either way, paired by episode; `beats` names
the kinds that it surely moves farther than (`lead` below); all null if the label was not recorded."""


def verdicts_table(
    trials: Sequence[ConceptTrials],
    hypotheses: Sequence[Hypothesis],
    diagnoses: Mapping[Hypothesis, Diagnosis],
    untrained: Mapping[Hypothesis, Float64[np.ndarray, "E O"]],
    *,
    policy_id: str,
    policy_name: str,
    registration_id: str,
    seed: int,
) -> pa.Table:
    """The evidence for every hypothesis; `untrained` are differences that its edit makes to the untrained policy."""
    by_concept = {concept.latent.concept: concept for concept in trials}
    found = [_evidence(by_concept[h.concept], h, seed=seed) for h in hypotheses]
    q = benjamini_hochberg(np.array([row["p_value"] for row in found])) if found else []
    rows = []
    for h, row, q_value in zip(hypotheses, found, q, strict=True):
        row |= {"q_value": float(q_value)}
        row |= measures(diagnoses[h], seed=seed)
        outcome = by_concept[h.concept].outcome_names.index(h.outcome)
        if h in untrained:
            interval = bootstrap_mean(untrained[h][:, [outcome]], seed=seed)
            row |= {
                "untrained_difference": float(interval.mean[0]),
                "untrained_lo": float(interval.lo[0]),
                "untrained_hi": float(interval.hi[0]),
            }
        rows.append(row)
    tested = [_tested(h, row) for h, row in zip(hypotheses, rows, strict=True)]
    word = {
        concept: verdict([one for one in tested if one.hypothesis.concept == concept])
        for concept in by_concept
    }
    return pa.Table.from_pylist(
        [
            {
                **row,
                "policy_id": policy_id,
                "policy_name": policy_name,
                "registration_id": registration_id,
                "verdict": word[one.hypothesis.concept],
                "confirmed": one.confirmed,
            }
            for one, row in zip(tested, rows, strict=True)
        ],
        schema=VERDICT_SCHEMA,
    )


def find_arm(concept: ConceptTrials, hypothesis: Hypothesis) -> int:
    """Place of the hypothesis' own arm."""
    wanted = (hypothesis.site, hypothesis.mode, hypothesis.dose)
    return next(
        number
        for number, arm in enumerate(concept.arms)
        if arm.rival is None and (arm.site, arm.mode, arm.dose) == wanted
    )


def _evidence(concept: ConceptTrials, hypothesis: Hypothesis, *, seed: int) -> dict[str, Any]:
    number = find_arm(concept, hypothesis)
    arm, o = concept.arms[number], concept.outcome_names.index(hypothesis.outcome)
    difference_EO = concept.difference(number)
    interval = bootstrap_mean(difference_EO, seed=seed)
    mean_O = difference_EO.mean(0)

    def rival_means(rival: Rival) -> Float64[np.ndarray, "C O"]:
        means = [concept.difference(n).mean(0) for n in concept.rivals(arm, rival)]
        return np.array(means).reshape(len(means), len(mean_O))

    plain_CO = rival_means("diff_in_means")
    latents_CO = rival_means("random_latent")
    rho, rho_lo, rho_hi = monotonicity(concept, arm.site, o, seed=seed)
    return {
        "concept": hypothesis.concept,
        "label": concept.latent.label,
        "features": concept.latent.kind,
        "claim": hypothesis.claim,
        "site": hypothesis.site,
        "mode": hypothesis.mode,
        "dose": hypothesis.dose,
        "outcome": hypothesis.outcome,
        "sign": hypothesis.sign,
        "difference": float(mean_O[o]),
        "lo": float(interval.lo[o]),
        "hi": float(interval.hi[o]),
        "p_value": float(paired_sign_flip(difference_EO[:, [o]], seed=seed)[0]),
        "n_episodes": len(difference_EO),
        "random_direction_percentile": float(
            percentile(mean_O, rival_means("random_direction"))[o]
        ),
        "random_latent_percentile": float(percentile(mean_O, latents_CO)[o])
        if len(latents_CO)
        else None,
        "n_random_latents": len(latents_CO),
        "mean_difference_effect": float(plain_CO[0, o]) if len(plain_CO) else None,
        "specificity": specificity(mean_O / spread(concept.outcome_XEO[0]), o),
        "monotonicity": rho,
        "monotonicity_lo": rho_lo,
        "monotonicity_hi": rho_hi,
        **lead(concept, number, o, hypothesis.sign, seed=seed),
    }


def lead(
    concept: ConceptTrials, number: int, outcome: int, sign: int, *, seed: int, level: float = 0.95
) -> dict[str, Any]:
    """How much farther an arm, by its place, moves the outcome, in the registered direction, than the baselines do.

    A baseline counts by the size of its effect, whichever way it goes: what does nothing beats nothing. Paired by
    episode. The lead over the strongest baseline has an interval of `level`; `beats` names the baselines that lie below
    an interval corrected for their number (Bonferroni). Nothing if no baseline was played.
    """
    moved_E = sign * concept.difference(number)[:, outcome]
    others = {
        BASELINES[concept.arms[rival].number]: concept.difference(rival)[:, outcome]
        for rival in concept.rivals(concept.arms[number], "baseline")
    }
    if not others:
        return {}
    ahead = {
        kind: (moved_E - np.copysign(1.0, other_E.mean()) * other_E)[:, None]
        for kind, other_E in others.items()
    }
    corrected = 1 - (1 - level) / len(others)
    beaten = [
        kind
        for kind, one_E1 in ahead.items()
        if bootstrap_mean(one_E1, seed=seed, level=corrected).lo[0] > 0
    ]
    strongest = max(others, key=lambda kind: abs(float(others[kind].mean())))
    interval = bootstrap_mean(ahead[strongest], seed=seed, level=level)
    return {
        **{f"{kind}_effect": float(other_E.mean()) for kind, other_E in others.items()},
        "strongest_rival": strongest,
        "lead": float(interval.mean[0]),
        "lead_lo": float(interval.lo[0]),
        "lead_hi": float(interval.hi[0]),
        "beats": ", ".join(beaten),
    }


def monotonicity(
    concept: ConceptTrials, site: str, outcome: int, *, seed: int, num_resamples: int = 1000
) -> tuple[float | None, float | None, float | None]:
    """Spearman's correlation of the added dose and the mean effect, with a percentile interval over episodes.

    None for fewer than three doses, or if no dose does anything.
    """
    own = [
        number
        for number, arm in enumerate(concept.arms)
        if arm.rival is None and arm.mode == "add" and arm.site == site
    ]
    difference_KE = np.array([concept.difference(number)[:, outcome] for number in own])
    if len(own) < 3 or not difference_KE.any():
        return None, None, None
    dose_K = rankdata([concept.arms[number].dose for number in own])
    weight_BE = resample_weights(difference_KE.shape[1], num_resamples, seed=seed)

    def spearman(mean_BK: np.ndarray) -> np.ndarray:
        rank_BK = rankdata(mean_BK, axis=1)
        dose = dose_K - dose_K.mean()
        rank_BK = rank_BK - rank_BK.mean(1, keepdims=True)
        size_B = np.sqrt((rank_BK**2).sum(1) * (dose**2).sum())
        return np.divide(rank_BK @ dose, size_B, out=np.zeros(len(rank_BK)), where=size_B > 0)

    lo, hi = np.quantile(spearman(weight_BE @ difference_KE.T), [0.025, 0.975])
    return float(spearman(difference_KE.mean(1)[None])[0]), float(lo), float(hi)


def _tested(hypothesis: Hypothesis, row: Mapping[str, Any]) -> Tested:
    return Tested(
        hypothesis=hypothesis,
        beyond_random=row["random_direction_percentile"] == 100,
        **{
            name: row[name]
            for name in ("difference", "lo", "hi", "p_value", "q_value", "off_manifold")
        },
    )
