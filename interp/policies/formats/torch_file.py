"""What torch.save wrote: the zip of today and the stream of before 2020, read without torch.load.

`torch.load(weights_only=True)` runs no code either, but it allocates what a tensor claims and refuses whole modules.
Here one machine reads state_dicts and modules alike, and every claim is checked first.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from interp.policies.formats.archive import Archive, listing
from interp.policies.formats.limits import MAX_PICKLE_BYTES, MAX_TENSORS
from interp.policies.formats.pickle_machine import Name, run_pickle
from interp.policies.formats.torch_storage import (
    TORCH_CALLS,
    StorageClaim,
    Storages,
    claimed_storage,
)

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled magic number with which the stream format begins."""
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFile:
    root: Any
    """What was saved: containers, numbers, texts, `TensorClaim`s, and a `Stand` for each object."""
    storages: Storages


class ZipStorages:
    def __init__(self, archive: Archive, folder: str) -> None:
        self._archive = archive
        self._folder = folder

    def size(self, key: str) -> int:
        size = self._archive.sizes.get(self._member(key))
        if size is None:
            raise ValueError(
                f"storage {key!r:.40} is not in the file ({listing(self._archive)}); "
                "fetch or save the file again"
            )
        return size

    def read(self, key: str) -> bytes:
        return self._archive.read(self._member(key))

    def _member(self, key: str) -> str:
        return f"{self._folder}/data/{key}"


class StreamStorages:
    """One after the other behind the pickles, each with its length."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    def size(self, key: str) -> int:
        return len(self.read(key))

    def read(self, key: str) -> bytes:
        if key not in self._contents:
            raise ValueError(
                f"storage {key!r:.40} is not in the file, which lists {sorted(self._contents)[:8]}; "
                "fetch or save the file again"
            )
        return self._contents[key]


def pickle_member(archive: Archive) -> str | None:
    """The name of the pickle if this is a zip of torch.save, which has one folder at the top."""
    found = [name for name in archive.sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} members are called data.pkl, wanted one; this is no file of torch.save"
        )
    return found[0] if found else None


def read_torch_zip(archive: Archive) -> TorchFile:
    """Of a zip that has a `pickle_member`.

    Raises:
        ValueError: damaged, of another byte order, or its pickle is refused.
    """
    member = pickle_member(archive)
    assert member is not None
    folder = member.removesuffix("/data.pkl")
    if any(name.startswith(f"{folder}/code/") for name in archive.sizes):
        raise ValueError("a TorchScript archive, wanted weights; save module.state_dict()")
    byte_order = f"{folder}/byteorder"
    if byte_order in archive.sizes and (found := archive.read(byte_order)) != b"little":
        raise ValueError(
            f"{byte_order}: byte order {found!r:.20}, wanted b'little'; save it on a little-endian machine"
        )
    size = archive.sizes[member]
    if size > MAX_PICKLE_BYTES:
        raise ValueError(
            f"{member}: a pickle of {size} bytes, wanted at most {MAX_PICKLE_BYTES}; save the state_dict only"
        )
    root = run_pickle(
        BytesIO(archive.read(member)),
        source=member,
        rebuild=TORCH_CALLS,
        load_storage=claimed_storage,
    )
    return TorchFile(root=root, storages=ZipStorages(archive, folder))


def read_torch_stream(content: bytes) -> TorchFile:
    """Of a file that begins with LEGACY_START: four pickles (magic, protocol, machine, object), keys, storages.

    Raises:
        ValueError: damaged, of another byte order, or its pickle is refused.
    """
    claims: dict[str, StorageClaim] = {}

    def claim(persistent_id: tuple[Any, ...]) -> StorageClaim | Name:
        # The source of a class goes with its name; the name is enough.
        match persistent_id:
            case ("module", Name() as name, _, _):
                return name
        storage = claimed_storage(persistent_id)
        known = claims.setdefault(storage.key, storage)
        if (known.dtype, known.numel) != (storage.dtype, storage.numel):
            raise ValueError(f"storage {storage.key!r} is declared twice, and not alike")
        return known

    stream = BytesIO(content)
    run_pickle(stream, source="magic number", rebuild={})
    protocol = run_pickle(stream, source="protocol number", rebuild={})
    if not isinstance(protocol, int) or protocol != _LEGACY_PROTOCOL:
        raise ValueError(
            f"protocol number: wanted {_LEGACY_PROTOCOL}; save it with torch 1.6 or later"
        )
    machine = run_pickle(stream, source="machine description", rebuild={})
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("machine description: wanted a little-endian machine; save it on one")
    start = stream.tell()
    root = run_pickle(stream, source="object", rebuild=TORCH_CALLS, load_storage=claim)
    if stream.tell() - start > MAX_PICKLE_BYTES:
        raise ValueError(
            f"object: a pickle of {stream.tell() - start} bytes, wanted at most {MAX_PICKLE_BYTES}; "
            "save the state_dict only"
        )
    keys = run_pickle(stream, source="storage keys", rebuild={})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("storage keys: wanted a list of names; fetch or save the file again")
    if len(keys) > MAX_TENSORS:
        raise ValueError(f"storage keys: {len(keys)}, wanted at most {MAX_TENSORS}")
    contents: dict[str, bytes] = {}
    for key in keys:
        if key not in claims or key in contents:
            raise ValueError(
                f"storage keys: {key!r:.40} is repeated or unknown; fetch or save the file again"
            )
        length = stream.read(8)
        num_bytes = claims[key].num_bytes
        if len(length) < 8 or struct.unpack("<q", length)[0] != claims[key].numel:
            raise ValueError(
                f"storage {key!r:.40}: its length is missing or not the {claims[key].numel} that it is declared "
                "with; fetch or save the file again"
            )
        contents[key] = stream.read(num_bytes)
        if len(contents[key]) != num_bytes:
            raise ValueError(
                f"storage {key!r:.40} has {len(contents[key])} bytes, wanted {num_bytes}: the file is cut off; "
                "fetch or save it again"
            )
    return TorchFile(root=root, storages=StreamStorages(contents))
