"""Scripted players do what they are called after, beside random play on the same maps; and only where they can."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from interp.players import (
    FULL,
    STRATEGIES,
    Walker,
    check_strategy,
    play_strategies,
    resource_collection,
)
from interp.policies.uniform import UniformPolicy
from interp.records import Episode, Facts
from interp.rollout import Capture, Trial, roll
from interp.worlds.gymnasium import GymnasiumFactory
from interp.worlds.labels import compute_labels
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.presets import load_config

pytestmark = pytest.mark.mettagrid
SEEDS = range(20)
STEPS = 96


@dataclass(frozen=True)
class Outcome:
    """Means over agents, one number an episode."""

    collected: np.ndarray
    hearts: np.ndarray
    cells: np.ndarray
    hits: np.ndarray
    health: np.ndarray
    steps_of: dict[str, np.ndarray]
    """Label -> share of the steps at which it holds."""


def short(world: str) -> MettagridFactory:
    """A preset whose episodes last 96 steps."""
    config = load_config(world)
    config.game.max_steps = STEPS
    return MettagridFactory(name=world, config_json=config.model_dump_json())


@cache
def outcome(world: str, strategy: str | None) -> Outcome:
    factory = short(world)
    actions = (
        dict.fromkeys(SEEDS)
        if strategy is None
        else dict(play_strategies(factory, [strategy], SEEDS))
    )
    trials = [Trial(env_seed=seed, action_TA=action_TA) for seed, action_TA in actions.items()]
    random = UniformPolicy(factory.spec.action_names)
    played = sorted(
        roll(random, factory(20), trials, Capture(facts=True)), key=lambda e: e.env_seed
    )
    labels = [compute_labels(_facts(e)) for e in played]
    return Outcome(
        collected=np.array([one["resource_collection"].sum(0).mean() for one in labels]),
        hearts=np.array([_last(e, "heart") for e in played]),
        cells=np.array([_cells(_facts(e)) for e in played]),
        hits=np.array([_counted(_facts(e), "attack.hit") for e in played]),
        health=np.array([_last(e, "hp") for e in played]),
        steps_of={name: np.array([one[name].mean() for one in labels]) for name in STRATEGIES},
    )


def _facts(episode: Episode) -> Facts:
    assert isinstance(episode.facts, Facts)
    return episode.facts


def _last(episode: Episode, resource: str) -> float:
    facts = _facts(episode)
    return float(facts.inventory_SAI[-1, :, facts.resource_names.index(resource)].mean())


def _cells(facts: Facts) -> float:
    agents = np.moveaxis(facts.position_SA2, 1, 0)
    return float(np.mean([len(np.unique(one, axis=0)) for one in agents]))


def _counted(facts: Facts, counter: str) -> float:
    if counter not in facts.counter_names:
        return 0.0
    return float(facts.counter_SAN[-1, :, facts.counter_names.index(counter)].mean())


def wins(better: np.ndarray, worse: np.ndarray) -> int:
    """Of 20 paired maps; 18 or more happen by chance in 2 of 10,000 cases (sign test, two-sided: .0004)."""
    return int((better > worse).sum())


@pytest.mark.parametrize("strategy", ["goal_seeking", "resource_collection"])
def test_collectors_bring_home_many_times_what_random_play_does(strategy) -> None:
    scripted, random = outcome("forage", strategy), outcome("forage", None)
    assert wins(scripted.hearts, random.hearts) >= 18
    assert scripted.hearts.mean() > 10 * random.hearts.mean()
    assert scripted.collected.mean() > 5 * random.collected.mean()
    assert scripted.steps_of["goal_seeking"].mean() > 0.3


def test_collecting_fills_up_before_it_goes_on() -> None:
    """So what goal_seeking brings home one by one comes later."""
    filling, carrying = outcome("forage", "resource_collection"), outcome("forage", "goal_seeking")
    assert wins(carrying.steps_of["goal_seeking"], filling.steps_of["goal_seeking"]) >= 18


def test_explorers_see_more_of_the_map() -> None:
    scripted, random = outcome("forage", "exploration"), outcome("forage", None)
    assert wins(scripted.cells, random.cells) == 20
    assert scripted.cells.mean() > 2 * random.cells.mean()


def test_fighters_hit_more_often() -> None:
    scripted, random = outcome("arena", "combat"), outcome("arena", None)
    assert wins(scripted.hits, random.hits) == 20
    assert scripted.hits.mean() > 5 * random.hits.mean()


def test_the_careful_stay_healthy() -> None:
    scripted, random = outcome("hazard", "avoidance"), outcome("hazard", None)
    assert wins(scripted.health, random.health) >= 18
    assert 100 - scripted.health.mean() < (100 - random.health.mean()) / 5


def test_the_same_seed_gives_the_same_episode_alone_and_among_others() -> None:
    factory = short("arena")
    several = dict(play_strategies(factory, ["combat", "exploration"], [3, 4]))
    ((_, alone),) = play_strategies(factory, ["combat", "exploration"], [4])
    np.testing.assert_array_equal(several[4], alone)
    assert not np.array_equal(several[3], several[4])


def test_agents_may_play_different_strategies() -> None:
    factory = short("forage")
    actions = dict(play_strategies(factory, ["goal_seeking", "exploration"], range(5)))
    trials = [Trial(env_seed=seed, action_TA=action_TA) for seed, action_TA in actions.items()]
    random = UniformPolicy(factory.spec.action_names)
    for episode in roll(random, factory(5), trials, Capture(facts=True)):
        hearts = _facts(episode).inventory_SAI[-1, :, 2]
        assert min(hearts[[0, 2]]) > 0 == max(hearts[[1, 3]])


@pytest.mark.parametrize(
    ("strategy", "world", "said"),
    [
        ("combat", "forage", r"strategy combat: world forage lacks enemies; arena would do"),
        ("avoidance", "forage", r"world forage lacks hazards and enemies; hazard, arena would do"),
        ("dancing", "forage", r"'dancing' does not exist; there are goal_seeking, "),
    ],
)
def test_a_world_that_cannot_host_a_strategy_is_refused(strategy, world, said) -> None:
    with pytest.raises(ValueError, match=said):
        play_strategies(MettagridFactory.load(world), [strategy], SEEDS)


def test_a_world_without_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"it finds its way on a map, which mettagrid worlds have"):
        check_strategy("exploration", GymnasiumFactory.load("gym:CartPole-v1"))


class Carrier(Walker):
    """A walker that only knows what is carried, and where to."""

    def __init__(self, **amounts: int) -> None:  # no map
        self._amounts = amounts

    def amount(self, agent: int, resource: str) -> int:
        return self._amounts.get(resource, 0)

    def is_idle(self, agent: int) -> bool:
        return False

    def go_to(self, agent: int, target: str) -> str:
        return target


@pytest.mark.parametrize(
    ("ore", "battery", "target"),
    [
        (0, 0, "source"),
        (FULL - 1, 0, "source"),
        (FULL, 0, "generator"),
        (FULL - 1, 1, "generator"),
        (0, FULL, "altar"),
        (0, 1, "altar"),  # all of them, not one and back for more ore
    ],
)
def test_collectors_finish_each_link_before_the_next(ore: int, battery: int, target: str) -> None:
    assert resource_collection(Carrier(ore=ore, battery=battery), 0) == target
