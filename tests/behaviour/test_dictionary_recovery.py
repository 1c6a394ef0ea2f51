"""A dictionary that we planted is found again from rows alone; and where none can be found, low errors fool nobody."""

import numpy as np
import pytest

from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.matching import stability
from interp.dictionaries.planted import Planted, PlantedConfig
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.training import SaeConfig, Trainer

D, NUM_FEATURES, NUM_ACTIVE = 64, 96, 6


def trained(kind, family, *, seeds, samples=400_000):
    """The truth, held-out rows with what is on, and a dictionary for each seed."""
    truth = Planted(
        PlantedConfig(d_in=D, num_features=NUM_FEATURES, mean_active=float(NUM_ACTIVE), kind=kind)
    )
    train_ND, _ = truth.rows(60_000, seed=0)
    x_ND, on_NG = truth.rows(5000, seed=1)
    config = SaeConfig(family=family, d_sae=192, samples=samples, batch_rows=1024, reports=1)
    dictionaries = []
    for seed in range(seeds):
        trainer = Trainer(config, train_ND.astype(np.float16), x_ND, site="planted", seed=seed)
        truth.check_start(trainer.dictionary().W_dec)
        list(trainer.run())
        dictionaries.append(trainer.dictionary())
    return truth, x_ND, on_NG, dictionaries


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [BatchTopK(k=NUM_ACTIVE), ReluL1(l1=1.0)], ids=lambda family: family.name
)
def test_planted_dictionary_is_recovered(family):
    truth, x_ND, on_NG, (dictionary,) = trained("independent", family, seeds=1)
    found = truth.recovery(dictionary, x_ND, on_NG)
    assert found.mcc > 0.95
    assert found.recovered_cosine > 0.9
    assert dictionary.fvu < 0.15
    assert 3 < dictionary.l0 < 20


@pytest.mark.slow
def test_what_is_recovered_is_found_by_every_seed():
    truth, x_ND, on_NG, dictionaries = trained("independent", BatchTopK(k=NUM_ACTIVE), seeds=2)
    for dictionary in dictionaries:
        assert truth.recovery(dictionary, x_ND, on_NG).verdict == "recovered"
    assert stability(dictionaries, x_ND).verdict == "steady"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "fvu"), [("together", 0.05), ("rotated", 0.3), ("dense", 0.03)])
def test_good_reconstructions_of_what_cannot_be_recovered_are_not_called_recovered(kind, fvu):
    truth, x_ND, on_NG, dictionaries = trained(
        kind, BatchTopK(k=NUM_ACTIVE), seeds=2, samples=200_000
    )
    for dictionary in dictionaries:
        assert dictionary.fvu < fvu
        assert truth.recovery(dictionary, x_ND, on_NG).verdict == "not recovered"
    assert stability(dictionaries, x_ND).verdict == "not steady"


@pytest.mark.slow
def test_features_that_are_always_one_sum_are_steady_without_being_recovered():
    truth, x_ND, on_NG, dictionaries = trained("merged", BatchTopK(k=1), seeds=2, samples=200_000)
    for dictionary in dictionaries:
        assert dictionary.fvu < 0.2
        assert truth.recovery(dictionary, x_ND, on_NG).verdict == "not recovered"
    assert stability(dictionaries, x_ND).verdict == "steady"
