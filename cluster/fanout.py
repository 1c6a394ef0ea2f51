"""Many requests to a store at once: a network answers one in the time of sixteen, and the order stays."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

THREADS = 16
_LONGEST_RUN = 64
"""Items handed to a thread at once: a future costs about as much as reading a small file of this machine."""


def in_threads(
    ask: Callable[[Item], Answer],
    items: Sequence[Item],
    *,
    threads: int = THREADS,
    large: bool = False,
) -> Generator[Answer, None, None]:
    """`ask(item)` for every item, in the order of the items; the first error ends it.

    Items are handed out in runs, and answers of at most `2 * threads` runs wait in memory; of `large` answers no more
    than `threads`.
    """
    run = 1 if large else max(1, min(_LONGEST_RUN, len(items) // (4 * threads)))
    waiting: deque[Future[list[Answer]]] = deque()

    def ask_run(start: int) -> list[Answer]:
        return [ask(item) for item in items[start : start + run]]

    with ThreadPoolExecutor(threads, thread_name_prefix="store") as pool:
        try:
            for start in range(0, len(items), run):
                if len(waiting) >= (threads if large else 2 * threads):
                    yield from waiting.popleft().result()
                waiting.append(pool.submit(ask_run, start))
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
