"""Would the policy ever have been there by itself? Distance of edited activations from the training rows.

An edit that pushes an activation where none has ever been may change behaviour for that reason alone.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64

RIDGE = 1e-3
"""In units of the mean variance of a coordinate; units that never vary would otherwise be infinitely far."""
QUANTILE = 0.999
"""Of the training rows' own distances, beyond which a row is off the manifold."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Manifold:
    """Training rows of one site, as their mean, covariance and range."""

    mean_D: Float64[np.ndarray, " D"]
    whiten_DD: Float64[np.ndarray, "D D"]
    """(x - mean) whiten has the Mahalanobis distance as its norm."""
    limit: float
    """Squared distance that a share of 1 - QUANTILE of the training rows exceed."""
    low_D: Float32[np.ndarray, " D"]
    high_D: Float32[np.ndarray, " D"]

    @classmethod
    def of(cls, train_ND: Float32[np.ndarray, "N D"]) -> "Manifold":
        """ValueError with fewer rows than twice the width: no distance could then be believed."""
        num, width = train_ND.shape
        if num < 2 * width:
            raise ValueError(
                f"{num} training rows for {width} units: at least {2 * width} to tell what is usual"
            )
        mean_D = train_ND.mean(0, dtype=np.float64)
        centred_ND = train_ND - mean_D
        covariance_DD = centred_ND.T @ centred_ND / num
        ridge = RIDGE * max(float(covariance_DD.diagonal().mean()), 1e-12)
        value_D, vector_DD = np.linalg.eigh(covariance_DD)
        whiten_DD = vector_DD / np.sqrt(np.maximum(value_D, 0) + ridge)
        square_N = np.square(centred_ND @ whiten_DD).sum(1)
        return cls(
            mean_D=mean_D,
            whiten_DD=whiten_DD,
            limit=float(np.quantile(square_N, QUANTILE)),
            low_D=train_ND.min(0),
            high_D=train_ND.max(0),
        )

    def is_off(self, x_ND: Float32[np.ndarray, "N D"]) -> Bool[np.ndarray, " N"]:
        """Rows farther from the mean than 99.9 % of the training rows (Mahalanobis 1936)."""
        return np.square((x_ND - self.mean_D) @ self.whiten_DD).sum(1) > self.limit

    def out_of_range(self, x_ND: Float32[np.ndarray, "N D"]) -> Float64[np.ndarray, " N"]:
        """Share of each row's units below or above all of their training values; |h| > 1 among them."""
        return ((x_ND < self.low_D) | (x_ND > self.high_D)).mean(1)
