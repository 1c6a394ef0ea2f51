"""Plain directions that a latent must beat to be worth a name: principal components and differences of means."""

import numpy as np
from jaxtyping import Bool, Float, Float32


def pca_directions(x_ND: Float[np.ndarray, "N D"], num: int) -> Float32[np.ndarray, "D P"]:
    """The `num` leading principal directions of the rows, as columns of unit norm; fewer if the width is smaller."""
    centred_ND = x_ND - x_ND.mean(0, dtype=np.float64)
    covariance_DD = centred_ND.T @ centred_ND / len(x_ND)
    _, vectors = np.linalg.eigh(covariance_DD)  # ascending
    return np.ascontiguousarray(vectors[:, ::-1][:, :num], np.float32)


def diff_in_means(
    x_ND: Float[np.ndarray, "N D"], label_N: Bool[np.ndarray, " N"]
) -> Float32[np.ndarray, " D"]:
    """Mean of the rows with the label minus mean of those without, of unit norm; zero if either is missing.

    (Belrose 2023; the baseline that sparse autoencoders have to beat in AxBench, Wu et al. 2025.)
    """
    if label_N.all() or not label_N.any():
        return np.zeros(x_ND.shape[1], np.float32)
    direction_D = x_ND[label_N].mean(0, dtype=np.float64) - x_ND[~label_N].mean(0, dtype=np.float64)
    norm = float(np.linalg.norm(direction_D))
    return (direction_D / norm if norm else direction_D).astype(np.float32)
