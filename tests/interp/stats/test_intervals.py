"""Ratios over episodes, and the two levels of policies and episodes: coverage, and what is refused."""

from inspect import unwrap

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from interp.stats.bootstrap import bootstrap_mean, bootstrap_ratio
from interp.stats.episodes import check_values
from interp.stats.hierarchy import MIN_POLICIES, bootstrap_policies, variance_components
from interp.stats.sign_flip import paired_sign_flip


def test_ratio_interval_covers_with_episodes_of_many_lengths() -> None:
    """Hits among firings: the precision is .3 on average, differs between episodes, and so do the firings."""
    generator = np.random.default_rng(0)
    firings = generator.integers(1, 40, (40, 1500)).astype(float)
    hits = firings * generator.beta(3, 7, firings.shape)
    interval = bootstrap_ratio(hits, firings, seed=1, num_resamples=600)
    assert 0.90 < ((interval.lo <= 0.3) & (interval.hi >= 0.3)).mean() < 0.98
    np.testing.assert_allclose(interval.mean, hits.sum(0) / firings.sum(0))


def test_a_ratio_to_something_that_may_be_zero_has_no_interval() -> None:
    denominator = np.zeros((12, 3))
    denominator[0, 1] = 5.0  # one episode of twelve: absent from a third of the resamples
    denominator[:, 2] = 1.0
    interval = bootstrap_ratio(np.ones((12, 3)), denominator, seed=0)
    assert np.isnan(interval.mean).tolist() == [True, True, False]
    assert (np.isnan(interval.lo) == np.isnan(interval.mean)).all()
    assert interval.lo[2] == interval.hi[2] == 1


@pytest.mark.parametrize("compute", [bootstrap_mean, paired_sign_flip])
def test_an_episode_without_a_value_is_refused(compute) -> None:
    """A NaN is never as large as anything, and so would have had the smallest p."""
    value = np.ones((12, 2))
    value[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 24 entries of \w+ are not finite; leave out"):
        compute(value, seed=0)


@pytest.mark.parametrize("compute", [bootstrap_mean, paired_sign_flip])
def test_a_row_of_steps_is_refused(compute) -> None:
    """By the annotation where those are checked, as in these tests, and by the function itself where they are not."""
    with pytest.raises((ValueError, TypeCheckError), match=r"value_EM|difference_EM"):
        compute(np.zeros(1000), seed=0)
    with pytest.raises(ValueError, match=r"x has shape \(1000,\), wanted \[episodes, quantities\]"):
        unwrap(check_values)("x", np.zeros(1000))


def policies(
    num_policies: int, num_episodes: int, sd_policy: float, *, tables: int = 1500, seed: int = 0
) -> list[np.ndarray]:
    """Means of 0 in truth; episodes of a policy scatter by 1."""
    generator = np.random.default_rng(seed)
    return [
        sd_policy * generator.standard_normal(tables)
        + generator.standard_normal((num_episodes, tables))
        for _ in range(num_policies)
    ]


@pytest.mark.parametrize("num_policies", [MIN_POLICIES, 12])
@pytest.mark.parametrize("sd_policy", [0.0, 0.3, 2.0])
def test_interval_over_policies_covers(num_policies, sd_policy) -> None:
    interval = bootstrap_policies(policies(num_policies, 12, sd_policy), seed=1, num_resamples=3000)
    assert 0.90 < ((interval.lo <= 0) & (interval.hi >= 0)).mean() < 0.98


@pytest.mark.parametrize("sd_policy", [0.0, 0.3, 2.0])
def test_interval_over_policies_and_their_episodes_covers_and_is_long_where_policies_are_alike(
    sd_policy,
) -> None:
    values = policies(MIN_POLICIES, 12, sd_policy)
    once = bootstrap_policies(values, seed=1, num_resamples=2000)
    twice = bootstrap_policies(values, seed=1, num_resamples=2000, drawn="policies and episodes")
    covered = ((twice.lo <= 0) & (twice.hi >= 0)).mean()
    length = float((twice.hi - twice.lo).mean() / (once.hi - once.lo).mean())
    np.testing.assert_array_equal(twice.mean, once.mean)
    if sd_policy == 2.0:
        assert 0.90 < covered < 0.98
        assert 1.0 < length < 1.05
    else:
        assert covered > 0.95
        assert 1.2 < length < 1.7  # about sqrt 2: the noise of the episodes, counted twice


def test_taking_episodes_for_policies_would_not_cover() -> None:
    pooled = np.concatenate(policies(MIN_POLICIES, 12, 2.0))
    interval = bootstrap_mean(pooled, seed=1, num_resamples=500)
    assert ((interval.lo <= 0) & (interval.hi >= 0)).mean() < 0.5


def test_every_policy_weighs_the_same() -> None:
    values = [np.full((10 + 30 * (p == 0), 1), float(p)) for p in range(6)]
    interval = bootstrap_policies(values, seed=0)
    assert interval.mean.tolist() == [2.5]
    assert (interval.n_policies, interval.n_episodes) == (6, 90)


def test_too_few_policies_or_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 policies are too few .* at least 6: train with more"):
        bootstrap_policies(policies(5, 12, 0.0), seed=0)
    with pytest.raises(ValueError, match=r"9 episodes are too few"):
        bootstrap_policies(policies(6, 9, 0.0), seed=0)


def test_components_of_the_scatter_are_found() -> None:
    """30 policies of 8 to 16 episodes; the estimates' own errors are about 13 and 4 %."""
    generator = np.random.default_rng(2)
    values = [
        1.0 + 0.8 * generator.standard_normal() + 2.0 * generator.standard_normal(n)
        for n in generator.integers(80, 160, 30)
    ]
    found = variance_components(values)
    assert found.sd_policy == pytest.approx(0.8, rel=0.4)
    assert found.sd_episode == pytest.approx(2.0, rel=0.1)


def test_policies_that_differ_by_no_more_than_episodes_do_not_differ() -> None:
    alternating = np.tile([1.0, -1.0], 10)
    assert variance_components([alternating, -alternating]).sd_policy == 0
