"""Of many tests, which findings are to be believed?

`benjamini_hochberg` bounds the expected share of false findings among all; `westfall_young` the chance of a single
false one. The second knows how the tests depend on each other, and does not need p-values as small as level /
tests: with 10,000 tests and 1,000 permutations p is never below .001, and Benjamini-Hochberg at 5 % then finds
nothing unless 200 tests are that small together (`power.permutations_needed`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64


def benjamini_hochberg(p_value: Float[np.ndarray, "*M"]) -> Float64[np.ndarray, "*M"]:
    """q-values over everything that was tested (Benjamini & Hochberg 1995); NaN marks what was not, and stays NaN."""
    q_value = np.full(p_value.shape, np.nan)
    tested = ~np.isnan(p_value)
    p = p_value[tested].astype(np.float64)
    if len(p):
        order = np.argsort(-p, kind="stable")
        scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
        q = np.empty_like(p)
        q[order] = np.minimum(1, np.minimum.accumulate(scaled))
        q_value[tested] = q
    return q_value


def westfall_young(
    observed_M: Float[np.ndarray, " M"], null_BM: Float[np.ndarray, "B M"]
) -> Float64[np.ndarray, " M"]:
    """p-values adjusted for the family of all M tests, two-sided: step-down max-T (Westfall & Young 1993, algorithm
    4.1).

    `null_BM` are the statistics under B draws that are shared by all tests, which keeps how the tests depend on
    each other. Statistics should have one scale (divide by their standard deviation over draws), or the widest
    decides for all. NaN columns are of tests that were not made: they stay NaN and cost nothing.
    """
    adjusted_M = np.full(len(observed_M), np.nan)
    tested = np.flatnonzero(~np.isnan(observed_M))
    size = np.abs(observed_M[tested].astype(np.float64))
    order = np.argsort(-size, kind="stable")
    # the largest of the tests that are not yet rejected, draw by draw: from the least extreme upwards
    rest_BM = np.abs(null_BM[:, tested[order]]).astype(np.float64)
    rest_BM = np.maximum.accumulate(rest_BM[:, ::-1], axis=1)[:, ::-1]
    as_large = (rest_BM >= size[order] * (1 - 1e-12)).sum(0)
    adjusted_M[tested[order]] = np.maximum.accumulate((1 + as_large) / (len(null_BM) + 1))
    return adjusted_M


class Largest(NamedTuple):
    """What is kept of one block of tests for a single-step adjustment over all blocks."""

    size_M: Float64[np.ndarray, " M"]
    """Magnitude of the standardised statistics; NaN if not tested."""
    null_B: Float64[np.ndarray, " B"]
    """The largest magnitude under every draw; the draws are those of all blocks."""


def max_t(blocks: list[Largest]) -> Float64[np.ndarray, " M_"]:
    """Single-step max-T over tests that were made block by block, in their order (Westfall & Young 1993, ch. 2).

    A little less powerful than `westfall_young`, but what it needs of a block is one number for each draw.
    """
    null_B = np.max([block.null_B for block in blocks], axis=0)
    size_M = np.concatenate([block.size_M for block in blocks])
    sorted_B = np.sort(null_B)
    as_large_M = len(null_B) - np.searchsorted(sorted_B, size_M * (1 - 1e-12), side="left")
    return np.where(np.isnan(size_M), np.nan, (1 + as_large_M) / (len(null_B) + 1))
