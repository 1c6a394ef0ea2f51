"""What does a policy lose if it must go on with what a dictionary makes of its activations?

A site is replaced at every step by its reconstruction, and by three things that any reconstruction should beat: the
mean training row, zero, and the reconstruction of a dictionary of random directions. Every way is played twice on the
same seeds: by itself (paired: same map, same simulator, same noise), and open-loop on the states of the unedited
episode, with its actions forced, so that choices can be compared where both stand.

    return recovered      sum (R_way - R_mean) / sum (R - R_mean)         1 as good as untouched, 0 as the mean row
    KL recovered          1 - sum KL(π ‖ π_way) / sum KL(π ‖ π_mean)      the same of choices on the same states
    KL, agreement         mean over steps, in nats; share of steps with the same preferred action
    value error           sum (v - v_way)² / sum (v - mean v)²            as FVU, of the critic
    divergence horizon    mean first step whose action differs, and the share of episodes in which none ever does

The first two are the loss recovered of Bricken et al. (2023) and of Gao et al. (2024) with a return and with a policy
for the loss of a language model. A ratio whose denominator may be 0 (a policy that is no better than the mean row) is
NaN, and so is what is computed from logits that were not finite. Intervals are over episodes.

T steps · A agents · N actions · E episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float32, Float64
from scipy.special import log_softmax
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary
from interp.policies.policy import Policy
from interp.policies.taps import Splice
from interp.records import Episode
from interp.rollout import Capture, Trial, roll
from interp.stats.bootstrap import bootstrap_mean, bootstrap_ratio
from interp.steering.diagnosis import LOGITS, divergence_step, mean_kl
from interp.worlds.world import World

VALUE = "value"
UNTOUCHED, DICTIONARY, MEAN, ZERO, RANDOM = (
    "nothing",
    "dictionary",
    "mean",
    "zero",
    "random dictionary",
)
_BLOCK_ROWS = 64

SPLICE_SCHEMA = pa.schema(
    [
        ("policy_name", pa.string()),
        ("dict_id", pa.string()),
        ("site", pa.string()),
        ("replaced_by", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("lo", pa.float64()),
        ("hi", pa.float64()),
        ("n_episodes", pa.int32()),
    ]
)
"""One row per replacement and metric; bounds of 95 % over episodes, NaN where a ratio is undefined."""


class Reconstruction:
    """What a dictionary makes of an activation."""

    def __init__(self, dictionary: Dictionary) -> None:
        """ValueError for a transcoder, which says what another site is."""
        if dictionary.is_transcoder:
            raise ValueError(
                f"a transcoder predicts {dictionary.target_site} from {dictionary.site}; only what a dictionary makes "
                "of its own site can be put in its place"
            )
        self._dictionary = dictionary

    @property
    def width(self) -> int:
        return self._dictionary.d_in

    def __call__(self, x_RD: Float[Tensor, "R D"], /) -> Float[Tensor, "R D"]:
        """In blocks of a fixed size, so that a row's bits do not depend on how many there are."""
        if x_RD.device != self._dictionary.mean.device:
            self._dictionary = self._dictionary.on(x_RD.device)
        num_rows = len(x_RD)
        missing = -num_rows % _BLOCK_ROWS
        if missing:
            x_RD = torch.cat([x_RD, x_RD.new_zeros(missing, self.width)])
        blocks = [self._dictionary.reconstruct(x_BD) for x_BD in x_RD.split(_BLOCK_ROWS)]
        return torch.cat(blocks)[:num_rows]


@dataclass(frozen=True, eq=False)
class Held:
    """The same values whatever the activation is."""

    value_D: Float32[np.ndarray, " D"]

    @property
    def width(self) -> int:
        return len(self.value_D)

    def __call__(self, x_RD: Float[Tensor, "R D"], /) -> Float[Tensor, "R D"]:
        return torch.from_numpy(self.value_D).to(x_RD.device).expand_as(x_RD)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spliced:
    """One way to replace a site beside the unedited policy, one value per episode."""

    replaced_by: str
    return_E: Float64[np.ndarray, " E"]
    """Undiscounted, mean over agents."""
    kl_E: Float64[np.ndarray, " E"]
    agreement_E: Float64[np.ndarray, " E"]
    value_error_E: Float64[np.ndarray, " E"]
    """Sum over steps and agents of the squared difference in value; NaN for a policy without a critic."""
    value_spread_E: Float64[np.ndarray, " E"]
    """Of the unedited policy's values around their mean over all episodes; NaN likewise."""
    divergence_step_E: Float64[np.ndarray, " E"]
    """First step whose action differs; the number of steps if none does."""
    never_diverges_E: Float64[np.ndarray, " E"]
    finite_E: Float64[np.ndarray, " E"]
    """1 where all logits of both episodes are finite. A replacement that writes back more than it reads can run away
    in a memory that feeds itself; its figures are then undefined."""


def splices_of(dictionary: Dictionary, control: Dictionary) -> dict[str, Splice]:
    """The dictionary, its control of random directions, and the two constant rows."""
    mean_D = dictionary.mean.numpy().astype(np.float32)
    return {
        DICTIONARY: Splice(dictionary.site, Reconstruction(dictionary)),
        RANDOM: Splice(dictionary.site, Reconstruction(control)),
        MEAN: Splice(dictionary.site, Held(mean_D)),
        ZERO: Splice(dictionary.site, Held(np.zeros_like(mean_D))),
    }


def play_spliced(
    policy: Policy, world: World, splices: Mapping[str, Splice], env_seeds: Sequence[int]
) -> list[Spliced]:
    """The unedited policy (first) and every way to replace a site, on the same seeds."""
    judged = tuple(site for site in (LOGITS, VALUE) if site in policy.sites)
    alone = {UNTOUCHED: (), **{name: (splice,) for name, splice in splices.items()}}
    base, *others = _played(
        policy,
        world,
        [Trial(env_seed=seed, edits=edits) for seed in env_seeds for edits in alone.values()],
        Capture(sites=judged),
        len(alone),
    )
    shown = _played(
        policy,
        world,
        [
            Trial(env_seed=one.env_seed, edits=(splice,), action_TA=one.action_TA)
            for one in base
            for splice in splices.values()
        ],
        Capture(sites=judged),
        len(splices),
    )
    centre = _mean_value(base)
    return [
        _compare(name, base, episodes, replayed, centre)
        for name, episodes, replayed in zip(alone, (base, *others), (base, *shown), strict=True)
    ]


def _played(
    policy: Policy, world: World, trials: Sequence[Trial], capture: Capture, num_ways: int
) -> list[list[Episode]]:
    """Episodes by way; the trials of a seed are next to each other."""
    episodes = sorted(roll(policy, world, trials, capture), key=lambda e: e.index)
    return [episodes[way::num_ways] for way in range(num_ways)]


def _mean_value(episodes: Sequence[Episode]) -> float:
    values = [one.activations[VALUE] for one in episodes if VALUE in one.activations]
    return float(np.concatenate([v.ravel() for v in values]).mean()) if values else float("nan")


def _compare(
    name: str,
    base: Sequence[Episode],
    alone: Sequence[Episode],
    shown: Sequence[Episode],
    centre: float,
) -> Spliced:
    columns: dict[str, list[float]] = {
        field.name: [] for field in fields(Spliced) if field.name != "replaced_by"
    }
    for before, after, replayed in zip(base, alone, shown, strict=True):
        p, q = (_log_p(one) for one in (before, replayed))
        parted = divergence_step(before, after)
        whole = min(before.num_steps, after.num_steps)
        one = {
            "return_E": float(after.return_A.mean(dtype=np.float64)),
            "kl_E": mean_kl(p, q),
            "agreement_E": float((p.argmax(-1) == q.argmax(-1)).mean()),
            "value_error_E": _squares(_value(before) - _value(replayed)),
            "value_spread_E": _squares(_value(before) - centre),
            "divergence_step_E": float(parted),
            "never_diverges_E": float(parted == whole),
            "finite_E": float(
                all(np.isfinite(played.activations[LOGITS]).all() for played in (after, replayed))
            ),
        }
        for field, number in one.items():
            columns[field].append(number)
    return Spliced(
        replaced_by=name, **{field: np.array(numbers) for field, numbers in columns.items()}
    )


def _log_p(episode: Episode) -> Float64[np.ndarray, "T A N"]:
    with np.errstate(invalid="ignore"):  # of logits that are not finite
        return log_softmax(episode.activations[LOGITS].astype(np.float64), axis=-1)


def _value(episode: Episode) -> np.ndarray:
    return episode.activations.get(VALUE, np.array(np.nan)).astype(np.float64)


def _squares(difference: np.ndarray) -> float:
    return float(np.square(difference).sum())


class Figure(NamedTuple):
    """One metric with its bounds of 95 %; NaN where it is undefined."""

    value: float
    lo: float
    hi: float


UNDEFINED = Figure(np.nan, np.nan, np.nan)


def splice_table(ways: Sequence[Spliced], *, identity: Mapping[str, str], seed: int) -> pa.Table:
    """All metrics of all ways, as `SPLICE_SCHEMA`; `ways` as `play_spliced` gives them.

    `identity` gives the columns policy_name, dict_id and site.
    """
    of = {way.replaced_by: way for way in ways}
    rows = [
        {
            **identity,
            "replaced_by": way.replaced_by,
            "metric": metric,
            **figure._asdict(),
            "n_episodes": len(way.return_E),
        }
        for way in ways
        for metric, figure in _figures(way, of[UNTOUCHED], of[MEAN], seed=seed).items()
    ]
    return pa.Table.from_pylist(rows, schema=SPLICE_SCHEMA)


def _figures(way: Spliced, base: Spliced, floor: Spliced, *, seed: int) -> dict[str, Figure]:
    def mean(value_E: Float64[np.ndarray, " E"]) -> Figure:
        if not np.isfinite(value_E).all():
            return UNDEFINED
        found = bootstrap_mean(value_E[:, None], seed=seed)
        return Figure(float(found.mean[0]), float(found.lo[0]), float(found.hi[0]))

    def ratio(above_E: Float64[np.ndarray, " E"], below_E: Float64[np.ndarray, " E"]) -> Figure:
        if not np.isfinite(above_E + below_E).all():
            return UNDEFINED
        found = bootstrap_ratio(above_E[:, None], below_E[:, None], seed=seed)
        return Figure(float(found.mean[0]), float(found.lo[0]), float(found.hi[0]))

    figures = {
        "return": mean(way.return_E),
        "return recovered": ratio(way.return_E - floor.return_E, base.return_E - floor.return_E),
        "KL recovered": ratio(floor.kl_E - way.kl_E, floor.kl_E),
        "KL (nats)": mean(way.kl_E),
        "agreement": mean(way.agreement_E),
        "divergence horizon (steps)": mean(way.divergence_step_E),
        "never diverges": mean(way.never_diverges_E),
        "stays finite": mean(way.finite_E),
    }
    if np.isfinite(base.value_spread_E).all():
        figures["value error"] = ratio(way.value_error_E, way.value_spread_E)
    return figures
