"""The bank that checkpoints are compared on: who plays which episodes of it."""

import pytest

from cluster.evolution import EvolutionConfig
from cluster.training import TrainedRun
from interp.policies.bundle import PolicyCard


def run_of(num_checkpoints: int) -> TrainedRun:
    cards = tuple(
        PolicyCard(
            policy_id=f"p-{step}",
            name="forage-s0",
            run="t-0",
            step=step,
            world="forage",
            sites={},
            num_parameters=0,
        )
        for step in range(num_checkpoints)
    )
    return TrainedRun(run_id="t-0", name="forage-s0", world="forage", checkpoints=cards)


@pytest.mark.parametrize(("num_checkpoints", "num_players"), [(1, 1), (2, 2), (3, 3), (8, 3)])
def test_the_bank_has_as_many_episodes_however_few_the_checkpoints(
    num_checkpoints: int, num_players: int
) -> None:
    config = EvolutionConfig(first_env_seed=100, episodes_per_player=10)
    bank = config.bank(run_of(num_checkpoints))
    seeds = [seed for _, recording in bank for seed in recording.env_seeds]
    assert seeds == list(range(100, 130))
    assert len({player.policy_id for player, _ in bank}) == len(bank) == num_players
    assert [recording.env_seeds for _, recording in bank] == [
        config.episodes_of(number, num_players) for number in range(num_players)
    ]
