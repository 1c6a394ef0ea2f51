"""How many episodes, or policies, does an effect need? And what could a design have found at all?

An effect is told in standard deviations of what one unit says of it: d = mean / sd over episodes (Cohen 1988's
d_z). Of a pilot, `paired_effect_size` gives it; of a table of AUROCs, `auroc_effect_size`. Tests at small level
stand for many tests: with M of them, level / M is the level at which one is sure to survive Bonferroni.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64
from scipy import stats

from interp.stats.episodes import MIN_EPISODES, check_episodes, check_level, check_values
from interp.stats.hierarchy import MIN_POLICIES

LARGEST_DESIGN = 10**7
"""Nobody plays more episodes than this for one figure; effects that need more are said to."""


def paired_effect_size(value_EM: Float[np.ndarray, "E M"]) -> Float64[np.ndarray, " M"]:
    """Mean over episodes in units of the standard deviation between them; infinite if all are equal and not 0."""
    check_values("value_EM", value_EM)
    with np.errstate(divide="ignore", invalid="ignore"):
        d_M = value_EM.mean(0, dtype=np.float64) / value_EM.std(0, ddof=1, dtype=np.float64)
    return np.where((value_EM == 0).all(0), 0.0, d_M)


def auroc_effect_size(
    auroc_M: Float[np.ndarray, " M"], influence_EM: Float[np.ndarray, "E M"]
) -> Float64[np.ndarray, " M"]:
    """(AUROC - 1/2) in units of the scatter of the episodes' pseudo-values, AUROC + E influence (DeLong et al. 1988).

    So the standard error of the AUROC over E episodes is (AUROC - 1/2) / (d sqrt(E)).
    """
    check_episodes(len(influence_EM))
    scatter_M = len(influence_EM) * influence_EM.std(0, ddof=1, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (auroc_M - 0.5) / scatter_M


def power_of_episodes(effect_size: float, num_episodes: int, *, level: float = 0.05) -> float:
    """Chance that a two-sided test of a mean over episodes finds an effect of d standard deviations.

    By the noncentral t distribution (Cohen 1988, ch. 2); the sign flips and exchanges of this package have the
    power of the t-test up to terms in 1 / E (Lehmann & Romano 2005, sec. 15.2).
    """
    check_level(level)
    check_episodes(num_episodes)
    return _t_power(abs(effect_size) * math.sqrt(num_episodes), num_episodes - 1, level)


def episodes_needed(effect_size: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """Fewest episodes, at least `MIN_EPISODES`, with which `power_of_episodes` reaches `power`."""
    check_level(power)
    check_level(level)
    return _fewest(
        lambda num: power_of_episodes(effect_size, num, level=level),
        power,
        at_least=MIN_EPISODES,
        what=f"an effect of {effect_size} standard deviations",
    )


def power_of_policies(
    difference: float,
    *,
    sd_policy: float,
    sd_episode: float,
    num_policies: int,
    num_episodes: int,
    groups: int = 1,
    level: float = 0.05,
) -> float:
    """Chance that a claim about training procedures is found: the policy is the unit, each with so many episodes.

    Var(mean of a policy) = sd_policy^2 + sd_episode^2 / num_episodes (Snijders & Bosker 2012, ch. 11): beyond some
    number, more episodes of the same policies help nothing. `groups` is 1 for a mean against 0 (or a paired
    difference), 2 for the difference of two procedures with `num_policies` each.
    """
    check_level(level)
    if groups not in (1, 2):
        raise ValueError(f"groups is {groups}: 1 (a mean against 0) or 2 (two procedures)")
    if num_policies < MIN_POLICIES:
        raise ValueError(
            f"{num_policies} policies are too few for a claim about training; at least {MIN_POLICIES}"
        )
    if num_episodes < 1 or sd_policy < 0 or sd_episode < 0:
        raise ValueError(
            f"num_episodes {num_episodes}, sd_policy {sd_policy}, sd_episode {sd_episode}: wanted at least 1, 0 and 0"
        )
    variance = groups * (sd_policy**2 + sd_episode**2 / num_episodes) / num_policies
    if variance == 0:
        return 1.0 if difference else level
    return _t_power(abs(difference) / math.sqrt(variance), groups * (num_policies - 1), level)


def policies_needed(
    difference: float,
    *,
    sd_policy: float,
    sd_episode: float,
    num_episodes: int,
    groups: int = 1,
    power: float = 0.8,
    level: float = 0.05,
) -> int:
    """Fewest policies (in each group), at least `MIN_POLICIES`, with which `power_of_policies` reaches `power`."""
    check_level(power)
    return _fewest(
        lambda num: power_of_policies(
            difference,
            sd_policy=sd_policy,
            sd_episode=sd_episode,
            num_policies=num,
            num_episodes=num_episodes,
            groups=groups,
            level=level,
        ),
        power,
        at_least=MIN_POLICIES,
        what=f"a difference of {difference}",
    )


def permutations_needed(num_tests: int, *, num_discoveries: int = 1, level: float = 0.05) -> int:
    """Fewest draws with which Benjamini-Hochberg can find so many effects: 1 / (B + 1) <= level k / tests."""
    check_level(level)
    if not 1 <= num_discoveries <= num_tests:
        raise ValueError(f"num_discoveries {num_discoveries}: from 1 to num_tests ({num_tests})")
    return math.ceil(num_tests / (level * num_discoveries) - 1e-9) - 1


def _t_power(noncentrality: float, degrees: int, level: float) -> float:
    limit = stats.t.ppf(1 - level / 2, degrees)
    if not math.isfinite(noncentrality) or noncentrality > limit + 38:  # nct underflows there
        return 1.0
    return float(
        stats.nct.sf(limit, degrees, noncentrality) + stats.nct.cdf(-limit, degrees, noncentrality)
    )


def _fewest(power_of: Callable[[int], float], wanted: float, *, at_least: int, what: str) -> int:
    """By doubling and halving; power rises with the number."""
    high = at_least
    while power_of(high) < wanted:
        high *= 2
        if high > LARGEST_DESIGN:
            raise ValueError(
                f"{what} is not found with power {wanted} by {LARGEST_DESIGN} units; look for a "
                "larger effect or a quieter outcome"
            )
    low = max(at_least, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= wanted else (middle + 1, high)
    return high
