"""The gradient of a family's loss, in whichever of three ways is fastest. They agree; a test holds them to it.

Differentiated    autograd of `Family.loss`: every family, any device
Dense             by hand, all matrix products, every buffer reused: a step of 2048 rows, D 128, F 512 takes 10.1 ms
                  against 13.4 by autograd (ReLU; 11.4 against 12.6 for BatchTopK; one thread)
Sparse            by hand; one matrix product, then loops over active latents alone
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.dictionaries import kernels
from interp.dictionaries.autoencoder import Autoencoder, Batch
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.family import Family, counted
from interp.dictionaries.matryoshka import Matryoshka
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.topk import Counting, TopK, batch_boundary, row_boundaries

CROSSOVER = 1 / 12
"""Share of latents active, on average over a run, from which matrix products are faster than loops."""
_CHUNK_ROWS = 512
"""Rows whose preactivations are made at once: so few that they are still in the cache when they are looked through."""
_SPARE = 1.25
"""Candidates wanted for each latent that will be active."""


class Step(NamedTuple):
    loss: float
    """Mean over rows."""
    threshold: float
    """What a z had to exceed, on average over rows."""
    fired_F: Bool[Tensor, " F"]
    error_BO: Float[Tensor, "B O"]
    """x̂ - y; valid until the next step."""


@runtime_checkable
class Gradient(Protocol):
    """Sets every `.grad` of an autoencoder."""

    def __call__(self, batch: Batch, share: float) -> Step: ...


def gradient_of(family: Family, sae: Autoencoder) -> Gradient:
    """The fastest way for this family, these widths and this device."""
    if sae.b_dec.is_cuda:
        return Differentiated(family, sae)
    match family:
        case BatchTopK() | TopK() | Matryoshka():
            mean_k = family.k * (1 + family.anneal * (family.wide - 1) / 2)
            is_nested = len(family.prefixes(sae.d_sae)) > 1
            if not is_nested and mean_k / sae.d_sae > CROSSOVER:
                return Dense(family, sae)
            return Sparse(family, sae)
        case ReluL1() if sae.num_blocks == 1:
            return Dense(family, sae)
        case _:
            return Differentiated(family, sae)


class Differentiated:
    """By autograd."""

    def __init__(self, family: Family, sae: Autoencoder) -> None:
        self._family = family
        self._sae = sae

    def __call__(self, batch: Batch, share: float) -> Step:
        for name in self._sae.weights:
            self._sae.grad(name).zero_()
        with torch.enable_grad():
            loss = self._family.loss(self._sae, batch, share)
            loss.value.backward()
        fired_F = (loss.h_BF.detach() > 0).any(0)
        return Step(float(loss.value.detach()), loss.threshold, fired_F, loss.error_BO.detach())


class Dense:
    """By hand, for families whose loss is the squared error and perhaps an L1 penalty."""

    def __init__(self, family: ReluL1 | Counting, sae: Autoencoder) -> None:
        self._family = family
        self._sae = sae
        # reused at every step: fresh ones cost page faults
        self._h_BF = torch.empty(0)
        self._error_BO = torch.empty(0)
        self._slope_AF = torch.empty(0)

    @torch.no_grad()
    def __call__(self, batch: Batch, share: float) -> Step:
        sae, num_rows = self._sae, batch.x_BD.shape[0]
        self._allocate(num_rows)
        norm_F = sae.norm_F
        W_enc_FD = sae.W_enc.bfloat16() if sae.encoder_precision == "bfloat16" else sae.W_enc
        _product(batch.x_BD, W_enc_FD, sae.bias_F, out=self._h_BF)
        threshold = self._activate(norm_F, share)
        l1 = self._family.l1_at(share) if isinstance(self._family, ReluL1) else 0.0

        for name in sae.weights:
            sae.grad(name).zero_()
        squares = 0.0
        for first in range(0, num_rows, _CHUNK_ROWS):  # a chunk stays in the cache
            rows = slice(first, min(first + _CHUNK_ROWS, num_rows))
            x_AD, h_AF, error_AO = batch.x_BD[rows], self._h_BF[rows], self._error_BO[rows]
            slope_AF = self._slope_AF[: len(x_AD)]
            torch.addmm(sae.b_dec, h_AF, sae.W_dec, out=error_AO).sub_(batch.y_BO[rows])
            squares += float(torch.linalg.vector_norm(error_AO)) ** 2
            sae.grad("W_dec").addmm_(h_AF.T, error_AO, alpha=2 / num_rows)
            sae.grad("b_dec").add_(error_AO.sum(0), alpha=2 / num_rows)
            torch.mm(error_AO, sae.W_dec.T, out=slope_AF).mul_(2 / num_rows)
            if l1:
                slope_AF.add_(l1 / num_rows if norm_F is None else norm_F * (l1 / num_rows))
            torch.ops.aten.threshold_backward.grad_input(slope_AF, h_AF, 0.0, grad_input=slope_AF)
            sae.grad("W_enc").addmm_(slope_AF.T, x_AD)
            sae.grad("b_enc").add_(slope_AF.sum(0))
        loss = squares / num_rows
        if l1:
            loss += l1 * self._penalise(norm_F, l1) / num_rows
        sae.add_bias_gradient(sae.grad("b_enc"))
        return Step(loss, threshold, self._h_BF.amax(0) > 0, self._error_BO)

    def _activate(self, norm_F: Float[Tensor, " F"] | None, share: float) -> float:
        """Turns preactivations into latents, in place; returns the threshold."""
        z_BF = self._h_BF
        if isinstance(self._family, ReluL1):
            z_BF.relu_()
            return 0.0
        k, rank_BF = self._family.k_at(share), counted(z_BF, norm_F)
        if self._family.by_row:
            boundary_B = row_boundaries(rank_BF, k)
            z_BF.mul_(rank_BF > boundary_B)
            return float(boundary_B.mean())
        boundary = float(batch_boundary(rank_BF, k))
        if norm_F is None:
            torch.threshold_(z_BF, boundary, 0.0)
        else:
            z_BF.mul_(rank_BF > boundary)
        return boundary

    def _penalise(self, norm_F: Float[Tensor, " F"] | None, l1: float) -> float:
        """The sum that l1 is a penalty on; where norms are free, adds its gradient for them."""
        h_F = self._h_BF.sum(0)
        if norm_F is None:
            return float(h_F.sum())
        scaled_F = h_F / norm_F * (l1 / len(self._h_BF))
        self._sae.grad("W_dec").addcmul_(scaled_F[:, None], self._sae.W_dec)
        return float(h_F @ norm_F)

    def _allocate(self, num_rows: int) -> None:
        if len(self._h_BF) != num_rows:
            self._h_BF = torch.empty(num_rows, self._sae.d_sae)
            self._error_BO = torch.empty(num_rows, self._sae.b_dec.shape[0])
            self._slope_AF = torch.empty(min(_CHUNK_ROWS, num_rows), self._sae.d_sae)


class Sparse:
    """By hand, for families that count active latents: after the encoder, work goes by the number of active latents.

    Which latents are candidates is found in one pass over z as it is made, above a value that was a bit below the last
    boundary; the boundary is then exact among the candidates. It never depends on that value: too high a one is found
    out, and the pass repeated.
    """

    def __init__(self, family: Counting, sae: Autoencoder) -> None:
        self._family = family
        self._sae = sae
        self._low: float | None = None
        self._rows = 0

    @torch.no_grad()
    def __call__(self, batch: Batch, share: float) -> Step:
        sae, num_rows = self._sae, batch.x_BD.shape[0]
        k = self._family.k_at(share)
        self._allocate(num_rows, k)
        threshold = self._choose(batch.x_BD, k)

        x_BD, y_BO, b_dec_O = (_numpy(part) for part in (batch.x_BD, batch.y_BO, sae.b_dec))
        weight_G = np.full(len(self._end_G), 1 / (num_rows * len(self._end_G)), np.float32)
        read = (y_BO, _numpy(sae.W_dec), b_dec_O, self._end_G, weight_G)
        active = (self._latent_BC, self._value_BC, self._count_B)
        written = (self._error_BGO, self._slope_BC, self._loss_B)
        kernels.spread(kernels.decode, num_rows, (*read, *active, *written))

        start_F, *entries = self._by_latent()
        written = tuple(_numpy(sae.grad(name)) for name in ("W_enc", "b_enc", "W_dec"))
        read = (x_BD, self._error_BGO, self._group_F, start_F, *entries)
        kernels.spread(kernels.gradients, sae.d_sae, (*read, *written))
        error_BGO = torch.from_numpy(self._error_BGO)
        torch.sum(error_BGO[:, 0], 0, out=sae.grad("b_dec"))
        sae.add_bias_gradient(sae.grad("b_enc"))
        return Step(
            loss=float(self._loss_B.sum(dtype=np.float64)),
            threshold=threshold,
            fired_F=torch.from_numpy(np.diff(start_F) > 0),
            error_BO=error_BGO[:, -1] / (2 * float(weight_G[-1])),
        )

    def _allocate(self, num_rows: int, k: int) -> None:
        if self._rows == num_rows:
            return
        sae = self._sae
        self._rows = num_rows
        self._end_G = np.array(self._family.prefixes(sae.d_sae), dtype=np.int64)
        self._group_F = np.searchsorted(self._end_G, np.arange(sae.d_sae), side="right")
        chunk = min(_CHUNK_ROWS, num_rows)
        self._z_AF = torch.empty(chunk, sae.d_sae)
        self._count_B = np.empty(num_rows, np.int64)
        self._loss_B = np.empty(num_rows, np.float32)
        self._boundary_B = np.empty(num_rows, np.float32)
        self._error_BGO = np.empty((num_rows, len(self._end_G), sae.b_dec.shape[0]), np.float32)
        self._latent_BC = np.empty((num_rows, 0), np.int32)
        self._make_room(min(sae.d_sae, 4 * k))

    def _make_room(self, room: int) -> None:
        """For so many candidates a row; those found so far are kept."""
        old, shape = self._latent_BC.shape[1], (self._rows, room)
        latent_BC, value_BC = np.empty(shape, np.int32), np.empty(shape, np.float32)
        if old:
            latent_BC[:, :old] = self._latent_BC
            value_BC[:, :old] = self._value_BC
        self._latent_BC, self._value_BC = latent_BC, value_BC
        self._slope_BC = np.empty(shape, np.float32)

    def _choose(self, x_BD: Float[Tensor, "B D"], k: int) -> float:
        """Leaves the active latents of each row; returns the threshold."""
        norm_F = self._sae.norm_F
        threshold = self._choose_by_row(x_BD, k) if self._family.by_row else None
        while threshold is None:
            threshold = self._choose_by_batch(x_BD, k)
        if norm_F is not None:  # chosen by what they add, which is not their value
            kernels.spread(
                kernels.divide,
                self._rows,
                (self._latent_BC, self._value_BC, self._count_B, _numpy(norm_F)),
            )
        return threshold

    def _choose_by_row(self, x_BD: Float[Tensor, "B D"], k: int) -> float:
        self._collect(x_BD, k, at_least=k + 1)
        kernels.spread(
            kernels.keep_largest,
            self._rows,
            (self._latent_BC, self._value_BC, self._count_B, k, self._boundary_B),
        )
        # below nearly all boundaries; the rows for which it is not are looked through once more
        few = self._rows // 20
        self._low = max(0.0, float(np.partition(self._boundary_B, few)[few]))
        return float(self._boundary_B.mean(dtype=np.float64))

    def _choose_by_batch(self, x_BD: Float[Tensor, "B D"], k: int) -> float | None:
        """None if there were too few candidates to tell."""
        self._collect(x_BD, k, at_least=0)
        assert self._low is not None
        wanted, found = k * self._rows, int(self._count_B.sum())
        if found <= wanted:
            if self._low > 0:
                self._low = 0.0
                return None
            return 0.0
        value_N = np.empty(found, np.float32)
        kernels.values(self._value_BC, self._count_B, value_N)
        spare = min(found, round(_SPARE * wanted))
        places = (found - wanted - 1, found - spare)
        ordered_N = np.partition(value_N, places)
        boundary, self._low = float(ordered_N[places[0]]), float(ordered_N[places[1]])
        if spare == found:
            self._low *= 0.9
        kernels.spread(
            kernels.keep_above,
            self._rows,
            (self._latent_BC, self._value_BC, self._count_B, np.float32(boundary)),
        )
        return boundary

    def _collect(self, x_BD: Float[Tensor, "B D"], k: int, *, at_least: int) -> None:
        """Candidates of all rows, chunk by chunk."""
        sae, chunk = self._sae, self._z_AF.shape[0]
        bias_F, W_enc_FD = sae.bias_F, sae.W_enc
        if (norm_F := sae.norm_F) is not None:
            bias_F, W_enc_FD = bias_F * norm_F, W_enc_FD * norm_F[:, None]
        if sae.encoder_precision == "bfloat16":
            W_enc_FD = W_enc_FD.bfloat16()
        for first in range(0, self._rows, chunk):
            rows = slice(first, min(first + chunk, self._rows))
            z_AF = self._z_AF[: rows.stop - first]
            _product(x_BD[rows], W_enc_FD, bias_F, out=z_AF)
            if self._low is None:
                self._low = max(0.0, float(batch_boundary(z_AF, min(sae.d_sae, round(_SPARE * k)))))
            while True:
                counts = self._count_B[rows]
                found = (self._latent_BC[rows], self._value_BC[rows], counts)
                read = (z_AF.numpy(), np.float32(self._low), at_least)
                kernels.spread(kernels.collect, len(counts), (*read, *found))
                if (room := int(counts.max())) <= self._latent_BC.shape[1]:
                    break
                self._make_room(min(sae.d_sae, room + room // 4))

    def _by_latent(self) -> Sequence[np.ndarray]:
        """Where the entries of each latent start, and the entries."""
        found = int(self._count_B.sum())
        start_F = np.empty(self._sae.d_sae + 1, np.int64)
        row_N, value_N, slope_N = (np.empty(found, kind) for kind in (np.int32, "f4", "f4"))
        active = (self._latent_BC, self._value_BC, self._slope_BC, self._count_B)
        kernels.by_latent(*active, start_F, row_N, value_N, slope_N)
        return start_F, row_N, value_N, slope_N


def _product(x_BD: Tensor, W_FD: Tensor, bias_F: Tensor, out: Tensor) -> None:
    """X Wᵀ + bias into `out`, in the precision of W."""
    if W_FD.dtype == torch.float32:
        torch.addmm(bias_F, x_BD, W_FD.T, out=out)
    else:
        out.copy_(x_BD.to(W_FD.dtype) @ W_FD.T).add_(bias_F)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()
