"""Tensors of a torch file: what the pickle says of each, checked against the bytes that are there before one is made.

A tensor in such a file is a view (offset, shape, strides) of a storage. A stride of 0 lets 4 bytes pass for 64 GiB, and
torch itself accepts that; so a view is a `TensorClaim` until all claims of the file are known.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.policies.formats.limits import (
    MAX_COPIES,
    MAX_DIMENSIONS,
    MAX_FILE_BYTES,
    MAX_TENSORS,
)
from interp.policies.formats.names import checked_name
from interp.policies.formats.pickle_machine import Name, Rebuild

_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_LARGEST_NUMBER = 2**62
"""Of an offset, a length or a stride, so that torch's own arithmetic does not overflow."""


@dataclass(frozen=True, slots=True, eq=False)
class StorageClaim:
    """So many numbers under this key, the file says."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class TensorClaim:
    storage: StorageClaim
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize


@runtime_checkable
class Storages(Protocol):
    """The bytes of the storages, by key."""

    def size(self, key: str) -> int: ...

    def read(self, key: str) -> bytes: ...


def claimed_storage(persistent_id: tuple[Any, ...]) -> StorageClaim:
    """What torch writes in place of a storage: ("storage", class, key, device, numel[, view])."""
    match persistent_id:
        case (
            "storage",
            Name(module="torch" | "torch.storage", name=kind),
            str() as key,
            _,
            int() as numel,
            *view,
        ) if view in ([], [None]):
            pass
        case _:
            raise ValueError("refers to something outside the file that is no storage of torch")
    if kind not in _DTYPES:
        raise ValueError(f"a storage of kind {kind!r:.40}, wanted one of {sorted(_DTYPES)}")
    if not 0 <= numel <= MAX_FILE_BYTES:
        raise ValueError(f"a storage of {numel} numbers, wanted at most {MAX_FILE_BYTES}")
    return StorageClaim(checked_name(key, kind="storage key"), _DTYPES[kind], numel)


def _claimed_tensor(args: tuple[Any, ...]) -> TensorClaim:
    match args:
        case (StorageClaim() as storage, int() as offset, tuple() as shape, tuple() as strides, *_):
            pass
        case _:
            raise ValueError("arguments other than a storage, an offset, a shape and strides")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(
            f"{len(shape)} dimensions and {len(strides)} strides, wanted as many, at most {MAX_DIMENSIONS}"
        )
    if not all(
        isinstance(value, int) and 0 <= value <= _LARGEST_NUMBER
        for value in (offset, *shape, *strides)
    ):
        # Not shown: a nested value may be far larger in print than in the file.
        raise ValueError(
            f"offset, shape or strides other than whole numbers from 0 to {_LARGEST_NUMBER}"
        )
    return TensorClaim(storage, offset, shape, strides)


def _claimed_parameter(args: tuple[Any, ...]) -> TensorClaim:
    match args:
        case (TensorClaim() as tensor, *_):
            return tensor
    raise ValueError("arguments other than a tensor")


def _claimed_subclass(args: tuple[Any, ...]) -> TensorClaim:
    """`_rebuild_from_type_v2(function, class, arguments, state)`: the tensor without its class."""
    match args:
        case (Name() as function, Name(), tuple() as arguments, _) if str(function) in TORCH_CALLS:
            return TORCH_CALLS[str(function)](arguments)
    raise ValueError("arguments other than a known function, a class, its arguments and a state")


def _size(args: tuple[Any, ...]) -> tuple[Any, ...]:
    match args:
        case ((tuple() | list()) as shape,) if len(shape) <= MAX_DIMENSIONS:
            return tuple(shape)
    raise ValueError(f"arguments other than at most {MAX_DIMENSIONS} numbers")


TORCH_CALLS: dict[str, Rebuild] = {
    "torch.Size": _size,
    "torch._tensor._rebuild_from_type_v2": _claimed_subclass,
    "torch._utils._rebuild_parameter": _claimed_parameter,
    "torch._utils._rebuild_parameter_with_state": _claimed_parameter,
    "torch._utils._rebuild_tensor": _claimed_tensor,
    "torch._utils._rebuild_tensor_v2": _claimed_tensor,
}
"""The functions of torch that describe a tensor, and what their arguments amount to."""


def materialise(claims: Mapping[str, TensorClaim], storages: Storages) -> dict[str, Tensor]:
    """The tensors themselves, contiguous, each with memory of its own.

    Raises:
        ValueError: naming the tensor whose claim goes beyond its storage, or that is not finite.
    """
    if len(claims) > MAX_TENSORS:
        raise ValueError(f"{len(claims)} tensors, wanted at most {MAX_TENSORS}")
    for name, claim in claims.items():
        _check(name, claim, storages)
    wanted = sum(claim.num_bytes for claim in claims.values())
    there = sum({claim.storage.key: claim.storage.num_bytes for claim in claims.values()}.values())
    if wanted > MAX_COPIES * there:
        raise ValueError(
            f"tensors of {wanted} bytes that view the same {there} bytes of the file, "
            f"wanted at most {MAX_COPIES} times those; save each tensor's .clone()"
        )
    whole: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, claim in claims.items():
        key = claim.storage.key
        if key not in whole:
            whole[key] = _numbers(claim.storage, storages)
        if whole[key].dtype != claim.storage.dtype:
            raise ValueError(
                f"tensor {name!r:.120} takes storage {key!r} for {claim.storage.dtype} "
                f"where another takes it for {whole[key].dtype}; save each tensor's .clone()"
            )
        view = torch.as_strided(whole[key], claim.shape, claim.strides, claim.offset)
        tensors[name] = finite(name, view.clone(memory_format=torch.contiguous_format))
    return tensors


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself.

    Raises:
        ValueError: NaN or infinity, with the name and the number of such values.
    """
    if tensor.is_floating_point():
        num_bad = int((~torch.isfinite(tensor)).sum())
        if num_bad:
            raise ValueError(
                f"tensor {name!r:.120} holds {num_bad} NaN or infinite values of {tensor.numel()}, "
                "wanted finite numbers; take a checkpoint from before the training diverged"
            )
    return tensor


def _check(name: str, claim: TensorClaim, storages: Storages) -> None:
    checked_name(name, kind="tensor name")
    storage = claim.storage
    found = storages.size(storage.key)
    if found != storage.num_bytes:
        raise ValueError(
            f"tensor {name!r:.120}: storage {storage.key!r} has {found} bytes, wanted {storage.num_bytes} "
            f"for {storage.numel} x {storage.dtype}; fetch or save the file again"
        )
    if claim.num_bytes > storage.num_bytes:
        raise ValueError(
            f"tensor {name!r:.120} of shape {claim.shape} claims {claim.num_bytes} bytes of a storage of "
            f"{storage.num_bytes}; save its .contiguous() if it was expanded, else do not trust this file"
        )
    if math.prod(claim.shape):
        last = claim.offset + sum(
            (length - 1) * stride for length, stride in zip(claim.shape, claim.strides, strict=True)
        )
        if last >= storage.numel:
            raise ValueError(
                f"tensor {name!r:.120} of shape {claim.shape}, strides {claim.strides}, offset {claim.offset} "
                f"ends at number {last} of a storage of {storage.numel}; fetch or save the file again"
            )
    elif math.prod(max(length, 1) for length in claim.shape) > _LARGEST_NUMBER:
        raise ValueError(
            f"tensor {name!r:.120} is empty with shape {claim.shape}; leave it out of the file"
        )


def _numbers(claim: StorageClaim, storages: Storages) -> Tensor:
    content = bytearray(storages.read(claim.key))
    if not content:
        return torch.empty(0, dtype=claim.dtype)
    if claim.dtype is torch.bool and max(content) > 1:
        raise ValueError(f"storage {claim.key!r} holds {max(content)}, wanted 0 or 1 for booleans")
    return torch.frombuffer(content, dtype=claim.dtype)
