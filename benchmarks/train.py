"""Our recurrent PPO beside sb3-contrib's RecurrentPPO on the same world, network and wall time, one core each.

    python -m benchmarks.train     # or: make bench BENCH=train

Both read tokens through our sparse encoder and act for all agents of the same number of worlds; the peer keeps its own
loop, buffers and LSTM. Return per agent on held-out episodes after the given seconds, and agent-steps done.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from interp.policies.ppo import PpoConfig, Trainer, architecture_for
from interp.policies.token_lstm import TokenEncoder
from interp.rollout import Trial, roll
from interp.worlds.mettagrid import MettagridFactory


@dataclass(frozen=True)
class Config:
    seconds: float = 90.0
    """Wall time of each training."""
    world: str = "forage"
    """Preset to train in."""
    num_worlds: int = 32
    """Worlds played at once."""
    episodes: int = 32
    """Held-out episodes behind the returns."""


def train_ours(config: Config, factory: MettagridFactory) -> tuple[float, int]:
    """Return per agent and agent-steps of our trainer, stopped by the clock."""
    budget = int(config.seconds * 25_000)
    trainer = Trainer(
        PpoConfig(world=config.world, num_worlds=config.num_worlds, budget_agent_steps=budget),
        factory,
    )
    start = time.perf_counter()
    for _ in trainer.train():
        if time.perf_counter() - start > config.seconds:
            break
    trainer.policy.requires_grad_(False)
    trainer.policy.refresh()
    trials = [Trial(env_seed=30_000 + index) for index in range(config.episodes)]
    episodes = roll(trainer.policy, factory(16), trials)
    return float(np.mean([episode.return_A.mean() for episode in episodes])), trainer.step


def train_sb3(config: Config, factory: MettagridFactory) -> tuple[float, int]:
    """The same of sb3-contrib's RecurrentPPO, with the world as its VecEnv: one row per agent."""
    import gymnasium
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import VecEnv

    spec = factory.spec
    space = gymnasium.spaces.Box(0, 255, spec.observation_shape, np.uint8)

    class Rows(VecEnv):
        def __init__(self, num_worlds: int, first_seed: int) -> None:
            self.world = factory(num_worlds)
            self.seed_of = first_seed + np.arange(num_worlds)
            super().__init__(
                num_worlds * spec.num_agents,
                space,
                gymnasium.spaces.Discrete(len(spec.action_names)),
            )

        def _start(self, world: int) -> None:
            seed = int(self.seed_of[world])
            self.world.reset(world, map_seed=seed, sim_seed=seed, collect_facts=False)

        def reset(self) -> np.ndarray:
            for world in range(self.world.num_worlds):
                self._start(world)
            return self.world.observation_R.copy()

        def step_async(self, actions: np.ndarray) -> None:
            self.world.step(actions.astype(np.int32))

        def step_wait(self) -> Any:
            reward, done = self.world.reward_R.copy(), self.world.done_R.copy()
            infos: list[dict[str, Any]] = [{} for _ in reward]
            for world in np.flatnonzero(done.reshape(-1, spec.num_agents).all(1)):
                for row in range(world * spec.num_agents, (world + 1) * spec.num_agents):
                    infos[row] = {
                        "TimeLimit.truncated": True,
                        "terminal_observation": self.world.observation_R[row].copy(),
                    }
                self.seed_of[world] += self.world.num_worlds
                self._start(int(world))
            return self.world.observation_R.copy(), reward, done, infos

        def close(self) -> None: ...
        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * self.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...
        def env_method(
            self, method_name: str, *_: Any, indices: Any = None, **__: Any
        ) -> list[Any]:
            return []

        def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
            return [False] * self.num_envs

    class Tokens(BaseFeaturesExtractor):
        def __init__(self, observation_space: gymnasium.Space) -> None:
            super().__init__(observation_space, features_dim=128)
            self.encoder = TokenEncoder(architecture_for(factory))

        def forward(self, observations: Tensor) -> Tensor:
            return self.encoder(observations.to(torch.uint8).numpy())

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            return time.perf_counter() - start < config.seconds

    rows = Rows(config.num_worlds, 2**20)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        rows,
        n_steps=32,
        batch_size=rows.num_envs * 32 // 8,
        n_epochs=1,
        learning_rate=2e-3,
        gamma=0.98,
        ent_coef=0.01,
        policy_kwargs={
            "features_extractor_class": Tokens,
            "normalize_images": False,
            "net_arch": [],
            "lstm_hidden_size": 128,
            "enable_critic_lstm": False,
            "shared_lstm": True,
        },
        seed=0,
        device="cpu",
    )
    start = time.perf_counter()
    model.learn(10**9, callback=Clock())
    steps = int(model.num_timesteps)
    held_out = Rows(config.episodes, 30_000)
    observation, state = held_out.reset(), None
    first = np.ones(held_out.num_envs, bool)
    total = np.zeros(held_out.num_envs)
    for _ in range(spec.max_steps):
        action, state = model.predict(observation, state=state, episode_start=first)
        held_out.step_async(action)
        observation, reward, first, _ = held_out.step_wait()
        total += reward
    return float(total.mean()), steps


def main(config: Config) -> None:
    """Trains one after the other and prints both."""
    torch.set_num_threads(1)
    factory = MettagridFactory.load(config.world)
    print(f"{config.world}, {config.seconds:.0f} s of training on one core")
    for name, train in (("Sparsight", train_ours), ("sb3-contrib RecurrentPPO", train_sb3)):
        value, steps = train(config, factory)
        print(
            f"  {name:<26} return per agent {value:6.2f} after {steps:>10,} agent-steps", flush=True
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
