"""How well does every feature tell every label? Ranks, by episode, for thousands of pairs at once.

A feature is whatever has a value at every sample: a latent, a unit, a projection. The unit of every interval and
p-value is the episode; its samples are kept together in every resample and permutation.

E episodes · S samples of an episode · F features · C labels · B resamples or permutations.
Tracks are padded to the longest episode; a mask tells the samples that exist.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from scipy.stats import rankdata

from interp.stats import resample_weights

EPISODE_PERMUTATION = "episode permutation"
EPISODE_SIGN_FLIP = "episode sign flip"
UNTESTED = ""


class AurocTable(NamedTuple):
    """Area under the ROC curve of every pair, and what each episode adds to its error."""

    auroc_FC: Float64[np.ndarray, "F C"]
    """From 0 to 1, 0.5 at chance; NaN where a label has no positive or no negative sample."""
    influence_EFC: Float32[np.ndarray, "E F C"]
    """First-order change of the AUROC when the episode's weight rises from 1 to 2; sums to 0 over episodes."""


class AurocInterval(NamedTuple):
    lo: Float64[np.ndarray, "F C"]
    hi: Float64[np.ndarray, "F C"]


class BestFeature(NamedTuple):
    """For each label the feature that a fair observer would pick on training episodes."""

    index_C: Int64[np.ndarray, " C"]
    auroc_C: Float64[np.ndarray, " C"]
    """Of held-out episodes, oriented as on the training episodes, so it can lie below 0.5."""


def auroc(
    feature_ESF: Float32[np.ndarray, "E S F"],
    label_ESC: Bool[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
) -> AurocTable:
    """Mid-rank AUROC of every feature for every label, ties counting one half.

    The influence of an episode is the sum over its samples of DeLong's placement values, centred and scaled (DeLong
    et al. 1988; clustered as in Obuchowski 1997, eq. 4): a positive sample places itself among the negatives, and
    vice versa.
    """
    num_episodes, _, num_features = feature_ESF.shape
    episode_N = np.nonzero(mask_ES)[0]
    starts = np.searchsorted(episode_N, np.arange(num_episodes))
    feature_FN = np.ascontiguousarray(feature_ESF[mask_ES].T)
    positive_NC = label_ESC[mask_ES]
    num_positive_C = positive_NC.sum(0).astype(np.float64)
    num_negative_C = len(positive_NC) - num_positive_C
    defined_C = (num_positive_C > 0) & (num_negative_C > 0)
    scale_pos_C = 1 / np.maximum(num_positive_C, 1)
    scale_neg_C = 1 / np.maximum(num_negative_C, 1)
    auroc_FC = np.full((num_features, positive_NC.shape[1]), np.nan)
    influence_EFC = np.zeros((num_episodes, *auroc_FC.shape), np.float32)
    for f, value_N in enumerate(feature_FN):
        order_N, group_N, ends_G = _tie_groups(value_N)
        # positives and negatives at or below each distinct value, and so the mid-placement of that value
        up_to_GC = np.cumsum(positive_NC[order_N], axis=0, dtype=np.int32)[ends_G].astype(
            np.float64
        )
        negative_up_to_GC = (ends_G[:, None] + 1.0) - up_to_GC
        positives_below = _mid(up_to_GC) * scale_pos_C
        negatives_below = _mid(negative_up_to_GC) * scale_neg_C
        # a positive sample scores the negatives below it; a negative one the positives above it
        placement_NC = np.where(positive_NC, negatives_below[group_N], 1 - positives_below[group_N])
        auroc_C = (placement_NC * positive_NC).sum(0) * scale_pos_C
        placement_NC -= auroc_C
        placement_NC *= np.where(positive_NC, scale_pos_C, scale_neg_C)
        influence_EFC[:, f] = np.add.reduceat(placement_NC, starts, axis=0)
        auroc_FC[f] = np.where(defined_C, auroc_C, np.nan)
    influence_EFC[:, :, ~defined_C] = np.nan
    return AurocTable(auroc_FC, influence_EFC)


def rank_auroc(
    feature_ESF: Float32[np.ndarray, "E S F"],
    label_ESC: Bool[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
) -> Float64[np.ndarray, "F C"]:
    """The AUROC of every pair and nothing else, five times as fast: for choices made on training episodes."""
    rank_NF = _centred_ranks(feature_ESF, mask_ES)[mask_ES].astype(np.float64)
    label_NC = label_ESC[mask_ES].astype(np.float64)
    num_positive_C = label_NC.sum(0)
    pairs_C = num_positive_C * (len(label_NC) - num_positive_C)
    with np.errstate(invalid="ignore"):
        return 0.5 + rank_NF.T @ label_NC / np.where(pairs_C > 0, pairs_C, np.nan)


def _tie_groups(
    value_N: Float32[np.ndarray, " N"],
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"], Int64[np.ndarray, " G"]]:
    """Order of the values, the group of equal values that each sample is in, and where each group ends in the order."""
    order_N = np.argsort(value_N, kind="stable")
    sorted_N = value_N[order_N]
    first_N = np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]])
    group_N = np.empty(len(value_N), np.int64)
    group_N[order_N] = np.cumsum(first_N) - 1
    ends_G = np.append(np.flatnonzero(first_N)[1:], len(value_N)) - 1
    return order_N, group_N, ends_G


def _mid(up_to_GC: Float64[np.ndarray, "G C"]) -> Float64[np.ndarray, "G C"]:
    """Counts strictly below each group plus half of those in it, from counts at or below it."""
    below = np.concatenate([np.zeros_like(up_to_GC[:1]), up_to_GC[:-1]])
    return (below + up_to_GC) / 2


def auroc_interval(
    table: AurocTable, *, seed: int, num_resamples: int = 1000, level: float = 0.95
) -> AurocInterval:
    """Percentile interval of the cluster bootstrap over episodes, to first order in the episodes' weights.

    A resample with weights w has the AUROC A + sum_e (w_e - 1) influence_e, so all pairs share one matrix product; the
    exact bootstrap, which ranks anew each time, differs by about 0.01 (tested).
    """
    num_episodes, *shape = table.influence_EFC.shape
    weight_BE = (resample_weights(num_episodes, num_resamples, seed=seed) - 1).astype(np.float32)
    influence_EP = table.influence_EFC.reshape(num_episodes, -1)
    center_P = table.auroc_FC.reshape(-1)
    bounds = np.empty((2, len(center_P)))
    for start in range(0, len(center_P), 4096):  # bounds the memory of the resamples
        part = slice(start, start + 4096)
        moved_BP = weight_BE @ influence_EP[:, part]
        bounds[:, part] = np.quantile(moved_BP, [(1 - level) / 2, (1 + level) / 2], axis=0)
    lo, hi = np.clip(bounds + center_P, 0, 1)
    return AurocInterval(lo.reshape(shape), hi.reshape(shape))


class Tested(NamedTuple):
    p_FC: Float64[np.ndarray, "F C"]
    """NaN where a label was not tested."""
    null_C: list[str]
    """Which null hypothesis each label was tested against; "" if it was not."""


def episode_permutation_p(
    feature_ESF: Float32[np.ndarray, "E S F"],
    label_ESC: Bool[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    seed: int,
    num_permutations: int = 1000,
    min_positive_episodes: int = 10,
) -> Tested:
    """Two-sided p-values of the rank statistic T = sum over samples of (rank - mean rank)(label - mean label).

    The null exchanges whole label tracks between episodes, so it keeps what features and labels owe to the course
    of an episode and to their own inertia. A label whose track is the same in every episode (the phase of an
    episode) has nothing to exchange; there the sign of each episode's contribution to T is a coin toss. (A circular
    shift in time would be the textbook's choice, but rejects 13 % instead of 5 % at the ends of an episode when the
    feature has a long memory.) p = (1 + #{as large}) / (num_permutations + 1). Labels that hold (or fail to hold) in
    fewer than `min_positive_episodes` episodes are not tested.
    """
    rank_ESF = _centred_ranks(feature_ESF, mask_ES)
    num_labels = label_ESC.shape[2]
    p_FC = np.full((feature_ESF.shape[2], num_labels), np.nan)
    null_C = [UNTESTED] * num_labels
    draws = _Draws.make(len(mask_ES), num_permutations, seed=seed)
    for c in range(num_labels):
        label_ES = label_ESC[..., c] & mask_ES
        num_with = label_ES.any(1).sum()
        num_without = (~label_ES & mask_ES).any(1).sum()
        if min(num_with, num_without) >= min_positive_episodes:
            null_C[c], observed_F, null_BF = _null(rank_ESF, label_ES, mask_ES, draws)
            p_FC[:, c] = _two_sided(observed_F, null_BF)
    return Tested(p_FC, null_C)


def null_auroc_quantile(
    feature_ESF: Float32[np.ndarray, "E S F"],
    label_ESC: Bool[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    quantile: float,
    seed: int,
    num_permutations: int = 1000,
) -> Float64[np.ndarray, "F C"]:
    """The AUROC that a share `quantile` of the null stays below; nulls as in `episode_permutation_p`.

    Exact for episodes of equal length: T is then n1 n0 (AUROC - 1/2) under every permutation.
    """
    rank_ESF = _centred_ranks(feature_ESF, mask_ES)
    draws = _Draws.make(len(mask_ES), num_permutations, seed=seed)
    limit_FC = np.full((feature_ESF.shape[2], label_ESC.shape[2]), np.nan)
    for c in range(label_ESC.shape[2]):
        label_ES = label_ESC[..., c] & mask_ES
        num_pairs = float(label_ES.sum()) * float((mask_ES & ~label_ES).sum())
        if num_pairs:
            _, _, null_BF = _null(rank_ESF, label_ES, mask_ES, draws)
            limit_FC[:, c] = 0.5 + np.quantile(null_BF, quantile, axis=0) / num_pairs
    return limit_FC


@dataclass(frozen=True, slots=True)
class _Draws:
    """The random part of every null, drawn once and shared by all labels and features."""

    order_BE: Int64[np.ndarray, "B E"]
    """Whose label track each episode wears."""
    sign_BE: Float32[np.ndarray, "B E"]
    """Plus or minus one for each episode."""

    @classmethod
    def make(cls, num_episodes: int, num: int, *, seed: int) -> "_Draws":
        generator = np.random.default_rng(seed)
        order_BE = generator.permuted(np.tile(np.arange(num_episodes), (num, 1)), axis=1)
        sign_BE = generator.integers(0, 2, (num, num_episodes)).astype(np.float32) * 2 - 1
        return cls(order_BE, sign_BE)


def _null(
    rank_ESF: Float32[np.ndarray, "E S F"],
    label_ES: Bool[np.ndarray, "E S"],
    mask_ES: Bool[np.ndarray, "E S"],
    draws: _Draws,
) -> tuple[str, Float64[np.ndarray, " F"], Float64[np.ndarray, "B F"]]:
    """Which null applies to a label, T as observed, and T under every draw."""
    share = label_ES.sum() / mask_ES.sum()
    centred_ES = ((label_ES - share) * mask_ES).astype(np.float32)
    if (label_ES == label_ES[0]).all():
        part_EF = np.einsum("es,esf->ef", centred_ES, rank_ESF).astype(np.float64)
        return EPISODE_SIGN_FLIP, part_EF.sum(0), draws.sign_BE @ part_EF
    # [i, j, f]: what episode i contributes to T when it wears the label track of episode j
    table_EEF = np.matmul(centred_ES[None], rank_ESF)
    observed_F = np.einsum("eef->f", table_EEF, dtype=np.float64)
    null_BF = np.zeros((len(draws.order_BE), table_EEF.shape[2]))
    for episode, wears_B in enumerate(draws.order_BE.T):
        null_BF += table_EEF[episode, wears_B]
    return EPISODE_PERMUTATION, observed_F, null_BF


def _centred_ranks(
    feature_ESF: Float32[np.ndarray, "E S F"], mask_ES: Bool[np.ndarray, "E S"]
) -> Float32[np.ndarray, "E S F"]:
    """Mid-ranks over all samples of all episodes, minus their mean; 0 in the padding."""
    rank_ESF = np.zeros(feature_ESF.shape, np.float32)
    valid_NF = feature_ESF[mask_ES]
    middle = (len(valid_NF) + 1) / 2
    rank_NF = np.empty(valid_NF.shape, np.float32)
    for f in range(valid_NF.shape[1]):
        rank_NF[:, f] = rankdata(valid_NF[:, f]) - middle
    rank_ESF[mask_ES] = rank_NF
    return rank_ESF


def _two_sided(
    observed_F: Float64[np.ndarray, " F"], null_BF: Float64[np.ndarray, "B F"]
) -> Float64[np.ndarray, " F"]:
    tolerance_F = 1e-6 * np.abs(null_BF).max(0, initial=0.0)
    as_large_F = (np.abs(null_BF) >= np.abs(observed_F) - tolerance_F).sum(0)
    return (1 + as_large_F) / (len(null_BF) + 1)


class ThresholdedF1(NamedTuple):
    f1_FC: Float[np.ndarray, "F C"]
    """2 TP / (2 TP + FP + FN) on held-out episodes."""
    threshold_FC: Float[np.ndarray, "F C"]
    """The feature's value above which it counts as firing; chosen on training episodes."""


def best_threshold_f1(
    train_ESF: Float32[np.ndarray, "E S F"],
    train_label_ESC: Bool[np.ndarray, "E S C"],
    train_mask_ES: Bool[np.ndarray, "E S"],
    held_out_ESF: Float32[np.ndarray, "E_ S_ F"],
    held_out_label_ESC: Bool[np.ndarray, "E_ S_ C"],
    held_out_mask_ES: Bool[np.ndarray, "E_ S_"],
) -> ThresholdedF1:
    """F1 on held-out episodes at the threshold {0, .1, ..., .9} x the feature's maximum that is best on training ones.

    (The grid of Karvonen et al. 2024.) Choosing on the same data would flatter: the best of 512 noise features at a
    base rate of 5 % reached F1 .136 where it was chosen and .034 elsewhere.
    """
    train_NF = train_ESF[train_mask_ES]
    grid_TF = np.linspace(0, 0.9, 10, dtype=np.float32)[:, None] * train_NF.max(0)
    train_f1_TFC = _f1(train_NF, train_label_ESC[train_mask_ES], grid_TF)
    best_FC = train_f1_TFC.argmax(0)
    held_out_f1_TFC = _f1(
        held_out_ESF[held_out_mask_ES], held_out_label_ESC[held_out_mask_ES], grid_TF
    )
    return ThresholdedF1(
        np.take_along_axis(held_out_f1_TFC, best_FC[None], 0)[0],
        np.take_along_axis(grid_TF[..., None], best_FC[None], 0)[0],
    )


def _f1(
    feature_NF: Float32[np.ndarray, "N F"],
    label_NC: Bool[np.ndarray, "N C"],
    threshold_TF: Float32[np.ndarray, "T F"],
) -> Float32[np.ndarray, "T F C"]:
    label = label_NC.astype(np.float32)
    positives_C = label.sum(0)
    scores = []
    for threshold_F in threshold_TF:
        fires_NF = (feature_NF > threshold_F).astype(np.float32)
        hits_FC = fires_NF.T @ label
        scores.append(2 * hits_FC / np.maximum(fires_NF.sum(0)[:, None] + positives_C, 1))
    return np.stack(scores)


def best_feature(
    train_auroc_FC: Float64[np.ndarray, "F C"], held_out_auroc_FC: Float64[np.ndarray, "F C"]
) -> BestFeature:
    """The feature farthest from chance on training episodes, either way, and how it does on held-out ones."""
    distance_FC = np.abs(np.nan_to_num(train_auroc_FC, nan=0.5) - 0.5)
    index_C = distance_FC.argmax(0)
    columns = np.arange(train_auroc_FC.shape[1])
    inverted_C = train_auroc_FC[index_C, columns] < 0.5
    held_out_C = held_out_auroc_FC[index_C, columns]
    return BestFeature(index_C, np.where(inverted_C, 1 - held_out_C, held_out_C))
