"""A dictionary that we planted is found again, by both families, from samples of it alone."""

import numpy as np
import pytest

from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.training import SaeConfig, Trainer

D, NUM_FEATURES, NUM_ACTIVE = 64, 96, 6


def planted(num_rows, *, seed):
    """x = z F + bias + noise: each of 96 unit features is active independently, 6 on average, at 0.5 to 1.5."""
    features = np.random.default_rng(1234).normal(size=(NUM_FEATURES, D))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    generator = np.random.default_rng([5678, seed])
    active = generator.random((num_rows, NUM_FEATURES)) < NUM_ACTIVE / NUM_FEATURES
    z = active * generator.uniform(0.5, 1.5, size=active.shape)
    x_ND = z @ features + 0.5 + 0.02 * generator.normal(size=(num_rows, D))
    return x_ND.astype(np.float16), features


def recovery(W_dec, features):
    """Mean over planted features of the largest cosine with a decoder row."""
    unit = W_dec.numpy() / np.linalg.norm(W_dec.numpy(), axis=1, keepdims=True)
    return (features @ unit.T).max(1).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [BatchTopK(k=NUM_ACTIVE), ReluL1(l1=1.0)], ids=lambda family: family.name
)
def test_planted_dictionary_is_recovered(family):
    train_ND, features = planted(60_000, seed=0)
    held_out_ND, _ = planted(5000, seed=1)
    config = SaeConfig(family=family, d_sae=192, samples=400_000, batch_rows=1024, reports=1)
    trainer = Trainer(config, train_ND, held_out_ND, site="planted", seed=0)

    # If the initial weights leaked the answer, this test would prove nothing: compare with directions of another seed.
    start = recovery(trainer.dictionary().W_dec, features)
    chance = recovery(
        Trainer(config, train_ND, held_out_ND, site="planted", seed=9).dictionary().W_dec, features
    )
    assert start == pytest.approx(chance, abs=0.03)
    assert start < 0.45

    *_, last = trainer.run()
    found = recovery(trainer.dictionary().W_dec, features)
    assert found > 0.95
    assert last.fvu < 0.15
    assert 3 < last.l0 < 20
