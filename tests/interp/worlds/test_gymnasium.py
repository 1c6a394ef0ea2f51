"""A gymnasium environment behind the protocol of worlds: seeds, masks, limits, facts, and what is refused."""

import pickle
import sys
from collections.abc import Mapping

import gymnasium
import numpy as np
import pytest

from interp.noise import gumbel_block
from interp.policies.uniform import UniformPolicy
from interp.records import Episode, Trace
from interp.rollout import Capture, Trial, roll
from interp.worlds.catalogue import load_world
from interp.worlds.gymnasium import GymnasiumFactory, GymnasiumWorld
from interp.worlds.labels import compute_labels
from interp.worlds.world import World, WorldFactory

MASKED = "gym:CartPole-v1?mask=1,3&max_steps=60"
MEMORY = "gym:MiniGrid-MemoryS7-v0"
WORLDS = (MASKED, MEMORY, "gym:FrozenLake-v1?is_slippery=true&max_steps=30")


def play(factory: GymnasiumFactory, seeds: list[int], *, num_worlds: int = 1) -> list[Episode]:
    """Uniformly random actions, in the order of the seeds."""
    policy = UniformPolicy(factory.spec.action_names)
    trials = [Trial(env_seed=seed) for seed in seeds]
    episodes = roll(policy, factory(num_worlds), trials, Capture(facts=True))
    return sorted(episodes, key=lambda episode: episode.index)


def variables(episode: Episode) -> Mapping[str, np.ndarray]:
    """Values of the single agent, [S]."""
    assert isinstance(episode.facts, Trace)
    return {name: value_SA[:, 0] for name, value_SA in episode.facts.variables.items()}


def same(one: Episode, other: Episode) -> bool:
    left, right = variables(one), variables(other)
    return (
        np.array_equal(one.action_TA, other.action_TA)
        and np.array_equal(one.reward_TA, other.reward_TA)
        and left.keys() == right.keys()
        and all(np.array_equal(left[name], right[name]) for name in left)
    )


class _Unseeded(gymnasium.Env):
    """Takes its randomness from the process instead of its seed."""

    def __init__(self) -> None:
        self.action_space = gymnasium.spaces.Discrete(2, start=3)
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2, 2))
        self._generator = np.random.default_rng(0)
        self.played: list[int] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.played = []
        return self._generator.random((2, 2), np.float32), {}

    def step(self, action: int):
        self.played.append(action)
        return self._generator.random((2, 2), np.float32), 0.5, len(self.played) == 5, False, {}


@pytest.fixture
def _registered():
    """Ids that exist during one test."""
    limits = {"SparsightTimed-v0": 5, "SparsightUntimed-v0": None}
    for env_id, limit in limits.items():
        gymnasium.register(env_id, entry_point=lambda **_: _Unseeded(), max_episode_steps=limit)
    yield
    for env_id in limits:
        del gymnasium.registry[env_id]


@pytest.mark.parametrize("address", WORLDS)
def test_an_address_makes_a_world_of_the_protocol(address: str) -> None:
    factory = load_world(address)
    assert isinstance(factory, GymnasiumFactory)
    assert isinstance(factory, WorldFactory)
    world = factory(3)
    assert isinstance(world, World)
    assert factory.spec.num_agents == 1
    assert world.observation_R.shape == (3, *factory.spec.observation_shape)
    assert world.observation_R.dtype == np.float32
    assert load_world(factory.name) == factory
    assert pickle.loads(pickle.dumps(factory)) == factory
    assert hash(factory) == hash(load_world(address))
    assert factory.config["kind"] == "gymnasium"


@pytest.mark.parametrize("address", WORLDS)
def test_an_episode_is_a_function_of_its_seed(address: str) -> None:
    """Not of the batch, of the order, or of what was played in the same copy before."""
    factory = GymnasiumFactory.load(address)
    seeds = [5, 6, 7, 8]
    alone = play(factory, seeds)
    together = play(factory, seeds[::-1], num_worlds=3)[::-1]
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))
    assert not any(same(alone[0], other) for other in alone[1:])
    assert same(play(factory, [5])[0], alone[0])


def test_it_plays_what_gymnasium_plays() -> None:
    factory = GymnasiumFactory.load("gym:CartPole-v1?max_steps=60")
    (episode,) = play(factory, [11])
    environment = gymnasium.make("CartPole-v1", max_episode_steps=60)
    observation, _ = environment.reset(seed=11)
    action_T = gumbel_block(11, 0, 1, 2)[:, 0].argmax(1)
    states, rewards, done = [observation], [], False
    while not done:
        observation, reward, terminated, truncated, _ = environment.step(action_T[len(rewards)])
        states.append(observation)
        rewards.append(reward)
        done = terminated or truncated
    np.testing.assert_array_equal(episode.action_TA[:, 0], action_T[: len(rewards)])
    np.testing.assert_array_equal(episode.reward_TA[:, 0], rewards)
    found = variables(episode)
    names = ("cart_position", "cart_velocity", "pole_angle", "pole_velocity")
    np.testing.assert_array_equal(np.array([found[name] for name in names]).T, states)


def test_a_mask_hides_from_the_policy_and_not_from_the_facts() -> None:
    world = GymnasiumFactory.load(MASKED)(1)
    world.reset(0, map_seed=3, sim_seed=3, collect_facts=True)
    seen = [world.observation_R[0].copy()]
    for _ in range(5):
        world.step(np.array([1], np.int32))
        seen.append(world.observation_R[0].copy())
    trace = world.retire(0)
    assert trace is not None
    seen_S4 = np.array(seen)
    np.testing.assert_array_equal(seen_S4[:, [1, 3]], 0)
    np.testing.assert_array_equal(seen_S4[:, 2], trace.variables["pole_angle"][:, 0])
    assert (np.diff(trace.variables["cart_velocity"][:, 0]) > 0).all()  # always pushed to the right


def test_the_environment_to_train_in_shows_what_the_world_shows() -> None:
    factory = GymnasiumFactory.load(MASKED)
    environment, world = factory.make(), factory(1)
    observation, _ = environment.reset(seed=4)
    world.reset(0, map_seed=4, sim_seed=4, collect_facts=False)
    for action in (0, 1, 1, 0):
        np.testing.assert_array_equal(observation, world.observation_R[0])
        assert observation in environment.observation_space
        observation, *_ = environment.step(action)
        world.step(np.array([action], np.int32))
    assert environment.observation_space.shape == factory.spec.observation_shape
    assert environment.spec.max_episode_steps == 60


def test_a_world_does_not_depend_on_its_neighbours() -> None:
    world = GymnasiumFactory.load(MASKED)(3)
    for number in (0, 2):
        world.reset(number, map_seed=number, sim_seed=number, collect_facts=False)
    before = world.observation_R.copy()
    world.step(np.zeros(3, np.int32))
    assert (world.observation_R[[0, 2]] != before[[0, 2]]).any(1).all()
    assert not world.observation_R[1].any()
    stepped = world.observation_R[2].copy()
    assert world.retire(0) is None
    assert not world.observation_R[0].any()
    np.testing.assert_array_equal(world.observation_R[2], stepped)


def test_an_episode_ends_at_the_limit_or_before() -> None:
    lengths = [
        e.num_steps
        for e in play(GymnasiumFactory.load("gym:CartPole-v1?max_steps=15"), list(range(20)))
    ]
    assert max(lengths) == 15
    assert min(lengths) < 15
    # MiniGrid keeps its own limit, 5 x 7 x 7, unless a shorter one is set
    assert GymnasiumFactory.load(MEMORY).spec.max_steps == 245
    assert GymnasiumFactory.load(f"{MEMORY}?max_steps=40").spec.max_steps == 40
    assert GymnasiumFactory.load(f"{MEMORY}?max_steps=400").spec.max_steps == 245


def test_discrete_observations_are_one_hot() -> None:
    factory = GymnasiumFactory.load("gym:FrozenLake-v1?is_slippery=false&max_steps=30")
    world = factory(1)
    world.reset(0, map_seed=0, sim_seed=0, collect_facts=False)
    world.step(np.array([1], np.int32))  # down, from cell 0 of a 4 x 4 lake
    np.testing.assert_array_equal(world.observation_R[0], np.eye(16)[4])


def test_two_different_seeds_are_refused() -> None:
    world = GymnasiumFactory.load(MASKED)(1)
    with pytest.raises(ValueError, match="map_seed 1 and sim_seed 2, but gymnasium has one seed"):
        world.reset(0, map_seed=1, sim_seed=2, collect_facts=False)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("gym:CartPole-v9", "gym:CartPole-v9: .*v9.* doesn't exist"),
        ("gym:CartPoole-v1", "Did you mean: `CartPole`"),
        ("gym:", "'' is no id of an environment"),
        ("gym:os.path:Env-v0", "'os.path:Env-v0' is no id of an environment"),
        ("gym:Pendulum-v1", "only discrete ones are supported"),
        ("gym:CartPole-v1?mask=4", "has entries 0 to 3"),
        ("gym:CartPole-v1?mask=velocity", "mask 'velocity'; wanted numbers"),
        ("gym:CartPole-v1?max_steps=0", "max_steps '0'; wanted a positive number"),
        ("gym:CartPole-v1?mask=1&mask=2", "a key is given twice"),
        ("gym:CartPole-v1?mask", "bad query field"),
        ("gym:CartPole-v1?gravity=3", "gravity"),
        ("gym:Blackjack-v1", "no time limit"),
        (
            "gym:Blackjack-v1?max_steps=9",
            r"gym:Blackjack.*Tuple\(.*are not supported; wanted a Box, Discrete",
        ),
        ("CartPole-v1", r"a preset \(forage, hazard, arena\), nor the path of .* nor gym:ENV_ID"),
        ("gymnasium:CartPole-v1", "nor gym:ENV_ID"),
    ],
)
def test_a_world_that_cannot_be_recorded_is_refused(address: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_world(address)


@pytest.mark.usefixtures("_registered")
def test_an_environment_that_ignores_its_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="two episodes of seed 0 with the same actions differ"):
        GymnasiumFactory.load("gym:SparsightTimed-v0")
    with pytest.raises(ValueError, match="no time limit"):
        GymnasiumFactory.load("gym:SparsightUntimed-v0")


@pytest.mark.usefixtures("_registered")
def test_actions_that_do_not_start_at_zero_are_shifted() -> None:
    world = GymnasiumWorld(GymnasiumFactory("SparsightTimed-v0"), 1)
    world.reset(0, map_seed=0, sim_seed=0, collect_facts=False)
    for action in (0, 1, 0):
        world.step(np.array([action], np.int32))
    environment = world._environments[0].unwrapped
    assert isinstance(environment, _Unseeded)
    assert environment.played == [3, 4, 3]
    assert world.observation_R.shape == (1, 4)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "minigrid", None
    )  # what an import finds where it is not installed
    with pytest.raises(ValueError, match=r"pip install 'sparsight\[minigrid\]'"):
        load_world(MEMORY)


@pytest.mark.parametrize(
    "address", [*WORLDS, "gym:Acrobot-v1?max_steps=20", "gym:Taxi-v3?max_steps=20"]
)
def test_all_labels_of_a_world_have_its_shape_and_a_definition(address: str) -> None:
    factory = GymnasiumFactory.load(address)
    (episode,) = play(factory, [0])
    assert episode.facts is not None
    truth = compute_labels(episode.facts)
    assert list(truth) == list(factory.labels)
    for name, true_TA in truth.items():
        assert true_TA.shape == (episode.num_steps, 1)
        assert true_TA.dtype == np.bool_
        assert factory.labels[name].definition.startswith(("State: ", "Result: "))
