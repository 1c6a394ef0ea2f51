"""Open a policy file of any known format without running code from it. The format is told by content, not by suffix."""

from pathlib import Path

from interp.identity import sha256
from interp.policies.formats.archive import ZipArchive, listing
from interp.policies.formats.contents import Contents
from interp.policies.formats.module_tree import read_contents
from interp.policies.formats.safetensors_file import looks_like_safetensors, read_safetensors
from interp.policies.formats.torch_file import (
    LEGACY_START,
    pickle_member,
    read_torch_stream,
    read_torch_zip,
)
from interp.policies.policy_file import PolicyFile


def read_policy_file(path: Path) -> PolicyFile:
    content = path.read_bytes()
    try:
        found = _read(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return PolicyFile(
        format=found.format,
        sha256=sha256(content),
        tensors=found.tensors,
        modules=found.modules,
        metadata=found.metadata,
    )


def _read(content: bytes) -> Contents:
    if content.startswith(b"PK"):
        archive = ZipArchive(content)
        if pickle_member(archive) is not None:
            return read_contents(read_torch_zip(archive))
        raise ValueError(listing(archive))
    if content.startswith(LEGACY_START):
        return read_contents(read_torch_stream(content))
    if looks_like_safetensors(content):
        return read_safetensors(content)
    raise ValueError("unknown")
