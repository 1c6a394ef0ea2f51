"""The state of a planted world is rebuilt from its latents, and luck on training episodes is not taken for
precision."""

import numpy as np
import pytest

from interp.concepts.lags import Targets
from interp.concepts.reconstruction import Rule, best_latents, fit_rules, judge

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


def targets(label_ESC: np.ndarray, mask: np.ndarray = MASK) -> Targets:
    return Targets.known(label_ESC, mask)


def rule_of(latent_ESF: np.ndarray, label_ES: np.ndarray, mask: np.ndarray = MASK, **how) -> Rule:
    (rule,) = fit_rules(latent_ESF, targets(label_ES[..., None], mask), **how)
    return rule


def test_a_split_concept_is_put_together_and_holds_elsewhere() -> None:
    train, train_label = world(0)
    rules = fit_rules(train, targets(train_label))
    assert rules == [Rule((7, 3), (0.0, 0.0)), Rule((), ())]
    latent, label = world(1)
    found = judge(rules, latent, targets(label), seed=0)
    assert found.f1_C == (1, 0)
    assert found.recall_C == (1, 0)
    assert found.precision_C[0] == 1 and np.isnan(found.precision_C[1])
    said, missed = (world(1)[1][..., c].sum() for c in range(2))
    assert found.state_f1 == pytest.approx(2 * said / (2 * said + missed))
    assert found.lo < found.state_f1 < found.hi < found.lo + 0.15


def test_a_noisy_latent_gets_a_threshold_at_which_it_is_precise() -> None:
    train, label = world(0, noise_latents=10)
    train[..., 7] += 0.5 * (np.random.default_rng(2).random((30, 40)) < 0.2)
    rule = rule_of(train, label[..., 0])
    assert rule.latents == (7, 3)
    assert 0.4 < rule.thresholds[0] < 1.0
    latent, label = world(1)
    assert judge([rule], latent[..., :10], targets(label[..., :1]), seed=0).f1_C == (1,)


def test_luck_in_a_few_episodes_is_no_candidate() -> None:
    """Latent 0 fires eight times, always rightly, in two episodes."""
    latent, label = world(3, noise_latents=10)
    latent[..., 0] = 0
    latent[:2, :, 0] = label[:2, :, 1]
    assert rule_of(latent, label[..., 1]) == Rule((), ())
    assert rule_of(latent, label[..., 1], min_episodes=2).latents == (0,)


def test_no_more_latents_are_taken_than_asked_for_and_none_that_adds_nothing() -> None:
    latent, label = world(4, noise_latents=10)
    latent[..., 5] = latent[..., 7]
    assert rule_of(latent, label[..., 0], max_latents=1).latents == (5,)
    assert rule_of(latent, label[..., 0]).latents == (5, 3)


def test_padding_says_nothing_and_counts_nothing() -> None:
    train, label = world(5, noise_latents=10)
    mask = MASK.copy()
    mask[:, 30:] = False
    train[:, 30:], label[:, 30:] = 9, True
    rule = rule_of(train, label[..., 0], mask)
    assert rule.latents == (7, 3)
    assert judge([rule], train, targets(label[..., :1], mask), seed=0).f1_C == (1,)


def test_bad_choices_are_refused() -> None:
    train, label = world(0, noise_latents=10)
    with pytest.raises(ValueError, match=r"min_precision 0\.0, max_latents 8"):
        rule_of(train, label[..., 0], min_precision=0.0)
    with pytest.raises(ValueError, match=r"1 rules for 2 labels"):
        judge([Rule((), ())], train, targets(label), seed=0)


def test_what_is_not_known_is_neither_learnt_from_nor_judged() -> None:
    """In the first half nobody knows label 0, and its latents fire at random there."""
    latent, label = world(6, noise_latents=10)
    known = np.broadcast_to(MASK[..., None], label.shape).copy()
    known[:, :20, 0] = False
    latent[:, :20, 7] = np.random.default_rng(0).random((30, 20))
    here = Targets(label_ESC=label & known, known_ESC=known, mask_ES=MASK)
    rules = fit_rules(latent, here)
    assert rules[0] == Rule((7, 3), (0.0, 0.0))
    assert rule_of(latent, label[..., 0]) != rules[0]
    assert judge(rules, latent, here, seed=0).f1_C[0] == 1


def test_boards_weigh_samples_and_the_state_weighs_labels() -> None:
    """Of two labels one is always told; the other, which holds on half of the samples, never is."""
    latent = np.ones((30, 40, 1), np.float32)
    label = np.ones((30, 40, 2), np.bool_)
    label[:, ::2, 1] = False
    found = judge([Rule((0,), (0.5,)), Rule((), ())], latent, targets(label), seed=0)
    assert found.board_f1 == pytest.approx((1 + 2 / 3) / 2)  # samples with one label, with both
    assert found.state_f1 == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert found.board_lo == pytest.approx(found.board_hi)  # all episodes are alike


def test_samples_where_nothing_holds_and_nothing_is_said_are_no_boards() -> None:
    latent, label = world(7, noise_latents=10)
    rules = fit_rules(latent, targets(label[..., :1]))
    assert judge(rules, latent, targets(label[..., :1]), seed=0).board_f1 == 1


def test_the_best_single_latent_covers_what_it_alone_can() -> None:
    """Latent 7 has 3 of 4 samples of label 0, all rightly."""
    train, label = world(0)
    best, _ = best_latents(train, targets(label))
    assert best == Rule((7,), (0.0,))
    latent, label = world(1)
    (alone,) = judge([best], latent, targets(label[..., :1]), seed=0).f1_C
    assert alone == pytest.approx(2 * 0.75 / 1.75, abs=0.03)
