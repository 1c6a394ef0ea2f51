"""One step of an LSTM, three ways, over hidden sizes and rows of a batch: where do they cross?

    python -m benchmarks.lstm            # or: make bench BENCH=lstm

product   what our policies do: one product of [x, h] with both weight matrices, one sigmoid for three gates
cell      torch.nn.LSTMCell
nn.LSTM   torch.nn.LSTM on a sequence of one step, which on a CPU may go another way (oneDNN) than the others (MKL)

The kernels round differently, so which one is used is part of what a policy is, and not chosen while it plays: it is
read off this table. Last column: up to which size a pass computes the same bits as one of 64 rows, on this machine.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import tyro
from torch import nn

from cluster.process import settle
from interp.policies.ppo import architecture_for
from interp.policies.taps import untapped
from interp.policies.token_lstm import TokenLstmArchitecture, TokenLstmPolicy
from interp.tiles import SIZES, exact_sizes
from interp.worlds.mettagrid import MettagridFactory


@dataclass(frozen=True)
class Config:
    hidden: tuple[int, ...] = (128, 256, 512)
    """Widths of the LSTM, and of its input."""
    rows: tuple[int, ...] = (16, 64, 128, 256, 512, 1024)
    """Rows of a batch."""
    budget_s: float = 0.3
    """CPU seconds for each measurement."""


class Product(TokenLstmPolicy):
    """Our policy without its encoder: what it costs to remember."""

    def encode(self, observation_R: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(observation_R)


def us_per_row(step: Callable[[], object], rows: int, budget_s: float) -> float:
    """CPU time of one call, divided by its rows."""
    for _ in range(5):
        step()
    calls, spent_s = 0, 0.0
    while spent_s < budget_s:
        start = time.process_time()
        for _ in range(10):
            step()
        spent_s += time.process_time() - start
        calls += 10
    return spent_s / calls / rows * 1e6


def measure(
    architecture: TokenLstmArchitecture, rows: int, budget_s: float
) -> tuple[float, float, float]:
    """Microseconds a row: product, cell, nn.LSTM."""
    hidden = architecture.hidden
    policy = Product(architecture)
    cell, lstm = nn.LSTMCell(hidden, hidden), nn.LSTM(hidden, hidden)
    x_RD = torch.randn(rows, hidden)
    state = policy.initial_state(rows)
    sequence, memory = x_RD[None], (state[0][None], state[1][None])
    # the actor's and the critic's share is the same three times
    heads = (policy.actor, policy.critic)

    def with_heads(h_RD: torch.Tensor) -> None:
        for head in heads:
            head(h_RD)

    return (
        us_per_row(lambda: policy.step(x_RD.numpy(), state, untapped), rows, budget_s),
        us_per_row(lambda: with_heads(cell(x_RD, state)[0]), rows, budget_s),
        us_per_row(lambda: with_heads(lstm(sequence, memory)[0][0]), rows, budget_s),
    )


def main(config: Config) -> None:
    """Prints a table."""
    settle()
    torch.manual_seed(0)
    factory = MettagridFactory.load("forage")
    world = factory(SIZES[-1] // factory.spec.num_agents)
    for number in range(world.num_worlds):
        world.reset(number, map_seed=number, sim_seed=number, collect_facts=False)
    print("us a row, one thread, actor and critic included")
    print(f"{'hidden':>7} {'rows':>6} {'product':>9} {'cell':>9} {'nn.LSTM':>9}   best")
    for hidden in config.hidden:
        architecture = replace(architecture_for(factory), hidden=hidden)
        with torch.inference_mode():
            for rows in config.rows:
                times = measure(architecture, rows, config.budget_s)
                best = ("product", "cell", "nn.LSTM")[times.index(min(times))]
                columns = " ".join(f"{one:9.2f}" for one in times)
                print(f"{hidden:>7} {rows:>6} {columns}   {best}", flush=True)
        exact = exact_sizes(TokenLstmPolicy(architecture), world.observation_R)[-1]
        print(f"{hidden:>7}: a pass of up to {exact} rows computes the same bits as one of 64")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
