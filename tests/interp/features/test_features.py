"""Every kind of feature is read and written alike, and finds a concept that was planted for it."""

import numpy as np
import pytest
import torch

from interp.concepts.scoring import rank_auroc
from interp.dictionaries.dictionary import Dictionary
from interp.features.feature_set import FeatureSet, features
from interp.features.sources import (
    latents,
    mean_differences,
    neurons,
    principal_components,
    probes,
    random_features,
    sparse_probes,
)
from interp.policies.taps import RecordingTap, RowEdits

D, N = 12, 3000
SITE = "lstm.h"


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [N, D], labels [N, 2], and the rotated direction of the first label, amid loud noise in the second unit."""
    generator = np.random.default_rng(0)
    label_NL = generator.random((N, 2)) < 0.2
    direction_D = np.zeros(D)
    direction_D[:4] = [0.6, 0.6, -0.4, 0.36]
    direction_D /= np.linalg.norm(direction_D)
    x_ND = 0.3 * generator.standard_normal((N, D)) + np.outer(label_NL[:, 0], direction_D)
    x_ND[:, 1] += 3 * generator.standard_normal(N)
    x_ND[:, 7] += label_NL[:, 1]
    return x_ND.astype(np.float32), label_NL, direction_D


def dictionary() -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    return Dictionary(
        W_enc=torch.randn(D, 6, generator=generator),
        b_enc=torch.randn(6, generator=generator),
        W_dec=torch.randn(6, D, generator=generator),
        b_dec=torch.randn(D, generator=generator),
        threshold=torch.linspace(0, 1, 6),
        mean=torch.randn(D, generator=generator),
        scale=1.7,
        family="planted",
        site=SITE,
    )


def every_kind(x_ND: np.ndarray, label_NL: np.ndarray) -> list[FeatureSet]:
    names = ["first", "second"]
    return [
        latents(dictionary(), x_ND),
        neurons(SITE, x_ND),
        principal_components(SITE, x_ND, num=3),
        mean_differences(SITE, x_ND, label_NL, names=names),
        probes(SITE, x_ND, label_NL, names=names),
        sparse_probes(SITE, x_ND, label_NL, names=names, k=2),
        random_features(SITE, x_ND, num=5, seed=0),
    ]


def test_latents_have_the_values_that_their_dictionary_gives(planted) -> None:
    x_ND, _, _ = planted
    known = latents(dictionary(), x_ND)
    want_NF = dictionary().encode_rows(x_ND)
    np.testing.assert_allclose(known.values(x_ND), want_NF, atol=1e-4)
    np.testing.assert_allclose(known.firing_F, (want_NF > 0).mean(0), atol=1e-3)
    some = latents(dictionary(), x_ND, [4, 1])
    assert some.names == ("4", "1")
    np.testing.assert_array_equal(some.read_FD, known.select([4, 1]).read_FD)


def test_ablating_any_feature_takes_away_what_it_says_and_leaves_the_rest(planted) -> None:
    """Of a plain projection: what is left is the value at the mean row, on every row."""
    x_ND, label_NL, _ = planted
    for known in every_kind(x_ND, label_NL):
        feature = known.steered(1)
        edits = RowEdits(100, {SITE: D})
        for row in range(100):
            edits.set_row(row, [feature.edit("ablate", 1.0)])
        x_RD = torch.from_numpy(x_ND[:100])
        edited = RecordingTap((), edits.tile(0, 100))(SITE, x_RD).numpy()
        change = edited - x_ND[:100]
        want = -known.values(x_ND[:100])[:, [1]] * feature.write_D
        np.testing.assert_allclose(change, want, atol=1e-5, err_msg=known.kind)
        if known.kind != "sae":
            left = edited @ feature.read_D
            np.testing.assert_allclose(
                left, np.full(100, x_ND.mean(0) @ feature.read_D), atol=1e-4, err_msg=known.kind
            )


def test_mean_ablation_leaves_the_mean_of_the_latent(planted) -> None:
    x_ND, label_NL, _ = planted
    for known in every_kind(x_ND, label_NL):
        feature = known.steered(0)
        a, b, g = feature.edit("mean_ablate", 1.0).coefficients
        value_N = known.values(x_ND)[:, 0]
        np.testing.assert_allclose(
            value_N + a + b * value_N + g, np.full(N, feature.mean), atol=1e-5
        )


def auroc(known: FeatureSet, x_ND: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    value_ESF = known.values(x_ND).reshape(30, N // 30, -1)
    shaped = label_N.reshape(30, N // 30, 1)
    return rank_auroc(value_ESF, shaped, np.ones((30, N // 30), bool))[:, 0]


def test_a_probe_finds_a_rotated_concept_through_noise_that_hides_it_from_others(planted) -> None:
    """The difference of means points the right way too, but reads the noise along with it."""
    x_ND, label_NL, direction_D = planted
    names = ["first", "second"]
    dense = probes(SITE, x_ND, label_NL, names=names)
    plain = mean_differences(SITE, x_ND, label_NL, names=names)
    first_N = label_NL[:, 0]
    assert auroc(dense, x_ND, first_N)[0] > 0.95
    assert auroc(plain, x_ND, first_N)[0] < auroc(dense, x_ND, first_N)[0] - 0.1
    assert auroc(neurons(SITE, x_ND), x_ND, first_N).max() < 0.93
    assert auroc(principal_components(SITE, x_ND, num=1), x_ND, first_N).max() < 0.9
    assert plain.read_FD[0] @ direction_D > 0.9


def test_a_sparse_probe_reads_no_more_units_than_it_may(planted) -> None:
    x_ND, label_NL, _ = planted
    for k in (1, 2, 5):
        known = sparse_probes(SITE, x_ND, label_NL, names=["first", "second"], k=k)
        assert ((known.read_FD != 0).sum(1) <= k).all()
        assert 7 in np.flatnonzero(known.read_FD[1])
    with pytest.raises(ValueError, match=r"k is 13: a sparse probe reads from 1 to 12 units"):
        sparse_probes(SITE, x_ND, label_NL, names=["first", "second"], k=13)


def test_a_label_that_never_varies_has_no_direction_and_no_size(planted) -> None:
    x_ND, _, _ = planted
    always_NL = np.ones((N, 1), bool)
    for source in (mean_differences, probes):
        known = source(SITE, x_ND, always_NL, names=["always"])
        assert not known.write_FD.any()
        assert known.scale_F[0] == 0


def test_scale_is_the_99th_percentile_of_what_is_not_zero(planted) -> None:
    x_ND, _, _ = planted
    known = latents(dictionary(), x_ND)
    value_N = known.values(x_ND)[:, 3]
    assert known.scale_F[3] == pytest.approx(np.percentile(value_N[value_N > 0], 99), rel=1e-5)
    assert known.mean_F[3] == pytest.approx(value_N.mean(), rel=1e-4)


def test_what_does_not_fit_together_is_refused(planted) -> None:
    x_ND, _, _ = planted
    with pytest.raises(
        ValueError, match=r"rows have width 5, but these neuron features .* read 12"
    ):
        neurons(SITE, x_ND).values(x_ND[:, :5])
    with pytest.raises(ValueError, match=r"features of lstm\.h do not agree"):
        features(
            "neuron", SITE, names=["a"], read_FD=np.eye(2), write_FD=np.eye(2), train_ND=x_ND[:, :2]
        )
