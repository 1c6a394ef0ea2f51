"""Where the time of a recorded row goes: the processor's time of every stage, each without what it calls of another.

The clock is that of the process, so other work on the machine counts only by what it does to caches and clock speed.
Asking it costs half a microsecond, some twenty times a step of the whole batch.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from benchmarks.rollout import ours
from interp import rollout
from interp.notebook import Notebook
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.worlds import mettagrid
from interp.worlds.mettagrid import MettagridFactory

STAGES = (
    ("simulator", mettagrid.MettagridWorld, "step"),
    ("tokens, encoder", TokenLstmPolicy, "encode"),
    ("LSTM, product", TokenLstmPolicy, "_gates"),
    ("LSTM, gates", TokenLstmPolicy, "step"),
    ("noise, argmax", rollout, "gumbel_block"),
    ("noise, argmax", rollout._Batch, "_choose"),
    ("copying out", Notebook, "keep"),
    ("copying out", Notebook, "note"),
    ("copying out", Notebook, "turn"),
    ("cutting out", Notebook, "end"),
    ("starting", mettagrid.MettagridWorld, "reset"),
    ("starting", rollout._Batch, "_start"),
    ("facts", mettagrid._Sightings, "note"),
    ("facts", mettagrid._Scribe, "note"),
    ("facts", mettagrid._Scribe, "facts"),
    ("labels", ours, "compute_labels_together"),
    ("rows", ours, "shard_rows"),
    ("Parquet", ours, "parquet_bytes"),
)
"""Stage, and where it is computed; the heads are those of the one policy that plays."""


class Stopwatch:
    """Adds up what is spent in functions, by stage."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = 0.0
        """Spent in functions that have ended, all stages together."""

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            inside, start = self._inside, time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                whole = time.process_time() - start
                self.seconds[stage] += whole - (self._inside - inside)
                self._inside = inside + whole

        return run

    @contextmanager
    def on(self, policy: TokenLstmPolicy) -> Iterator[None]:
        """Times the stages of whatever is played inside."""
        with ExitStack() as patches:
            for stage, owner, name in STAGES:
                timed = self.timed(stage, getattr(owner, name))
                patches.enter_context(mock.patch.object(owner, name, timed))
            for head in (policy.actor, policy.critic):
                timed = self.timed("heads", head.forward)
                patches.enter_context(mock.patch.object(head, "forward", timed))
            yield


def measure(world: str, hidden: int, *, episodes: int, rounds: int) -> dict[str, float]:
    """Microseconds a row by stage, "rest" and "all" included, of the round that took least; all is recorded."""
    torch.manual_seed(0)
    factory = MettagridFactory.load(world)
    policy = TokenLstmPolicy(architecture_for(factory, hidden=hidden)).requires_grad_(False)
    player = ours.Player(policy, factory, num_trials=episodes)
    rows = episodes * factory.spec.num_agents * factory.spec.max_steps
    best: dict[str, float] = {}
    player.play(0, "rows and labels")  # allocates and warms caches
    for number in range(1, rounds + 1):
        watch = Stopwatch()
        start = time.process_time()
        with watch.on(policy):
            player.play(number, "rows and labels")
        whole = time.process_time() - start
        spent = {**watch.seconds, "rest": whole - sum(watch.seconds.values()), "all": whole}
        if not best or whole < best["all"]:
            best = spent
    return {stage: 1e6 * seconds / rows for stage, seconds in best.items()}


def print_stages(columns: dict[str, dict[str, float]]) -> None:
    """One line a stage, one column a world and policy."""
    stages = [*dict.fromkeys(stage for stage, _, _ in STAGES), "heads", "rest", "all"]
    print("\nus of the processor a recorded row, by stage")
    print("".join([f"{'':<18}", *(f"{title:>20}" for title in columns)]))
    for stage in stages:
        print(
            "".join(
                [f"{stage:<18}", *(f"{spent.get(stage, 0.0):>20.2f}" for spent in columns.values())]
            ),
            flush=True,
        )
