"""JumpReLU: each latent has a threshold of its own, which is trained.

    h = z where z > θ_F, else 0        loss = |y - x̂|² + l0 sum_F [h_F > 0], or with a target l0 (L0 / target - 1)²

Source: Rajamanoharan et al. 2024 (arXiv:2407.14435), for the target Smith et al. 2025 ("Negative Results for SAEs ...",
GDM). Neither jump has a slope, so θ is given that of a kernel of width ε, the bandwidth (their equations 11 and 12):

    dh/dθ = -θ/ε K((z - θ)/ε)        d[z > θ]/dθ = -1/ε K((z - θ)/ε)        K(u) = 1 for |u| < 1/2, else 0

θ itself is the weight, in float32: with its logarithm, or in half precision, steps too small to move it are lost.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.dictionaries.autoencoder import Autoencoder, Batch
from interp.dictionaries.family import (
    Frozen,
    Loss,
    Plain,
    check_share,
    frozen,
    rising,
    squared_error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JumpRelu(Plain):
    """A trained threshold for each latent under an L0 penalty (Rajamanoharan 2024)."""

    name: ClassVar[str] = "jumprelu"

    l0: float = 1.0
    """Penalty per active latent, for rows scaled to a mean squared norm of d_in (try 0.3 to 4); with `target_l0`, the
    penalty for being wrong by as much as the target."""
    target_l0: float | None = None
    """Latents per row to aim at; None penalises each one."""
    l0_warm_up: float = 0.2
    """Share of the budget over which the penalty rises linearly from 0."""
    first_threshold: float = 0.5
    """θ at the start."""
    bandwidth: float = 0.5
    """ε, the width about θ within which a latent moves it."""

    def __post_init__(self) -> None:
        if not self.l0 >= 0:
            raise ValueError(f"l0 is {self.l0}, wanted at least 0")
        check_share("l0_warm_up", self.l0_warm_up)
        for name in ("target_l0", "first_threshold", "bandwidth"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, wanted above 0")

    def check(self, d_sae: int) -> None:
        if self.target_l0 is not None and self.target_l0 > d_sae:
            raise ValueError(
                f"family.target_l0 is {self.target_l0} but d_sae is {d_sae}; wanted at most d_sae"
            )

    def more_weights(self, d_sae: int) -> dict[str, Tensor]:
        return {"threshold": torch.full((d_sae,), self.first_threshold)}

    def loss(self, sae: Autoencoder, batch: Batch, share: float) -> Loss:
        z_BF = sae.preactivations(batch.x_BD)
        norm_F = sae.norm_F
        threshold_F = sae.weights["threshold"].clamp_min(0.0)
        if norm_F is not None:  # θ is in units of what a latent adds
            threshold_F = threshold_F / norm_F.clamp_min(1e-12)
        h_BF = jump(z_BF, threshold_F, self.bandwidth)
        error_BO = sae.reconstruct(h_BF) - batch.y_BO
        l0 = is_above(z_BF, threshold_F, self.bandwidth).sum() / z_BF.shape[0]
        penalty = l0 if self.target_l0 is None else (l0 / self.target_l0 - 1).square()
        weight = self.l0 * rising(share, self.l0_warm_up)
        return Loss(
            squared_error(error_BO) + weight * penalty,
            h_BF,
            error_BO,
            float(sae.weights["threshold"].detach().mean()),
        )

    def freeze(self, sae: Autoencoder, threshold: float) -> Frozen:
        return frozen(sae, sae.weights["threshold"].detach().clamp_min(0.0).clone())


def jump(
    z_BF: Float[Tensor, "B F"], threshold_F: Float[Tensor, " F"], bandwidth: float
) -> Float[Tensor, "B F"]:
    """What z is where it exceeds the threshold, else 0, with the kernel's slope along the threshold."""
    fixed_F = threshold_F.detach()
    slope_BF = -fixed_F / bandwidth * _is_near(z_BF, fixed_F, bandwidth)
    return z_BF * (z_BF > fixed_F) + slope_BF * (threshold_F - fixed_F)  # which adds 0


def is_above(
    z_BF: Float[Tensor, "B F"], threshold_F: Float[Tensor, " F"], bandwidth: float
) -> Float[Tensor, "B F"]:
    """1 where z exceeds the threshold, with the kernel's slope along the threshold and none along z."""
    fixed_F = threshold_F.detach()
    slope_BF = -1 / bandwidth * _is_near(z_BF, fixed_F, bandwidth)
    return (z_BF > fixed_F) + slope_BF * (threshold_F - fixed_F)  # which adds 0


def _is_near(
    z_BF: Float[Tensor, "B F"], threshold_F: Float[Tensor, " F"], bandwidth: float
) -> Bool[Tensor, "B F"]:
    return (z_BF.detach() - threshold_F).abs() < bandwidth / 2
