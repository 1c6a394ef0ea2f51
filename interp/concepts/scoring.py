"""How well does every feature tell every label? Ranks, by episode, for thousands of pairs at once.

A feature is whatever has a value at every sample: a latent, a unit, a projection. The unit of every interval and
p-value is the episode; its samples are kept together in every resample and permutation.

E episodes · S samples of an episode · F features · C labels · B resamples or permutations.
Tracks are padded to the longest episode; a mask tells the samples that exist.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from scipy import sparse

from interp.concepts.ranks import Ordered, centred_ranks, ordered_features
from interp.stats.bootstrap import resample_weights
from interp.stats.permutation import (
    EPISODE_PERMUTATION,
    EPISODE_SIGN_FLIP,
    UNTESTED,
    Draws,
    Null,
    exchange_null,
    sign_flip_null,
    two_sided,
)

BLOCK_FEATURES = 64
"""Features whose nulls are computed together: their E x E contributions then fit a cache. Part of the definition of
the last bits, since the products of another number may round otherwise."""


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
    vice versa. With r the samples and P the positives below a sample (those beside it count one half), a positive
    has r - P negatives below it and a negative n1 - P positives above it; so of an episode only sum(y r) and sum(P)
    are needed.
    """
    num_episodes, _, num_features = feature_ESF.shape
    positive_ESC = (label_ESC & mask_ES[..., None]).astype(np.float64)
    positive_NC = label_ESC[mask_ES]
    size_E = mask_ES.sum(1)
    starts = np.append(0, np.cumsum(size_E))
    positive_EC = positive_ESC.sum(1)
    negative_EC = size_E[:, None] - positive_EC
    num_positive_C, num_negative_C = positive_EC.sum(0), negative_EC.sum(0)
    num_pairs_C = num_positive_C * num_negative_C
    with np.errstate(divide="ignore"):
        scale_C, scale_pos_C, scale_neg_C = (
            np.where(num_pairs_C > 0, 1 / count_C, np.nan)
            for count_C in (num_pairs_C, num_positive_C, num_negative_C)
        )
    auroc_FC = np.empty((num_features, positive_NC.shape[1]))
    influence_EFC = np.empty((num_episodes, *auroc_FC.shape), np.float32)
    for start in range(0, num_features, BLOCK_FEATURES):
        block_ESF = feature_ESF[..., start : start + BLOCK_FEATURES]
        ordered_F = list(ordered_features(block_ESF, mask_ES))
        rank_ESF = np.zeros(block_ESF.shape)
        rank_ESF[mask_ES] = np.array([ordered.centred_ranks() for ordered in ordered_F]).T
        rank_sum_EFC = np.matmul(rank_ESF.swapaxes(1, 2), positive_ESC)
        auroc_FC[start : start + BLOCK_FEATURES] = 0.5 + rank_sum_EFC.sum(0) * scale_C
        for f, ordered in enumerate(ordered_F, start):
            below_EC = _positives_below(ordered, positive_NC, starts)
            wins_EC = rank_sum_EFC[:, f - start] + positive_EC * (len(positive_NC) / 2) - below_EC
            influence_EFC[:, f] = (
                wins_EC * scale_C
                + negative_EC * scale_neg_C
                - auroc_FC[f] * (positive_EC * scale_pos_C + negative_EC * scale_neg_C)
            )
    return AurocTable(auroc_FC, influence_EFC)


def _positives_below(
    ordered: Ordered,
    positive_NC: Bool[np.ndarray, "N C"],
    starts: Int64[np.ndarray, " E_"],
) -> Float64[np.ndarray, "E C"]:
    """For every episode the sum over its samples of the positives below each, those beside it counting one half.

    `starts` are where the samples of each episode start, and where those of the last one end.
    """
    positive_MC = positive_NC[ordered.above_M]
    floor_C = positive_NC.sum(0) - positive_MC.sum(0)
    up_to_GC = np.cumsum(positive_MC[ordered.order_M], axis=0, dtype=np.int32)[ordered.ends_G]
    twice_GC = up_to_GC.astype(np.float64)
    twice_GC[1:] += up_to_GC[:-1]
    above_starts = np.searchsorted(ordered.above_M, starts)
    group_EG = sparse.csr_array(
        (np.ones(len(ordered.above_M)), ordered.group_M, above_starts),
        shape=(len(starts) - 1, len(twice_GC)),
    )
    num_above_E, num_floor_E = np.diff(above_starts), np.diff(starts) - np.diff(above_starts)
    above_EC = np.asarray(group_EG @ twice_GC)
    return above_EC / 2 + np.outer(num_above_E + num_floor_E / 2, floor_C)


def rank_auroc(
    feature_ESF: Float32[np.ndarray, "E S F"],
    label_ESC: Bool[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
) -> Float64[np.ndarray, "F C"]:
    """The AUROC of every pair and nothing else, two to five times as fast: for choices made on training episodes."""
    rank_NF = centred_ranks(feature_ESF, mask_ES)[mask_ES].astype(np.float64)
    label_NC = label_ESC[mask_ES].astype(np.float64)
    num_positive_C = label_NC.sum(0)
    pairs_C = num_positive_C * (len(label_NC) - num_positive_C)
    with np.errstate(invalid="ignore"):
        return 0.5 + rank_NF.T @ label_NC / np.where(pairs_C > 0, pairs_C, np.nan)


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
    num_features, num_labels = feature_ESF.shape[2], label_ESC.shape[2]
    p_FC = np.full((num_features, num_labels), np.nan)
    null_C = [
        null_kind(label_ES, mask_ES, min_positive_episodes)
        for label_ES in np.moveaxis(label_ESC & mask_ES[..., None], 2, 0)
    ]
    draws = Draws.make(len(mask_ES), num_permutations, seed=seed)
    for start in range(0, num_features, BLOCK_FEATURES):
        block = slice(start, start + BLOCK_FEATURES)
        rank_ESF = centred_ranks(feature_ESF[..., block], mask_ES)
        for c, kind in enumerate(null_C):
            if kind != UNTESTED:
                null = label_null(rank_ESF, label_ESC[..., c] & mask_ES, mask_ES, kind, draws)
                p_FC[block, c] = two_sided(null)
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
    draws = Draws.make(len(mask_ES), num_permutations, seed=seed)
    limit_FC = np.full((feature_ESF.shape[2], label_ESC.shape[2]), np.nan)
    for start in range(0, len(limit_FC), BLOCK_FEATURES):
        block = slice(start, start + BLOCK_FEATURES)
        rank_ESF = centred_ranks(feature_ESF[..., block], mask_ES)
        for c in range(label_ESC.shape[2]):
            label_ES = label_ESC[..., c] & mask_ES
            num_pairs = float(label_ES.sum()) * float((mask_ES & ~label_ES).sum())
            if num_pairs:
                kind = null_kind(label_ES, mask_ES, 0)
                null = label_null(rank_ESF, label_ES, mask_ES, kind, draws)
                limit_FC[block, c] = 0.5 + np.quantile(null.null_BF, quantile, axis=0) / num_pairs
    return limit_FC


def null_kind(
    label_ES: Bool[np.ndarray, "E S"], mask_ES: Bool[np.ndarray, "E S"], min_episodes: int
) -> str:
    """By which null a label is tested; `UNTESTED` if it holds, or fails to hold, in fewer episodes than
    `min_episodes`.
    """
    num_with, num_without = label_ES.any(1).sum(), (~label_ES & mask_ES).any(1).sum()
    if min(num_with, num_without) < min_episodes:
        return UNTESTED
    return EPISODE_SIGN_FLIP if (label_ES == label_ES[0]).all() else EPISODE_PERMUTATION


def label_null(
    rank_ESF: Float32[np.ndarray, "E S F"],
    label_ES: Bool[np.ndarray, "E S"],
    mask_ES: Bool[np.ndarray, "E S"],
    kind: str,
    draws: Draws,
) -> Null:
    """T as observed, and under every draw."""
    centred_ES = ((label_ES - label_ES.sum() / mask_ES.sum()) * mask_ES).astype(np.float32)
    return (sign_flip_null if kind == EPISODE_SIGN_FLIP else exchange_null)(
        rank_ESF, centred_ES, draws
    )


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
