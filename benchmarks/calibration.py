"""Do p-values keep their level and intervals cover, where there is nothing to find? Prints what tests only bound.

    python -m benchmarks.calibration        # or: make bench BENCH=calibration

level       share of p below 5 %, and discoveries, over independent pairs of a feature and a label (AR(1) tracks)
coverage    share of 95 % intervals that hold the truth
"""

from dataclasses import dataclass

import numpy as np
import tyro
from scipy.stats import mannwhitneyu

from benchmarks.measuring import use_one_core
from interp.concepts.blocks import score_all
from interp.concepts.lags import Targets
from interp.concepts.scoring import auroc, auroc_interval
from interp.stats.bootstrap import bootstrap_mean
from interp.stats.hierarchy import Drawn, bootstrap_policies

DRAWN: tuple[Drawn, ...] = ("policies", "policies and episodes")


@dataclass(frozen=True)
class Config:
    episodes: int = 40
    """Independent episodes."""
    steps: int = 100
    """Steps of an episode."""
    features: int = 40
    """Features, beside as many labels: their product are the pairs."""
    permutations: int = 1000
    """Episode permutations behind each p-value."""
    tables: int = 1500
    """Simulated experiments behind each coverage of a mean."""


def ar1(config: Config, rho: float, *, seed: int) -> np.ndarray:
    """[E, S, F] independent stationary tracks of variance 1."""
    x = np.random.default_rng(seed).standard_normal(
        (config.steps, config.episodes, config.features)
    )
    for t in range(1, config.steps):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * x[t]
    return np.ascontiguousarray(x.swapaxes(0, 1), np.float32)


def covered(interval: object, truth: float) -> str:
    """As a share of all intervals."""
    lo, hi = getattr(interval, "lo"), getattr(interval, "hi")  # noqa: B009 - of any kind of interval
    return f"{((lo <= truth) & (truth <= hi)).mean():.1%}"


def main(config: Config) -> None:
    """Prints two tables."""
    use_one_core()
    mask_ES = np.ones((config.episodes, config.steps), np.bool_)
    pairs = config.features**2
    print(f"level: {pairs:,} independent pairs, {config.episodes} episodes x {config.steps} steps")
    print("  rho   p < .05   q < .05   family p < .05   rank test of steps   AUROC intervals")
    for rho in (0.0, 0.9, 0.98):
        feature_ESF, label_ESC = ar1(config, rho, seed=0), ar1(config, rho, seed=1) > 0.52
        found = score_all(
            feature_ESF,
            Targets.known(label_ESC, mask_ES),
            seed=2,
            num_permutations=config.permutations,
        )
        by_steps = [
            mannwhitneyu(feature_N[label_N], feature_N[~label_N]).pvalue < 0.05
            for feature_N, label_N in zip(
                feature_ESF.reshape(-1, config.features).T,
                label_ESC.reshape(-1, config.features).T,
                strict=True,
            )
        ]
        interval = auroc_interval(auroc(feature_ESF, label_ESC, mask_ES), seed=5)
        print(
            f"  {rho:<5} {(found.p_FC < 0.05).mean():7.1%} {(found.q_FC < 0.05).sum():>9} "
            f"{(found.family_p_FC < 0.05).sum():>16} {np.mean(by_steps):>20.0%} {covered(interval, 0.5):>17}",
            flush=True,
        )
    print(
        f"coverage of means over episodes: {config.tables:,} tables of {config.episodes} episodes"
    )
    generator = np.random.default_rng(0)
    for shape, truth in (("normal", 0.0), ("exponential", 1.0)):
        value_EM = getattr(generator, f"standard_{shape}")((config.episodes, config.tables))
        print(f"  {shape:<12} {covered(bootstrap_mean(value_EM, seed=1), truth)}", flush=True)
    print(f"coverage of means over policies: {config.tables:,} tables of 12 episodes a policy")
    print("  policies   sd between / within" + "".join(f"{name:>24}" for name in DRAWN))
    for num_policies in (6, 12):
        for sd_policy in (0.0, 0.3, 2.0):
            values = [
                sd_policy * generator.standard_normal(config.tables)
                + generator.standard_normal((12, config.tables))
                for _ in range(num_policies)
            ]
            shares = [
                covered(bootstrap_policies(values, seed=1, num_resamples=2000, drawn=drawn), 0.0)
                for drawn in DRAWN
            ]
            print(
                f"  {num_policies:>8}   {sd_policy:>19}" + "".join(f"{x:>24}" for x in shares),
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
