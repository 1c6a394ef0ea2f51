"""What is known of a gymnasium task besides its observations: hidden variables, and labels that are ranges of them.

A variable has a value at every state t, the one before action t; `reward` and `action` are those of the step that led
to the state (0 and -1 at the first). A label reads its variable in the state before action t, or in the one after it.

CartPole         cart_position, cart_velocity, pole_angle, pole_velocity: the whole state, whatever a mask hides
MiniGrid         agent_row, agent_col, agent_direction (0 east, 1 south, 2 west, 3 north), carrying
MiniGrid memory  moreover cue_is_key, cue_in_view, choice_in_view, match_is_north, at_junction
any other        its unmasked observation, entry by entry, as observation_0 to observation_31
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from interp.records import LabelKind, VariableLabel

Variables = dict[str, Float32[np.ndarray, "S A"]]
MAX_OBSERVED = 32
"""An observation with more entries than this is no list of variables that a person would name: it gives none."""


def _nothing(_variables: Variables) -> Variables:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """How to read the hidden variables of one kind of environment, and the labels over them."""

    labels: tuple[VariableLabel, ...] = ()
    """Besides those that every task has."""
    read: Callable[[Any, Float32[np.ndarray, " D"]], Mapping[str, float]]
    """From the environment and its flat unmasked observation, at one state."""
    derive: Callable[[Variables], Variables] = _nothing
    """Further variables from those of a whole episode, `action` and `reward` among them."""

    def registry(self, max_steps: int) -> dict[str, VariableLabel]:
        """All labels of a task with that time limit, by name."""
        labels = (*_common_labels(max_steps), *self.labels)
        return {label.name: label for label in labels}

    def complete(self, variables: Variables) -> Variables:
        """The variables that were read, and all that follow from them."""
        action_SA = variables["action"]
        switches_SA = np.zeros_like(action_SA)
        switches_SA[2:] = action_SA[2:] != action_SA[1:-1]
        t_SA = np.arange(len(action_SA), dtype=np.float32)[:, None].repeat(action_SA.shape[1], 1)
        return {
            "t": t_SA,
            "rewarded": (variables["reward"] > 0).astype(np.float32),
            "switches_action": switches_SA,
            **variables,
            **self.derive(variables),
        }


def task_of(
    environment: Any,  # noqa: ANN401 - a gymnasium.Env, which this file need not import
    limits_D2: Float32[np.ndarray, "D 2"],
) -> Task:
    """The task that an unwrapped environment is; `limits_D2` are the bounds of its flat observation."""
    kinds = {kind.__name__ for kind in type(environment).__mro__}
    if "CartPoleEnv" in kinds:
        return CART_POLE
    if {"MemoryEnv", "MiniGridEnv"} <= kinds:
        return MINIGRID_MEMORY
    if "MiniGridEnv" in kinds:
        return MINIGRID
    return _observed(limits_D2)


def _common_labels(max_steps: int) -> list[VariableLabel]:
    """Of every task: the phases of the episode as in mettagrid's worlds, reward, and change of mind."""
    limit = float(max_steps)
    return [
        VariableLabel(
            name="episode_start",
            kind="temporal",
            definition="State: t lies in the first tenth of the episode's time limit, t / max_steps < 0.1.",
            variable="t",
            below=limit / 10,
        ),
        VariableLabel(
            name="episode_middle",
            kind="temporal",
            definition=(
                "State: t lies in the middle fifth of the episode's time limit, 0.4 <= t / max_steps < 0.6."
            ),
            variable="t",
            at_least=4 * limit / 10,
            below=6 * limit / 10,
        ),
        VariableLabel(
            name="episode_end",
            kind="temporal",
            definition="State: t lies in the last tenth of the episode's time limit, t / max_steps >= 0.9.",
            variable="t",
            at_least=9 * limit / 10,
        ),
        _flag(
            "rewarded",
            "behavioural",
            "Result: action t earns a reward above zero.",
            after_action=True,
        ),
        _flag(
            "switches_action",
            "behavioural",
            "Result: action t differs from action t - 1; false at t = 0.",
            after_action=True,
        ),
    ]


def _state(name: str, kind: LabelKind, variable: str, definition: str) -> VariableLabel:
    """Holds where the variable is at least zero."""
    return VariableLabel(
        name=name, kind=kind, definition=definition, variable=variable, at_least=0.0
    )


def _flag(
    name: str, kind: LabelKind, definition: str, *, after_action: bool = False
) -> VariableLabel:
    """Holds where the variable of the same name, which is 0 or 1, is 1."""
    return VariableLabel(
        name=name,
        kind=kind,
        definition=definition,
        variable=name,
        at_least=0.5,
        after_action=after_action,
    )


# CartPole


def _cart_pole_state(environment: Any, _observation_D: np.ndarray) -> dict[str, float]:  # noqa: ANN401
    names = ("cart_position", "cart_velocity", "pole_angle", "pole_velocity")
    return dict(zip(names, map(float, environment.state), strict=True))


def _pole_falls(variables: Variables) -> Variables:
    outward_SA = variables["pole_angle"] * variables["pole_velocity"]
    return {"pole_falls": (outward_SA > 0).astype(np.float32)}


CART_POLE = Task(
    read=_cart_pole_state,
    derive=_pole_falls,
    labels=(
        VariableLabel(
            name="pushes_right",
            kind="behavioural",
            definition="Result: action t is 1, a push to the right.",
            variable="action",
            at_least=1.0,
            after_action=True,
        ),
        _state("cart_right", "spatial", "cart_position", "State: cart_position >= 0 m."),
        _state("cart_moves_right", "spatial", "cart_velocity", "State: cart_velocity >= 0 m/s."),
        _state("pole_leans_right", "spatial", "pole_angle", "State: pole_angle >= 0 rad."),
        _state("pole_turns_right", "spatial", "pole_velocity", "State: pole_velocity >= 0 rad/s."),
        _flag(
            "pole_falls",
            "object-based",
            "State: the pole moves away from the upright, pole_angle x pole_velocity > 0.",
        ),
    ),
)


# MiniGrid

UNSEEN = 0
"""Object index of a cell that is hidden from the agent, in MiniGrid's encoding of images."""


def _minigrid_state(environment: Any, _observation_D: np.ndarray) -> dict[str, float]:  # noqa: ANN401
    col, row = environment.agent_pos
    return {
        "agent_row": float(row),
        "agent_col": float(col),
        "agent_direction": float(environment.agent_dir),
        "carrying": float(environment.carrying is not None),
    }


def _minigrid_moves(variables: Variables) -> Variables:
    moves_SA = np.zeros_like(variables["agent_row"])
    for axis in ("agent_row", "agent_col"):
        moves_SA[1:] += np.diff(variables[axis], axis=0) != 0
    return {"moves": np.minimum(moves_SA, 1)}


_MINIGRID_LABELS = (
    _flag(
        "moves",
        "behavioural",
        "Result: action t takes the agent to another cell.",
        after_action=True,
    ),
    VariableLabel(
        name="turns",
        kind="behavioural",
        definition="Result: action t is 0 or 1, a turn to the left or to the right.",
        variable="action",
        at_least=0.0,
        below=2.0,
        after_action=True,
    ),
    *(
        VariableLabel(
            name=f"faces_{side}",
            kind="spatial",
            definition=f"State: the agent faces {side}, agent_direction is {number}.",
            variable="agent_direction",
            at_least=float(number),
            below=float(number + 1),
        )
        for number, side in enumerate(("east", "south", "west", "north"))
    ),
    _flag("carrying", "object-based", "State: the agent carries an object."),
)
MINIGRID = Task(read=_minigrid_state, derive=_minigrid_moves, labels=_MINIGRID_LABELS)


def _memory_state(environment: Any, observation_D: np.ndarray) -> dict[str, float]:  # noqa: ANN401
    """The map of MiniGrid's MemoryEnv: cue in the start room, hallway along the middle row, choices at its end."""
    middle = environment.height // 2
    cue = (1, middle - 1)
    corridor, match_row = environment.success_pos
    choices = [(corridor, middle - 2), (corridor, middle + 2)]
    state = _minigrid_state(environment, observation_D)
    return {
        **state,
        "cue_is_key": float(environment.grid.get(*cue).type == "key"),
        "cue_in_view": float(_sees(environment, observation_D, [cue])),
        "choice_in_view": float(_sees(environment, observation_D, choices)),
        "match_is_north": float(match_row < middle),
        "at_junction": float((state["agent_col"], state["agent_row"]) == (corridor, middle)),
    }


def _sees(
    environment: Any,  # noqa: ANN401
    observation_D: np.ndarray,
    cells: Sequence[tuple[int, int]],
) -> bool:
    """Whether one of the cells (column, row) is in the agent's view and not hidden by a wall."""
    size = environment.agent_view_size
    image = observation_D.reshape(size, size, -1)
    in_view = [environment.relative_coords(*cell) for cell in cells]
    return any(cell is not None and image[cell[0], cell[1], 0] != UNSEEN for cell in in_view)


MINIGRID_MEMORY = Task(
    read=_memory_state,
    derive=_minigrid_moves,
    labels=(
        *_MINIGRID_LABELS,
        _flag(
            "cue_is_key",
            "object-based",
            "State: the object in the start room is a key, not a ball.",
        ),
        _flag("cue_in_view", "object-based", "State: the agent sees the object in the start room."),
        _flag(
            "choice_in_view",
            "object-based",
            "State: the agent sees at least one of the two objects at the end of the hallway.",
        ),
        _flag(
            "match_is_north",
            "spatial",
            "State: of the two objects at the end of the hallway, the northern one matches the cue.",
        ),
        _flag(
            "at_junction",
            "spatial",
            "State: the agent stands where the hallway ends and the ways part.",
        ),
    ),
)


# Any other


@dataclass(frozen=True, slots=True)
class _ReadObservation:
    num_entries: int

    def __call__(
        self,
        environment: Any,  # noqa: ANN401
        observation_D: Float32[np.ndarray, " D"],
    ) -> dict[str, float]:
        return {f"observation_{i}": float(observation_D[i]) for i in range(self.num_entries)}


def _observed(limits_D2: Float32[np.ndarray, "D 2"]) -> Task:
    """A task of which only the observation is known; thresholds are the middles of its bounds, 0 without bounds."""
    if len(limits_D2) > MAX_OBSERVED:
        return Task(read=_ReadObservation(0))
    thresholds = [_middle(low, high) for low, high in limits_D2.astype(np.float64).tolist()]
    return Task(
        read=_ReadObservation(len(limits_D2)),
        labels=tuple(
            VariableLabel(
                name=f"high_observation_{i}",
                kind="object-based",
                definition=f"State: observation_{i} >= {middle:g}.",
                variable=f"observation_{i}",
                at_least=middle,
            )
            for i, middle in enumerate(thresholds)
        ),
    )


def _middle(low: float, high: float) -> float:
    """Of an entry's bounds; spaces say "unbounded" by infinity or by the largest float32."""
    is_bounded = max(abs(low), abs(high)) < 1e30
    return (low + high) / 2 if is_bounded else 0.0
