"""What can be said of a way of training, and not of one policy? There the unit is the policy, with its own seed of
training.

A thousand episodes of one policy say how good that policy is; what another seed of training would give, they cannot
tell.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from scipy import stats

from interp.stats.episodes import check_finite, check_level, check_values

MIN_POLICIES = 6
"""Fewer policies than this give no interval: of 4, a nominal 95 % interval covers 88 %."""


Drawn = Literal["policies", "policies and episodes"]
"""What a resample draws anew."""


class PolicyInterval(NamedTuple):
    """Means over policies with percentile intervals of the bootstrap over policies."""

    mean: Float64[np.ndarray, " M"]
    """Of the policies' means: every policy weighs the same, however many episodes it has."""
    lo: Float64[np.ndarray, " M"]
    hi: Float64[np.ndarray, " M"]
    n_policies: int
    n_episodes: int
    """Of all policies together."""


def bootstrap_policies(
    policy_values: Sequence[Float[np.ndarray, "_ M"]],
    *,
    seed: int,
    num_resamples: int = 10_000,
    level: float = 0.95,
    drawn: Drawn = "policies",
) -> PolicyInterval:
    """Interval of the mean of a training procedure: policies are drawn anew, each with all of its episodes.

    `policy_values` has for each policy its [episodes, M] values. By default episodes are not drawn a second time inside
    a policy: their noise is in its mean already, and would count twice (Davison & Hinkley 1997, ch. 3.8, strategy 2).
    With "policies and episodes" they are, at both levels with replacement (strategy 1; Saravanan et al. 2020): never
    shorter on average, as good where policies differ by more than their episodes' noise, and too long where they do
    not. Percentiles are expanded for few policies as t is beside the normal (Hesterberg 2015, "What teachers should
    know about the bootstrap", sec. 5.3); without that six policies cover 87 %.
    """
    check_level(level)
    if len(policy_values) < MIN_POLICIES:
        raise ValueError(
            f"{len(policy_values)} policies are too few for a claim about how they were trained; at least "
            f"{MIN_POLICIES}: train with more seeds, or claim something of these policies only"
        )
    for number, value_EM in enumerate(policy_values):
        check_values(f"policy_values[{number}]", value_EM)
    num_policies = len(policy_values)
    mean_PM = np.stack([value_EM.mean(0, dtype=np.float64) for value_EM in policy_values])
    generator = np.random.default_rng(seed)
    count_BP = generator.multinomial(
        num_policies, np.full(num_policies, 1 / num_policies), size=num_resamples
    )
    if drawn == "policies":
        sum_BM = count_BP.astype(np.float64) @ mean_PM
    else:
        sum_BM = np.zeros((num_resamples, mean_PM.shape[1]))
        for count_B, value_EM in zip(count_BP.T, policy_values, strict=True):
            num_episodes = len(value_EM)
            # a policy that is drawn k times gives k sets of episodes, each drawn for itself
            weight_BE = generator.multinomial(
                count_B * num_episodes, np.full(num_episodes, 1 / num_episodes)
            )
            sum_BM += weight_BE @ value_EM.astype(np.float64) / num_episodes
    t = stats.t.ppf((1 + level) / 2, num_policies - 1)
    tail = stats.norm.sf(t * np.sqrt(num_policies / (num_policies - 1)))
    lo_M, hi_M = np.quantile(sum_BM / num_policies, [tail, 1 - tail], axis=0)
    return PolicyInterval(mean_PM.mean(0), lo_M, hi_M, num_policies, sum(map(len, policy_values)))


class Components(NamedTuple):
    """Where the scatter of a quantity comes from; what `power.power_of_policies` needs."""

    mean: float
    sd_policy: float
    """Standard deviation between the true means of policies; 0 if no more than episodes explain."""
    sd_episode: float
    """Standard deviation between episodes of one policy."""


def variance_components(policy_values: Sequence[Float[np.ndarray, " _"]]) -> Components:
    """One-way ANOVA estimates (Searle, Casella & McCulloch 1992, ch. 3) from a pilot of two or more policies."""
    if len(policy_values) < 2:
        raise ValueError(f"{len(policy_values)} policies have no scatter between them; at least 2")
    for number, value_E in enumerate(policy_values):
        check_finite(f"policy_values[{number}]", value_E)
        if len(value_E) < 2:
            raise ValueError(f"policy_values[{number}] has {len(value_E)} episodes; at least 2")
    count_P = np.array([len(value_E) for value_E in policy_values], np.float64)
    mean_P = np.array([value_E.mean(dtype=np.float64) for value_E in policy_values])
    total = count_P.sum()
    grand = (count_P * mean_P).sum() / total
    within = sum(
        float(((value_E - mean) ** 2).sum())
        for value_E, mean in zip(policy_values, mean_P, strict=True)
    ) / (total - len(count_P))
    between = float((count_P * (mean_P - grand) ** 2).sum()) / (len(count_P) - 1)
    balanced = (total - (count_P**2).sum() / total) / (len(count_P) - 1)
    return Components(
        mean=float(mean_P.mean()),
        sd_policy=float(np.sqrt(max(0.0, (between - within) / balanced))),
        sd_episode=float(np.sqrt(within)),
    )
