"""Does a latent stand for something general, or did the dictionary learn a few episodes by heart?

On robot policies 85 to 99 % of latents were found to fire in single demonstrations (Dr.VLA, arXiv 2603.19183, by
the number of onsets, the episodes covered, the mean activation and the relative run length, and a classifier
trained on judgements). We have no judgements, and ask instead whether the onsets of a latent are in as many
episodes as such a number of onsets could well be in. How many episodes they are in is counted by Simpson's
effective number, (sum m)^2 / sum m^2 over the episodes' onsets m (Simpson 1949; Hill 1973, N_2): a hundred onsets
in one episode and one in another are in 1.02 episodes.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from interp.stats.episodes import check_episodes

Kind = Literal["silent", "rare", "memorised", "positional", "general"]


class Generality(NamedTuple):
    """Where each latent fires. Onsets are samples at which an agent's latent rises above 0."""

    kind_F: list[Kind]
    """silent      it never fires rare        its onsets are too few to be in `min_spread` episodes even if they
    were spread by chance memorised   it could be in `min_spread` episodes, and is not; or its onsets are in less
    than a tenth of what they could be positional  it is in many episodes, but always at the same few of their
    positions general     it is in many episodes, at many positions"""
    onsets_F: Int64[np.ndarray, " F"]
    episode_share_F: Float64[np.ndarray, " F"]
    """Share of the episodes in which it fires at all."""
    effective_episodes_F: Float64[np.ndarray, " F"]
    """Simpson's number of episodes of its onsets; 0 for a silent latent."""
    expected_episodes_F: Float64[np.ndarray, " F"]
    """What it would be if every onset fell into an episode by chance: n E / (n + E - 1)."""
    effective_positions_F: Float64[np.ndarray, " F"]
    """The same of positions."""
    run_share_F: Float64[np.ndarray, " F"]
    """Mean length of a run of firing, as a share of the steps of an episode."""
    mean_activation_F: Float64[np.ndarray, " F"]
    """Where it fires."""


def generality(
    latent_ESF: Float32[np.ndarray, "E S F"],
    position_ES: Int64[np.ndarray, "E S"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    num_agents: int,
    min_spread: float = 5.0,
    min_share: float = 0.1,
) -> Generality:
    """A verdict for every latent, of held-out episodes if the dictionary was trained on the others.

    Args:
        latent_ESF: At least 0; above it, a latent fires.
        position_ES: Where each sample is, from 0: a cell of the map, or a stretch of the episode (`moments`).
        min_spread: Effective episodes, and positions, that a general latent has at least.
        min_share: And at least this share of what its onsets would have by chance.
    """
    num_episodes = len(latent_ESF)
    check_episodes(num_episodes)
    if min_spread >= num_episodes:
        raise ValueError(f"min_spread is {min_spread}, of {num_episodes} episodes; wanted fewer")
    if position_ES[mask_ES].min(initial=0) < 0:
        raise ValueError("positions below 0; number them from 0")
    fires_ESF = (latent_ESF > 0) & mask_ES[..., None]
    onset_ESF = fires_ESF.copy()
    onset_ESF[:, num_agents:] &= ~fires_ESF[:, :-num_agents]
    onset_EF = onset_ESF.sum(1)
    onsets_F = onset_EF.sum(0)
    num_positions = int(position_ES[mask_ES].max()) + 1
    share_P = np.bincount(position_ES[mask_ES], minlength=num_positions) / mask_ES.sum()
    onset_PF = np.zeros((num_positions, latent_ESF.shape[2]))
    np.add.at(onset_PF, position_ES[mask_ES], onset_ESF[mask_ES])
    episodes_F, positions_F = _effective(onset_EF), _effective(onset_PF)
    expected_episodes_F = _expected(onsets_F, mask_ES.sum(1) / mask_ES.sum())
    expected_positions_F = _expected(onsets_F, share_P)
    firings_F = fires_ESF.sum((0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_activation_F = (latent_ESF * fires_ESF).sum((0, 1), dtype=np.float64) / firings_F
        run_F = firings_F / onsets_F
    kinds: list[Kind] = []
    for f in range(latent_ESF.shape[2]):
        if onsets_F[f] == 0:
            kinds.append("silent")
        elif expected_episodes_F[f] < min_spread:
            kinds.append("rare")
        elif episodes_F[f] < max(min_spread, min_share * expected_episodes_F[f]):
            kinds.append("memorised")
        elif positions_F[f] < min(min_spread, expected_positions_F[f] / 2):
            kinds.append("positional")
        else:
            kinds.append("general")
    return Generality(
        kind_F=kinds,
        onsets_F=onsets_F.astype(np.int64),
        episode_share_F=fires_ESF.any(1).mean(0, dtype=np.float64),
        effective_episodes_F=episodes_F,
        expected_episodes_F=expected_episodes_F,
        effective_positions_F=positions_F,
        run_share_F=run_F / (mask_ES.sum(1).mean() / num_agents),
        mean_activation_F=mean_activation_F,
    )


def moments(
    mask_ES: Bool[np.ndarray, "E S"], *, num_agents: int, num: int = 20
) -> Int64[np.ndarray, "E S"]:
    """Positions in time: each episode in `num` stretches of equal length, by its own length."""
    steps_E1 = mask_ES.sum(1, keepdims=True) // num_agents
    t_S = np.arange(mask_ES.shape[1]) // num_agents
    return np.where(mask_ES, t_S * num // np.maximum(steps_E1, 1), 0).astype(np.int64)


def _effective(onset_XF: np.ndarray) -> Float64[np.ndarray, " F"]:
    """Simpson's number along the first axis; 0 if there is nothing."""
    onset_XF = onset_XF.astype(np.float64)
    squares_F = (onset_XF**2).sum(0)
    return onset_XF.sum(0) ** 2 / np.where(squares_F > 0, squares_F, 1)


def _expected(
    onsets_F: Int64[np.ndarray, " F"], share_X: Float64[np.ndarray, " X"]
) -> Float64[np.ndarray, " F"]:
    """Simpson's number of n onsets that fall by chance: 1 / (s + (1 - s) / n) with s = sum of squared shares."""
    concentration = (share_X**2).sum()
    return onsets_F / (concentration * np.maximum(onsets_F - 1, 0) + 1)
