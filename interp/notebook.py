"""What is noted of a batch while it is played: a ring of a few steps of all rows, and of each world what left the ring.

One copy a step serves the whole batch. Whenever the ring is full, and when an episode ends, each world's stretch of it
is copied to the pieces of its episode. Memory therefore grows with what is played, not with what a time limit allows,
and steps that nobody asked for are forgotten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float32, Int32
from torch import Tensor

RING_STEPS = 64
"""Steps that the ring holds: some megabytes, which caches hold too."""


@runtime_checkable
class StepChoice(Protocol):
    """Steps of an episode to capture."""

    def among(self, first: int, stop: int, *, is_end: bool) -> Int32[np.ndarray, " T_"]:
        """Those of steps `first` up to `stop`; `is_end` says that the episode ended with the last of them."""
        ...


class Noted(NamedTuple):
    """One episode."""

    action_TA: Int32[np.ndarray, "T A"]
    reward_TA: Float32[np.ndarray, "T A"]
    done_TA: Bool[np.ndarray, "T A"]
    captured_t: Int32[np.ndarray, " T_"]
    activations: Mapping[str, Float32[np.ndarray, "T_ A D"] | Float16[np.ndarray, "T_ A D"]]


@dataclass(slots=True)
class _Pieces:
    """What has left the ring of one world's episode."""

    start: int
    """Of the episode, by the notebook's clock."""
    num_steps: int = 0
    """That have left."""
    action: list[np.ndarray] = field(default_factory=list)
    reward: list[np.ndarray] = field(default_factory=list)
    done: list[np.ndarray] = field(default_factory=list)
    captured_t: list[np.ndarray] = field(default_factory=list)
    activations: dict[str, list[np.ndarray]] = field(default_factory=dict)


class Notebook:
    """See the head of this file. Rows are worlds x agents; a world's notes begin with `begin` and end with `end`."""

    def __init__(
        self,
        num_worlds: int,
        num_agents: int,
        site_widths: Mapping[str, int],
        steps: StepChoice,
        precision: Literal["float32", "float16"],
        *,
        pinned: bool,
    ) -> None:
        """Pinned if a GPU is to write activations while this process does something else."""
        rows = num_worlds * num_agents
        self._agents = num_agents
        self._steps = steps
        self._action = np.zeros((RING_STEPS, rows), np.int32)
        self._reward = np.zeros((RING_STEPS, rows), np.float32)
        self._done = np.zeros((RING_STEPS, rows), np.bool_)
        self._activation = {
            site: torch.empty(
                RING_STEPS, rows, width, dtype=getattr(torch, precision), pin_memory=pinned
            )
            for site, width in site_widths.items()
        }
        self._pieces: list[_Pieces | None] = [None] * num_worlds
        self._clock = 0

    def begin(self, world: int) -> None:
        self._pieces[world] = _Pieces(
            self._clock, activations={site: [] for site in self._activation}
        )

    def keep(self, rows: slice, activations: Mapping[str, Tensor]) -> None:
        """Activations of some rows at the step that is about to be played; a GPU may still be at it."""
        at = self._clock % RING_STEPS
        for site, ring in self._activation.items():
            ring[at, rows].copy_(activations[site][: rows.stop - rows.start], non_blocking=True)

    def note(
        self,
        action_R: Int32[np.ndarray, " R"],
        reward_R: Float32[np.ndarray, " R"],
        done_R: Bool[np.ndarray, " R"],
    ) -> None:
        """What came of that step."""
        at = self._clock % RING_STEPS
        self._action[at] = action_R
        self._reward[at] = reward_R
        self._done[at] = done_R
        self._clock += 1

    def turn(self) -> None:
        """Makes room in the ring, if it is full; after the episodes that ended have been taken out."""
        if self._clock % RING_STEPS == 0:
            for world, pieces in enumerate(self._pieces):
                if pieces is not None:
                    self._copy_out(world, pieces, is_end=False)

    def end(self, world: int) -> Noted:
        """The episode that ended with the last step."""
        pieces = self._pieces[world]
        assert pieces is not None
        self._pieces[world] = None
        self._copy_out(world, pieces, is_end=True)
        return Noted(
            _joined(pieces.action),
            _joined(pieces.reward),
            _joined(pieces.done),
            _joined(pieces.captured_t),
            # one site after the other: no more than one is there twice
            {site: _joined(pieces.activations.pop(site)) for site in self._activation},
        )

    def _copy_out(self, world: int, pieces: _Pieces, *, is_end: bool) -> None:
        first = pieces.num_steps
        stop = self._clock - pieces.start
        if first == stop:
            return
        rows = slice(world * self._agents, (world + 1) * self._agents)
        begin = (pieces.start + first) % RING_STEPS
        at = slice(begin, begin + stop - first)
        pieces.action.append(self._action[at, rows].copy())
        pieces.reward.append(self._reward[at, rows].copy())
        pieces.done.append(self._done[at, rows].copy())
        captured_t = self._steps.among(first, stop, is_end=is_end)
        pieces.captured_t.append(captured_t)
        captured_at = at if len(captured_t) == stop - first else captured_t - first + begin
        for site, ring in self._activation.items():
            pieces.activations[site].append(np.array(ring[:, rows].numpy()[captured_at]))
        pieces.num_steps = stop


def _joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
