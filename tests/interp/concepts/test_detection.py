"""Scores of a detector, each against its definition written out; sample by sample and event by event."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from interp.concepts.detection import (
    average_precision,
    count,
    detect,
    event_coverage,
    f1_interval,
)
from interp.concepts.lags import Targets
from interp.stats.autocorrelation import effective_pairs


def sample(seed: int, *, episodes=12, samples=20, features=3, labels=2):
    """Features of few values, ragged episodes, labels that are unknown here and there, nonsense in the padding."""
    generator = np.random.default_rng(seed)
    shape = (episodes, samples)
    feature_ESF = generator.integers(-3, 5, (*shape, features)).clip(0).astype(np.float32)
    mask_ES = (
        np.arange(samples)
        < generator.integers(samples // 4, samples // 2 + 1, episodes)[:, None] * 2
    )
    feature_ESF[~mask_ES] = 99
    known_ESC = (generator.random((*shape, labels)) < 0.8) & mask_ES[..., None]
    label_ESC = (generator.random((*shape, labels)) < 0.1 + 0.15 * feature_ESF[..., :1]) & known_ESC
    return feature_ESF, Targets(label_ESC=label_ESC, known_ESC=known_ESC, mask_ES=mask_ES)


THRESHOLD_FC = np.array([[0, 1], [2, 0], [1, 1]], np.float32)


def pairs(feature_ESF, targets: Targets):
    """For every feature and label the firings and the truths of the samples where it is known."""
    for f in range(feature_ESF.shape[2]):
        for c in range(targets.label_ESC.shape[2]):
            known_ES = targets.known_ESC[..., c]
            fires_N = feature_ESF[known_ES, f] > THRESHOLD_FC[f, c]
            yield f, c, fires_N, targets.label_ESC[known_ES, c]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_scores_are_as_defined(seed) -> None:
    feature_ESF, targets = sample(seed)
    found = detect(count(feature_ESF, targets, THRESHOLD_FC))
    for f, c, fires_N, label_N in pairs(feature_ESF, targets):
        tp = (fires_N & label_N).sum()
        assert found.precision_FC[f, c] == pytest.approx(tp / fires_N.sum())
        assert found.recall_FC[f, c] == pytest.approx(tp / label_N.sum())
        assert found.f1_FC[f, c] == pytest.approx(2 * tp / (fires_N.sum() + label_N.sum()))
        assert found.phi_FC[f, c] == pytest.approx(np.corrcoef(fires_N, label_N)[0, 1])
        bits = sum(
            joint * np.log2(joint / ((fires_N == x).mean() * (label_N == y).mean()))
            for x in (False, True)
            for y in (False, True)
            if (joint := ((fires_N == x) & (label_N == y)).mean())
        )
        bias = 1 / (2 * found.effective_samples_FC[f, c] * np.log(2))
        assert found.mutual_information_FC[f, c] == pytest.approx(bits - bias)


def test_effective_samples_are_those_of_the_tracks() -> None:
    feature_ESF, targets = sample(0, labels=1)
    whole = Targets.known(targets.label_ESC, targets.mask_ES)
    threshold_FC = np.zeros((3, 1), np.float32)
    found = detect(count(feature_ESF, whole, threshold_FC)).effective_samples_FC
    fires_ESF = (feature_ESF > 0).astype(np.float32)
    expected = effective_pairs(fires_ESF, whole.label_ESC.astype(np.float32), whole.mask_ES)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def ar1(rho: float, num: int, *, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((50, 40, num))
    for t in range(1, 50):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * x[t]
    return np.ascontiguousarray(x.swapaxes(0, 1), np.float32)


def test_mutual_information_of_strangers_is_nothing_though_both_have_inertia() -> None:
    """The correction that counts steps would leave five sixths of what is found by chance."""
    targets = Targets.known(ar1(0.95, 30, seed=1) > 0.5, np.ones((40, 50), np.bool_))
    threshold_FC = np.full((30, 30), 0.5, np.float32)
    found = detect(count(ar1(0.95, 30, seed=0), targets, threshold_FC))
    by_chance = found.mutual_information_FC + 1 / (2 * found.effective_samples_FC * np.log(2))
    assert by_chance.mean() > 0.002
    assert abs(found.mutual_information_FC.mean()) < 0.1 * by_chance.mean()
    naive = by_chance - 1 / (2 * 2000 * np.log(2))
    assert naive.mean() > 0.8 * by_chance.mean()


def test_interval_of_f1_holds_the_truth_and_the_estimate() -> None:
    """40 episodes of a population of 4,000: of 60 draws, 90 to 100 % hold what the population has."""
    generator = np.random.default_rng(3)
    label = generator.random((4000, 10, 1)) < generator.beta(2, 5, (4000, 1, 1))
    feature = (label + 0.7 * generator.standard_normal(label.shape)).astype(np.float32)
    targets = Targets.known(label, np.ones((4000, 10), np.bool_))
    threshold_FC = np.full((1, 1), 0.6, np.float32)
    truth = detect(count(feature, targets, threshold_FC)).f1_FC[0, 0]
    held = []
    for start in range(0, 60 * 40, 40):
        some = Targets.known(label[start : start + 40], targets.mask_ES[:40])
        counts = count(feature[start : start + 40], some, threshold_FC)
        interval = f1_interval(counts, seed=start, num_resamples=300)
        assert interval.mean[0] == pytest.approx(detect(counts).f1_FC[0, 0])
        held.append(interval.lo[0] <= truth <= interval.hi[0])
    assert np.mean(held) > 0.88


def test_events_are_stretches_of_one_agent() -> None:
    """Two agents; * marks the label, and + a firing."""
    told = ["a: **..***.**", "b: ...**....."]
    fired = ["a: .+....+...", "b: +.......+."]
    label = np.array([[x == "*" for x in row[3:]] for row in told]).T.reshape(1, 20, 1)
    feature = np.array([[x == "+" for x in row[3:]] for row in fired], np.float32).T.reshape(
        1, 20, 1
    )
    targets = Targets.known(label, np.ones((1, 20), np.bool_))
    zero, one = (np.full((1, 1), at, np.float32) for at in (0, 1))
    # events: a 0-1 (fires), a 4-6 (fires at 6), a 8-9 (no), b 3-4 (no)
    assert event_coverage(feature, targets, zero, num_agents=2) == 2 / 4
    assert event_coverage(feature, targets, one, num_agents=2) == 0


def test_an_event_ends_with_its_episode() -> None:
    label = np.ones((3, 4, 1), np.bool_)
    feature = np.zeros((3, 4, 1), np.float32)
    feature[1, 2] = 1
    targets = Targets.known(label, np.ones((3, 4), np.bool_))
    threshold_FC = np.zeros((1, 1), np.float32)
    assert event_coverage(feature, targets, threshold_FC, num_agents=1) == pytest.approx(1 / 3)
    never = Targets.known(~label, targets.mask_ES)
    assert np.isnan(event_coverage(feature, never, threshold_FC, num_agents=1)).all()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_average_precision_is_the_sum_over_thresholds(seed) -> None:
    feature_ESF, targets = sample(seed)
    found = average_precision(feature_ESF, targets.label_ESC, targets.mask_ES)
    for f in range(3):
        value_N = feature_ESF[targets.mask_ES, f]
        for c in range(2):
            label_N = targets.label_ESC[targets.mask_ES, c]
            area, recall = 0.0, 0.0
            for at in np.unique(value_N)[::-1]:
                let_in_N = value_N >= at
                now = label_N[let_in_N].sum() / label_N.sum()
                area += (now - recall) * label_N[let_in_N].mean()
                recall = now
            assert found[f, c] == pytest.approx(area)


def test_average_precision_of_a_perfect_and_of_a_silent_feature() -> None:
    _, targets = sample(1)
    whole = Targets.known(targets.label_ESC, targets.mask_ES)
    label_ESC = whole.label_ESC
    base_rate = label_ESC[whole.mask_ES].mean(0)
    feature_ESF = np.concatenate([label_ESC[..., :1], np.zeros_like(label_ESC[..., :1])], -1)
    found = average_precision(feature_ESF.astype(np.float32), label_ESC, whole.mask_ES)
    assert found[0, 0] == 1
    np.testing.assert_allclose(found[1], base_rate)
    never = average_precision(feature_ESF.astype(np.float32), label_ESC & False, whole.mask_ES)
    assert np.isnan(never).all()
