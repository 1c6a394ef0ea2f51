"""What an untrusted policy file turned out to hold, before anything is known of the network that it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """Tensors and what the file says of them. Reading one never runs code from it: see `interp.policies.formats`."""

    format: str
    """How it was written:

    safetensors · state-dict (names -> tensors) · checkpoint (a state dict beside other values) · bundle (as in our
    store) · checkpoint-folder (policy_spec.json or cogames.toml) · mpt · sb3 · rl-module (of RLlib) · policy-record,
    policy-auto-builder and module (a pickled module: of the first two kinds, or any other).
    """
    sha256: str
    """Of the file's bytes; of a folder, the hash of the names and hashes of its files."""
    tensors: Mapping[str, Tensor]
    """Dotted name -> tensor, contiguous, finite, on the CPU, with memory of its own."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Dotted path of a module -> the class that the file names for it; empty if the format does not tell."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values that the file carries, under the file's own names. Found under the same name in every format:

    epoch, agent_step, score, generation, run_name: where in which training it was written
    action_names, action_max_params: actions of its world, and the largest argument of each
    features: observation feature -> {"id", "normalization"}; obs_width, obs_height, obs_shape: its observation
    architecture: the network's description as a tree in which class_path names a class
    class, class_path: of the object that was saved, or of the policy as a submission names it
    observation_space, action_space, model_config, inference_only: as an RLModule was made with
    attributes: path of a module -> its own plain settings, such as kernel_size or hidden_size
    left_out: part of a checkpoint that is not the policy, such as an optimiser's state -> its number of tensors
    """
