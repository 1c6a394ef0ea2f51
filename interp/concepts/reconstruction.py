"""Do the latents together tell the state of the world? A label is said to hold where any of a few precise latents
fires.

(State reconstruction after Karvonen et al. 2024, where a board is rebuilt from latents of high precision.) Latents and
thresholds are chosen on training episodes, greedily; what they are worth is told by held-out ones.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from interp.stats.bootstrap import bootstrap_ratio
from interp.stats.episodes import check_episodes


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
    """Of each label; 0 for one without a rule."""
    precision_C: tuple[float, ...]
    """NaN where the rule never fires."""
    recall_C: tuple[float, ...]
    """NaN where the label never holds."""
    state_f1: float
    """Of the whole state: 2 TP / (2 TP + FP + FN) with the counts of all labels together."""
    lo: float
    hi: float
    """Percentile interval of `state_f1` over episodes."""


def fit_rule(
    train_ESF: Float32[np.ndarray, "E S F"],
    label_ES: Bool[np.ndarray, "E S"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    min_precision: float = 0.95,
    max_latents: int = 8,
    min_episodes: int = 5,
) -> Rule:
    """Greedy choice on training episodes.

    A candidate is a latent at the lowest threshold of {0, .1, ..., .9} x its maximum at which its precision is at least
    `min_precision`, if it then hits in at least `min_episodes` episodes (else luck is precise: of 512 latents some fire
    once, and rightly). The candidate that adds most hits is taken, as long as all taken together stay that precise.
    """
    if not 0 < min_precision <= 1 or max_latents < 1:
        raise ValueError(
            f"min_precision {min_precision}, max_latents {max_latents}: wanted a share above 0 and at least 1 latent"
        )
    episode_N = np.nonzero(mask_ES)[0]
    train_NF, label_N = train_ESF[mask_ES], label_ES[mask_ES]
    peak_F = train_NF.max(0)
    candidates, thresholds = [], []
    waiting_F = peak_F > 0
    for share in np.linspace(0, 0.9, 10, dtype=np.float32):
        fires_NF = train_NF > share * peak_F
        num_F = fires_NF.sum(0)
        hits_F = fires_NF[label_N].sum(0)
        precise_F = waiting_F & (hits_F >= min_precision * np.maximum(num_F, 1))
        for f in np.flatnonzero(precise_F):
            waiting_F[f] = False
            if len(np.unique(episode_N[fires_NF[:, f] & label_N])) >= min_episodes:
                candidates.append(int(f))
                thresholds.append(float(share * peak_F[f]))
    if not candidates:
        return Rule((), ())
    fires_NK = train_NF[:, candidates] > np.array(thresholds, np.float32)
    taken, covered_N = [], np.zeros(len(label_N), np.bool_)
    while len(taken) < max_latents:
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
    return Rule(tuple(candidates[k] for k in taken), tuple(thresholds[k] for k in taken))


def judge(
    rules: list[Rule],
    held_out_ESF: Float32[np.ndarray, "E S F"],
    label_ESC: Bool[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    seed: int,
) -> Reconstruction:
    """How well rules, one for each label, rebuild the state in held-out episodes."""
    check_episodes(len(held_out_ESF))
    if len(rules) != label_ESC.shape[2]:
        raise ValueError(f"{len(rules)} rules for {label_ESC.shape[2]} labels; wanted one for each")
    said_ESC = np.stack([rule.holds(held_out_ESF) for rule in rules], -1) & mask_ES[..., None]
    label_ESC = label_ESC & mask_ES[..., None]
    hits_EC = (said_ESC & label_ESC).sum(1).astype(np.float64)
    said_EC = said_ESC.sum(1).astype(np.float64)
    positives_EC = label_ESC.sum(1).astype(np.float64)
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
    return Reconstruction(
        f1_C=tuple(f1_C.tolist()),
        precision_C=tuple(precision_C.tolist()),
        recall_C=tuple(recall_C.tolist()),
        state_f1=float(whole.mean[0]),
        lo=float(whole.lo[0]),
        hi=float(whole.hi[0]),
    )
