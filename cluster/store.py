"""Where everything rests: objects that are written once, under keys such as `recordings/r-0123/plan.json`.

An object is created whole or not at all, and never changed: two writers of one key cannot disagree unnoticed, so any
task may be repeated. The only exceptions are the pointers under `studies/`, which are replaced, and `scratch/`, which
holds what an unfinished job needs to go on and is of no use afterwards.
"""

import errno
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cluster import tally
from cluster.backends import Backend, Conflict, Entry, LocalFolder, StoreError
from cluster.handed_in import check_lasting

REPLACEABLE = ("studies/", "scratch/")
"""Pointers, and what a running job keeps to be able to go on; everything else is written once."""
REMOVABLE = ("recordings/", "scratch/")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_URL_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Create-only objects under safe keys. A small value: copy it into every actor."""

    url: str
    backend: Backend

    @classmethod
    def open(cls, url: str | Path) -> Self:
        """A folder ("./store", an absolute path, a file:// URL) or s3://bucket/prefix.

        Touches nothing yet; see `probe`. ValueError for another kind of URL, and for a folder that goes with a job.
        """
        text = str(url)
        scheme = _URL_SCHEME.match(text)
        match scheme[1].lower() if scheme else "":
            case "" if text:
                backend = _lasting_folder(Path(text))
            case "file":
                backend = _lasting_folder(Path(text[len("file://") :]))
            case "s3":
                from cluster.s3 import S3Prefix  # takes half a second, which a folder need not wait

                backend = S3Prefix.of(text)
            case kind:
                found = f"a {kind}:// URL" if kind else "an empty name"
                raise ValueError(
                    f"store: found {found}, wanted a local folder (a path such as ./store, or "
                    "file:///absolute/path) or s3://bucket/prefix"
                )
        return cls(url=text, backend=backend)

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
        """Write an object, whole or not at all, unless the key is taken. Whether it holds this content now.

        The content decides and not who wrote it: a client whose first reply was lost finds its own object in the way.
        """
        with tally.operation():
            return self.backend.create(_safe(key), content) or self.backend.get(key) == content

    def ensure(self, key: str, content: bytes) -> None:
        """Create an object, or find it there with the same content; anything else raises Conflict."""
        if not self.create(key, content):
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
        with tally.operation():
            self.backend.replace(_safe(key), content)

    def remove(self, key: str) -> None:
        """Take away an object that nothing refers to, or find it gone. Of finished work only `cluster.garbage` may."""
        if not key.startswith(REMOVABLE):
            raise ValueError(
                f"key {key!r}: only objects below {' and '.join(REMOVABLE)} may be removed"
            )
        with tally.operation():
            self.backend.delete(_safe(key))

    def get(self, key: str) -> bytes:
        try:
            with tally.operation():
                return self.backend.get(_safe(key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError(f"no object {key} in store {self.url}") from None

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of an object; None if there is none."""
        with tally.operation():
            return self.backend.size(_safe(key))

    def list(self, folder: str = "") -> list[str]:
        """Sorted keys of all objects below a folder; none if there is no such folder."""
        with tally.operation():
            return sorted(self.backend.list(_safe(folder) if folder else folder))

    def folders(self, folder: str = "") -> Sequence[str]:
        """Sorted names of the folders in a folder; for the cost of one request, however full they are."""
        with tally.operation():
            return sorted(self.backend.folders(_safe(folder) if folder else folder))

    def inventory(self, folder: str) -> Sequence[Entry]:
        """All objects below a folder with their sizes and times of modification."""
        with tally.operation():
            return self.backend.inventory(_safe(folder))

    def address(self, key: str) -> str:
        """Where the object is, or would be, for people: a path or a URL."""
        return self.backend.address(_safe(key))

    def workspace(self, name: str) -> Path:
        """A folder of this machine, which need not exist yet, for files that a job needs while it runs.

        Inside the store if that is a folder, else below SPARSIGHT_CACHE or the user's cache folder.
        """
        return self.backend.workspace() / _safe(name)

    def local_path(self, key: str) -> Path:
        """The object as a file; only of a store that is a folder."""
        if not isinstance(self.backend, LocalFolder):
            raise StoreError(f"store {self.url} is not a folder: {key} is no file of this machine")
        return self.backend.root / _safe(key)


def _lasting_folder(path: Path) -> LocalFolder:
    check_lasting("--store", path)
    return LocalFolder(root=path.expanduser().absolute())


def _safe(key: str) -> str:
    """Names of letters, digits, dot, dash and underscore, separated by single slashes; no name starts with a dot."""
    if not all(_SAFE_NAME.fullmatch(name) for name in key.split("/")):
        raise ValueError(
            f"key {key!r:.200} is not safe: wanted names of letters, digits, '.', '_' and '-' "
            "that start with a letter or digit, separated by '/'"
        )
    return key
