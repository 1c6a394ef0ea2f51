"""Steering as tasks: an interrupted experiment goes on block by block, and order does not matter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster import policies, steering
from cluster.steering import SteerBlock, assemble, steering_blocks
from cluster.store import Store
from cluster.studio import Studio
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.steering.arms import SteeredLatent, SteeringConfig
from interp.worlds.mettagrid import MettagridFactory

pytestmark = pytest.mark.mettagrid
FACTORY = MettagridFactory.load("forage")
CONFIG = SteeringConfig(
    num_episodes=10, add_doses=(0.0,), clamp_doses=(0.0,), ablate_doses=(0.0, 1.0)
)


def block(store: Store, env_seeds: tuple[int, ...] = (1,)) -> SteerBlock:
    torch.manual_seed(0)
    policy = TokenLstmPolicy(architecture_for(FACTORY))
    bundle = PolicyBundle.of(policy.architecture, policy.state_dict())
    card = policies.save(store, bundle, name="fresh", run="t-0", step=0, world="forage")
    direction = np.ones(128, np.float32) / 16
    latent = SteeredLatent(
        concept="landmark:0",
        label="landmark",
        latent=0,
        site="lstm.h",
        scale=1.0,
        write_D=direction,
        read_D=direction,
        read_bias=0.0,
        threshold=0.0,
    )
    blocks = steering_blocks(
        card.policy_id, FACTORY, [latent], CONFIG, seed=0, labels=("landmark",)
    )
    return replace(blocks[0], env_seeds=env_seeds, num_worlds=24)


def test_a_block_that_was_played_is_not_played_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = block(store)
    played = task.run(Studio(store))
    assert played.shape == (1 + 4 + 20, 1, 2)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("played again")

    monkeypatch.setattr(steering, "play_arms", forbidden)
    np.testing.assert_array_equal(task.run(Studio(store)), played)
    other = replace(task, latent=replace(task.latent, scale=2.0))
    with pytest.raises(AssertionError, match="played again"):
        other.run(Studio(store))


def test_blocks_are_put_together_by_their_seeds(store: Store) -> None:
    task = block(store)
    parts = [
        (replace(task, env_seeds=(seed,)), np.full((25, 1, 2), float(seed))) for seed in (3, 1, 2)
    ]
    (trials,) = assemble(parts)
    np.testing.assert_array_equal(trials.outcome_XEO[0, :, 0], [1.0, 2.0, 3.0])
    assert trials.outcome_names == ("return", "landmark")
