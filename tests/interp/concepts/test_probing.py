import numpy as np
import pytest
from hypothesis import given, strategies as st

from interp.concepts.disentanglement import draw_pairs, interchange
from interp.concepts.perturbation import ablated, accuracy_drop, attributed
from interp.concepts.probing import best_f1_threshold, f1_parts, fit_probe, most_telling
from interp.concepts.splitting import main_latents

seeds = st.integers(0, 1000)


def values(seed: int, num: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Six latents, of which the first three tell more and more of the label."""
    generator = np.random.default_rng(seed)
    label_N = generator.random(num) < 0.3
    value_NV = generator.standard_normal((num, 6))
    value_NV[:, :3] += label_N[:, None] * np.array([0.6, 1.5, 3])
    return value_NV.astype(np.float32), label_N


@given(seed=seeds, scale=st.floats(0.01, 100))
def test_the_most_telling_values_come_first_whatever_their_units(seed, scale):
    value_NV, label_N = values(seed)
    order_V = most_telling(value_NV, label_N)
    assert order_V[:2].tolist() == [2, 1]
    value_NV[:, 3] *= np.float32(scale)
    assert most_telling(value_NV, label_N).tolist() == order_V.tolist()


def test_what_is_constant_tells_least():
    value_NV, label_N = values(0)
    value_NV[:, 1] = 7
    assert most_telling(value_NV, label_N)[-1] == 1
    probe = fit_probe(value_NV, label_N, np.arange(6))
    assert probe.weight_K[1] == 0


@given(seed=seeds)
def test_the_gradient_of_the_loss_is_zero_at_the_probe(seed):
    """Both classes weigh half: sum of c_n (y_n - p_n) x_n is the ridge's pull, in standardised values."""
    value_NV, label_N = values(seed)
    probe = fit_probe(value_NV, label_N, np.array([2, 0]))
    p_N = 1 / (1 + np.exp(-probe.logits(value_NV)))
    weight_N = np.where(label_N, 0.5 / label_N.sum(), 0.5 / (~label_N).sum())
    x_NK = value_NV[:, [2, 0]].astype(np.float64)
    sd_K = x_NK.std(0)
    pull_K = (weight_N * (label_N - p_N)) @ (x_NK - x_NK.mean(0)) / sd_K
    np.testing.assert_allclose(pull_K, 1e-3 * probe.weight_K * sd_K, atol=1e-5)
    assert abs((weight_N * (label_N - p_N)).sum()) < 1e-5


@given(seed=seeds, levels=st.integers(1, 40))
def test_no_other_threshold_has_a_better_f1(seed, levels):
    generator = np.random.default_rng(seed)
    logit_N = generator.integers(0, levels, 60).astype(np.float64)
    label_N = generator.random(60) < 0.3
    label_N[0] = True

    said_TN = (
        logit_N > np.append(best_f1_threshold(logit_N, label_N), np.arange(-1, levels))[:, None]
    )
    f1_T = 2 * (said_TN & label_N).sum(1) / (said_TN.sum(1) + label_N.sum())
    assert f1_T[0] == pytest.approx(f1_T.max())


def test_f1_of_its_parts_is_that_of_all_samples():
    said_N, label_N = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
    parts = f1_parts(said_N, label_N, np.array([0, 0, 1, 1, 1]), 2)
    assert parts.twice_hits_E.tolist() == [2, 2]
    assert parts.f1 == pytest.approx(2 * 2 / (3 + 3))


def test_a_label_that_never_changes_is_refused():
    value_NV, label_N = values(0)
    with pytest.raises(ValueError, match="holds on 0 of 400 training samples"):
        fit_probe(value_NV, np.zeros_like(label_N), np.arange(2))


def test_a_copy_of_a_latent_is_no_part_of_a_split():
    value_NV, label_N = values(0)
    value_NV[:, 2] = 4 * label_N
    value_NV[:, 3] = value_NV[:, 2]
    split = main_latents(value_NV, label_N, most_telling(value_NV, label_N))
    assert split.main_K.tolist() == [2]
    with pytest.raises(ValueError, match=r"min_gain is 0\.0"):
        main_latents(value_NV, label_N, np.arange(6), min_gain=0.0)


def test_noise_stands_for_no_label():
    generator = np.random.default_rng(0)
    label_N = generator.random(4000) < 0.3
    value_NV = generator.standard_normal((4000, 20)).astype(np.float32)
    assert main_latents(value_NV, label_N, most_telling(value_NV, label_N)).main_K.size == 0


@given(seed=seeds)
def test_pairs_differ_in_the_label_and_are_of_two_episodes(seed):
    generator = np.random.default_rng(seed)
    label_N, right_N = generator.random((2, 90)) < 0.5
    episode_N = np.repeat(np.arange(9), 10)
    pairs = draw_pairs(label_N, right_N, episode_N, seed=seed, max_pairs=40)
    assert len(pairs.base_P) <= 40
    assert (label_N[pairs.base_P] != label_N[pairs.donor_P]).all()
    assert (episode_N[pairs.base_P] != episode_N[pairs.donor_P]).all()
    assert right_N[np.concatenate(pairs)].all()
    assert len(draw_pairs(label_N, right_N & label_N, episode_N, seed=0).base_P) == 0


def test_an_interchange_of_everything_is_the_donor_and_of_nothing_the_base():
    generator = np.random.default_rng(0)
    x_ND = generator.standard_normal((6, 4)).astype(np.float32)
    label_N = np.array([True, False] * 3)
    pairs = draw_pairs(label_N, np.ones(6, np.bool_), np.arange(6), seed=0)
    eye = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(
        interchange(x_ND, x_ND, eye, np.arange(4), pairs), x_ND[pairs.donor_P], atol=1e-6
    )
    nothing = np.zeros(0, np.int64)
    np.testing.assert_array_equal(interchange(x_ND, x_ND, eye, nothing, pairs), x_ND[pairs.base_P])


def test_taking_away_the_latent_of_a_label_blinds_its_probe_only():
    generator = np.random.default_rng(0)
    label_NL = generator.random((200, 2)) < 0.4
    x_ND = label_NL.astype(np.float32)
    eye, episode_N = np.eye(2, dtype=np.float32), np.repeat(np.arange(10), 20)
    index_n = attributed(x_ND, label_NL[:, 0], eye, np.array([1.0, 0.1]), num=1)
    assert index_n.tolist() == [0]
    edited_ND = ablated(x_ND, x_ND, eye, index_n)
    known_NL = np.ones_like(label_NL)
    drop_EL = accuracy_drop(x_ND > 0.5, edited_ND > 0.5, label_NL, known_NL, episode_N, 10)
    np.testing.assert_allclose(drop_EL.sum(0), [0.5, 0])
