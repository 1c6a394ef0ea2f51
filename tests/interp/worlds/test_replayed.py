"""To be shown a trajectory is to be in it."""

import numpy as np
import pytest
import torch

from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.policies.uniform import UniformPolicy
from interp.rollout import Capture, Trial, roll
from interp.trajectories import observation_column, observations_of, watch
from interp.worlds.gymnasium import GymnasiumFactory
from interp.worlds.labels import compute_labels
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.replayed import ReplayedWorlds
from interp.worlds.world import WorldFactory

FORAGE = MettagridFactory.load("forage")
CARTPOLE = GymnasiumFactory.load("gym:CartPole-v1?mask=1,3")


@pytest.fixture(scope="module")
def policy() -> TokenLstmPolicy:
    torch.manual_seed(0)
    policy = TokenLstmPolicy(architecture_for(FORAGE))
    policy.requires_grad_(False)
    return policy


@pytest.mark.mettagrid
@pytest.mark.parametrize("num_worlds", [1, 3])
def test_the_policy_that_made_a_trajectory_computes_what_it_computed(policy, num_worlds) -> None:
    capture = Capture(sites=("lstm.h", "lstm.c", "logits"), facts=True)
    played = {
        e.env_seed: e
        for e in roll(policy, FORAGE(4), [Trial(env_seed=seed) for seed in range(4)], capture)
    }
    shown = {t.env_seed: t for t in watch(FORAGE, [(s, e.action_TA) for s, e in played.items()])}
    trials = [Trial(env_seed=seed, action_TA=shown[seed].action_TA) for seed in played]
    world = ReplayedWorlds(FORAGE.spec, shown)(num_worlds)
    for episode in roll(policy, world, trials, capture):
        original = played[episode.env_seed]
        for site, x in episode.activations.items():
            np.testing.assert_array_equal(x, original.activations[site], err_msg=site)
        np.testing.assert_array_equal(episode.reward_TA, original.reward_TA)
        np.testing.assert_array_equal(episode.done_TA, original.done_TA)
        assert original.facts is not None
        for name, label_TA in compute_labels(original.facts).items():
            np.testing.assert_array_equal(shown[episode.env_seed].labels[name], label_TA)


@pytest.mark.parametrize("factory", [FORAGE, CARTPOLE])
def test_observations_survive_being_rows(factory: WorldFactory) -> None:
    random = UniformPolicy(factory.spec.action_names)
    (episode,) = roll(random, factory(1), [Trial(env_seed=5)])
    (trajectory,) = watch(factory, [(5, episode.action_TA)])
    column = observation_column(trajectory)
    assert len(column) == episode.action_TA.size
    back = observations_of(column, factory.spec, factory.spec.num_agents)
    seen = trajectory.observation_TA
    np.testing.assert_array_equal(back.reshape(seen.shape), seen)
    assert seen.dtype == factory.spec.observation_dtype


@pytest.mark.mettagrid
def test_tokens_that_nobody_used_are_not_kept() -> None:
    random = UniformPolicy(FORAGE.spec.action_names)
    (episode,) = roll(random, FORAGE(1), [Trial(env_seed=5)])
    (trajectory,) = watch(FORAGE, [(5, episode.action_TA)])
    assert trajectory.observation_TA.shape[2] < FORAGE.spec.observation_shape[0] // 2
    assert (trajectory.observation_TA[:, :, -1, 0] != 0xFF).any()


@pytest.mark.mettagrid
def test_actions_that_end_too_soon_are_refused() -> None:
    with pytest.raises(ValueError, match=r"env_seed 5: 9 actions end before it does"):
        list(watch(FORAGE, [(5, np.zeros((9, 4), np.int32))]))
