"""Recurrent PPO for the demo policies: a few minutes on one core from chance to competence.

Schulman et al. 2017 (clipped surrogate, eq. 7), generalised advantages (Schulman et al. 2016, eq. 16), full-sequence
back-propagation through the LSTM over each horizon. Worlds start staggered by multiples of the horizon, so that every
episode ends on the border of a rollout and no reset falls inside a sequence.

The budget is in agent-steps, so a seed gives the same weights whatever the machine's speed. `Trainer.state` at the end
of any update is all that is needed to go on as if nothing had happened; worlds are put back by replaying the actions of
their running episodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor, nn

from interp.noise import BLOCK_STEPS, gumbel_block
from interp.policies.taps import untapped
from interp.policies.token_lstm import TokenLstmArchitecture, TokenLstmPolicy
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.world import TRAINING_SEEDS


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoConfig:
    """How a demo policy is trained."""

    world: str = "forage"
    """Preset or path of a MettaGridConfig JSON file."""
    seed: int = 0
    """Seed of the weights, of the minibatches and of the training maps."""
    budget_agent_steps: int = 2_000_000
    """Length of the training in agent-steps; the learning rate falls linearly to 5 % over it."""
    num_checkpoints: int = 8
    """Checkpoints kept: step 0, then each at twice the steps of the one before, up to the last."""
    hidden: int = 128
    """Width of the LSTM."""
    num_worlds: int = 32
    """Worlds played at once."""
    horizon_steps: int = 32
    """Steps between updates, and length of the back-propagated sequences; divides the episode's length."""
    num_minibatches: int = 8
    """Minibatches of whole sequences in an update; one pass over the data."""
    learning_rate: float = 2e-3
    discount: float = 0.98
    gae_lambda: float = 0.95
    clip: float = 0.2
    """Half-width of the interval around 1 in which the probability ratio is trusted."""
    entropy_weight: float = 0.01
    value_weight: float = 0.5
    gradient_norm: float = 0.5
    """Largest norm of a gradient, to which longer ones are scaled."""

    def __post_init__(self) -> None:
        if self.num_checkpoints < 2:
            raise ValueError(
                f"num_checkpoints {self.num_checkpoints}: at least 2, the untrained policy and the last one"
            )
        if self.budget_agent_steps < 1:
            raise ValueError(f"budget_agent_steps {self.budget_agent_steps}: it must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoProgress:
    """State of the training after an update."""

    step: int
    """Agent-steps so far."""
    return_mean: float
    """Mean return per agent of the last episodes that ended; NaN before the first."""
    entropy: float
    """Mean entropy of the action distribution, in nats."""
    checkpoint: dict[str, Tensor] | None
    """Weights, at the steps that the schedule keeps."""
    done: bool


class Trainer:
    """One training run, stepped update by update."""

    def __init__(self, config: PpoConfig, factory: MettagridFactory) -> None:
        spec = factory.spec
        if spec.max_steps % config.horizon_steps:
            raise ValueError(
                f"horizon_steps {config.horizon_steps} does not divide the episode of {spec.max_steps} steps of world "
                f"{spec.name}; choose a divisor"
            )
        self.config = config
        self._spec = spec
        self._world = factory(config.num_worlds)
        self._generator = torch.Generator().manual_seed(config.seed)
        torch_state = torch.random.get_rng_state()
        torch.manual_seed(config.seed)  # initialisers of torch.nn take no generator
        self.policy = TokenLstmPolicy(architecture_for(factory, hidden=config.hidden))
        torch.random.set_rng_state(torch_state)
        self._optimizer = torch.optim.Adam(
            self.policy.parameters(), lr=config.learning_rate, eps=1e-5, fused=True
        )
        rows = config.num_worlds * spec.num_agents
        self._rows = rows
        self.update = 0
        self._returns: list[float] = []
        self._hidden = self.policy.initial_state(rows)
        horizons = spec.max_steps // config.horizon_steps
        # world k pretends to be k horizons into its first episode, so that ends are spread evenly
        self._age_E = (np.arange(config.num_worlds) % horizons) * config.horizon_steps
        self._episode_E = np.zeros(config.num_worlds, np.int64)
        self._return_R = np.zeros(rows, np.float32)
        self._noise = np.zeros(
            (config.num_worlds, BLOCK_STEPS, spec.num_agents, len(spec.action_names)), np.float32
        )
        self._played: list[list[Int32[np.ndarray, " A"]]] = [[] for _ in range(config.num_worlds)]
        for world in range(config.num_worlds):
            self._reset(world)
        self._buffers = _Buffers.empty(
            config.horizon_steps, rows, spec.observation_shape, config.hidden
        )

    @property
    def steps_per_update(self) -> int:
        return self._rows * self.config.horizon_steps

    @property
    def num_updates(self) -> int:
        return max(1, round(self.config.budget_agent_steps / self.steps_per_update))

    @property
    def step(self) -> int:
        return self.update * self.steps_per_update

    @property
    def checkpoint_updates(self) -> list[int]:
        """Updates after which weights are kept: 0, ..., a quarter, a half and all of the training."""
        halvings = range(self.config.num_checkpoints - 1)
        return sorted({0, *(round(self.num_updates / 2**halving) for halving in halvings)})

    def train(self) -> Iterator[PpoProgress]:
        """Trains from where it stands to the end of the budget; yields at step 0 and after every update."""
        if self.update == 0:
            yield self._progress(entropy=float(np.log(len(self._spec.action_names))))
        while self.update < self.num_updates:
            self._collect()
            entropy = self._learn()
            self.update += 1
            yield self._progress(entropy)

    def _progress(self, entropy: float) -> PpoProgress:
        keep = self.update in self.checkpoint_updates
        recent = self._returns[-2 * self.config.num_worlds :]
        return PpoProgress(
            step=self.step,
            return_mean=float(np.mean(recent)) if recent else float("nan"),
            entropy=entropy,
            checkpoint={
                name: tensor.detach().clone() for name, tensor in self.policy.state_dict().items()
            }
            if keep
            else None,
            done=self.update == self.num_updates,
        )

    # --- playing

    def _env_seed(self, world: int) -> int:
        """One of `TRAINING_SEEDS`, at random: two may coincide, but none is that of a recording or an evaluation."""
        place = [self.config.seed, int(self._episode_E[world]), world]
        draw = int(np.random.SeedSequence(place).generate_state(1)[0])
        return TRAINING_SEEDS[draw % len(TRAINING_SEEDS)]

    def _reset(self, world: int) -> None:
        seed = self._env_seed(world)
        self._world.reset(world, map_seed=seed, sim_seed=seed, collect_facts=False)
        self._played[world] = []

    def _rows_of(self, world: int) -> slice:
        return slice(world * self._spec.num_agents, (world + 1) * self._spec.num_agents)

    def _noise_R(self) -> Float32[np.ndarray, "R N"]:
        t_E = np.array([len(played) for played in self._played])
        for world in np.flatnonzero(t_E % BLOCK_STEPS == 0):
            self._draw_noise(int(world), int(t_E[world]))
        return self._noise[np.arange(len(t_E)), t_E % BLOCK_STEPS].reshape(
            self._rows, self._noise.shape[-1]
        )

    def _draw_noise(self, world: int, t: int) -> None:
        self._noise[world] = gumbel_block(
            self._env_seed(world), t // BLOCK_STEPS, *self._noise.shape[2:]
        )

    @torch.inference_mode()
    def _collect(self) -> None:
        """Plays one horizon in every world and fills the buffers, advantages included."""
        buffers = self._buffers
        self.policy.refresh()
        state = self._hidden
        buffers.first_h_RD.copy_(state[0])
        buffers.first_c_RD.copy_(state[1])
        for t in range(self.config.horizon_steps):
            buffers.observation_TR[t] = self._world.observation_R
            logits_RN, value_R, state = self.policy.step(self._world.observation_R, state, untapped)
            action_R = (logits_RN.numpy() + self._noise_R()).argmax(1)
            log_probability = torch.log_softmax(logits_RN, -1)
            buffers.action_TR[t] = torch.from_numpy(action_R)
            buffers.log_probability_TR[t] = log_probability.gather(
                1, buffers.action_TR[t, :, None]
            )[:, 0]
            buffers.value_TR[t] = value_R
            self._world.step(action_R.astype(np.int32))
            buffers.reward_TR[t] = torch.from_numpy(self._world.reward_R)
            self._return_R += self._world.reward_R
            for world, played in enumerate(self._played):
                played.append(action_R[self._rows_of(world)].astype(np.int32))
        # a time limit is not an end of the task: bootstrap through it
        _, next_value_R, _ = self.policy.step(self._world.observation_R, state, untapped)
        buffers.estimate_advantages(
            next_value_R, discount=self.config.discount, gae_lambda=self.config.gae_lambda
        )
        self._hidden = tuple(memory.clone() for memory in state)
        self._age_E += self.config.horizon_steps
        for world in np.flatnonzero(self._age_E >= self._spec.max_steps):
            self._finish(int(world))

    def _finish(self, world: int) -> None:
        rows = self._rows_of(world)
        if len(self._played[world]) == self._spec.max_steps:  # not the shortened first episode
            self._returns.append(float(self._return_R[rows].mean()))
        self._return_R[rows] = 0
        for memory in self._hidden:
            memory[rows] = 0
        self._age_E[world] = 0
        self._episode_E[world] += 1
        self._reset(world)

    # --- learning

    def _learn(self) -> float:
        """One pass over the buffers; returns the mean entropy."""
        config = self.config
        left = 1 - self.update / self.num_updates
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * max(0.05, left)
        order = torch.randperm(self._rows, generator=self._generator)
        entropies = []
        for rows in order.chunk(config.num_minibatches):
            loss, entropy = self._loss(rows)
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.policy.parameters(), config.gradient_norm)
            self._optimizer.step()
            entropies.append(float(entropy))
        return float(np.mean(entropies))

    def _loss(self, rows: Int64[Tensor, " r"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        config, buffers, policy = self.config, self._buffers, self.policy
        observation = buffers.observation_TR[:, rows.numpy()]
        encoded = policy.encode(observation.reshape(-1, *observation.shape[2:]))
        h_TrD, _ = policy.lstm(
            encoded.view(len(observation), len(rows), -1),
            (buffers.first_h_RD[rows][None], buffers.first_c_RD[rows][None]),
        )
        log_probability_TrN = torch.log_softmax(policy.actor(h_TrD), -1)
        log_probability = log_probability_TrN.gather(2, buffers.action_TR[:, rows, None])[..., 0]
        ratio = (log_probability - buffers.log_probability_TR[:, rows]).exp()
        advantage = buffers.advantage_TR[:, rows]
        target = advantage + buffers.value_TR[:, rows]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()
        value_loss = 0.5 * (policy.critic(h_TrD).squeeze(-1) - target).square().mean()
        entropy = -(log_probability_TrN.exp() * log_probability_TrN).sum(-1).mean()
        loss = policy_loss + config.value_weight * value_loss - config.entropy_weight * entropy
        return loss, entropy.detach()

    # --- resuming

    @property
    def state(self) -> dict[str, Any]:
        """Everything that decides the rest of the run; tensors, arrays and plain numbers only."""
        return {
            "update": self.update,
            "policy": self.policy.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "hidden": list(self._hidden),
            "age": torch.from_numpy(self._age_E.copy()),
            "episode": torch.from_numpy(self._episode_E.copy()),
            "return": torch.from_numpy(self._return_R.copy()),
            "returns": list(self._returns),
            "played": [
                torch.from_numpy(np.array(played, np.int32).reshape(-1, self._spec.num_agents))
                for played in self._played
            ],
        }

    @classmethod
    def resume(
        cls, config: PpoConfig, factory: MettagridFactory, state: dict[str, Any]
    ) -> "Trainer":
        """The trainer whose `state` this was."""
        trainer = cls(config, factory)
        trainer.update = state["update"]
        trainer.policy.load_state_dict(state["policy"])
        trainer._optimizer.load_state_dict(state["optimizer"])
        trainer._generator.set_state(state["generator"])
        trainer._hidden = tuple(state["hidden"])
        trainer._age_E = state["age"].numpy().copy()
        trainer._episode_E = state["episode"].numpy().copy()
        trainer._return_R = state["return"].numpy().copy()
        trainer._returns = list(state["returns"])
        trainer._replay([played.numpy() for played in state["played"]])
        return trainer

    def _replay(self, played: list[Int32[np.ndarray, "_ A"]]) -> None:
        """Brings every world back to where it stood, by its seed and the actions of its running episode."""
        longest = max(len(actions) for actions in played)
        for offset in range(longest, 0, -1):
            action_R = np.zeros(self._rows, np.int32)
            for world, actions in enumerate(played):
                if len(actions) == offset:
                    self._reset(world)
                if len(actions) >= offset:
                    action_R[self._rows_of(world)] = actions[len(actions) - offset]
            self._world.step(action_R)
        for world, actions in enumerate(played):
            if len(actions) == 0:
                self._reset(world)
            self._played[world] = list(actions)
            if len(actions) % BLOCK_STEPS:
                self._draw_noise(world, len(actions))


@dataclass(frozen=True, slots=True)
class _Buffers:
    """One horizon of play, steps first."""

    observation_TR: UInt8[np.ndarray, "T R N 3"]
    action_TR: Int64[Tensor, "T R"]
    log_probability_TR: Float[Tensor, "T R"]
    value_TR: Float[Tensor, "T R"]
    reward_TR: Float[Tensor, "T R"]
    advantage_TR: Float[Tensor, "T R"]
    first_h_RD: Float[Tensor, "R D"]
    first_c_RD: Float[Tensor, "R D"]

    @classmethod
    def empty(
        cls, horizon_steps: int, rows: int, observation_shape: tuple[int, ...], hidden: int
    ) -> "_Buffers":
        shape = (horizon_steps, rows)
        return cls(
            observation_TR=np.zeros((*shape, *observation_shape), np.uint8),
            action_TR=torch.zeros(shape, dtype=torch.int64),
            log_probability_TR=torch.zeros(shape),
            value_TR=torch.zeros(shape),
            reward_TR=torch.zeros(shape),
            advantage_TR=torch.zeros(shape),
            first_h_RD=torch.zeros(rows, hidden),
            first_c_RD=torch.zeros(rows, hidden),
        )

    def estimate_advantages(
        self, next_value_R: Float[Tensor, " R"], *, discount: float, gae_lambda: float
    ) -> None:
        """Generalised advantage estimation, backwards in time."""
        advantage_R = torch.zeros_like(next_value_R)
        for t in range(len(self.value_TR) - 1, -1, -1):
            surprise_R = self.reward_TR[t] + discount * next_value_R - self.value_TR[t]
            advantage_R = surprise_R + discount * gae_lambda * advantage_R
            self.advantage_TR[t] = advantage_R
            next_value_R = self.value_TR[t]


def architecture_for(factory: MettagridFactory, *, hidden: int = 128) -> TokenLstmArchitecture:
    """The architecture of our policies in a mettagrid world."""
    vocabulary = factory.vocabulary
    return TokenLstmArchitecture(
        window_rows=vocabulary.window_rows,
        window_cols=vocabulary.window_cols,
        features=vocabulary.features,
        tags=vocabulary.tags,
        action_names=factory.spec.action_names,
        hidden=hidden,
    )
