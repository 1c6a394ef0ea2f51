"""Verbs handed in to a Ray that runs elsewhere, through its jobs API: the same request, twice, is one job.

The id of a job is a hash of the verb, its arguments, the code and the environment that go with it. Whoever asks again
finds the job that runs or has succeeded; after one that failed or was stopped, the next attempt has the next number.
No secret is sent: what needs one finds it in the environment of the cluster.
"""

import asyncio
import base64
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request as HttpRequest, urlopen

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.provenance import KINDS, is_id
from interp.identity import content_id, sha256

PACKAGES = ("interp", "cluster", "jobs")
CONNECT_TIMEOUT_S = 10
STATUS_EVERY_S = 0.5
END_TIMEOUT_S = 60.0
"""How long after the last line of its log, or after it was asked to stop, a job may take to end."""
RECONNECTIONS = 10
"""Times that the stream of a log may break off without a new line, 2 s apart."""
STOPPED_STATUS = 143
"""Exit status of a job that was stopped before its driver could say one."""
MOST_FILE_BYTES = 50_000_000
"""Of files that go with a job, together; data belongs into the store."""
DONE = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)

_SOUNDS_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_NAMES_A_PLACE = re.compile(r"_(PATH|FILE|DIR|URL|MODE)$", re.IGNORECASE)
_BELONGS_TO_CLUSTER = re.compile(r"^(AWS|WANDB|RAY)_", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CREDENTIALS_IN_URL = re.compile(r"://[^/\s]*@")
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray that tell of every upload and every end of a log."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
SMALLEST_SECRET = 8
"""Characters; a shorter value would be found everywhere."""


class HeadError(OSError):
    """The jobs API cannot be reached, or does not do what it was asked to."""


# --- secrets


def secrets_here(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Values of this process's environment that sound secret, and Ray's token: what must not be sent, by name."""
    found = {
        name: value
        for name, value in environment.items()
        if _SOUNDS_SECRET.search(name)
        and not _NAMES_A_PLACE.search(name)
        and len(value) >= SMALLEST_SECRET
    }
    with suppress(ValueError):  # a file that is not there holds none
        if token := read_token(environment):
            found["RAY_AUTH_TOKEN"] = token
    return found


def refuse_secrets(where: str, content: bytes, secrets: Mapping[str, str]) -> None:
    """Raises ValueError, without the value, if the content holds one of the secrets, plain or in base64."""
    for name, value in secrets.items():
        plain = value.encode()
        if plain in content or base64.b64encode(plain).rstrip(b"=") in content:
            raise ValueError(
                f"{where} holds the value of {name}, which everybody who sees the job would read; take it out, have "
                f"the head's environment hold {name}, and say --need {name}"
            )


def read_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """The token as Ray's own clients find it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        if named:
            raise ValueError(f"RAY_AUTH_TOKEN_PATH names {named}, which is not there") from None
        return None


def check_variables(variables: Mapping[str, str], needed: Sequence[str] = ()) -> None:
    """Raises ValueError for variables whose values the cluster must hold by itself, and for needs with a value."""
    for name in needed:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(
                f"--need {name.partition('=')[0]!r:.80}: wanted the name of a variable alone; its value is the head's"
            )
    for name in variables:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"--env {name!r:.80}: wanted NAME=VALUE")
        if _BELONGS_TO_CLUSTER.match(name) or _SOUNDS_SECRET.search(name):
            raise ValueError(
                f"--env {name}: values of AWS_*, WANDB_*, RAY_* and of what sounds like a secret are never sent; set "
                f"it in the environment of the head and say --need {name}"
            )


# --- what is sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Files that go with a job: our packages as they are installed here, and those that the user names."""

    files: Mapping[str, Path]
    """Paths on this machine by their relative paths in the job's folder."""
    version: str
    """Hash of all of it."""

    @classmethod
    def of(cls, chosen: Sequence[Path] = (), *, secrets: Mapping[str, str] | None = None) -> Self:
        """`chosen` are files and folders below the working directory, where the job finds them at the same place.

        Raises:
            ValueError: a file elsewhere, in the place of our own packages, too large, or with a secret in it.
        """
        own = Path(__file__).parents[1]
        files = {
            path.relative_to(own).as_posix(): path
            for package in PACKAGES
            for path in _plain_files(own / package)
        }
        extra: dict[str, Path] = {}
        for path in chosen:
            if not path.exists():
                raise ValueError(f"--file {path}: not there")
            for one in _plain_files(path) if path.is_dir() else [path]:
                extra[_place(one)] = one
        if (size := sum(path.stat().st_size for path in extra.values())) > MOST_FILE_BYTES:
            raise ValueError(
                f"--file: {size:,} bytes, at most {MOST_FILE_BYTES:,} go with a job; put policies on S3 or W&B"
            )
        known = secrets_here() if secrets is None else secrets
        for name, path in extra.items():
            refuse_secrets(f"--file {name}", path.read_bytes(), known)
        files |= extra
        listing = {name: sha256(path.read_bytes()) for name, path in files.items()}
        return cls(files=files, version=content_id("code", listing))

    @contextmanager
    def unpacked(self) -> Iterator[Path]:
        """The files in a folder of their own, for Ray to upload."""
        with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
            for name, path in self.files.items():
                target = Path(folder) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            yield Path(folder)


def _plain_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(
            part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts
        )
    )


def _place(path: Path) -> str:
    try:
        place = path.resolve().relative_to(Path.cwd().resolve())
    except ValueError:
        raise ValueError(
            f"--file {path}: lies outside of the working directory {Path.cwd()}; copy it there"
        ) from None
    if place.parts[0] in PACKAGES:
        raise ValueError(
            f"--file {path}: {place.parts[0]} is a package of Sparsight, which goes with every job anyway"
        )
    return place.as_posix()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a cluster."""

    arguments: tuple[str, ...]
    """Verb first."""
    bundle: Bundle
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the job, none of them secret."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What `sparsight jobs list` and Ray's dashboard tell of it; not part of the id."""

    @property
    def request_id(self) -> str:
        return content_id(
            "job",
            {
                "arguments": list(self.arguments),
                "code": self.bundle.version,
                "environment": dict(self.environment),
            },
        )

    @property
    def entrypoint(self) -> str:
        return shlex.join(("python", "-m", "jobs.main", *self.arguments))

    def attempt_id(self, number: int) -> str:
        """Of the first attempt, 1, the id of the request itself."""
        return self.request_id if number == 1 else f"{self.request_id}-{number}"

    def check(self, secrets: Mapping[str, str]) -> None:
        """Raises ValueError if anything of it holds a secret."""
        for argument in self.arguments:
            if _CREDENTIALS_IN_URL.search(argument):
                raise ValueError(
                    f"an argument is a URL with credentials ({argument.split('://')[0]}://...@...); the job "
                    "finds them in the environment of the head"
                )
            refuse_secrets("an argument", argument.encode(), secrets)
        refuse_secrets("--env", json.dumps(dict(self.environment)).encode(), secrets)
        refuse_secrets("what tells of the job", json.dumps(dict(self.metadata)).encode(), secrets)


_OPTION_KINDS = {"study": "study", "store": "store", "policy": "policies", "policies": "policies"}


def describe(arguments: Sequence[str]) -> dict[str, str]:
    """What a command line is about: verb, study, store, ids and addresses of policies, recordings, dictionaries.

    What it does not say itself is found by `provenance.look_up`.
    """
    found: dict[str, list[str]] = {"verb": [arguments[0]]}
    option = ""
    for argument in arguments[1:]:
        value = argument
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            option = name.replace("_", "-")
        if not value or value.startswith("--"):
            continue
        kind = _OPTION_KINDS.get(option)
        if kind is None and is_id(value):
            kind = KINDS[value[0]]
        if kind is not None:
            found.setdefault(kind, []).append(value)
    if arguments[0] in ("pipeline", "report"):
        found.setdefault("study", ["demo"])
    return {kind: " ".join(dict.fromkeys(values)) for kind, values in found.items()}


# --- whom it is sent to


def is_loopback(address: str) -> bool:
    """Whether an address names this machine, or what is forwarded to it."""
    return (urlsplit(address).hostname or "") in _LOOPBACK


def check_address(address: str) -> str:
    """The address without a trailing slash. Raises ValueError if it is none of a jobs API."""
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise ValueError(
            "--address may not hold credentials: Ray's token comes from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.path.strip("/")
        or parts.query
    ):
        raise ValueError(
            f"--address {address!r:.200}: wanted the dashboard of a head, as http://127.0.0.1:8265"
        )
    return address.rstrip("/")


class Head:
    """The jobs API of a cluster."""

    def __init__(self, address: str, client: JobSubmissionClient, *, has_token: bool) -> None:
        self.address = address
        self.has_token = has_token
        self._client = client

    @classmethod
    def connect(cls, address: str, *, allow_unauthenticated: bool = False) -> Self:
        """Asks without a token first: a head that answers lets everybody run code on it, and is not told the token.

        Raises:
            ValueError: no address, no token where one is wanted, a head without one.
            HeadError: nobody there, or the token is not the head's.
        """
        address = check_address(address)
        has_token = _wants_token(address)
        if not has_token and not allow_unauthenticated:
            raise ValueError(
                f"the head at {address} has no token: whoever reaches it can run code there and read what its "
                "environment holds. Start it with RAY_AUTH_MODE=token and a token in RAY_AUTH_TOKEN_PATH, or say "
                "--allow-unauthenticated if nobody else can reach it"
            )
        token = read_token() if has_token else None
        if has_token and token is None:
            raise ValueError(
                f"the head at {address} wants a token: name it in RAY_AUTH_TOKEN, or a file that holds it in "
                "RAY_AUTH_TOKEN_PATH"
            )
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        # A header of our own, since Ray reads its mode once, when it is imported, and would send the token to a head
        # that has none.
        headers = {"Authorization": f"Bearer {token}" if token else "none"}
        try:
            with _address_alone():
                client = JobSubmissionClient(address, headers=headers)
        except AuthenticationError:
            raise HeadError(
                f"the head at {address} refuses the token of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token: "
                "it is another cluster's"
            ) from None
        except (RuntimeError, ConnectionError) as error:
            raise HeadError(f"the head at {address}: {error}") from error
        return cls(address, client, has_token=has_token)

    def submit(self, request: Request, *, again: bool = False) -> tuple[str, bool]:
        """The id of the job that does what is asked, and whether it is new; with `again` one that has ended is not
        enough, whatever came of it.
        """
        while True:
            submission_id, is_new = self._next_attempt(request, again=again)
            if not is_new:
                return submission_id, False
            with request.bundle.unpacked() as folder:
                try:
                    self._client.submit_job(
                        entrypoint=request.entrypoint,
                        submission_id=submission_id,
                        runtime_env={
                            "working_dir": str(folder),
                            "env_vars": dict(request.environment),
                        },
                        metadata={**request.metadata, "code": request.bundle.version},
                    )
                except RuntimeError as error:
                    # Somebody asked for the same at the same time: look again.
                    if f"{submission_id} already exists" not in str(error):
                        raise HeadError(f"the head at {self.address}: {error}") from error
                    continue
            return submission_id, True

    def _next_attempt(self, request: Request, *, again: bool) -> tuple[str, bool]:
        known = {job.submission_id: job for job in self.jobs()}
        passed_over = DONE if again else (JobStatus.FAILED, JobStatus.STOPPED)
        number = 1
        while True:
            submission_id = request.attempt_id(number)
            if submission_id not in known:
                return submission_id, True
            if known[submission_id].status not in passed_over:
                return submission_id, False
            number += 1

    def jobs(self) -> list[JobDetails]:
        """Those that were submitted, the oldest first."""
        found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: (job.start_time or 0, job.submission_id or ""))

    def job(self, submission_id: str) -> JobDetails:
        """Raises ValueError if there is none of that id."""
        for job in self.jobs():
            if job.submission_id == submission_id:
                return job
        known = [job.submission_id or "" for job in self.jobs()]
        raise ValueError(
            f"job {submission_id!r:.80} is not at {self.address}; it has {', '.join(known[-5:]) or 'none'}"
        )

    def logs(self, submission_id: str) -> str:
        """All that a job has printed so far."""
        self.job(submission_id)
        return self._client.get_job_logs(submission_id)

    def follow(self, submission_id: str, write: Callable[[str], None]) -> int:
        """Hands on what a job prints until it ends; returns its exit status. Breaks of the connection are mended."""
        seen, breaks = 0, 0
        while True:
            before = seen
            try:
                seen = asyncio.run(self._tail(submission_id, write, seen))
            except _Broken as broken:
                seen = broken.seen
                breaks = 1 if seen > before else breaks + 1
                if breaks > RECONNECTIONS:
                    raise HeadError(
                        f"the log of {submission_id} cannot be followed: {broken.__cause__}; the job goes on, see "
                        f"`sparsight jobs logs {submission_id}`"
                    ) from broken
                time.sleep(2)
                continue
            return self.wait(submission_id)

    async def _tail(self, submission_id: str, write: Callable[[str], None], seen: int) -> int:
        """Every connection begins with the first line again; `seen` characters are passed over."""
        place = 0
        try:
            async for text in self._client.tail_job_logs(submission_id):
                new = text[max(0, seen - place) :]
                place += len(text)
                if new:
                    write(new)
                    seen = place
        except (RuntimeError, OSError) as error:
            raise _Broken(max(seen, place)) from error
        return max(seen, place)

    def wait(self, submission_id: str) -> int:
        """Exit status of a job that is about to end. HeadError if it does not."""
        until = time.monotonic() + END_TIMEOUT_S
        while (job := self.job(submission_id)).status not in DONE:
            if time.monotonic() > until:
                raise HeadError(
                    f"job {submission_id} is still {job.status.value} {END_TIMEOUT_S:.0f} s later; look again with "
                    "`sparsight jobs list`"
                )
            time.sleep(STATUS_EVERY_S)
        return exit_status(job)

    def stop(self, submission_id: str) -> JobDetails:
        """Asks a job to end, as SIGTERM would, and waits until it has."""
        if self.job(submission_id).status not in DONE:
            self._client.stop_job(submission_id)
            self.wait(submission_id)
        return self.job(submission_id)


class _Broken(Exception):
    def __init__(self, seen: int) -> None:
        super().__init__(seen)
        self.seen = seen


def exit_status(job: JobDetails) -> int:
    """Of a job that has ended: its driver's, if that could say one."""
    match job.status:
        case JobStatus.SUCCEEDED:
            return 0
        case JobStatus.STOPPED:
            return STOPPED_STATUS
        case _:
            return job.driver_exit_code or 1


def _wants_token(address: str) -> bool:
    try:
        with urlopen(HttpRequest(f"{address}/api/jobs/"), timeout=CONNECT_TIMEOUT_S) as answer:
            content = answer.read()
    except HTTPError as error:
        if error.code == 401:
            return True
        raise HeadError(
            f"{address} answers {error.code} where the jobs API of Ray should be; wanted the address of a head's "
            "dashboard"
        ) from error
    except (URLError, TimeoutError, ConnectionError) as error:
        raise HeadError(
            f"nobody answers at {address} ({error}); start a head there, or its port-forward, or name another --address"
        ) from error
    try:
        is_ray = isinstance(json.loads(content), list)
    except ValueError:
        is_ray = False
    if not is_ray:
        raise HeadError(f"{address} answers, but is no jobs API of Ray; wanted a head's dashboard")
    return False


@contextmanager
def _address_alone() -> Iterator[None]:
    """Ray's client prefers these variables to the address that it is given."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
