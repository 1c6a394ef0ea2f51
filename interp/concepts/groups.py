"""One label, several latents: do they tell it together better than the best of them alone?

A dictionary splits a concept that is frequent or has several forms. Latents that score the same label, and fire near
each other, are a group; their union (any of them fires) is compared with the best single one. Members, thresholds and
the best one are chosen on training episodes; what both are worth is told by held-out ones, on the same resamples.

(Splitting: Bricken et al. 2023; Chanin et al. 2024, "A is for absorption". The union of precise latents of *any* kind
is `interp.concepts.reconstruction`.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32

from interp.concepts.blocks import known_auroc
from interp.concepts.coactivation import fires_nearby, linked, phi_matrix
from interp.concepts.lags import Targets
from interp.concepts.scoring import best_threshold_f1
from interp.stats.bootstrap import bootstrap_ratio, bootstrap_ratio_difference
from interp.stats.episodes import check_episodes


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig:
    """How latents of one label are grouped."""

    min_auroc: float = 0.55
    """Smallest AUROC for the label, on training episodes, of a member; each of n equal parts of a label has about 0.5 +
    0.5 / n."""
    min_precision_lift: float = 2.0
    """Times the label's base rate that the precision of a member's firing, on training episodes, is at least."""
    nearby_steps: int = 3
    """Two latents fire together if the second is on within so many steps of the first, in the same agent."""
    min_phi: float = 0.2
    """Mean phi of firing together at which clusters of members are joined."""
    max_members: int = 16
    """Members that are considered for a label, those of the highest AUROC."""
    num_resamples: int = 2000
    """Bootstrap resamples of episodes behind each interval."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.min_auroc < 1:
            raise ValueError(f"min_auroc {self.min_auroc}: from 0.5 (chance) to below 1")
        if not 0 < self.min_phi <= 1:
            raise ValueError(f"min_phi {self.min_phi}: above 0, at most 1")
        for name, least in (
            ("min_precision_lift", 1),
            ("nearby_steps", 0),
            ("max_members", 2),
            ("num_resamples", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: at least {least}")


class Group(NamedTuple):
    """Latents that share a label and fire near each other."""

    label: str
    latents: tuple[int, ...]
    """Places along the axis of latents; first the best alone, on training episodes, then by AUROC."""
    thresholds: tuple[float, ...]
    """Above which each fires."""
    mean_phi: float
    """Of its pairs, on training episodes."""
    union_f1: float
    """Held-out F1 of any of them firing."""
    union_lo: float
    union_hi: float
    best_f1: float
    """Held-out F1 of the first alone."""
    gain: float
    """Difference of the two; with its percentile interval over episodes, paired. NaN where one is not defined."""
    gain_lo: float
    gain_hi: float

    @property
    def beats_best(self) -> bool:
        """Whether the whole interval of the gain is above 0."""
        return self.gain_lo > 0


GROUP_SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("latents", pa.list_(pa.int32())),
        ("thresholds", pa.list_(pa.float64())),
        ("mean_phi", pa.float64()),
        ("union_f1", pa.float64()),
        ("union_lo", pa.float64()),
        ("union_hi", pa.float64()),
        ("best_f1", pa.float64()),
        ("gain", pa.float64()),
        ("gain_lo", pa.float64()),
        ("gain_hi", pa.float64()),
        ("beats_best", pa.bool_()),
    ]
)
"""One row per group, as `Group`; `latents` are numbers of the dictionary."""


def groups_table(groups: Sequence[Group], latent_F: Sequence[int]) -> pa.Table:
    """Groups as rows; `latent_F` are the numbers of the latents along the axis on which they were found."""
    rows = [
        {
            **group._asdict(),
            "latents": [latent_F[f] for f in group.latents],
            "beats_best": group.beats_best,
        }
        for group in groups
    ]
    return pa.Table.from_pylist(rows, schema=GROUP_SCHEMA)


def find_groups(
    train_ESF: Float32[np.ndarray, "E S F"],
    train: Targets,
    held_out_ESF: Float32[np.ndarray, "E_ S_ F"],
    held_out: Targets,
    *,
    labels: Sequence[str],
    num_agents: int,
    config: GroupConfig,
    seed: int,
    stride_steps: int = 1,
) -> list[Group]:
    """All groups of at least two latents, label by label; those of a label with the largest gain first.

    `stride_steps` is how many steps two neighbouring samples of an agent are apart; `nearby_steps` is rounded up to
    whole samples.
    """
    check_episodes(len(held_out_ESF))
    if len(labels) != train.label_ESC.shape[2]:
        raise ValueError(
            f"{len(labels)} names for {train.label_ESC.shape[2]} labels; wanted one each"
        )
    auroc_FC = known_auroc(train_ESF, train)
    found = []
    for c, label in enumerate(labels):
        known_ES, label_ES = train.known_ESC[..., c], train.label_ESC[..., c]
        held_known_ES = held_out.known_ESC[..., c]
        if not label_ES.any() or not held_known_ES.any():
            continue
        members_F = _members(auroc_FC[:, c], train_ESF[known_ES], label_ES[known_ES], config)
        if len(members_F) < 2:
            continue
        train_ESM, held_out_ESM = train_ESF[..., members_F], held_out_ESF[..., members_F]
        scores = best_threshold_f1(
            train_ESM,
            label_ES[..., None],
            known_ES,
            held_out_ESM,
            held_out.label_ESC[..., c : c + 1],
            held_known_ES,
        )
        threshold_M = scores.threshold_FC[:, 0]
        nearby_ESM = fires_nearby(
            train_ESM > threshold_M,
            train.mask_ES,
            num_agents=num_agents,
            steps=-(-config.nearby_steps // stride_steps),
        )
        phi_MM = phi_matrix(nearby_ESM, train.mask_ES)
        train_f1_M = _f1_of(train_ESM > threshold_M, label_ES, known_ES)
        groups = []
        for cluster in linked(phi_MM, at_least=config.min_phi):
            if len(cluster) < 2:
                continue
            best = max(cluster, key=lambda m: train_f1_M[m])
            order = [best, *(m for m in cluster if m != best)]
            fires_ESM = (held_out_ESM > threshold_M)[..., order] & held_known_ES[..., None]
            pairs = phi_MM[np.ix_(cluster, cluster)][np.triu_indices(len(cluster), 1)]
            groups.append(
                _judged(
                    label,
                    tuple(int(members_F[m]) for m in order),
                    tuple(float(threshold_M[m]) for m in order),
                    float(pairs.mean()),
                    fires_ESM,
                    held_out.label_ESC[..., c],
                    config,
                    seed,
                )
            )
        found += sorted(groups, key=lambda group: -np.nan_to_num(group.gain, nan=-np.inf))
    return found


def _members(
    auroc_F: np.ndarray,
    train_NF: Float32[np.ndarray, "N F"],
    label_N: Bool[np.ndarray, " N"],
    config: GroupConfig,
) -> np.ndarray:
    """Latents that score the label on training episodes, the highest AUROC first."""
    fires_NF = train_NF > 0
    precision_F = fires_NF[label_N].sum(0) / np.maximum(fires_NF.sum(0), 1)
    scores_F = (np.nan_to_num(auroc_F, nan=0.0) >= config.min_auroc) & (
        precision_F >= config.min_precision_lift * label_N.mean()
    )
    members = np.flatnonzero(scores_F)
    return members[np.argsort(-auroc_F[members], kind="stable")][: config.max_members]


def _f1_of(
    fires_ESM: Bool[np.ndarray, "E S M"],
    label_ES: Bool[np.ndarray, "E S"],
    known_ES: Bool[np.ndarray, "E S"],
) -> np.ndarray:
    fires_NM, label_N = fires_ESM[known_ES], label_ES[known_ES]
    return 2 * fires_NM[label_N].sum(0) / np.maximum(fires_NM.sum(0) + label_N.sum(), 1)


def _judged(
    label: str,
    latents: tuple[int, ...],
    thresholds: tuple[float, ...],
    mean_phi: float,
    fires_ESM: Bool[np.ndarray, "E S M"],
    label_ES: Bool[np.ndarray, "E S"],
    config: GroupConfig,
    seed: int,
) -> Group:
    """Held-out F1, 2 TP / (2 TP + FP + FN), of the union and of the first latent."""
    positives_E1 = label_ES.sum(1, keepdims=True).astype(np.float64)

    def sums(said_ES: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hits_E1 = (said_ES & label_ES).sum(1, keepdims=True).astype(np.float64)
        return 2 * hits_E1, said_ES.sum(1, keepdims=True) + positives_E1

    union, best = sums(np.any(fires_ESM, axis=-1)), sums(fires_ESM[..., 0])
    resampling = {"seed": seed, "num_resamples": config.num_resamples}
    together = bootstrap_ratio(*union, **resampling)
    gain = bootstrap_ratio_difference(union, best, **resampling)
    return Group(
        label=label,
        latents=latents,
        thresholds=thresholds,
        mean_phi=mean_phi,
        union_f1=float(together.mean[0]),
        union_lo=float(together.lo[0]),
        union_hi=float(together.hi[0]),
        best_f1=float(bootstrap_ratio(*best, **resampling).mean[0]),
        gain=float(gain.mean[0]),
        gain_lo=float(gain.lo[0]),
        gain_hi=float(gain.hi[0]),
    )
