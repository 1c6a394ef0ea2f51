"""Adjustments for families of tests: against their definitions, and their promise where nothing is to be found."""

import numpy as np
import pytest

from interp.stats.multiplicity import Largest, benjamini_hochberg, max_t, westfall_young


def null_family(seed: int, *, draws: int = 199, tests: int = 20, correlation: float = 0.6):
    """Observed statistics and draws from one distribution, the tests of a draw alike."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((draws + 1, 1))
    own = generator.standard_normal((draws + 1, tests))
    every = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    return every[0], every[1:]


def brute_force_step_down(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Box 2 of Ge, Dudoit & Speed 2003, line by line."""
    order = sorted(range(len(observed)), key=lambda m: -abs(observed[m]))
    adjusted, last = np.empty(len(observed)), 0.0
    for place, m in enumerate(order):
        rest = np.abs(null[:, order[place:]]).max(1)
        last = max(last, (1 + (rest >= abs(observed[m])).sum()) / (len(null) + 1))
        adjusted[m] = last
    return adjusted


def test_step_down_is_as_defined() -> None:
    observed, null = null_family(0)
    observed = observed + np.linspace(-3, 3, 20)
    np.testing.assert_allclose(
        westfall_young(observed, null), brute_force_step_down(observed, null)
    )


def test_blocks_give_what_the_whole_gives() -> None:
    """Single step: the largest of each draw is all that must be kept of a block."""
    observed, null = null_family(1)
    observed = observed + np.linspace(-3, 3, 20)
    blocks = [
        Largest(np.abs(observed[part]), np.abs(null[:, part]).max(1))
        for part in (slice(0, 7), slice(7, 8), slice(8, 20))
    ]
    expected = [(1 + (np.abs(null).max(1) >= abs(one)).sum()) / (len(null) + 1) for one in observed]
    np.testing.assert_allclose(max_t(blocks), expected)
    assert (westfall_young(observed, null) <= max_t(blocks)).all()


def test_what_was_not_tested_stays_nan_and_costs_nothing() -> None:
    observed, null = null_family(2, tests=3)
    observed[1] = np.nan
    null[:, 1] = 100
    adjusted = westfall_young(observed, null)
    assert np.isnan(adjusted[1])
    np.testing.assert_array_equal(
        adjusted[[0, 2]], westfall_young(observed[[0, 2]], null[:, [0, 2]])
    )


def test_a_false_finding_happens_in_one_family_of_twenty() -> None:
    """At 5 % of 600 families; 4 standard errors are 3.6 %. Unadjusted, 13 % or more of them would have one."""
    any_false = [(westfall_young(*null_family(seed)) <= 0.05).any() for seed in range(600)]
    assert np.mean(any_false) == pytest.approx(0.05, abs=0.036)


def test_it_finds_one_effect_where_false_discovery_rates_cannot() -> None:
    """Of 1,000 tests and 199 draws no p is below .005, and no q below .05 unless 100 tests are that small."""
    observed, null = null_family(3, tests=1000, correlation=0.0)
    observed[17] = 8.0
    p = (1 + (np.abs(null) >= np.abs(observed)).sum(0)) / 200
    assert benjamini_hochberg(p).min() > 0.05
    assert np.flatnonzero(westfall_young(observed, null) <= 0.05).tolist() == [17]
