"""Blocks of features: the same numbers as one by one, and calibrated with labels that are missing here and there."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import rankdata

from interp.concepts import blocks
from interp.concepts.blocks import blocks_of, merge, score_all, score_block
from interp.concepts.lags import Targets, within
from interp.concepts.ranks import centred_ranks
from interp.concepts.scoring import BLOCK_FEATURES, episode_permutation_p, rank_auroc
from interp.stats.permutation import EPISODE_PERMUTATION, EPISODE_SIGN_FLIP, UNTESTED, Draws


def sample(seed: int, *, episodes=24, samples=16, features=5, labels=3):
    """Latent-like features of few values, labels that know the first of them, ragged episodes with nonsense behind."""
    generator = np.random.default_rng(seed)
    shape = (episodes, samples)
    feature_ESF = generator.integers(-6, 4, (*shape, features)).clip(0).astype(np.float32)
    label_ESC = generator.random((*shape, labels)) < 0.2 + 0.15 * feature_ESF[..., :1]
    mask_ES = np.arange(samples) < generator.integers(samples // 2, samples + 1, episodes)[:, None]
    feature_ESF[~mask_ES] = 99
    return feature_ESF, Targets.known(label_ESC, mask_ES)


def with_holes(targets: Targets, seed: int = 0) -> Targets:
    known_ESC = targets.known_ESC & (
        np.random.default_rng(seed).random(targets.known_ESC.shape) < 0.7
    )
    return Targets(
        label_ESC=targets.label_ESC & known_ESC, known_ESC=known_ESC, mask_ES=targets.mask_ES
    )


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_ranks_are_mid_ranks_with_a_floor_or_without(seed, with_floor) -> None:
    generator = np.random.default_rng(seed)
    value_N = generator.integers(-4 * with_floor, 5, 40).clip(0).astype(np.float32) - 1
    feature_ESF = value_N.reshape(4, 10, 1)
    ranks = centred_ranks(feature_ESF, np.ones((4, 10), np.bool_))
    np.testing.assert_array_equal(ranks.reshape(-1), rankdata(value_N) - 20.5)


def test_a_feature_without_a_rank_is_refused() -> None:
    feature_ESF, targets = sample(0)
    feature_ESF[1, 0, 3] = np.nan
    with pytest.raises(ValueError, match=r"features \[3\] have values that are not finite"):
        score_all(feature_ESF, targets, seed=0)


def test_blocks_give_what_single_tests_give() -> None:
    """More features than one block has; the families' p is compared with its definition on all draws at once."""
    feature_ESF, targets = sample(1, features=BLOCK_FEATURES + 9)
    scores = score_all(feature_ESF, targets, seed=3, num_permutations=200)
    arrays = (feature_ESF, targets.label_ESC, targets.mask_ES)
    p_FC, null_C = episode_permutation_p(*arrays, seed=3, num_permutations=200)
    np.testing.assert_array_equal(scores.p_FC, p_FC)
    assert scores.null_C == null_C
    np.testing.assert_allclose(scores.auroc_FC, rank_auroc(*arrays), atol=1e-12)
    assert (scores.family_p_FC >= scores.p_FC).all()
    assert (scores.family_p_FC[0] == 1 / 201).all()  # the planted feature, against all 219 others


def test_the_order_in_which_blocks_are_made_does_not_matter() -> None:
    feature_ESF, targets = sample(2, features=2 * BLOCK_FEATURES + 1)
    draws = Draws.make(24, 99, seed=0)
    parts = list(blocks_of(feature_ESF.shape[2]))
    assert [part.stop - part.start for part in parts] == [BLOCK_FEATURES, BLOCK_FEATURES, 1]
    backwards = [score_block(feature_ESF[..., part], targets, draws) for part in parts[::-1]]
    whole = score_all(feature_ESF, targets, seed=0, num_permutations=99)
    for mine, theirs in zip(merge(backwards[::-1]), whole, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match=r"129 features in a block; at most 64"):
        score_block(feature_ESF, targets, draws)


def test_missing_labels_are_left_out_of_the_auroc_and_counted() -> None:
    feature_ESF, targets = sample(3)
    holes = with_holes(targets)
    scores = score_all(feature_ESF, holes, seed=0, num_permutations=50)
    for c in range(3):
        known_ES = holes.known_ESC[..., c]
        alone = rank_auroc(feature_ESF, targets.label_ESC[..., c : c + 1], known_ES)
        np.testing.assert_allclose(scores.auroc_FC[:, c], alone[:, 0], atol=1e-12)
        assert scores.num_missing_C[c] == targets.mask_ES.sum() - known_ES.sum()


def test_what_is_true_where_nothing_is_known_is_refused() -> None:
    holes = with_holes(sample(4)[1])
    with pytest.raises(ValueError, match=r"True where it is not known"):
        replace(holes, label_ESC=holes.label_ESC | ~holes.known_ESC)
    with pytest.raises(ValueError, match=r"known where there is no sample"):
        replace(holes, known_ESC=np.ones_like(holes.known_ESC))


def test_labels_that_are_missing_at_random_keep_their_selectivity() -> None:
    feature_ESF, targets = sample(4, episodes=200)
    whole, holes = (
        score_all(feature_ESF, one, seed=0, num_permutations=200).selectivity_FC
        for one in (targets, with_holes(targets))
    )
    assert whole[0].min() > 0.1
    np.testing.assert_allclose(holes, whole, atol=0.03)


def test_labels_without_enough_episodes_are_named_and_phases_flipped() -> None:
    feature_ESF, targets = sample(5, labels=3)
    label_ESC = targets.label_ESC.copy()
    label_ESC[9:, :, 0] = False
    label_ESC[..., 1] = np.arange(16) < 4
    scores = score_all(feature_ESF, Targets.known(label_ESC, targets.mask_ES), seed=0)
    assert scores.null_C == [UNTESTED, EPISODE_SIGN_FLIP, EPISODE_PERMUTATION]
    for column in (scores.p_FC, scores.q_FC, scores.family_p_FC, scores.selectivity_FC):
        assert np.isnan(column).tolist() == [[True, False, False]] * 5


def ar1(rho: float, num: int, *, seed: int, episodes: int = 40, steps: int = 60) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((steps, episodes, num))
    for t in range(1, steps):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * x[t]
    return np.ascontiguousarray(x.swapaxes(0, 1), np.float32)


@pytest.mark.parametrize("rho", [0.0, 0.9, 0.98])
def test_horizons_and_holes_have_their_level_and_nothing_is_found(rho) -> None:
    mask_ES = np.ones((40, 60), np.bool_)
    soon = within(Targets.known(ar1(rho, 40, seed=1) > 1, mask_ES), steps=5, num_agents=1)
    scores = score_all(ar1(rho, 40, seed=0), with_holes(soon), seed=2, num_permutations=1000)
    assert 0.02 < (scores.p_FC < 0.05).mean() < 0.07
    assert (scores.q_FC > 0.05).all() and (scores.family_p_FC > 0.05).all()
    # what a table of noise selects is nothing, on average
    assert abs(scores.selectivity_FC.mean()) < 0.005


def test_selectivity_is_the_lead_over_labels_of_other_episodes() -> None:
    """Episodes of one length, where it is exact; a label that is a phase can be read off time by anybody."""
    generator = np.random.default_rng(6)
    phase = np.broadcast_to(np.arange(30.0)[None, :, None], (20, 30, 1))
    label_ESC = (phase + 3 * generator.standard_normal((20, 30, 1))) > 15
    clock = phase + generator.standard_normal((20, 30, 1))
    targets = Targets.known(label_ESC, np.ones((20, 30), np.bool_))
    scores = score_all(clock.astype(np.float32), targets, seed=0, num_permutations=300)
    permuted = [
        abs(rank_auroc(clock.astype(np.float32), label_ESC[order], targets.mask_ES)[0, 0] - 0.5)
        for order in (generator.permutation(20) for _ in range(100))
    ]
    assert scores.auroc_FC[0, 0] > 0.95
    expected = scores.auroc_FC[0, 0] - 0.5 - np.mean(permuted)
    assert scores.selectivity_FC[0, 0] == pytest.approx(expected, abs=0.002)
    assert expected < 0.02


def test_a_family_has_a_false_finding_in_one_table_of_twenty() -> None:
    """60 tables of 8 x 5 at 5 %: 3 are expected, 8 or more have a chance of 1 %."""
    found = 0
    for seed in range(60):
        feature, label = (ar1(0.9, num, seed=1000 * num + seed, steps=20) for num in (8, 5))
        targets = Targets.known(label > 0.5, np.ones((40, 20), np.bool_))
        scores = blocks.score_all(feature, targets, seed=seed, num_permutations=100)
        found += bool((scores.family_p_FC <= 0.05).any())
    assert found <= 7
