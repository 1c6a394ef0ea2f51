"""Do two tracks that run beside each other have to do with each other? A feature and a label, a latent and a reward.

The statistic is T = sum over all samples of value x track, either of them centred; on ranks it is a rank sum. Three
nulls keep what each track owes to its own inertia, and differ in what they take to be alike:

    exchange   whole tracks are worn by other episodes: episodes are alike (Fisher's permutation with blocks; the
    default) sign flip  for a track that is the same in every episode: the sign of an episode's contribution is a
    coin toss shift      the track is turned around inside its episode: moments of a long episode are alike (Harris
    2020)
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy import sparse

from interp.stats.autocorrelation import autocorrelation_time, episode_steps
from interp.stats.episodes import centred

EPISODE_PERMUTATION = "episode permutation"
EPISODE_SIGN_FLIP = "episode sign flip"
CIRCULAR_SHIFT = "circular shift"
UNTESTED = ""
MIN_MEMORIES = 10
"""A shift is a null only in episodes of at least so many autocorrelation times: at 2 of them it rejects 9 % instead
of 5, at 4 8 %, from 8 on 5-6 %."""
TABLE_ENTRIES = 4096
"""Pairs of episodes whose contributions are computed together: 4 or 16 times as many take 1.3 times as long."""


@dataclass(frozen=True)
class Draws:
    """The random part of a null, drawn once and shared by all tracks, so statistics keep their dependence."""

    order_BE: Int64[np.ndarray, "B E"]
    """Whose track each episode wears."""
    sign_BE: Float32[np.ndarray, "B E"]
    """Plus or minus one for each episode."""

    @classmethod
    def make(cls, num_episodes: int, num: int, *, seed: int) -> "Draws":
        generator = np.random.default_rng(seed)
        order_BE = generator.permuted(np.tile(np.arange(num_episodes), (num, 1)), axis=1)
        sign_BE = generator.integers(0, 2, (num, num_episodes)).astype(np.float32) * 2 - 1
        return cls(order_BE, sign_BE)

    @property
    def tabled(self) -> bool:
        """Whether contributions of all pairs of episodes are computed, or those of every draw anew: whichever is
        less.
        """
        return self.order_BE.shape[1] <= 2 * len(self.order_BE)

    @cached_property
    def parts(self) -> list[tuple[slice, sparse.csr_array]]:
        """Stretches of episodes and, for each, [B, episodes * E] with a 1 where episode i wears the track of j.

        Its product with a table of contributions sums what is worn; a stretch's table fits a cache.
        """
        num, num_episodes = self.order_BE.shape
        size = max(1, TABLE_ENTRIES // num_episodes)
        parts = []
        for start in range(0, num_episodes, size):
            worn = self.order_BE[:, start : start + size]
            at = worn + np.arange(worn.shape[1]) * num_episodes
            row_starts = np.arange(0, at.size + 1, worn.shape[1])
            shape = (num, worn.shape[1] * num_episodes)
            gather = sparse.csr_array((np.ones(at.size), at.reshape(-1), row_starts), shape=shape)
            parts.append((slice(start, start + size), gather))
        return parts


class Null(NamedTuple):
    """T as observed, and under every draw."""

    observed_F: Float64[np.ndarray, " F"]
    null_BF: Float64[np.ndarray, "B F"]


def exchange_null(
    value_ESF: Float32[np.ndarray, "E S F"], track_ES: Float32[np.ndarray, "E S"], draws: Draws
) -> Null:
    """T with whole tracks exchanged between episodes. Both are 0 in the padding, the track is centred.

    What episode i contributes when it wears the track of j is one number, so E x E of them per feature are computed
    once and every draw sums E; if draws are fewer than half of the episodes they are multiplied out instead. A
    short track adds nothing to the end of a long episode.
    """
    num_episodes, _, num_features = value_ESF.shape
    observed_F = np.zeros(num_features)
    null_BF = np.zeros((len(draws.order_BE), num_features))
    if draws.tabled:
        for stretch, gather in draws.parts:
            table = np.matmul(track_ES, value_ESF[stretch]).astype(np.float64)
            own = np.arange(len(table))
            observed_F += table[own, own + stretch.start].sum(0)
            null_BF += gather @ table.reshape(table.shape[0] * num_episodes, num_features)
        return Null(observed_F, null_BF)
    # float64, since another order of adding would round what is equal apart
    size = max(1, 4096 // value_ESF.shape[1])
    for start in range(0, num_episodes, size):
        flat_NF = value_ESF[start : start + size].astype(np.float64)
        flat_NF = flat_NF.reshape(flat_NF.shape[0] * flat_NF.shape[1], num_features)
        worn = track_ES[draws.order_BE[:, start : start + size]].astype(np.float64)
        null_BF += worn.reshape(len(worn), -1) @ flat_NF
        observed_F += track_ES[start : start + size].reshape(-1) @ flat_NF
    return Null(observed_F, null_BF)


def sign_flip_null(
    value_ESF: Float32[np.ndarray, "E S F"], track_ES: Float32[np.ndarray, "E S"], draws: Draws
) -> Null:
    """T with the sign of every episode's contribution tossed."""
    part_EF = np.matmul(track_ES[:, None], value_ESF)[:, 0].astype(np.float64)
    return Null(part_EF.sum(0), draws.sign_BE @ part_EF)


def two_sided(null: Null) -> Float64[np.ndarray, " F"]:
    """P = (1 + #{draws with |T| as large as observed}) / (B + 1) (Phipson & Smyth 2010): never 0."""
    tolerance_F = 1e-6 * np.abs(null.null_BF).max(0, initial=0.0)
    as_large_F = (np.abs(null.null_BF) >= np.abs(null.observed_F) - tolerance_F).sum(0)
    return (1 + as_large_F) / (len(null.null_BF) + 1)


def standardised(null: Null) -> Null:
    """T less its mean over draws, in units of its standard deviation over draws: one scale for tests of a family.

    What was observed counts as one more draw in both, so that under the null it remains exchangeable with the others. A
    statistic that no draw changes is NaN, since it tests nothing.
    """
    every_BF = np.concatenate([null.observed_F[None], null.null_BF])
    sd_F = every_BF.std(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z_BF = (every_BF - every_BF.mean(0)) / np.where(
            sd_F > 1e-9 * np.abs(every_BF).max(0, initial=0.0), sd_F, np.nan
        )
    return Null(z_BF[0], z_BF[1:])


def circular_shift_p(
    value_ESF: Float32[np.ndarray, "E S F"],
    track_ESC: Float32[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    num_agents: int,
    seed: int,
    num_shifts: int = 1000,
) -> Float64[np.ndarray, "F C"]:
    """Two-sided p-values of T, in few but long episodes: each track is turned around inside its own by a random time.

    All agents of an episode turn together. A claim about the episodes at hand, not about others like them; and only
    of tracks that are stationary inside an episode (no phase, no learning). NaN, for not tested, where the shortest
    episode has fewer than `MIN_MEMORIES` autocorrelation times of the faster of the two tracks: the seam of the
    turn then matters (Harris 2020, "Nonsense correlations in neuroscience").
    """
    steps_E = episode_steps(mask_ES, num_agents=num_agents)
    value_ESF = centred(value_ESF, mask_ES)
    track_ESC = centred(track_ESC, mask_ES)
    memory_F = autocorrelation_time(value_ESF, mask_ES, num_agents=num_agents)
    memory_C = autocorrelation_time(track_ESC, mask_ES, num_agents=num_agents)
    shift_BE = np.random.default_rng(seed).integers(0, steps_E, (num_shifts, len(steps_E)))
    p_FC = np.full((value_ESF.shape[2], track_ESC.shape[2]), np.nan)
    for c in range(track_ESC.shape[2]):
        observed_F = np.zeros(value_ESF.shape[2])
        null_BF = np.zeros((num_shifts, value_ESF.shape[2]))
        for e, steps in enumerate(steps_E.tolist()):
            value_TAF = value_ESF[e, : steps * num_agents].reshape(steps, num_agents, -1)
            track_TA = track_ESC[e, : steps * num_agents, c].reshape(steps, num_agents)
            # all turns at once: a circular cross-correlation
            spectrum = (
                np.fft.rfft(value_TAF, axis=0) * np.fft.rfft(track_TA, axis=0)[..., None].conj()
            )
            turned_TF = np.fft.irfft(spectrum.sum(1), n=steps, axis=0)
            observed_F += turned_TF[0]
            null_BF += turned_TF[shift_BE[:, e]]
        long_F = steps_E.min() >= MIN_MEMORIES * np.minimum(memory_F, memory_C[c])
        p_FC[:, c] = np.where(long_F, two_sided(Null(observed_F, null_BF)), np.nan)
    return p_FC
