"""Is a dictionary that is known found again? From one million samples, by our defaults and by other settings.

    python -m benchmarks.recovery           # or: make bench BENCH=recovery

Rows are sums of unit features that come and go, plus noise; what is known of them is used for judging alone. Truth,
rows and weights draw from different named streams, and a run that does not begin at chance is refused: with a seed in
common a dictionary once started at the answer. `dead` is printed, but it is no measure of quality alone: with twice as
many latents as features, half of them are dead in every good run.

"oracle" fits the true features that are on, row by row: what is left is noise.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
import tyro

from cluster.process import settle
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.config import SaeConfig
from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpRelu
from interp.dictionaries.matching import stability
from interp.dictionaries.matryoshka import Matryoshka
from interp.dictionaries.planted import Planted, PlantedConfig
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.topk import TopK
from interp.dictionaries.training import Trainer

CHANCE_MARGIN = 0.03
ADVERSARIES = ("together", "rotated")


@dataclass(frozen=True)
class Config:
    shapes: tuple[tuple[int, int], ...] = ((256, 512), (512, 1024))
    """Width of the rows, and number of features; dictionaries have twice as many latents."""
    samples: int = 1_000_000
    """Rows that each run sees, counting repeats."""
    rows: int = 200_000
    """Different ones among them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the defaults; other settings take the first."""


def settings(config: Config) -> dict[str, SaeConfig]:
    """Named; the first is ours as it comes, but for the width."""
    base = SaeConfig(samples=config.samples, reports=1)
    return {
        "defaults (batch_topk, k 16)": base,
        "free decoder norm": replace(base, decoder_norm="free"),
        "bfloat16 encoder": replace(base, encoder_precision="bfloat16"),
        "without annealing": replace(base, family=BatchTopK(anneal=0.0)),
        "with AuxK": replace(base, family=BatchTopK(aux=1 / 32)),
        "batches of 2048": replace(base, batch_rows=2048),
        "topk": replace(base, family=TopK()),
        "matryoshka": replace(base, family=Matryoshka()),
        "jumprelu": replace(base, family=JumpRelu()),
        "gated": replace(base, family=Gated()),
        "relu_l1": replace(base, family=ReluL1()),
    }


class Bench:
    """Rows of one planted dictionary, and what runs make of them."""

    def __init__(self, planted: Planted, num_rows: int) -> None:
        self.planted = planted
        self.train_ND, _ = planted.rows(num_rows, seed=0)
        self.held_out_ND, self.on_NG = planted.rows(20_000, seed=1)
        self.dictionaries = []

    def run(self, name: str, config: SaeConfig, seed: int) -> None:
        """Trains, judges and prints a line. ValueError if the run begins with more than chance."""
        trainer = Trainer(config, self.train_ND, self.held_out_ND, site="planted", seed=seed)
        first = self.planted.recovery(trainer.dictionary(), self.held_out_ND, self.on_NG)
        if abs(first.mcc - first.chance_mcc) > CHANCE_MARGIN:
            raise ValueError(
                f"{name}: MCC {first.mcc:.3f} before training, {first.chance_mcc:.3f} by chance; seeds leak"
            )
        start = time.process_time()
        *_, last = trainer.run()
        cpu_s = time.process_time() - start
        dictionary = trainer.dictionary()
        found = self.planted.recovery(dictionary, self.held_out_ND, self.on_NG)
        self.dictionaries.append(dictionary)
        print(
            f"  {name:<28} seed {seed}  FVU {last.fvu:.4f}  L0 {last.l0:5.1f}  MCC {found.mcc:.4f}  F1 {found.f1:.3f}  "
            f"recovered {found.recovered_share:4.0%}  dead {last.dead_fraction:3.0%}  {cpu_s:4.0f} s  {found.verdict}",
            flush=True,
        )

    def oracle(self) -> float:
        """FVU of least squares on the true features that are on, over the first rows."""
        x_ND = self.held_out_ND[:2000].astype(np.float64)
        left = 0.0
        for row_D, on_G in zip(x_ND, self.on_NG[: len(x_ND)], strict=True):
            features_GD = self.planted.features_GD[on_G].astype(np.float64)
            y_D = row_D - self.planted.bias_D
            amount_G = np.linalg.lstsq(features_GD.T, y_D, rcond=None)[0]
            left += float(np.square(y_D - amount_G @ features_GD).sum())
        return left / float(np.square(x_ND - x_ND.mean(0)).sum())


def main(config: Config) -> None:
    """Prints a line a run."""
    settle()
    for d_in, num_features in config.shapes:
        planted = Planted(PlantedConfig(d_in=d_in, num_features=num_features))
        bench = Bench(planted, config.rows)
        print(
            f"\n{d_in} wide, {num_features} features, 16 active, {config.samples:,} samples; "
            f"oracle FVU {bench.oracle():.4f}"
        )
        for name, setting in settings(config).items():
            setting = replace(setting, d_sae=2 * num_features)
            for seed in config.seeds if name.startswith("defaults") else config.seeds[:1]:
                bench.run(name, setting, seed)
            if name.startswith("defaults") and len(config.seeds) > 1:
                print(
                    f"  of the defaults, over seeds: {stability(bench.dictionaries, bench.held_out_ND)}"
                )
    for kind in ADVERSARIES:
        planted = Planted(PlantedConfig(kind=kind, d_in=256, num_features=512))
        bench = Bench(planted, config.rows)
        print(f"\nfeatures {kind}, which nobody can tell apart:")
        for seed in config.seeds[:2]:
            setting = replace(settings(config)["defaults (batch_topk, k 16)"], d_sae=1024)
            bench.run("defaults", setting, seed)
        if len(bench.dictionaries) > 1:
            print(f"  over seeds: {stability(bench.dictionaries, bench.held_out_ND)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Config, prog="python -m benchmarks.recovery", description=__doc__))
