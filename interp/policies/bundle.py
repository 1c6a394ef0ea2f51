"""A policy as it lies in the store: weights as safetensors, architecture as JSON, and a card for people.

The id of a policy is a hash of its weights and architecture: the same network is the same policy, however it came here.
No code is ever read from a bundle: the architecture's family chooses one of our networks, or names a function that this
process must have been told to trust.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from interp.identity import ID_DIGITS, canonical_json, sha256
from interp.policies.architecture import Architecture
from interp.policies.families import build
from interp.policies.policy import PolicyNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCard:
    """What a person wants to know of a policy before opening it."""

    policy_id: str
    name: str
    run: str
    """Identity of the training run that it is a checkpoint of."""
    step: int
    """Agent-steps of training."""
    world: str
    """World that it was trained in."""
    num_parameters: int
    sites: Mapping[str, int]
    """Site -> width of every activation that can be recorded or edited."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from, if it was not trained here: its address, format, sha256 and what was said of it there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBundle:
    architecture: Mapping[str, Any]
    weights: bytes
    """A safetensors file."""

    @classmethod
    def of(cls, architecture: Architecture, weights: Mapping[str, Tensor]) -> "PolicyBundle":
        return cls(
            architecture=architecture.to_json(),
            weights=save({name: tensor.contiguous() for name, tensor in weights.items()}),
        )

    @property
    def policy_id(self) -> str:
        digest = sha256(canonical_json(self.architecture) + sha256(self.weights).encode())
        return f"p-{digest[:ID_DIGITS]}"

    def open(self) -> PolicyNetwork:
        """The policy, ready to play.

        Raises:
            ValueError: unknown family, or tensors that are missing, unknown, of the wrong shape or not finite.
        """
        weights = self._weights()
        for name, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"policy {self.policy_id}: tensor {name} holds NaN or infinity")
        policy = self._network(weights)
        try:
            policy.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"policy {self.policy_id}: {error}") from error
        policy.requires_grad_(False)
        policy.refresh()
        return policy

    def untrained(self, seed: int) -> "PolicyBundle":
        """The same network with fresh weights, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = self._network(self._weights()).state_dict()
        return PolicyBundle(  # copies: two names of a network may share one tensor, which the format refuses
            architecture=self.architecture,
            weights=save({name: tensor.clone().contiguous() for name, tensor in weights.items()}),
        )

    def _weights(self) -> dict[str, Tensor]:
        try:
            return load(self.weights)
        except SafetensorError as error:
            raise ValueError(f"policy {self.policy_id}: weights.safetensors: {error}") from error

    def _network(self, weights: Mapping[str, Tensor]) -> PolicyNetwork:
        try:
            return build(self.architecture, weights)
        except ValueError as error:
            raise ValueError(f"policy {self.policy_id}: {error}") from error
