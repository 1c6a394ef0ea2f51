"""What the rollout loop needs of a world: E copies of one environment, A agents each, stepped as one batch.

Rows of every batch are ordered world-major: row e * A + a is agent a of world e.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32

from interp.records import Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSpec:
    """Shape of a world, the same for every copy of it."""

    name: str
    num_agents: int
    max_steps: int
    """Time limit of an episode in steps."""
    action_names: tuple[str, ...]
    observation_shape: tuple[int, ...]
    """Shape of one agent's observation."""
    observation_dtype: str


@runtime_checkable
class World(Protocol):
    """E copies of one environment over shared buffers, which `step` and `reset` overwrite in place."""

    spec: WorldSpec
    num_worlds: int
    observation_R: np.ndarray
    reward_R: Float32[np.ndarray, " R"]
    done_R: Bool[np.ndarray, " R"]

    def reset(self, world: int, *, map_seed: int, sim_seed: int, collect_facts: bool) -> None:
        """Starts a new episode in one of the copies; the others are untouched."""
        ...

    def step(self, action_R: Int32[np.ndarray, " R"]) -> None:
        """Plays one step in every copy that is between `reset` and `retire`."""
        ...

    def retire(self, world: int) -> Facts | None:
        """Ends the episode of one copy and returns what the simulator knew, if that was asked for at its reset."""
        ...
