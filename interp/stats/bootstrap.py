"""How far may a figure be from the truth? Intervals over episodes, each resampled as a whole."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from interp.stats.episodes import check_episodes, check_level, check_values


class Interval(NamedTuple):
    """Estimates over episodes with percentile bootstrap intervals."""

    mean: Float64[np.ndarray, " M"]
    lo: Float64[np.ndarray, " M"]
    hi: Float64[np.ndarray, " M"]
    n_episodes: int


def resample_weights(
    num_episodes: int, num_resamples: int, *, seed: int
) -> Float64[np.ndarray, "B E"]:
    """How often each episode occurs in each bootstrap resample; rows sum to `num_episodes`."""
    check_episodes(num_episodes)
    generator = np.random.default_rng(seed)
    return generator.multinomial(
        num_episodes, np.full(num_episodes, 1 / num_episodes), size=num_resamples
    ).astype(np.float64)


def bootstrap_mean(
    value_EM: Float[np.ndarray, "E M"],
    *,
    seed: int,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of the mean over episodes (Efron 1979), for M quantities on the same resamples."""
    check_level(level)
    check_values("value_EM", value_EM)
    weight_BE = resample_weights(len(value_EM), num_resamples, seed=seed)
    mean_BM = weight_BE @ value_EM / len(value_EM)
    lo_M, hi_M = np.quantile(mean_BM, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(value_EM.mean(0, dtype=np.float64), lo_M, hi_M, len(value_EM))


def bootstrap_ratio(
    numerator_EM: Float[np.ndarray, "E M"],
    denominator_EM: Float[np.ndarray, "E M"],
    *,
    seed: int,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile cluster bootstrap of sum(numerator) / sum(denominator): a precision, an F1, a share of a return.

    Both sums are of the same resampled episodes, so episodes of many samples weigh more (Davison & Hinkley 1997,
    ch. 2). A ratio has no interval, and is NaN with its bounds, where the interval of its denominator holds 0: it
    could then be anything (Fieller 1954).
    """
    check_level(level)
    check_values("numerator_EM", numerator_EM)
    check_values("denominator_EM", denominator_EM)
    weight_BE = resample_weights(len(numerator_EM), num_resamples, seed=seed)
    tails = [(1 - level) / 2, (1 + level) / 2]
    below_BM = weight_BE @ denominator_EM
    lo_M, hi_M = np.quantile(below_BM, tails, axis=0)
    defined_M = (lo_M > 0) | (hi_M < 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_BM = (weight_BE @ numerator_EM) / below_BM
        ratio_M = numerator_EM.sum(0, dtype=np.float64) / denominator_EM.sum(0, dtype=np.float64)
    # 0 / 0 in a resample without any such episode says nothing; by the rule above that is rare
    bounds = np.full((2, len(ratio_M)), np.nan)
    bounds[:, defined_M] = np.nanquantile(ratio_BM[:, defined_M], tails, axis=0)
    ratio_M, lo_M, hi_M = (np.where(defined_M, x, np.nan) for x in (ratio_M, *bounds))
    return Interval(ratio_M, lo_M, hi_M, len(numerator_EM))


def bootstrap_ratio_difference(
    first: tuple[Float[np.ndarray, "E M"], Float[np.ndarray, "E M"]],
    second: tuple[Float[np.ndarray, "E M"], Float[np.ndarray, "E M"]],
    *,
    seed: int,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile cluster bootstrap of one ratio of sums minus another, (numerator, denominator) each: two detectors of
    the same label in the same episodes.

    Both are of the same resamples, so what the episodes do to both cancels. NaN where one of the two ratios has no
    interval; see `bootstrap_ratio`.
    """
    check_level(level)
    for name, (numerator_EM, denominator_EM) in (("first", first), ("second", second)):
        check_values(f"{name}, numerator", numerator_EM)
        check_values(f"{name}, denominator", denominator_EM)
    weight_BE = resample_weights(len(first[0]), num_resamples, seed=seed)
    tails = [(1 - level) / 2, (1 + level) / 2]
    mean_M, difference_BM, defined_M = 0.0, 0.0, True
    with np.errstate(divide="ignore", invalid="ignore"):
        for sign, (numerator_EM, denominator_EM) in ((1, first), (-1, second)):
            below_BM = weight_BE @ denominator_EM
            lo_M, hi_M = np.quantile(below_BM, tails, axis=0)
            defined_M = defined_M & ((lo_M > 0) | (hi_M < 0))
            difference_BM = difference_BM + sign * (weight_BE @ numerator_EM) / below_BM
            sums = (x.sum(0, dtype=np.float64) for x in (numerator_EM, denominator_EM))
            mean_M = mean_M + sign * np.divide(*sums)
    difference_BM, mean_M = np.asarray(difference_BM), np.asarray(mean_M)
    bounds = np.full((2, difference_BM.shape[1]), np.nan)
    bounds[:, defined_M] = np.nanquantile(difference_BM[:, defined_M], tails, axis=0)
    mean_M, lo_M, hi_M = (np.where(defined_M, x, np.nan) for x in (mean_M, *bounds))
    return Interval(mean_M, lo_M, hi_M, len(first[0]))


def log_odds_interval(
    first_EM: Float[np.ndarray, "E M"],
    second_EM: Float[np.ndarray, "E M"],
    trials_E: Float[np.ndarray, " E"],
    *,
    seed: int,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile cluster bootstrap of the log odds ratio of two counts, each of `trials_E` trials of an episode.

    One half is added to every cell (Haldane 1956), so that the ratio is finite whatever was seen.
    """
    check_level(level)
    check_values("first_EM", first_EM)
    check_values("second_EM", second_EM)
    weight_BE = resample_weights(len(trials_E), num_resamples, seed=seed)
    every_BE = np.concatenate([np.ones((1, len(trials_E))), weight_BE])  # first of all, as observed
    trials_B1 = (every_BE @ trials_E)[:, None]
    first_BM, second_BM = every_BE @ first_EM, every_BE @ second_EM
    odds_BM = np.log((first_BM + 0.5) / (trials_B1 - first_BM + 0.5)) - np.log(
        (second_BM + 0.5) / (trials_B1 - second_BM + 0.5)
    )
    lo_M, hi_M = np.quantile(odds_BM[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(odds_BM[0], lo_M, hi_M, len(trials_E))
