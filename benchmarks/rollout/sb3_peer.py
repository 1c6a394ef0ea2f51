"""sb3-contrib: `RecurrentPPO.collect_rollouts`, which fills a `RecurrentRolloutBuffer`.

It keeps, of every step and in float32: observation, action, reward, whether an episode started, value, log-probability,
and the memories h and c before the step, twice (for actor and critic, which share them here). It cannot keep which
episode and which seed a step is of, nor what the environment knows; nothing is written, and the next rollout takes the
place of the last.
"""

import time
from math import ceil
from pathlib import Path

from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv

from interp.worlds.gymnasium import GymnasiumFactory

NAME = "sb3-contrib collect_rollouts"
NUM_ENVS = (16, 64, 256, 512)
HIDDEN = 128
POLICY = f"MlpLstmPolicy with one LSTM({HIDDEN})"


class Collector:
    """A model that collects and never learns. One LSTM for actor and critic, the fastest that sb3-contrib offers."""

    def __init__(self, factory: GymnasiumFactory, num_envs: int, num_steps: int) -> None:
        self._num_steps = ceil(num_steps / num_envs)
        self._model = RecurrentPPO(
            "MlpLstmPolicy",
            DummyVecEnv([factory.make] * num_envs),
            n_steps=self._num_steps,
            policy_kwargs={
                "lstm_hidden_size": HIDDEN,
                "enable_critic_lstm": False,
                "shared_lstm": True,
            },
            seed=0,
            device="cpu",
        )
        _, self._callback = self._model._setup_learn(total_timesteps=2**62)

    def play(self, number: int) -> float:
        """Steps per second of one round; it goes on where the one before ended."""
        model = self._model
        assert model.env is not None
        start = time.perf_counter()
        model.collect_rollouts(model.env, self._callback, model.rollout_buffer, self._num_steps)
        return self._num_steps * model.env.num_envs / (time.perf_counter() - start)

    def save(self, folder: Path) -> Path:
        """The policy as sb3 saves it."""
        path = folder / "sb3.zip"
        self._model.save(path)
        return path
