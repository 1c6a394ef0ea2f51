"""Concepts that nobody asked for: latents that fire together are one, whatever it is.

Clusters are made on training episodes and named, typed and counted on held-out ones (`interp.concepts.naming`,
`interp.concepts.explanation`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32

from interp.concepts.coactivation import (
    fires_nearby,
    linked,
    peri_event,
    phi_matrix,
    shape_name,
    shape_similarity,
)
from interp.concepts.explanation import FAMILIES, Explanation, ExplanationConfig, Family
from interp.concepts.naming import Contrast, NamingConfig, describe, name_of


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryConfig:
    """How concepts are found without labels, named and typed."""

    min_active_episodes: int = 10
    """Training episodes, and held-out ones, in which a latent must fire to be live."""
    nearby_steps: int = 3
    """Two latents fire together if the second is on within so many steps of the first, in the same agent."""
    min_phi: float = 0.3
    """Mean phi of firing together at which clusters of latents are joined."""
    profile_steps: int = 8
    """Steps before and after onsets over which activation is averaged."""
    min_shape: float = 0.9
    """Mean correlation of such averages at which concepts are said to have one shape."""
    max_clusters: int = 64
    """Clusters that are named and typed: those that fire in most held-out episodes."""
    naming: NamingConfig = field(default_factory=NamingConfig)
    explanation: ExplanationConfig = field(default_factory=ExplanationConfig)

    def __post_init__(self) -> None:
        for name, least in (
            ("min_active_episodes", 1),
            ("nearby_steps", 0),
            ("profile_steps", 2),
            ("max_clusters", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: at least {least}")
        for name in ("min_phi", "min_shape"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: above 0, at most 1")


class Cluster(NamedTuple):
    """Latents that fire together."""

    latents: tuple[int, ...]
    """Ascending places along the axis of latents."""
    mean_phi: float
    """Of its pairs; NaN for a latent alone."""


def find_clusters(
    train_ESF: Float32[np.ndarray, "E S F"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    num_agents: int,
    config: DiscoveryConfig,
    stride_steps: int = 1,
) -> list[Cluster]:
    """Clusters of latents by firing nearby, the largest first; every latent is in one.

    `stride_steps` is how many steps two neighbouring samples of an agent are apart; `nearby_steps` is rounded up to
    whole samples.
    """
    fires_ESF = fires_nearby(
        train_ESF > 0,
        mask_ES,
        num_agents=num_agents,
        steps=-(-config.nearby_steps // stride_steps),
    )
    phi_FF = phi_matrix(fires_ESF, mask_ES)
    clusters = []
    for members in linked(phi_FF, at_least=config.min_phi):
        pairs = phi_FF[np.ix_(members, members)][np.triu_indices(len(members), 1)]
        clusters.append(
            Cluster(tuple(members), float(pairs.mean()) if len(pairs) else float("nan"))
        )
    return clusters


def cluster_activation(
    latent_ESF: Float32[np.ndarray, "E S F"],
    clusters: list[Cluster],
    scale_F: Float32[np.ndarray, " F"],
) -> Float32[np.ndarray, "E S C"]:
    """The strongest member of each cluster at every sample, each in units of its own scale."""
    shape = (*latent_ESF.shape[:2], len(clusters))
    value_ESC = np.zeros(shape, np.float32)
    unit_F = np.where(scale_F > 0, scale_F, 1).astype(np.float32)
    for c, cluster in enumerate(clusters):
        members = list(cluster.latents)
        value_ESC[..., c] = (latent_ESF[..., members] / unit_F[members]).max(-1)
    return value_ESC


class Shape(NamedTuple):
    """How a concept comes and goes."""

    name: str
    """See `interp.concepts.coactivation.shape_name`."""
    group: int
    """Concepts of one group have profiles that correlate; the largest group is 0."""
    profile_P: tuple[float, ...]
    """Mean activation around onsets."""


def shapes(
    value_ESC: Float32[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    num_agents: int,
    config: DiscoveryConfig,
    stride_steps: int = 1,
) -> list[Shape]:
    """The shape of every concept around its own onsets; `profile_steps` is rounded down to whole samples."""
    profile_CP = peri_event(
        value_ESC,
        mask_ES,
        num_agents=num_agents,
        steps=max(2, config.profile_steps // stride_steps),
    )
    group_of: dict[int, int] = {}
    for number, members in enumerate(
        linked(shape_similarity(profile_CP), at_least=config.min_shape)
    ):
        group_of |= dict.fromkeys(members, number)
    return [
        Shape(shape_name(profile_P), group_of[c], tuple(profile_P.tolist()))
        for c, profile_P in enumerate(profile_CP)
    ]


_STAND_OUT = pa.struct(
    [
        ("item", pa.string()),
        ("log_odds", pa.float64()),
        ("lo", pa.float64()),
        ("hi", pa.float64()),
        ("q", pa.float64()),
        ("share_peaks", pa.float64()),
        ("share_others", pa.float64()),
    ]
)
FINDING_SCHEMA = pa.schema(
    [
        ("cluster", pa.int32()),
        ("latents", pa.list_(pa.int32())),
        ("mean_phi", pa.float64()),
        ("name", pa.string()),
        ("strength", pa.float64()),
        ("evidence", pa.float64()),
        ("type", pa.string()),
        ("description", pa.string()),
        ("firing_rate", pa.float64()),
        ("active_episodes", pa.int32()),
        ("stand_outs", pa.list_(_STAND_OUT)),
        ("num_items", pa.int32()),
        *((f"share_{family}", pa.float64()) for family in FAMILIES),
        *((f"q_{family}", pa.float64()) for family in FAMILIES),
        ("run_steps", pa.float64()),
        ("memory_steps", pa.float64()),
        ("shape", pa.string()),
        ("shape_group", pa.int32()),
        ("profile", pa.list_(pa.float64())),
    ]
)
"""One row per cluster of latents, those that fire in most episodes first.

`name` is what stands out most where it peaks (`interp.concepts.naming`), and how far that is to be trusted is two
numbers: `strength`, the log odds of that item at strong moments against others, and `evidence`, 1 - q; NaN if nothing
stands out. `type` is what explains it best, by the shares of held-out variance (`explanation`). Rates and counts are of
held-out episodes.
"""


def leading_kind(finding: Mapping[str, Any]) -> tuple[Family, float, float]:
    """Which kind explains most of a row of the table, with its share and its q, whether or not it passed."""
    first = FAMILIES[0]
    for family in FAMILIES:
        share = finding[f"share_{family}"]  # NaN if the world cannot tell it
        if math.isnan(finding[f"share_{first}"]) or share > finding[f"share_{first}"]:
            first = family
    return first, finding[f"share_{first}"], finding[f"q_{first}"]


def findings_table(
    clusters: Sequence[Cluster],
    latent_F: Sequence[int],
    held_out_ESC: Float32[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
    contrasts: Sequence[Contrast],
    explanations: Sequence[Explanation],
    shape_C: Sequence[Shape],
) -> pa.Table:
    """What was found out about each cluster; `latent_F` are the numbers of the latents along their axis."""
    fires_ESC = (held_out_ESC > 0) & mask_ES[..., None]
    rows = [
        {
            "cluster": c,
            "latents": [latent_F[f] for f in cluster.latents],
            "mean_phi": cluster.mean_phi,
            "name": name_of(contrast),
            "strength": contrast.stand_outs[0].log_odds if contrast.stand_outs else float("nan"),
            "evidence": 1 - contrast.stand_outs[0].q if contrast.stand_outs else float("nan"),
            "type": explanation.kind,
            "description": describe(contrast),
            "firing_rate": float(fires_ESC[..., c].sum() / mask_ES.sum()),
            "active_episodes": int(fires_ESC[..., c].any(1).sum()),
            "stand_outs": [one._asdict() for one in contrast.stand_outs],
            "num_items": contrast.num_items,
            **{f"share_{family}": explanation.share[family] for family in FAMILIES},
            **{f"q_{family}": explanation.q[family] for family in FAMILIES},
            "run_steps": explanation.run_steps,
            "memory_steps": explanation.memory_steps,
            "shape": shape.name,
            "shape_group": shape.group,
            "profile": list(shape.profile_P),
        }
        for c, (cluster, contrast, explanation, shape) in enumerate(
            zip(clusters, contrasts, explanations, shape_C, strict=True)
        )
    ]
    return pa.Table.from_pylist(rows, schema=FINDING_SCHEMA)
