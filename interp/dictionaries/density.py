"""How often do latents fire? Density, in three figures.

    density_f      share of rows on which latent f is above 0                          0 never, 1 always
    dead share     share of latents with density 0                                     no measure of quality by itself
    dense share    share of latents with density above a limit, here 1/10              0 is what sparsity promises

Dense latents are not noise (Sun et al. 2025, "Dense SAE latents are features, not bugs"), but they are no detectors:
with L0 equal, a dictionary with many of them says less by its sparse ones. The histogram over the logarithm of the
density is that of Bricken et al. (2023), where a second mode at low densities told of latents that learnt nothing.

F latents · H bins.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

DENSE = 0.1
"""Density above which a latent counts as dense (Rajamanoharan et al. 2024, "Jumping ahead")."""
EDGES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the histogram: one bin a decade above the first. Bins hold their upper edge and not their lower one."""


class DensityHistogram(NamedTuple):
    """Shares of all latents; with the dead ones they sum to 1."""

    edge_H: tuple[float, ...]
    """Bin h is above edge h and up to edge h + 1."""
    share_H: Float64[np.ndarray, " H"]
    dead_share: float


def dense_share(density_F: Float[Tensor, " F"], *, above: float = DENSE) -> float:
    """Share of latents that fire on more than `above` of the rows, 0 to 1."""
    if not 0 <= above < 1:
        raise ValueError(f"above is {above}: wanted a share of rows, from 0 to below 1")
    return float((density_F > above).double().mean())


def density_histogram(density_F: Float[Tensor, " F"]) -> DensityHistogram:
    """Shares of latents by the decade of their density."""
    value_F = density_F.double().numpy()
    if ((value_F < 0) | (value_F > 1) | np.isnan(value_F)).any():
        raise ValueError(
            f"densities go from {value_F.min()} to {value_F.max()}: wanted shares of rows, 0 to 1"
        )
    bin_F = np.searchsorted(EDGES, value_F, side="left")  # 0 is dead, h is up to edge h
    count = np.bincount(bin_F, minlength=len(EDGES))
    return DensityHistogram(EDGES, count[1:] / len(value_F), float(count[0] / len(value_F)))
