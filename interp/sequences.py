"""Stretches of episodes that are worth a look by themselves: chosen by length, around events, or by strategy.

A sequence is a place in a recording: one agent, the steps from `first_t` on. It holds no rows of its own; `rows_of`
finds its rows, activations included, in the recording that it comes from: all of them, or the last of each.

Sequences of one agent do not overlap. Those of one episode are still not independent of each other: whatever is
computed from them is averaged within the episode first (`interp.stats`).
"""

from collections import abc
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int, Int64

from interp.recording import judged_labels, label_columns
from interp.records import LABEL_PREFIX
from interp.worlds.expressions import parse, parts_of

STRATEGIES = ("goal_seeking", "exploration", "resource_collection", "combat", "avoidance")
"""Labels that name a way to play."""

SEQUENCE_SCHEMA = pa.schema(
    [
        pa.field("policy_id", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("world", pa.string(), nullable=False),
        pa.field("env_seed", pa.int64(), nullable=False),
        pa.field("episode", pa.int32(), nullable=False),
        pa.field("agent", pa.int16(), nullable=False),
        pa.field("first_t", pa.int32(), nullable=False),
        pa.field("num_steps", pa.int32(), nullable=False),
        pa.field("onset_t", pa.int32()),
        pa.field("strategy", pa.string()),
        pa.field("label_share", pa.float32()),
        pa.field("total_reward", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A stretch of one agent's episode."""

    policy_id: str
    """Who played it, or was shown it."""
    step: int
    """Agent-steps of training of that policy."""
    world: str
    env_seed: int
    episode: int
    """Its place in the recording."""
    agent: int
    first_t: int
    num_steps: int
    onset_t: int | None
    """Step at which the event began, if the sequence was chosen by one."""
    strategy: str | None
    """Which of `STRATEGIES` holds at most of its steps, at half of them or more; None if none does."""
    label_share: float | None
    """Share of its steps at which the label holds that it was chosen by; None if it was chosen by length."""
    total_reward: float
    """Undiscounted, of these steps."""

    @property
    def end_t(self) -> int:
        """Its last step."""
        return self.first_t + self.num_steps - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ByLength:
    """One sequence after the other, of the same length; what is left at the end of an episode is one too if it is long
    enough.
    """

    min_steps: int = 10
    """A sequence has at least so many steps."""
    max_steps: int = 50
    """A sequence has at most so many steps."""

    def __post_init__(self) -> None:
        _check_steps(self.min_steps, self.max_steps)

    @property
    def label(self) -> None:
        return None

    def choose(self, label_T: Bool[np.ndarray, " T"]) -> list["Stretch"]:
        """Of an episode of so many steps, whatever the label says."""
        num_steps = len(label_T)
        starts = range(0, num_steps, self.max_steps)
        lengths = [min(self.max_steps, num_steps - start) for start in starts]
        return [
            Stretch(start, length)
            for start, length in zip(starts, lengths, strict=True)
            if length >= self.min_steps
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByEvent:
    """Steps before and after a label begins to hold. Windows that the episode cuts short are left out, and of two that
    overlap the later one.
    """

    label: str
    """Label of the event, for instance altar_interaction."""
    before: int = 10
    """Steps before the one at which it begins to hold."""
    after: int = 10
    """Steps after that."""

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: at least 0 steps")

    def choose(self, label_T: Bool[np.ndarray, " T"]) -> list["Stretch"]:
        """Around the onsets of the label; at the first step of an episode nothing begins."""
        onsets = np.flatnonzero(label_T[1:] & ~label_T[:-1]) + 1
        found: list[Stretch] = []
        free_t = 0
        for onset in onsets.tolist():
            first, stop = onset - self.before, onset + self.after + 1
            if first >= free_t and stop <= len(label_T):
                found.append(Stretch(first, stop - first, onset))
                free_t = stop
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ByStrategy:
    """Stretches that begin and end with a label and where it holds at most steps, the longest there are from each
    beginning on.
    """

    label: str
    """Label of the strategy: goal_seeking, exploration, resource_collection, combat, avoidance, or any other."""
    min_steps: int = 10
    """A sequence has at least so many steps."""
    max_steps: int = 50
    """A sequence has at most so many steps."""
    min_share: float = 0.6
    """The label holds at no smaller share of its steps."""

    def __post_init__(self) -> None:
        _check_steps(self.min_steps, self.max_steps)
        if not 0 < self.min_share <= 1:
            raise ValueError(f"min_share {self.min_share}: above 0 and at most 1")

    def choose(self, label_T: Bool[np.ndarray, " T"]) -> list["Stretch"]:
        """From the earliest step on; the next one begins after the end of the one before."""
        held = np.concatenate([[0], np.cumsum(label_T)])
        found: list[Stretch] = []
        free_t = 0
        for start in np.flatnonzero(label_T).tolist():
            if start < free_t:
                continue
            stops = np.arange(start + self.min_steps, min(start + self.max_steps, len(label_T)) + 1)
            enough = (held[stops] - held[start] >= self.min_share * (stops - start)) & label_T[
                stops - 1
            ]
            if enough.any():
                free_t = int(stops[enough][-1])
                found.append(Stretch(start, free_t - start))
        return found


Choice = ByLength | ByEvent | ByStrategy


@dataclass(frozen=True, slots=True)
class Stretch:
    """Part of an episode."""

    first_t: int
    num_steps: int
    onset_t: int | None = None


def _check_steps(min_steps: int, max_steps: int) -> None:
    if not 1 <= min_steps <= max_steps:
        raise ValueError(
            f"min_steps {min_steps} and max_steps {max_steps}: at least 1, and the first no larger than the second"
        )


def columns_for(choice: Choice, labels: abc.Collection[str]) -> list[str]:
    """Columns of a recording with those labels that `extract` reads."""
    keys = ["policy_id", "step", "world", "env_seed", "episode", "agent", "t", "reward"]
    wanted = [name for name in STRATEGIES if name in labels]
    if choice.label is not None:
        wanted += parts_of(parse(choice.label, labels))
    return [*keys, *(LABEL_PREFIX + name for name in dict.fromkeys(wanted))]


def extract(table: pa.Table, choice: Choice) -> list[Sequence]:
    """Sequences of whole episodes, given as rows of a recording that kept every step; by episode, then by agent.

    Raises:
        ValueError: a label that was not recorded, or an episode of which steps are missing.
    """
    if choice.label is not None:
        label_N = judged_labels(table, [choice.label]).label_NL[:, 0]
    else:
        label_N = np.zeros(table.num_rows, np.bool_)
    names = [name for name in STRATEGIES if LABEL_PREFIX + name in table.column_names]
    strategy_NL = label_columns(table, names)
    reward_N = table.column("reward").to_numpy()
    found: list[Sequence] = []
    for rows_TA in _episodes(table):
        first = int(rows_TA[0, 0])
        about = {
            name: table.column(name)[first].as_py()
            for name in ("policy_id", "step", "world", "env_seed", "episode")
        }
        for agent, rows_T in enumerate(rows_TA.T):
            label_T = label_N[rows_T]
            for stretch in choice.choose(label_T):
                steps = slice(stretch.first_t, stretch.first_t + stretch.num_steps)
                share_L = strategy_NL[rows_T[steps]].mean(0)
                found.append(
                    Sequence(
                        **about,
                        agent=agent,
                        first_t=stretch.first_t,
                        num_steps=stretch.num_steps,
                        onset_t=stretch.onset_t,
                        strategy=_foremost(names, share_L),
                        label_share=None
                        if choice.label is None
                        else float(np.float32(label_T[steps].mean())),
                        total_reward=float(reward_N[rows_T[steps]].sum(dtype=np.float32)),
                    )
                )
    return found


def _foremost(names: abc.Sequence[str], share_L: Float[np.ndarray, " L"]) -> str | None:
    if not names or share_L.max() < 0.5:
        return None
    return names[int(share_L.argmax())]


def _episodes(table: pa.Table) -> abc.Iterator[Int64[np.ndarray, "T A"]]:
    """Row numbers of each episode, which the rows of a recording have step by step and agent by agent."""
    episode_N, agent_N, t_N = (table.column(name).to_numpy() for name in ("episode", "agent", "t"))
    if not len(episode_N):
        return
    starts = np.flatnonzero(np.diff(episode_N, prepend=episode_N[0] - 1))
    num_agents = int(agent_N.max()) + 1
    for start, stop in zip(starts, [*starts[1:], len(episode_N)], strict=True):
        num_steps, left = divmod(int(stop - start), num_agents)
        rows_TA = np.arange(start, start + num_steps * num_agents).reshape(-1, num_agents)
        is_whole = (
            left == 0
            and (t_N[rows_TA] == np.arange(num_steps)[:, None]).all()
            and (agent_N[rows_TA] == np.arange(num_agents)).all()
        )
        if not is_whole:
            raise ValueError(
                f"episode {int(episode_N[start])}: steps are missing; sequences are cut from recordings that kept "
                "every step of every agent"
            )
        yield rows_TA


def sequence_table(sequences: abc.Sequence[Sequence]) -> pa.Table:
    """One row a sequence, in their order."""
    return pa.table(
        {
            field.name: pa.array([getattr(one, field.name) for one in sequences], field.type)
            for field in SEQUENCE_SCHEMA
        },
        schema=SEQUENCE_SCHEMA,
    )


def sequences_of(table: pa.Table) -> list[Sequence]:
    """Inverse of `sequence_table`."""
    return [Sequence(**row) for row in table.to_pylist()]


class SequenceRows(NamedTuple):
    """Which rows of a table are of which sequence."""

    row_K: Int64[np.ndarray, " K"]
    sequence_K: Int64[np.ndarray, " K"]
    """Index into the sequences that were asked for."""


def rows_of(
    table: pa.Table, sequences: abc.Sequence[Sequence], *, ends_only: bool = False
) -> SequenceRows:
    """Rows of a recording that belong to sequences of it, sequence by sequence and step by step.

    With `ends_only`, those at which a sequence is complete. Steps that the table lacks, because other rows were read or
    none was recorded, are not among them.
    """
    key_N = _position(*(table.column(name).to_numpy() for name in ("episode", "agent", "t")))
    order_N = np.argsort(key_N, kind="stable")
    key_N = key_N[order_N]
    episode_Q, agent_Q, first_Q, end_Q = (
        np.array([getattr(one, name) for one in sequences], np.int64)
        for name in ("episode", "agent", "first_t", "end_t")
    )
    begin_Q = np.searchsorted(key_N, _position(episode_Q, agent_Q, end_Q if ends_only else first_Q))
    stop_Q = np.searchsorted(key_N, _position(episode_Q, agent_Q, end_Q), side="right")
    length_Q = stop_Q - begin_Q
    sequence_K = np.repeat(np.arange(len(sequences)), length_Q)
    before_K = np.repeat(np.cumsum(length_Q) - length_Q, length_Q)
    return SequenceRows(
        order_N[begin_Q[sequence_K] + np.arange(len(sequence_K)) - before_K], sequence_K
    )


def _position(
    episode_N: Int[np.ndarray, " N"], agent_N: Int[np.ndarray, " N"], t_N: Int[np.ndarray, " N"]
) -> Int64[np.ndarray, " N"]:
    """One number that sorts as (episode, agent, t) do; t has 32 bits of it, the agent 16."""
    return episode_N.astype(np.int64) << 48 | agent_N.astype(np.int64) << 32 | t_N
