"""Open a policy file of any known format without running code from it, or importing a class that it names.

The format is told by content, never by suffix. Sizes, names and claims are checked before memory is spent on them; see
`limits`. What a file holds is not yet a policy that runs: `interp.policies` rebuilds the network from known parts.
"""

import stat
from pathlib import Path

from interp.identity import sha256
from interp.policies.formats.archive import (
    Archive,
    FolderArchive,
    ZipArchive,
    listing,
    only_member,
)
from interp.policies.formats.contents import Contents
from interp.policies.formats.limits import MAX_FILE_BYTES
from interp.policies.formats.packages import MARKERS
from interp.policies.formats.torch_file import pickle_member
from interp.policies.formats.weights import WANTED, ZIP_STARTS, read_weights, refuse_false_suffix
from interp.policies.policy_file import PolicyFile

_SUFFIXES = (".safetensors", ".pt", ".pth", ".mpt", ".zip")


def read_policy_file(path: Path) -> PolicyFile:
    """What a file or folder holds.

    Args:
        path: a safetensors or torch file, an .mpt, a stable-baselines3 zip, a zip or folder with policy_spec.json,
            cogames.toml or architecture.json, or a folder with one policy file and perhaps other files.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: unknown, damaged, hostile or beyond the limits; says where, what was found, and what to do.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; wanted {WANTED}")
    try:
        if path.is_dir():
            archive = FolderArchive(path)
            return _policy_file(_read_folder(archive), archive.digest)
        content = _content(path)
        return _policy_file(_read_file(content, path.name), sha256(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _policy_file(contents: Contents, digest: str) -> PolicyFile:
    return PolicyFile(
        format=contents.format,
        sha256=digest,
        tensors=contents.tensors,
        modules=contents.modules,
        metadata=contents.metadata,
    )


def _content(path: Path) -> bytes:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("a device or a pipe, wanted a file; copy it to one")
    if found.st_size > MAX_FILE_BYTES:
        raise ValueError(
            f"{found.st_size} bytes, wanted at most {MAX_FILE_BYTES}; save the policy's weights alone"
        )
    return path.read_bytes()


def _read_file(content: bytes, name: str) -> Contents:
    refuse_false_suffix(content, name)
    if not content.startswith(ZIP_STARTS):
        return read_weights(content, name)
    archive = ZipArchive(content)
    if pickle_member(archive) is not None:
        return read_weights(content, name)
    package = _read_package(archive)
    if package is None:
        raise ValueError(
            f"a zip without a policy that we know: {listing(archive)}; wanted {WANTED}"
        )
    return package


def _read_folder(archive: FolderArchive) -> Contents:
    package = _read_package(archive)
    if package is not None:
        return package
    files = [name for name in archive.sizes if "/" not in name and name.endswith(_SUFFIXES)]
    if len(files) != 1:
        raise ValueError(
            f"a folder with {len(files)} policy files {sorted(files)[:8]}, wanted one, or {WANTED}; "
            "give the path of the file itself"
        )
    try:
        return _read_file(archive.read(files[0]), files[0])
    except ValueError as error:
        raise ValueError(f"{files[0]}: {error}") from error


def _read_package(archive: Archive) -> Contents | None:
    for marker, read in MARKERS.items():
        member = only_member(archive, marker)
        if member is not None:
            return read(archive, member.removesuffix(marker))
    return None
