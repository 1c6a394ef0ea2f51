"""What a store needs of the place where it rests, what may go wrong there, and the simplest place: a folder."""

import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from fsspec import AbstractFileSystem


class StoreError(OSError):
    """The store cannot do what it was asked to."""


class Conflict(StoreError):
    """An object exists already and holds something else."""


class Corrupt(StoreError):
    """An object is missing or is not what its record says."""


class Entry(NamedTuple):
    """What a listing tells of an object."""

    key: str
    bytes: int
    modified_s: float
    """Seconds since 1970 by the clock of the storage, which need not be that of this machine."""


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

    def folders(self, folder: str) -> Sequence[str]:
        """Names of the folders in a folder, without looking into them."""
        ...

    def inventory(self, folder: str) -> Sequence[Entry]:
        """All objects below a folder with size and time: one request a thousand objects, not one each."""
        ...

    def delete(self, key: str) -> None:
        """Only for the probe's own objects and for garbage; nothing happens if there is no such object."""
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

    def folders(self, folder: str) -> Sequence[str]:
        try:
            with os.scandir(self.root / folder) as found:
                return [one.name for one in found if one.is_dir() and not one.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def inventory(self, folder: str) -> Sequence[Entry]:
        return sorted(self._entries(self.root / folder, f"{folder}/" if folder else ""))

    def _entries(self, path: Path, prefix: str) -> Iterator[Entry]:
        try:
            found = os.scandir(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        with found:
            for child in found:
                if child.name.startswith("."):
                    continue
                if child.is_dir():
                    yield from self._entries(Path(child.path), f"{prefix}{child.name}/")
                    continue
                try:
                    status = child.stat()
                except FileNotFoundError:  # removed since it was listed
                    continue
                yield Entry(prefix + child.name, status.st_size, status.st_mtime)

    def delete(self, key: str) -> None:
        path = self.root / key
        path.unlink(missing_ok=True)
        for folder in path.parents:  # a folder exists only because of what is in it
            if folder == self.root:
                break
            try:
                folder.rmdir()
            except OSError:
                break

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
