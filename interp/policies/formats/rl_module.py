"""An RLModule of RLlib's new API stack: a folder with `module_state.pkl`, numpy arrays by tensor name, and
`class_and_ctor_args.pkl`, the class and what it was made with.

Both are pickles, and RLlib would run them. Here they are read by the same machine as any other: classes stay names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.policies.formats.archive import Archive
from interp.policies.formats.contents import Contents
from interp.policies.formats.limits import MAX_COPIES, MAX_DIMENSIONS, MAX_TENSORS
from interp.policies.formats.names import checked_name
from interp.policies.formats.pickle_machine import Name, Rebuild, Stand, run_pickle
from interp.policies.formats.plain import OMITTED, Visits, numpy_dtype, plain_fields, plain_value
from interp.policies.formats.torch_storage import finite

MODULE_STATE = "module_state.pkl"
DEFAULT_MODULE = "default_policy"
"""What RLlib calls the module of an algorithm with one policy."""
_CLASS = "class_and_ctor_args.pkl"


@dataclass(frozen=True, slots=True, eq=False)
class _Array:
    """An array as `numpy._core.numeric._frombuffer(content, dtype, shape, order)` describes it."""

    content: bytes | bytearray
    dtype: Stand
    shape: tuple[int, ...]
    order: str


def read_rl_module(archive: Archive, folder: str, inside: str = "") -> Contents:
    """Of the module in the folder `inside` of `folder`.

    Raises:
        ValueError: damaged, refused by the machine, or not a flat table of finite arrays.
    """
    member = f"{folder}{inside}{MODULE_STATE}"
    state = _run(archive, member)
    if not isinstance(state, dict) or not state:
        raise ValueError(
            f"{member}: no table of arrays; name the folder of one module, such as {DEFAULT_MODULE}"
        )
    content_bytes = archive.sizes[member]
    try:
        tensors = _tensors(state, content_bytes)
    except ValueError as error:
        raise ValueError(f"{member}: {error}") from error
    return Contents(
        format="rl-module",
        tensors=tensors,
        metadata=_metadata(archive, f"{folder}{inside}{_CLASS}"),
    )


def _run(archive: Archive, member: str) -> Any:  # noqa: ANN401 - any inert value
    return run_pickle(BytesIO(archive.read(member)), source=member, rebuild=_CALLS)


def _array(args: tuple[Any, ...]) -> _Array:
    match args:
        case (
            (bytes() | bytearray()) as content,
            Stand() as dtype,
            tuple() as shape,
            "C" | "F" as order,
        ):
            return _Array(content, dtype, shape, order)
    raise ValueError("arguments other than bytes, a dtype, a shape and an order")


_CALLS: Mapping[str, Rebuild] = {
    "numpy._core.numeric._frombuffer": _array,
    "numpy.core.numeric._frombuffer": _array,
}


def _tensors(state: dict[Any, Any], file_bytes: int) -> dict[str, Tensor]:
    if len(state) > MAX_TENSORS:
        raise ValueError(f"{len(state)} arrays, wanted at most {MAX_TENSORS}")
    tensors: dict[str, Tensor] = {}
    total = 0
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"a {type(name).__name__} where the name of a tensor is wanted")
        checked_name(name, kind="tensor name")
        array = _described(value)
        if array is None:
            raise ValueError(
                f"tensor {name} is no dense array of numbers; save the module's weights"
            )
        total += len(array.content)
        if total > MAX_COPIES * file_bytes:
            raise ValueError(
                f"arrays of more than {MAX_COPIES} times the file's {file_bytes} bytes; do not trust this file"
            )
        tensors[name] = finite(name, _tensor(name, array))
    return tensors


def _described(value: object) -> _Array | None:
    """Of an array in either of the spellings of numpy's pickles."""
    match value:
        case _Array():
            return value
        case Stand(
            of=Name(name="_reconstruct"),
            state=(
                int(),
                tuple() as shape,
                Stand() as dtype,
                bool() as fortran,
                bytes() as content,
            ),
        ):
            return _Array(content, dtype, shape, "F" if fortran else "C")
    return None


def _tensor(name: str, array: _Array) -> Tensor:
    dtype = numpy_dtype(array.dtype)
    if dtype is None or dtype.kind not in "fiub" or dtype.str[1:] in {"u2", "u4", "u8"}:
        raise ValueError(f"tensor {name} is of a kind that torch lacks")
    if len(array.shape) > MAX_DIMENSIONS or not all(
        isinstance(length, int) and length >= 0 for length in array.shape
    ):
        raise ValueError(f"tensor {name} has no shape of at most {MAX_DIMENSIONS} lengths")
    wanted = math.prod(array.shape) * dtype.itemsize
    if wanted != len(array.content):
        raise ValueError(
            f"tensor {name} of shape {list(array.shape)} has {len(array.content)} bytes, wanted {wanted}"
        )
    numbers = np.frombuffer(array.content, dtype)
    shaped = numbers.reshape(array.shape, order="F" if array.order == "F" else "C")
    return torch.from_numpy(np.ascontiguousarray(shaped, dtype.newbyteorder("=")).copy())


def _metadata(archive: Archive, member: str) -> dict[str, Any]:
    """Class, spaces and settings: as far as they are plain."""
    if member not in archive.sizes:
        return {}
    said = _run(archive, member)
    arguments = said.get("ctor_args_and_kwargs") if isinstance(said, dict) else None
    match arguments:
        case (_, dict() as keywords):
            pass
        case _:
            raise ValueError(f"{member}: not the class and arguments of an RLModule")
    visits = Visits()
    config = keywords.get("model_config")
    metadata = {
        "class": str(said.get("class")),
        "observation_space": _space(keywords.get("observation_space"), visits),
        "action_space": _space(keywords.get("action_space"), visits),
        "model_config": config.attributes if isinstance(config, Stand) else config,
        "inference_only": keywords.get("inference_only"),
    }
    try:
        return plain_fields(
            {key: value for key, value in metadata.items() if value is not None}, visits
        )
    except ValueError as error:
        raise ValueError(f"{member}: {error}") from error


def _space(space: object, visits: Visits) -> dict[str, Any] | None:
    """Class and size of a gymnasium space."""
    if not isinstance(space, Stand):
        return None
    sizes = {
        key: plain_value(space.attributes.get(key), visits) for key in ("_shape", "n", "start")
    }
    return {
        "class_path": str(space.of),
        **{key: size for key, size in sizes.items() if size is not None and size is not OMITTED},
    }
