"""What the rollout loop needs of a policy."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.policies.taps import Tap

State = tuple[Tensor, ...]
"""Recurrent state of a batch; every tensor has the rows first."""


class Step(NamedTuple):
    """What a policy says about one step of a batch."""

    logits_RN: Float[Tensor, "R N"]
    value_R: Float[Tensor, " R"]
    state: State


@runtime_checkable
class Policy(Protocol):
    """A recurrent policy over batches of rows; a row's result never depends on the other rows.

    The rollout loop calls it with a fixed number of rows, so that this also holds to the last bit.
    """

    @property
    def sites(self) -> Mapping[str, int]:
        """Every site that can be recorded or edited, with its width, in the order of computation."""
        ...

    @property
    def action_names(self) -> tuple[str, ...]: ...

    @property
    def device(self) -> torch.device:
        """Where it computes, and what it returns is."""
        ...

    def initial_state(self, num_rows: int) -> State:
        """Zero memory at the start of an episode."""
        ...

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step: ...


class PolicyNetwork(nn.Module, ABC):
    """A policy that is a network of ours, so that its weights can be kept and loaded."""

    @property
    @abstractmethod
    def sites(self) -> Mapping[str, int]: ...

    @property
    @abstractmethod
    def action_names(self) -> tuple[str, ...]: ...

    @abstractmethod
    def initial_state(self, num_rows: int) -> State: ...

    @abstractmethod
    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step: ...

    @property
    def device(self) -> torch.device:
        """Where its weights are; the CPU if it has none."""
        weight = next(self.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device

    def receive(self, values: np.ndarray) -> Tensor:
        """An array where the weights are: itself on a CPU, a copy on a GPU, under way if its memory is pinned."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    def move(self, device: torch.device) -> None:
        """Puts weights, and what is kept of them, on a device."""
        self.to(device)
        self.refresh()

    def refresh(self) -> None:
        """Rebuilds what `step` keeps of the weights, if anything; called after they change or move."""
