"""How a job ends when it cannot go on: one sentence that says what to do, and an exit status."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.stopping import EXIT_STATUS, Stopped


@contextmanager
def explain() -> Iterator[None]:
    """Turns errors that a person can mend into one line and exit status 2, Ctrl-C into 130, SIGTERM into 143."""
    try:
        yield
    except KeyboardInterrupt:
        print(
            "\nstopped; everything finished so far is kept. The same command goes on from here.",
            file=sys.stderr,
        )
        sys.exit(130)
    except Stopped as stopped:
        print(f"\n{stopped}. The same command goes on from here.", file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
