"""What a task is about, by id, for logs: the driver's, and those of the process that works on it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from cluster.recordings import Plan, ShardPlan

_NAMES = {
    "recording_id": "recording",
    "policy_id": "policy",
    "dict_id": "dictionary",
    "player": "player",
}
"""Fields of tasks that are ids of other things, and what logs call those."""
_at_work: ContextVar[Mapping[str, str]] = ContextVar("at_work", default={})  # noqa: B039 - never changed in place


def ids_of(task: object) -> dict[str, str]:
    """Recording, shard, policy, dictionary and player of a task, as far as it has them."""
    found = {name: getattr(task, field, None) for field, name in _NAMES.items()}
    found["policy"] = found["policy"] or getattr(getattr(task, "subject", None), "policy_id", None)
    if isinstance(plan := getattr(task, "plan", None), Plan):
        found |= {"recording": plan.recording_id, "policy": plan.inputs.get("policy")}
    if isinstance(shard := getattr(task, "shard", None), ShardPlan):
        found["shard"] = shard.shard
    return {name: value for name, value in found.items() if isinstance(value, str)}


@contextmanager
def at_work(task: object) -> Iterator[None]:
    """Whatever this thread logs inside tells of the task, if it goes through a handler of the root logger."""
    for handler in logging.getLogger().handlers:
        if _tell not in handler.filters:
            handler.addFilter(_tell)
    key = getattr(task, "key", None)
    token = _at_work.set(({"task": key} if isinstance(key, str) else {}) | ids_of(task))
    try:
        yield
    finally:
        _at_work.reset(token)


def _tell(record: logging.LogRecord) -> bool:
    for name, value in _at_work.get().items():
        if not hasattr(record, name):  # what it says itself is more exact
            setattr(record, name, value)
    return True
