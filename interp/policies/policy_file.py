"""What an untrusted policy file turned out to hold, before anything is known of the network that it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """Tensors and what the file says of them. Reading one never runs code from it: see `interp.policies.formats`."""

    format: str
    """How it was written, for instance "safetensors", "state-dict", "mpt" or "policy-record"."""
    sha256: str
    """Of the file's bytes; of a folder, the hash of the names and hashes of its files."""
    tensors: Mapping[str, Tensor]
    """Dotted name -> tensor, contiguous, finite, on the CPU."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Dotted path of a module -> the class that the file names for it; empty if the format does not tell."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values that the file carries: epoch, agent_step, action_names, features, architecture and the like."""
