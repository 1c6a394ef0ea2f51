"""Settings of a process that computes: one thread, an allocator that keeps its memory, products that round alike."""

import ctypes
import os
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


def round_alike() -> None:
    """A row's products do not depend on where it lies in memory or in its batch; to be called before the first product.

    Without this, MKL chooses its loops by size and alignment, and on some processors (an AMD EPYC) rows of one batch
    are rounded in two ways. It costs 10 to 15 % of a product there. Whoever has set MKL_CBWR knows better.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")  # MKL reads it at its first call
