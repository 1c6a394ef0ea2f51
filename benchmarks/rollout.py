"""Our rollout loop, recording, beside mettagrid's own `Rollout`, on one core in one run.

    python -m benchmarks.rollout            # or: make bench BENCH=rollout

Both play the preset `forage` with an LSTM(128) policy. Ours records `lstm.h`, `lstm.c`, all labels and keys, down
to the bytes of a Parquet shard; mettagrid's only plays. The rounds alternate, so that a busy machine slows both.

mettagrid's own LSTM policy is used where it can be imported (`mettagrid[train]`, which pins torch 2.9). Elsewhere
the same network is put behind the same base classes, with the same steps for each agent: token objects to a padded
array, a forward pass of one row, a sample from a Categorical.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import tyro
from mettagrid.policy.policy import AgentPolicy, StatefulAgentPolicy, StatefulPolicyImpl
from mettagrid.policy.policy_env_interface import PolicyEnvInterface
from mettagrid.simulator import Action, AgentObservation
from mettagrid.simulator.rollout import Rollout
from torch import Tensor, nn

from cluster.recordings import parquet_bytes
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.recording import episode_rows
from interp.rollout import Capture, Trial, roll
from interp.worlds.labels import compute_labels
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.presets import load_config

SITES = {"lstm.h": 128, "lstm.c": 128}


@dataclass(frozen=True)
class Config:
    rounds: int = 5
    """Alternating rounds; the median counts."""
    world: str = "forage"
    """Preset to play."""
    num_worlds: int = 16
    """Worlds in our batch."""


class PlainNet(nn.Module):
    """The shape of mettagrid's LSTM policy: flattened tokens -> 128 -> LSTM(128) -> action logits."""

    def __init__(self, interface: PolicyEnvInterface) -> None:
        super().__init__()
        num_inputs = int(np.prod(interface.observation_space.shape))
        self.net = nn.Sequential(nn.Linear(num_inputs, 128), nn.ReLU(), nn.Linear(128, 128))
        self.rnn = nn.LSTM(128, 128, batch_first=True)
        self.actor = nn.Linear(128, len(interface.action_names))
        self.critic = nn.Linear(128, 1)

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
        return torch.zeros(1, 1, 128), torch.zeros(1, 1, 128)

    def step_with_state(
        self, obs: AgentObservation, state: tuple[Tensor, Tensor]
    ) -> tuple[Action, tuple[Tensor, Tensor]]:
        tokens = np.full(self._interface.observation_space.shape, [255, 0, 0], np.uint8)
        for index, token in enumerate(obs.tokens):
            tokens[index] = token.raw_token
        logits, _, state = self._net(torch.from_numpy(tokens)[None], state)
        action = int(torch.distributions.Categorical(logits=logits).sample().item())
        return Action(name=self._interface.action_names[action]), state


def mettagrid_policies(interface: PolicyEnvInterface) -> tuple[str, list[AgentPolicy]]:
    """Mettagrid's LSTM policy for each agent, its own where it imports."""
    try:
        from mettagrid.policy.lstm import LSTMPolicy
    except ImportError:
        net = PlainNet(interface).eval()
        return "same network", [
            StatefulAgentPolicy(PlainPolicy(interface, net), interface)
            for _ in range(interface.num_agents)
        ]
    policy = LSTMPolicy(interface)
    return "its LSTMPolicy", [policy.agent_policy(agent) for agent in range(interface.num_agents)]


def play_mettagrid(world: str, seed: int) -> tuple[str, float]:
    """Agent-steps per second of one episode of mettagrid's `Rollout`."""
    config = load_config(world)
    config.game.map_builder = config.game.map_builder.model_copy(update={"seed": seed})
    which, policies = mettagrid_policies(PolicyEnvInterface.from_mg_cfg(config))
    rollout = Rollout(config, policies, seed=seed)
    start = time.perf_counter()
    rollout.run_until_done()
    return which, config.game.max_steps * config.game.num_agents / (time.perf_counter() - start)


def play_ours(
    policy: TokenLstmPolicy,
    factory: MettagridFactory,
    num_worlds: int,
    first_seed: int,
    *,
    record: bool,
) -> float:
    """Agent-steps per second of `num_worlds` episodes, from reset to the bytes of a shard if recording."""
    world = factory(num_worlds)
    capture = Capture(sites=tuple(SITES), facts=True) if record else Capture()
    trials = [Trial(env_seed=first_seed + index) for index in range(num_worlds)]
    start = time.perf_counter()
    steps, tables = 0, []
    for episode in roll(policy, world, trials, capture):
        steps += episode.action_TA.size
        if record:
            assert episode.facts is not None
            tables.append(
                episode_rows(
                    episode,
                    compute_labels(episode.facts),
                    policy_id="p-0000000000000000",
                    step=0,
                    world=factory.name,
                    episode_number=episode.index,
                    site_widths=SITES,
                )
            )
    if record:
        parquet_bytes(pa.concat_tables(tables))
    return steps / (time.perf_counter() - start)


def main(config: Config) -> None:
    """Prints agent-steps per second and the ratio, round by round."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    factory = MettagridFactory.load(config.world)
    policy = TokenLstmPolicy(architecture_for(factory))
    policy.requires_grad_(False)
    peer, recorded, played = [], [], []
    which = ""
    for number in range(config.rounds + 1):  # the first round warms up
        which, rate = play_mettagrid(config.world, number)
        peer.append(rate)
        recorded.append(play_ours(policy, factory, config.num_worlds, 1000 * number, record=True))
        played.append(play_ours(policy, factory, config.num_worlds, 1000 * number, record=False))
    print(f"{config.world}, LSTM(128), one core, agent-steps/s, median of {config.rounds} rounds")
    base = statistics.median(peer[1:])
    for name, rates in (
        (f"mettagrid Rollout ({which})", peer),
        ("Sparsight, recording h, c, labels", recorded),
        ("Sparsight, playing only", played),
    ):
        middle = statistics.median(rates[1:])
        print(
            f"  {name:<40} {middle:>9,.0f}  ({min(rates[1:]):,.0f} to {max(rates[1:]):,.0f})"
            f"  {middle / base:5.1f}x"
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
