"""The network of mettagrid's agents in the summer of 2025, rebuilt from a pickled `PolicyRecord`: tokens are laid out
as a box of features x rows x columns, and go through convolutions, two layers and an LSTM of several layers.

    box[f, row, col] = value / norm_f
    x = relu(fc2 relu(fc1 flatten(relu(conv2 relu(conv1 box)))))
    y = LSTM(x)
    logit_a = tanh(W relu(actor y)) . embedding_a + bias,    value = v tanh(critic y)

Facts: metta's agent/lib of 2025-07 (obs_token_to_box_shaper, observation_normalizer, actor, action). Features, their
norms, actions and the settings of the convolutions are told by the file; what held everywhere was told at the agent's
own cell. `type_id` numbered the objects of a world in a way that no file tells, so objects are not recognised today.

encoder         x                                     [R, hidden]
lstm.0.c, ...   memory of the layers below the last   [R, hidden]
lstm.c          the last layer's cell state           [R, hidden]  an edit persists and first shows one step later
lstm.h          the last layer's hidden state         [R, hidden]  an edit reaches the heads now and the memory
lstm.y          the heads' copy of h                  [R, hidden]  an edit reaches the heads only
logits          of all actions that it was trained with  [R, num_actions]
value           value estimate                        [R, 1]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from interp.policies.architecture import (
    Architecture,
    Byte,
    Cells,
    Index,
    Layers,
    Name,
    Names,
    Tokens,
    Width,
)
from interp.policies.placement import PlacedNetwork
from interp.policies.policy import State, Step
from interp.policies.policy_file import PolicyFile
from interp.policies.recurrent import remember
from interp.policies.taps import Tap
from interp.policies.tensors import check_tensors
from interp.policies.translation import PADDING, TokenLanguage

FAMILY = "mettagrid-box"
_CONVOLUTIONS = ("cnn1", "cnn2")


Padding = Annotated[int, Field(ge=0, le=16)]
_KINDS = {
    "cnn1._net.1": "ReLU",
    "cnn2._net.1": "ReLU",
    "fc1._net.1": "ReLU",
    "encoded_obs._net.1": "ReLU",
    "critic_1._net.1": "Tanh",
    "actor_1._net.1": "ReLU",
    "_core_._net": "LSTM",
    "_action_": "MettaActorSingleHead",
}
"""Class of each part whose tensors do not tell what it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    channels: Width
    kernel: tuple[Cells, Cells]
    stride: tuple[Cells, Cells]
    padding: tuple[Padding, Padding]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxArchitecture(Architecture):
    """All that is needed, besides the weights, to run the network."""

    family: ClassVar[str] = FAMILY
    window_rows: Cells
    window_cols: Cells
    num_tokens: Tokens
    features: Mapping[Name, Index]
    """Feature name -> channel of the box."""
    norms: tuple[float, ...]
    """By channel: what a value is divided by."""
    action_names: Names
    """Name and argument, such as `rotate_2`."""
    action_rows: tuple[Index, ...]
    """By action: its row in the table of embeddings."""
    num_embeddings: Width
    embedding: Width
    """Width of an action's embedding."""
    convolutions: tuple[Convolution, Convolution]
    flat: Width
    """Numbers that the convolutions leave."""
    fc: Width
    """Width of the layer behind the convolutions."""
    hidden: Width
    num_layers: Layers
    actor: Width
    critic: Width
    """Widths of the layers before the heads."""

    def __post_init__(self) -> None:
        if any(channel >= len(self.norms) for channel in self.features.values()):
            raise ValueError(f"a feature in a channel that is none of the {len(self.norms)}")
        rows, cols = self.window_rows, self.window_cols
        for one in self.convolutions:
            rows, cols = (
                (size + 2 * padding - kernel) // stride + 1
                for size, padding, kernel, stride in zip(
                    (rows, cols), one.padding, one.kernel, one.stride, strict=True
                )
            )
            if rows < 1 or cols < 1:
                raise ValueError("a window that is too small for the convolutions")
        if self.flat != rows * cols * self.convolutions[1].channels:
            raise ValueError(
                f"convolutions that leave {rows} x {cols} cells of such a window, where the next layer reads "
                f"{self.flat} numbers"
            )
        if 0 in self.norms:
            raise ValueError("a norm of 0, by which values are divided")
        if len(self.action_rows) != len(self.action_names):
            raise ValueError(
                f"{len(self.action_names)} actions but {len(self.action_rows)} rows of the table of embeddings"
            )
        if any(row >= self.num_embeddings for row in self.action_rows):
            raise ValueError(f"an action in a row that is none of the {self.num_embeddings}")


def _whole(value: Any) -> Any:  # noqa: ANN401 - a number, or a pair of them
    return tuple(map(int, value)) if isinstance(value, list | tuple) else int(value)


def recognise(file: PolicyFile) -> BoxArchitecture | None:
    """The architecture if these are the tensors of such a network.

    Raises:
        ValueError: they nearly are, or the file does not tell its features, actions or strides.
    """
    tensors = file.tensors
    if not {"components.cnn1._net.0.weight", "components._action_.W"} <= tensors.keys():
        return None
    _check_kinds(file)
    shape = {name.removeprefix("components."): tuple(one.shape) for name, one in tensors.items()}
    try:
        architecture = BoxArchitecture(
            window_rows=_told(file, "obs_height"),
            window_cols=_told(file, "obs_width"),
            num_tokens=_told(file, "obs_shape")[0],
            features={name: one["id"] for name, one in _told(file, "features").items()},
            norms=tuple(map(float, tensors["components.obs_normalizer.obs_norm"].flatten())),
            **_actions(file),
            num_embeddings=shape["_action_embeds_._net.weight"][0],
            embedding=shape["_action_embeds_._net.weight"][1],
            convolutions=(_convolution(file, shape, "cnn1"), _convolution(file, shape, "cnn2")),
            flat=shape["fc1._net.0.weight"][1],
            fc=shape["fc1._net.0.weight"][0],
            hidden=shape["_core_._net.weight_hh_l0"][1],
            num_layers=sum(name.startswith("_core_._net.weight_ih_l") for name in shape),
            actor=shape["actor_1._net.0.weight"][0],
            critic=shape["critic_1._net.0.weight"][0],
        )
        architecture = BoxArchitecture.from_json(
            architecture.to_json()
        )  # what the file told is checked
        with torch.device("meta"):  # shapes only
            expected = BoxNetwork(architecture).state_dict()
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"a convolutional mettagrid policy of 2025, but not one that is known: {error!r}"
        ) from error
    check_tensors(
        tensors,
        expected,
        of="a convolutional mettagrid policy of 2025",
        hint="only the network of `fast.yaml` is known",
    )
    return architecture


def _check_kinds(file: PolicyFile) -> None:
    """Raises ValueError if the file names another class for a part than the one that is rebuilt here."""
    for path, wanted in _KINDS.items():
        found = file.modules.get(f"components.{path}", "no class").rpartition(".")[2]
        if found != wanted:
            raise ValueError(
                f"a convolutional mettagrid policy of 2025 whose {path} is of {found}; only {wanted} is known there"
            )


def _told(file: PolicyFile, field: str) -> Any:  # noqa: ANN401 - any JSON
    if file.metadata.get(field) is None:
        raise ValueError(
            f"a convolutional mettagrid policy of 2025 whose file does not tell {field}: without it the observations "
            "of today cannot be translated; give the whole `PolicyRecord`, not its tensors alone"
        )
    return file.metadata[field]


def _actions(file: PolicyFile) -> dict[str, Any]:
    """Names of actions with their arguments, and their rows in the table of embeddings."""
    kinds = TypeAdapter(Names).validate_python(tuple(_told(file, "action_names")))
    largest = TypeAdapter(tuple[Byte, ...]).validate_python(
        tuple(_told(file, "action_max_params")), strict=True
    )
    if len(kinds) != len(largest):
        raise ValueError(
            f"action_names are {len(kinds)} but action_max_params {len(largest)}; wanted one of each"
        )
    names = [
        f"{kind}_{argument}"
        for kind, most in zip(kinds, largest, strict=True)
        for argument in range(most + 1)
    ]
    rows = file.tensors["components._action_embeds_.active_indices"].tolist()
    return {"action_names": tuple(names), "action_rows": tuple(rows)}


def _convolution(file: PolicyFile, shape: Mapping[str, tuple[int, ...]], name: str) -> Convolution:
    channels, _, *kernel = shape[f"{name}._net.0.weight"]
    settings = _told(file, "attributes").get(f"components.{name}._net.0", {})
    plain = {"dilation": [1, 1], "groups": 1, "padding_mode": "zeros"}
    if {key: settings.get(key) for key in plain} != plain or "stride" not in settings:
        raise ValueError(
            f"convolution {name} of a mettagrid policy of 2025 has settings {settings}, wanted {plain} and a stride"
        )
    return Convolution(
        channels=channels,
        kernel=_whole(kernel),
        stride=_whole(settings["stride"]),
        padding=_whole(settings["padding"]),
    )


class BoxNetwork(PlacedNetwork):
    """See the head of this file; its parameters are named as in the files."""

    def __init__(self, architecture: BoxArchitecture) -> None:
        super().__init__("components")
        self.architecture = architecture
        hidden = architecture.hidden
        below = len(architecture.norms)
        for name, one in zip(_CONVOLUTIONS, architecture.convolutions, strict=True):
            layer = nn.Conv2d(below, one.channels, one.kernel, one.stride, one.padding)
            self._place(name, f"{name}._net.0", layer)
            below = one.channels
        for name, inputs, outputs in (
            ("fc1", architecture.flat, architecture.fc),
            ("encoded_obs", architecture.fc, hidden),
            ("critic_1", hidden, architecture.critic),
            ("actor_1", hidden, architecture.actor),
        ):
            self._place(name, f"{name}._net.0", nn.Linear(inputs, outputs))
        self._place("value", "_value_._net", nn.Linear(architecture.critic, 1))
        lstm = nn.LSTM(hidden, hidden, num_layers=architecture.num_layers)
        self._place_lstm("_core_._net", lstm)
        embeddings = nn.Embedding(architecture.num_embeddings, architecture.embedding)
        nn.init.uniform_(embeddings.weight, -0.1, 0.1)
        self._place("embeddings", "_action_embeds_._net", embeddings)
        rows = torch.tensor(architecture.action_rows, dtype=torch.int64)
        self._place_buffer("_action_embeds_", "active_indices", rows)
        norms = torch.tensor(architecture.norms).view(1, -1, 1, 1)
        self._place_buffer("obs_normalizer", "obs_norm", norms)
        actor = nn.Module()
        bound = architecture.actor**-0.5
        weights = torch.empty(1, architecture.actor, architecture.embedding)
        actor.W = nn.Parameter(weights.uniform_(-bound, bound))
        actor.bias = nn.Parameter(torch.empty(1).uniform_(-bound, bound))
        self._place("action", "_action_", actor)

    def refresh(self) -> None:
        """Raises ValueError if the tables among the weights are not those that the architecture was checked for."""
        rows = self.get_buffer("components._action_embeds_.active_indices").tolist()
        norms = self.get_buffer("components.obs_normalizer.obs_norm").flatten().tolist()
        if tuple(rows) != self.architecture.action_rows or tuple(norms) != self.architecture.norms:
            raise ValueError(
                f"family {FAMILY}: rows of actions or norms in the weights are not those of the architecture"
            )

    @property
    def language(self) -> TokenLanguage:
        architecture = self.architecture
        return TokenLanguage(
            num_tokens=architecture.num_tokens,
            num_actions=len(architecture.action_names),
            window_rows=architecture.window_rows,
            window_cols=architecture.window_cols,
            features=architecture.features,
            actions=architecture.action_names,
        )

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
        part = self._part
        x_R = self.box(observation_R) / self.get_buffer("components.obs_normalizer.obs_norm")
        for name in _CONVOLUTIONS:
            x_R = torch.relu(part[name](x_R))
        x_RD = torch.relu(part["encoded_obs"](torch.relu(part["fc1"](x_R.flatten(1)))))
        h_RD, memory = remember("lstm", self._lstm, tap("encoder", x_RD), state, tap)
        y_RD = tap("lstm.y", h_RD)
        logits_RN = tap("logits", self._score(torch.relu(part["actor_1"](y_RD))))
        value_R1 = tap("value", part["value"](torch.tanh(part["critic_1"](y_RD))))
        return Step(logits_RN, value_R1.squeeze(1), memory)

    def box(self, tokens_R: UInt8[np.ndarray, "R N 3"]) -> Float[Tensor, "R F H W"]:
        """Values at (feature, row, column); of two tokens in one place the later counts."""
        architecture = self.architecture
        shape = (len(architecture.norms), architecture.window_rows, architecture.window_cols)
        box_R = np.zeros((len(tokens_R), *shape), np.float32)
        location, feature, value = tokens_R[..., 0], tokens_R[..., 1], tokens_R[..., 2]
        row_at, token_at = np.nonzero(location != PADDING)
        place = location[row_at, token_at]
        box_R[row_at, feature[row_at, token_at], place >> 4, place & 15] = value[row_at, token_at]
        return self.receive(box_R)

    def _score(self, actor_RA: Float[Tensor, "R A"]) -> Float[Tensor, "R N"]:
        """Every action by the product of a query with its embedding."""
        action = self._part["action"]
        rows = self.get_buffer("components._action_embeds_.active_indices")
        query_RE = torch.tanh(actor_RA @ action.get_parameter("W")[0])
        return query_RE @ self._part["embeddings"](rows).T + action.get_parameter("bias")
