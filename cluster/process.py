"""Settings of a process that computes: one thread, and an allocator that keeps its memory."""

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = 1 << 30
"""Blocks smaller than this are reused and not given back to the system."""


def settle() -> None:
    """One torch thread, since several processes share the cores; and freed memory is kept.

    By default glibc gives large blocks back to the system when they are freed, and the next one of that size is made of
    new pages, each of which is zeroed at its first touch. A system without glibc keeps its own ways.
    """
    torch.set_num_threads(1)
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
