"""What happens when somebody asks a job to end: Kubernetes before it takes a pod away, or a person with `kill`.

The first SIGTERM ends a job where it stands, except while a pool is at work: that is told to finish what its actors
have in hand, and to send no more. The second one ends it at once.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

GRACE_S = 25.0
"""How long tasks in hand may take to end: Kubernetes kills 30 s after its first signal."""
EXIT_STATUS = 128 + signal.SIGTERM

_asked = Event()
_graceful = 0
"""How many pools are at work that would rather be asked."""


class Stopped(BaseException):
    """The job was asked to end, and what is finished is kept. Not an error, so nothing that mends errors catches it."""


def answer_sigterm() -> None:
    """From now on SIGTERM stops this process as the head of this file says. For the main thread, at its start."""
    _asked.clear()
    signal.signal(signal.SIGTERM, _on_sigterm)


@contextmanager
def keeping_sigterm() -> Iterator[None]:
    """Puts our answer back if it is replaced inside, as Ray does when it starts."""
    ours = signal.getsignal(signal.SIGTERM) is _on_sigterm
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(signum: int, _frame: FrameType | None) -> None:
    if _asked.is_set():
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    _asked.set()
    if not _graceful:
        raise Stopped("stopped by SIGTERM")


@contextmanager
def gracefully() -> Iterator[Event]:
    """Inside, the first SIGTERM only sets the event; whoever enters looks at it."""
    global _graceful
    _graceful += 1
    try:
        yield _asked
    finally:
        _graceful -= 1
