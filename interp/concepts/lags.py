"""What will be true in a while, what was true a while ago? Labels moved in time, inside their episodes.

A plan shows in the activations before it shows in the world, a memory after. A label at lag k asks at step t what
held at t + k; a label within k steps asks whether it will hold at any of the next k. No answer reaches over the end
of an episode: where one would, the label is *missing*, not false. (False would make every feature that knows the
end of an episode look as if it knew the label; so would counting only those near the end that happen to hold.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from interp.stats.autocorrelation import episode_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Labels of every sample, and where they are known."""

    label_ESC: Bool[np.ndarray, "E S C"]
    """False where not known."""
    known_ESC: Bool[np.ndarray, "E S C"]
    mask_ES: Bool[np.ndarray, "E S"]
    """The samples that exist."""

    def __post_init__(self) -> None:
        if (self.label_ESC & ~self.known_ESC).any() or (
            self.known_ESC & ~self.mask_ES[..., None]
        ).any():
            raise ValueError(
                "a label is True where it is not known, or known where there is no sample; make it False there"
            )

    @classmethod
    def known(
        cls, label_ESC: Bool[np.ndarray, "E S C"], mask_ES: Bool[np.ndarray, "E S"]
    ) -> "Targets":
        """Labels that are known wherever there is a sample."""
        known_ESC = np.broadcast_to(mask_ES[..., None], label_ESC.shape).copy()
        return cls(label_ESC=label_ESC & known_ESC, known_ESC=known_ESC, mask_ES=mask_ES)

    @property
    def num_missing_C(self) -> Int64[np.ndarray, " C"]:
        """Samples that are left out of each label's scores."""
        return (self.mask_ES[..., None] & ~self.known_ESC).sum((0, 1))

    def alike(self) -> list[tuple[list[int], Bool[np.ndarray, "E S"]]]:
        """Columns of the labels that are known at the same samples, and these; without those known nowhere."""
        groups: dict[bytes, list[int]] = {}
        for c, known_ES in enumerate(np.moveaxis(self.known_ESC, 2, 0)):
            groups.setdefault(np.packbits(known_ES).tobytes(), []).append(c)
        shared = [(columns, self.known_ESC[..., columns[0]]) for columns in groups.values()]
        return [(columns, known_ES) for columns, known_ES in shared if known_ES.any()]

    def select(self, sample_S: Int64[np.ndarray, " S_"]) -> "Targets":
        """The samples at these places of every episode, for instance those of every fourth step."""
        return Targets(
            label_ESC=self.label_ESC[:, sample_S],
            known_ESC=self.known_ESC[:, sample_S],
            mask_ES=self.mask_ES[:, sample_S],
        )


def lagged(targets: Targets, *, lags: Sequence[int], num_agents: int) -> Targets:
    """Every label at every lag, in steps: columns are labels x lags, the lags of a label beside each other.

    Positive lags look ahead, negative ones back. A sample is known at any lag only if it is known at all of them,
    so that a curve over lags is of one set of samples.
    """
    if not lags or len(set(lags)) != len(lags):
        raise ValueError(f"lags {list(lags)}: wanted at least one, each once")
    shortest = int(episode_steps(targets.mask_ES, num_agents=num_agents).min())
    if max(lags) - min(lags) >= shortest or max(map(abs, lags)) >= shortest:
        raise ValueError(
            f"lags from {min(lags)} to {max(lags)} steps, but the shortest episode has {shortest}: none of its "
            "samples would be known at all lags; take fewer lags or leave short episodes out"
        )
    label = np.stack([_ahead(targets.label_ESC, lag * num_agents) for lag in lags], axis=-1)
    known = np.stack([_ahead(targets.known_ESC, lag * num_agents) for lag in lags], axis=-1)
    known = (known & targets.mask_ES[..., None, None]).all(-1, keepdims=True)
    shape = (*targets.mask_ES.shape, -1)
    return Targets(
        label_ESC=(label & known).reshape(shape),
        known_ESC=np.broadcast_to(known, label.shape).reshape(shape).copy(),
        mask_ES=targets.mask_ES,
    )


def within(targets: Targets, *, steps: int, num_agents: int) -> Targets:
    """Whether each label holds at any of the next `steps` steps, t + 1 to t + steps; not known if one of them is
    not.
    """
    shortest = int(episode_steps(targets.mask_ES, num_agents=num_agents).min())
    if not 1 <= steps < shortest:
        raise ValueError(
            f"within {steps} steps: wanted at least 1 and fewer than the {shortest} steps of the shortest episode"
        )
    future = lagged(targets, lags=range(1, steps + 1), num_agents=num_agents)
    shape = (*targets.label_ESC.shape, steps)
    return Targets(
        label_ESC=np.any(future.label_ESC.reshape(shape), axis=-1),
        known_ESC=np.all(future.known_ESC.reshape(shape), axis=-1),
        mask_ES=targets.mask_ES,
    )


def best_lag(train_auroc_FCK: Float[np.ndarray, "F C K"]) -> Int64[np.ndarray, "F C"]:
    """For every pair the place of the lag whose AUROC is farthest from chance; only ever of training episodes."""
    return np.abs(np.nan_to_num(train_auroc_FCK, nan=0.5) - 0.5).argmax(-1)


def _ahead(value_ESC: Bool[np.ndarray, "E S C"], num_samples: int) -> Bool[np.ndarray, "E S C"]:
    """At every sample what is so many samples later in the episode's row; False beyond its ends."""
    out = np.zeros_like(value_ESC)
    if num_samples >= 0:
        out[:, : value_ESC.shape[1] - num_samples] = value_ESC[:, num_samples:]
    else:
        out[:, -num_samples:] = value_ESC[:, :num_samples]
    return out
