"""Is a known dictionary found again, by us and by the public libraries? And is what cannot be found called so?

    python -m benchmarks.recovery            # or: make bench BENCH=recovery

Rows are sums of known unit features, as `interp.dictionaries.planted` makes them; every library sees as many, in
batches of the same size, and has twice as many latents as there are features. Weights that resemble the features before
training are refused. Figures are of held-out rows, mean (lowest to highest) over seeds of weights and order.

MCC    mean cosine of features with their latents, one to one; chance is printed above
rec90  share of features with a cosine above .9
F1     of "its latent fires" for "the feature is on"
dead   share of latents that never fire: no measure of quality by itself, for in every good run half of them are

The second table is of rows whose features nobody could find though codes reconstruct the rows well. It asks twice: with
the truth at hand, and as on real activations, where all that can be asked is whether other seeds find the same.

A library that is not installed is left out and named.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
import tyro
from rich.console import Console

from benchmarks.recovery import ours, peers
from benchmarks.recovery.judging import Budget, Judgement, Learner, Learnt, Problem, judge
from benchmarks.sae.peers import INSTALL
from cluster.process import settle
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.matching import stability
from interp.dictionaries.planted import Kind, Planted, PlantedConfig
from jobs.progress import Reporter

Part = Literal["known", "impossible"]
LEARNERS: dict[str, Learner] = {**peers.PEERS, **ours.OURS}
FEW = (
    "SAELens batchtopk",
    "SAELens batchtopk, tuned",
    "dictionary_learning matryoshka, tuned",
    "sparsify topk, adam, tuned",
    "Sparsight batch_topk",
    "Sparsight batch_topk, bfloat16 encoder",
    "Sparsight topk",
)
SHAPES = {"256": (256, 512), "512": (512, 1024)}
"""Width and number of features."""
IMPOSSIBLE: tuple[tuple[Kind, int], ...] = (
    ("independent", 16),
    ("together", 16),
    ("rotated", 16),
    ("dense", 16),
    ("merged", 4),
)
"""Kind of rows, and latents a row; the first can be recovered."""


@dataclass(frozen=True)
class Config:
    parts: tuple[Part, ...] = ("known", "impossible")
    """known: features that can be found. impossible: features that cannot, and what tells."""
    sides: Literal["few", "all", "ours"] = "few"
    """few: the best of each library. all: every setting. ours: every family of ours."""
    only: str = ""
    """Only sides with this in their name, of all."""
    shapes: tuple[Literal["256", "512"], ...] = ("256",)
    """256: 256 wide, 512 features. 512: 512 wide, 1024 features."""
    samples: int = 1_000_000
    """Rows seen in training, counting repeats."""
    pool_rows: int = 200_000
    """Different rows."""
    held_out_rows: int = 20_000
    """Rows that figures are of."""
    batch_rows: int = 1024
    """Rows of a step."""
    k: int = 16
    """Active latents a row; as many features are on, on average."""
    seeds: int = 3
    """Runs of each side."""
    threads: int = 1
    """Threads of torch."""


def main(config: Config) -> None:
    """Prints a line for each side."""
    settle()
    torch.set_num_threads(config.threads)
    sides = chosen(config)
    if absent := sorted({side.split()[0] for side in sides if not is_there(side)}):
        print(f"not installed: {', '.join(absent)}; {INSTALL}")
    sides = [side for side in sides if is_there(side)]
    for shape in config.shapes:
        if "known" in config.parts:
            compare(config, *SHAPES[shape], sides)
        if "impossible" in config.parts:
            tell_apart(config, *SHAPES[shape])


def chosen(config: Config) -> list[str]:
    """Names of sides; ValueError if `only` leaves none."""
    if config.only:
        if not (found := [side for side in LEARNERS if config.only in side]):
            raise ValueError(f"no side has {config.only!r} in its name; there are {list(LEARNERS)}")
        return found
    return list({"few": FEW, "all": LEARNERS, "ours": ours.OURS}[config.sides])


def is_there(side: str) -> bool:
    return side in ours.OURS or peers.installed(side)


def make_problem(config: Config, d_in: int, num_features: int, kind: Kind) -> Problem:
    truth = Planted(
        PlantedConfig(d_in=d_in, num_features=num_features, mean_active=float(config.k), kind=kind)
    )
    train_ND, _ = truth.rows(config.pool_rows, seed=0)
    held_out_MD, on_MG = truth.rows(config.held_out_rows, seed=1)
    return Problem(truth=truth, train_ND=train_ND, held_out_MD=held_out_MD, on_MG=on_MG)


def budget_of(config: Config, d_in: int, num_features: int, *, k: int, seed: int) -> Budget:
    return Budget(
        d_in=d_in,
        d_sae=2 * num_features,
        k=k,
        batch_rows=config.batch_rows,
        steps=ceil(config.samples / config.batch_rows),
        seed=seed,
    )


def compare(config: Config, d_in: int, num_features: int, sides: Sequence[str]) -> None:
    """The table of features that can be found."""
    problem = make_problem(config, d_in, num_features, "independent")
    rows = config.held_out_rows
    bound = problem.truth.known_fvu(rows, seed=1), problem.truth.known_fvu(rows, seed=1, k=config.k)
    print(
        f"\n{d_in} wide, {num_features} features, {config.samples:,} rows, {config.seeds} seeds. MCC by chance "
        f"{problem.truth.chance_mcc(2 * num_features):.3f}. FVU of the true features in their true amounts: "
        f"{bound[0]:.4f}, of the {config.k} largest a row {bound[1]:.4f}"
    )
    print(f"  {'':<40}{'FVU':>22}{'L0':>7}{'dead':>6}{'MCC':>24}{'rec90':>7}{'F1':>7}{'CPU s':>8}")
    reporter = Reporter(Console(stderr=True))
    with reporter.stage("known") as stage:
        for number, side in enumerate(sides):
            judgements, cpu_s = [], []
            for seed in range(config.seeds):
                stage.update(
                    number * config.seeds + seed, len(sides) * config.seeds, f"runs; {side}"
                )
                budget = budget_of(config, d_in, num_features, k=config.k, seed=seed)
                torch.manual_seed(seed)
                start = time.process_time()
                learnt = LEARNERS[side](problem, budget)
                cpu_s.append(time.process_time() - start)
                judgements.append(judge(problem, learnt))
            print_line(side, judgements, cpu_s)


def print_line(side: str, judgements: Sequence[Judgement], cpu_s: Sequence[float]) -> None:
    recoveries = [judgement.recovery for judgement in judgements]
    fvus, mccs = [j.fvu for j in judgements], [r.mcc for r in recoveries]
    mean = statistics.mean
    verdicts = " / ".join(sorted({recovery.verdict for recovery in recoveries}))
    print(
        f"  {side:<40}{ranged(fvus):>22}{mean(j.l0 for j in judgements):7.1f}"
        f"{mean(j.dead_fraction for j in judgements):6.2f}{ranged(mccs):>24}"
        f"{mean(r.recovered_cosine for r in recoveries):7.3f}{mean(r.f1 for r in recoveries):7.3f}"
        f"{statistics.median(cpu_s):8.0f}  {verdicts}",
        flush=True,
    )


def ranged(values: Sequence[float]) -> str:
    """Mean, and what it lies between."""
    text = f"{statistics.mean(values):.4f}"
    return text if len(values) == 1 else f"{text} ({min(values):.4f}-{max(values):.4f})"


def tell_apart(config: Config, d_in: int, num_features: int) -> None:
    """The table of features that cannot be found, by our defaults; AssertionError if one is said to be."""
    print(
        f"\n{d_in} wide, {num_features} features, {config.samples:,} rows, Sparsight batch_topk, {config.seeds} seeds: "
        "what low errors are worth"
    )
    print(
        f"  {'rows':<13}{'k':>4}{'FVU':>24}{'MCC':>24}{'recovered':>11}  {'':<17}{'matched':>8}{'by chance':>10}"
    )
    reporter = Reporter(Console(stderr=True))
    fooled = []
    with reporter.stage("impossible") as stage:
        for number, (kind, k) in enumerate(IMPOSSIBLE):
            problem = make_problem(config, d_in, num_features, kind)
            dictionaries = []
            for seed in range(max(2, config.seeds)):
                stage.update(number, len(IMPOSSIBLE), f"kinds of rows; {kind}, seed {seed}")
                budget = budget_of(config, d_in, num_features, k=k, seed=seed)
                dictionaries.append(ours.train(problem, budget, BatchTopK(k=k)))
            judgements = [
                judge(
                    problem,
                    Learnt(W_dec_FD=found.W_dec, encode=found.encode, decode=found.decode),
                )
                for found in dictionaries
            ]
            steady = stability(dictionaries, problem.held_out_MD)
            recoveries = [judgement.recovery for judgement in judgements]
            verdicts = sorted({recovery.verdict for recovery in recoveries})
            print(
                f"  {kind:<13}{k:>4}{ranged([j.fvu for j in judgements]):>24}{ranged([r.mcc for r in recoveries]):>24}"
                f"{statistics.mean(r.recovered_share for r in recoveries):11.3f}  {' / '.join(verdicts):<17}"
                f"{steady.matched_share:8.3f}{steady.chance:10.3f}  {steady.verdict} over seeds",
                flush=True,
            )
            if kind != "independent" and verdicts != ["not recovered"]:
                fooled.append(kind)
    assert not fooled, f"said to be recovered though nobody could: {fooled}"


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.recovery", description=__doc__))
