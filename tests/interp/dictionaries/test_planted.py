"""Rows with a known dictionary, and what counts as having found it."""

import numpy as np
import pytest
import torch

from interp.dictionaries.planted import Planted, PlantedConfig, Recovery


def planted(**fields):
    return Planted(PlantedConfig(**{"d_in": 32, "num_features": 24, "mean_active": 3.0, **fields}))


def perfect(truth, on_NG):
    return truth.recovery_of(torch.from_numpy(truth.features_GD), on_NG.astype(np.float32), on_NG)


def test_rows_are_a_function_of_their_seed_and_the_features_of_theirs():
    first, again, other = planted(), planted(), planted(seed=1)
    assert np.array_equal(first.rows(50, seed=3)[0], again.rows(50, seed=3)[0])
    assert not np.array_equal(first.rows(50, seed=3)[0], first.rows(50, seed=4)[0])
    assert not np.allclose(first.features_GD, other.features_GD)


def test_features_are_on_as_often_as_asked_and_by_a_power_law():
    _, on_NG = planted().rows(20_000, seed=0)
    assert on_NG.sum(1).mean() == pytest.approx(3, rel=0.03)
    rate_G = on_NG.mean(0)
    assert rate_G[0] / rate_G[20] == pytest.approx(30 / 10, rel=0.2)


def test_the_true_amounts_explain_all_but_the_noise():
    x_ND, _ = planted(noise=0.1).rows(5000, seed=0)
    noise = 32 * 0.1**2 / x_ND.var(0).sum()
    assert planted(noise=0.1).known_fvu(5000, seed=0) == pytest.approx(noise, rel=0.05)


def test_fewer_features_a_row_explain_less():
    truth = planted()
    shares = [truth.known_fvu(2000, seed=0, k=k) for k in (1, 3, 24)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == truth.known_fvu(2000, seed=0)


@pytest.mark.parametrize("kind", ["together", "rotated", "merged"])
def test_groups_come_and_go_together(kind):
    _, on_NG = planted(kind=kind).rows(2000, seed=0)
    groups = on_NG.reshape(2000, 6, 4)
    assert (groups.all(2) == groups.any(2)).all()
    assert on_NG.sum(1).mean() == pytest.approx(3, rel=0.1)


def test_dense_rows_lie_in_an_eighth_of_the_dimensions():
    x_ND, on_NG = planted(kind="dense", noise=0.0).rows(500, seed=0)
    assert on_NG.all()
    assert np.linalg.matrix_rank(x_ND - x_ND.mean(0), tol=1e-2) == 4


def test_the_truth_itself_is_recovered():
    truth = planted()
    _, on_NG = truth.rows(2000, seed=0)
    found = perfect(truth, on_NG)
    assert (found.verdict, found.recovered_share) == ("recovered", 1.0)
    assert found.mcc == pytest.approx(1, abs=1e-5)
    assert found.chance_mcc < 0.6


def test_right_directions_that_fire_at_the_wrong_time_are_not_recovered():
    truth = planted()
    _, on_NG = truth.rows(2000, seed=0)
    found = truth.recovery_of(
        torch.from_numpy(truth.features_GD), on_NG[::-1].astype(np.float32), on_NG
    )
    assert found.recovered_cosine == 1.0
    assert (found.verdict, found.recovered_share) == ("not recovered", 0.0)


def test_right_times_with_wrong_directions_are_not_recovered():
    truth = planted()
    _, on_NG = truth.rows(2000, seed=0)
    found = truth.recovery_of(
        torch.randn(24, 32, generator=torch.Generator().manual_seed(0)),
        on_NG.astype(np.float32),
        on_NG,
    )
    assert found.mcc == pytest.approx(found.chance_mcc, abs=0.05)
    assert found.verdict == "not recovered"


def test_features_without_a_latent_of_their_own_count_as_missed():
    truth = planted()
    _, on_NG = truth.rows(2000, seed=0)
    half = truth.recovery_of(
        torch.from_numpy(truth.features_GD[:12]), on_NG[:, :12].astype(np.float32), on_NG
    )
    assert half.recovered_share == half.recovered_cosine == 0.5
    assert half.f1 == pytest.approx(0.5)


def test_weights_that_know_the_features_before_training_are_refused():
    truth = planted()
    truth.check_start(torch.randn(48, 32, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"before training the weights have an MCC of 1\.000"):
        truth.check_start(torch.from_numpy(truth.features_GD))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "together", "num_features": 22}, r"multiple of 4 with kind 'together'"),
        ({"mean_active": 7.0}, r"mean_active is 7\.0"),
        ({"d_in": 4}, r"d_in is 4"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        planted(**fields)


@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        (0.9, "recovered"),
        (0.89, "partly recovered"),
        (0.51, "partly recovered"),
        (0.5, "not recovered"),
    ],
)
def test_the_verdict_is_the_stated_rule(share, verdict):
    found = Recovery(mcc=1.0, chance_mcc=0.2, recovered_cosine=1.0, f1=1.0, recovered_share=share)
    assert found.verdict == verdict
