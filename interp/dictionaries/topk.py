"""TopK: the k largest latents of each row are active; and what all families that count active latents share.

    h = z where z is among the k largest positive values of its row, else 0        loss = |y - x̂|²

Source: Gao et al. 2024 (arXiv:2406.04093). k falls linearly from `wide` k to k over the first part of training: on
planted dictionaries that lowered FVU from .065 to .040 and raised recovery from .935 to .998 (BatchTopK).

With decoder rows of any norm, "largest" is of z |W_dec|, what the latent would add.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.dictionaries.autoencoder import Autoencoder, Batch
from interp.dictionaries.family import (
    Frozen,
    Loss,
    Plain,
    check_share,
    counted,
    frozen,
    squared_error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting(Plain):
    """Settings of families that fix how many latents are active."""

    k: int = 16
    """Latents active per row."""
    wide: float = 4.0
    """k starts at this multiple of its target."""
    anneal: float = 0.5
    """Share of the budget over which k falls to its target."""
    aux: float = 0.0
    """Weight of the loss on dead latents (AuxK), for instance 1/32. 0 turns it off: a falling k leaves few dead."""
    dead_window: float = 0.1
    """A latent is dead when it has not fired for this share of the budget."""

    by_row: ClassVar[bool] = False
    """Whether each row has its k, or all rows of a batch have theirs together."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, wanted at least 1")
        if not self.wide >= 1:
            raise ValueError(f"wide is {self.wide}, wanted at least 1")
        check_share("anneal", self.anneal)
        if not self.aux >= 0:
            raise ValueError(f"aux is {self.aux}, wanted at least 0")
        if not 0 < self.dead_window <= 1:
            raise ValueError(
                f"dead_window is {self.dead_window}, wanted a share above 0 and up to 1"
            )

    def check(self, d_sae: int) -> None:
        if self.k > d_sae:
            raise ValueError(f"family.k is {self.k} but d_sae is {d_sae}; wanted k at most d_sae")

    def k_at(self, share: float) -> int:
        """Latents per row when `share` of the budget, 0 to 1, is spent."""
        if share >= self.anneal:
            return self.k
        return round(self.k * (self.wide + (1 - self.wide) * share / self.anneal))

    def prefixes(self, d_sae: int) -> tuple[int, ...]:
        """The loss is the mean over reconstructions from the first so many latents, ascending to all."""
        return (d_sae,)

    def choose(
        self, sae: Autoencoder, z_BF: Float[Tensor, "B F"], share: float
    ) -> tuple[Float[Tensor, "B F"], float]:
        """Latents of each row, and what they had to exceed, on average over rows."""
        k = self.k_at(share)
        rank_BF = counted(z_BF.detach(), sae.norm_F)
        boundary = row_boundaries(rank_BF, k) if self.by_row else batch_boundary(rank_BF, k)
        return z_BF * (rank_BF > boundary), float(boundary.mean())

    def loss(self, sae: Autoencoder, batch: Batch, share: float) -> Loss:
        h_BF, threshold = self.choose(sae, sae.preactivations(batch.x_BD), share)
        error_BO = sae.reconstruct(h_BF) - batch.y_BO
        return Loss(squared_error(error_BO), h_BF, error_BO, threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Counting):
    """The k largest latents of each row (Gao 2024), k falling from wide to target."""

    name: ClassVar[str] = "topk"
    by_row: ClassVar[bool] = True

    inference: Literal["threshold", "k"] = "threshold"
    """A finished dictionary takes latents above the boundary that was usual in training, so that one latent can be read
    without the others, as steering must; or exactly the k largest of each row."""

    def freeze(self, sae: Autoencoder, threshold: float) -> Frozen:
        if self.inference == "k":
            return frozen(sae, torch.tensor(0.0), k=self.k)
        return frozen(sae, torch.tensor(threshold))


def batch_boundary(z_BF: Float[Tensor, "B F"], k: int) -> Float[Tensor, ""]:
    """Exactly k B values of the batch are above it, fewer if fewer are positive (or tied)."""
    num_below = z_BF.numel() - k * z_BF.shape[0]
    if num_below <= 0:
        return z_BF.new_zeros(())
    if z_BF.is_cuda:
        boundary = z_BF.flatten().topk(k * z_BF.shape[0] + 1, sorted=True).values[-1]
    else:
        # numpy's partition takes 1.2 ms for a million values where torch's topk takes 8.5 and kthvalue 6.2.
        flat = z_BF.detach().numpy().reshape(-1)
        boundary = torch.tensor(np.partition(flat, num_below - 1)[num_below - 1])
    return boundary.clamp_min(0.0)


def row_boundaries(z_BF: Float[Tensor, "B F"], k: int) -> Float[Tensor, "B 1"]:
    """Exactly k values of a row are above its own, fewer if fewer are positive (or tied)."""
    if k >= z_BF.shape[1]:
        return z_BF.new_zeros(z_BF.shape[0], 1)
    return z_BF.topk(k + 1, dim=1, sorted=True).values[:, -1:].clamp_min(0.0)
