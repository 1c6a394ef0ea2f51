"""What the rollout loop needs of a policy."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
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

    def refresh(self) -> None:
        """Rebuilds what `step` keeps of the weights, if anything; called after they change."""
