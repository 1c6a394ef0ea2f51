"""Which configurations should a sweep try? All of a grid, some at random, or those that the results so far speak for.

    Space({"family.name": ["batch_topk", "gated"], "family.k": [8, 16], "lr": {"low": 1e-3, "high": 1e-2}}, ...).grid()

Fields are those of `SaeConfig`, the family's with "family." before them, and "site" and "seed". A field that only some
families have is left out for the others. Every method is a pure function of the space, its seed and, for tpe, the
results: a sweep that is run again asks for the same trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from math import exp, isfinite, log, prod
from typing import Any, Protocol, runtime_checkable

import numpy as np

from interp.dictionaries.config import FAMILIES, SaeConfig

_FAMILY = "family."
_NAME = "family.name"
OTHER_FIELDS = ("site", "seed")
_MAX_GRID = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers between two, both included; whole ones if both are."""

    low: float | int
    high: float | int
    log: bool = False
    """Whether all orders of magnitude are as likely."""

    def __post_init__(self) -> None:
        is_finite = isfinite(self.low) and isfinite(self.high)
        if not (is_finite and self.low < self.high) or (self.log and not self.low > 0):
            raise ValueError(
                f"range from {self.low} to {self.high}{', log' * self.log}: wanted low below high, both finite, and "
                "above 0 with log"
            )

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> float | int:
        """The value at a share of the way, 0 to 1."""
        if self.log:
            value = exp(log(self.low) + share * (log(self.high) - log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.is_whole else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One trial: what to train, on which site, from which seed."""

    config: SaeConfig
    site: str
    seed: int


class Space:
    """Values of each field, and what all trials have in common."""

    def __init__(
        self, content: Mapping[str, Any], *, base: SaeConfig, site: str, seed: int
    ) -> None:
        """Raises ValueError on a field that no config has, an empty list, or a range that is none.

        Args:
            content: By field, a list of values, a range {"low": ..., "high": ..., "log": ...}, or one value.
            base: Everything that the space does not name.
            site: Site of all trials, unless the space names some.
            seed: Likewise.
        """
        self._base, self._site, self._seed = base, site, seed
        self.values: dict[str, Sequence[Any] | Range] = {
            name: _values(name, value) for name, value in content.items()
        }
        known = _known_fields()
        if unknown := self.values.keys() - known:
            raise ValueError(f"a space has no field {sorted(unknown)}; there are {sorted(known)}")
        if isinstance(names := self.values.get(_NAME, ()), Range) or set(names) - FAMILIES.keys():
            raise ValueError(f"{_NAME} is {names}; there are {sorted(FAMILIES)}")
        self._check_used()

    def _check_used(self) -> None:
        """ValueError if no family that is tried has a field of the space: it would change nothing."""
        names = self.values.get(_NAME)
        tried = (
            [self._base.family.name] if names is None or isinstance(names, Range) else list(names)
        )
        has = {name: own_fields(name) for name in FAMILIES}
        for name in self.values:
            field = name.removeprefix(_FAMILY)
            if name == _NAME or not name.startswith(_FAMILY) or any(field in has[n] for n in tried):
                continue
            owners = ", ".join(sorted(n for n in has if field in has[n]))
            raise ValueError(
                f"the space names {name}, which {' and '.join(tried)} {'has' if len(tried) == 1 else 'have'} no use "
                f"for; leave it out, or try {owners}"
            )

    def grid(self) -> list[Candidate]:
        """Every combination, the last field changing fastest; ValueError if a field has a range."""
        lists: dict[str, Sequence[Any]] = {}
        for name, values in self.values.items():
            if isinstance(values, Range):
                raise ValueError(
                    f"{name} is a range, of which there is no grid; list its values, or search at random"
                )
            lists[name] = values
        if (number := prod(map(len, lists.values()))) > _MAX_GRID:
            raise ValueError(f"a grid of {number} trials, wanted at most {_MAX_GRID}")
        return _distinct(
            [
                self.candidate(dict(zip(lists, choice, strict=True)))
                for choice in product(*lists.values())
            ]
        )

    def random(self, number: int, *, seed: int) -> list[Candidate]:
        """So many draws, equal ones once: each field by itself, from a stream of its place."""
        generator = np.random.default_rng([seed, 81])
        return _distinct([self._draw(generator) for _ in range(number)])

    def _draw(self, generator: np.random.Generator) -> Candidate:
        shares = generator.random(len(self.values))
        return self.candidate(
            {
                name: values.at(share)
                if isinstance(values, Range)
                else values[min(int(share * len(values)), len(values) - 1)]
                for share, (name, values) in zip(shares, self.values.items(), strict=True)
            }
        )

    def candidate(self, choice: Mapping[str, Any]) -> Candidate:
        """A trial from one value a field; ValueError if they contradict each other."""
        content = self._base.to_dict()
        family = content["family"]
        if (name := choice.get(_NAME, family["name"])) != family["name"]:
            family = {"name": name}
        own = own_fields(name)
        for field, value in choice.items():
            short = field.removeprefix(_FAMILY)
            if field.startswith(_FAMILY) and field != _NAME and short in own:
                family[short] = value
            elif not field.startswith(_FAMILY) and field not in OTHER_FIELDS:
                content[field] = value
        try:
            config = SaeConfig.from_dict({**content, "family": family})
        except (TypeError, ValueError) as error:
            raise ValueError(f"trial {dict(choice)}: {error}") from error
        return Candidate(
            config=config,
            site=str(choice.get("site", self._site)),
            seed=int(choice.get("seed", self._seed)),
        )


@runtime_checkable
class Trial(Protocol):
    """An Optuna trial, as far as it is asked here."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> object: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...


class Tpe:
    """Tree-structured Parzen estimator over two objectives, FVU and L0, by Optuna.

    Source: Bergstra et al. 2011; for several objectives Ozaki et al. 2022. Trials are asked for in rounds, and a round
    is told before the next is asked for, so what runs beside what changes nothing.
    """

    def __init__(self, space: Space, *, seed: int) -> None:
        """Raises ModuleNotFoundError, saying what to install, if Optuna is not there."""
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "--search tpe needs Optuna, which is not installed; pip install 'sparsight[search]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        self._asked: list[Any] = []

    def ask(self, number: int) -> list[Candidate]:
        """The next round."""
        self._asked = [self._study.ask() for _ in range(number)]
        return [self._space.candidate(self._suggest(trial)) for trial in self._asked]

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        choice = {}
        for name, values in self._space.values.items():
            if not isinstance(values, Range):
                choice[name] = trial.suggest_categorical(name, list(values))
            elif values.is_whole:
                low, high = int(values.low), int(values.high)
                choice[name] = trial.suggest_int(name, low, high, log=values.log)
            else:
                choice[name] = trial.suggest_float(name, values.low, values.high, log=values.log)
        return choice

    def tell(self, results: Sequence[tuple[float, float]]) -> None:
        """FVU and L0 of each trial of the last round, in its order."""
        for trial, result in zip(self._asked, results, strict=True):
            self._study.tell(trial, list(result))


def own_fields(family: str) -> set[str]:
    """Names of the settings of a family."""
    return {field.name for field in fields(FAMILIES[family])}  # pyright: ignore[reportArgumentType]


def _known_fields() -> set[str]:
    own = {f"{_FAMILY}{field}" for family in FAMILIES for field in own_fields(family)}
    shared = {field.name for field in fields(SaeConfig)} - {"family"}
    return own | shared | {_NAME, *OTHER_FIELDS}


def _values(name: str, value: Any) -> Sequence[Any] | Range:  # noqa: ANN401 - as it is in the file
    if isinstance(value, Mapping):
        try:
            return Range(**value)
        except TypeError as error:
            raise ValueError(
                f"{name} is {dict(value)}; a range has low, high and perhaps log"
            ) from error
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError(f"{name} has no values; list at least one, or leave it out")
    return values


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without those that differ only in a field that their family lacks."""
    return list({_key(candidate): candidate for candidate in candidates}.values())


def _key(candidate: Candidate) -> str:
    return str((candidate.config.to_dict(), candidate.site, candidate.seed))
