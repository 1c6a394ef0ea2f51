"""What was to be seen in an episode, whoever played it, kept so that others can be shown the same.

A trajectory holds the observations themselves. To show it to a policy takes no simulator: `interp.worlds.replayed` is a
world that shows trajectories, in which `roll` plays as in any other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int32

from interp.records import Facts, Trace
from interp.worlds.labels import compute_labels
from interp.worlds.world import World, WorldFactory, WorldSpec

PADDING = 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One episode as its agents saw it."""

    env_seed: int
    observation_TA: np.ndarray
    """[T, A, ...]: what each agent saw before each action, in the shape and type of its world; tokens without the
    columns at the end that nobody used."""
    action_TA: Int32[np.ndarray, "T A"]
    reward_TA: Float32[np.ndarray, "T A"]
    done_TA: Bool[np.ndarray, "T A"]
    labels: Mapping[str, Bool[np.ndarray, "T A"]]


def watch(
    factory: WorldFactory,
    played: Sequence[tuple[int, Int32[np.ndarray, "_ _"]]],
    labels: Sequence[str] | None = None,
) -> Iterator[Trajectory]:
    """Plays given actions again, (env_seed, actions) by episode, and keeps what there was to be seen, in their order.

    `labels` are those to compute, by default all of the world.
    """
    world = factory(1)
    for env_seed, action_TA in played:
        seen = witness(world, env_seed, action_TA)
        yield Trajectory(
            env_seed=env_seed,
            observation_TA=_without_padding(seen.observation_TA),
            action_TA=action_TA,
            reward_TA=seen.reward_TA,
            done_TA=seen.done_TA,
            labels=compute_labels(seen.facts, labels),
        )


class Witnessed(NamedTuple):
    """An episode that was played again."""

    observation_TA: np.ndarray
    """[T, A, ...]: what each agent saw before each action."""
    reward_TA: Float32[np.ndarray, "T A"]
    done_TA: Bool[np.ndarray, "T A"]
    facts: Facts | Trace


def witness(world: World, env_seed: int, action_TA: Int32[np.ndarray, "_ _"]) -> Witnessed:
    """Plays given actions in the first of a batch of worlds; ValueError if they end before the episode does."""
    world.reset(0, map_seed=env_seed, sim_seed=env_seed, collect_facts=True)
    seen, rewards, dones = [], [], []
    for action_A in action_TA:
        seen.append(world.observation_R.copy())
        world.step(action_A)
        rewards.append(world.reward_R.copy())
        dones.append(world.done_R.copy())
    facts = world.retire(0)
    assert facts is not None
    if not dones[-1].all():
        raise ValueError(
            f"episode of env_seed {env_seed}: {len(action_TA)} actions end before it does; a trajectory is whole"
        )
    return Witnessed(np.array(seen), np.array(rewards), np.array(dones), facts)


def _without_padding(observation_TA: np.ndarray) -> np.ndarray:
    """Tokens up to the last column that anybody used; other observations as they are."""
    if observation_TA.dtype != np.uint8 or observation_TA.shape[-1] != 3:
        return observation_TA
    used_N = (observation_TA[..., 0] != PADDING).any(axis=(0, 1))
    return observation_TA[:, :, : int(np.flatnonzero(used_N).max(initial=-1)) + 1]


# As rows, agent by agent within a step: the observation is the bytes of one agent's, of `observation_TA`'s width.

OBSERVATION = "observation"
PLAYER = "player"
OBSERVATION_FIELD = pa.field(OBSERVATION, pa.binary(), nullable=False)
PLAYER_FIELD = pa.field(PLAYER, pa.string(), nullable=False)


def observation_column(trajectory: Trajectory) -> pa.Array:
    """One binary a row. They are equally long within a trajectory, and may differ between two."""
    observation_TA = np.ascontiguousarray(trajectory.observation_TA)
    num_rows = observation_TA.shape[0] * observation_TA.shape[1]
    width = observation_TA.nbytes // num_rows
    offsets = np.arange(num_rows + 1, dtype=np.int32) * width
    return pa.Array.from_buffers(
        pa.binary(), num_rows, [None, pa.py_buffer(offsets), pa.py_buffer(observation_TA)]
    )


def observations_of(
    column: pa.Array | pa.ChunkedArray, spec: WorldSpec, num_agents: int
) -> np.ndarray:
    """[T, A, ...] from the rows of one trajectory; the inverse of `observation_column`."""
    content = b"".join(column.to_pylist())
    values = np.frombuffer(content, spec.observation_dtype)
    return values.reshape(len(column) // num_agents, num_agents, -1, *spec.observation_shape[1:])
