"""Does a label's latent fall silent where a more special one speaks? Feature absorption.

Sparsity rewards a dictionary that, where B implies A, writes "A" into the latent of B and leaves that of A off: A's
latent then looks like a detector of A with holes that no one would guess (Chanin et al. 2024, "A is for absorption").
On held-out samples where the label holds and a dense probe with direction p says so, latent i contributes

    a_i = z_i (w_i · p)         |p| = 1, w_i what the latent writes; sum_i a_i is the reconstruction's own projection

    absorbed        all main latents (S_A of `interp.concepts.splitting`) are silent, and the latent outside with the
                    largest a_i has cos(w_i, p) >= .1 and a_i >= .4 of the sample's projection
    absorption      share of those samples that are absorbed                          0 none, 1 all
    partly          mean of P_abs / (P_abs + P_main), P = sum of a_i over the up to 3 latents outside with the
                    largest a_i and cos >= .1, if they reach .4 of the projection, else 0; over S_A for P_main

as SAEBench (Karvonen et al. 2025) has it. Labels here are the simulator's, so that "implies" is exact; where a child is
known, look at it by the label `parent&child`. A label without main latents has nothing to absorb. One that was split
(S_A of several) is not absorbed by its own parts. What chance gives is said by a dictionary of random directions.

N samples · D width · F latents · K main latents · E episodes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

MIN_COSINE = 0.1
MIN_SHARE = 0.4
MAX_ABSORBERS = 3
_BLOCK_SAMPLES = 2048


class Absorption(NamedTuple):
    """Of each sample that counts; their numbers are in the order in which they were given."""

    absorbed_N: Bool[np.ndarray, " N"]
    partly_N: Float64[np.ndarray, " N"]
    """0 to 1."""
    absorber_N: Int64[np.ndarray, " N"]
    """The latent with the largest contribution outside S_A where the sample is absorbed, else -1."""


def absorption(
    latent_NF: Float32[np.ndarray, "N F"],
    write_FD: Float[np.ndarray, "F D"],
    projection_N: Float[np.ndarray, " N"],
    probe_D: Float[np.ndarray, " D"],
    main_K: Int64[np.ndarray, " K"],
) -> Absorption:
    """Of samples with the label that the probe gets right.

    `projection_N` is p · (x - what the dictionary writes when all latents are silent), `probe_D` need not be of unit
    length but for that.
    """
    unit_D = probe_D / np.linalg.norm(probe_D)
    along_F = write_FD @ unit_D
    cosine_F = along_F / np.maximum(np.linalg.norm(write_FD, axis=1), 1e-12)
    is_main_F = np.zeros(len(write_FD), np.bool_)
    is_main_F[main_K] = True
    may_absorb_F = ~is_main_F & (cosine_F >= MIN_COSINE)
    num_absorbers = min(MAX_ABSORBERS, len(write_FD))
    parts = []
    for start in range(0, len(latent_NF), _BLOCK_SAMPLES):
        block = slice(start, start + _BLOCK_SAMPLES)
        latent_BF, needed_B = latent_NF[block], MIN_SHARE * projection_N[block]
        part_BF = latent_BF * along_F
        outside_BF = np.where(is_main_F, -np.inf, part_BF)
        top_B = outside_BF.argmax(1)
        largest_B = outside_BF.max(1, initial=-np.inf)
        silent_B = ~(latent_BF[:, is_main_F] > 0).any(1)
        absorbed_B = silent_B & may_absorb_F[top_B] & (largest_B >= needed_B) & (largest_B > 0)
        helpers_BF = np.where(may_absorb_F, np.maximum(part_BF, 0), 0)
        by_absorbers_B = np.sort(helpers_BF, axis=1)[:, -num_absorbers:].sum(1)
        by_absorbers_B = np.where(by_absorbers_B >= needed_B, by_absorbers_B, 0)
        by_main_B = np.maximum(part_BF[:, is_main_F].sum(1), 0)
        whole_B = by_absorbers_B + by_main_B
        partly_B = np.where(whole_B > 0, by_absorbers_B / np.where(whole_B > 0, whole_B, 1), 0)
        parts.append((absorbed_B, partly_B, np.where(absorbed_B, top_B, -1)))
    if not parts:
        return Absorption(np.zeros(0, np.bool_), np.zeros(0), np.zeros(0, np.int64))
    absorbed_N, partly_N, absorber_N = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return Absorption(absorbed_N, partly_N.astype(np.float64), absorber_N)
