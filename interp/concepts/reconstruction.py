"""Do the latents together tell the state of the world? A label is said to hold where any of a few precise latents
fires.

(Karvonen et al. 2024, "Measuring Progress in Dictionary Learning for Language Model Interpretability with Board Game
Models": *board reconstruction* rebuilds a board from latents of high precision, *coverage* is the mean over properties
of the best F1 of any latent.) Their samples are boards, ours the agent-steps of an episode. Latents and thresholds are
chosen on training episodes, greedily; what they are worth is told by held-out ones.

Their coverage is `board_coverage` here. It is not `event_coverage` (`interp.concepts.detection`), the share of a
label's stretches in which one latent fires at all.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64

from interp.concepts.lags import Targets
from interp.stats.bootstrap import bootstrap_ratio
from interp.stats.episodes import check_episodes

SHARES = np.linspace(0, 0.9, 10, dtype=np.float32)
"""Thresholds that are tried, in maxima of the latent over training rows: the grid of Karvonen et al. 2024."""


class Rule(NamedTuple):
    """A label holds where any of these latents is above its threshold; never, if there is none."""

    latents: tuple[int, ...]
    """In the order in which they were taken: the first finds most."""
    thresholds: tuple[float, ...]

    def holds(self, feature_ESF: Float32[np.ndarray, "E S F"]) -> Bool[np.ndarray, "E S"]:
        threshold_K = np.array(self.thresholds, np.float32)
        return np.any(feature_ESF[..., list(self.latents)] > threshold_K, axis=-1)


class Reconstruction(NamedTuple):
    """What a set of rules is worth on episodes that it was not chosen on."""

    f1_C: tuple[float, ...]
    """Of each label; 0 for one without a rule, NaN for one that never holds and is never said to."""
    precision_C: tuple[float, ...]
    """NaN where the rule never fires."""
    recall_C: tuple[float, ...]
    """NaN where the label never holds."""
    state_f1: float
    """Of the whole state: 2 TP / (2 TP + FP + FN) with the counts of all labels together."""
    lo: float
    hi: float
    """Percentile interval of `state_f1` over episodes."""
    board_f1: float
    """F1 of one sample's labels, mean over samples (Karvonen et al. 2024): rare labels weigh less than in `state_f1`.

    Of samples where all labels are known, and at least one holds or is said to."""
    board_lo: float
    board_hi: float


def fit_rules(
    train_ESF: Float32[np.ndarray, "E S F"],
    targets: Targets,
    *,
    min_precision: float = 0.95,
    max_latents: int = 8,
    min_episodes: int = 5,
) -> list[Rule]:
    """Greedy choice on training episodes, for each label on the samples where it is known.

    A candidate is a latent at the lowest threshold of {0, .1, ..., .9} x its maximum at which its precision is at least
    `min_precision`, if it then hits in at least `min_episodes` episodes (else luck is precise: of 512 latents some fire
    once, and rightly). The candidate that adds most hits is taken, as long as all taken together stay that precise.
    """
    if not 0 < min_precision <= 1 or max_latents < 1:
        raise ValueError(
            f"min_precision {min_precision}, max_latents {max_latents}: wanted a share above 0 and at least 1 latent"
        )
    rules = [Rule((), ())] * targets.label_ESC.shape[2]
    for columns, known_ES in targets.alike():
        episode_N = np.nonzero(known_ES)[0]
        train_NF, label_NC = train_ESF[known_ES], targets.label_ESC[known_ES][:, columns]
        lowest_FC = np.full((train_NF.shape[1], len(columns)), np.nan, np.float32)
        for threshold_F, hits_FC, said_F in _counts(train_NF, label_NC):
            precise_FC = (said_F > 0)[:, None] & (hits_FC >= min_precision * said_F[:, None])
            new_FC = precise_FC & np.isnan(lowest_FC)
            lowest_FC = np.where(new_FC, threshold_F[:, None], lowest_FC)
        for c, column in enumerate(columns):
            label_N, candidates = label_NC[:, c], np.flatnonzero(~np.isnan(lowest_FC[:, c]))
            fires_NK = train_NF[:, candidates] > lowest_FC[candidates, c]
            enough_K = [
                len(np.unique(episode_N[fires_N & label_N])) >= min_episodes
                for fires_N in fires_NK.T
            ]
            candidates, fires_NK = candidates[enough_K], fires_NK[:, enough_K]
            taken = _greedy(fires_NK, label_N, min_precision, max_latents)
            rules[column] = Rule(
                tuple(int(candidates[k]) for k in taken),
                tuple(float(lowest_FC[candidates[k], c]) for k in taken),
            )
    return rules


def best_latents(train_ESF: Float32[np.ndarray, "E S F"], targets: Targets) -> list[Rule]:
    """For each label the one latent, and its threshold, with the best F1 on training episodes.

    What these are worth on held-out episodes is the coverage of Karvonen et al. 2024 (there chosen and told on the same
    boards).
    """
    rules = [Rule((), ())] * targets.label_ESC.shape[2]
    for columns, known_ES in targets.alike():
        label_NC = targets.label_ESC[known_ES][:, columns]
        best_C = np.zeros(len(columns))
        for threshold_F, hits_FC, said_F in _counts(train_ESF[known_ES], label_NC):
            f1_FC = 2 * hits_FC / np.maximum(said_F[:, None] + label_NC.sum(0), 1)
            for c in np.flatnonzero(f1_FC.max(0, initial=0) > best_C):
                f = int(f1_FC[:, c].argmax())
                best_C[c] = f1_FC[f, c]
                rules[columns[c]] = Rule((f,), (float(threshold_F[f]),))
    return rules


def _counts(
    train_NF: Float32[np.ndarray, "N F"], label_NC: Bool[np.ndarray, "N C"]
) -> Iterator[
    tuple[Float32[np.ndarray, " F"], Float64[np.ndarray, "F C"], Float64[np.ndarray, " F"]]
]:
    """At every threshold of the grid, the lowest first: rightly fired and fired samples; none of a silent latent."""
    if not len(train_NF):
        return
    label = label_NC.astype(np.float32)
    peak_F = np.maximum(train_NF.max(0), 0)
    for share in SHARES:
        fires_NF = (train_NF > share * peak_F).astype(np.float32)
        yield share * peak_F, (fires_NF.T @ label).astype(np.float64), fires_NF.sum(0, np.float64)


def _greedy(
    fires_NK: Bool[np.ndarray, "N K"],
    label_N: Bool[np.ndarray, " N"],
    min_precision: float,
    max_latents: int,
) -> list[int]:
    """Candidates in the order in which they are taken."""
    taken, covered_N = [], np.zeros(len(label_N), np.bool_)
    while len(taken) < max_latents and fires_NK.shape[1]:
        free_NK = fires_NK[~covered_N]
        new_K = free_NK[label_N[~covered_N]].sum(0)
        precision_K = ((covered_N & label_N).sum() + new_K) / np.maximum(
            covered_N.sum() + free_NK.sum(0), 1
        )
        new_K = np.where(precision_K >= min_precision, new_K, 0)
        best = int(new_K.argmax())
        if new_K[best] == 0:
            break
        taken.append(best)
        covered_N |= fires_NK[:, best]
    return taken


def judge(
    rules: list[Rule],
    held_out_ESF: Float32[np.ndarray, "E S F"],
    targets: Targets,
    *,
    seed: int,
) -> Reconstruction:
    """How well rules, one for each label, rebuild the state in held-out episodes."""
    check_episodes(len(held_out_ESF))
    label_ESC, known_ESC = targets.label_ESC, targets.known_ESC
    if len(rules) != label_ESC.shape[2]:
        raise ValueError(f"{len(rules)} rules for {label_ESC.shape[2]} labels; wanted one for each")
    said_ESC = np.stack([rule.holds(held_out_ESF) for rule in rules], -1) & known_ESC
    right_ESC = said_ESC & label_ESC
    hits_EC, said_EC, positives_EC = (
        x_ESC.sum(1).astype(np.float64) for x_ESC in (right_ESC, said_ESC, label_ESC)
    )
    hits_C, said_C, positives_C = (x.sum(0) for x in (hits_EC, said_EC, positives_EC))
    with np.errstate(invalid="ignore"):
        f1_C, precision_C, recall_C = (
            2 * hits_C / (said_C + positives_C),
            hits_C / said_C,
            hits_C / positives_C,
        )
    whole = bootstrap_ratio(
        2 * hits_EC.sum(1, keepdims=True), (said_EC + positives_EC).sum(1, keepdims=True), seed=seed
    )
    size_ES = said_ESC.sum(2) + label_ESC.sum(2)
    counted_ES = known_ESC.all(2) & (size_ES > 0)
    f1_ES = np.where(counted_ES, 2 * right_ESC.sum(2) / np.maximum(size_ES, 1), 0.0)
    board = bootstrap_ratio(
        f1_ES.sum(1, keepdims=True), counted_ES.sum(1, keepdims=True).astype(np.float64), seed=seed
    )
    return Reconstruction(
        f1_C=tuple(f1_C.tolist()),
        precision_C=tuple(precision_C.tolist()),
        recall_C=tuple(recall_C.tolist()),
        state_f1=float(whole.mean[0]),
        lo=float(whole.lo[0]),
        hi=float(whole.hi[0]),
        board_f1=float(board.mean[0]),
        board_lo=float(board.lo[0]),
        board_hi=float(board.hi[0]),
    )
