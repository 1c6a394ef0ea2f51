"""Where there is nothing to find, p-values are uniform and intervals cover: on tracks with the inertia of real ones.

Every pair of a feature and a label below is independent by construction. Features and labels are thresholded or plain
AR(1) tracks, x_t = rho x_(t-1) + noise, which agents that walk and carry things resemble.
"""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from interp.concepts.scoring import (
    EPISODE_PERMUTATION,
    EPISODE_SIGN_FLIP,
    auroc,
    auroc_interval,
    episode_permutation_p,
)
from interp.stats.bootstrap import bootstrap_mean
from interp.stats.multiplicity import benjamini_hochberg

EPISODES, STEPS = 40, 100
LEVEL = 0.05
# The rate of 1600 pairs has a standard error of .0055: under exchangeable labels the chance of a false positive is 5 %
# given any feature, so pairs that share one are uncorrelated. [.02, .07] is then 3.7 standard errors wide, and a test
# that counts steps (last test) is far outside.
LOWEST, HIGHEST = 0.02, 0.07


def ar1(rho: float, num: int, *, seed: int) -> np.ndarray:
    """[E, S, num] independent stationary tracks of variance 1."""
    noise = np.random.default_rng(seed).standard_normal((STEPS, EPISODES, num))
    x = np.empty_like(noise)
    x[0] = noise[0]
    for t in range(1, STEPS):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * noise[t]
    return np.ascontiguousarray(x.swapaxes(0, 1), np.float32)


def independent(rho: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """40 features, 40 labels that hold on 30 % of the steps, and no padding."""
    mask_ES = np.ones((EPISODES, STEPS), np.bool_)
    return ar1(rho, 40, seed=0), ar1(rho, 40, seed=1) > 0.52, mask_ES


@pytest.mark.parametrize("rho", [0.0, 0.9, 0.98])
def test_exchange_of_episodes_has_its_level_and_nothing_is_discovered(rho) -> None:
    p_FC, null_C = episode_permutation_p(*independent(rho), seed=2, num_permutations=2000)
    assert set(null_C) == {EPISODE_PERMUTATION}
    assert LOWEST < (p_FC < LEVEL).mean() < HIGHEST
    assert (benjamini_hochberg(p_FC) > LEVEL).all()
    # In tables of 40 pairs one p of 1/2001 is a discovery already; 5 % of the 40 tables may hold one, and 7 or more
    # would have a chance of 0.3 %.
    tables = p_FC.reshape(5, 8, 8, 5).swapaxes(1, 2).reshape(40, 40)
    assert sum((benjamini_hochberg(p) < LEVEL).any() for p in tables) <= 6


PHASES = {"start": (0, 10), "middle": (40, 60), "end": (90, 100)}


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("phase", PHASES)
def test_the_phase_of_an_episode_has_its_level(rho, phase) -> None:
    t_S = np.arange(STEPS)
    first, last = PHASES[phase]
    label_ES1 = np.tile((t_S >= first) & (t_S < last), (EPISODES, 1))[..., None]
    p_FC, null_C = episode_permutation_p(
        ar1(rho, 1600, seed=3),
        label_ES1,
        np.ones((EPISODES, STEPS), np.bool_),
        seed=4,
        num_permutations=500,
    )
    assert null_C == [EPISODE_SIGN_FLIP]
    assert LOWEST < (p_FC < LEVEL).mean() < HIGHEST


@pytest.mark.parametrize("shape", ["normal", "exponential"])
def test_bootstrap_of_the_mean_covers(shape) -> None:
    """The percentile interval of 40 values is a little short, more so if they are skewed: 93.5 and 92 % in theory."""
    generator = np.random.default_rng(0)
    value_EM = getattr(generator, f"standard_{shape}")((EPISODES, 2000))
    interval = bootstrap_mean(value_EM, seed=1)
    truth = {"normal": 0.0, "exponential": 1.0}[shape]
    coverage = ((interval.lo <= truth) & (truth <= interval.hi)).mean()
    assert 0.90 < coverage < 0.98


@pytest.mark.parametrize("rho", [0.0, 0.9, 0.98])
def test_interval_of_the_auroc_covers(rho) -> None:
    interval = auroc_interval(auroc(*independent(rho)), seed=5)
    coverage = ((interval.lo <= 0.5) & (interval.hi >= 0.5)).mean()
    assert 0.90 < coverage < 0.98


def test_a_rank_test_that_counts_steps_would_be_fooled() -> None:
    """The same data, steps taken for independent: why every function here wants an axis of episodes."""
    feature_ESF, label_ESC, _ = independent(0.98)
    rejected = [
        mannwhitneyu(feature[label], feature[~label]).pvalue < LEVEL
        for feature, label in zip(
            feature_ESF.reshape(-1, 40).T, label_ESC.reshape(-1, 40).T, strict=True
        )
    ]
    assert np.mean(rejected) > 0.5
