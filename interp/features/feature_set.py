"""Directions of one site that mean something, whatever they come from, behind one face.

A latent of an autoencoder, a unit, a principal component, a difference of means, a probe, a random direction: each is
read by one inner product and written along one direction,

    f = J(x . read + bias), J(z) = z if z > threshold else 0,      x' = x + (f' - f) write,

which is all that scoring, steering and comparison ask of it. A threshold of -inf makes f the plain projection.

N rows · D activation width · F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from interp.steering.arms import SteeredLatent

FeatureKind = Literal[
    "sae",
    "crosscoder",
    "neuron",
    "pca",
    "diff_in_means",
    "probe",
    "sparse_probe",
    "random_direction",
]

SUPERVISED: tuple[FeatureKind, ...] = ("diff_in_means", "probe", "sparse_probe")
"""Kinds whose features are made for labels, and called by them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureSet:
    """Features of one site, with how large they are on training rows."""

    kind: FeatureKind
    site: str
    names: tuple[str, ...]
    """One per feature: the label of a probe, otherwise its number."""
    read_FD: Float32[np.ndarray, "F D"]
    bias_F: Float32[np.ndarray, " F"]
    threshold_F: Float32[np.ndarray, " F"]
    write_FD: Float32[np.ndarray, "F D"]
    scale_F: Float32[np.ndarray, " F"]
    """99th percentile of |f| over the training rows where it is not 0; 0 if it never is."""
    mean_F: Float32[np.ndarray, " F"]
    """Of f over all training rows."""
    firing_F: Float32[np.ndarray, " F"]
    """Share of the training rows with f > 0."""

    def __post_init__(self) -> None:
        wanted = {"names": len(self.names), **{n: len(getattr(self, n)) for n in _PER_FEATURE}}
        if len(set(wanted.values())) != 1 or self.read_FD.shape != self.write_FD.shape:
            raise ValueError(
                f"features of {self.site} do not agree on their number or width: "
                f"{wanted}, read {self.read_FD.shape}, write {self.write_FD.shape}"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def width(self) -> int:
        return self.read_FD.shape[1]

    def values(self, x_ND: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N F"]:
        """F of every row."""
        if x_ND.shape[1] != self.width:
            raise ValueError(
                f"rows have width {x_ND.shape[1]}, but these {self.kind} features of {self.site} read {self.width}"
            )
        pre_NF = x_ND @ self.read_FD.T + self.bias_F
        return np.where(pre_NF > self.threshold_F, pre_NF, np.float32(0))

    def select(self, index: Sequence[int]) -> "FeatureSet":
        """Some of the features, in the order asked for."""
        chosen = np.asarray(index, np.int64)
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen),
            **{name: getattr(self, name)[chosen] for name in _PER_FEATURE},
        )

    def steered(self, index: int, *, label: str | None = None) -> SteeredLatent:
        """One feature as the steering loop takes it; `label` is what it is thought to be about."""
        name = self.names[index]
        called = {"sae": name, **dict.fromkeys(SUPERVISED, self.kind)}
        return SteeredLatent(
            concept=f"{label or name}:{called.get(self.kind, f'{self.kind} {name}')}",
            label=label or name,
            kind=self.kind,
            latent=index,
            site=self.site,
            scale=float(self.scale_F[index]),
            mean=float(self.mean_F[index]),
            write_D=self.write_FD[index],
            read_D=self.read_FD[index],
            read_bias=float(self.bias_F[index]),
            threshold=float(self.threshold_F[index]),
        )


_PER_FEATURE = (
    "read_FD",
    "bias_F",
    "threshold_F",
    "write_FD",
    "scale_F",
    "mean_F",
    "firing_F",
)


def features(
    kind: FeatureKind,
    site: str,
    *,
    names: Sequence[str],
    read_FD: Float[np.ndarray, "F D"],
    write_FD: Float[np.ndarray, "F D"],
    train_ND: Float32[np.ndarray, "N D"],
    bias_F: Float[np.ndarray, " F"] | None = None,
    threshold_F: Float[np.ndarray, " F"] | None = None,
) -> FeatureSet:
    """A set of features, measured on training rows.

    Without `bias_F` a feature is 0 at the mean row, so that ablating it leaves the mean; without `threshold_F` it is
    a plain projection.
    """
    read_FD = np.ascontiguousarray(read_FD, np.float32)
    if bias_F is None:
        bias_F = -(train_ND.mean(0, dtype=np.float64) @ read_FD.T)
    num = len(read_FD)
    unmeasured = FeatureSet(
        kind=kind,
        site=site,
        names=tuple(names),
        read_FD=read_FD,
        bias_F=np.asarray(bias_F, np.float32),
        threshold_F=np.full(num, -np.inf, np.float32)
        if threshold_F is None
        else np.asarray(threshold_F, np.float32),
        write_FD=np.ascontiguousarray(write_FD, np.float32),
        scale_F=np.zeros(num, np.float32),
        mean_F=np.zeros(num, np.float32),
        firing_F=np.zeros(num, np.float32),
    )
    value_NF = unmeasured.values(train_ND)
    size_NF = np.abs(value_NF)
    return replace(
        unmeasured,
        scale_F=np.array(
            [np.percentile(size[size > 0], 99) if size.any() else 0.0 for size in size_NF.T],
            np.float32,
        ),
        mean_F=value_NF.mean(0, dtype=np.float64).astype(np.float32),
        firing_F=(value_NF > 0).mean(0).astype(np.float32),
    )
