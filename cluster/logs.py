"""Logs for machines: one JSON object a line, from the driver and from its actors, if SPARSIGHT_LOG is json.

The fields of a record's `extra` become fields of the object: task, shard, recording, policy, actor, node, attempt,
cause. What an actor logs while it works on a task has the ids of that task.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ray import LoggingConfig

from cluster.concerns import ids_of
from cluster.crew import said
from cluster.pool import Result, Task
from cluster.recordings import Receipt

logger = logging.getLogger(__name__)
# Events are for machines, but mettagrid shows INFO in every process that imports it.
logger.setLevel(logging.WARNING)

VARIABLE = "SPARSIGHT_LOG"
KINDS = ("text", "json")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""What every log record has; the rest came by `extra`."""


def wanted_kind() -> str:
    """As SPARSIGHT_LOG says; ValueError if it says something else."""
    kind = os.environ.get(VARIABLE, "text")
    if kind not in KINDS:
        raise ValueError(f"{VARIABLE} is {kind!r}; wanted {' or '.join(KINDS)}")
    return kind


def for_workers() -> LoggingConfig | None:
    """How Ray's workers shall log; None for Ray's own way."""
    if wanted_kind() == "text":
        return None
    return LoggingConfig(encoding="JSON", log_level="INFO")


def configure() -> None:
    """Sets this process's logging up, on stderr; nothing if text is wanted, which is Python's own way."""
    if wanted_kind() == "text":
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("", "ray"):  # Ray's logger has a handler of its own, and hands nothing on
        logging.getLogger(name).handlers = [handler]
    for name in ("cluster", "interp", "jobs"):
        logging.getLogger(name).setLevel(logging.INFO)
    logger.setLevel(logging.NOTSET)


class JsonLines(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class Journal:
    """A watcher of runs that logs every event with the ids that it concerns, at level INFO, losses at WARNING."""

    def __init__(self, stage: str, tasks: Sequence[Task] = ()) -> None:
        """`tasks` are those that the run will tell of."""
        self._stage = stage
        self._tasks = {task.key: task for task in tasks}

    def submitted(self, key: str, actor: str) -> None:
        self._log_of(key, "task submitted", actor=actor)

    def done(self, result: Result[Any]) -> None:
        receipt = result.value
        size = (
            {"rows": receipt.rows, "bytes": receipt.bytes} if isinstance(receipt, Receipt) else {}
        )
        self._log_of(
            result.task.key,
            "task done",
            actor=result.actor,
            node=result.node,
            attempt=result.attempts,
            run_s=round(result.run_s, 3),
            **size,
        )

    def retried(self, key: str, attempt: int, cause: BaseException) -> None:
        self._log_of(key, "task retried", attempt=attempt, cause=said(cause))

    def quarantined(self, key: str, cause: BaseException) -> None:
        self._log_of(key, "task quarantined", logging.WARNING, cause=said(cause))

    def actor_lost(self, actor: str, cause: BaseException) -> None:
        self._log("actor lost", logging.WARNING, actor=actor, cause=said(cause))

    def actor_back(self, actor: str) -> None:
        self._log("actor there", actor=actor)

    def _log_of(self, key: str, what: str, level: int = logging.INFO, **fields: object) -> None:
        ids = ids_of(self._tasks[key]) if key in self._tasks else {}
        self._log(what, level, task=key, **ids, **fields)

    def _log(self, what: str, level: int = logging.INFO, **fields: object) -> None:
        logger.log(level, what, extra={"stage": self._stage, **fields})
