"""How long work tells its caller where it stands."""

from collections.abc import Callable

Note = Callable[[int, int, str], None]
"""Called with (done, total, what was done last)."""


def silent(_done: int, _total: int, _what: str) -> None:
    """For callers who do not want to know."""
