"""The weights that every family shares: one linear encoder, one linear decoder, and what holds them in place.

    z = W_enc (x - b_dec) + b_enc          h = the family's choice of z          x̂ = h W_dec + b_dec

Shapes: B rows · D input width · O output width · F latents. Rows of both matrices are latents. Inputs and outputs are
centred and scaled to a mean squared norm of their width.

A transcoder (Dunefsky et al. 2024, arXiv:2406.11944) is the same with outputs that are another site's activations; as
b_dec is then of another space, it is not taken off the input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DecoderNorm = Literal["unit", "free"]
EncoderPrecision = Literal["float32", "float32_fast", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Rows of one gradient step, centred and scaled."""

    x_BD: Float[Tensor, "B D"]
    y_BO: Float[Tensor, "B O"]
    """What is to be reconstructed: x itself, or for a transcoder the same rows of another site."""
    before_BD: Float[Tensor, "B D"] | None = None
    """The step before, of the same agent and episode; only for families that compare the two."""
    has_before_B: Bool[Tensor, " B"] | None = None
    """False where there is none, so that the row of `before_BD` means nothing."""


class Autoencoder:
    """Weights with `.grad`; knows nothing of how latents are chosen."""

    def __init__(
        self,
        *,
        d_in: int,
        d_sae: int,
        generator: torch.Generator,
        d_out: int | None = None,
        more: Mapping[str, Tensor] | None = None,
        tied: bool = True,
        decoder_norm: DecoderNorm = "unit",
        encoder_precision: EncoderPrecision = "float32",
        blocks: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Decoder rows at random with norm 1, biases 0.

        Args:
            d_out: Width of the output where it is another site's: a transcoder.
            more: Further weights of the family, each [F].
            tied: W_enc starts as W_dec (Gao et al. 2024, arXiv:2406.04093, appendix A.1), else as other random rows of
                norm 1. A transcoder's always does the latter.
            decoder_norm: "unit" keeps rows of W_dec at norm 1, so that a latent is in units of what it adds. "free"
                leaves them alone, and families count a latent times its norm.
            encoder_precision: "bfloat16" rounds inputs and weights of the encoder's product. Of "float32_fast" the
                trainer takes care, see `interp.dictionaries.precision`.
            blocks: Widths of the sources side by side in a row, whose norms a free decoder's latents are counted by one
                by one: a crosscoder.
        """
        W_dec_FO = _unit_rows(d_sae, d_out or d_in, generator)
        is_tied = tied and d_out is None
        W_enc_FD = W_dec_FO.clone() if is_tied else _unit_rows(d_sae, d_in, generator)
        self.weights: dict[str, Tensor] = {
            "W_enc": W_enc_FD,
            "b_enc": torch.zeros(d_sae),
            "W_dec": W_dec_FO,
            "b_dec": torch.zeros(d_out or d_in),
            **(more or {}),
        }
        for name, weight in self.weights.items():
            weight = self.weights[name] = weight.to(device).requires_grad_()
            weight.grad = torch.zeros_like(weight)
        self.is_transcoder = d_out is not None
        self.decoder_norm: DecoderNorm = decoder_norm
        self.encoder_precision: EncoderPrecision = encoder_precision
        self._blocks = list(blocks) if blocks else [d_out or d_in]

    @property
    def d_sae(self) -> int:
        return self.weights["W_enc"].shape[0]

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @property
    def W_enc(self) -> Float[Tensor, "F D"]:
        return self.weights["W_enc"]

    @property
    def W_dec(self) -> Float[Tensor, "F O"]:
        return self.weights["W_dec"]

    @property
    def b_dec(self) -> Float[Tensor, " O"]:
        return self.weights["b_dec"]

    @property
    def bias_F(self) -> Float[Tensor, " F"]:
        """b_enc - W_enc b_dec: taking b_dec off the input instead would cost a sixth matrix product backwards."""
        if self.is_transcoder:
            return self.weights["b_enc"]
        return self.weights["b_enc"] - self.W_enc @ self.b_dec

    @property
    def norm_F(self) -> Float[Tensor, " F"] | None:
        """Norms of decoder rows, which a free decoder's latents are counted by; None if they are all 1."""
        return None if self.decoder_norm == "unit" else self.added_norm_F.detach()

    @property
    def added_norm_F(self) -> Float[Tensor, " F"]:
        """Norm of each decoder row, summed over sources where there are several; with its gradient."""
        return torch.stack([part.norm(dim=1) for part in self.W_dec.split(self._blocks, 1)]).sum(0)

    def grad(self, name: str) -> Tensor:
        grad = self.weights[name].grad
        assert grad is not None
        return grad

    def preactivations(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """z, with its gradient."""
        if self.encoder_precision != "bfloat16":
            return torch.addmm(self.bias_F, x_BD, self.W_enc.T)
        return (x_BD.bfloat16() @ self.W_enc.T.bfloat16()).float() + self.bias_F

    def reconstruct(self, h_BF: Float[Tensor, "B F"]) -> Float[Tensor, "B O"]:
        """x̂, with its gradient."""
        return torch.addmm(self.b_dec, h_BF, self.W_dec)

    def add_bias_gradient(self, slope_F: Float[Tensor, " F"]) -> None:
        """What `bias_F` passes on to W_enc, which holds sum_b slope x so far, and to b_dec. `slope_F` is b_enc's."""
        if not self.is_transcoder:
            self.grad("W_enc").addr_(slope_F, self.b_dec.detach(), alpha=-1)
            self.grad("b_dec").sub_(slope_F @ self.W_enc.detach())


def _unit_rows(num_rows: int, width: int, generator: torch.Generator) -> Float[Tensor, "F O"]:
    rows = torch.randn(num_rows, width, generator=generator)
    return rows.div_(rows.norm(dim=1, keepdim=True))
