"""How often did this process ask a store, how often in vain, how often again? Plain counts, for whoever tells them.

Actors hand theirs over with their answers, so that one process tells Prometheus.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Tally(NamedTuple):
    """Since it was last taken."""

    operations: int = 0
    """Calls of `Store`; a listing is one, however long."""
    errors: int = 0
    """Those that failed, retries and all. An object that is not there or there already is no failure."""
    retries: int = 0
    """Requests that were repeated within an operation; a folder repeats none."""


NOTHING = Tally()
_lock = threading.Lock()
_now = NOTHING


def add(more: Tally) -> None:
    """Counts."""
    global _now
    with _lock:
        _now = Tally(*(a + b for a, b in zip(_now, more, strict=True)))


def take() -> Tally:
    """What was counted since the last call."""
    global _now
    with _lock:
        taken, _now = _now, NOTHING
    return taken


@contextmanager
def operation() -> Iterator[None]:
    """Counts what happens inside as one operation."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        add(Tally(operations=1))
        raise
    except OSError:
        add(Tally(operations=1, errors=1))
        raise
    else:
        add(Tally(operations=1))
