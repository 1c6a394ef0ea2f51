"""A safetensors file: 8 bytes of header length, a JSON header, and the numbers.

The header is checked before the library sees it: every tensor has its own bytes, all are there, none is left over.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from interp.identity import parse_json
from interp.policies.formats.contents import Contents
from interp.policies.formats.limits import MAX_DIMENSIONS, MAX_JSON_BYTES, MAX_TENSORS
from interp.policies.formats.names import checked_name, checked_text
from interp.policies.formats.torch_storage import finite

_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
_LENGTH_BYTES = 8
_REMEDY = "fetch the file again, or save it with safetensors.torch.save_file"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: str
    begin: int
    end: int


def read_safetensors(content: bytes) -> Contents:
    """Tensors, and what `__metadata__` says.

    Raises:
        ValueError: naming the tensor or the part of the header that is wrong.
    """
    header, start = _header(content)
    metadata = _metadata(header)
    entries = [_entry(name, claim) for name, claim in header.items() if name != "__metadata__"]
    if not entries:
        raise ValueError(
            "a safetensors header without tensors, wanted a policy's weights; save it again"
        )
    if len(entries) > MAX_TENSORS:
        raise ValueError(
            f"a safetensors header of {len(entries)} tensors, wanted at most {MAX_TENSORS}"
        )
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            raise ValueError(
                f"tensor {entry.name!r:.120} begins at byte {entry.begin} of the data, wanted {position}: "
                f"tensors overlap or leave a gap; {_REMEDY}"
            )
        position = entry.end
    if position != len(content) - start:
        raise ValueError(
            f"the header tells of {position} bytes of data, found {len(content) - start}: "
            f"cut off or added to; {_REMEDY}"
        )
    try:
        tensors = load(content)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"not readable as safetensors ({error}); {_REMEDY}") from error
    return Contents(
        format="safetensors",
        tensors={name: finite(name, tensor) for name, tensor in tensors.items()},
        metadata=metadata,
    )


def looks_like_safetensors(content: bytes) -> bool:
    """A length that could be a header's, and the brace that opens it. A cut off file still looks like one."""
    return len(content) > _LENGTH_BYTES and content[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    length = struct.unpack("<Q", content[:_LENGTH_BYTES])[0]
    there = len(content) - _LENGTH_BYTES
    if length > min(there, MAX_JSON_BYTES):
        raise ValueError(
            f"a safetensors header of {length} bytes, wanted at most {min(there, MAX_JSON_BYTES)}; {_REMEDY}"
        )
    start = _LENGTH_BYTES + length
    return parse_json(content[_LENGTH_BYTES:start], source="safetensors header"), start


def _entry(name: str, claim: object) -> _Entry:
    checked_name(name, kind="tensor name")
    match claim:
        case {
            "dtype": str() as dtype,
            "shape": list() as shape,
            "data_offsets": [begin, end],
            **more,
        } if not more and all(_is_count(number) for number in (*shape, begin, end)):
            pass
        case _:
            raise ValueError(
                f"tensor {name!r:.120}: wanted dtype, shape and two data_offsets, of whole numbers from 0 on; "
                f"{_REMEDY}"
            )
    if dtype not in _ITEM_BYTES:
        raise ValueError(
            f"tensor {name!r:.120} has dtype {dtype!r:.20}, wanted one of {sorted(_ITEM_BYTES)}; convert it"
        )
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(
            f"tensor {name!r:.120} has {len(shape)} dimensions, wanted at most {MAX_DIMENSIONS}; reshape it"
        )
    # Python's integers do not overflow: 2^40 x 2^40 is what it is, and no file is that long.
    wanted = math.prod(shape) * _ITEM_BYTES[dtype]
    if end - begin != wanted:
        raise ValueError(
            f"tensor {name!r:.120}: {dtype} of shape {shape!s:.80} takes {wanted} bytes, "
            f"but its data_offsets span {end - begin}; {_REMEDY}"
        )
    return _Entry(name=name, begin=begin, end=end)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    found = header.get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"__metadata__: wanted texts by name; {_REMEDY}")
    return {
        checked_name(key, kind="__metadata__ key"): checked_text(
            value, kind=f"__metadata__ {key!r}"
        )
        for key, value in found.items()
    }
