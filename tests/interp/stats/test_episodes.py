"""The laws of the only functions that give intervals and p-values, each against its definition written out."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, strategies as st

from interp.stats.bootstrap import bootstrap_mean, resample_weights
from interp.stats.episodes import MIN_EPISODES, episode_split
from interp.stats.multiplicity import benjamini_hochberg
from interp.stats.sign_flip import paired_sign_flip

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# Benjamini-Hochberg


def brute_force_q(p: np.ndarray) -> np.ndarray:
    """q_i = the smallest p_j m / #{p <= p_j} over all p_j >= p_i, and at most 1."""
    return np.array(
        [min(1.0, *(p_j * len(p) / (p <= p_j).sum() for p_j in p[p >= p_i])) for p_i in p]
    )


@given(P_VALUES)
def test_q_values_are_as_defined(p) -> None:
    np.testing.assert_allclose(benjamini_hochberg(p), brute_force_q(p), rtol=1e-12)


@given(P_VALUES, st.randoms(use_true_random=False))
def test_q_values_follow_their_p_values(p, random) -> None:
    """Never below p, at most 1, in the order of p, and blind to the order in which tests are listed."""
    q = benjamini_hochberg(p)
    assert (q >= p * (1 - 1e-12)).all() and (q <= 1).all()
    assert (np.diff(q[np.argsort(p)]) >= 0).all()
    order = np.arange(len(p))
    random.shuffle(order)
    np.testing.assert_array_equal(benjamini_hochberg(p[order]), q[order])


def test_what_was_not_tested_stays_nan_and_costs_nothing() -> None:
    p = np.array([[0.01, np.nan], [0.04, 0.5]])
    q = benjamini_hochberg(p)
    np.testing.assert_allclose(q, [[0.03, np.nan], [0.06, 0.5]])
    assert np.isnan(benjamini_hochberg(np.full(3, np.nan))).all()


# Paired sign flips


@pytest.mark.parametrize("num_episodes", [12, 40])  # all patterns, and sampled ones
def test_no_difference_at_all_has_p_one(num_episodes) -> None:
    assert paired_sign_flip(np.zeros((num_episodes, 3)), seed=0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("num_episodes", [10, 12])
def test_few_episodes_are_enumerated_exactly(num_episodes) -> None:
    difference_E = normal(num_episodes) + 0.4
    means = [np.mean(difference_E * signs) for signs in product([-1, 1], repeat=num_episodes)]
    expected = np.mean(np.abs(means) >= abs(difference_E.mean()) - 1e-12)
    for seed in (0, 1):  # nothing is drawn
        assert paired_sign_flip(difference_E[:, None], seed=seed) == expected


def test_a_difference_in_every_episode_has_the_smallest_p() -> None:
    assert paired_sign_flip(np.ones((10, 1)), seed=0) == 2 / 2**10
    num_flips = 999
    p = paired_sign_flip(np.ones((60, 1)), seed=0, num_flips=num_flips)
    assert p == 1 / (num_flips + 1)


@pytest.mark.parametrize("num_episodes", [12, 30])
def test_sign_flip_p_values_are_uniform_under_the_null(num_episodes) -> None:
    # of 2000 uniform p-values a share a +- 4 sqrt(a (1 - a) / 2000) lies at or below a
    p = paired_sign_flip(normal(num_episodes, 2000, seed=1), seed=0, num_flips=5000)
    for a in (0.05, 0.2, 0.5, 0.8):
        assert (p <= a).mean() == pytest.approx(a, abs=4 * np.sqrt(a * (1 - a) / 2000) + 2**-11)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_sign_flip_does_not_see_sign_or_unit(seed, unit) -> None:
    difference_EM = normal(10, 2, seed=seed) + 0.3
    p = paired_sign_flip(difference_EM, seed=0)
    np.testing.assert_array_equal(paired_sign_flip(-unit * difference_EM, seed=0), p)


# Bootstrap


@pytest.mark.parametrize(
    "compute",
    [
        lambda x_EM: bootstrap_mean(x_EM, seed=0),
        lambda x_EM: paired_sign_flip(x_EM, seed=0),
        lambda x_EM: resample_weights(len(x_EM), 5, seed=0),
    ],
    ids=["bootstrap", "sign flip", "weights"],
)
def test_too_few_episodes_are_refused(compute) -> None:
    with pytest.raises(ValueError, match=r"9 episodes are too few .* at least 10: record more"):
        compute(np.zeros((MIN_EPISODES - 1, 1)))
    compute(np.zeros((MIN_EPISODES, 1)))


def test_interval_of_a_constant_is_a_point() -> None:
    interval = bootstrap_mean(np.full((10, 2), 3.5), seed=0)
    assert interval.mean.tolist() == interval.lo.tolist() == interval.hi.tolist() == [3.5, 3.5]
    assert interval.n_episodes == 10


def test_interval_agrees_with_the_normal_one_for_many_episodes() -> None:
    value_E = normal(400)
    interval = bootstrap_mean(value_E[:, None], seed=0, num_resamples=20_000)
    half = 1.96 * value_E.std() / 20
    assert interval.lo[0] == pytest.approx(value_E.mean() - half, abs=0.1 * half)
    assert interval.hi[0] == pytest.approx(value_E.mean() + half, abs=0.1 * half)


def test_bootstrap_is_a_function_of_its_seed() -> None:
    value_EM = normal(12, 2)
    one, same, other = (bootstrap_mean(value_EM, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.lo, same.lo)
    assert (one.lo != other.lo).all()


# Splits


@given(
    st.lists(st.integers(0, 2**31), min_size=2, max_size=20, unique=True),
    st.text(max_size=5),
    st.floats(0, 1),
)
def test_the_side_of_an_episode_is_a_function_of_its_seed_and_the_salt(seeds, salt, share) -> None:
    whole = episode_split(np.array(seeds), held_out_fraction=share, salt=salt)
    alone = [
        episode_split(np.array([seed]), held_out_fraction=share, salt=salt)[0] for seed in seeds
    ]
    assert whole.tolist() == alone


def test_about_the_wanted_share_is_held_out_and_salts_differ() -> None:
    seeds = np.arange(10_000)
    one, other = (
        episode_split(seeds, held_out_fraction=0.2, salt=salt) for salt in ("sparsight", "other")
    )
    for side_E in (one, other):
        assert side_E.mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / 10_000))
    assert (one & other).mean() == pytest.approx(0.04, abs=0.01)
    assert not episode_split(seeds, held_out_fraction=0.0, salt="s").any()
    assert episode_split(seeds, held_out_fraction=1.0, salt="s").all()


def test_a_larger_share_keeps_what_a_smaller_one_held_out() -> None:
    seeds = np.arange(1000)
    less, more = (episode_split(seeds, held_out_fraction=f, salt="s") for f in (0.2, 0.3))
    assert (more | ~less).all()


def test_splits_of_today_are_those_of_yesterday() -> None:
    """Another split would let training episodes of a stored dictionary into its own held-out figures."""
    held_out_E = episode_split(np.arange(24), held_out_fraction=0.25, salt="sparsight")
    assert np.flatnonzero(held_out_E).tolist() == [1, 2, 10, 11, 15, 16, 20]
