"""How fast are dictionaries trained, by us and by the public libraries? And do our files mean the same in SAELens?

    python -m benchmarks.sae            # or: make bench BENCH=sae

Each side is a process of its own that trains by its library's own loop, [rows, 512] in memory, and they take turns.
Every one does its own bookkeeping: dead latents counted, decoder rows of norm 1 where that is its way, gradients
clipped. Ours also centres and scales rows. A round is a turn of each, and it is the ratio within a round that is
reported.

"As shipped" leaves the peers as their users have them. "Tuned" gives them what our process sets for itself: malloc
keeps what is freed; and a faster backend of matrix products if a check finds it exact (on processors with AMX it is
not: it computes in bfloat16, and is left alone).

"Of peak" is the share of the time that the matrix products which the method cannot do without would take at this
machine's measured rate: the encoder's forward product for methods that count active latents, whose other products are
by active latents alone, and all five for the rest. A library that does more than needed has a smaller share.

A library that is not installed is left out and named.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console

from benchmarks.measuring import Side, alternate
from benchmarks.sae import peers, saelens_files
from benchmarks.sae.work import Work
from cluster.process import KEPT_BYTES
from interp.dictionaries.planted import Planted, PlantedConfig
from jobs.progress import Reporter

Part = Literal["speed", "saelens"]
SIDES = {
    "few": (
        "SAELens topk",
        "sparsify topk",
        "Sparsight topk",
        "Sparsight batch_topk",
        "Sparsight topk, bfloat16 encoder",
        "Sparsight batch_topk, bfloat16 encoder",
    ),
    "all": (
        *peers.PEERS,
        "Sparsight topk",
        "Sparsight batch_topk",
        "Sparsight topk, bfloat16 encoder",
        "Sparsight batch_topk, bfloat16 encoder",
        "Sparsight matryoshka",
        "Sparsight relu_l1",
        "Sparsight jumprelu",
        "Sparsight gated",
    ),
}
D_IN = 512


@dataclass(frozen=True)
class Config:
    parts: tuple[Part, ...] = ("speed", "saelens")
    """speed: the tables of rates. saelens: our files in SAELens itself, and its own in ours."""
    sides: Literal["few", "all"] = "few"
    """few: the peers that we are compared with, and ours beside them. all: every architecture of every library."""
    d_sae: tuple[int, ...] = (2048, 4096, 64)
    """Numbers of latents."""
    k: int = 16
    """Active latents per row."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of a process."""
    settings: tuple[Literal["as shipped", "tuned"], ...] = ("as shipped", "tuned")
    """How the peers' processes are set."""
    rows: int = 200_000
    """Rows in memory."""
    batch_rows: int = 4096
    """Rows of a step."""
    steps: int = 6
    """Steps of a turn."""
    rounds: int = 3
    """Rounds; the median counts."""
    device: str = "cpu"
    """Where all train: cpu, or cuda."""


def main(config: Config) -> None:
    """Prints a table for each width, number of threads and setting."""
    sides = [side for side in SIDES[config.sides] if is_there(side)]
    if absent := sorted({side.split()[0] for side in SIDES[config.sides] if not is_there(side)}):
        print(f"not installed: {', '.join(absent)}; {peers.INSTALL}")
    if "saelens" in config.parts:
        saelens_files.compare()
    if "speed" not in config.parts:
        return
    with tempfile.TemporaryDirectory() as folder:
        rows_path = Path(folder, "rows.npy")
        planted = Planted(PlantedConfig(d_in=D_IN, num_features=2 * D_IN))
        np.save(rows_path, planted.rows(config.rows, seed=0)[0])
        for threads in config.threads:
            peak = measured_peak(threads, config.device)
            for d_sae in config.d_sae:
                for setting in config.settings:
                    works = [
                        Work(
                            side=side,
                            rows_path=str(rows_path),
                            d_in=D_IN,
                            d_sae=d_sae,
                            k=config.k,
                            batch_rows=config.batch_rows,
                            steps=config.steps * (1 if d_sae > 256 else 5),
                            turns=config.rounds + 1,
                            threads=threads,
                            tuned=setting == "tuned",
                            device=config.device,
                        )
                        for side in sides
                    ]
                    title = f"d_sae {d_sae}, k {config.k}, {threads} threads, {setting}"
                    compare(title, works, peak)


def is_there(side: str) -> bool:
    return side.startswith("Sparsight") or peers.installed(side)


class Worker:
    """A side's process, which trains while it has its turn."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.cpu_s: list[float] = []
        variables = {"OMP_NUM_THREADS": str(work.threads), "WANDB_MODE": "disabled"}
        if work.tuned:
            variables |= {
                "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
                "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
            }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sae.worker", work.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environ, **variables},
        )

    def play(self, number: int) -> float:
        """Rows per second of its next turn."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            assert self.process.stderr is not None
            raise RuntimeError(f"{self._work.side} failed:\n{self.process.stderr.read()[-2000:]}")
        taken = json.loads(answer)
        if number:
            self.cpu_s.append(taken["cpu_s"] / self._work.steps)
        return self._work.steps * self._work.batch_rows / taken["seconds"]


def compare(title: str, works: list[Work], peak: Mapping[str, float]) -> None:
    """Rates of all sides, and the ratio of each of ours to each of theirs. `peak` as of `measured_peak`."""
    reporter = Reporter(Console(stderr=True))
    with ExitStack() as stack:
        workers = {work.side: Worker(work) for work in works}
        for worker in workers.values():
            stack.callback(worker.process.kill)
        sides = [Side(name=name, play=worker.play) for name, worker in workers.items()]
        rates = alternate(reporter, title, sides, works[0].turns - 1)
    theirs = [name for name in rates if not name.startswith("Sparsight")]
    print(f"\n{title}: rows/s, median of {works[0].turns - 1} rounds; ratio to {', '.join(theirs)}")
    for name, rate in rates.items():
        cpu_ms = 1000 * statistics.median(workers[name].cpu_s)
        share = statistics.median(rate) * least_seconds(name, works[0], peak)
        line = f"  {name:<40} {statistics.median(rate):>9,.0f}  {cpu_ms:7.1f} ms CPU a step  {share:4.0%} of peak"
        if name not in theirs:
            for other in theirs:
                ratio = [mine / its for mine, its in zip(rate, rates[other], strict=True)]
                line += (
                    f"   {statistics.median(ratio):5.2f}x ({min(ratio):.2f} to {max(ratio):.2f})"
                )
        print(line, flush=True)


COUNTING = ("topk", "batchtopk", "batch_topk", "matryoshka")


def least_seconds(side: str, work: Work, peak: Mapping[str, float]) -> float:
    """Of one row: what the matrix products take, at the peak, that its method cannot do without."""
    product = 2 * work.d_in * work.d_sae
    kind = side.split(",")[0].split()[1]
    rest = 8 * work.k * work.d_in if kind in COUNTING else 4 * product
    encoder = "bfloat16" if side.endswith("bfloat16 encoder") else "float32"
    return product / peak[encoder] + rest / peak["float32"]


def measured_peak(threads: int, device: str) -> dict[str, float]:
    """FLOP/s of matrix products of the size of an encoder's, by precision; printed too."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    peak = {}
    for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        first, second = (
            torch.randn(*shape, device=device).to(kind) for shape in ((4096, D_IN), (D_IN, 2048))
        )
        out = torch.empty(4096, 2048, dtype=kind, device=device)
        seconds = min(_seconds(first, second, out) for _ in range(6))
        peak[name] = 4 * 2 * 4096 * D_IN * 2048 / seconds
        print(f"{threads} threads: {peak[name] / 1e9:,.0f} GFLOP/s in {name}")
    torch.set_num_threads(before)
    return peak


def _seconds(first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> float:
    """Of four products."""
    if first.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(4):
        torch.mm(first, second, out=out)
    if first.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.sae", description=__doc__))
