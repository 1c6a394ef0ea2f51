"""What is called recovered, and what is not."""

import numpy as np
import pytest
import torch

from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.config import SaeConfig
from interp.dictionaries.matching import chance_mcc, match, stability
from interp.dictionaries.planted import Planted, PlantedConfig
from interp.dictionaries.training import Trainer


def a_planted(**changes):
    return Planted(PlantedConfig(**{"d_in": 48, "num_features": 64, "mean_active": 5.0} | changes))


def trained(planted, seed):
    train, _ = planted.rows(60_000, seed=0)
    held_out, on = planted.rows(4000, seed=1)
    config = SaeConfig(family=BatchTopK(k=5), d_sae=128, samples=300_000, reports=1)
    trainer = Trainer(config, train, held_out, site="planted", seed=seed)
    start = planted.recovery(trainer.dictionary(), held_out, on)
    *_, last = trainer.run()
    return trainer.dictionary(), last, planted.recovery(trainer.dictionary(), held_out, on), start


def test_the_truth_itself_is_recovered_and_random_directions_are_not():
    planted = a_planted()
    _, on = planted.rows(3000, seed=0)
    amounts = on.astype(np.float32)
    whole = planted.recovery_of(torch.from_numpy(planted.features_GD), amounts, on)
    assert (whole.verdict, whole.recovered_share, whole.f1) == ("recovered", 1.0, 1.0)
    assert whole.mcc == pytest.approx(1.0, abs=1e-5)
    other = torch.randn(64, 48, generator=torch.Generator().manual_seed(3))
    none = planted.recovery_of(other, amounts, on)
    assert none.verdict == "not recovered"
    assert none.mcc == pytest.approx(none.chance_mcc, abs=0.03)


def test_a_direction_that_does_not_fire_with_its_feature_is_not_recovered():
    planted = a_planted()
    _, on = planted.rows(3000, seed=0)
    latents = on[::-1].astype(np.float32)  # right as often, at other times
    found = planted.recovery_of(torch.from_numpy(planted.features_GD), latents, on)
    assert found.mcc > 0.99
    assert found.verdict == "not recovered"


@pytest.mark.slow
def test_planted_dictionary_is_recovered_and_one_that_only_reconstructs_is_not():
    first, honest_last, honest, start = trained(a_planted(), seed=0)
    assert start.mcc == pytest.approx(start.chance_mcc, abs=0.04)
    assert honest.verdict == "recovered"
    _, fooled_last, fooled, _ = trained(a_planted(kind="together"), seed=0)
    assert fooled_last.fvu < honest_last.fvu  # by the error alone it would be the better one
    assert fooled.verdict == "not recovered"

    second, *_ = trained(a_planted(), seed=1)
    rows, _ = a_planted().rows(4000, seed=1)
    steady = stability([first, second], rows)
    assert steady.matched_share > 0.7  # some live latents are of no feature
    assert steady.mcc > steady.chance + 0.4


def test_rows_have_the_frequencies_that_were_asked_for():
    planted = a_planted()
    rows, on = planted.rows(20_000, seed=0)
    assert on.sum(1).mean() == pytest.approx(5.0, rel=0.03)
    assert on[:, 0].mean() > 3 * on[:, -1].mean()
    again, _ = planted.rows(20_000, seed=0)
    other, _ = planted.rows(20_000, seed=1)
    assert (rows == again).all()
    assert not np.allclose(rows, other)


def test_matching_finds_a_permutation():
    directions = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    found = match(directions, 3 * directions[order])
    assert (order[torch.from_numpy(found.second_M)] == torch.arange(12)).all()
    assert found.mcc == pytest.approx(1.0, abs=1e-5)
    assert match(directions, -directions).mcc < 0.5
    assert match(directions, -directions, signed=False).mcc == pytest.approx(1.0, abs=1e-5)
    assert chance_mcc(12, 12, 30, seed=0) < 0.5


def test_directions_that_cannot_be_matched_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\) cannot be matched"):
        match(torch.ones(3, 4), torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"0 dictionaries; stability compares at least two"):
        stability([], np.ones((3, 2), np.float32))
