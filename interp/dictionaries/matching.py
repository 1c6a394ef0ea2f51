"""Which latent of one dictionary is which of another? One-to-one, by the directions that they write.

    maximise over matchings π:  sum_i s(a_i, b_π(i))        s = cosine, or its absolute value

Source: the Hungarian method (Kuhn 1955); the mean of what it finds is the MCC, mean correlation coefficient, of
identifiability (Hyvärinen and Morioka 2016) and of SAE studies. A direction among many has some neighbour by chance, so
the MCC of random dictionaries of the same sizes goes with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.metrics import Rows, measure


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matching:
    """Pairs of rows, as many as the smaller set has."""

    first_M: Int64[np.ndarray, " M"]
    second_M: Int64[np.ndarray, " M"]
    similarity_M: Float32[np.ndarray, " M"]
    """Cosine of each pair, or its absolute value."""

    @property
    def mcc(self) -> float:
        return float(self.similarity_M.mean(dtype=np.float64))

    def share_above(self, cosine: float) -> float:
        return float((self.similarity_M > cosine).mean())


def match(
    first_AD: Float[Tensor, "A _"], second_BD: Float[Tensor, "B _"], *, signed: bool = True
) -> Matching:
    """The best matching of two sets of directions; ValueError if one is empty or their widths differ."""
    if first_AD.shape[1] != second_BD.shape[1] or 0 in (*first_AD.shape, *second_BD.shape):
        raise ValueError(
            f"directions of shapes {tuple(first_AD.shape)} and {tuple(second_BD.shape)} cannot be matched; "
            "both must be of one site"
        )
    first, second = (
        rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12) for rows in (first_AD, second_BD)
    )
    similarity_AB = first.float() @ second.float().T
    if not signed:
        similarity_AB = similarity_AB.abs()
    rows, columns = linear_sum_assignment(similarity_AB.numpy(), maximize=True)
    return Matching(
        first_M=rows.astype(np.int64),
        second_M=columns.astype(np.int64),
        similarity_M=similarity_AB.numpy()[rows, columns],
    )


def chance_mcc(
    num_first: int, num_second: int, width: int, *, seed: int, signed: bool = True
) -> float:
    """MCC of random directions, independent of each other."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(n, width, generator=generator) for n in (num_first, num_second))
    return match(first, second, signed=signed).mcc


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """Do other seeds find the same latents? Of all pairs of dictionaries, the mean."""

    mcc: float
    matched_share: float
    """Share of live latents, of the dictionary that has more, whose match in the other has a cosine above .9."""
    chance: float
    """`mcc` of random directions, as many."""
    num_dictionaries: int

    @property
    def verdict(self) -> Literal["steady", "partly steady", "not steady"]:
        """Steady from 70 % of matched latents on, not steady up to 40 %.

        Where no truth is known, this is all that can be asked: latents that other seeds do not find are choices among
        many that reconstruct as well, and not to be read as concepts. Steady ones need not be what the data are made
        of: things that always occur together in one proportion are one latent, for every seed.
        """
        if self.matched_share >= STEADY_SHARE:
            return "steady"
        return "not steady" if self.matched_share <= UNSTEADY_SHARE else "partly steady"


MATCHED_COSINE = 0.9
STEADY_SHARE, UNSTEADY_SHARE = 0.7, 0.4


def stability(dictionaries: Sequence[Dictionary], rows_ND: Rows, *, seed: int = 0) -> Stability:
    """Of dictionaries of one site that differ in their seeds.

    Args:
        rows_ND: Held-out rows; only latents that fire on them count, for dead ones keep the random row they began with.
        seed: Of the random directions.

    Raises ValueError with fewer than two dictionaries, or if one has no live latent.
    """
    if len(dictionaries) < 2:
        raise ValueError(f"{len(dictionaries)} dictionaries; stability compares at least two seeds")
    alive = [
        dictionary.W_dec[measure(dictionary, rows_ND).density_F > 0] for dictionary in dictionaries
    ]
    pairs = list(combinations(alive, 2))
    matchings = [match(a, b) for a, b in pairs]
    matched = [
        matching.share_above(MATCHED_COSINE) * len(matching.similarity_M) / max(len(a), len(b))
        for matching, (a, b) in zip(matchings, pairs, strict=True)
    ]
    first, second = pairs[0]
    return Stability(
        mcc=float(np.mean([matching.mcc for matching in matchings])),
        matched_share=float(np.mean(matched)),
        chance=chance_mcc(len(first), len(second), first.shape[1], seed=seed),
        num_dictionaries=len(dictionaries),
    )
