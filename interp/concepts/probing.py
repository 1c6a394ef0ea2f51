"""Can a label be read off a few latents? k-sparse probes, beside a dense one, units, and labels of other episodes.

The k values whose class means differ most in units of their standard deviation, chosen on training episodes; on them
a logistic regression, both classes weighing the same, w = argmin mean_n c_n log(1 + exp(-y_n (w x_n + b))) + λ/2 |w|²
on standardised values. AUROC is of its logit on held-out episodes, F1 at the logit that is best on training ones.
k from 1 to 16 says how many latents a concept takes; a dense probe says what the site knows of it at all.

(Gurnee et al. 2023, "Finding neurons in a haystack"; Karvonen et al. 2025, SAEBench. Of the public benchmarks for
dictionaries the most reliable one by Chanin 2026, and even it hardly tells variants of one architecture apart.)

E episodes · S samples of an episode · N samples, flat · V values that may be read (latents, units) · K of them chosen.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from scipy.optimize import minimize
from scipy.special import expit

RIDGE = 1e-3
"""λ: per sample, of weights of standardised values."""
MAX_ITERATIONS = 200


class Probe(NamedTuple):
    """One label, read off some values."""

    index_K: Int64[np.ndarray, " K"]
    """Which values it reads, the most telling first."""
    weight_K: Float64[np.ndarray, " K"]
    """In units of the values as they are."""
    bias: float
    threshold: float
    """Logit above which it says yes: the best F1 on training samples."""

    def logits(self, value_NV: Float[np.ndarray, "N V"]) -> Float64[np.ndarray, " N"]:
        """Above 0 the label is likelier than not, were it on half of the samples."""
        return value_NV[:, self.index_K] @ self.weight_K + self.bias


def most_telling(
    value_NV: Float32[np.ndarray, "N V"], label_N: Bool[np.ndarray, " N"]
) -> Int64[np.ndarray, " V"]:
    """All values by |mean with the label - mean without| / standard deviation, largest first; constants last.

    In units of the deviation, or a latent with a long decoder row would come first for its length.
    """
    gap_V = np.abs(_mean(value_NV, label_N) - _mean(value_NV, ~label_N))
    sd_V = value_NV.std(0, dtype=np.float64)
    return np.argsort(-np.where(sd_V > 0, gap_V / np.where(sd_V > 0, sd_V, 1), 0), kind="stable")


def _mean(value_NV: np.ndarray, chosen_N: np.ndarray) -> Float64[np.ndarray, " V"]:
    return (chosen_N.astype(np.float32) @ value_NV).astype(np.float64) / max(1, chosen_N.sum())


def fit_probe(
    value_NV: Float32[np.ndarray, "N V"],
    label_N: Bool[np.ndarray, " N"],
    index_K: Int64[np.ndarray, " K"],
) -> Probe:
    """Logistic regression on some values of the training samples.

    ValueError if the label is the same on all of them.
    """
    num_with = int(label_N.sum())
    if not 0 < num_with < len(label_N):
        raise ValueError(
            f"the label holds on {num_with} of {len(label_N)} training samples: nothing to tell apart"
        )
    x_NK = value_NV[:, index_K].astype(np.float64)
    mean_K, sd_K = x_NK.mean(0), x_NK.std(0)
    unit_K = np.where(sd_K > 0, sd_K, np.inf)  # what is constant is not read
    x_NK = (x_NK - mean_K) / unit_K
    sign_N = np.where(label_N, 1.0, -1.0)
    share_N = np.where(label_N, 0.5 / num_with, 0.5 / (len(label_N) - num_with))

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin_N = sign_N * (x_NK @ w[:-1] + w[-1])
        slope_N = -share_N * sign_N * expit(-margin_N)
        value = share_N @ np.logaddexp(0, -margin_N) + RIDGE / 2 * w[:-1] @ w[:-1]
        return value, np.append(slope_N @ x_NK + RIDGE * w[:-1], slope_N.sum())

    found = minimize(
        loss,
        np.zeros(x_NK.shape[1] + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "ftol": 1e-10, "gtol": 1e-7},
    ).x
    weight_K = found[:-1] / unit_K
    bias = float(found[-1] - weight_K @ mean_K)
    probe = Probe(index_K, weight_K, bias, 0.0)
    return probe._replace(threshold=best_f1_threshold(probe.logits(value_NV), label_N))


def best_f1_threshold(logit_N: Float64[np.ndarray, " N"], label_N: Bool[np.ndarray, " N"]) -> float:
    """Between two neighbouring logits, or below all: where F1 = 2 TP / (2 TP + FP + FN) is largest."""
    order_N = np.argsort(-logit_N, kind="stable")
    sorted_N = logit_N[order_N]
    hits_N = np.cumsum(label_N[order_N])
    f1_N = 2 * hits_N / (np.arange(1, len(hits_N) + 1) + hits_N[-1])
    ends_N = np.append(sorted_N[1:] < sorted_N[:-1], True)  # equal logits enter together
    best = int(np.where(ends_N, f1_N, -1.0).argmax())
    if best + 1 == len(sorted_N):
        return float(np.nextafter(sorted_N[-1], -np.inf))
    return float((sorted_N[best] + sorted_N[best + 1]) / 2)


class F1Parts(NamedTuple):
    """F1 of samples grouped by episode is sum(twice_hits_E) / sum(size_E)."""

    twice_hits_E: Float64[np.ndarray, " E"]
    size_E: Float64[np.ndarray, " E"]

    @property
    def f1(self) -> float:
        return float(self.twice_hits_E.sum() / max(1.0, self.size_E.sum()))


def f1_parts(
    said_N: Bool[np.ndarray, " N"],
    label_N: Bool[np.ndarray, " N"],
    episode_N: Int64[np.ndarray, " N"],
    num_episodes: int,
) -> F1Parts:
    """By episode: 2 TP, and 2 TP + FP + FN."""

    def by_episode(count_N: np.ndarray) -> np.ndarray:
        return np.bincount(episode_N, count_N.astype(np.float64), num_episodes)

    return F1Parts(2 * by_episode(said_N & label_N), by_episode(said_N) + by_episode(label_N))
