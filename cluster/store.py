"""Where everything rests: objects that are written once, under keys such as `recordings/r-0123/plan.json`.

An object is created whole or not at all, and never changed: two writers of one key cannot disagree unnoticed, so any
task may be repeated. The only exceptions are the pointers under `studies/`, which are replaced, and `scratch/`, which
holds what an unfinished job needs to go on and is of no use afterwards.
"""

import errno
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

REPLACEABLE = ("studies/", "scratch/")
"""Pointers, and what a running job keeps to be able to go on; everything else is written once."""
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_URL_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


class StoreError(OSError):
    """The store cannot do what it was asked to."""


class Conflict(StoreError):
    """An object exists already and holds something else."""


class Corrupt(StoreError):
    """An object is missing or is not what its record says."""


class Backend(Protocol):
    """What a kind of storage must offer; keys are safe by then. Must survive pickling: actors get a copy."""

    def prepare(self) -> None:
        """Make the root writable or raise OSError."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """Write the whole object unless the key is taken; False if it is."""
        ...

    def replace(self, key: str, content: bytes) -> None: ...

    def get(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes; None if there is no such object."""
        ...

    def list(self, folder: str) -> list[str]:
        """Keys of all objects below a folder ("" is the root)."""
        ...

    def delete(self, key: str) -> None:
        """Only for the probe's own objects."""
        ...

    def local_path(self, key: str) -> Path: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFolder:
    """Objects as files. Create-only is a hard link, which a file system refuses if the name is taken."""

    root: Path

    def prepare(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    def create(self, key: str, content: bytes) -> bool:
        path = self.root / key
        if path.exists():
            return False
        partial = self._write_partial(path, content)
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        finally:
            partial.unlink()
        _sync_folder(path.parent)
        return True

    def replace(self, key: str, content: bytes) -> None:
        path = self.root / key
        partial = self._write_partial(path, content)
        partial.replace(path)
        _sync_folder(path.parent)

    def get(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def size(self, key: str) -> int | None:
        try:
            status = (self.root / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def list(self, folder: str) -> list[str]:
        files = (self.root / folder).rglob("[!.]*")
        return [path.relative_to(self.root).as_posix() for path in files if path.is_file()]

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def local_path(self, key: str) -> Path:
        return self.root / key

    def _write_partial(self, path: Path, content: bytes) -> Path:
        """A file beside `path` that no listing shows: its leading dot is not allowed in a key."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f".{path.name[:64]}.{secrets.token_hex(8)}"
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return partial


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Create-only objects under safe keys. A small value: copy it into every actor."""

    url: str
    backend: Backend

    @classmethod
    def open(cls, url: str | Path) -> Self:
        """A folder: "./store", an absolute path or a file:// URL. Touches nothing yet; see `probe`."""
        text = str(url)
        scheme = _URL_SCHEME.match(text)
        if not text or (scheme and scheme[1].lower() != "file"):
            found = f"{scheme[1]}:// URL" if scheme else "empty name"
            raise ValueError(
                f"store: found a URL of the kind {found!r}, supported is a local folder "
                "(a path such as ./store, or file:///absolute/path)"
            )
        root = Path(text[len("file://") :] if scheme else text).expanduser().absolute()
        return cls(url=text, backend=LocalFolder(root=root))

    def probe(self) -> None:
        """Refuse, before any work, a store that cannot be written or that lets a second writer win."""
        key = f"probe-{secrets.token_hex(8)}"
        try:
            self.backend.prepare()
            try:
                first, second = (
                    self.backend.create(key, b"first"),
                    self.backend.create(key, b"second"),
                )
                kept = self.backend.get(key)
            finally:
                self.backend.delete(key)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError(
                f"store {self.url}: a file stands where a folder is needed: {error}"
            ) from error
        except OSError as error:
            reason = (
                "its file system has no hard links, which create-only writes need"
                if error.errno in (errno.ENOTSUP, errno.EPERM)
                else "it is not writable"
            )
            raise StoreError(
                f"store {self.url}: {reason}: {error}; choose another --store"
            ) from error
        if not first or second or kept != b"first":
            raise StoreError(
                f"store {self.url}: a second create of one key was accepted; refusing to write where two writers "
                "can overwrite each other"
            )

    def create(self, key: str, content: bytes) -> bool:
        """Write an object, whole or not at all. False if the key is taken: then compare what it holds."""
        return self.backend.create(_safe(key), content)

    def ensure(self, key: str, content: bytes) -> None:
        """Create an object, or find it there with the same content; anything else raises Conflict."""
        if not self.create(key, content) and self.get(key) != content:
            raise Conflict(
                f"{key} in {self.url} exists with other content; it is damaged or was written by another version: "
                "remove it and run again, or choose another --store"
            )

    def replace(self, key: str, content: bytes) -> None:
        """Write over an object that may change; readers see the old content or the new, never a mixture."""
        if not key.startswith(REPLACEABLE):
            raise ValueError(
                f"key {key!r}: only objects below {' and '.join(REPLACEABLE)} may be replaced"
            )
        self.backend.replace(_safe(key), content)

    def get(self, key: str) -> bytes:
        try:
            return self.backend.get(_safe(key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError(f"no object {key} in store {self.url}") from None

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of an object; None if there is none."""
        return self.backend.size(_safe(key))

    def list(self, folder: str = "") -> list[str]:
        """Sorted keys of all objects below a folder; none if there is no such folder."""
        return sorted(self.backend.list(_safe(folder) if folder else folder))

    def local_path(self, key: str) -> Path:
        """Where the object is, or would be, as a file."""
        return self.backend.local_path(_safe(key))


def _safe(key: str) -> str:
    """Names of letters, digits, dot, dash and underscore, separated by single slashes; no name starts with a dot."""
    if not all(_SAFE_NAME.fullmatch(name) for name in key.split("/")):
        raise ValueError(
            f"key {key!r:.200} is not safe: wanted names of letters, digits, '.', '_' and '-' "
            "that start with a letter or digit, separated by '/'"
        )
    return key


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut, not only the bytes behind it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
