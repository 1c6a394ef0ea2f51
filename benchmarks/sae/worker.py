"""One side of the comparison, in a process of its own: a library's own training loop, which pulls its batches from us.

    python -m benchmarks.sae.worker '{"side": ..., "d_sae": ..., ...}'

What is asked for and answered goes line by line over standard input and output: "go" lets it take one turn of so many
steps, from the moment a batch is asked for until the next would be; it answers with the seconds that took.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.sae import peers
from benchmarks.sae.work import Work
from cluster.process import settle
from interp.dictionaries import precision
from interp.dictionaries.autoencoder import EncoderPrecision
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.config import AnyFamily, SaeConfig
from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpRelu
from interp.dictionaries.matryoshka import Matryoshka
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.topk import TopK
from interp.dictionaries.training import Trainer


class Finished(Exception):
    """All turns have been taken, so the library's loop is left."""


class Turns:
    """Batches for a library, turn by turn: what passes between them is what it needs for a step."""

    def __init__(self, work: Work) -> None:
        self._rows = np.load(work.rows_path, mmap_mode="r")
        self._resident = torch.from_numpy(np.array(self._rows)).to(work.device)
        self._work = work
        self._generator = torch.Generator().manual_seed(0)
        self._order = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(2):  # imports, compiles, allocates
            yield self._batch()
        for _ in range(self._work.turns):
            with a_turn(self._work):
                for _ in range(self._work.steps):
                    yield self._batch()
        raise Finished

    def _batch(self) -> torch.Tensor:
        if len(self._order) < self._work.batch_rows:
            self._order = torch.randperm(len(self._resident), generator=self._generator)
        rows, self._order = (
            self._order[: self._work.batch_rows],
            self._order[self._work.batch_rows :],
        )
        return self._resident[rows]


@contextlib.contextmanager
def a_turn(work: Work) -> Iterator[None]:
    """Waits until it is our turn; says what it took."""
    assert sys.stdin.readline().strip() == "go"
    start, cpu = time.perf_counter(), _cpu_s()
    yield
    if work.device != "cpu":
        torch.cuda.synchronize()
    taken = {"seconds": time.perf_counter() - start, "cpu_s": _cpu_s() - cpu}
    print(json.dumps(taken), file=sys.__stdout__, flush=True)


def train_ours(work: Work) -> None:
    """Our trainer gathers its batches itself, and centres and scales them, which the others do not."""
    settings = OURS[work.side]
    config = SaeConfig(
        family=settings.family(work.k),
        d_sae=work.d_sae,
        samples=10**9,
        batch_rows=work.batch_rows,
        encoder_precision=settings.precision,
    )
    rows_ND = np.load(work.rows_path)
    trainer = Trainer(config, rows_ND, rows_ND[:64], site="x", seed=0, device=work.device)
    trainer.advance(3)
    for _ in range(work.turns):
        with a_turn(work):
            trainer.advance(work.steps)


@dataclass(frozen=True)
class Settings:
    """Which of our ways."""

    family: Callable[[int], AnyFamily]
    """From k; without the fall of k, since the peers have none."""
    precision: EncoderPrecision = "float32"


OURS = {
    "Sparsight batch_topk": Settings(lambda k: BatchTopK(k=k, anneal=0.0)),
    "Sparsight batch_topk, bfloat16 encoder": Settings(
        lambda k: BatchTopK(k=k, anneal=0.0), "bfloat16"
    ),
    "Sparsight topk": Settings(lambda k: TopK(k=k, anneal=0.0)),
    "Sparsight topk, bfloat16 encoder": Settings(lambda k: TopK(k=k, anneal=0.0), "bfloat16"),
    "Sparsight matryoshka": Settings(lambda k: Matryoshka(k=k, anneal=0.0)),
    "Sparsight relu_l1": Settings(lambda k: ReluL1()),
    "Sparsight jumprelu": Settings(lambda k: JumpRelu()),
    "Sparsight gated": Settings(lambda k: Gated()),
}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(work: Work) -> None:
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    if work.tuned and precision.is_exact():
        torch.set_float32_matmul_precision("medium")
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(Finished):
        if work.side in OURS:
            settle()
            torch.set_num_threads(work.threads)
            train_ours(work)
        else:
            peers.PEERS[work.side](iter(Turns(work)), work.turns * work.steps + 3, work)


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "disabled")
    main(Work(**json.loads(sys.argv[1])))
