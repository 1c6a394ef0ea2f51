"""What training never saw is told from what it did."""

import numpy as np
import pytest

from interp.steering.manifold import Manifold

D = 6


def rows(num: int, *, seed: int = 0) -> np.ndarray:
    """Long along one direction, short along the others, away from the origin; the last unit never varies."""
    generator = np.random.default_rng(seed)
    x_ND = generator.standard_normal((num, D)) * [5, 1, 1, 0.2, 1, 0] + 2
    return x_ND.astype(np.float32)


def test_one_training_row_in_a_thousand_is_off_and_about_as_many_others() -> None:
    manifold = Manifold.of(rows(20_000))
    assert manifold.is_off(rows(20_000)).mean() == pytest.approx(0.001, abs=2e-4)
    assert manifold.is_off(rows(20_000, seed=1)).mean() == pytest.approx(0.001, abs=1e-3)


def test_distance_is_counted_in_deviations_of_each_direction() -> None:
    """Six units along the long direction are near, along a short one they are far."""
    manifold = Manifold.of(rows(20_000))
    centre = np.full(D, 2, np.float32)
    along = centre + np.eye(D, dtype=np.float32) * 6
    assert manifold.is_off(along).tolist() == [False, True, True, True, True, True]


def test_units_beyond_every_training_value_are_counted() -> None:
    manifold = Manifold.of(rows(5000))
    x_ND = np.tile(rows(5000)[:1], (2, 1))
    x_ND[1, :3] = 1000
    np.testing.assert_allclose(manifold.out_of_range(x_ND), [0, 0.5])


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"11 training rows for 6 units: at least 12"):
        Manifold.of(rows(11))
