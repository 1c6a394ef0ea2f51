"""Nulls of two tracks side by side: what is summed, and when a shift inside episodes may stand for an exchange."""

from dataclasses import replace

import numpy as np
import pytest

from interp.stats.permutation import (
    Draws,
    Null,
    circular_shift_p,
    exchange_null,
    sign_flip_null,
    standardised,
    two_sided,
)


def tracks(num_episodes: int, samples: int = 7, features: int = 3):
    generator = np.random.default_rng(num_episodes)
    value = generator.standard_normal((num_episodes, samples, features)).astype(np.float32)
    return value, generator.standard_normal((num_episodes, samples)).astype(np.float32)


@pytest.mark.parametrize(
    "num_draws", [5, 150]
)  # fewer and more than episodes: two ways to the same sums
def test_every_draw_is_the_statistic_of_tracks_that_were_exchanged(num_draws) -> None:
    value_ESF, track_ES = tracks(20)
    draws = Draws.make(20, num_draws, seed=0)
    null = exchange_null(value_ESF, track_ES, draws)
    np.testing.assert_allclose(
        null.observed_F, np.einsum("esf,es->f", value_ESF, track_ES), atol=1e-4
    )
    expected = [np.einsum("esf,es->f", value_ESF, track_ES[order]) for order in draws.order_BE]
    np.testing.assert_allclose(null.null_BF, expected, atol=1e-4)


def test_a_sign_turns_a_whole_episode() -> None:
    value_ESF, track_ES = tracks(12)
    draws = Draws.make(12, 30, seed=0)
    expected = [
        np.einsum("esf,es->f", value_ESF, track_ES * sign[:, None]) for sign in draws.sign_BE
    ]
    np.testing.assert_allclose(
        sign_flip_null(value_ESF, track_ES, draws).null_BF, expected, atol=1e-4
    )


def test_an_order_that_changes_nothing_is_as_large_as_observed() -> None:
    """Ties are counted in spite of rounding, or a label with few distinct tracks would be rejected too often."""
    value_ESF, track_ES = tracks(40, samples=50)
    draws = replace(Draws.make(40, 9, seed=0), order_BE=np.tile(np.arange(40), (9, 1)))
    assert (two_sided(exchange_null(value_ESF, track_ES, draws)) == 1).all()


def test_standardised_statistics_have_one_scale_and_constants_none() -> None:
    generator = np.random.default_rng(0)
    scale = np.array([1.0, 1e4, 0.0])
    null = standardised(Null(1 + 2 * scale, 1 + scale * generator.standard_normal((500, 3))))
    np.testing.assert_allclose(null.null_BF[:, :2].std(0), 1, rtol=0.01)
    assert np.isnan(null.observed_F).tolist() == [False, False, True]


# Circular shifts


def ar1(rho: float, shape: tuple[int, int, int], *, seed: int) -> np.ndarray:
    episodes, steps, num = shape
    x = np.random.default_rng(seed).standard_normal((steps, episodes, num))
    for t in range(1, steps):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * x[t]
    return np.ascontiguousarray(x.swapaxes(0, 1), np.float32)


@pytest.mark.parametrize(("rho", "steps"), [(0.0, 200), (0.9, 400), (0.98, 2000)])
def test_shifts_have_their_level_in_three_long_episodes(rho, steps) -> None:
    value = ar1(rho, (3, steps, 40), seed=0)
    track = (ar1(rho, (3, steps, 40), seed=1) > 0.52).astype(np.float32)
    p = circular_shift_p(value, track, np.ones((3, steps), np.bool_), num_agents=1, seed=2)
    assert np.isfinite(p).mean() > 0.95
    assert 0.02 < (p[np.isfinite(p)] < 0.05).mean() < 0.07


def test_shifts_find_what_is_there_with_agents_that_turn_together() -> None:
    label = ar1(0.9, (3, 300, 2), seed=3) > 0.5  # two agents
    value = label + ar1(0.9, (3, 300, 2), seed=4)
    p = circular_shift_p(
        value.reshape(3, 600, 1).astype(np.float32),
        label.reshape(3, 600, 1).astype(np.float32),
        np.ones((3, 600), np.bool_),
        num_agents=2,
        seed=0,
    )
    assert p[0, 0] == 1 / 1001


def test_short_episodes_of_slow_tracks_are_not_tested() -> None:
    slow, fast = (ar1(rho, (12, 100, 1), seed=5) for rho in (0.98, 0.0))
    mask = np.ones((12, 100), np.bool_)
    assert np.isnan(circular_shift_p(slow, slow, mask, num_agents=1, seed=0)).all()
    assert np.isfinite(circular_shift_p(slow, fast, mask, num_agents=1, seed=0)).all()


def test_shifts_leave_padding_alone() -> None:
    value, track = ar1(0.0, (3, 80, 2), seed=6), ar1(0.0, (3, 80, 2), seed=7)
    mask = np.ones((3, 80), np.bool_)
    whole = circular_shift_p(value, track, mask, num_agents=1, seed=0)
    long_value, long_track = (
        np.concatenate([x, np.full_like(x, 9)], axis=1) for x in (value, track)
    )
    longer = np.concatenate([mask, ~mask], axis=1)
    padded = circular_shift_p(long_value, long_track, longer, num_agents=1, seed=0)
    np.testing.assert_array_equal(padded, whole)
