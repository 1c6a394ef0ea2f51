"""Tasks that failed on every attempt, kept until they are done after all: scratch/quarantine/<hash of the key>.json.

The run that set them aside ends by naming one; this is what the others are found by, from another machine too.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from cluster.crew import said
from cluster.fanout import in_threads
from cluster.pool import Result, Unwatched
from cluster.store import Store
from interp.identity import ID_DIGITS, canonical_json, parse_json, sha256

FOLDER = "scratch/quarantine"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A task that was set aside."""

    task: str
    """Its key; of a shard recording/shard."""
    stage: str
    cause: str
    """Of the last attempt: kind and first line of the error."""
    at_s: float
    """Seconds since 1970 by the clock of the machine that ran the pool."""

    @property
    def key(self) -> str:
        """Of this note in the store."""
        return _key(self.task)


class Quarantine(Unwatched):
    """A watcher that keeps what is set aside, and forgets what is done after all."""

    def __init__(self, store: Store, stage: str) -> None:
        self._store = store
        self._stage = stage
        self._kept = set(store.list(FOLDER))

    def quarantined(self, key: str, cause: BaseException) -> None:
        one = Quarantined(task=key, stage=self._stage, cause=said(cause), at_s=time.time())
        try:
            self._store.replace(_key(key), canonical_json(one))
        except OSError as error:  # the run tells of the task in any case
            logger.warning("task %s cannot be noted as set aside: %s", key, error)
        else:
            self._kept.add(_key(key))

    def done(self, result: Result[Any]) -> None:
        if (key := _key(result.task.key)) not in self._kept:
            return
        self._kept.discard(key)
        try:
            self._store.remove(key)
        except OSError as error:
            logger.warning("task %s is done, but stays noted: %s", result.task.key, error)


def read(store: Store) -> Sequence[Quarantined]:
    """All that are set aside, in the order of their keys."""
    wanted = {field.name for field in fields(Quarantined)}

    def one(key: str) -> Quarantined | None:
        try:
            record = parse_json(store.get(key), source=key)
        except FileNotFoundError:  # done since it was listed
            return None
        if record.keys() != wanted:
            logger.warning("%s is of another version of this program; it is not shown", key)
            return None
        return Quarantined(**record)

    found = in_threads(one, store.list(FOLDER))
    return sorted((task for task in found if task is not None), key=lambda task: task.task)


def _key(task: str) -> str:
    return f"{FOLDER}/{sha256(task.encode())[:ID_DIGITS]}.json"
