"""RLlib: `SingleAgentEnvRunner.sample` of its new API stack, with PPO's default module and `use_lstm`.

It keeps, of every step and in float32: observation, action, reward, whether the episode ended, log-probability, logits,
and the memories h and c after the step, by episode. It cannot keep the seed of an episode, nor what the environment
knows; nothing is written.
"""

import logging
import time
from pathlib import Path

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from interp.worlds.gymnasium import GymnasiumFactory

NAME = "RLlib SingleAgentEnvRunner"
NUM_ENVS = (16, 64, 256, 512)
HIDDEN = 128
POLICY = f"PPO module with LSTM({HIDDEN})"


class Collector:
    """An environment runner of its own process, without Ray around it."""

    def __init__(self, factory: GymnasiumFactory, num_envs: int, num_steps: int) -> None:
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # of what RLlib deprecates in itself
        self._num_steps = num_steps
        self._config = (
            PPOConfig()
            .environment(lambda _: factory.make())
            .env_runners(
                num_env_runners=0,
                num_envs_per_env_runner=num_envs,
                gym_env_vectorize_mode="sync",  # one process has one core, so the asynchronous mode cannot pay
            )
            .rl_module(
                model_config=DefaultModelConfig(
                    use_lstm=True,
                    lstm_cell_size=HIDDEN,
                    fcnet_hiddens=[HIDDEN],
                    vf_share_layers=True,
                )
            )
            .debugging(seed=0)
        )
        self._runner = SingleAgentEnvRunner(config=self._config)
        # the runner's module has no value head, which a policy file must have
        self._module = self._config.get_rl_module_spec(
            env=self._runner.env, spaces=self._runner.get_spaces(), inference_only=False
        ).build()
        assert self._runner.module is not None
        self._runner.module.set_state(self._module.get_state(inference_only=True))

    def play(self, number: int) -> float:
        """Steps per second of one round; it goes on where the one before ended."""
        start = time.perf_counter()
        episodes = self._runner.sample(num_timesteps=self._num_steps)
        seconds = time.perf_counter() - start
        assert all(Columns.STATE_OUT in episode.extra_model_outputs for episode in episodes)
        self._runner.get_metrics()  # which alone lets go of episodes that ended
        return sum(map(len, episodes)) / seconds

    def save(self, folder: Path) -> Path:
        """The policy as RLlib saves a module."""
        path = folder / "rllib"
        self._module.save_to_path(path)
        return path
