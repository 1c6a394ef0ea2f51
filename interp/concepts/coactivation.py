"""Which latents belong together? Those that fire together, and those that rise and fall alike.

Two latents that share one meaning are seldom on at the same step: a dictionary splits a concept, and its parts take
turns. So what is compared is firing *nearby*, within some steps of the same agent.

E episodes · S samples of an episode (steps x agents, step-major) · F latents · P steps of a profile.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from interp.stats.autocorrelation import episode_steps


def fires_nearby(
    fires_ESF: Bool[np.ndarray, "E S F"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    num_agents: int,
    steps: int,
) -> Bool[np.ndarray, "E S F"]:
    """Whether each latent fires at most `steps` steps before or after, in the same agent and episode."""
    episode_steps(mask_ES, num_agents=num_agents)  # refuses gaps
    fires_ESF = fires_ESF & mask_ES[..., None]
    nearby_ESF = fires_ESF.copy()
    for shift in range(num_agents, min(steps * num_agents, fires_ESF.shape[1] - 1) + 1, num_agents):
        nearby_ESF[:, shift:] |= fires_ESF[:, :-shift]
        nearby_ESF[:, :-shift] |= fires_ESF[:, shift:]
    return nearby_ESF & mask_ES[..., None]


def phi_matrix(
    fires_ESF: Bool[np.ndarray, "E S F"], mask_ES: Bool[np.ndarray, "E S"]
) -> Float64[np.ndarray, "F F"]:
    """Matthews' phi of every two latents over all samples, -1 to 1; 0 for one that is always or never on."""
    fires_NF = fires_ESF[mask_ES].astype(np.float32)
    num_samples = len(fires_NF)
    both_FF = (fires_NF.T @ fires_NF).astype(np.float64)
    rate_F = np.diag(both_FF) / num_samples
    spread_F = np.sqrt(rate_F * (1 - rate_F))
    with np.errstate(divide="ignore", invalid="ignore"):
        phi_FF = (both_FF / num_samples - np.outer(rate_F, rate_F)) / np.outer(spread_F, spread_F)
    phi_FF = np.nan_to_num(np.clip(phi_FF, -1, 1), nan=0.0)
    np.fill_diagonal(phi_FF, 1.0)
    return phi_FF


def linked(similarity_FF: Float64[np.ndarray, "F F"], *, at_least: float) -> list[list[int]]:
    """Clusters whose mean similarity between any two that were joined is `at_least` so much (average linkage).

    Every latent is in one; the largest first, members ascending.
    """
    num_latents = len(similarity_FF)
    if num_latents < 2:
        return [[f] for f in range(num_latents)]
    # a correlation may round to a little more than 1
    distance_FF = np.maximum(1 - (similarity_FF + similarity_FF.T) / 2, 0)
    np.fill_diagonal(distance_FF, 0.0)
    tree = hierarchy.linkage(squareform(distance_FF, checks=False), "average")
    cluster_F = hierarchy.fcluster(tree, 1 - at_least + 1e-12, "distance")
    clusters = [np.flatnonzero(cluster_F == c).tolist() for c in np.unique(cluster_F)]
    return sorted(clusters, key=lambda members: (-len(members), members))


def peri_event(
    latent_ESF: Float32[np.ndarray, "E S F"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    num_agents: int,
    steps: int,
) -> Float32[np.ndarray, "F P"]:
    """Mean activation of every latent around its own onsets, `steps` steps before to as many after.

    An onset is a step at which an agent's latent rises above 0; only those with all of these steps inside the episode
    count. A latent without any has a profile of zeros.
    """
    steps_E = episode_steps(mask_ES, num_agents=num_agents)
    num_episodes, num_samples, num_latents = latent_ESF.shape
    longest = num_samples // num_agents
    by_step = latent_ESF[:, : longest * num_agents].reshape(
        num_episodes, longest, num_agents, num_latents
    )
    profile_FP = np.zeros((num_latents, 2 * steps + 1), np.float32)
    for f in range(num_latents):
        value_ETA = by_step[..., f]
        onset_ETA = value_ETA > 0
        onset_ETA[:, 1:] &= value_ETA[:, :-1] <= 0
        onset_ETA[:, 0] = False  # nobody knows since when
        episode_V, t_V, agent_V = np.nonzero(onset_ETA)
        whole_V = (t_V >= steps) & (t_V + steps < steps_E[episode_V])
        if whole_V.any():
            around_VP = t_V[whole_V, None] + np.arange(-steps, steps + 1)
            profile_FP[f] = value_ETA[
                episode_V[whole_V, None], around_VP, agent_V[whole_V, None]
            ].mean(0)
    return profile_FP


def shape_similarity(profile_FP: Float32[np.ndarray, "F P"]) -> Float64[np.ndarray, "F F"]:
    """Correlation of every two profiles, whatever their heights; 0 for a flat one."""
    centred_FP = profile_FP.astype(np.float64) - profile_FP.mean(1, keepdims=True)
    norm_F = np.linalg.norm(centred_FP, axis=1)
    unit_FP = centred_FP / np.where(norm_F > 0, norm_F, 1)[:, None]
    similarity_FF = unit_FP @ unit_FP.T
    np.fill_diagonal(similarity_FF, 1.0)
    return similarity_FF


def shape_name(profile_P: Float32[np.ndarray, " P"]) -> str:
    """What a profile around onsets looks like, by fixed rules.

    silent     no onset was seen whole pulse      half of what the onset brings is gone two steps later ramp       it
    is higher at the end of the profile than at the onset sustained  otherwise, if at the end a half is left fading
    otherwise
    """
    steps = len(profile_P) // 2
    onset, after_P = float(profile_P[steps]), profile_P[steps + 1 :]
    if onset <= 0:
        return "silent"
    if len(after_P) == 0 or float(after_P[: min(2, len(after_P))][-1]) < onset / 2:
        return "pulse"
    last = float(after_P[-1])
    if last > 1.1 * onset:
        return "ramp"
    return "sustained" if last >= onset / 2 else "fading"
