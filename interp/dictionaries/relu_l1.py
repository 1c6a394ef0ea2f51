"""ReLU with an L1 penalty: the first family of sparse autoencoders.

    h = relu(z)        loss = |x - x̂|² + l1 sum_F h_F |W_dec_F|

Source: Bricken et al. 2023, "Towards Monosemanticity" (transformer-circuits.pub); the norm in the penalty and the
linear rise of l1 from 0 are from their April 2024 update. Decoder rows are kept at norm 1 here, with the gradient
projected, so the norm is 1 and the penalty is on h alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReluL1:
    """ReLU latents under an L1 penalty (Bricken 2023)."""

    name: ClassVar[str] = "relu_l1"

    l1: float = 2.0
    """Penalty per unit of latent, for rows scaled to a mean squared norm of d_in; larger is sparser (try 0.3 to 4)."""
    l1_warm_up: float = 0.05
    """Share of the budget over which l1 rises linearly from 0."""

    def __post_init__(self) -> None:
        if not self.l1 >= 0:
            raise ValueError(f"l1 is {self.l1}, wanted at least 0")
        if not 0 <= self.l1_warm_up <= 1:
            raise ValueError(f"l1_warm_up is {self.l1_warm_up}, wanted a share from 0 to 1")

    def l1_at(self, share: float) -> float:
        """Penalty when `share` of the budget, 0 to 1, is spent."""
        return self.l1 * min(1.0, share / self.l1_warm_up) if self.l1_warm_up else self.l1

    def threshold(self, z_BF: Float[Tensor, "B F"], share: float) -> float:
        """A latent is active if it is above this."""
        return 0.0
