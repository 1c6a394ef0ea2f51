"""What is the same for every library: the rows, the budget, and the figures of what it has learnt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from interp.dictionaries.metrics import fvu
from interp.dictionaries.planted import Planted, Recovery


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a library may use."""

    d_in: int
    d_sae: int
    k: int
    batch_rows: int
    steps: int
    seed: int
    """Of weights and order; the features have another."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """A known dictionary with rows to learn from and rows to be judged on."""

    truth: Planted
    train_ND: Float32[np.ndarray, "N D"]
    held_out_MD: Float32[np.ndarray, "M D"]
    on_MG: Bool[np.ndarray, "M G"]

    def batches(self, budget: Budget) -> Iterator[Float[Tensor, "B D"]]:
        """Endless, in random order."""
        rows_ND = torch.from_numpy(self.train_ND)
        generator = torch.Generator().manual_seed(10_007 + budget.seed)
        while True:
            order_N = torch.randperm(len(rows_ND), generator=generator)
            for rows_B in order_N.split(budget.batch_rows):
                if len(rows_B) == budget.batch_rows:
                    yield rows_ND[rows_B]


@dataclass(frozen=True, kw_only=True, eq=False)
class Learnt:
    """A finished dictionary, as it is used: for instance with a threshold instead of a choice by batch."""

    W_dec_FD: Float[Tensor, "F D"]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


Learner = Callable[[Problem, Budget], Learnt]
"""Trains within the budget, after `Planted.check_start` of its first weights."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    fvu: float
    l0: float
    dead_fraction: float
    """No measure of quality by itself: with twice as many latents as features, half are dead in every good run."""
    recovery: Recovery


@torch.no_grad()
def judge(problem: Problem, learnt: Learnt) -> Judgement:
    """On the held-out rows."""
    parts = [
        (latents_BF, learnt.decode(latents_BF))
        for x_BD in torch.from_numpy(problem.held_out_MD).split(2000)
        for latents_BF in [learnt.encode(x_BD)]
    ]
    latents_MF, recon_MD = (torch.cat(part).float() for part in zip(*parts, strict=True))
    fires_MF = latents_MF > 0
    return Judgement(
        fvu=fvu(torch.from_numpy(problem.held_out_MD), recon_MD),
        l0=float(fires_MF.sum(1).double().mean()),
        dead_fraction=float((~fires_MF.any(0)).double().mean()),
        recovery=problem.truth.recovery_of(
            learnt.W_dec_FD.float(), latents_MF.numpy(), problem.on_MG
        ),
    )
