"""Do the latents of a dictionary write in different directions? Mutual coherence of its decoder.

    c_fg = |w_f · w_g| / (|w_f| |w_g|)      f ≠ g

    max          max over pairs       mutual coherence (Donoho & Elad 2003): 0 orthogonal, 1 two latents write the same
    nearest      mean over f of max over g of c_fg: how alone a latent is, typically
    mean         mean over pairs: 1 / sqrt(D) times about 0.8 for random directions in D dimensions

With more latents than dimensions no dictionary is orthogonal: max is at least the Welch bound,
sqrt((F - D) / (D (F - 1))) (Welch 1974). A dictionary whose latents were absorbed into each other has a higher mean
than its truth (Chanin et al. 2025, "Sparse but wrong", where it picks L0). So compare with random directions.

F latents · D output width.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK_LATENTS = 2048


class Coherence(NamedTuple):
    """Absolute cosines between decoder rows, 0 to 1."""

    mean: float
    nearest: float
    max: float
    welch_bound: float
    """The least that max can be for so many rows in so many dimensions."""


def coherence(W_dec: Float[Tensor, "F D"]) -> Coherence:
    """Of all rows that are not zero, block by block, so that memory is not F x F.

    ValueError for fewer than two of them, which have no pairs.
    """
    norm_F = W_dec.norm(dim=1)
    unit_FD = (W_dec[norm_F > 0] / norm_F[norm_F > 0, None]).float()
    num, width = unit_FD.shape
    if num < 2:
        raise ValueError(
            f"{num} of {len(W_dec)} decoder rows are not zero; coherence is of pairs, at least 2"
        )
    total, nearest = 0.0, []
    for start in range(0, num, _BLOCK_LATENTS):
        cosine_BF = (unit_FD[start : start + _BLOCK_LATENTS] @ unit_FD.T).abs()
        own = torch.arange(len(cosine_BF))
        cosine_BF[own, start + own] = 0
        total += float(cosine_BF.sum(dtype=torch.float64))
        nearest.append(cosine_BF.max(1).values)
    nearest_F = torch.cat(nearest).clamp(max=1).double()
    bound = math.sqrt(max(0, num - width) / (width * (num - 1)))
    return Coherence(
        total / (num * (num - 1)), float(nearest_F.mean()), float(nearest_F.max()), bound
    )
