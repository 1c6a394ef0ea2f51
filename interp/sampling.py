"""Which rows are kept where all are too many: an even sample, and the rare events besides.

Every row has a rank in (0, 1), a hash of (salt, env_seed, agent, t): no generator, so no order and no process that
could change it. Of N rows are kept the `base` rows of lowest rank and, of every label that is rare among them, the
`quota` rows of lowest rank where it holds: bottom-k samples over shared ranks (Cohen & Kaplan 2007, "Summarizing data
using bottom-k sketches"; Duffield, Lund & Thorup 2007). Given the ranks of all other rows, a row is kept exactly if its
own is below the largest threshold of the samples that it could belong to. That threshold is its inclusion probability
pi, and sums over kept rows weighted by 1 / pi estimate sums over all rows without bias (Horvitz & Thompson 1952).

N rows · K kept rows · L labels.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float64, Int64, Shaped, UInt64

from interp.records import INCLUSION_FIELD, LABEL_PREFIX


class Kept(NamedTuple):
    """A sample of the rows."""

    row_K: Int64[np.ndarray, " K"]
    """Which rows, ascending."""
    inclusion_K: Float64[np.ndarray, " K"]
    """Probability with which each was kept, above 0 and at most 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservoir:
    """How many rows are kept, and for whom."""

    rows: int
    """Most rows that are kept."""
    label_share: float
    """Share of them set aside for rows where a rare label holds, evenly over all labels; what they do not need goes to
    the even sample."""
    salt: str
    """Another salt draws other rows."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a sample of {self.rows} rows: at least 1")
        if not 0 <= self.label_share < 1:
            raise ValueError(f"label_share {self.label_share}: from 0 to below 1")

    def quota(self, num_labels: int) -> int:
        """Rows that are kept at least where a rare label holds, if there are so many.

        Raises ValueError if the share comes to less than one row a label.
        """
        quota = int(self.rows * self.label_share / num_labels) if num_labels else 0
        if num_labels and self.label_share and not quota:
            raise ValueError(
                f"{self.rows} rows with label_share {self.label_share} leave no row for each of {num_labels} labels; "
                "keep more rows, record fewer labels, or set label_share 0"
            )
        return quota

    def keep(self, rank_N: Float64[np.ndarray, " N"], label_NL: Bool[np.ndarray, "N L"]) -> Kept:
        """The sample and its inclusion probabilities; all rows, with probability 1, if they are few enough.

        A label is rare if the even sample is expected to have fewer rows of it than the quota. How many rows a sample
        gets follows from counts alone and never from ranks, which is what keeps the estimates unbiased.
        """
        num_rows, num_labels = label_NL.shape
        quota = self.quota(num_labels)
        count_L = label_NL.sum(0)
        rare_L = (count_L > 0) & (count_L * (self.rows - quota * num_labels) < quota * num_rows)
        base = self.rows - int(np.minimum(count_L, quota)[rare_L].sum())
        inclusion_N = _thresholds(rank_N, min(base, num_rows))
        if num_rows > self.rows:
            for label in np.flatnonzero(rare_L):
                holds = np.flatnonzero(label_NL[:, label])
                threshold = _thresholds(rank_N[holds], min(quota, len(holds)))
                inclusion_N[holds] = np.maximum(inclusion_N[holds], threshold)
        else:
            inclusion_N[:] = 1
        row_K = np.flatnonzero(rank_N < inclusion_N)
        return Kept(row_K, inclusion_N[row_K])

    def sample(self, table: pa.Table) -> pa.Table:
        """Kept rows of a recording's table, in their order, with a column of inclusion probabilities at the end."""
        env_seed, agent, t = (
            table.column(name).to_numpy().astype(np.int64) for name in ("env_seed", "agent", "t")
        )
        labels = [name for name in table.column_names if name.startswith(LABEL_PREFIX)]
        label_LN = np.array([table.column(name).to_numpy() for name in labels], np.bool_)
        label_NL = label_LN.reshape(len(labels), len(table)).T
        kept = self.keep(ranks(env_seed, agent, t, salt=self.salt), label_NL)
        return table.take(pa.array(kept.row_K)).append_column(
            INCLUSION_FIELD, pa.array(kept.inclusion_K)
        )


def ranks(
    env_seed_N: Int64[np.ndarray, " N"],
    agent_N: Int64[np.ndarray, " N"],
    t_N: Int64[np.ndarray, " N"],
    *,
    salt: str,
) -> Float64[np.ndarray, " N"]:
    """A number in (0, 1) for each row, uniform over rows and salts; a function of its own key alone."""
    key = int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=8).digest(), "big")
    hash_N = np.full(len(env_seed_N), key, np.uint64)
    for part_N in (env_seed_N, agent_N, t_N):
        hash_N = _mix(hash_N ^ part_N.astype(np.uint64))
    return ((hash_N >> np.uint64(11)) + 0.5) * 2.0**-53


def total(
    value_K: Shaped[np.ndarray, "K *M"], inclusion_K: Float[np.ndarray, " K"]
) -> Float64[np.ndarray, "*M"]:
    """Estimated sum over all rows, also those that were not kept; unbiased (Horvitz & Thompson 1952)."""
    return np.tensordot(1 / inclusion_K.astype(np.float64), value_K.astype(np.float64), axes=1)


def mean(
    value_K: Shaped[np.ndarray, "K *M"], inclusion_K: Float[np.ndarray, " K"]
) -> Float64[np.ndarray, "*M"]:
    """Estimated mean over all rows, for instance the base rate of a label: two totals divided (Hajek 1971).

    Its bias is of the order of 1 / K. No interval: rows of one episode are not independent.
    """
    return total(value_K, inclusion_K) / total(np.ones(len(value_K)), inclusion_K)


def _thresholds(rank_N: Float64[np.ndarray, " N"], size: int) -> Float64[np.ndarray, " N"]:
    """For each row, what its rank must be below to be among the `size` lowest, given all other ranks."""
    if size >= len(rank_N):
        return np.ones(len(rank_N))
    if size == 0:
        return np.zeros(len(rank_N))
    last, next_one = np.partition(rank_N, [size - 1, size])[size - 1 : size + 1]
    return np.where(rank_N <= last, next_one, last)


def _mix(hash_N: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): every bit of the input changes half of the output's."""
    hash_N = hash_N + np.uint64(0x9E3779B97F4A7C15)
    hash_N = (hash_N ^ (hash_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hash_N = (hash_N ^ (hash_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hash_N ^ (hash_N >> np.uint64(31))
