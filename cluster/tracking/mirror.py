"""Delivers a study's letters to W&B while the study goes on, and never gets in its way.

A thread hands letters to the process that talks to W&B. Whatever goes wrong there costs the study nothing: letters are
in the store before they are delivered, and those without a receipt are delivered by the next run of the same study or
by `sparsight sync`.
"""

import fcntl
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from cluster.backends import LocalFolder
from cluster.notes import Note, silent
from cluster.store import Store
from cluster.tracking import letters
from cluster.tracking.access import Access, WandbError
from cluster.tracking.letters import Letter
from cluster.tracking.service import WandbService

Mode = Literal["auto", "online", "offline", "disabled"]
DEFAULT_PROJECT = "sparsight"
DELIVER_S = 150.0
"""Seconds that a letter may take, besides the time for its bytes."""
SLOWEST_BYTES_PER_S = 250_000
FEED_S = 30.0
MAX_WAITING = 1000
"""Rows that may wait to be shown."""
CLOSE_S = 120.0
"""Seconds that a finished job waits for what is still to be delivered."""


class Courier:
    """Delivers single letters."""

    def __init__(self, store: Store, service: WandbService) -> None:
        self.store = store
        self.service = service

    def deliver(self, letter: Letter) -> None:
        """Delivers a letter and keeps its receipt.

        Raises:
            OSError: it could not be delivered, or what arrived is not the whole letter.
        """
        with _staged(self.store, letter) as content:
            num_bytes = sum(
                Path(path).stat().st_size
                for one in content["logs"]
                for path in one["files"].values()
            )
            receipt = self.service.ask(
                "deliver",
                run=_run(letter),
                letter=content,
                deadline_s=DELIVER_S + num_bytes / SLOWEST_BYTES_PER_S,
            )
        letters.confirm(self.store, letter, receipt)

    def feed(self, letter: Letter, row: Mapping[str, float]) -> None:
        """Shows one row of a run whose letter comes later."""
        values = {name: value for name, value in row.items() if name != "step"}
        self.service.ask(
            "feed", run=_run(letter), step=int(row["step"]), row=values, deadline_s=FEED_S
        )


def _run(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.run_id,
        "entity": letter.entity,
        "project": letter.project,
        "name": letter.name,
        "group": letter.study,
        "stage": letter.stage,
        "config": letter.config,
    }


@contextmanager
def _staged(store: Store, letter: Letter) -> Iterator[dict[str, Any]]:
    """The letter with paths of this machine in place of keys."""
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:

        def path_of(key: str) -> str:
            if isinstance(store.backend, LocalFolder):
                return str(store.local_path(key))
            path = Path(folder, key)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(store.get(key))
            return str(path)

        yield {
            "id": letter.digest,
            "summary": letter.summary,
            "curve": letter.curve,
            "uses": letter.uses,
            "tables": {title: asdict(table) for title, table in letter.tables.items()},
            "pages": {title: path_of(key) for title, key in letter.pages.items()},
            "logs": [
                {**asdict(one), "files": {name: path_of(key) for name, key in one.files.items()}}
                for one in letter.logs
            ],
        }


@dataclass(frozen=True, slots=True)
class _Row:
    letter: Letter
    row: Mapping[str, float]


class Mirror:
    """The mirror of one study, for as long as a job works on it.

    with Mirror.open(store, "demo", "auto", say=print) as mirror:
        ...
        mirror.post(letter)
        mirror.close()
    """

    def __init__(
        self,
        store: Store,
        study: str,
        *,
        project: str,
        entity: str | None,
        state: Literal["online", "offline", "disabled", "off (no key)"],
        lock: IO[str] | None = None,
    ) -> None:
        self.store = store
        self.study = study
        self.project = project
        self.entity = entity
        self.reason: str | None = None
        """Why the last delivery failed."""
        self._state = state
        self._lock = lock
        self._service = WandbService()
        self._courier = Courier(store, self._service)
        self._queue: queue.Queue[Letter | _Row | None] = queue.Queue()
        self._feeds = True
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)

    @classmethod
    def open(
        cls,
        store: Store,
        study: str,
        mode: Mode,
        *,
        project: str | None = None,
        entity: str | None = None,
        say: Callable[[str], None],
    ) -> Self:
        """Finds out, within about 4 s, whether there is a server to mirror to.

        Args:
            mode: "auto" is what WANDB_MODE says, or else "online" if there is a key and the server answers, "offline"
                if it does not answer, and "disabled" if there is no key.
            project: By default WANDB_PROJECT, or else "sparsight".
            entity: By default WANDB_ENTITY, or else the user's own.
            say: Called with the one line that tells why nothing will be delivered for now.

        Raises:
            ValueError: mode "online" without a key.
            WandbError: mode "online" and the server does not answer.
        """
        access = Access.of_environment()
        state = _said_mode() if mode == "auto" else mode
        if state == "online" and not access.has_key:
            if mode == "online":
                raise ValueError(
                    f"--wandb online: no key for {access.host}; set WANDB_API_KEY, run `wandb login`, or use "
                    "--wandb offline"
                )
            state = "off (no key)"
        if state == "online" and (reason := access.probe()):
            if mode == "online":
                raise WandbError(f"--wandb online: {reason}; use --wandb offline and sync later")
            state = "offline"
            say(f"wandb: {reason}; going on offline, `sparsight sync` delivers later")
        lock = None
        if state == "online":
            try:
                lock = hold_lock(store, study)
            except WandbError as error:
                state = "offline"
                say(f"wandb: {error}; this job delivers nothing")
        mirror = cls(
            store,
            study,
            project=project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            entity=entity or os.environ.get("WANDB_ENTITY"),
            state=state,
            lock=lock,
        )
        if state == "online":
            mirror._thread.start()
        return mirror

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._service.stop()
        if self._lock is not None:
            self._lock.close()

    def post(self, written: Iterable[Letter]) -> None:
        """Puts letters into the store and queues those without a receipt; if there is no mirror, none is written."""
        if self._state not in ("online", "offline"):
            return
        for letter in map(self._addressed, written):
            letters.write(self.store, letter)
            if self._state == "online" and not letters.is_sent(self.store, letter.key):
                self._queue.put(letter)

    def feed(self, letter: Letter, row: Mapping[str, float]) -> None:
        """Shows one row of a run as it comes; its letter, which follows, brings all of them.

        Once rows come faster than they are taken, no more are shown: W&B takes rows in their order only, so a letter
        cannot fill a hole.
        """
        self._feeds = self._feeds and self._queue.qsize() < MAX_WAITING
        if self._state == "online" and self._feeds:
            self._queue.put(_Row(self._addressed(letter), row))

    def num_unsent(self) -> int:
        """Letters that are still to be delivered, now or by `sparsight sync`; 0 without a mirror."""
        if self._state not in ("online", "offline"):
            return 0
        return letters.num_unsent(self.store, self.study)

    def close(self, *, wait_s: float = CLOSE_S) -> str:
        """Waits for what is queued, tries once more what failed, and says how things stand: the job's last line."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(wait_s)
            if self._thread.is_alive():
                self.reason = self.reason or f"not done within {wait_s:.0f} s"
        self._service.stop()
        if self._state not in ("online", "offline"):
            return f"wandb: {self._state}"
        return state_line(len(letters.pending(self.store, self.study)))

    def _addressed(self, letter: Letter) -> Letter:
        return replace(letter, project=self.project, entity=self.entity)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            match item:
                case Letter() if time.monotonic() >= self._retry_at:
                    self._try(item)  # the others are tried at the end
                case _Row(letter, row) if self._feeds:
                    try:
                        self._courier.feed(letter, row)
                    except OSError:
                        self._feeds = False  # its letter brings the row
                case _:
                    pass
        try:
            failures = deliver_pending(self._courier, self.study)
            self.reason = failures[-1] if failures else None
        except OSError as error:
            self.reason = str(error)

    def _try(self, letter: Letter) -> None:
        if letters.is_sent(self.store, letter.key):
            return
        try:
            self._courier.deliver(letter)
        except OSError as error:
            self.reason = str(error)
            # one outage is not paid for by every letter
            self._retry_at = time.monotonic() + 30.0


def state_line(num_pending: int) -> str:
    """How a mirror stands."""
    return f"wandb: pending ({num_pending})" if num_pending else "wandb: synced"


def _said_mode() -> Literal["online", "offline", "disabled"]:
    """What WANDB_MODE asks for, in the words of the client."""
    said = os.environ.get("WANDB_MODE", "online").strip().lower()
    match said:
        case "" | "online" | "run" | "shared":
            return "online"
        case "offline" | "dryrun":
            return "offline"
        case "disabled":
            return "disabled"
        case _:
            raise ValueError(f"WANDB_MODE is {said!r:.80}; wanted online, offline or disabled")


def hold_lock(store: Store, study: str) -> IO[str]:
    """Keeps other processes of this machine from delivering the same study, until it is closed or the process ends.

    Raises:
        WandbError: another one is at it.
    """
    folder = store.workspace("mirror")
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / f"{study}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise WandbError(f"another process delivers study {study} now") from error
    return lock


def deliver_pending(courier: Courier, study: str, note: Note = silent) -> list[str]:
    """Delivers what a study's mirror lacks, in order; why each of the letters that remain could not be delivered.

    Raises:
        WandbError: the server went away; the letters after that were not tried.
    """
    store = courier.store
    todo = letters.pending(store, study)
    failures: list[str] = []
    for number, key in enumerate(todo):
        try:
            courier.deliver(letters.read(store, key))
        except (OSError, ValueError) as error:
            failures.append(f"{key}: {error}")
            if (reason := Access.of_environment().probe()) is not None:
                left = f"{len(todo) - number} of {len(todo)} letters"
                raise WandbError(f"{reason}; study {study} still has to send {left}") from error
        note(number + 1, len(todo), key)
    return failures
