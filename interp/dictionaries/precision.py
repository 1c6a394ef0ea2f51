"""Is the faster backend of matrix products exact on this processor?

PyTorch has two for float32. The second, which `torch.set_float32_matmul_precision("medium")` allows, is up to twice as
fast on some processors; on others it rounds to bfloat16. Which it is, a product of known rows tells: its relative
error |C - C_64| / |C_64| against the same product in float64 is some 3e-7 of the one and 2e-3 of the other.

It changes last bits, so a config chooses it, it holds for the products of that run alone, and what comes of it depends
on the processor.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

logger = logging.getLogger(__name__)

BOUND = 1e-5
"""Largest relative error that counts as float32."""
_ROWS = 512


@contextmanager
def fast_products() -> Iterator[None]:
    """Matrix products by the faster backend if it is exact here, as ever if not."""
    if not is_exact():
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def is_exact() -> bool:
    """Whether the faster backend computes in float32; asked once a process, and said in its log."""
    error = medium_error()
    if exact := error <= BOUND:
        logger.info("faster matrix products: on, their relative error here is %.1e", error)
    else:
        logger.warning(
            "faster matrix products: off, their relative error here is %.1e, wanted at most %.0e; float32 instead",
            error,
            BOUND,
        )
    return exact


def medium_error() -> float:
    """Relative error of a product by the faster backend."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(_ROWS, _ROWS, generator=generator) for _ in range(2))
    exact = first.double() @ second.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = first @ second
    finally:
        torch.set_float32_matmul_precision(before)
    return float((found.double() - exact).norm() / exact.norm())
