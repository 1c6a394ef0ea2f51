"""The files of a zip or of a folder, by name: listed, bounded and checked before one is read.

Nothing is ever extracted to disk. A member that is a link, is encrypted, leaves its folder, collides with another, or
holds more than it declares is refused by name.
"""

import hashlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

from interp.identity import canonical_json, sha256
from interp.policies.formats.limits import (
    FREE_EXPANSION_BYTES,
    MAX_EXPANSION,
    MAX_FILE_BYTES,
    MAX_FOLDER_DEPTH,
    MAX_MEMBERS,
)
from interp.policies.formats.names import checked_path, refuse_colliding

_DIRECTORY_ENTRY = b"PK\x01\x02"
_ENCRYPTED = 0x1
_READABLE = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


@runtime_checkable
class Archive(Protocol):
    @property
    def sizes(self) -> Mapping[str, int]:
        """Name of every file -> its bytes, uncompressed."""
        ...

    def read(self, name: str) -> bytes:
        """The whole file.

        Raises:
            ValueError: not there, damaged, or not of the size that was declared.
        """
        ...


class ZipArchive:
    def __init__(self, content: bytes) -> None:
        """Lists the members of a zip; reads none.

        Raises:
            ValueError: not a zip, or any of its members is refused.
        """
        # zipfile reads the whole directory before it tells a number: count what it would read.
        num_entries = content.count(_DIRECTORY_ENTRY)
        if num_entries > MAX_MEMBERS:
            raise ValueError(
                f"a zip of {num_entries} members, wanted at most {MAX_MEMBERS}; "
                "pack the policy's own files only"
            )
        try:
            self._zip = zipfile.ZipFile(BytesIO(content))
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            OverflowError,
            struct.error,
        ) as error:
            raise ValueError(
                f"a zip whose directory is damaged or cut off ({error}); fetch or save it again"
            ) from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        names: list[str] = []
        for member in self._zip.infolist():
            name = _checked_member(member)
            names.append(name)
            if not member.is_dir():
                self._members[name] = member
        refuse_colliding(names, kind="zip members")
        total = sum(member.file_size for member in self._members.values())
        allowed = max(FREE_EXPANSION_BYTES, MAX_EXPANSION * len(content))
        if total > min(allowed, MAX_FILE_BYTES):
            raise ValueError(
                f"a zip of {len(content)} bytes that declares {total} bytes of content, "
                f"wanted at most {min(allowed, MAX_FILE_BYTES)}; it may be a zip bomb: save the policy again"
            )

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: member.file_size for name, member in self._members.items()}

    def read(self, name: str) -> bytes:
        if name not in self._members:
            raise ValueError(f"member {name!r:.120} is not there; {_listed(self._members)}")
        member = self._members[name]
        try:
            with self._zip.open(member) as file:
                # One byte more than declared: zipfile stops there by itself, and we do not rely on it.
                content = file.read(member.file_size + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
            ValueError,
            OverflowError,
            struct.error,
        ) as error:
            raise ValueError(
                f"member {name!r:.120} is damaged ({error}); fetch or save the file again"
            ) from error
        if len(content) != member.file_size:
            raise ValueError(
                f"member {name!r:.120} holds {len(content)} bytes or more but declares {member.file_size}; "
                "fetch or save the file again"
            )
        return content


class FolderArchive:
    def __init__(self, folder: Path) -> None:
        """Lists and hashes every file below `folder`.

        Raises:
            ValueError: a link, a device, an unsuitable name, too many files, or too much of them.
        """
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._collect(folder, depth=0)
        self._sizes = {name: path.stat().st_size for name, path in self._files.items()}
        refuse_colliding(list(self._sizes), kind="files")
        total = sum(self._sizes.values())
        if total > MAX_FILE_BYTES:
            raise ValueError(
                f"a folder of {total} bytes, wanted at most {MAX_FILE_BYTES}; keep the policy's own files only"
            )
        self._digests = {name: _digest(path) for name, path in self._files.items()}

    @property
    def sizes(self) -> Mapping[str, int]:
        return self._sizes

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of {name: sha256 of the file}."""
        return sha256(canonical_json(self._digests))

    def read(self, name: str) -> bytes:
        if name not in self._files:
            raise ValueError(f"file {name!r:.120} is not there; {_listed(self._files)}")
        content = self._files[name].read_bytes()
        if sha256(content) != self._digests[name]:
            raise ValueError(
                f"file {name!r:.120} changed while it was read; wait until its writer is done"
            )
        return content

    def _collect(self, folder: Path, *, depth: int) -> None:
        if depth > MAX_FOLDER_DEPTH:
            raise ValueError(
                f"folders nested deeper than {MAX_FOLDER_DEPTH}; keep the policy's own files only"
            )
        for path in sorted(folder.iterdir()):
            name = checked_path(path.relative_to(self._folder).as_posix(), kind="file")
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                self._collect(path, depth=depth + 1)
            elif stat.S_ISREG(mode):
                self._files[name] = path
                if len(self._files) > MAX_MEMBERS:
                    raise ValueError(
                        f"a folder of more than {MAX_MEMBERS} files; keep the policy's own files only"
                    )
            else:
                raise ValueError(
                    f"{name!r:.120} is a link or a device, wanted plain files; copy what it points to"
                )


def only_member(archive: Archive, name: str) -> str | None:
    """The member called `name`, at the top or within one folder at the top; None if there is none."""
    found = [
        member
        for member in archive.sizes
        if member == name or (member.endswith(f"/{name}") and member.count("/") == 1)
    ]
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} members are called {name!r} ({found[0]!r:.80}, {found[1]!r:.80}), "
            "wanted one; pack one policy per file"
        )
    return found[0] if found else None


def listing(archive: Archive) -> str:
    """What is in it, for an error."""
    return _listed(archive.sizes)


def _checked_member(member: zipfile.ZipInfo) -> str:
    # `filename` is what zipfile made of the name: cut at a NUL, for instance.
    name = member.orig_filename
    checked_path(name.removesuffix("/"), kind="zip member")
    # Unix mode in the upper half; absent (0) in zips of other systems and of torch.
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise ValueError(
            f"zip member {name!r:.120} is a link or a device, wanted plain files; pack what it points to"
        )
    if member.flag_bits & _ENCRYPTED:
        raise ValueError(f"zip member {name!r:.120} is encrypted; pack it without a password")
    if member.compress_type not in _READABLE:
        raise ValueError(
            f"zip member {name!r:.120} is compressed by method {member.compress_type}, "
            f"wanted {' or '.join(_READABLE.values())}; pack it again"
        )
    return name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(names: Mapping[str, object]) -> str:
    shown = sorted(names)[:8]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"it holds {[name[:80] for name in shown]}{more}"
