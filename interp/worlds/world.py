"""What the rollout loop needs of a world: E copies of one environment, A agents each, stepped as one batch.

Rows of every batch are ordered world-major: row e * A + a is agent a of world e.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32

from interp.records import Facts, Trace
from interp.worlds.labels import WorldLabel

TRAINING_SEEDS = range(2**30, 2**31)
"""Environment seeds of trainings; recordings, evaluations and the like use those below. Maps accept 31 bits."""


def check_env_seeds(first_env_seed: int, num_episodes: int) -> None:
    """ValueError if episodes of these seeds could have been trained on."""
    if not 0 <= first_env_seed <= TRAINING_SEEDS.start - num_episodes:
        raise ValueError(
            f"first_env_seed {first_env_seed} and {num_episodes} episodes: seeds go from 0 to 2**30; maps of the seeds "
            "above are trained on"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenVocabulary:
    """How to read an observation made of tokens: N of 3 bytes each (location, feature, value).

    The location is row << 4 | column in the agent's window, 0xFE for global facts and 0xFF for padding.
    """

    window_rows: int
    window_cols: int
    num_tokens: int
    features: Mapping[str, int]
    """Feature name -> feature byte."""
    tags: tuple[str, ...]
    """Meaning of the value of the feature `tag`."""
    tells_position: bool
    """Whether agents see how far they are from where they started; the features exist in either case."""


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
    has_map: bool = False
    """Whether the facts hold a map, on which windows of an episode can be drawn."""
    vocabulary: TokenVocabulary | None = None
    """How to read the observations if they are tokens."""
    teams: tuple[int, ...] = ()
    """Team of each agent; empty if nobody has one."""


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

    def retire(self, world: int) -> Facts | Trace | None:
        """Ends the episode of one copy and returns what the simulator knew, if that was asked for at its reset."""
        ...


@runtime_checkable
class WorldFactory(Protocol):
    """Makes batches of one world: a small hashable value that travels to every actor."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> WorldSpec: ...

    @property
    def config(self) -> dict[str, Any]:
        """JSON-able, and all that decides the world: ids of recordings are hashes of it."""
        ...

    @property
    def labels(self) -> Mapping[str, WorldLabel]:
        """Every ground-truth label of this world by name, in the order in which they are recorded by default."""
        ...

    def __call__(self, num_worlds: int) -> World: ...
