"""Is a paired difference more than the luck of the episodes? Edited minus base, policy minus policy."""

import numpy as np
from jaxtyping import Float, Float64

from interp.stats.episodes import check_values


def paired_sign_flip(
    difference_EM: Float[np.ndarray, "E M"], *, seed: int, num_flips: int = 10_000
) -> Float64[np.ndarray, " M"]:
    """Two-sided p-values of mean differences: under the null, the sign of each episode's difference is a coin toss.

    (Fisher 1935.) p = (1 + number of flips with a mean at least as large) / (num_flips + 1); with at most 13 episodes
    all 2**E sign patterns are counted instead and p is exact. Differences that are all zero have p = 1.
    """
    num_episodes = len(difference_EM)
    check_values("difference_EM", difference_EM)
    observed_M = np.abs(difference_EM.sum(0, dtype=np.float64))
    tolerance_M = 1e-9 * np.abs(difference_EM).sum(0, dtype=np.float64)
    exact = 2**num_episodes <= num_flips
    if exact:
        pattern = np.arange(2**num_episodes)[:, None] >> np.arange(num_episodes) & 1
    else:
        pattern = np.random.default_rng(seed).integers(0, 2, (num_flips, num_episodes))
    flipped_BM = np.abs((2.0 * pattern - 1) @ difference_EM)
    as_large_M = (flipped_BM >= observed_M - tolerance_M).sum(0)
    return as_large_M / len(pattern) if exact else (1 + as_large_M) / (num_flips + 1)
