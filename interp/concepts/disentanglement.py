"""Can a label be changed alone? Cause and isolation of interchange interventions, after RAVEL.

A sample is given the main latents of label A that another sample has, one in which A is otherwise:

    x' = x + sum over f in S_A of (z_f(donor) - z_f(x)) w_f        an edit as a difference: the error of x stays

    cause(A)        share of pairs in which the probe of A now says what A is in the donor      0 nothing moves, 1 all
    isolation(A)    mean over labels B of the share of pairs, the donor being otherwise in B too, in which the probe of
                    B still says what it said of x                                              0 all moves, 1 nothing
    score(A)        (cause + isolation) / 2

An edit that does nothing scores 1/2 (0 and 1), and so does taking over the whole donor (1 and 0): 1/2 is chance, 1 is a
label with handles of its own. (Huang et al. 2024, RAVEL, with a language model's answers about cities; here labels are
the simulator's, and answers are those of linear probes of the same site, fitted on training episodes. Only labels that
a probe can tell take part, A too: of half of the training episodes it must reach an AUROC of .7 on the others. Pairs of
which a probe is wrong before the edit say nothing and are left out. Two labels that always come together, or are
written along one direction, cannot be changed apart by any dictionary; their isolation is low.)

The donor is of another episode. Intervals are over the episodes of x.

N samples · D width · F latents · P pairs · L labels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

MAX_PAIRS = 2000


class Pairs(NamedTuple):
    """Samples to edit, and for each the one that its latents are to come from."""

    base_P: Int64[np.ndarray, " P"]
    donor_P: Int64[np.ndarray, " P"]


class Moved(NamedTuple):
    """What an interchange did to each pair."""

    caused_P: Bool[np.ndarray, " P"]
    kept_PL: Bool[np.ndarray, "P L"]
    """The probe of the other label says what it said."""
    counts_PL: Bool[np.ndarray, "P L"]
    """The pair differs in the other label, and its probe is right about both."""


def draw_pairs(
    label_N: Bool[np.ndarray, " N"],
    right_N: Bool[np.ndarray, " N"],
    episode_N: Int64[np.ndarray, " N"],
    *,
    seed: int,
    max_pairs: int = MAX_PAIRS,
) -> Pairs:
    """As many with the label as without, each with a donor on the other side and of another episode.

    Only samples whose label is known, and told rightly by the probe (`right_N`), take part. None if a side is empty.
    """
    generator = np.random.default_rng(seed)
    sides = [np.flatnonzero(right_N & (label_N == side)) for side in (False, True)]
    each = min(max_pairs // 2, *(len(side) for side in sides))
    bases, donors = [], []
    for own, other in (sides, sides[::-1]):
        base_P = generator.choice(own, each, replace=False) if each else own[:0]
        donor_P = generator.choice(other, each) if each else other[:0]
        apart_P = episode_N[base_P] != episode_N[donor_P]
        bases.append(base_P[apart_P])
        donors.append(donor_P[apart_P])
    return Pairs(np.concatenate(bases), np.concatenate(donors))


def interchange(
    x_ND: Float32[np.ndarray, "N D"],
    value_NF: Float32[np.ndarray, "N F"],
    write_FD: Float[np.ndarray, "F D"],
    index_K: Int64[np.ndarray, " K"],
    pairs: Pairs,
) -> Float32[np.ndarray, "P D"]:
    """The base samples with some latents of their donors."""
    change_PK = value_NF[np.ix_(pairs.donor_P, index_K)] - value_NF[np.ix_(pairs.base_P, index_K)]
    return (x_ND[pairs.base_P] + change_PK @ write_FD[index_K]).astype(np.float32)


def moved(
    edited_PL: Bool[np.ndarray, "P L"],
    said_NL: Bool[np.ndarray, "N L"],
    label_NL: Bool[np.ndarray, "N L"],
    known_NL: Bool[np.ndarray, "N L"],
    pairs: Pairs,
    target: int,
) -> Moved:
    """Judges an edit aimed at label `target` by what all probes say of it (`edited_PL`) and said before (`said_NL`)."""
    base_P, donor_P = pairs
    right_NL = known_NL & (said_NL == label_NL)
    counts_PL = right_NL[base_P] & right_NL[donor_P] & (label_NL[base_P] != label_NL[donor_P])
    counts_PL[:, target] = False
    return Moved(
        edited_PL[:, target] == label_NL[donor_P, target],
        edited_PL == said_NL[base_P],
        counts_PL,
    )
