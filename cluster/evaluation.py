"""How well does a policy play? Returns on held-out episodes, beside uniformly random actions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from cluster.results import Question
from cluster.store import Store
from cluster.studio import Studio
from interp.policies.uniform import UniformPolicy
from interp.rollout import Trial, fitting_worlds, roll
from interp.stats.episodes import MIN_EPISODES
from interp.worlds.world import WorldFactory, check_env_seeds

UNIFORM = "uniform"
"""Stands for the random policy where a policy_id is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Episodes on which returns are measured."""

    first_env_seed: int = 30_000
    """Episodes use this environment seed and the ones after it."""
    num_episodes: int = 32

    def __post_init__(self) -> None:
        if self.num_episodes < MIN_EPISODES:
            raise ValueError(
                f"num_episodes {self.num_episodes}: at least {MIN_EPISODES} for an interval"
            )
        check_env_seeds(self.first_env_seed, self.num_episodes)


@dataclass(frozen=True, slots=True)
class ReturnEstimate:
    """Mean over episodes of the return per agent."""

    mean: float
    se: float
    """Standard error over episodes."""
    n_episodes: int

    @classmethod
    def of(cls, table: pa.Table) -> "ReturnEstimate":
        value_E = table.column("return").to_numpy()
        return cls(
            float(value_E.mean()), float(value_E.std(ddof=1) / np.sqrt(len(value_E))), len(value_E)
        )


@dataclass(frozen=True)
class Evaluate:
    """Task: the return of one policy, one row per episode."""

    policy_id: str
    factory: WorldFactory
    config: EvaluationConfig

    @property
    def key(self) -> str:
        return f"return of {self.policy_id}"

    @property
    def question(self) -> Question:
        return Question(
            "returns",
            {"world": self.factory.config, **asdict(self.config)},
            {"policy": self.policy_id},
        )

    def run(self, studio: Studio) -> pa.Table:
        policy = (
            UniformPolicy(self.factory.spec.action_names)
            if self.policy_id == UNIFORM
            else studio.policy(self.policy_id)
        )
        seeds = [self.config.first_env_seed + index for index in range(self.config.num_episodes)]
        world = studio.world(self.factory, fitting_worlds(self.factory.spec, {}, len(seeds)))
        returns = np.zeros(len(seeds))
        for episode in roll(policy, world, [Trial(env_seed=seed) for seed in seeds]):
            returns[episode.index] = episode.return_A.mean(dtype=np.float64)
        table = pa.table({"env_seed": pa.array(seeds, pa.int64()), "return": pa.array(returns)})
        return self.question.answer(studio.store, table)


def find_returns(store: Store, tasks: Sequence[Evaluate]) -> dict[str, ReturnEstimate]:
    """Returns that the store has, by policy."""
    found = ((task.policy_id, task.question.find(store)) for task in tasks)
    return {policy_id: ReturnEstimate.of(table) for policy_id, table in found if table is not None}
