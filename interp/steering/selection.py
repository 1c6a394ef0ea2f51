"""Which arm is worth confirming? Arms are tried in rounds of episodes until each is settled, then one is registered.

Nothing that is concluded here is reported as an effect: looking often, and choosing the largest of many, both flatter.
What is chosen is written down, with its sign, and tested once on episodes that had no say in it
(`interp.steering.verdicts`).

E episodes · O outcomes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64
from scipy import stats

from interp.policies.taps import SHARES, Mode
from interp.steering.arms import Arm, SteeringConfig

Settled = Literal["acts", "nothing", "open"]
Claim = Literal["sufficient", "necessary"]
LEVEL = 0.05
"""Error of all looks at all outcomes of an arm together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """An arm after the episodes that it played; what it does to each outcome."""

    arm: Arm
    n_episodes: int
    effect_O: Float64[np.ndarray, " O"]
    """Mean difference, in standard deviations of the outcome over unedited episodes."""
    strength_O: Float64[np.ndarray, " O"]
    """|Δ| / √(h² + ν²), h half its interval and ν what is negligible: above 1 is neither chance nor negligible."""
    settled: Settled


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """What is claimed before the episodes that test it are played."""

    concept: str
    claim: Claim
    """Raising the latent moves the outcome (sufficient), removing it does (necessary)."""
    site: str
    mode: Mode
    dose: float
    outcome: str
    sign: Literal[-1, 1]
    """Direction in which the outcome moves."""


def spread(base_EO: Float64[np.ndarray, "E O"]) -> Float64[np.ndarray, " O"]:
    """Standard deviation of each outcome over unedited episodes; 1 for one that does not vary."""
    sd_O = base_EO.std(0, ddof=1)
    return np.where(sd_O > 0, sd_O, 1.0)


def tried(
    arm: Arm,
    difference_EO: Float64[np.ndarray, "E O"],
    sd_O: Float64[np.ndarray, " O"],
    config: SteeringConfig,
) -> Tried:
    """An arm with what its episodes so far say of it; `sd_O` as of `spread`.

    It *acts* if a t-interval of some outcome excludes zero, it does *nothing* if those of all lie within
    `negligible_sd`, and is *open* otherwise; intervals are Bonferroni-corrected for the outcomes and for every look
    that may be taken.
    """
    num, num_outcomes = difference_EO.shape
    looks = -(-config.selection_episodes // config.round_episodes)
    quantile = stats.t.ppf(1 - LEVEL / (2 * num_outcomes * looks), num - 1)
    size_O = np.abs(difference_EO.mean(0))
    half_O = quantile * difference_EO.std(0, ddof=1) / np.sqrt(num)
    negligible_O = config.negligible_sd * sd_O
    settled: Settled = "open"
    if (size_O > half_O).any():
        settled = "acts"
    elif (size_O + half_O <= negligible_O).all():
        settled = "nothing"
    return Tried(
        arm=arm,
        n_episodes=num,
        effect_O=difference_EO.mean(0) / sd_O,
        strength_O=size_O / np.hypot(half_O, negligible_O),
        settled=settled,
    )


def claims(arm: Arm) -> Claim | None:
    """What an arm can be evidence for: raising the latent or taking it away. Negative doses are for the dose curve."""
    if arm.dose <= 0:
        return None
    return "necessary" if arm.mode in SHARES else "sufficient"


def hypotheses(
    concept: str, results: Sequence[Tried], outcome_names: Sequence[str]
) -> list[Hypothesis]:
    """One hypothesis for each claim that was tried, both about the same outcome.

    That is the outcome on which raising and removing the latent are farthest apart, |s_r r - s_t t| with strengths r, t
    and their signs; where only one was tried, the one that it moves most surely.
    """
    of_claim: dict[Claim, list[Tried]] = {}
    for result in results:
        if (claim := claims(result.arm)) is not None:
            of_claim.setdefault(claim, []).append(result)
    if not of_claim:
        return []
    best = {
        claim: [max(tried, key=lambda r: float(r.strength_O[o])) for o in range(len(outcome_names))]
        for claim, tried in of_claim.items()
    }

    def distance(o: int) -> float:
        signed = [
            float(np.sign(results[o].effect_O[o]) * results[o].strength_O[o])
            for results in best.values()
        ]
        return abs(signed[0] - signed[1]) if len(signed) == 2 else abs(signed[0])

    outcome = max(range(len(outcome_names)), key=distance)
    chosen = ((claim, best[claim][outcome]) for claim in get_args(Claim) if claim in best)
    return [
        Hypothesis(
            concept=concept,
            claim=claim,
            site=one.arm.site,
            mode=one.arm.mode,
            dose=one.arm.dose,
            outcome=outcome_names[outcome],
            sign=-1 if one.effect_O[outcome] < 0 else 1,
        )
        for claim, one in chosen
    ]
