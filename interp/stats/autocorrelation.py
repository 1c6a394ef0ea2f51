"""How many independent samples is a track worth? Far fewer than it has steps.

Two answers. Of one track: its integrated autocorrelation time says how many steps pass before it forgets. Of an
association: the scatter of its episodes' contributions, which holds whatever depends on whatever inside an episode.
Neither turns into a p-value here; they correct biases (mutual information) and tell a reader what "50,000 samples"
means.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from interp.stats.episodes import centred, check_episodes


def episode_steps(mask_ES: Bool[np.ndarray, "E S"], *, num_agents: int) -> Int64[np.ndarray, " E"]:
    """Steps of every episode; ValueError unless samples are step-major with all agents at every step, gapless."""
    samples_E = mask_ES.sum(1)
    if (samples_E % num_agents).any() or (
        mask_ES != (np.arange(mask_ES.shape[1]) < samples_E[:, None])
    ).any():
        raise ValueError(
            f"samples of an episode are not whole steps of {num_agents} agents from its start on; wanted every "
            "agent at every step, without gaps"
        )
    if not samples_E.all():
        raise ValueError(f"episode {int(samples_E.argmin())} has no sample; leave it out")
    return samples_E // num_agents


def autocorrelation_time(
    track_ESM: Float32[np.ndarray, "E S M"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    num_agents: int,
) -> Float64[np.ndarray, " M"]:
    """Integrated autocorrelation time in steps: 1 + 2 sum_k (1 - k / T) rho_k, at least about 1; NaN for a constant
    track.

    Of the mean over agents, pooled over episodes, about the mean of all of them: where episodes differ as wholes
    the time is that of an episode. The sum ends where the sum of two neighbouring lags is no longer positive, and
    never rises (initial monotone sequence, Geyer 1992, sec. 3.3).
    """
    steps_E = episode_steps(mask_ES, num_agents=num_agents)
    mean_ETM = _agent_mean(track_ESM, mask_ES, num_agents)
    longest = mean_ETM.shape[1]
    spectrum = np.fft.rfft(mean_ETM, n=2 * longest, axis=1)
    # dividing all lags by the same count is what tapers them by 1 - k / T
    covariance_KM = np.fft.irfft((np.abs(spectrum) ** 2).sum(0), axis=0)[:longest] / steps_E.sum()
    variance_M = covariance_KM[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        rho_KM = covariance_KM / np.where(variance_M > 0, variance_M, np.nan)
    rho_KM = np.pad(rho_KM, ((0, longest % 2), (0, 0)))
    pair_KM = np.minimum.accumulate(rho_KM[0::2] + rho_KM[1::2], axis=0)
    return 2 * np.maximum(pair_KM, 0).sum(0) - 1


def effective_samples(
    track_ESM: Float32[np.ndarray, "E S M"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    num_agents: int,
) -> Float64[np.ndarray, " M"]:
    """Independent samples that would pin the mean of a track down as well: var(x) / var(mean of x).

    N / autocorrelation time for one agent; agents that do the same at the same time count once. NaN for a constant
    track.
    """
    steps_E = episode_steps(mask_ES, num_agents=num_agents)
    time_M = autocorrelation_time(track_ESM, mask_ES, num_agents=num_agents)
    sample_variance_M = track_ESM[mask_ES].var(0, dtype=np.float64)
    mean_variance_M = (_agent_mean(track_ESM, mask_ES, num_agents) ** 2).sum((0, 1)) / steps_E.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return sample_variance_M * steps_E.sum() / (mean_variance_M * time_M)


def effective_pairs(
    value_ESF: Float32[np.ndarray, "E S F"],
    track_ESC: Float32[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
) -> Float64[np.ndarray, "F C"]:
    """Independent pairs that would give the same scatter of a covariance: N^2 var(x) var(y) / (E var_e(T_e)).

    T_e is what episode e adds to sum (x - mean)(y - mean); its variance over episodes is the cluster-robust one
    (Liang & Zeger 1986), the quotient Kish's effective sample size (1965). At most N; NaN where a track is
    constant.
    """
    check_episodes(len(mask_ES))
    num_samples = int(mask_ES.sum())
    value_ESF = centred(value_ESF, mask_ES)
    track_ESC = centred(track_ESC, mask_ES)
    part_EFC = np.matmul(value_ESF.swapaxes(1, 2), track_ESC).astype(np.float64)
    scatter_FC = part_EFC.var(0, ddof=1) * len(mask_ES)
    product_FC = np.outer(
        (value_ESF.astype(np.float64) ** 2).sum((0, 1)),
        (track_ESC.astype(np.float64) ** 2).sum((0, 1)),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs_FC = np.minimum(product_FC / scatter_FC, num_samples)
    return np.where(product_FC > 0, pairs_FC, np.nan)


def _agent_mean(
    track_ESM: Float32[np.ndarray, "E S M"], mask_ES: Bool[np.ndarray, "E S"], num_agents: int
) -> Float64[np.ndarray, "E T M"]:
    """Mean over agents at every step, less the mean of all; 0 in the padding."""
    num_episodes, num_samples, num_tracks = track_ESM.shape
    steps = -(-num_samples // num_agents)
    padded = np.zeros((num_episodes, steps * num_agents, num_tracks))
    padded[:, :num_samples] = centred(track_ESM, mask_ES)
    return padded.reshape(num_episodes, steps, num_agents, num_tracks).mean(2)
