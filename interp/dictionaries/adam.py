"""Adam for the weights of an autoencoder, with what keeps decoder rows at norm 1 in the same pass over memory.

    g = gradient, scaled down to `max_norm` over all weights     (of W_dec: less its part along the row)
    m = β1 m + (1 - β1) g        v = β2 v + (1 - β2) g²        w -= lr m̂ / (sqrt(v̂) + ε)     (W_dec: then norm 1 again)

Source: Kingma and Ba 2015 (arXiv:1412.6980); the projection is of Bricken et al. 2023. torch's own takes a pass each
for the projection, the norm, the scaling, the step and the rescaling.
"""

from math import sqrt

import numpy as np
import torch
from torch import Tensor

from interp.dictionaries import kernels
from interp.dictionaries.autoencoder import Autoencoder

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Moments of every weight, by name."""

    def __init__(self, sae: Autoencoder) -> None:
        self._sae = sae
        self.step_number = 0
        self.mean = {name: torch.zeros_like(weight) for name, weight in sae.weights.items()}
        self.square = {name: torch.zeros_like(weight) for name, weight in sae.weights.items()}

    @torch.no_grad()
    def step(self, lr: float, *, max_norm: float) -> None:
        """Moves all weights by their `.grad`, which may be overwritten."""
        self.step_number += 1
        unbias_mean = 1 - _BETA1**self.step_number
        unbias_square = sqrt(1 - _BETA2**self.step_number)
        norm = sqrt(sum(self._squared_norm(name) for name in self._sae.weights))
        shrink = min(1.0, max_norm / norm) if norm > 0 else 1.0
        if not np.isfinite(norm):
            raise FloatingPointError(
                f"the gradient's norm is {norm} at step {self.step_number}: training diverged; lower lr"
            )
        for name in self._sae.weights:
            self._move(name, shrink, lr / unbias_mean, unbias_square)

    def _is_unit(self, name: str) -> bool:
        return name == "W_dec" and self._sae.decoder_norm == "unit"

    def _squared_norm(self, name: str) -> float:
        gradient, weight = _rows(self._sae.grad(name)), _rows(self._sae.weights[name])
        if weight.is_cuda:
            square = float(gradient.square().sum())
            if self._is_unit(name):
                square -= float((gradient * weight).sum(1).square().sum())
            return square
        out = np.empty(len(weight), np.float32)
        arguments = (gradient.numpy(), weight.numpy(), self._is_unit(name), out)
        kernels.spread(kernels.squared_norms, len(weight), arguments)
        return float(out.sum(dtype=np.float64))

    def _move(self, name: str, shrink: float, rate: float, unbias: float) -> None:
        weight, gradient, mean, square = (
            _rows(tensor)
            for tensor in (
                self._sae.weights[name],
                self._sae.grad(name),
                self.mean[name],
                self.square[name],
            )
        )
        if not weight.is_cuda:
            arrays = (weight.numpy(), gradient.numpy(), mean.numpy(), square.numpy())
            numbers = (shrink, rate, _BETA1, _BETA2, unbias, _EPSILON)
            arguments = (*arrays, self._is_unit(name), *map(np.float32, numbers))
            kernels.spread(kernels.adam, len(weight), arguments)
            return
        if self._is_unit(name):
            gradient.sub_((gradient * weight).sum(1, keepdim=True) * weight)
        gradient.mul_(shrink)
        mean.lerp_(gradient, 1 - _BETA1)
        square.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        weight.addcdiv_(mean, (square.sqrt() / unbias).add_(_EPSILON), value=-rate)
        if self._is_unit(name):
            weight.div_(weight.norm(dim=1, keepdim=True))


def _rows(tensor: Tensor) -> Tensor:
    """As a matrix: a bias is one row."""
    tensor = tensor.detach()
    return tensor if tensor.ndim == 2 else tensor[None]
