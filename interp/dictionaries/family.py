"""What is a family of sparse autoencoders? A rule for which latents are active, and the loss it is trained by."""

from dataclasses import fields
from math import isfinite
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.dictionaries.autoencoder import Autoencoder, Batch


class Loss(NamedTuple):
    """Of one batch."""

    value: Float[Tensor, ""]
    """Mean over rows, differentiable."""
    h_BF: Float[Tensor, "B F"]
    """Latents; 0 where inactive."""
    error_BO: Float[Tensor, "B O"]
    """x̂ - y."""
    threshold: float
    """What a z had to exceed to be active; on average, where rows differ."""


class Frozen(NamedTuple):
    """Weights for inference: h = z where z > threshold, else 0, with z = W_enc x + bias."""

    W_enc_FD: Float[Tensor, "F D"]
    bias_F: Float[Tensor, " F"]
    W_dec_FO: Float[Tensor, "F O"]
    threshold: Float[Tensor, "*F"]
    """At least 0; one for all latents, or one each."""
    k: int | None = None
    """If given, only the k largest of a row are active."""


@runtime_checkable
class Family(Protocol):
    """Settings of one family, as a frozen dataclass."""

    name: ClassVar[str]

    def check(self, d_sae: int) -> None:
        """ValueError if these settings cannot be those of `d_sae` latents."""
        ...

    def more_weights(self, d_sae: int) -> dict[str, Tensor]:
        """Weights that the family has besides encoder and decoder, each [F], as they are at the start."""
        ...

    def loss(self, sae: Autoencoder, batch: Batch, share: float) -> Loss:
        """The formula at the head of the family's file; `share` of the budget, 0 to 1, is spent."""
        ...

    def freeze(self, sae: Autoencoder, threshold: float) -> Frozen:
        """For inference; `threshold` is the running average of `Loss.threshold`."""
        ...


class Plain:
    """What most families have in common: no further weights, and one threshold."""

    def check(self, d_sae: int) -> None:
        """Any number of latents will do."""

    def more_weights(self, d_sae: int) -> dict[str, Tensor]:
        return {}

    def freeze(self, sae: Autoencoder, threshold: float) -> Frozen:
        return frozen(sae, torch.tensor(threshold))


def frozen(sae: Autoencoder, threshold: Tensor, k: int | None = None) -> Frozen:
    """Rows of W_dec come out with norm 1: what is taken off a free decoder's row is put into its latent."""
    W_enc_FD, bias_F, W_dec_FO = (
        weight.detach().clone() for weight in (sae.W_enc, sae.bias_F, sae.W_dec)
    )
    if (norm_F := sae.norm_F) is not None:
        norm_F = norm_F.clamp_min(1e-12)
        W_enc_FD.mul_(norm_F[:, None])
        bias_F.mul_(norm_F)
        W_dec_FO.div_(norm_F[:, None])
    return Frozen(W_enc_FD, bias_F, W_dec_FO, threshold, k)


def squared_error(error_BO: Float[Tensor, "B O"]) -> Float[Tensor, ""]:
    """|x̂ - y|², mean over rows."""
    return error_BO.square().sum() / error_BO.shape[0]


def counted(h_BF: Float[Tensor, "B F"], norm_F: Tensor | None) -> Float[Tensor, "B F"]:
    """Latents in units of what they add to the reconstruction."""
    return h_BF if norm_F is None else h_BF * norm_F


def rising(share: float, warm_up: float) -> float:
    """From 0 to 1 while `warm_up` of the budget is spent; 1 from then on."""
    return min(1.0, share / warm_up) if warm_up else 1.0


def check_share(name: str, value: float) -> None:
    """ValueError unless it is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, wanted a share from 0 to 1")


def check_finite(family: Family) -> None:
    """ValueError if one of the settings is infinite: no comparison with a bound above it finds that."""
    for field in fields(family):  # pyright: ignore[reportArgumentType]
        value = getattr(family, field.name)
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"family.{field.name} is {value}, wanted a finite number")
