"""A world that shows what was seen before: stored trajectories, in which a policy's choices change nothing.

`roll` plays in it as in any other, with the actions of the trajectory given, so the memory of a policy is rolled from
the first step and all that is said of rollouts holds. No simulator runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from interp.trajectories import PADDING, Trajectory
from interp.worlds.world import WorldSpec


@dataclass(frozen=True)
class ReplayedWorlds:
    """Makes batches of a world in which the episode of a seed is the trajectory of that seed."""

    spec: WorldSpec
    """Of the world that the trajectories come from."""
    trajectories: Mapping[int, Trajectory]
    """By env_seed."""

    def __call__(self, num_worlds: int) -> "ReplayedWorld":
        return ReplayedWorld(self, num_worlds)


class ReplayedWorld:
    """E trajectories at once; see `World` for the protocol."""

    def __init__(self, source: ReplayedWorlds, num_worlds: int) -> None:
        self.spec = source.spec
        self.num_worlds = num_worlds
        self._trajectories = source.trajectories
        rows = num_worlds * self.spec.num_agents
        self._blank = PADDING if self.spec.observation_dtype == "uint8" else 0
        self.observation_R = np.full(
            (rows, *self.spec.observation_shape), self._blank, self.spec.observation_dtype
        )
        self.reward_R = np.zeros(rows, np.float32)
        self.done_R = np.zeros(rows, np.bool_)
        self._showing: list[Trajectory | None] = [None] * num_worlds
        self._t_of = [0] * num_worlds

    def _rows(self, world: int) -> slice:
        return slice(world * self.spec.num_agents, (world + 1) * self.spec.num_agents)

    def reset(self, world: int, *, map_seed: int, sim_seed: int, collect_facts: bool) -> None:
        """Begins the trajectory of that seed. KeyError if there is none; facts are not known any more."""
        assert map_seed == sim_seed
        rows = self._rows(world)
        self._showing[world] = self._trajectories[map_seed]
        self._t_of[world] = 0
        self.observation_R[rows] = self._blank
        self.done_R[rows] = False
        self._show(world)

    def _show(self, world: int) -> None:
        trajectory = self._showing[world]
        assert trajectory is not None
        seen_A = trajectory.observation_TA[self._t_of[world]]
        # columns that nobody used in the whole trajectory are blank since the reset
        self.observation_R[self._rows(world), : seen_A.shape[1]] = seen_A

    def step(self, action_R: Int32[np.ndarray, " R"]) -> None:
        """Goes on by one step, whatever the actions are."""
        for world, trajectory in enumerate(self._showing):
            if trajectory is None:
                continue
            rows, t = self._rows(world), self._t_of[world]
            self.reward_R[rows] = trajectory.reward_TA[t]
            self.done_R[rows] = trajectory.done_TA[t]
            self._t_of[world] = t + 1
            if t + 1 < len(trajectory.action_TA):
                self._show(world)

    def retire(self, world: int) -> None:
        self._showing[world] = None
        rows = self._rows(world)
        self.observation_R[rows] = self._blank
        self.reward_R[rows] = 0
        self.done_R[rows] = False
