"""Our own recurrent policy for mettagrid: sparse token encoder -> LSTM -> action logits and value.

encoder   relu(fc(relu(sum of embeddings)))      [R, hidden]  what the LSTM reads
lstm.c    the cell state after the step          [R, hidden]  an edit persists and first shows one step later
lstm.h    the hidden state after the step        [R, hidden]  an edit reaches the heads now and the memory
lstm.y    the heads' copy of h                   [R, hidden]  an edit reaches the heads only
logits    action logits                          [R, num_actions]
value     value estimate                         [R, 1]
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int32, UInt8
from pydantic import Field
from torch import Tensor, nn

from interp.policies.architecture import Architecture, Byte, Cells, Name, Names, Width
from interp.policies.kernels import embed
from interp.policies.policy import PolicyNetwork, State, Step
from interp.policies.policy_file import PolicyFile
from interp.policies.taps import Tap

FAMILY = "token-lstm"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLstmArchitecture(Architecture):
    """All that is needed, besides the weights, to run the policy and to tell which worlds it can see."""

    family: ClassVar[str] = FAMILY
    window_rows: Cells
    window_cols: Cells
    features: Mapping[Name, Byte]
    """Feature name -> byte, as in the observations of the world that it was trained in."""
    tags: Annotated[tuple[Name, ...], Field(max_length=256)]
    action_names: Names
    embedding: Width = 128
    """Width of the summed token embeddings."""
    hidden: Width = 128
    """Width of the LSTM and of the layer before it."""


def recognise(file: PolicyFile) -> TokenLstmArchitecture | None:
    """The architecture that the file tells in our own words, if it does."""
    architecture = file.metadata.get("architecture")
    if isinstance(architecture, dict) and architecture.get("family") == FAMILY:
        return TokenLstmArchitecture.from_json(architecture)
    return None


class TokenEncoder(nn.Module):
    """relu of the sum of one embedding per token, indexed by (location, channel) and weighted by the token's value.

    A channel is a feature, or one value of a categorical feature. Touches the 50 embeddings that are present instead of
    multiplying a dense one-hot box of 121 cells x 30 channels: 70 times fewer multiplications.
    """

    def __init__(self, architecture: TokenLstmArchitecture) -> None:
        super().__init__()
        rows, cols = architecture.window_rows, architecture.window_cols
        channel, weight, num_channels = _channels(architecture)
        location = np.zeros(256, np.int64)
        for byte in range(256):
            row, col = byte >> 4, byte & 15
            if row < rows and col < cols:
                location[byte] = row * cols + col
        location[0xFE] = rows * cols
        # numpy tables, not buffers: on a few thousand tokens its lookups cost a third of torch's
        self._location_offset = (location * num_channels).astype(np.int32)
        self._channel = channel.reshape(-1).astype(np.int32)
        self._weight = weight.reshape(-1)
        self.embeddings = nn.EmbeddingBag(
            (rows * cols + 1) * num_channels, architecture.embedding, mode="sum"
        )
        nn.init.normal_(self.embeddings.weight, std=0.15)
        self.bias = nn.Parameter(torch.zeros(architecture.embedding))

    def index(
        self, observation_R: UInt8[np.ndarray, "R N 3"]
    ) -> tuple[Int32[Tensor, "R n"], Float[Tensor, "R n"]]:
        """Embedding and weight of every token; padding has weight 0. n is about the most tokens that any row uses."""
        tokens = observation_R[:, : _num_used(observation_R)]
        # a padding token reads feature 255, value 255 or 0: no feature has that byte, so its weight is 0
        feature_value = (tokens[..., 1].astype(np.intp) << 8) | tokens[..., 2]
        index = self._channel.take(feature_value)
        index += self._location_offset.take(tokens[..., 0])
        return torch.from_numpy(index), torch.from_numpy(self._weight.take(feature_value))

    def forward(self, observation_R: UInt8[np.ndarray, "R N 3"]) -> Float[Tensor, "R D"]:
        device = self.bias.device
        index, weight = (
            tensor.to(device, non_blocking=True) for tensor in self.index(observation_R)
        )
        return torch.relu(self.embeddings(index, per_sample_weights=weight) + self.bias)

    def look(self, observation_R: UInt8[np.ndarray, "R N 3"]) -> Float[Tensor, "R D"]:
        """As `forward`, to the last bit, on a CPU and without gradients: a third of the time."""
        out_RD = np.empty((len(observation_R), len(self.bias)), np.float32)
        embed(
            observation_R,
            self._channel,
            self._weight,
            self._location_offset,
            self.embeddings.weight.detach().numpy(),
            self.bias.detach().numpy(),
            out_RD,
        )
        return torch.from_numpy(out_RD)


def _num_used(observation_R: UInt8[np.ndarray, "R N 3"], block: int = 8) -> int:
    """Tokens that no row exceeds: unused ones are at the end, so a column of padding ends the search."""
    num_tokens = observation_R.shape[1]
    for column in range(block, num_tokens, block):
        if (observation_R[:, column, 0] == 0xFF).all():
            return column
    return num_tokens


def _channels(architecture: TokenLstmArchitecture) -> tuple[np.ndarray, np.ndarray, int]:
    """Tables over (feature byte, value byte): channel [256, 256] and weight [256, 256]; and the number of channels.

    Channel 0 with weight 0 is for whatever the policy does not read: padding and the agent's number.
    """
    channel = np.zeros((256, 256), np.int64)
    weight = np.zeros((256, 256), np.float32)
    value = np.arange(256, dtype=np.float32)
    num_channels = 1
    # by byte: the order of a mapping does not survive JSON, and the embeddings depend on it
    for name, byte in sorted(architecture.features.items(), key=lambda feature: feature[1]):
        if name == "agent_id":
            continue
        if name in ("tag", "last_action"):
            num_values = len(architecture.tags) if name == "tag" else 16
            channel[byte, :num_values] = num_channels + np.arange(num_values)
            weight[byte, :num_values] = 1
            num_channels += num_values
            continue
        channel[byte] = num_channels
        num_channels += 1
        if name == "episode_completion_pct":
            weight[byte] = value / 255
        elif name == "inv:hp":
            weight[byte] = value / 100
        elif name == "agent:group":
            weight[byte] = value
        else:
            weight[byte] = np.log2(1 + value) / 2
    return channel, weight, num_channels


class TokenLstmPolicy(PolicyNetwork):
    """See the head of this file for its sites."""

    def __init__(self, architecture: TokenLstmArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        hidden = architecture.hidden
        self.encoder = TokenEncoder(architecture)
        self.fc = nn.Linear(architecture.embedding, hidden)
        self.lstm = nn.LSTM(hidden, hidden)
        self.actor = nn.Linear(hidden, len(architecture.action_names))
        self.critic = nn.Linear(hidden, 1)
        self._initialise()
        self.refresh()

    def _initialise(self) -> None:
        nn.init.orthogonal_(self.fc.weight, math.sqrt(2))
        for name, parameter in self.lstm.named_parameters():
            nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter)
        nn.init.orthogonal_(self.actor.weight, 0.01)
        nn.init.zeros_(self.actor.bias)
        nn.init.orthogonal_(self.critic.weight, 1.0)

    @property
    def sites(self) -> dict[str, int]:
        hidden = self.architecture.hidden
        return {
            "encoder": hidden,
            "lstm.c": hidden,
            "lstm.h": hidden,
            "lstm.y": hidden,
            "logits": len(self.architecture.action_names),
            "value": 1,
        }

    @property
    def action_names(self) -> tuple[str, ...]:
        return self.architecture.action_names

    def initial_state(self, num_rows: int) -> State:
        hidden = self.architecture.hidden
        return (
            torch.zeros(num_rows, hidden, device=self.device),
            torch.zeros(num_rows, hidden, device=self.device),
        )

    def refresh(self) -> None:
        """Rebuilds what `step` keeps of the LSTM's weights; call it after they change.

        One product of [x, h] with both weight matrices costs 1.8 us a row at 64 rows where `nn.LSTM` on one step
        costs 3.2 and `nn.LSTMCell` 2.2; beyond 256 rows they are within 5 % of each other (`make bench BENCH=lstm`).
        The three round differently, so a choice by measurement would make a policy's numbers depend on the machine.
        Gates go from torch's order i, f, g, o to i, f, o, g, so that one sigmoid does for three.
        """
        hidden = self.architecture.hidden
        self._scratch: dict[int, tuple[Tensor, Tensor]] = {}
        gate = torch.arange(4 * hidden).view(4, hidden)
        order = gate[[0, 1, 3, 2]].reshape(-1)
        weights = dict(self.lstm.named_parameters())
        with torch.no_grad():
            weight = torch.cat([weights["weight_ih_l0"], weights["weight_hh_l0"]], dim=1)
            # MKL divides a product over more than 512 inputs, with weights lying this way, according to the number of
            # rows, and so rounds differently. The other way costs a tenth more where the product is small.
            ordered = weight[order].T
            self._gates_weight = ordered if 2 * hidden > 512 else ordered.contiguous()
            self._gates_bias = (weights["bias_ih_l0"] + weights["bias_hh_l0"])[order]

    def _gates(
        self, x_RD: Float[Tensor, "R D"], h_RD: Float[Tensor, "R D"]
    ) -> Float[Tensor, "R G"]:
        """Before their nonlinearities, in memory that the next step of as many rows uses again.

        The largest arrays of a step are two, and a new one every time would cost as much as a tenth of it, either for
        fresh pages or for holes that small objects tear into kept ones.
        """
        num_rows = len(x_RD)
        if num_rows not in self._scratch:
            hidden = self.architecture.hidden
            self._scratch[num_rows] = (
                torch.empty(num_rows, 2 * hidden, device=self.device),
                torch.empty(num_rows, 4 * hidden, device=self.device),
            )
        xh_RD, gates_RG = self._scratch[num_rows]
        torch.cat([x_RD, h_RD], dim=1, out=xh_RD)
        return torch.addmm(self._gates_bias, xh_RD, self._gates_weight, out=gates_RG)

    def encode(self, observation_R: UInt8[np.ndarray, "R N 3"]) -> Float[Tensor, "R D"]:
        if torch.is_grad_enabled() or self.device.type != "cpu":
            return torch.relu(self.fc(self.encoder(observation_R)))
        return torch.relu_(self.fc(self.encoder.look(observation_R)))

    def step(self, observation_R: UInt8[np.ndarray, "R N 3"], state: State, tap: Tap) -> Step:
        h_RD, c_RD = state
        x_RD = tap("encoder", self.encode(observation_R))
        gates = self._gates(x_RD, h_RD)
        hidden = self.architecture.hidden
        i, f, o = gates[:, : 3 * hidden].sigmoid_().chunk(3, dim=1)
        c_RD = (f * c_RD).add_(gates[:, 3 * hidden :].tanh_().mul_(i))
        h_RD = torch.tanh(c_RD).mul_(o)
        c_RD = tap("lstm.c", c_RD)
        h_RD = tap("lstm.h", h_RD)
        y_RD = tap("lstm.y", h_RD)
        logits_RN = tap("logits", self.actor(y_RD))
        value_R1 = tap("value", self.critic(y_RD))
        return Step(logits_RN, value_R1.squeeze(1), (h_RD, c_RD))
