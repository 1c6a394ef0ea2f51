"""A store on S3, or on anything that speaks its protocol: objects under a bucket and a prefix.

Create-only is a PUT with `If-None-Match: *`, which the server must honour; `Store.probe` refuses one that does not.
Endpoint, region and credentials come from the usual environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...) of each
process, so neither an address nor a pickled store holds a secret.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS

from cluster import tally
from cluster.backends import Entry, StoreError
from cluster.tally import Tally
from interp.identity import sha256

CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 10
"""Of one read from the socket, not of a whole object."""
ATTEMPTS = 3
"""Of every request; botocore waits between them, twice as long each time."""
ROUNDS = 2
"""Of those attempts, by s3fs: botocore does not see that a body breaks off, nor s3fs that a request may be repeated."""
METADATA_HOSTS = ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "metadata.google.internal")
"""Services that hand out credentials of a machine; an endpoint that points there is an attack or a mistake."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Prefix:
    """Objects of one bucket whose keys begin with a prefix, which may be empty."""

    bucket: str
    prefix: str

    @classmethod
    def of(cls, url: str) -> Self:
        """From s3://bucket/prefix.

        Raises:
            ValueError: credentials in the URL (they are not repeated), or no bucket.
        """
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "store: an s3:// URL may hold neither credentials nor options: put them into the environment "
                "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) and write s3://bucket/prefix"
            )
        if not _BUCKET.fullmatch(parts.netloc):
            raise ValueError(
                f"store {url!r:.200}: no bucket {parts.netloc!r}; wanted s3://bucket/prefix"
            )
        return cls(bucket=parts.netloc, prefix=parts.path.strip("/"))

    def prepare(self) -> None:
        with self._explained(""):
            _filesystem().call_s3("head_bucket", Bucket=self.bucket)

    def create(self, key: str, content: bytes) -> bool:
        for attempt in range(ATTEMPTS):
            try:
                with self._explained(key):
                    _filesystem().pipe_file(self._path(key), content, mode="create")
            except _Taken:
                return False
            except _Contended:
                tally.add(Tally(retries=1))
                time.sleep(0.1 * 2**attempt)
            else:
                return True
        raise StoreError(
            f"{self.address(key)}: others write it at the same time, {ATTEMPTS} attempts failed; run again"
        )

    def replace(self, key: str, content: bytes) -> None:
        with self._explained(key):
            _filesystem().pipe_file(self._path(key), content)

    def get(self, key: str) -> bytes:
        with self._explained(key):
            content = _filesystem().cat_file(self._path(key))
        assert isinstance(content, bytes)
        return content

    def size(self, key: str) -> int | None:
        try:
            with self._explained(key):
                found: Any = _filesystem().call_s3(
                    "head_object", Bucket=self.bucket, Key=self._key(key)
                )
        except FileNotFoundError:
            return None
        return found["ContentLength"]

    def list(self, folder: str) -> list[str]:
        with self._explained(folder):
            found = _filesystem().find(self._path(folder) if folder else self._path("").rstrip("/"))
        return [path.removeprefix(self._path("")) for path in found]

    def folders(self, folder: str) -> Sequence[str]:
        path = self._path(folder) if folder else self._path("").rstrip("/")
        try:
            with self._explained(folder or "."):
                found: Any = _filesystem().ls(path, detail=True)
        except FileNotFoundError:
            return []
        return [Path(one["name"]).name for one in found if one["type"] == "directory"]

    def inventory(self, folder: str) -> Sequence[Entry]:
        with self._explained(folder):
            found: Any = _filesystem().find(
                self._path(folder) if folder else self._path("").rstrip("/"), detail=True
            )
        return sorted(
            Entry(path.removeprefix(self._path("")), one["size"], one["LastModified"].timestamp())
            for path, one in found.items()
        )

    def delete(self, key: str) -> None:
        with self._explained(key):
            _filesystem().call_s3("delete_object", Bucket=self.bucket, Key=self._key(key))

    def address(self, key: str) -> str:
        return f"s3://{self._path(key)}"

    def workspace(self) -> Path:
        cache = os.environ.get("SPARSIGHT_CACHE") or Path(
            os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sparsight"
        )
        return Path(cache) / sha256(self.address("").encode())[:16]

    def filesystem(self) -> S3FileSystem:
        """With timeouts and without credentials: those are of the process that uses it."""
        return _new_filesystem()

    def _key(self, key: str) -> str:
        return "/".join(filter(None, (self.prefix, key)))

    def _path(self, key: str) -> str:
        """As s3fs wants it: bucket/key; of "" the prefix with its slash."""
        return f"{self.bucket}/{self._key(key)}" + ("/" if not key and self.prefix else "")

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Every failure becomes an error that names the object; of a server's, only code and message are repeated."""
        address = self.address(key)
        try:
            yield
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket" or not key:
                raise StoreError(
                    f"bucket {self.bucket} does not exist; create it, or choose another --store"
                ) from error
            raise FileNotFoundError(f"no object {address}") from error
        except PermissionError as error:
            raise StoreError(
                f"{address}: access denied ({error}); check AWS_ACCESS_KEY_ID and the bucket's policy"
            ) from error
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
            raise StoreError(
                f"{address}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        except (OSError, ClientError, BotoCoreError, *S3_RETRYABLE_ERRORS) as error:
            match _code(error):
                case "PreconditionFailed" | "412":
                    raise _Taken(address) from error
                case "ConditionalRequestConflict" | "409":
                    raise _Contended(address) from error
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            at = f" at {urlsplit(endpoint).hostname}" if endpoint else ""
            raise StoreError(
                f"{address}: the server{at} failed, also when asked again: {error or type(error).__name__}"
            ) from error


class _Taken(StoreError):
    """There is an object of that key."""


class _Contended(StoreError):
    """Two conditional writes of one key met; the loser is asked to try again."""


def _code(error: BaseException) -> str:
    """S3's own word for what happened; s3fs keeps it in the cause."""
    response: Any = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return str(response["Error"].get("Code", "")) if response else ""


def _new_filesystem(session: AioSession | None = None) -> S3FileSystem:
    """With a session it cannot be pickled."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        host = urlsplit(os.environ.get(name, "")).hostname
        if host in METADATA_HOSTS:
            raise StoreError(f"{name} points at {host}, a machine's metadata service: no S3 there")
    return S3FileSystem(
        session=session,
        use_listings_cache=False,
        skip_instance_cache=True,
        default_fill_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        },
    )


def _count_retry(attempts: int = 1, **_event: object) -> None:
    """Hears of every attempt that ended, and of which it was; decides nothing."""
    if attempts > 1:
        tally.add(Tally(retries=1))


@lru_cache(maxsize=1)
def _filesystem_of(_process: int) -> S3FileSystem:
    session = AioSession()
    session.register("needs-retry.s3", _count_retry)
    filesystem = _new_filesystem(session)
    filesystem.retries = ROUNDS
    return filesystem


def _filesystem() -> S3FileSystem:
    """One a process: its event loop does not survive a fork."""
    return _filesystem_of(os.getpid())
