"""How long does a sweep of small trials take once its first result is there?

    python -m benchmarks.sweep              # or: make bench BENCH=sweep

Trials of several families and strengths train on the same planted rows, as `sparsight sweep` runs them: on actors that
are used again, from rows that are staged once. The clock starts with the sweep, after Ray has; the first result is the
first trial that is done. The target is 16 trials within 15 s of it on 2 cores.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from cluster import runtime
from cluster.sweep import TrialProgress, sweep
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.planted import Planted, PlantedConfig
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.topk import TopK
from interp.dictionaries.training import SaeConfig
from jobs.progress import Reporter, SweepNote

TARGET_S = 15.0


@dataclass(frozen=True)
class Config:
    trials: int = 16
    """Trials in all."""
    actors: int = 2
    """Trials at once, each with a core."""
    d_in: int = 64
    """Width of the rows."""
    d_sae: int = 128
    """Latents."""
    rows: int = 20_000
    """Different rows."""
    samples: int = 100_000
    """Rows that each trial sees."""


def configs_of(config: Config) -> list[SaeConfig]:
    """Trials that differ in family and strength."""
    base = SaeConfig(d_sae=config.d_sae, samples=config.samples)
    families = [
        family
        for k in range(2, config.trials + 2)
        for family in (BatchTopK(k=k), TopK(k=k), ReluL1(l1=k / 4))
    ]
    return [replace(base, family=family) for family in families[: config.trials]]


def main(config: Config) -> None:
    """Prints one line."""
    truth = Planted(PlantedConfig(d_in=config.d_in, num_features=2 * config.d_in, mean_active=6.0))
    done_s: dict[int, float] = {}
    runtime.start(config.actors + 1)
    reporter = Reporter(Console(stderr=True))
    with tempfile.TemporaryDirectory() as folder, reporter.stage("sweep") as stage:
        paths = [Path(folder, name) for name in ("train.npy", "held_out.npy")]
        for seed, path in enumerate(paths):
            rows_ND, _ = truth.rows(config.rows if seed == 0 else 4_000, seed=seed)
            np.save(path, rows_ND.astype(np.float16))
        note, start = SweepNote(stage), time.perf_counter()

        def on_progress(report: TrialProgress) -> None:
            note(report)
            if report.progress.done:
                done_s[report.trial] = time.perf_counter() - start

        results = sweep(
            configs_of(config),
            train_path=paths[0],
            held_out_path=paths[1],
            site="planted",
            storage_path=folder,
            name="benchmark",
            seed=0,
            max_concurrent=config.actors,
            on_progress=on_progress,
        )
        wall_s = time.perf_counter() - start
    runtime.stop()
    first_s = min(done_s.values())
    trained_s = sum(result.trial_s for result in results)
    print(
        f"{len(results)} trials, {config.samples:,} rows, {config.d_in} into {config.d_sae}, {config.actors} at once: "
        f"first result after {first_s:.1f} s, all {wall_s - first_s:.1f} s later (target {TARGET_S:.0f} s); "
        f"{trained_s:.1f} s of training and reporting in all"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.sweep", description=__doc__))
