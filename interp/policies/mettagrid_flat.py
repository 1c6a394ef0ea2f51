"""mettagrid's stock networks of 2025-09 to 2026-01, rebuilt from their tensors: raw token bytes through two layers, and
an LSTM or none.

    x = W2 relu(W1 tokens / 255 + b1) + b2,    tokens [num_tokens, 3] flattened
    y = LSTM(x)  or  x

Facts: mettagrid/policy/lstm.py and stateless.py of mettagrid 0.26, and cogames of 2025-09, whose network also carries a
layer `decoder` that it never reads. In every version with that layer an action was a kind and an argument, chosen
apart: its logits are those of the kinds and then those of the arguments, and no file tells where the first end. The
files name neither features nor actions, nor do they tell their date: before 2026-01-09 what held everywhere was told at
the agent's own cell, and is told at 0xFE since. A file with a `decoder` is of the earlier kind; any other is shown
tokens as they are today.

encoder     x                                    [R, hidden]
lstm.c      the cell state after the step        [R, hidden]  an edit persists and first shows one step later
lstm.h      the hidden state after the step      [R, hidden]  an edit reaches the heads now and the memory
lstm.y      the heads' copy of h                 [R, hidden]  an edit reaches the heads only
logits      of all actions that it was trained with, or of kinds and arguments  [R, num_actions]
value       value estimate                       [R, 1]

Without an LSTM `encoder` is what the heads read, and the last two are all there is besides.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from interp.policies.architecture import Architecture, Tokens, Width
from interp.policies.policy import State, Step
from interp.policies.policy_file import PolicyFile
from interp.policies.recurrent import initial_memory, memory_sites, remember
from interp.policies.taps import Tap
from interp.policies.tensors import check_tensors
from interp.policies.translation import TokenLanguage, TokenNetwork

FAMILY = "mettagrid-flat"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatArchitecture(Architecture):
    """All that is needed, besides the weights, to run the network."""

    family: ClassVar[str] = FAMILY
    num_tokens: Tokens
    hidden: Width
    num_actions: Width
    recurrent: bool
    decoder: bool = False
    """Whether the file has a layer of that name, which is never read."""


def recognise(file: PolicyFile) -> FlatArchitecture | None:
    """The architecture if these are the tensors of such a network.

    Raises:
        ValueError: they nearly are, or they are of the joint policy of 2025-08, which has no rows.
    """
    tensors = file.tensors
    if set(tensors) == {f"network.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}:
        inputs = tensors["network.0.weight"].shape[-1]
        raise ValueError(
            f"a perceptron (network.0/2/4) of {inputs:,} inputs: in 2025-08 such files read the tokens of all agents "
            "at once and gave all of them one action, so there is no activation of a single agent to record; if yours "
            "is another, name a function that builds it with --factory package.module:callable"
        )
    recurrent = {"_net.0.weight", "_rnn.weight_ih_l0", "_action_head.weight"} <= tensors.keys()
    stateless = {"net.0.weight", "action_head.weight", "value_head.weight"} <= tensors.keys()
    if not (recurrent or stateless):
        return None
    first, head = (
        ("_net.0.weight", "_action_head.weight")
        if recurrent
        else ("net.0.weight", "action_head.weight")
    )
    for name in (first, head):
        if tensors[name].ndim != 2:
            raise ValueError(f"tensor {name} of a mettagrid network is no matrix")
    hidden, inputs = tensors[first].shape
    if inputs % 3:
        raise ValueError(
            f"tensor {first} reads {inputs} numbers, but mettagrid's tokens are of 3 bytes each; a network on boxes "
            "of the years before is not known"
        )
    architecture = FlatArchitecture(
        num_tokens=inputs // 3,
        hidden=hidden,
        num_actions=tensors[head].shape[0],
        recurrent=recurrent,
        decoder="decoder.weight" in tensors,
    )
    with torch.device("meta"):  # shapes only
        expected = FlatNetwork(architecture).state_dict()
    check_tensors(
        tensors,
        expected,
        of="a mettagrid network",
        hint="only its stock LSTM and stateless ones are known",
    )
    return architecture


class FlatNetwork(TokenNetwork):
    """See the head of this file; its parameters are named as in the files."""

    def __init__(self, architecture: FlatArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        hidden = architecture.hidden
        net = nn.Sequential(
            _orthogonal(nn.Linear(3 * architecture.num_tokens, hidden)),
            nn.ReLU(),
            _orthogonal(nn.Linear(hidden, hidden)),
        )
        action_head, value_head = nn.Linear(hidden, architecture.num_actions), nn.Linear(hidden, 1)
        if architecture.recurrent:
            self._net, self._rnn = net, nn.LSTM(hidden, hidden, batch_first=True)
            self._action_head, self._value_head = action_head, value_head
        else:
            self.net, self.action_head, self.value_head = net, action_head, value_head
        if architecture.decoder:
            self.decoder = nn.Linear(hidden, architecture.num_actions)

    @property
    def language(self) -> TokenLanguage:
        return TokenLanguage(
            num_tokens=self.architecture.num_tokens,
            num_actions=self.architecture.num_actions,
            is_global_central=self.architecture.decoder,
        )

    @property
    def sites(self) -> dict[str, int]:
        hidden = self.architecture.hidden
        memory = memory_sites("lstm", self._rnn) if self.architecture.recurrent else {}
        heads = {"lstm.y": hidden} if self.architecture.recurrent else {}
        return {
            "encoder": hidden,
            **memory,
            **heads,
            "logits": self.architecture.num_actions,
            "value": 1,
        }

    def initial_state(self, num_rows: int) -> State:
        return initial_memory(self._rnn, num_rows) if self.architecture.recurrent else ()

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
        tokens_RN = self.receive(observation_R).flatten(1).float() / 255
        if self.architecture.recurrent:
            x_RD = tap("encoder", self._net(tokens_RN))
            h_RD, state = remember("lstm", self._rnn, x_RD, state, tap)
            y_RD = tap("lstm.y", h_RD)
            action_head, value_head = self._action_head, self._value_head
        else:
            y_RD = tap("encoder", self.net(tokens_RN))
            action_head, value_head = self.action_head, self.value_head
        logits_RN: Tensor = tap("logits", action_head(y_RD))
        value_R1: Tensor = tap("value", value_head(y_RD))
        return Step(logits_RN, value_R1.squeeze(1), state)


def _orthogonal(layer: nn.Linear) -> nn.Linear:
    """As mettagrid initialises it: gain sqrt(2), no bias."""
    nn.init.orthogonal_(layer.weight, 2**0.5)
    nn.init.zeros_(layer.bias)
    return layer
