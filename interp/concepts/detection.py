"""A latent as a detector: it fires above a threshold, and is right or wrong. Everything here is a function of four
counts.

Counts are kept episode by episode, so that every figure has an interval over episodes, and so that the effective
number of samples behind it is known. Thresholds come from training episodes
(`interp.concepts.scoring.best_threshold_f1`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from interp.concepts.lags import Targets
from interp.concepts.ranks import ordered_features
from interp.stats.autocorrelation import episode_steps
from interp.stats.bootstrap import Interval, bootstrap_ratio
from interp.stats.episodes import check_episodes


class Counts(NamedTuple):
    """Samples of every episode, where the label is known."""

    hits_EFC: Float32[np.ndarray, "E F C"]
    """The latent fires and the label holds (true positives)."""
    firings_EFC: Float32[np.ndarray, "E F C"]
    """The latent fires."""
    positives_EC: Float32[np.ndarray, "E C"]
    """The label holds."""
    known_EC: Float32[np.ndarray, "E C"]


def count(
    feature_ESF: Float32[np.ndarray, "E S F"],
    targets: Targets,
    threshold_FC: Float32[np.ndarray, "F C"],
) -> Counts:
    """What every feature does above its threshold for each label."""
    num_episodes, _, num_features = feature_ESF.shape
    num_labels = targets.label_ESC.shape[2]
    hits_EFC = np.empty((num_episodes, num_features, num_labels), np.float32)
    firings_EFC = np.empty_like(hits_EFC)
    for c in range(num_labels):
        fires_ESF = (feature_ESF > threshold_FC[:, c]).astype(np.float32)
        both_ES2 = np.stack([targets.label_ESC[..., c], targets.known_ESC[..., c]], -1)
        sums_E2F = np.matmul(both_ES2.swapaxes(1, 2).astype(np.float32), fires_ESF)
        hits_EFC[..., c], firings_EFC[..., c] = sums_E2F[:, 0], sums_E2F[:, 1]
    return Counts(
        hits_EFC,
        firings_EFC,
        targets.label_ESC.sum(1).astype(np.float32),
        targets.known_ESC.sum(1).astype(np.float32),
    )


class Detection(NamedTuple):
    """How well each feature detects each label, all episodes together; NaN where a quotient has nothing below it."""

    precision_FC: Float64[np.ndarray, "F C"]
    """Share of the firings with the label."""
    recall_FC: Float64[np.ndarray, "F C"]
    """Share of the label's samples at which the feature fires."""
    f1_FC: Float64[np.ndarray, "F C"]
    """2 TP / (2 TP + FP + FN)."""
    phi_FC: Float64[np.ndarray, "F C"]
    """Matthews' correlation coefficient, -1 to 1 (Matthews 1975); "MCC" also names the recovery of dictionaries."""
    mutual_information_FC: Float64[np.ndarray, "F C"]
    """Bits that the firing tells of the label, less the bias of as many *effective* samples; may be below 0."""
    effective_samples_FC: Float64[np.ndarray, "F C"]
    """Independent samples that would scatter as the episodes do; see `interp.stats.autocorrelation.effective_pairs`."""


def detect(counts: Counts) -> Detection:
    """All scores of the counts.

    Mutual information is the plug-in estimate with Miller & Madow's correction (Miller 1955) for a table of two by
    two, 1 / (2 n) nats, where n is the effective number of samples: with the number of steps it would correct next
    to nothing.
    """
    check_episodes(len(counts.positives_EC))
    hits, firings = (x.sum(0, dtype=np.float64) for x in (counts.hits_EFC, counts.firings_EFC))
    positives = counts.positives_EC.sum(0, dtype=np.float64)[None]
    known = counts.known_EC.sum(0, dtype=np.float64)[None]
    cells = np.stack([hits, firings - hits, positives - hits, known - firings - positives + hits])
    margins = np.stack(
        [
            firings * positives,
            firings * (known - positives),
            (known - firings) * positives,
            (known - firings) * (known - positives),
        ]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        phi = (cells[0] * cells[3] - cells[1] * cells[2]) / np.sqrt(
            firings * (known - firings) * positives * (known - positives)
        )
        nats = np.where(cells > 0, cells * np.log(cells * known / margins), 0.0).sum(0) / known
        effective = _effective_samples(counts, firings / known, positives / known)
        return Detection(
            precision_FC=hits / firings,
            recall_FC=hits / np.broadcast_to(positives, hits.shape),
            f1_FC=2 * hits / (firings + positives),
            phi_FC=phi,
            mutual_information_FC=(nats - 1 / (2 * effective)) / np.log(2),
            effective_samples_FC=effective,
        )


def f1_interval(counts: Counts, *, seed: int, num_resamples: int = 1000) -> Interval:
    """F1 with its interval over episodes, features x labels in one axis, row by row."""
    num_episodes = len(counts.positives_EC)
    twice_hits = 2 * counts.hits_EFC.reshape(num_episodes, -1)
    sizes = (counts.firings_EFC + counts.positives_EC[:, None]).reshape(num_episodes, -1)
    return bootstrap_ratio(twice_hits, sizes, seed=seed, num_resamples=num_resamples)


def _effective_samples(
    counts: Counts,
    firing_rate_FC: Float64[np.ndarray, "F C"],
    base_rate_1C: Float64[np.ndarray, "1 C"],
) -> Float64[np.ndarray, "F C"]:
    """`effective_pairs` of firing and label, from their counts; NaN where one of them is constant."""
    known_E1C = counts.known_EC[:, None].astype(np.float64)
    part_EFC = (
        counts.hits_EFC
        - firing_rate_FC * counts.positives_EC[:, None]
        - base_rate_1C * counts.firings_EFC
        + known_E1C * firing_rate_FC * base_rate_1C
    )
    known_1C = known_E1C.sum(0)
    scatter_FC = part_EFC.var(0, ddof=1) * len(part_EFC)
    product_FC = (
        known_1C**2 * firing_rate_FC * (1 - firing_rate_FC) * (base_rate_1C * (1 - base_rate_1C))
    )
    return np.where(product_FC > 0, np.minimum(product_FC / scatter_FC, known_1C), np.nan)


def event_coverage(
    feature_ESF: Float32[np.ndarray, "E S F"],
    targets: Targets,
    threshold_FC: Float32[np.ndarray, "F C"],
    *,
    num_agents: int,
) -> Float64[np.ndarray, "F C"]:
    """Share of a label's events during which the feature fires; NaN for a label without an event.

    An event is a stretch of one agent's consecutive samples with the label. A feature that fires once in a long
    event covers it, so this forgives what recall does not; one that always fires covers all, so look at precision
    too. (Not the coverage of Karvonen et al. 2024, which is the best F1 of any latent.)
    """
    episode_steps(targets.mask_ES, num_agents=num_agents)  # refuses gaps
    coverage_FC = np.full(threshold_FC.shape, np.nan)
    for c in range(threshold_FC.shape[1]):
        episode_N, place_N, starts = _events(targets.label_ESC[..., c], num_agents)
        if len(starts):
            peak_VF = np.maximum.reduceat(feature_ESF[episode_N, place_N], starts, axis=0)
            coverage_FC[:, c] = (peak_VF > threshold_FC[:, c]).mean(0)
    return coverage_FC


def _events(
    label_ES: Bool[np.ndarray, "E S"], num_agents: int
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"], Int64[np.ndarray, " V"]]:
    """Episode and place of every sample with the label, agent by agent, and where among them each event starts."""
    num_episodes = len(label_ES)
    label_EAT = label_ES.reshape(num_episodes, -1, num_agents).swapaxes(1, 2)
    begins_EAT = label_EAT & ~np.pad(label_EAT, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    episode_N, agent_N, t_N = np.nonzero(label_EAT)
    return episode_N, t_N * num_agents + agent_N, np.flatnonzero(begins_EAT[label_EAT])


def average_precision(
    feature_ESF: Float32[np.ndarray, "E S F"],
    label_ESC: Bool[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
) -> Float64[np.ndarray, "F C"]:
    """Area under the curve of precision over recall: sum over thresholds of (R_n - R_(n-1)) P_n; its chance is the
    base rate.

    Without interpolation, which flatters (Davis & Goadrich 2006); samples of one value enter together. Unlike the
    AUROC it is about the few samples with the highest values, which matters for rare labels (Saito & Rehmsmeier
    2015).
    """
    label_NC = label_ESC[mask_ES]
    positives_C = label_NC.sum(0).astype(np.float64)
    score_FC = np.empty((feature_ESF.shape[2], label_NC.shape[1]))
    for f, ordered in enumerate(ordered_features(feature_ESF, mask_ES)):
        above_MC = label_NC[ordered.above_M[ordered.order_M]]
        # from the highest value down: what is found, among how many, when a group of equal values is let in
        up_to_GC = np.cumsum(above_MC, axis=0, dtype=np.int32)[ordered.ends_G]
        above_C = above_MC.sum(0)
        below_GC = np.concatenate([np.zeros_like(up_to_GC[:1]), up_to_GC])[:-1]
        found_GC = (above_C - below_GC).astype(np.float64)
        let_in_G = len(above_MC) - (ordered.ends_G + 1 - ordered.sizes_G)
        found_GC *= up_to_GC - below_GC
        area_C = (found_GC / let_in_G[:, None]).sum(0)
        score_FC[f] = area_C + (positives_C - above_C) * positives_C / len(label_NC)
    with np.errstate(invalid="ignore"):
        return score_FC / np.where(positives_C > 0, positives_C, np.nan)
