"""Where features come from: a dictionary, the units themselves, the data alone, labels, or chance.

What is not a latent is here so that latents have something to beat: public comparisons find that probes and differences
of means often do better (Wu et al. 2025, AxBench; Kantamneni et al. 2025), and units sometimes.

N training rows · D width · F features · L labels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.linalg import cho_factor, cho_solve

from interp.dictionaries.crosscoder import Crosscoder
from interp.dictionaries.dictionary import Dictionary, LatentDirection
from interp.features.directions import diff_in_means, pca_directions
from interp.features.feature_set import FeatureKind, FeatureSet, features

RIDGE = 1e-3
"""Of probes, in units of the mean variance of a coordinate."""


def values_of(
    features: Dictionary | FeatureSet, x_ND: Float32[np.ndarray, "N D"]
) -> Float32[np.ndarray, "N F"]:
    """Of every feature on every row: of latents as their dictionary encodes them, to the last bit."""
    return features.encode_rows(x_ND) if isinstance(features, Dictionary) else features.values(x_ND)


def latents(
    dictionary: Dictionary,
    train_ND: Float32[np.ndarray, "N D"],
    index: Sequence[int] | None = None,
) -> FeatureSet:
    """Latents of an autoencoder, all or some, in the units of the recorded activation.

    ValueError for a transcoder, which writes elsewhere than it reads, and for codes that keep the k largest of a row,
    which no latent decides alone.
    """
    if dictionary.is_transcoder:
        raise ValueError(
            f"a transcoder from {dictionary.site} to {dictionary.target_site} has no direction that is read and "
            "written at one site; steer with a dictionary of one site"
        )
    chosen = range(dictionary.d_sae) if index is None else index
    directions = [dictionary.direction(latent) for latent in chosen]
    return _thresholded("sae", dictionary.site, chosen, directions, train_ND)


def crosscoder_latents(
    crosscoder: Crosscoder, source: int, train_ND: Float32[np.ndarray, "N D"], *, site: str
) -> FeatureSet:
    """Latents of a crosscoder as one of its sources sees them.

    A crosscoder's code is of the sum over sources (Lindsey et al. 2024). In a policy that plays alone only its own part
    is there, and stands for that of the others; taken at their means instead, shared latents would hardly pass their
    thresholds.
    """
    directions = [
        crosscoder.direction(latent, source, alone=True)
        for latent in range(crosscoder.dictionary.d_sae)
    ]
    return _thresholded("crosscoder", site, range(len(directions)), directions, train_ND)


def neurons(site: str, train_ND: Float32[np.ndarray, "N D"]) -> FeatureSet:
    """The units of a site, relative to their means."""
    axis_DD = np.eye(train_ND.shape[1], dtype=np.float32)
    return _projections("neuron", site, axis_DD, [str(d) for d in range(len(axis_DD))], train_ND)


def principal_components(
    site: str, train_ND: Float32[np.ndarray, "N D"], *, num: int
) -> FeatureSet:
    """The leading principal directions of the rows."""
    direction_PD = pca_directions(train_ND, num).T
    return _projections(
        "pca", site, direction_PD, [str(p) for p in range(len(direction_PD))], train_ND
    )


def mean_differences(
    site: str,
    train_ND: Float32[np.ndarray, "N D"],
    label_NL: Bool[np.ndarray, "N L"],
    *,
    names: Sequence[str],
    known_NL: Bool[np.ndarray, "N L"] | None = None,
) -> FeatureSet:
    """For each label the mean of the rows with it minus the mean of those without (Belrose 2023).

    Here and below, `known_NL` says which rows count for which label; all of them if None.
    """
    if known_NL is None:
        known_NL = np.ones_like(label_NL)
    direction_LD = np.stack(
        [
            diff_in_means(train_ND[known_N], label_N[known_N])
            for label_N, known_N in zip(label_NL.T, known_NL.T, strict=True)
        ]
    )
    return _projections("diff_in_means", site, direction_LD, names, train_ND)


def probes(
    site: str,
    train_ND: Float32[np.ndarray, "N D"],
    label_NL: Bool[np.ndarray, "N L"],
    *,
    names: Sequence[str],
    known_NL: Bool[np.ndarray, "N L"] | None = None,
) -> FeatureSet:
    """For each label Fisher's linear discriminant of all units, w = (Σ + λI)⁻¹ (μ₁ - μ₀), of unit norm.

    (Fisher 1936.) It is ridge regression on the label, and reads what `diff_in_means` reads after the variance that
    has nothing to do with the label is divided out. All labels share one factorisation.
    """
    covariance_DD = _covariance(train_ND)
    gap_LD = _gaps(train_ND, label_NL, known_NL)
    weight_LD = cho_solve(cho_factor(covariance_DD), gap_LD.T).T
    return _projections("probe", site, _unit(weight_LD), names, train_ND)


def sparse_probes(
    site: str,
    train_ND: Float32[np.ndarray, "N D"],
    label_NL: Bool[np.ndarray, "N L"],
    *,
    names: Sequence[str],
    k: int,
    known_NL: Bool[np.ndarray, "N L"] | None = None,
) -> FeatureSet:
    """As `probes`, of the k units whose means differ most in units of their deviations (Gurnee et al. 2023)."""
    width = train_ND.shape[1]
    if not 1 <= k <= width:
        raise ValueError(f"k is {k}: a sparse probe reads from 1 to {width} units of {site}")
    covariance_DD = _covariance(train_ND)
    weight_LD = np.zeros((label_NL.shape[1], width))
    for weight_D, gap_D in zip(weight_LD, _gaps(train_ND, label_NL, known_NL), strict=True):
        unit_k = np.argsort(-np.abs(gap_D) / np.sqrt(covariance_DD.diagonal()), kind="stable")[:k]
        block_kk = covariance_DD[np.ix_(unit_k, unit_k)]
        weight_D[unit_k] = cho_solve(cho_factor(block_kk), gap_D[unit_k])
    return _projections("sparse_probe", site, _unit(weight_LD), names, train_ND)


def random_features(
    site: str, train_ND: Float32[np.ndarray, "N D"], *, num: int, seed: int
) -> FeatureSet:
    """Directions uniform on the sphere."""
    drawn_FD = np.random.default_rng(seed).standard_normal((num, train_ND.shape[1]))
    return _projections(
        "random_direction", site, _unit(drawn_FD), [str(f) for f in range(num)], train_ND
    )


def _thresholded(
    kind: FeatureKind,
    site: str,
    index: Sequence[int],
    directions: Sequence[LatentDirection],
    train_ND: Float32[np.ndarray, "N D"],
) -> FeatureSet:
    return features(
        kind,
        site,
        names=[str(latent) for latent in index],
        read_FD=np.stack([d.read_D.numpy() for d in directions]),
        write_FD=np.stack([d.write_D.numpy() for d in directions]),
        bias_F=np.array([d.read_bias for d in directions]),
        threshold_F=np.array([d.threshold for d in directions]),
        train_ND=train_ND,
    )


def _projections(
    kind: FeatureKind,
    site: str,
    direction_FD: Float[np.ndarray, "F D"],
    names: Sequence[str],
    train_ND: Float32[np.ndarray, "N D"],
) -> FeatureSet:
    return features(
        kind,
        site,
        names=names,
        read_FD=direction_FD,
        write_FD=direction_FD,
        train_ND=train_ND,
    )


def _covariance(train_ND: Float32[np.ndarray, "N D"]) -> Float[np.ndarray, "D D"]:
    centred_ND = train_ND - train_ND.mean(0, dtype=np.float64)
    covariance_DD = centred_ND.T @ centred_ND / len(train_ND)
    ridge = RIDGE * max(float(covariance_DD.diagonal().mean()), 1e-12)
    return covariance_DD + ridge * np.eye(len(covariance_DD))


def _gaps(
    train_ND: Float32[np.ndarray, "N D"],
    label_NL: Bool[np.ndarray, "N L"],
    known_NL: Bool[np.ndarray, "N L"] | None,
) -> Float[np.ndarray, "L D"]:
    """Difference of the means with and without each label; 0 where one of them does not exist."""
    without_NL = ~label_NL
    if known_NL is not None:
        label_NL, without_NL = label_NL & known_NL, without_NL & known_NL
    on_L, off_L = label_NL.sum(0), without_NL.sum(0)
    on_LD = label_NL.T.astype(np.float64) @ train_ND / np.maximum(on_L, 1)[:, None]
    off_LD = without_NL.T.astype(np.float64) @ train_ND / np.maximum(off_L, 1)[:, None]
    return np.where(((on_L > 0) & (off_L > 0))[:, None], on_LD - off_LD, 0.0)


def _unit(rows_FD: Float[np.ndarray, "F D"]) -> Float[np.ndarray, "F D"]:
    return rows_FD / np.maximum(np.linalg.norm(rows_FD, axis=1, keepdims=True), 1e-12)
