"""Policies of RLlib's PPO with `use_lstm`, rebuilt from the tensors of its `DefaultPPOTorchRLModule`.

The network is that of ray 2.60's new API stack (core/models/catalog.py, core/models/torch), and so are the names of its
tensors; RLlib itself is never imported. Observations are flat boxes, actions discrete and named by their numbers. What
connectors do to an observation before the module sees it, such as MeanStdFilter, is not part of a module.

encoder     the observation behind the tokenizer, which the LSTM reads   [R, last of encoder_layers]
lstm.c      the actor's cell state after the step       [R, hidden]  an edit persists and first shows a step later
lstm.h      the actor's hidden state after the step     [R, hidden]  an edit reaches the heads now and the memory
lstm.y      the heads' copy of h                        [R, hidden]  an edit reaches the heads only
critic.c/h  the same of the critic's LSTM, if it has one of its own (vf_share_layers is False)
logits      action logits                               [R, num_actions]
value       value estimate                              [R, 1]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from interp.policies.architecture import Architecture, Width, Widths
from interp.policies.policy import PolicyNetwork, State, Step
from interp.policies.policy_file import PolicyFile
from interp.policies.recurrent import initial_memory, memory_sites, remember
from interp.policies.taps import Tap
from interp.policies.tensors import check_tensors

FAMILY = "rllib-lstm"
MODULE_CLASS = "DefaultPPOTorchRLModule"
Activation = Literal["tanh", "relu", "silu", "elu", "linear"]
_ACTIVATIONS: Mapping[Activation, type[nn.Module] | None] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "linear": None,
}
_SPELLINGS = {"swish": "silu", None: "linear"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RllibLstmArchitecture(Architecture):
    """All that is needed, besides the weights, to run the policy."""

    family: ClassVar[str] = FAMILY
    num_observations: Width
    """Entries of the flat observation."""
    num_actions: Width
    hidden: Width
    """Width of the LSTM, `lstm_cell_size`."""
    encoder_layers: Annotated[Widths, Field(min_length=1)]
    """Widths of the layers before the LSTM, `fcnet_hiddens`."""
    encoder_activation: Activation
    """What follows each of those layers, `fcnet_activation`."""
    head_layers: Widths
    """Widths of the layers between the LSTM and each head, `head_fcnet_hiddens`."""
    head_activation: Activation
    """What follows each of those layers, `head_fcnet_activation`."""
    shared: bool
    """Whether the value is read from the actor's LSTM, `vf_share_layers`."""


def recognise(file: PolicyFile) -> RllibLstmArchitecture | None:
    """The architecture of a file that holds an RLModule with an LSTM.

    Raises:
        ValueError: a module of another class, continuous actions, image observations, settings that change what the
            tensors mean, or tensors that are missing, too many or of the wrong shape. The message says which.
    """
    tensors = file.tensors
    shared = "encoder.encoder.lstm.weight_hh_l0" in tensors
    if not shared and "encoder.actor_encoder.lstm.weight_hh_l0" not in tensors:
        return None
    config = _checked_config(file)
    actor = "encoder.encoder" if shared else "encoder.actor_encoder"
    encoder_activation = _activation(config, "fcnet_activation")
    head_activation = _activation(config, "head_fcnet_activation")
    encoder_layers = _widths(tensors, f"{actor}.tokenizer.net.mlp", encoder_activation)
    *head_layers, num_actions = _widths(tensors, "pi.net.mlp", head_activation) or [0]
    first = tensors.get(f"{actor}.tokenizer.net.mlp.0.weight")
    if first is None or first.ndim != 2 or num_actions < 1:
        raise ValueError(
            "an RLModule without a tokenizer or a head of linear layers; only those of flat observations are supported"
        )
    architecture = RllibLstmArchitecture(
        num_observations=first.shape[1],
        num_actions=num_actions,
        hidden=tensors[f"{actor}.lstm.weight_hh_l0"].shape[-1],
        encoder_layers=tuple(encoder_layers),
        encoder_activation=encoder_activation,
        head_layers=tuple(head_layers),
        head_activation=head_activation,
        shared=shared,
    )
    with torch.device("meta"):  # shapes only
        expected = RllibLstmPolicy(architecture).state_dict()
    check_tensors(
        tensors,
        expected,
        of="an RLModule of RLlib's PPO",
        hint="only its default network with an LSTM, saved for training, is supported",
    )
    return architecture


def _checked_config(file: PolicyFile) -> Mapping[str, Any]:
    """The settings that the module was made with, if all that matters is supported."""
    said = file.metadata
    config = said.get("model_config")
    if not isinstance(config, Mapping):
        raise ValueError(
            "an RLModule of RLlib that does not say its model_config; give the folder with class_and_ctor_args.pkl"
        )
    name = str(said.get("class")).rpartition(".")[2]
    if name != MODULE_CLASS:
        raise ValueError(
            f"an RLModule of class {name}; only {MODULE_CLASS} is known here, and any other wants --factory"
        )
    if said.get("inference_only"):
        raise ValueError(
            "an RLModule for inference only, without its value; give that of the learner, or the whole checkpoint"
        )
    for key, kind in (("action_space", ".Discrete"), ("observation_space", ".Box")):
        space = said.get(key)
        found = space.get("class_path") if isinstance(space, Mapping) else None
        if not str(found).endswith(kind):
            raise ValueError(f"an RLModule with {key} {found}; only {kind[1:]} is supported")
    for setting in ("lstm_use_prev_action", "lstm_use_prev_reward", "fcnet_use_layernorm"):
        if config.get(setting):
            raise ValueError(f"an RLModule with {setting}, which is not supported")
    if config.get("head_fcnet_use_layernorm"):
        raise ValueError("an RLModule with head_fcnet_use_layernorm, which is not supported")
    return config


def _activation(config: Mapping[str, Any], setting: str) -> Activation:
    if setting not in config:
        raise ValueError(
            f"an RLModule that does not say its {setting}, which its tensors do not tell"
        )
    said = config[setting]
    name = said.lower() if isinstance(said, str) else said
    name = _SPELLINGS.get(name, name)
    if name not in get_args(Activation):
        raise ValueError(
            f"an RLModule with {setting} {said!r:.80}; known: {', '.join(get_args(Activation))}"
        )
    return cast(Activation, name)


def _widths(tensors: Mapping[str, Tensor], net: str, activation: Activation) -> list[int]:
    """Widths of the linear layers of a perceptron; activations, which hold no tensors, have places between them."""
    stride = 1 if _ACTIVATIONS[activation] is None else 2
    widths: list[int] = []
    while (weight := tensors.get(f"{net}.{stride * len(widths)}.weight")) is not None:
        widths.append(int(weight.shape[0]))
    return widths


class RllibLstmPolicy(PolicyNetwork):
    """See the head of this file for its sites; its parameters are named and shaped as in `module_state.pkl`."""

    def __init__(self, architecture: RllibLstmArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        names = ["encoder"] if architecture.shared else ["actor_encoder", "critic_encoder"]
        self.encoder = nn.ModuleDict({name: _Encoder(architecture) for name in names})
        self.pi = _Head(architecture, architecture.num_actions)
        self.vf = _Head(architecture, 1)

    @property
    def _actor(self) -> "_Encoder":
        return cast(
            _Encoder, self.encoder["encoder" if self.architecture.shared else "actor_encoder"]
        )

    @property
    def _critic(self) -> "_Encoder | None":
        """None if it is the actor's."""
        return None if self.architecture.shared else cast(_Encoder, self.encoder["critic_encoder"])

    @property
    def sites(self) -> dict[str, int]:
        critic = self._critic
        return {
            "encoder": self._actor.lstm.input_size,
            **memory_sites("lstm", self._actor.lstm),
            **(memory_sites("critic", critic.lstm) if critic is not None else {}),
            "lstm.y": self.architecture.hidden,
            "logits": self.architecture.num_actions,
            "value": 1,
        }

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.architecture.num_actions)))

    def initial_state(self, num_rows: int) -> State:
        """Hidden and cell state: the actor's, then the critic's if it has its own."""
        return initial_memory(self._actor.lstm, num_rows) * len(self.encoder)

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
        if observation_R.shape[1:] != (self.architecture.num_observations,):
            raise ValueError(
                f"the policy observes {self.architecture.num_observations} numbers, but the world shows "
                f"{list(observation_R.shape[1:])}; play it in the world that it was trained in"
            )
        observation_RD = self.receive(observation_R).float()
        x_RD = tap("encoder", self._actor.tokenizer(observation_RD))
        h_RD, memory = remember("lstm", self._actor.lstm, x_RD, state[:2], tap)
        critic = self._critic
        critic_RD = h_RD
        if critic is not None:
            critic_RD, critic_memory = remember(
                "critic", critic.lstm, critic.tokenizer(observation_RD), state[2:], tap
            )
            memory += critic_memory
        y_RD = tap("lstm.y", h_RD)
        logits_RN = tap("logits", self.pi(y_RD))
        value_R1 = tap("value", self.vf(y_RD if critic is None else critic_RD))
        return Step(logits_RN, value_R1.squeeze(1), memory)


class _Perceptron(nn.Module):
    """Under RLlib's names."""

    def __init__(
        self, width: int, layers: Sequence[int], activation: Activation, last: int | None = None
    ) -> None:
        super().__init__()
        kind = _ACTIVATIONS[activation]
        modules: list[nn.Module] = []
        for layer in layers:
            modules += [nn.Linear(width, layer), *([kind()] if kind is not None else [])]
            width = layer
        if last is not None:
            modules.append(nn.Linear(width, last))
        self.mlp = nn.Sequential(*modules)

    def forward(self, x_RD: Float[Tensor, "R D"]) -> Float[Tensor, "R N"]:
        return self.mlp(x_RD)


class _Tokenizer(nn.Module):
    def __init__(self, architecture: RllibLstmArchitecture) -> None:
        super().__init__()
        self.net = _Perceptron(
            architecture.num_observations,
            architecture.encoder_layers,
            architecture.encoder_activation,
        )

    def forward(self, observation_RD: Float[Tensor, "R D"]) -> Float[Tensor, "R N"]:
        return self.net(observation_RD)


class _Encoder(nn.Module):
    """Its LSTM is stepped by `remember`."""

    def __init__(self, architecture: RllibLstmArchitecture) -> None:
        super().__init__()
        self.tokenizer = _Tokenizer(architecture)
        self.lstm = nn.LSTM(architecture.encoder_layers[-1], architecture.hidden, batch_first=True)


class _Head(nn.Module):
    """Every head has the limit of log-variances, which only continuous actions read."""

    log_std_clip_param_const: Tensor

    def __init__(self, architecture: RllibLstmArchitecture, width: int) -> None:
        super().__init__()
        self.register_buffer("log_std_clip_param_const", torch.zeros(1))
        self.net = _Perceptron(
            architecture.hidden, architecture.head_layers, architecture.head_activation, width
        )

    def forward(self, y_RD: Float[Tensor, "R D"]) -> Float[Tensor, "R N"]:
        return self.net(y_RD)
