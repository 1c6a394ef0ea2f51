"""Labels made of labels: `carrying_ore&!landmark`, `altar_interaction@within8`, `(a|b)@within5`.

    !x           x does not hold
    x&y, x|y     both hold, one of them holds; & binds closer than |
    x@withinK    x holds at one of the next K steps, t + 1 to t + K, of the same agent and episode
    (x)          @ binds closer than !, so `!x@within5` says that x does not come within 5 steps

An answer is known or not. Of a window that passes the end of the episode it is not known, *even if* x holds before
the end: were such steps counted, the known ones near the end would all be positive, and whatever tells the end would
seem to tell x. For the same reason `x&y` is known only where both parts are, even where one of them is false.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_][\w.\-]*)|(?P<sign>[!&|()@]))")
_WITHIN = re.compile(r"within([1-9]\d{0,5})")
MAX_CHARACTERS, MAX_PARENTHESES = 400, 32
"""Beyond them a text is no label that a person wrote."""
GRAMMAR = "names, !x, x&y, x|y, x@within5 and parentheses"


class Judged(NamedTuple):
    """A label at every step of every agent."""

    true_TA: Bool[np.ndarray, "T A"]
    """False where the answer is not known."""
    known_TA: Bool[np.ndarray, "T A"]


Truth = Mapping[str, Bool[np.ndarray, "T A"]]
"""What holds, by the names of plain labels."""


@dataclass(frozen=True, slots=True)
class Name:
    """A plain label."""

    name: str

    def judge(self, truth: Truth) -> Judged:
        return Judged(truth[self.name], np.ones_like(truth[self.name]))


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: "Expression"

    def judge(self, truth: Truth) -> Judged:
        true_TA, known_TA = self.part.judge(truth)
        return Judged(known_TA & ~true_TA, known_TA)


@dataclass(frozen=True, slots=True)
class Both:
    """Both parts hold."""

    left: "Expression"
    right: "Expression"

    def judge(self, truth: Truth) -> Judged:
        left, right = self.left.judge(truth), self.right.judge(truth)
        return Judged(left.true_TA & right.true_TA, left.known_TA & right.known_TA)


@dataclass(frozen=True, slots=True)
class Either:
    """At least one of the parts holds."""

    left: "Expression"
    right: "Expression"

    def judge(self, truth: Truth) -> Judged:
        left, right = self.left.judge(truth), self.right.judge(truth)
        known_TA = left.known_TA & right.known_TA
        return Judged((left.true_TA | right.true_TA) & known_TA, known_TA)


@dataclass(frozen=True, slots=True)
class Within:
    """The part holds at one of the next `steps` steps."""

    part: "Expression"
    steps: int

    def judge(self, truth: Truth) -> Judged:
        true_TA, known_TA = self.part.judge(truth)
        all_known_TA = self._ahead(known_TA) == self.steps
        return Judged((self._ahead(true_TA) > 0) & all_known_TA, all_known_TA)

    def _ahead(self, fact_TA: Bool[np.ndarray, "T A"]) -> np.ndarray:
        """At how many of the steps t + 1 to t + K it holds, those beyond the end not counted."""
        up_to_SA = np.zeros((len(fact_TA) + 1, fact_TA.shape[1]), np.int32)
        np.cumsum(fact_TA, axis=0, out=up_to_SA[1:])
        t = np.arange(len(fact_TA))
        last = np.minimum(t + self.steps + 1, len(fact_TA))
        return up_to_SA[last] - up_to_SA[t + 1]


Expression = Name | Not | Both | Either | Within


def parts_of(expression: Expression) -> tuple[str, ...]:
    """Names of the plain labels in it, each once, in the order in which they are written."""
    match expression:
        case Name(name):
            return (name,)
        case Not(part) | Within(part, _):
            return parts_of(part)
        case Both(left, right) | Either(left, right):
            return tuple(dict.fromkeys((*parts_of(left), *parts_of(right))))


def made_of(text: str, known: Collection[str]) -> bool:
    """Whether a text is one of the known names, or an expression of nothing but such."""
    try:
        parts = parts_of(parse(text, known))
    except ValueError:  # the name of a feature that is about no label
        return False
    return all(part in known for part in parts)


def looks_ahead(expression: Expression) -> bool:
    """Whether it has a horizon, so that it asks for every step and is not known everywhere."""
    match expression:
        case Name():
            return False
        case Not(part):
            return looks_ahead(part)
        case Within():
            return True
        case Both(left, right) | Either(left, right):
            return looks_ahead(left) or looks_ahead(right)


def parse(text: str, known: Collection[str] = ()) -> Expression:
    """The expression that a text is; a text that is one of the `known` names is that name.

    Raises:
        ValueError: a text that cannot be read; says where, and what was expected there.
    """
    return Name(text) if text in known else _Reader(text).whole()


class _Reader:
    """Reads from left to right, one sign or name at a time."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARACTERS or text.count("(") > MAX_PARENTHESES:
            raise ValueError(
                f"label {text:.40}...: {len(text)} characters and {text.count('(')} parentheses, wanted at most "
                f"{MAX_CHARACTERS} and {MAX_PARENTHESES}; define a label of your own for it"
            )
        self._text = text
        self._tokens: list[tuple[str, int]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise self._error(at, "a name or one of ! & | ( ) @")
            kind = found.lastgroup or ""
            self._tokens.append((found[kind], found.start(kind)))
            at = found.end()
        self._next = 0

    def whole(self) -> Expression:
        expression = self._either()
        if self._next < len(self._tokens):
            raise self._error(self._tokens[self._next][1], "&, |, @ or the end")
        return expression

    def _take(self, sign: str) -> bool:
        if self._next < len(self._tokens) and self._tokens[self._next][0] == sign:
            self._next += 1
            return True
        return False

    def _either(self) -> Expression:
        left = self._both()
        while self._take("|"):
            left = Either(left, self._both())
        return left

    def _both(self) -> Expression:
        left = self._not()
        while self._take("&"):
            left = Both(left, self._not())
        return left

    def _not(self) -> Expression:
        return Not(self._not()) if self._take("!") else self._within()

    def _within(self) -> Expression:
        expression = self._operand()
        while self._take("@"):
            word, at = self._word("within and a number of steps, for instance @within5")
            horizon = _WITHIN.fullmatch(word)
            if horizon is None:
                raise self._error(at, "within and a number of steps from 1, for instance @within5")
            expression = Within(expression, int(horizon[1]))
        return expression

    def _operand(self) -> Expression:
        if self._take("("):
            inside = self._either()
            if not self._take(")"):
                raise self._error(self._place(), "a closing parenthesis")
            return inside
        return Name(self._word("the name of a label, ! or an opening parenthesis")[0])

    def _word(self, wanted: str) -> tuple[str, int]:
        if self._next < len(self._tokens) and NAME.fullmatch(self._tokens[self._next][0]):
            self._next += 1
            return self._tokens[self._next - 1]
        raise self._error(self._place(), wanted)

    def _place(self) -> int:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else len(self._text)

    def _error(self, at: int, wanted: str) -> ValueError:
        found = repr(self._text[at:]) if at < len(self._text) else "its end"
        return ValueError(
            f"label {self._text!r}: at character {at + 1} found {found}, wanted {wanted}; "
            f"labels are made of {GRAMMAR}"
        )
