"""Which jobs are at work on a store? Each says so every few seconds, in scratch/running/<job>.json.

A job that ends takes its note away; one that is killed leaves it, and it grows old. Nothing depends on these notes but
what people are shown: no job waits for another's.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Self

from cluster.fanout import in_threads
from cluster.store import Store
from interp.identity import canonical_json, parse_json

FOLDER = "scratch/running"
BEAT_S = 15.0
"""Seconds between two notes of a job."""
TICK_S = 5.0
"""Seconds after which metrics are told again; Ray exports them every ten."""
FRESH_S = 4 * BEAT_S
"""A job whose note is older is no longer taken to be at work."""
REMEMBERED_S = 86_400.0
"""Older notes are not looked at."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a job says of itself."""

    job: str
    """Made up when it began."""
    host: str
    pid: int
    study: str | None
    """None of a single stage, such as `sparsight record`."""
    stage: str
    done: int
    total: int
    """Tasks of the stage's present run; 0 where the stage counts none, as a sweep does."""
    started_s: float
    """Seconds since 1970 by the clock of the job's machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A job, and how long ago it was heard of."""

    beat: Beat
    age_s: float
    """By the storage's time of the note and this machine's clock; wrong by as much as the two differ."""

    @property
    def is_fresh(self) -> bool:
        return self.age_s < FRESH_S


class Pulse:
    """Says from a thread of its own, inside its `with` block, that this process is at work.

    `on_beat` is called with every beat and `on_tick` every `TICK_S`, in that thread.
    """

    def __init__(
        self,
        store: Store,
        *,
        study: str | None = None,
        on_beat: Callable[[], None] = lambda: None,
        on_tick: Callable[[], None] = lambda: None,
        every_s: float = BEAT_S,
    ) -> None:
        self._store = store
        self._study = study
        self._on_beat = on_beat
        self._on_tick = on_tick
        self._every_s = every_s
        self._job = f"j-{secrets.token_hex(8)}"
        self._started_s = time.time()
        self._now: tuple[str, int, int] = ("tasks", 0, 0)
        self._over = threading.Event()
        self._is_heard = True
        self._thread = threading.Thread(target=self._beat_on, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        try:
            self._store.remove(self._key)
        except OSError as failure:  # the work is done or has an error of its own to tell
            logger.warning("the note of this job stays: %s", failure)

    def at(self, stage: str, done: int = 0, total: int = 0) -> None:
        """What the next beat tells."""
        self._now = (stage, done, total)

    @property
    def _key(self) -> str:
        return f"{FOLDER}/{self._job}.json"

    def _beat_on(self) -> None:
        next_s = time.monotonic()
        while True:
            if time.monotonic() >= next_s:
                self._beat()
                next_s = time.monotonic() + self._every_s
            self._on_tick()
            if self._over.wait(min(TICK_S, self._every_s)):
                return

    def _beat(self) -> None:
        stage, done, total = self._now
        beat = Beat(
            job=self._job,
            host=os.uname().nodename,
            pid=os.getpid(),
            study=self._study,
            stage=stage,
            done=done,
            total=total,
            started_s=self._started_s,
        )
        try:
            self._store.replace(self._key, canonical_json(beat))
            self._on_beat()
        except OSError as error:  # whether the work can go on is for the work to find out
            if self._is_heard:
                logger.warning("this job cannot say that it is at work: %s", error)
            self._is_heard = False
        else:
            self._is_heard = True


def heard(store: Store) -> list[Heard]:
    """Jobs that were at work in the last day, the latest first."""
    now_s = time.time()
    age_s = {entry.key: max(0.0, now_s - entry.modified_s) for entry in store.inventory(FOLDER)}
    keys = sorted((key for key, age in age_s.items() if age < REMEMBERED_S), key=age_s.__getitem__)
    beats = zip(keys, in_threads(lambda key: _read(store, key), keys), strict=True)
    return [Heard(beat=beat, age_s=age_s[key]) for key, beat in beats if beat is not None]


def _read(store: Store, key: str) -> Beat | None:
    """None if the job ended since it was listed, or is of another version, which this one cannot speak for."""
    try:
        record = parse_json(store.get(key), source=key)
    except FileNotFoundError:
        return None
    if record.keys() != {field.name for field in fields(Beat)}:
        logger.warning("%s is of another version of this program; it is not shown", key)
        return None
    return Beat(**record)
