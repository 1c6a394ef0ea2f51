"""mettagrid: its own `Rollout`, with an LSTM policy for each agent. It plays and keeps nothing.

mettagrid's own LSTM policy is used where it can be imported (`mettagrid[train]`, which pins torch 2.9). Elsewhere
the same network is put behind the same base classes, with the same steps for each agent: token objects to a padded
array, a forward pass of one row, a sample from a Categorical.
"""

import time

import numpy as np
import torch
from mettagrid.policy.policy import AgentPolicy, StatefulAgentPolicy, StatefulPolicyImpl
from mettagrid.policy.policy_env_interface import PolicyEnvInterface
from mettagrid.simulator import Action, AgentObservation
from mettagrid.simulator.rollout import Rollout
from torch import Tensor, nn

from interp.worlds.presets import load_config


class PlainNet(nn.Module):
    """The shape of mettagrid's LSTM policy: flattened tokens -> hidden -> LSTM(hidden) -> action logits."""

    def __init__(self, interface: PolicyEnvInterface, hidden: int) -> None:
        super().__init__()
        num_inputs = int(np.prod(interface.observation_space.shape))
        self.net = nn.Sequential(
            nn.Linear(num_inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.rnn = nn.LSTM(hidden, hidden, batch_first=True)
        self.actor = nn.Linear(hidden, len(interface.action_names))
        self.critic = nn.Linear(hidden, 1)

    def forward(self, observation: Tensor, state: tuple[Tensor, Tensor]):  # noqa: ANN201
        x = self.net(observation.reshape(len(observation), -1).float() / 255)
        y, state = self.rnn(x[:, None], state)
        return self.actor(y[:, 0]), self.critic(y[:, 0]), state


class PlainPolicy(StatefulPolicyImpl[tuple[Tensor, Tensor]]):
    """One agent at a time, through mettagrid's own base class."""

    def __init__(self, interface: PolicyEnvInterface, net: PlainNet) -> None:
        self._interface = interface
        self._net = net

    def reset(self) -> None:
        pass

    def initial_agent_state(self) -> tuple[Tensor, Tensor]:
        hidden = self._net.rnn.hidden_size
        return torch.zeros(1, 1, hidden), torch.zeros(1, 1, hidden)

    def step_with_state(
        self, obs: AgentObservation, state: tuple[Tensor, Tensor]
    ) -> tuple[Action, tuple[Tensor, Tensor]]:
        tokens = np.full(self._interface.observation_space.shape, [255, 0, 0], np.uint8)
        for index, token in enumerate(obs.tokens):
            tokens[index] = token.raw_token
        logits, _, state = self._net(torch.from_numpy(tokens)[None], state)
        action = int(torch.distributions.Categorical(logits=logits).sample().item())
        return Action(name=self._interface.action_names[action]), state


def policies(interface: PolicyEnvInterface, hidden: int) -> tuple[str, list[AgentPolicy]]:
    """Mettagrid's LSTM policy for each agent, its own where it imports; that is 128 wide."""
    try:
        from mettagrid.policy.lstm import LSTMPolicy
    except ImportError:
        LSTMPolicy = None
    if LSTMPolicy is None or hidden != 128:
        net = PlainNet(interface, hidden).eval()
        return "same network", [
            StatefulAgentPolicy(PlainPolicy(interface, net), interface)
            for _ in range(interface.num_agents)
        ]
    policy = LSTMPolicy(interface)
    return "its LSTMPolicy", [policy.agent_policy(agent) for agent in range(interface.num_agents)]


class Player:
    """Episodes of mettagrid's `Rollout`, one a round."""

    def __init__(self, world: str, hidden: int) -> None:
        self._world = world
        self._hidden = hidden
        which, _ = policies(PolicyEnvInterface.from_mg_cfg(load_config(world)), hidden)
        self.name = f"mettagrid Rollout ({which})"

    def play(self, number: int) -> float:
        """Agent-steps per second of an episode, without the making of its map."""
        config = load_config(self._world)
        config.game.map_builder = config.game.map_builder.model_copy(update={"seed": number})
        _, agents = policies(PolicyEnvInterface.from_mg_cfg(config), self._hidden)
        rollout = Rollout(config, agents, seed=number)
        start = time.perf_counter()
        rollout.run_until_done()
        num_steps = config.game.max_steps * config.game.num_agents
        return num_steps / (time.perf_counter() - start)
