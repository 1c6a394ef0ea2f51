"""How a fake server is told to fail: a function from "METHOD path ..." of a request to what to do, or None."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Fault = TypeVar("Fault")


class Faulty(Generic[Fault]):
    """A server that asks `fault` about every request."""

    def __init__(self) -> None:
        self.fault: Callable[[str], Fault | None] = lambda _request: None

    @contextmanager
    def failing(self, fault: Fault, *, on: str = "", times: int = 1_000_000) -> Iterator[None]:
        """The fault on the next requests that contain `on`."""
        left = times

        def decide(request: str) -> Fault | None:
            nonlocal left
            if left and on in request:
                left -= 1
                return fault
            return None

        before, self.fault = self.fault, decide
        try:
            yield
        finally:
            self.fault = before
