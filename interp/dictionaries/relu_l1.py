"""ReLU with an L1 penalty: the first family of sparse autoencoders.

    h = relu(z)        loss = |y - x̂|² + l1 sum_F h_F |W_dec_F|

Source: Bricken et al. 2023, "Towards Monosemanticity" (transformer-circuits.pub); the norm in the penalty and the
linear rise of l1 from 0 are from their April 2024 update. With decoder rows of norm 1 the penalty is on h alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from interp.dictionaries.autoencoder import Autoencoder, Batch
from interp.dictionaries.family import (
    Loss,
    Plain,
    check_share,
    counted,
    rising,
    squared_error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReluL1(Plain):
    """ReLU latents under an L1 penalty (Bricken 2023)."""

    name: ClassVar[str] = "relu_l1"

    l1: float = 2.0
    """Penalty per unit of latent, for rows scaled to a mean squared norm of d_in; larger is sparser (try 0.3 to 4)."""
    l1_warm_up: float = 0.05
    """Share of the budget over which l1 rises linearly from 0."""

    def __post_init__(self) -> None:
        if not self.l1 >= 0:
            raise ValueError(f"l1 is {self.l1}, wanted at least 0")
        check_share("l1_warm_up", self.l1_warm_up)

    def l1_at(self, share: float) -> float:
        """Penalty when `share` of the budget, 0 to 1, is spent."""
        return self.l1 * rising(share, self.l1_warm_up)

    def loss(self, sae: Autoencoder, batch: Batch, share: float) -> Loss:
        h_BF = sae.preactivations(batch.x_BD).relu()
        error_BO = sae.reconstruct(h_BF) - batch.y_BO
        norm_F = None if sae.decoder_norm == "unit" else sae.added_norm_F
        penalty = self.l1_at(share) * counted(h_BF, norm_F).sum() / h_BF.shape[0]
        return Loss(squared_error(error_BO) + penalty, h_BF, error_BO, 0.0)
