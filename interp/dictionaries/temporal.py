"""Temporal: some latents must say nearly the same at neighbouring steps, and reconstruct alone what they can.

    h as BatchTopK, its first `slow` share the slow latents s
    loss = (|y - x̂_slow|² + |y - x̂|²) / 2 + contrast D (C(s_t, s_{t-1}) + C(s_{t-1}, s_t)) / 2
    C(a, b) = -mean_i log( exp(cos(a_i, b_i) / τ) / sum_j exp(cos(a_i, b_j) / τ) )

Source: Bhalla et al. 2025, "Temporal Sparse Autoencoders" (arXiv:2511.05541): Matryoshka of two prefixes, and InfoNCE
between neighbours. Neighbours here are steps of the same agent in the same episode; the first step of an episode has
none, and counts towards the reconstruction only. The factor D, the width of the rows, is our own: errors are of that
order.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from interp.dictionaries.autoencoder import Autoencoder, Batch
from interp.dictionaries.family import Loss
from interp.dictionaries.topk import Counting


@dataclass(frozen=True, slots=True, kw_only=True)
class Temporal(Counting):
    """BatchTopK with slow latents, held together over neighbouring steps by a contrastive loss (Bhalla 2025)."""

    name: ClassVar[str] = "temporal"

    slow: float = 0.2
    """Share of the latents that are to be slow."""
    contrast: float = 0.1
    """Weight of the contrastive loss."""
    temperature: float = 0.1
    """τ."""

    def __post_init__(self) -> None:
        Counting.__post_init__(self)
        if not 0 < self.slow < 1:
            raise ValueError(f"slow is {self.slow}, wanted a share above 0 and below 1")
        if not self.contrast >= 0:
            raise ValueError(f"contrast is {self.contrast}, wanted at least 0")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, wanted above 0")

    def check(self, d_sae: int) -> None:
        Counting.check(self, d_sae)
        if not 0 < round(self.slow * d_sae) < d_sae:
            raise ValueError(
                f"family.slow {self.slow} of d_sae {d_sae} latents leaves none of one kind; wanted at least one of each"
            )

    def prefixes(self, d_sae: int) -> tuple[int, ...]:
        return (round(self.slow * d_sae), d_sae)

    def loss(self, sae: Autoencoder, batch: Batch, share: float) -> Loss:
        h_BF, threshold = self.choose(sae, sae.preactivations(batch.x_BD), share)
        num_slow, _ = self.prefixes(sae.d_sae)
        slow_BO = sae.b_dec - batch.y_BO + h_BF[:, :num_slow] @ sae.W_dec[:num_slow]
        error_BO = slow_BO + h_BF[:, num_slow:] @ sae.W_dec[num_slow:]
        num_rows = error_BO.shape[0]
        loss = (slow_BO.square().sum() + error_BO.square().sum()) / (2 * num_rows)
        if self.contrast:
            loss = loss + self.contrast * batch.y_BO.shape[1] * self._contrast(
                sae, batch, h_BF[:, :num_slow], threshold
            )
        return Loss(loss, h_BF, error_BO, threshold)

    def _contrast(
        self, sae: Autoencoder, batch: Batch, slow_BS: Tensor, threshold: float
    ) -> Float[Tensor, ""]:
        assert batch.before_BD is not None and batch.has_before_B is not None
        if not batch.has_before_B.any():
            return slow_BS.new_zeros(())
        z_BS = sae.preactivations(batch.before_BD)[:, : slow_BS.shape[1]]
        # the steps before are judged as at inference: they compete for no place in the batch
        norm_F = sae.norm_F
        norm_S = 1.0 if norm_F is None else norm_F[: slow_BS.shape[1]]
        before_BS = z_BS * (z_BS.detach() * norm_S > threshold)
        now_NS = normalize(slow_BS[batch.has_before_B], dim=1)
        before_NS = normalize(before_BS[batch.has_before_B], dim=1)
        logits_NN = now_NS @ before_NS.T / self.temperature
        own_N = torch.arange(len(logits_NN), device=logits_NN.device)
        return (cross_entropy(logits_NN, own_N) + cross_entropy(logits_NN.T, own_N)) / 2
