"""What a store needs of the place where it rests, what may go wrong there, and the simplest place: a folder."""

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fsspec import AbstractFileSystem


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

    def address(self, key: str) -> str:
        """Of one object, for people: a path or a URL."""
        ...

    def workspace(self) -> Path:
        """A folder of this machine for files that a job needs while it runs."""
        ...

    def filesystem(self) -> AbstractFileSystem | None:
        """How other processes read `address`; None if it is a path."""
        ...


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

    def address(self, key: str) -> str:
        return str(self.root / key)

    def workspace(self) -> Path:
        return self.root / "scratch"

    def filesystem(self) -> None:
        return None

    def _write_partial(self, path: Path, content: bytes) -> Path:
        """A file beside `path` that no listing shows: its leading dot is not allowed in a key."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f".{path.name[:64]}.{secrets.token_hex(8)}"
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        return partial


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut, not only the bytes behind it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
