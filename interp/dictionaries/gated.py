"""Gated: one part of the encoder decides which latents are active, another how much.

    π = z                            gate, of weights W_enc and bias b_enc
    m = relu(e^{r_F} (z - b_enc) + b_mag_F)      magnitude, of the same weights rescaled
    h = m where π > 0, else 0
    loss = |y - x̂|² + l1 sum_F relu(π)_F |W_dec_F| + |y - (relu(π) W_dec + b_dec)|², the last with a fixed decoder

Source: Rajamanoharan et al. 2024 (arXiv:2404.16014, equations 6 to 9). The penalty acts on the gate alone, so it does
not shrink magnitudes.
With z' = e^r (z - b_enc) + b_mag, h is z' where z' > max(0, b_mag - e^r b_enc): finished, it is a threshold for each
latent (their appendix E).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from interp.dictionaries.autoencoder import Autoencoder, Batch
from interp.dictionaries.family import (
    Frozen,
    Loss,
    Plain,
    check_share,
    counted,
    frozen,
    rising,
    squared_error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated(Plain):
    """Separate gates and magnitudes, L1 on the gates (Rajamanoharan 2024)."""

    name: ClassVar[str] = "gated"

    l1: float = 2.0
    """Penalty per unit of gate, for rows scaled to a mean squared norm of d_in; larger is sparser (try 0.3 to 4)."""
    l1_warm_up: float = 0.05
    """Share of the budget over which l1 rises linearly from 0."""

    def __post_init__(self) -> None:
        if not self.l1 >= 0:
            raise ValueError(f"l1 is {self.l1}, wanted at least 0")
        check_share("l1_warm_up", self.l1_warm_up)

    def more_weights(self, d_sae: int) -> dict[str, Tensor]:
        return {"r_mag": torch.zeros(d_sae), "b_mag": torch.zeros(d_sae)}

    def loss(self, sae: Autoencoder, batch: Batch, share: float) -> Loss:
        gate_BF = sae.preactivations(batch.x_BD)
        b_enc_F, b_mag_F = sae.weights["b_enc"], sae.weights["b_mag"]
        magnitude_BF = (sae.weights["r_mag"].exp() * (gate_BF - b_enc_F) + b_mag_F).relu()
        h_BF = magnitude_BF * (gate_BF > 0)
        error_BO = sae.reconstruct(h_BF) - batch.y_BO
        open_BF = gate_BF.relu()
        norm_F = None if sae.decoder_norm == "unit" else sae.added_norm_F
        penalty = counted(open_BF, norm_F).sum() / open_BF.shape[0]
        by_gate_BO = torch.addmm(sae.b_dec.detach(), open_BF, sae.W_dec.detach())
        loss = squared_error(error_BO) + squared_error(by_gate_BO - batch.y_BO)
        l1 = self.l1 * rising(share, self.l1_warm_up)
        return Loss(loss + l1 * penalty, h_BF, error_BO, 0.0)

    def freeze(self, sae: Autoencoder, threshold: float) -> Frozen:
        stretch_F = sae.weights["r_mag"].detach().exp()
        b_mag_F, b_enc_F = sae.weights["b_mag"].detach(), sae.weights["b_enc"].detach()
        whole = frozen(sae, torch.zeros(()))
        norm_F = sae.norm_F
        norm_F = torch.ones_like(b_mag_F) if norm_F is None else norm_F
        shift_F = (b_mag_F - stretch_F * b_enc_F) * norm_F
        return Frozen(
            whole.W_enc_FD * stretch_F[:, None],
            whole.bias_F * stretch_F + shift_F,
            whole.W_dec_FO,
            shift_F.clamp_min(0.0),
        )
