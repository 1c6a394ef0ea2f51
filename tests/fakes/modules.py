"""Networks that a user might bring, for `--factory tests.fakes.modules:...`; actors import this file too."""

from typing import Any

import torch
from torch import Tensor, nn

OBSERVATIONS, ACTIONS, HIDDEN = 4, 2, 8
"""Of CartPole; and the width of the memory."""
MEMORIES = {
    "lstm": lambda: nn.LSTM(6, HIDDEN),
    "lstm, batch first": lambda: nn.LSTM(6, HIDDEN, batch_first=True),
    "lstm, two layers": lambda: nn.LSTM(6, HIDDEN, num_layers=2, dropout=0.5),
    "lstm, no biases": lambda: nn.LSTM(6, HIDDEN, bias=False),
    "gru": lambda: nn.GRU(6, HIDDEN),
    "gru, batch first": lambda: nn.GRU(6, HIDDEN, batch_first=True),
    "gru, two layers": lambda: nn.GRU(6, HIDDEN, num_layers=2),
    "lstm cell": lambda: nn.LSTMCell(6, HIDDEN),
    "gru cell": lambda: nn.GRUCell(6, HIDDEN),
    "gru cell, no biases": lambda: nn.GRUCell(6, HIDDEN, bias=False),
}


class Remembering(nn.Module):
    """Encoder, one recurrent layer, two heads; the encoder ends in place."""

    def __init__(self, kind: str = "lstm") -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(OBSERVATIONS, 6), nn.ReLU(inplace=True))
        self.memory = MEMORIES[kind]()
        self.actor = nn.Linear(HIDDEN, ACTIONS)
        self.critic = nn.Linear(HIDDEN, 1)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        h = self.recall(self.encoder(observation))
        return self.actor(h), self.critic(h)

    def recall(self, x: Tensor) -> Tensor:
        match self.memory:
            case nn.LSTMCell():
                return self.memory(x)[0]
            case nn.GRUCell():
                return self.memory(x)
            case memory:
                time_axis = 1 if memory.batch_first else 0
                return memory(x.unsqueeze(time_axis))[0].squeeze(time_axis)

    def states_over_time(self, observation_TR: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """What torch itself computes on the whole sequence: at each step h and c of the last layer, [R, hidden]."""
        x_TR = self.encoder(observation_TR)
        states: list[tuple[Tensor, Tensor | None]] = []
        state: Any = None
        for t in range(len(x_TR)):
            match self.memory:
                case nn.LSTMCell():
                    state = self.memory(x_TR[t], state)
                    states.append(state)
                case nn.GRUCell():
                    state = self.memory(x_TR[t], state)
                    states.append((state, None))
                case nn.LSTM() as memory:
                    x = x_TR[: t + 1].transpose(0, 1) if memory.batch_first else x_TR[: t + 1]
                    _, (h_LR, c_LR) = memory(x)
                    states.append((h_LR[-1], c_LR[-1]))
                case memory:
                    x = x_TR[: t + 1].transpose(0, 1) if memory.batch_first else x_TR[: t + 1]
                    states.append((memory(x)[1][-1], None))
        return states


def remembering() -> nn.Module:
    """For the command line."""
    return Remembering()


def seeded(kind: str = "lstm") -> Remembering:
    """The same random weights every time, so large that every part of the network matters."""
    generator = torch.Generator().manual_seed(0)
    module = Remembering(kind)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return module.requires_grad_(False).eval()
