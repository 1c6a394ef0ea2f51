"""A safetensors file is read as the library reads it, and refused before the library sees it when its header lies."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save, save_file

from interp.policies.formats.reading import read_policy_file

WEIGHTS = {
    "fc.weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.float16),
    "brain": torch.ones(2, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.empty(0, 4),
}


def written(path: Path, header: object, data: bytes = b"") -> Path:
    """A file with this header, which may be anything that JSON can say, or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list, begin: int, end: int, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_and_metadata_are_read(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(WEIGHTS, path, metadata={"epoch": "3"})
    found = read_policy_file(path)
    assert found.format == "safetensors" and found.metadata == {"epoch": "3"}
    assert set(found.tensors) == set(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert found.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=0)


def test_the_format_is_told_by_content(tmp_path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(save(WEIGHTS))
    assert read_policy_file(path).format == "safetensors"


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
LIES = {
    "past the end": (
        {"w": entry([4], 0, 16)},
        bytes(8),
        "the header tells of 16 bytes of data, found 8",
    ),
    "bytes left over": ({"w": entry([1], 0, 4)}, bytes(8), "found 8"),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), "'b' begins at byte 4"),
    "the same bytes twice": ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4), "overlap"),
    "gap": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12), "leave a gap"),
    "backwards": ({"w": entry([1], 4, 0)}, bytes(4), "span -4"),
    "shape and bytes differ": ({"w": entry([3], 0, 8)}, bytes(8), "takes 12 bytes"),
    "shape overflows": ({"w": entry([2**62, 4], 0, 0)}, b"", "takes 73786976294838206464 bytes"),
    "negative shape": ({"w": entry([-1, -1], 0, 4)}, bytes(4), "whole numbers from 0"),
    "boolean shape": ({"w": entry([True], 0, 4)}, bytes(4), "whole numbers from 0"),
    "fractional offset": ({"w": entry([1], 0, 4.0)}, bytes(4), "whole numbers from 0"),  # type: ignore[arg-type]
    "unknown dtype": ({"w": entry([1], 0, 4, "F31")}, bytes(4), "dtype 'F31'"),
    "dtype that is no text": ({"w": entry([1], 0, 4, [])}, bytes(4), "wanted dtype"),
    "unknown field": (
        {"w": {**entry([1], 0, 4), "run": "x"}},
        bytes(4),
        "wanted dtype, shape and two data_offsets",
    ),
    "too many dimensions": ({"w": entry([1] * 100, 0, 4)}, bytes(4), "100 dimensions"),
    "no tensors": ({}, b"", "without tensors"),
    "metadata of another kind": (
        {"w": entry([1], 0, 4), "__metadata__": {"a": 1}},
        bytes(4),
        "wanted texts",
    ),
    "repeated name": (b'{"w": 1, "w": 2}', b"", "'w' is repeated"),
    "NaN": (b'{"w": NaN}', b"", "NaN is not a JSON number"),
    "not JSON": (b"{" * 20, b"", "not readable as JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not readable as JSON"),
    "deep": (DEEP, b"", "not readable as JSON"),
    "10 kB name": ({"w" * 10_000: entry([1], 0, 4)}, bytes(4), "10000 characters"),
    "NUL in a name": ({"w\0": entry([1], 0, 4)}, bytes(4), "U+0000"),
    "right to left": ({"w\u202egnp.exe": entry([1], 0, 4)}, bytes(4), "U+202E"),
    "half a character": ({"w\ud800": entry([1], 0, 4)}, bytes(4), "U+D800"),
    "control character in metadata": (
        {"w": entry([1], 0, 4), "__metadata__": {"a": "\x1b[2J"}},
        bytes(4),
        "U+001B",
    ),
}


@pytest.mark.parametrize(("header", "data", "said"), LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_refused(tmp_path, refusal, header, data, said) -> None:
    assert said in refusal(written(tmp_path / "weights.safetensors", header, data))


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 10_000])
def test_a_header_longer_than_the_file_is_refused(tmp_path, refusal, length) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", length) + save(WEIGHTS)[8:])
    assert f"a safetensors header of {length} bytes" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, refusal, dtype, value) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"fine": torch.ones(2), "fc.bias": torch.tensor([1.0, value], dtype=dtype)}, path)
    assert "tensor 'fc.bias' holds 1 NaN or infinite values of 2" in refusal(path)


def test_a_file_that_is_cut_off_is_refused_at_any_length(tmp_path, refusal) -> None:
    whole = save(WEIGHTS)
    path = tmp_path / "weights.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert refusal(path)


def test_many_repeated_keys_are_refused_at_once(tmp_path, refusal) -> None:
    header = b"{" + b",".join(b'"%d":0' % (i // 2) for i in range(200_000)) + b"}"
    assert "is repeated" in refusal(written(tmp_path / "weights.safetensors", header))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_header_is_refused_or_every_tensor_has_its_own_bytes(tmp_path, data) -> None:
    """No checksum guards a name or a dtype, but a tensor is never made of bytes that are not its own."""
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4)}
    content = bytearray(save(weights))
    start = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, start - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    try:
        found = read_policy_file(path)
    except ValueError:
        return
    parts = {
        bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())
        for tensor in found.tensors.values()
    }
    assert b"".join(sorted(parts, key=content.index)) == bytes(content[start:])
