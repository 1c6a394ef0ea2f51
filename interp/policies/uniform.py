"""The policy that acts at random: the floor under every return."""

from dataclasses import dataclass

import numpy as np
import torch

from interp.policies.policy import State, Step
from interp.policies.taps import Tap


@dataclass(frozen=True)
class UniformPolicy:
    """Equal logits for every action; no memory and no sites."""

    action_names: tuple[str, ...]

    @property
    def sites(self) -> dict[str, int]:
        return {}

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def initial_state(self, num_rows: int) -> State:
        return ()

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
        num_rows = len(observation_R)
        return Step(torch.zeros(num_rows, len(self.action_names)), torch.zeros(num_rows), state)
