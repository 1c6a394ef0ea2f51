"""The only way to a p-value or an interval, and its unit: the episode, one world with all of its agents, start to end.

Steps of an episode, and agents of one world, are not independent: on independent AR(1) tracks with correlation 0.98 a
step-level rank test rejects at 5 % in two cases of three. Nothing in this package takes steps. Every function wants an
axis of episodes, or of policies above it, and refuses too few of them.

    episodes         what counts as one, how many are enough, which side of a split each is on
    bootstrap        intervals of means and of ratios over episodes
    hierarchy        the same for claims about training: policies, and episodes within them
    sign_flip        p of paired differences
    permutation      p of two tracks that run beside each other: whole tracks exchanged, or shifted inside long episodes
    multiplicity     many tests at once: false discoveries (Benjamini-Hochberg), any false one (Westfall-Young)
    autocorrelation  how many independent samples a track is worth
    power            how many episodes, or policies, an effect needs

E episodes · S samples of an episode (steps x agents, step-major) · T steps · A agents · P policies ·
B resamples or permutations · M quantities that are looked at together · F, C tracks of two kinds.
"""

import hashlib

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

MIN_EPISODES = 10
"""Fewer episodes than this give no interval: a percentile bootstrap of nine values is a guess."""


def check_episodes(num_episodes: int) -> None:
    """Raises ValueError if there are too few episodes for an interval."""
    if num_episodes < MIN_EPISODES:
        raise ValueError(
            f"{num_episodes} episodes are too few for an interval; at least {MIN_EPISODES}: record more episodes"
        )


def check_finite(name: str, value: Float[np.ndarray, "..."]) -> None:
    """Raises ValueError if an episode has no value: left out silently, it would change what the mean is of."""
    if num_bad := int((~np.isfinite(value)).sum()):
        raise ValueError(
            f"{num_bad} of {value.size} entries of {name} are not finite; leave out, on both sides of a comparison, "
            "the episodes that have no value, and say how many there were"
        )


def check_values(name: str, value_EM: Float[np.ndarray, "E M"]) -> None:
    """Raises ValueError unless there is one finite value for every episode and quantity, of enough episodes."""
    if value_EM.ndim != 2:
        raise ValueError(
            f"{name} has shape {value_EM.shape}, wanted [episodes, quantities]: average the steps of an episode "
            "first, they are not independent"
        )
    check_episodes(len(value_EM))
    check_finite(name, value_EM)


def check_level(level: float) -> None:
    """Raises ValueError unless a level or a power lies between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level {level}: wanted a share above 0 and below 1, for instance 0.95")


def centred(
    track_ESM: Float[np.ndarray, "E S M"], mask_ES: Bool[np.ndarray, "E S"]
) -> Float32[np.ndarray, "E S M"]:
    """Every track less its mean over the samples of all episodes; 0 in the padding."""
    mean_M = track_ESM[mask_ES].mean(0, dtype=np.float64)
    return np.where(mask_ES[..., None], track_ESM - mean_M, 0).astype(np.float32)


def episode_split(
    env_seed_E: Int[np.ndarray, " E"], *, held_out_fraction: float, salt: str
) -> Bool[np.ndarray, " E"]:
    """True for held-out episodes. An episode's side is a function of its environment seed and the salt alone."""
    limit = int(held_out_fraction * 2**64)
    return np.array(
        [
            int.from_bytes(
                hashlib.blake2b(f"{salt}:{int(seed)}".encode(), digest_size=8).digest(), "big"
            )
            < limit
            for seed in env_seed_E
        ],
        np.bool_,
    )
