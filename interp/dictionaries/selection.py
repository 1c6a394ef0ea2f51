"""Which dictionary of a sweep is the one to use? The trade of error against sparsity, and a rule to choose by."""

import logging
from collections.abc import Sequence
from math import isfinite, log
from typing import Protocol, TypeVar, runtime_checkable

logger = logging.getLogger(__name__)


@runtime_checkable
class Scored(Protocol):
    @property
    def fvu(self) -> float: ...
    @property
    def l0(self) -> float: ...


Trial = TypeVar("Trial", bound=Scored)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats: none has both lower fvu and lower l0. Ascending in l0, so descending in fvu.

    Of equal trials the first is kept; trials with a non-finite figure, or that use no latent at all, are left out.
    """
    front: list[Trial] = []
    for trial in sorted(_usable(trials), key=lambda trial: (trial.l0, trial.fvu)):
        if not front or trial.fvu < front[-1].fvu:
            front.append(trial)
    return front


def trade_offs(objectives: Sequence[Sequence[float]]) -> list[int]:
    """Positions of those that no other beats: none is as low in all objectives and lower in one. In their order.

    One with a value that is not finite is left out, and of equal ones the first is kept.
    """
    finite = [index for index, values in enumerate(objectives) if all(map(isfinite, values))]

    def beats(first: int, second: int) -> bool:
        pairs = list(zip(objectives[first], objectives[second], strict=True))
        if all(a == b for a, b in pairs):
            return first < second
        return all(a <= b for a, b in pairs)

    return [
        index
        for index in finite
        if not any(beats(other, index) for other in finite if other != index)
    ]


def knee(front: Sequence[Trial]) -> Trial:
    """The trial of a Pareto front farthest below the chord between its ends.

    Measured in (log l0, fvu), both scaled to 0 and 1 at the ends. With one or two trials, or a front that bulges
    upward throughout, this is the one with the lowest fvu.
    """
    if not front:
        raise ValueError(
            "no trial to choose from; run a sweep that finishes at least one with a live latent"
        )
    first, last = front[0], front[-1]
    if len(front) <= 2:
        return last

    def below_chord(trial: Trial) -> float:
        across = (log(trial.l0) - log(first.l0)) / (log(last.l0) - log(first.l0))
        down = (first.fvu - trial.fvu) / (first.fvu - last.fvu)
        return down - across

    best = max(front, key=below_chord)
    return best if below_chord(best) > 0 else last


def choose(trials: Sequence[Trial], *, target_l0: tuple[float, float] | None = None) -> Trial:
    """Lowest fvu among trials whose l0 lies in `target_l0` (ends included); the knee of the Pareto front otherwise.

    "Otherwise" is: no target given, or no trial within it, which is logged as a warning.
    """
    if target_l0 is not None:
        low, high = target_l0
        if not 0 <= low <= high:
            raise ValueError(f"target_l0 is {target_l0}, wanted (low, high) with 0 <= low <= high")
        if within := [trial for trial in _usable(trials) if low <= trial.l0 <= high]:
            return min(within, key=lambda trial: (trial.fvu, trial.l0))
        logger.warning(
            "no trial has l0 within the target; taking the knee of the Pareto front",
            extra={"target_l0": target_l0, "l0": sorted(trial.l0 for trial in trials)},
        )
    return knee(pareto_front(trials))


def _usable(trials: Sequence[Trial]) -> list[Trial]:
    return [
        trial for trial in trials if isfinite(trial.fvu) and isfinite(trial.l0) and trial.l0 > 0
    ]
