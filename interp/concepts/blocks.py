"""All features against all labels, however many: blocks of features that are scored alone and put together afterwards.

Ranks are of one feature, and the draws of the null are the same for all, so a block needs nothing of the others.
What comes out is the same to the last bit in one process or in many; `cluster.scoring` has the many.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from interp.concepts.lags import Targets
from interp.concepts.ranks import centred_ranks
from interp.concepts.scoring import BLOCK_FEATURES, AurocTable, auroc, null_kind, rank_auroc
from interp.stats.multiplicity import Largest, benjamini_hochberg, max_t
from interp.stats.permutation import (
    EPISODE_SIGN_FLIP,
    UNTESTED,
    Draws,
    exchange_null,
    sign_flip_null,
    standardised,
    two_sided,
)


class BlockScores(NamedTuple):
    """What is known of one block of features."""

    auroc_FC: Float64[np.ndarray, "F C"]
    """NaN where a label has no positive or no negative sample."""
    p_FC: Float64[np.ndarray, "F C"]
    """NaN where a label was not tested."""
    z_FC: Float64[np.ndarray, "F C"]
    """The rank sum in standard deviations of its null."""
    null_auroc_FC: Float64[np.ndarray, "F C"]
    """Mean over draws of the distance of the AUROC from 1/2, to first order in ragged episodes."""
    null_largest_B: Float64[np.ndarray, " B"]
    """Under every draw, the largest |z| of the block."""
    null_C: list[str]
    """Which null hypothesis each label was tested against; "" if it was not."""
    num_missing_C: Int64[np.ndarray, " C"]
    """Samples left out because the label is not known there."""


class RankScores(NamedTuple):
    """All features against all labels."""

    auroc_FC: Float64[np.ndarray, "F C"]
    p_FC: Float64[np.ndarray, "F C"]
    """Of each pair alone; see `interp.concepts.scoring.episode_permutation_p`."""
    q_FC: Float64[np.ndarray, "F C"]
    """Benjamini-Hochberg over all pairs."""
    family_p_FC: Float64[np.ndarray, "F C"]
    """Adjusted for all pairs by max-T: at 5 %, one table in twenty has a single false finding."""
    selectivity_FC: Float64[np.ndarray, "F C"]
    """|AUROC - 1/2| less its mean on labels of other episodes (Hewitt & Liang 2019); at most 1/2, about 0 by chance."""
    null_C: list[str]
    """Which null hypothesis each label was tested against; "" if it was not."""
    num_missing_C: Int64[np.ndarray, " C"]
    """Samples left out because the label is not known there."""


def score_block(
    feature_ESF: Float32[np.ndarray, "E S F"],
    targets: Targets,
    draws: Draws,
    *,
    min_positive_episodes: int = 10,
) -> BlockScores:
    """Scores of at most `BLOCK_FEATURES` features.

    The AUROC ranks the samples where the label is known. The test ranks all of them and lets a label track, with
    what is missing in it, be worn by other episodes: so it stays exact whatever is missing.
    """
    num_features = feature_ESF.shape[2]
    if num_features > BLOCK_FEATURES:
        raise ValueError(f"{num_features} features in a block; at most {BLOCK_FEATURES}")
    rank_ESF = centred_ranks(feature_ESF, targets.mask_ES)
    shape = (num_features, targets.label_ESC.shape[2])
    p_FC, z_FC, null_auroc_FC = (np.full(shape, np.nan) for _ in range(3))
    largest_B = np.zeros(len(draws.order_BE))
    null_C = [
        null_kind(label_ES, known_ES, min_positive_episodes)
        for label_ES, known_ES in zip(
            np.moveaxis(targets.label_ESC, 2, 0), np.moveaxis(targets.known_ESC, 2, 0), strict=True
        )
    ]
    for c, kind in enumerate(null_C):
        if kind == UNTESTED:
            continue
        label_ES, known_ES = targets.label_ESC[..., c], targets.known_ESC[..., c]
        num_positive, num_known = float(label_ES.sum()), float(known_ES.sum())
        track_ES = ((label_ES - num_positive / num_known) * known_ES).astype(np.float32)
        null_of = sign_flip_null if kind == EPISODE_SIGN_FLIP else exchange_null
        null = null_of(rank_ESF, track_ES, draws)
        z = standardised(null)
        p_FC[:, c] = two_sided(null)
        z_FC[:, c] = z.observed_F
        # ranks among all samples reach further than those among the known ones
        num_pairs = num_positive * (num_known - num_positive) * targets.mask_ES.sum() / num_known
        null_auroc_FC[:, c] = np.abs(null.null_BF).mean(0) / num_pairs
        largest_B = np.fmax(largest_B, np.fmax.reduce(np.abs(z.null_BF), axis=1, initial=0.0))
    return BlockScores(
        auroc_FC=known_auroc(feature_ESF, targets),
        p_FC=p_FC,
        z_FC=z_FC,
        null_auroc_FC=null_auroc_FC,
        null_largest_B=largest_B,
        null_C=null_C,
        num_missing_C=targets.num_missing_C,
    )


def merge(blocks: Sequence[BlockScores]) -> RankScores:
    """The blocks of all features, in their order; all of the same targets and draws."""
    if not blocks:
        raise ValueError("no blocks to merge: a dictionary has at least one latent")
    auroc_FC, p_FC, z_FC, null_auroc_FC = (
        np.concatenate(parts) for parts in list(zip(*blocks, strict=True))[:4]
    )
    family_p_M = max_t(
        [Largest(np.abs(block.z_FC).reshape(-1), block.null_largest_B) for block in blocks]
    )
    return RankScores(
        auroc_FC=auroc_FC,
        p_FC=p_FC,
        q_FC=benjamini_hochberg(p_FC),
        family_p_FC=family_p_M.reshape(z_FC.shape),
        selectivity_FC=np.abs(auroc_FC - 0.5) - null_auroc_FC,
        null_C=blocks[0].null_C,
        num_missing_C=blocks[0].num_missing_C,
    )


def score_all(
    feature_ESF: Float32[np.ndarray, "E S F"],
    targets: Targets,
    *,
    seed: int,
    num_permutations: int = 1000,
    min_positive_episodes: int = 10,
) -> RankScores:
    """Scores of any number of features, block after block."""
    return merge(
        score_blocks(
            feature_ESF,
            targets,
            Draws.make(len(feature_ESF), num_permutations, seed=seed),
            min_positive_episodes=min_positive_episodes,
        )
    )


def score_blocks(
    feature_ESF: Float32[np.ndarray, "E S F"],
    targets: Targets,
    draws: Draws,
    *,
    min_positive_episodes: int = 10,
) -> list[BlockScores]:
    """Features, of which the first begins a block, in as many blocks as they need."""
    return [
        score_block(
            feature_ESF[..., block], targets, draws, min_positive_episodes=min_positive_episodes
        )
        for block in blocks_of(feature_ESF.shape[2])
    ]


def blocks_of(num_features: int) -> Iterator[slice]:
    """The only division of features into blocks: another one could round the last bits otherwise.

    No features are one empty block, which still tells by which null each label would be tested.
    """
    for start in range(0, max(1, num_features), BLOCK_FEATURES):
        yield slice(start, min(start + BLOCK_FEATURES, num_features))


def known_auroc(
    feature_ESF: Float32[np.ndarray, "E S F"], targets: Targets
) -> Float64[np.ndarray, "F C"]:
    """AUROC of each label on the samples where it is known; labels known at the same samples are ranked together."""
    auroc_FC = np.full((feature_ESF.shape[2], targets.label_ESC.shape[2]), np.nan)
    for columns, known_ES in targets.alike():
        auroc_FC[:, columns] = rank_auroc(feature_ESF, targets.label_ESC[..., columns], known_ES)
    return auroc_FC


def known_table(feature_ESF: Float32[np.ndarray, "E S F"], targets: Targets) -> AurocTable:
    """AUROCs and influences, every label on the samples where it is known; NaN and 0 where it is nowhere."""
    num_episodes, _, num_features = feature_ESF.shape
    num_labels = targets.label_ESC.shape[2]
    table = AurocTable(
        np.full((num_features, num_labels), np.nan),
        np.zeros((num_episodes, num_features, num_labels), np.float32),
    )
    for columns, known_ES in targets.alike():
        some = auroc(feature_ESF, targets.label_ESC[..., columns], known_ES)
        table.auroc_FC[:, columns], table.influence_EFC[..., columns] = some
    return table
