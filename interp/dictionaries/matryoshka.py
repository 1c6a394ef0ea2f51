"""Matryoshka BatchTopK: the first latents must reconstruct by themselves what they can, so general ones come first.

    h as BatchTopK        loss = mean over prefixes p of |y - (h_1 W_1 + ... + h_p W_p + b_dec)|²

Source: Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders" (arXiv:2503.17547). A
latent that only says "the parent, unless the child" would hurt the prefix without the child: less absorption.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from interp.dictionaries.autoencoder import Autoencoder, Batch
from interp.dictionaries.family import Loss
from interp.dictionaries.topk import Counting


@dataclass(frozen=True, slots=True, kw_only=True)
class Matryoshka(Counting):
    """BatchTopK whose leading latents reconstruct without the others as well (Bussmann 2025)."""

    name: ClassVar[str] = "matryoshka"

    nested: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Shares of the latents that make up each prefix, ascending to 1."""

    def __post_init__(self) -> None:
        Counting.__post_init__(self)
        check_nested("nested", self.nested)

    def check(self, d_sae: int) -> None:
        Counting.check(self, d_sae)
        ends = self.prefixes(d_sae)
        if ends[0] < 1 or any(a >= b for a, b in pairwise(ends)):
            raise ValueError(
                f"family.nested {self.nested} of d_sae {d_sae} latents gives prefixes of {ends}; "
                "wanted each to have more latents than the one before"
            )

    def prefixes(self, d_sae: int) -> tuple[int, ...]:
        return tuple(round(share * d_sae) for share in self.nested)

    def loss(self, sae: Autoencoder, batch: Batch, share: float) -> Loss:
        h_BF, threshold = self.choose(sae, sae.preactivations(batch.x_BD), share)
        error_BO = sae.b_dec - batch.y_BO
        total, start = torch.zeros((), device=h_BF.device), 0
        ends = self.prefixes(sae.d_sae)
        for end in ends:
            error_BO = error_BO + h_BF[:, start:end] @ sae.W_dec[start:end]
            total = total + error_BO.square().sum() / (error_BO.shape[0] * len(ends))
            start = end
        return Loss(total, h_BF, error_BO, threshold)


def check_nested(name: str, shares: tuple[float, ...]) -> None:
    """ValueError unless they ascend to 1."""
    ascending = all(a < b for a, b in pairwise(shares))
    if not shares or not ascending or not shares[0] > 0 or shares[-1] != 1:
        raise ValueError(
            f"{name} is {shares}, wanted shares above 0, ascending, the last of them 1"
        )
