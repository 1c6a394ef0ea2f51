"""Seconds of one core for all features against all labels, p-values included: 50,000 samples x 512 x 20 by default.

    python -m benchmarks.scoring            # or: make bench BENCH=scoring

sparse    features like latents: 0 on 95 % of the samples
dense     features like units: no two values alike
lags      every label at nine lags, AUROC only: what is scanned on training episodes

Tracks are AR(1), so that labels come in runs. Times are CPU seconds of this process, which has one core.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tyro

from benchmarks.measuring import peak_rss_mib, use_one_core
from interp.concepts.blocks import score_all
from interp.concepts.detection import (
    Detection,
    average_precision,
    count,
    detect,
    event_coverage,
)
from interp.concepts.generality import generality, moments
from interp.concepts.lags import Targets, lagged
from interp.concepts.scoring import auroc, auroc_interval, rank_auroc


@dataclass(frozen=True)
class Config:
    episodes: int = 196
    """Independent episodes; of 256 samples these are 50,176."""
    samples: int = 256
    """Samples of an episode: steps x agents."""
    features: int = 512
    """Latents."""
    labels: int = 20
    """Labels, each true on about 20 % of the samples."""
    permutations: int = 1000
    """Episode permutations behind each p-value."""
    lags: int = 4
    """Lags that are scanned reach from minus to plus so many steps."""


def ar1(config: Config, num: int, *, seed: int) -> np.ndarray:
    """[E, S, num] tracks of variance 1 and correlation .9 from step to step."""
    x = np.random.default_rng(seed).standard_normal(
        (config.samples, config.episodes, num), np.float32
    )
    for t in range(1, config.samples):
        x[t] = 0.9 * x[t - 1] + np.float32(0.19**0.5) * x[t]
    return np.ascontiguousarray(x.swapaxes(0, 1))


def cpu_s(what: str, compute: Callable[[], object]) -> None:
    """Prints the CPU seconds of one call."""
    start = time.process_time()
    compute()
    print(f"  {what:<46} {time.process_time() - start:7.2f} s", flush=True)


def main(config: Config) -> None:
    """Prints a table."""
    use_one_core()
    rows = config.episodes * config.samples
    print(
        f"{rows:,} samples of {config.episodes} episodes x {config.features} features x {config.labels} labels, "
        "one core"
    )
    mask = np.ones((config.episodes, config.samples), np.bool_)
    label = ar1(config, config.labels, seed=1) > 0.84
    targets = Targets.known(label, mask)
    dense = ar1(config, config.features, seed=0)
    lags = range(-config.lags, config.lags + 1)
    thresholds = np.zeros((config.features, config.labels), np.float32)

    def detect_all(feature: np.ndarray) -> Detection:
        return detect(count(feature, targets, thresholds))

    for name, feature in (("sparse", np.maximum(dense - np.float32(1.64), 0)), ("dense", dense)):
        print(f"{name}: {(feature != 0).mean():.0%} of the values are not 0")
        cpu_s(
            f"AUROC, p ({config.permutations} permutations), q, max-T, selectivity",
            lambda feature=feature: score_all(
                feature, targets, seed=0, num_permutations=config.permutations
            ),
        )
        cpu_s(
            "AUROC with intervals (1,000 resamples)",
            lambda feature=feature: auroc_interval(auroc(feature, label, mask), seed=0),
        )
        cpu_s("F1, phi, mutual information, precision", lambda feature=feature: detect_all(feature))
        cpu_s(
            "average precision",
            lambda feature=feature: average_precision(feature, label, mask),
        )
        cpu_s(
            "event coverage",
            lambda feature=feature: event_coverage(feature, targets, thresholds, num_agents=1),
        )
        cpu_s(
            "generality",
            lambda feature=feature: generality(
                feature, moments(mask, num_agents=1), mask, num_agents=1
            ),
        )
        cpu_s(
            f"AUROC of {config.labels} labels at {len(lags)} lags",
            lambda feature=feature: _scan(feature, targets, lags),
        )
    print(f"peak memory {peak_rss_mib():,.0f} MiB")


def _scan(feature: np.ndarray, targets: Targets, lags: range) -> np.ndarray:
    moved = lagged(targets, lags=lags, num_agents=1)
    return rank_auroc(feature, moved.label_ESC, moved.known_ESC[..., 0])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
