"""The state of a planted world is rebuilt from its latents, and luck on training episodes is not taken for
precision."""

import numpy as np
import pytest

from interp.concepts.reconstruction import Rule, fit_rule, judge

MASK = np.ones((30, 40), np.bool_)


def world(seed: int, *, noise_latents: int = 200):
    """Label 0 is split between latents 3 and 7, of which 7 finds more; label 1 is nowhere; the rest is noise."""
    generator = np.random.default_rng(seed)
    which = generator.random((30, 40))
    label_ESC = np.stack([which < 0.2, generator.random((30, 40)) < 0.2], -1)
    latent_ESF = np.maximum(generator.standard_normal((30, 40, noise_latents)) - 1.5, 0)
    latent_ESF[..., 3] = (which < 0.05) * (1 + generator.random((30, 40)))
    latent_ESF[..., 7] = ((which >= 0.05) & (which < 0.2)) * (1 + generator.random((30, 40)))
    return latent_ESF.astype(np.float32), label_ESC


def test_a_split_concept_is_put_together_and_holds_elsewhere() -> None:
    train, train_label = world(0)
    rules = [fit_rule(train, train_label[..., c], MASK) for c in range(2)]
    assert rules == [Rule((7, 3), (0.0, 0.0)), Rule((), ())]
    found = judge(rules, *world(1), MASK, seed=0)
    assert found.f1_C == (1, 0)
    assert found.recall_C == (1, 0)
    assert found.precision_C[0] == 1 and np.isnan(found.precision_C[1])
    said, missed = (world(1)[1][..., c].sum() for c in range(2))
    assert found.state_f1 == pytest.approx(2 * said / (2 * said + missed))
    assert found.lo < found.state_f1 < found.hi < found.lo + 0.15


def test_a_noisy_latent_gets_a_threshold_at_which_it_is_precise() -> None:
    train, label = world(0, noise_latents=10)
    train[..., 7] += 0.5 * (np.random.default_rng(2).random((30, 40)) < 0.2)
    rule = fit_rule(train, label[..., 0], MASK)
    assert rule.latents == (7, 3)
    assert 0.4 < rule.thresholds[0] < 1.0
    latent, label = world(1)
    assert judge([rule], latent[..., :10], label[..., :1], MASK, seed=0).f1_C == (1,)


def test_luck_in_a_few_episodes_is_no_candidate() -> None:
    """Latent 0 fires eight times, always rightly, in two episodes."""
    latent, label = world(3, noise_latents=10)
    latent[..., 0] = 0
    latent[:2, :, 0] = label[:2, :, 1]
    assert fit_rule(latent, label[..., 1], MASK) == Rule((), ())
    assert fit_rule(latent, label[..., 1], MASK, min_episodes=2).latents == (0,)


def test_no_more_latents_are_taken_than_asked_for_and_none_that_adds_nothing() -> None:
    latent, label = world(4, noise_latents=10)
    latent[..., 5] = latent[..., 7]
    assert fit_rule(latent, label[..., 0], MASK, max_latents=1).latents == (5,)
    assert fit_rule(latent, label[..., 0], MASK).latents == (5, 3)


def test_padding_says_nothing_and_counts_nothing() -> None:
    train, label = world(5, noise_latents=10)
    mask = MASK.copy()
    mask[:, 30:] = False
    train[:, 30:], label[:, 30:] = 9, True
    rule = fit_rule(train, label[..., 0], mask)
    assert rule.latents == (7, 3)
    assert judge([rule], train, label[..., :1], mask, seed=0).f1_C == (1,)


def test_bad_choices_are_refused() -> None:
    train, label = world(0, noise_latents=10)
    with pytest.raises(ValueError, match=r"min_precision 0\.0, max_latents 8"):
        fit_rule(train, label[..., 0], MASK, min_precision=0.0)
    with pytest.raises(ValueError, match=r"1 rules for 2 labels"):
        judge([Rule((), ())], train, label, MASK, seed=0)
