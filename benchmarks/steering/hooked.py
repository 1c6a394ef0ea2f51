"""Steering as one writes it by hand: a forward hook on the LSTM and mettagrid's `Rollout`, one episode at a time."""

import time
from collections.abc import Sequence

import torch
from mettagrid.policy.policy import AgentPolicy, StatefulAgentPolicy
from mettagrid.policy.policy_env_interface import PolicyEnvInterface
from mettagrid.simulator.rollout import Rollout
from torch import Tensor

from benchmarks.rollout.mettagrid_peer import PlainNet, PlainPolicy
from interp.steering.arms import Arm
from interp.worlds.presets import load_config


class Player:
    """Plays one episode of one arm a turn, then of the next arm."""

    name = "forward hook and mettagrid Rollout, one arm and episode at a time"

    def __init__(self, world: str, hidden: int, arms: Sequence[Arm]) -> None:
        self._world, self._hidden, self._arms = world, hidden, arms

    def play(self, number: int) -> float:
        """Arm-episodes per second."""
        config = load_config(self._world)
        config.game.map_builder = config.game.map_builder.model_copy(update={"seed": number})
        interface = PolicyEnvInterface.from_mg_cfg(config)
        net = PlainNet(interface, self._hidden).eval()
        edit = self._arms[number % len(self._arms)].edit
        read_D, write_D = torch.from_numpy(edit.read_D), torch.from_numpy(edit.write_D)
        a, b, g = edit.coefficients

        def steer(_: object, __: object, output: tuple[Tensor, tuple[Tensor, Tensor]]) -> object:
            _, (h, c) = output
            pre = h @ read_D + edit.read_bias
            change = a + (pre > edit.threshold) * (b * pre + g)
            h = h + change[..., None] * write_D
            return h.transpose(0, 1), (h, c)

        net.rnn.register_forward_hook(steer)
        agents: list[AgentPolicy] = [
            StatefulAgentPolicy(PlainPolicy(interface, net), interface)
            for _ in range(interface.num_agents)
        ]
        rollout = Rollout(config, agents, seed=number)
        start = time.perf_counter()
        with torch.no_grad():
            rollout.run_until_done()
        return 1 / (time.perf_counter() - start)
