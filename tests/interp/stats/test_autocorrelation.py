"""What a track is worth: against the time of AR(1) processes, which is known."""

import numpy as np
import pytest

from interp.stats.autocorrelation import autocorrelation_time, effective_pairs, effective_samples


def ar1(rho: float, *, episodes: int, steps: int, num: int, seed: int) -> np.ndarray:
    """[E, S, num] independent stationary tracks of variance 1."""
    x = np.random.default_rng(seed).standard_normal((steps, episodes, num))
    for t in range(1, steps):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * x[t]
    return np.ascontiguousarray(x.swapaxes(0, 1), np.float32)


def known_time(rho: float, steps: int) -> float:
    k = np.arange(1, steps)
    return float(1 + 2 * ((1 - k / steps) * rho**k).sum())


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.98])
def test_the_time_of_a_process_is_found(rho) -> None:
    track = ar1(rho, episodes=60, steps=300, num=10, seed=0)
    mask = np.ones(track.shape[:2], np.bool_)
    found = autocorrelation_time(track, mask, num_agents=1)
    assert found.mean() == pytest.approx(known_time(rho, 300), rel=0.15)
    samples = effective_samples(track, mask, num_agents=1)
    np.testing.assert_allclose(samples, track[..., 0].size / found, rtol=1e-6)


def test_agents_that_do_the_same_count_once() -> None:
    one = ar1(0.5, episodes=40, steps=100, num=4, seed=1)
    mask = np.ones((40, 200), np.bool_)
    alone = effective_samples(one, mask[:, :100], num_agents=1)
    twins = effective_samples(np.repeat(one, 2, axis=1), mask, num_agents=2)
    np.testing.assert_allclose(twins, alone, rtol=1e-5)
    strangers = np.stack([one, ar1(0.5, episodes=40, steps=100, num=4, seed=2)], 2)
    apart = effective_samples(strangers.reshape(40, 200, 4), mask, num_agents=2)
    assert apart.mean() == pytest.approx(2 * alone.mean(), rel=0.15)


def test_episodes_that_differ_as_wholes_are_one_sample_each() -> None:
    track = np.repeat(ar1(0.0, episodes=50, steps=1, num=3, seed=3), 64, axis=1)
    samples = effective_samples(track, np.ones((50, 64), np.bool_), num_agents=1)
    assert (samples > 45).all() and (samples < 60).all()


def test_padding_is_not_a_sample_and_a_constant_has_no_time() -> None:
    track = ar1(0.9, episodes=30, steps=80, num=2, seed=4)
    track[..., 1] = 3
    mask = np.ones((30, 80), np.bool_)
    time = autocorrelation_time(track, mask, num_agents=1)
    padded = np.concatenate([track, np.full_like(track, 99)], axis=1)
    padded_mask = np.concatenate([mask, ~mask], axis=1)
    found = autocorrelation_time(padded, padded_mask, num_agents=1)
    np.testing.assert_allclose(found, time)
    assert np.isnan(time).tolist() == [False, True]


def test_gaps_and_half_steps_are_refused() -> None:
    track, mask = np.zeros((12, 8, 1), np.float32), np.ones((12, 8), np.bool_)
    with pytest.raises(ValueError, match=r"not whole steps of 3 agents"):
        autocorrelation_time(track, mask, num_agents=3)
    mask[4, 2] = False
    with pytest.raises(ValueError, match=r"without gaps"):
        autocorrelation_time(track, mask, num_agents=1)


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_a_pair_is_worth_what_both_tracks_forget_together(rho) -> None:
    """Bartlett 1935: N / (1 + 2 sum rho_x rho_y), and 1 / n is the variance of a correlation of strangers."""
    x, y = (ar1(rho, episodes=60, steps=100, num=12, seed=seed) for seed in (5, 6))
    pairs = effective_pairs(x, y, np.ones((60, 100), np.bool_))
    assert pairs.mean() == pytest.approx(6000 / known_time(rho * rho, 100), rel=0.15)
    correlation = np.corrcoef(x.reshape(6000, -1).T, y.reshape(6000, -1).T)[:12, 12:]
    assert correlation.var() == pytest.approx(1 / np.median(pairs), rel=0.5)
