"""Policies of stable-baselines3-contrib's RecurrentPPO (`MlpLstmPolicy`), rebuilt from the tensors of `policy.pth`.

The network is that of sb3-contrib 2.x, and so are the names of its tensors; sb3 itself is never imported, so nothing
that a file brings along can run. Observations are flat vectors, actions discrete and named by their numbers.

encoder     the observation that the LSTMs read               [R, num_observations]
lstm.c      the actor's cell state after the step             [R, hidden]  an edit persists and first shows a step later
lstm.h      the actor's hidden state after the step           [R, hidden]  an edit reaches the heads now and the memory
lstm.y      the heads' copy of h                              [R, hidden]  an edit reaches the heads only
critic.c/h  the same of the critic's LSTM, if it has one      [R, hidden]
logits      action logits                                     [R, num_actions]
value       value estimate                                    [R, 1]

Of several layers, `lstm.c` and `lstm.h` are the last one's; those below it are `lstm.0.c`, `lstm.0.h` and so on.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from interp.policies.architecture import Architecture, Layers, Width, Widths
from interp.policies.policy import PolicyNetwork, State, Step
from interp.policies.policy_file import PolicyFile
from interp.policies.recurrent import initial_memory, memory_sites, remember
from interp.policies.taps import Tap
from interp.policies.tensors import check_tensors, some

FAMILY = "sb3-recurrent"
Critic = Literal["lstm", "linear", "shared"]
"""What the value is read from: an LSTM of its own, a linear layer, or the actor's LSTM."""
Activation = Literal["tanh", "relu"]
_ACTIVATIONS: Mapping[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sb3RecurrentArchitecture(Architecture):
    """All that is needed, besides the weights, to run the policy."""

    family: ClassVar[str] = FAMILY
    num_observations: Width
    """Entries of the flat observation."""
    num_actions: Width
    hidden: Width
    """Width of every LSTM layer."""
    num_layers: Layers = 1
    bias: bool = True
    """Whether the LSTMs have biases."""
    critic: Critic = "lstm"
    policy_layers: Widths = (64, 64)
    """Widths of the layers between the LSTM and the action head."""
    value_layers: Widths = (64, 64)
    """Widths of the layers between the LSTM and the value head."""
    activation: Activation = "tanh"
    """What follows each of those layers."""


def matches(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these look like the tensors of an sb3-contrib recurrent policy."""
    return {"lstm_actor.weight_ih_l0", "action_net.weight", "value_net.weight"} <= tensors.keys()


def recognise(file: PolicyFile) -> Sb3RecurrentArchitecture | None:
    """The architecture of a file that holds such a policy, as `architecture_of` tells it."""
    return architecture_of(file) if matches(file.tensors) else None


def architecture_of(file: PolicyFile) -> Sb3RecurrentArchitecture:
    """The architecture that the tensors have; of the file's own words only the activation and the spaces are read.

    Raises:
        ValueError: continuous actions, image observations, a features extractor with weights, an unknown activation, or
            tensors that are missing, too many or of the wrong shape. The message says which.
    """
    tensors = file.tensors
    if not matches(tensors):
        raise ValueError(
            f"not a policy of sb3-contrib's RecurrentPPO: its tensors are {some(tensors)}"
        )
    _check_supported(file)
    for name in ("lstm_actor.weight_ih_l0", "lstm_actor.weight_hh_l0", "action_net.weight"):
        if name not in tensors or tensors[name].ndim != 2:
            raise ValueError(f"tensor {name} of an sb3 policy is missing or no matrix")
    hidden = tensors["lstm_actor.weight_hh_l0"].shape[1]
    if tensors["lstm_actor.weight_hh_l0"].shape[0] != 4 * hidden:
        raise ValueError(
            f"tensor lstm_actor.weight_hh_l0 has shape {list(tensors['lstm_actor.weight_hh_l0'].shape)}, but an LSTM's "
            f"has four gates, [{4 * hidden}, {hidden}]; other recurrent layers are not supported"
        )
    critic: Critic = (
        "lstm"
        if "lstm_critic.weight_ih_l0" in tensors
        else "linear"
        if "critic.weight" in tensors
        else "shared"
    )
    architecture = Sb3RecurrentArchitecture(
        num_observations=tensors["lstm_actor.weight_ih_l0"].shape[1],
        num_actions=tensors["action_net.weight"].shape[0],
        hidden=hidden,
        num_layers=sum(bool(re.fullmatch(r"lstm_actor\.weight_ih_l\d+", name)) for name in tensors),
        bias="lstm_actor.bias_ih_l0" in tensors,
        critic=critic,
        policy_layers=_layer_widths(tensors, "policy_net"),
        value_layers=_layer_widths(tensors, "value_net"),
        activation=_activation(file),
    )
    with torch.device("meta"):  # shapes only
        expected = Sb3RecurrentPolicy(architecture).state_dict()
    check_tensors(
        tensors,
        expected,
        of="an sb3 policy",
        hint="only MlpLstmPolicy with LSTM layers is supported",
    )
    return architecture


def _check_supported(file: PolicyFile) -> None:
    """Raises ValueError on what is a RecurrentPPO policy, but not one that is rebuilt here."""
    if "log_std" in file.tensors:
        raise ValueError(
            "an sb3 policy with log_std has continuous actions; only discrete ones are supported"
        )
    extractor = [name for name in file.tensors if "features_extractor." in name]
    if extractor:
        raise ValueError(
            f"an sb3 policy with a features extractor ({some(extractor)}) is no MlpLstmPolicy; train one on flat "
            "observations, for instance in `GymnasiumFactory.make()`"
        )
    action_type = _text(file.metadata, "action_space", ":type:")
    if action_type and "Discrete'" not in action_type.replace("MultiDiscrete", ""):
        raise ValueError(f"an sb3 policy with actions {action_type}; only Discrete is supported")
    space = file.metadata.get("observation_space")
    shape = space.get("_shape") if isinstance(space, Mapping) else None
    if isinstance(shape, Sequence) and len(shape) > 1:
        raise ValueError(
            f"an sb3 policy that observes boxes of shape {list(shape)}, which sb3 may transpose and scale; only flat "
            "observations are supported: train in `GymnasiumFactory.make()`"
        )


def _layer_widths(tensors: Mapping[str, Tensor], net: str) -> tuple[int, ...]:
    """Widths of the linear layers of a perceptron, which sit at every second place; activations hold no tensors."""
    widths = []
    while (weight := tensors.get(f"mlp_extractor.{net}.{2 * len(widths)}.weight")) is not None:
        widths.append(int(weight.shape[0]))
    return tuple(widths)


def _activation(file: PolicyFile) -> Activation:
    """From the plain text that sb3 leaves beside its pickles; tanh, sb3's default, if that names none."""
    said = _text(file.metadata, "policy_kwargs", "activation_fn")
    has_layers = any(name.startswith("mlp_extractor.") for name in file.tensors)
    if said is None and file.format != "sb3" and has_layers:
        raise ValueError(
            "an sb3 policy without what sb3 saves beside it: its tensors do not tell the activation between its "
            "layers; give the whole zip of model.save()"
        )
    if said is None:
        return "tanh"
    for name, kind in _ACTIVATIONS.items():
        if re.search(rf"\b{kind.__name__}\b", said):
            return name
    raise ValueError(
        f"an sb3 policy with activation_fn {said!r:.80}; known: {', '.join(get_args(Activation))}"
    )


def _text(metadata: Mapping[str, Any], key: str, field: str) -> str | None:
    entry = metadata.get(key)
    value = entry.get(field) if isinstance(entry, Mapping) else None
    return value if isinstance(value, str) else None


class _Perceptrons(nn.Module):
    """The layers between the memory and each head, under sb3's names."""

    def __init__(self, architecture: Sb3RecurrentArchitecture) -> None:
        super().__init__()
        kind = _ACTIVATIONS[architecture.activation]
        self.policy_net = _perceptron(architecture.hidden, architecture.policy_layers, kind)
        self.value_net = _perceptron(architecture.hidden, architecture.value_layers, kind)


def _perceptron(width: int, layers: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for layer in layers:
        modules += [nn.Linear(width, layer), activation()]
        width = layer
    return nn.Sequential(*modules)


class Sb3RecurrentPolicy(PolicyNetwork):
    """See the head of this file for its sites; its parameters are named and shaped as in `policy.pth`."""

    def __init__(self, architecture: Sb3RecurrentArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        hidden, inputs = architecture.hidden, architecture.num_observations
        self.mlp_extractor = _Perceptrons(architecture)
        self.action_net = nn.Linear(
            (hidden, *architecture.policy_layers)[-1], architecture.num_actions
        )
        self.value_net = nn.Linear((hidden, *architecture.value_layers)[-1], 1)
        self.lstm_actor = nn.LSTM(
            inputs, hidden, num_layers=architecture.num_layers, bias=architecture.bias
        )
        if architecture.critic == "lstm":
            self.lstm_critic = nn.LSTM(
                inputs, hidden, num_layers=architecture.num_layers, bias=architecture.bias
            )
        elif architecture.critic == "linear":
            self.critic = nn.Linear(inputs, hidden)

    @classmethod
    def fresh(cls, architecture: Sb3RecurrentArchitecture, *, seed: int) -> "Sb3RecurrentPolicy":
        """An untrained policy, drawn from the distribution that sb3-contrib initialises from."""
        policy = cls(architecture)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in policy.named_parameters():
            module = name.split(".", 1)[0]
            if module.startswith("lstm"):
                limit = 1 / math.sqrt(architecture.hidden)
                nn.init.uniform_(parameter, -limit, limit, generator=generator)
            elif module == "critic":
                limit = 1 / math.sqrt(architecture.num_observations)
                nn.init.uniform_(parameter, -limit, limit, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                gain = {"action_net": 0.01, "value_net": 1.0}.get(module, math.sqrt(2))
                nn.init.orthogonal_(parameter, gain, generator=generator)
        return policy.requires_grad_(False)

    @property
    def sites(self) -> dict[str, int]:
        architecture = self.architecture
        return {
            "encoder": architecture.num_observations,
            **memory_sites("lstm", self.lstm_actor),
            **(memory_sites("critic", self.lstm_critic) if architecture.critic == "lstm" else {}),
            "lstm.y": architecture.hidden,
            "logits": architecture.num_actions,
            "value": 1,
        }

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.architecture.num_actions)))

    def initial_state(self, num_rows: int) -> State:
        """Hidden and cell state of every layer: the actor's, then the critic's if it has its own."""
        memory = initial_memory(self.lstm_actor, num_rows)
        if self.architecture.critic == "lstm":
            memory += initial_memory(self.lstm_critic, num_rows)
        return memory

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
        if observation_R.shape[1:] != (self.architecture.num_observations,):
            raise ValueError(
                f"the policy observes {self.architecture.num_observations} numbers, but the world shows "
                f"{list(observation_R.shape[1:])}; play it in the world that it was trained in"
            )
        x_RD = tap("encoder", self.receive(observation_R).float())
        h_RD, memory = remember("lstm", self.lstm_actor, x_RD, state, tap)
        critic_RD = h_RD
        if self.architecture.critic == "lstm":
            critic_RD, critic_memory = remember(
                "critic", self.lstm_critic, x_RD, state[len(memory) :], tap
            )
            memory += critic_memory
        elif self.architecture.critic == "linear":
            critic_RD = self.critic(x_RD)
        y_RD = tap("lstm.y", h_RD)
        if self.architecture.critic == "shared":
            critic_RD = y_RD
        logits_RN = tap("logits", self.action_net(self.mlp_extractor.policy_net(y_RD)))
        value_R1 = tap("value", self.value_net(self.mlp_extractor.value_net(critic_RD)))
        return Step(logits_RN, value_R1.squeeze(1), memory)
