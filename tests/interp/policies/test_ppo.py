"""Training: the same seed gives the same weights, also when it was interrupted."""

import io

import pytest
import torch

from interp.policies.ppo import PpoConfig, Trainer
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.world import check_env_seeds

pytestmark = pytest.mark.mettagrid
UPDATES = 12
CONFIG = PpoConfig(world="forage", seed=3, num_worlds=16, budget_agent_steps=UPDATES * 16 * 4 * 32)


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    for _ in trainer.train():
        pass
    return {name: tensor.clone() for name, tensor in trainer.policy.state_dict().items()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_an_interrupted_training_resumes_to_the_same_weights() -> None:
    factory = MettagridFactory.load("forage")
    whole = Trainer(CONFIG, factory)
    saved = io.BytesIO()
    for _ in whole.train():
        if whole.update == 9:  # episodes of 8 horizons have ended by then, others are under way
            torch.save(whole.state, saved)
    saved.seek(0)
    resumed = Trainer.resume(CONFIG, factory, torch.load(saved, weights_only=True))
    assert_equal(trained(resumed), whole.policy.state_dict())


def test_checkpoints_begin_untrained_and_double_up_to_the_last() -> None:
    trainer = Trainer(CONFIG, MettagridFactory.load("forage"))
    kept = [progress.step for progress in trainer.train() if progress.checkpoint is not None]
    per_update = trainer.steps_per_update
    assert kept == [per_update * update for update in (0, 1, 2, 3, 6, 12)]


def test_a_seed_changes_the_weights() -> None:
    factory = MettagridFactory.load("forage")
    first = Trainer(CONFIG, factory).policy.state_dict()
    other = Trainer(PpoConfig(world="forage", seed=4, num_worlds=16), factory).policy.state_dict()
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_a_horizon_that_does_not_divide_the_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon_steps 48 does not divide"):
        Trainer(PpoConfig(horizon_steps=48), MettagridFactory.load("forage"))


@pytest.mark.parametrize("seed", [0, 1, 8])
def test_training_maps_are_those_of_nothing_else(seed) -> None:
    config = PpoConfig(world="forage", seed=seed, budget_agent_steps=10_000)
    trainer = Trainer(config, MettagridFactory.load("forage"))
    seeds = [trainer._env_seed(world) for world in range(config.num_worlds)]
    assert len(set(seeds)) == config.num_worlds
    assert all(2**30 <= one < 2**31 for one in seeds)
    with pytest.raises(ValueError, match=r"maps of the seeds above are trained on"):
        check_env_seeds(2**30 - 3, 4)
    check_env_seeds(2**30 - 4, 4)
