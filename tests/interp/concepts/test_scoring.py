"""Scores against their definitions written out, their symmetries, and what each null exchanges."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from interp.concepts.scoring import (
    EPISODE_PERMUTATION,
    EPISODE_SIGN_FLIP,
    UNTESTED,
    auroc,
    auroc_interval,
    best_feature,
    best_threshold_f1,
    episode_permutation_p,
    null_auroc_quantile,
    rank_auroc,
)
from interp.stats.bootstrap import resample_weights


@dataclass(frozen=True)
class Data:
    feature_ESF: np.ndarray
    label_ESC: np.ndarray
    mask_ES: np.ndarray

    def __iter__(self):
        return iter((self.feature_ESF, self.label_ESC, self.mask_ES))

    def features(self, feature_ESF: np.ndarray) -> "Data":
        return replace(self, feature_ESF=feature_ESF.astype(np.float32))


def data(seed: int, *, num_episodes=7, steps=9, num_agents=2, features=3, labels=2) -> Data:
    """Few distinct values, so many ties; episodes of several lengths; nonsense in the padding."""
    generator = np.random.default_rng(seed)
    shape = (num_episodes, steps * num_agents)
    feature_ESF = generator.integers(0, 6, (*shape, features)).astype(np.float32)
    label_ESC = generator.random((*shape, labels)) < 0.3 + 0.08 * feature_ESF[..., :1]
    length_E = generator.integers(steps // 2, steps + 1, num_episodes) * num_agents
    mask_ES = np.arange(shape[1]) < length_E[:, None]
    feature_ESF[~mask_ES] = 99
    return Data(feature_ESF, label_ESC, mask_ES)


def brute_force_auroc(feature_N, label_N) -> float:
    """P(feature of a positive > feature of a negative) + P(equal) / 2."""
    positive, negative = feature_N[label_N][:, None], feature_N[~label_N]
    return float((positive > negative).mean() + 0.5 * (positive == negative).mean())


SEEDS = st.integers(0, 2**32 - 1)

# AUROC


@settings(max_examples=20)
@given(SEEDS)
def test_auroc_is_as_defined_with_ties_and_padding(seed) -> None:
    sample = data(seed)
    expected_FC = [
        [
            brute_force_auroc(sample.feature_ESF[sample.mask_ES, f], label_N)
            for label_N in sample.label_ESC[sample.mask_ES].T
        ]
        for f in range(3)
    ]
    np.testing.assert_allclose(auroc(*sample).auroc_FC, expected_FC, atol=1e-12)
    np.testing.assert_allclose(rank_auroc(*sample), expected_FC, atol=1e-6)


@settings(max_examples=20)
@given(SEEDS)
def test_auroc_does_not_see_a_monotone_map_and_is_mirrored_by_a_sign(seed) -> None:
    sample = data(seed)
    score_FC = auroc(*sample).auroc_FC
    cubed = sample.features(sample.feature_ESF**3 - 5)
    negated = sample.features(-sample.feature_ESF)
    np.testing.assert_array_equal(auroc(*cubed).auroc_FC, score_FC)
    np.testing.assert_allclose(auroc(*negated).auroc_FC, 1 - score_FC, atol=1e-12)
    np.testing.assert_allclose(
        auroc(*replace(sample, label_ESC=~sample.label_ESC)).auroc_FC, 1 - score_FC, atol=1e-12
    )


@settings(max_examples=20)
@given(SEEDS, st.permutations(range(3)), st.permutations(range(7)))
def test_auroc_does_not_see_the_order_of_features_or_episodes(seed, features, episodes) -> None:
    sample = data(seed)
    table = auroc(*sample)
    permuted = auroc(*sample.features(sample.feature_ESF[..., features]))
    np.testing.assert_array_equal(permuted.auroc_FC, table.auroc_FC[features])
    np.testing.assert_array_equal(permuted.influence_EFC, table.influence_EFC[:, features])
    moved = auroc(*(array[episodes] for array in sample))
    np.testing.assert_allclose(moved.auroc_FC, table.auroc_FC, atol=1e-12)
    np.testing.assert_allclose(moved.influence_EFC, table.influence_EFC[episodes], atol=1e-6)


def test_a_label_without_both_kinds_of_samples_has_no_auroc() -> None:
    sample = data(0)
    label_ESC = sample.label_ESC.copy()
    label_ESC[..., 0] = True
    for score_FC in (
        auroc(*replace(sample, label_ESC=label_ESC)).auroc_FC,
        rank_auroc(*replace(sample, label_ESC=label_ESC)),
    ):
        assert np.isnan(score_FC).tolist() == [[True, False]] * 3


# Influence and interval


def test_influences_are_the_derivative_of_the_auroc_in_the_episodes_weight() -> None:
    """Checked by repeating every episode 500 times, but one of them 501 times."""
    sample = data(3)
    table = auroc(*sample)
    np.testing.assert_allclose(table.influence_EFC.sum(0), 0, atol=1e-6)
    for episode in range(7):
        times = np.full(7, 500)
        times[episode] += 1
        repeated = rank_auroc_exactly(sample, times)
        slope_FC = (repeated - table.auroc_FC) * 500
        np.testing.assert_allclose(slope_FC, table.influence_EFC[episode], atol=0.0005)


def rank_auroc_exactly(sample: Data, times_E: np.ndarray) -> np.ndarray:
    """The AUROC of a sample in which each episode occurs so many times, ranked anew."""
    return auroc(*(np.repeat(array, times_E, axis=0) for array in sample)).auroc_FC


def test_interval_agrees_with_the_bootstrap_that_ranks_anew() -> None:
    sample = data(1, num_episodes=30, steps=20)
    table = auroc(*sample)
    interval = auroc_interval(table, seed=5, num_resamples=600)
    weight_BE = resample_weights(30, 600, seed=5).astype(int)
    exact_BFC = np.stack([rank_auroc_exactly(sample, weight_E) for weight_E in weight_BE])
    lo_FC, hi_FC = np.quantile(exact_BFC, [0.025, 0.975], axis=0)
    assert (hi_FC - lo_FC > 0.05).all()  # the tolerance is small beside what is measured
    np.testing.assert_allclose(interval.lo, lo_FC, atol=0.01)
    np.testing.assert_allclose(interval.hi, hi_FC, atol=0.01)


def test_interval_of_a_perfect_score_stays_within_one() -> None:
    sample = data(2, num_episodes=12)
    perfect = sample.features(sample.label_ESC[..., :1])
    interval = auroc_interval(auroc(*perfect), seed=0)
    assert interval.lo[0, 0] == interval.hi[0, 0] == 1
    assert ((interval.lo >= 0) & (interval.hi <= 1)).all()


def test_interval_of_too_few_episodes_is_refused() -> None:
    with pytest.raises(ValueError, match="7 episodes are too few"):
        auroc_interval(auroc(*data(0)), seed=0)


# Thresholds


def test_threshold_is_chosen_on_training_episodes_only() -> None:
    """Held-out data of the opposite kind change the score and not the threshold."""
    train, held_out = data(0), data(1, num_episodes=5, steps=11)
    against = replace(held_out, label_ESC=~held_out.label_ESC)
    one, other = (best_threshold_f1(*train, *side) for side in (held_out, against))
    np.testing.assert_array_equal(one.threshold_FC, other.threshold_FC)
    assert (one.f1_FC != other.f1_FC).all()


def test_f1_is_that_of_the_best_of_ten_thresholds() -> None:
    train, held_out = data(0), data(1)

    def f1(sample: Data, f: int, c: int, threshold: float) -> float:
        fires_N = sample.feature_ESF[sample.mask_ES, f] > threshold
        label_N = sample.label_ESC[sample.mask_ES, c]
        return 2 * (fires_N & label_N).sum() / (fires_N.sum() + label_N.sum())

    result = best_threshold_f1(*train, *held_out)
    for f in range(3):
        for c in range(2):
            grid = np.linspace(0, 0.9, 10) * train.feature_ESF[train.mask_ES, f].max()
            best = max(grid, key=lambda threshold: f1(train, f, c, threshold))
            assert result.threshold_FC[f, c] == pytest.approx(best)
            assert result.f1_FC[f, c] == pytest.approx(f1(held_out, f, c, best))


# The best of many


def test_best_feature_is_chosen_and_turned_on_training_episodes() -> None:
    train_FC = np.array([[0.6, 0.5, np.nan], [0.1, 0.7, np.nan]])
    held_out_FC = np.array([[0.9, 0.5, np.nan], [0.2, 0.4, np.nan]])
    best = best_feature(train_FC, held_out_FC)
    assert best.index_C[:2].tolist() == [1, 1]
    # feature 1 is low where label 0 holds, so it is read upside down; for label 1 it merely generalises badly
    np.testing.assert_allclose(best.auroc_C, [0.8, 0.4, np.nan])


# Nulls

MANY = {"num_episodes": 24, "steps": 12}


def test_p_is_a_function_of_its_seed() -> None:
    sample = data(4, **MANY)
    one, same, other = (episode_permutation_p(*sample, seed=seed).p_FC for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    np.testing.assert_allclose(one, other, atol=0.1)


def test_p_of_a_copy_of_the_label_is_the_smallest_there_is() -> None:
    sample = data(4, **MANY)
    copy = sample.features(sample.label_ESC)
    p_FC, null_C = episode_permutation_p(*copy, seed=0, num_permutations=500)
    assert p_FC[[0, 1], [0, 1]].tolist() == [1 / 501, 1 / 501]
    assert null_C == [EPISODE_PERMUTATION] * 2


def test_p_does_not_see_a_sign_or_a_monotone_map() -> None:
    sample = data(5, **MANY)
    p_FC = episode_permutation_p(*sample, seed=0).p_FC
    for mapped in (sample.features(-sample.feature_ESF), sample.features(sample.feature_ESF**3)):
        np.testing.assert_array_equal(episode_permutation_p(*mapped, seed=0).p_FC, p_FC)


def test_p_counts_the_permutations_that_are_as_extreme() -> None:
    """Against the AUROC of actually permuted tracks; episodes are of one length, where both statistics agree."""
    sample = data(6, features=2, labels=1, num_episodes=12)
    sample = replace(sample, mask_ES=np.ones_like(sample.mask_ES))
    (p_F1, _) = episode_permutation_p(*sample, seed=0, num_permutations=4000)
    generator = np.random.default_rng(9)
    null_BF = np.stack(
        [
            rank_auroc(sample.feature_ESF, generator.permutation(sample.label_ESC), sample.mask_ES)
            for _ in range(2000)
        ]
    )[..., 0]
    extreme_F = np.abs(null_BF - 0.5) >= np.abs(rank_auroc(*sample)[:, 0] - 0.5) - 1e-9
    # both are shares of thousands of permutations: 4 standard errors at most
    np.testing.assert_allclose(p_F1[:, 0], extreme_F.mean(0), atol=4 * np.sqrt(0.25 / 2000))


def test_labels_that_hold_or_fail_in_too_few_episodes_are_not_tested() -> None:
    sample = data(7, **MANY, labels=3)
    label_ESC = sample.label_ESC.copy()
    label_ESC[9:, :, 0] = False  # holds in at most 9 episodes
    label_ESC[9:, :, 1] = True  # fails in at most 9
    p_FC, null_C = episode_permutation_p(*replace(sample, label_ESC=label_ESC), seed=0)
    assert null_C == [UNTESTED, UNTESTED, EPISODE_PERMUTATION]
    assert np.isnan(p_FC).tolist() == [[True, True, False]] * 3


def phase(sample: Data, first_steps: int, num_agents: int = 2) -> Data:
    """The label holds on the first steps of every episode, for all agents; episodes are of one length."""
    start_S = np.arange(sample.mask_ES.shape[1]) < first_steps * num_agents
    label_ESC = np.broadcast_to(start_S[None, :, None], (*sample.mask_ES.shape, 1)).copy()
    return Data(sample.feature_ESF, label_ESC, np.ones_like(sample.mask_ES))


def test_the_phase_of_an_episode_is_tested_by_flipping_episodes() -> None:
    """To exchange tracks that are all alike would change nothing and give p = 1, whatever the feature."""
    sample = phase(data(8, **MANY), first_steps=3)
    knows_phase = sample.features(
        np.concatenate([sample.feature_ESF[..., :1], sample.label_ESC], axis=-1)
    )
    p_FC, null_C = episode_permutation_p(*knows_phase, seed=0)
    assert null_C == [EPISODE_SIGN_FLIP]
    assert p_FC[0, 0] > 0.01
    assert p_FC[1, 0] == 1 / 1001


def test_null_quantile_bounds_the_aurocs_of_exchanged_tracks() -> None:
    sample = data(9, num_episodes=12, labels=1)
    sample = replace(sample, mask_ES=np.ones_like(sample.mask_ES))
    limit_FC = null_auroc_quantile(*sample, quantile=0.95, seed=0)
    generator = np.random.default_rng(1)
    null_BFC = np.stack(
        [
            rank_auroc(sample.feature_ESF, generator.permutation(sample.label_ESC), sample.mask_ES)
            for _ in range(1000)
        ]
    )
    np.testing.assert_allclose(limit_FC, np.quantile(null_BFC, 0.95, axis=0), atol=0.01)
