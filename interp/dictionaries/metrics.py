"""How good is a dictionary? Error, sparsity and use of its latents on rows that it was not trained on.

Rows come as a [rows, D] float16 or float32 array, perhaps a read-only memory map, and are read block by block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor


@runtime_checkable
class RowSource(Protocol):
    """Rows that are made when they are asked for; an array is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


Rows = np.ndarray | RowSource
"""[rows, D] float16 or float32. Plain, for `training.check_rows` says what is wrong better than an annotation."""

BLOCK_ROWS = 4096


@runtime_checkable
class Codec(Protocol):
    def encode(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]: ...
    def decode(self, latents_BF: Float[Tensor, "B F"]) -> Float[Tensor, "B O"]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DensitySummary:
    """Quantiles over the live latents of the share of rows on which a latent fires; all 0 if none is live."""

    p10: float
    p50: float
    p90: float
    max: float

    @classmethod
    def of(cls, density_F: Float[Tensor, " F"]) -> "DensitySummary":
        live = density_F[density_F > 0].numpy()
        if not live.size:
            return cls(p10=0.0, p50=0.0, p90=0.0, max=0.0)
        p10, p50, p90 = np.quantile(live, (0.1, 0.5, 0.9)).tolist()
        return cls(p10=p10, p50=p50, p90=p90, max=float(live.max()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    fvu: float
    """Fraction of variance unexplained: 0 exact, 1 no better than the mean."""
    l0: float
    """Mean number of latents above 0 per row."""
    dead_fraction: float
    """Share of latents above 0 on no row."""
    density_F: Float[Tensor, " F"]
    """Share of rows on which each latent is above 0."""

    @property
    def density(self) -> DensitySummary:
        return DensitySummary.of(self.density_F)

    @property
    def explained_variance(self) -> float:
        """1 - FVU: 1 exact, 0 no better than the mean."""
        return 1 - self.fvu


def fvu(x_BD: Float[Tensor, "B D"], recon_BD: Float[Tensor, "B D"]) -> float:
    """Fraction of variance unexplained: 0 exact, 1 no better than the mean of these rows.

    sum |x - x̂|² / sum |x - mean(x)|², both over all rows and coordinates.
    """
    check_finite_rows(x_BD)
    x_BD, recon_BD = x_BD.double(), recon_BD.double()
    variance = float((x_BD - x_BD.mean(0)).square().sum())
    if variance == 0:
        raise ValueError(
            f"all {x_BD.shape[0]} rows are equal, so there is no variance to explain; give more rows"
        )
    return float((x_BD - recon_BD).square().sum()) / variance


def explained_variance(x_BD: Float[Tensor, "B D"], recon_BD: Float[Tensor, "B D"]) -> float:
    """1 - FVU, the R² of the reconstruction: 1 exact, 0 no better than the mean, below 0 worse than it."""
    return 1 - fvu(x_BD, recon_BD)


def l0(latents_BF: Float[Tensor, "B F"]) -> float:
    """Mean number of latents above 0 per row."""
    return float((latents_BF > 0).sum(1).double().mean())


def check_finite_rows(x_BD: Float[Tensor, "B D"], *, first_row: int = 0) -> None:
    """ValueError that names the rows with a value that is not finite; `first_row` is the number of the first one.

    A NaN would pass every later comparison as false, and leave a figure that looks like one.
    """
    if not x_BD.isfinite().all():
        bad_B = (~x_BD.isfinite().all(1)).nonzero().reshape(-1)
        named = ", ".join(str(first_row + int(row)) for row in bad_B[:5])
        raise ValueError(
            f"{len(bad_B)} of {len(x_BD)} rows of activations have values that are not finite (row {named}"
            f"{', ...' if len(bad_B) > 5 else ''}); the policy diverges or the file is damaged: record again"
        )


def blocks(rows_ND: Rows, block_rows: int = BLOCK_ROWS) -> Iterator[Float32[Tensor, "B D"]]:
    """The rows in order as writable float32 blocks, the last one shorter."""
    for start in range(0, rows_ND.shape[0], block_rows):
        yield torch.from_numpy(np.array(rows_ND[start : start + block_rows], dtype=np.float32))


def measure(codec: Codec, rows_ND: Rows, targets_NO: Rows | None = None) -> Measurement:
    """All metrics in one pass; memory is one block, whatever the number of rows.

    `targets_NO` are what a transcoder is to reconstruct of the same rows, by default the rows themselves.
    """
    num_rows = rows_ND.shape[0]
    targets_NO = rows_ND if targets_NO is None else targets_NO
    if num_rows == 0:
        raise ValueError("0 rows to measure on; the held-out split is empty")
    fires_F: Tensor | float = 0.0
    error = square = 0.0
    # The variance is taken about a first guess of the mean and corrected at the end: about 0 it would cancel where
    # the mean is large against the spread.
    guess_O = next(blocks(targets_NO)).double().mean(0)
    shift_O = torch.zeros_like(guess_O)
    num_seen = 0
    for x_BD, y_BO in zip(blocks(rows_ND), blocks(targets_NO), strict=True):
        check_finite_rows(x_BD, first_row=num_seen)
        if targets_NO is not rows_ND:
            check_finite_rows(y_BO, first_row=num_seen)
        num_seen += len(x_BD)
        latents_BF = codec.encode(x_BD)
        fires_F = fires_F + (latents_BF > 0).sum(0)
        error += float((codec.decode(latents_BF) - y_BO).square().sum(dtype=torch.float64))
        centred_BO = y_BO.double() - guess_O
        square += float(centred_BO.square().sum())
        shift_O += centred_BO.sum(0)
    variance = square - float(shift_O.square().sum()) / num_rows
    if variance <= 0:
        raise ValueError(
            f"all {num_rows} rows are equal, so there is no variance to explain; record other episodes"
        )
    density_F = torch.as_tensor(fires_F) / num_rows
    return Measurement(
        fvu=error / variance,
        l0=float(density_F.double().sum()),
        dead_fraction=float((density_F == 0).double().mean()),
        density_F=density_F,
    )
