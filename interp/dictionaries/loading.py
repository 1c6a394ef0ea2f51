"""Rows of a batch, centred and scaled, on the device that computes: `(x - mean) / scale` of some rows of many.

For the processor rows are gathered from where they lie, perhaps a memory map, few at a time so that they stay in the
cache meanwhile. For a GPU all rows are moved there once if there is room for them, in the precision in which they were
recorded, and gathered there; a copy of every batch over the bus would take longer than its gradient. The result is the
same to the bit either way: one subtraction and one division of float32.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from interp.dictionaries.metrics import Rows

_CHUNK_ROWS = 512
_READ_ROWS = 8192
ROOM = 0.5
"""Share of a GPU's free memory that rows may take; the rest is for weights, moments and latents."""


class Normalisation(NamedTuple):
    """What is subtracted from rows and what they are then divided by."""

    mean_D: Float32[Tensor, " D"]
    """Mean of each coordinate."""
    scale: float
    """Root mean square of a centred coordinate over all rows and coordinates."""


class Loader:
    """Batches of one array of rows."""

    def __init__(
        self,
        rows_ND: Rows,
        normal: Normalisation,
        device: torch.device,
        *,
        resident: bool | None = None,
        like: "Loader | None" = None,
    ) -> None:
        """`resident` moves all rows to the device; by default on a GPU with room for them.

        `like` is a loader of the same rows, whose copy on the device serves this one too.
        """
        self._rows_ND = rows_ND
        self._normal = normal
        self._device = device
        if like is not None:
            self._resident_ND = like._resident_ND
        elif resident or (resident is None and _has_room(rows_ND, device)):
            self._resident_ND = _moved(rows_ND, device)
        else:
            self._resident_ND = None
        self._mean_D = normal.mean_D.to(device)
        self._x_BD = torch.empty(0)

    @property
    def is_resident(self) -> bool:
        """Whether all rows are on the device."""
        return self._resident_ND is not None

    def load(self, rows_B: Int64[np.ndarray, " B"]) -> Float32[Tensor, "B D"]:
        """Valid until the next call: the buffer is used again, since a fresh one costs page faults."""
        if self._resident_ND is not None:
            index_B = torch.from_numpy(rows_B).to(self._device)
            return (self._resident_ND[index_B].float() - self._mean_D).div_(self._normal.scale)
        if len(self._x_BD) != len(rows_B):
            self._x_BD = torch.empty(len(rows_B), self._rows_ND.shape[1])
        for first in range(0, len(rows_B), _CHUNK_ROWS):
            rows = slice(first, first + _CHUNK_ROWS)
            gathered = torch.from_numpy(self._rows_ND[rows_B[rows]])
            torch.sub(gathered, self._normal.mean_D, out=self._x_BD[rows]).div_(self._normal.scale)
        return self._x_BD.to(self._device)


def num_bytes(rows_ND: Rows) -> int:
    """Of all rows, in the precision in which they come."""
    return rows_ND.shape[0] * rows_ND.shape[1] * rows_ND.dtype.itemsize


def _has_room(rows_ND: Rows, device: torch.device) -> bool:
    return device.type == "cuda" and num_bytes(rows_ND) <= room(device)


def room(device: torch.device) -> int:
    """Bytes of a GPU that rows may take, within this process's share of it."""
    free, _ = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    total = torch.cuda.get_device_properties(device).total_memory
    return round(ROOM * min(free, share * total - torch.cuda.memory_allocated(device)))


def digest(rows_ND: Rows, name: str) -> str:
    """SHA-256 of all values; ValueError if one is not finite, which training would only notice as divergence."""
    sha256 = hashlib.sha256(f"{rows_ND.dtype.str} {rows_ND.shape}".encode())
    for start in range(0, rows_ND.shape[0], _READ_ROWS):
        block = np.ascontiguousarray(rows_ND[start : start + _READ_ROWS])
        if not _is_finite(block):
            row = start + int(np.flatnonzero(~np.isfinite(block).all(1))[0])
            raise ValueError(
                f"{name} rows hold non-finite values, the first in row {row} of {rows_ND.shape[0]}; record them again, "
                "as float32 if float16 overflowed"
            )
        sha256.update(block.data)
    return sha256.hexdigest()


def _is_finite(block: np.ndarray) -> bool:
    if (
        block.dtype == np.float16
    ):  # by the exponent's bits, for numpy converts each value: 8 times slower
        return not ((block.view(np.uint16) & 0x7C00) == 0x7C00).any()
    return bool(np.isfinite(block).all())


def _moved(rows_ND: Rows, device: torch.device) -> Tensor:
    first = np.asarray(rows_ND[:1])
    moved_ND = torch.empty(rows_ND.shape, dtype=torch.from_numpy(first).dtype, device=device)
    for start in range(0, rows_ND.shape[0], _READ_ROWS):
        block = np.array(rows_ND[start : start + _READ_ROWS])
        moved_ND[start : start + len(block)] = torch.from_numpy(block).to(device)
    return moved_ND
