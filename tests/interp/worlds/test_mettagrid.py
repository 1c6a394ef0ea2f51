"""The batched world against mettagrid's own Simulation, and its facts against the simulator's own account."""

import json

import numpy as np
import pytest
from mettagrid.simulator import Simulation

from interp.worlds.mettagrid import MettagridFactory, MettagridWorld
from interp.worlds.presets import PRESETS, load_config

pytestmark = pytest.mark.mettagrid
STEPS = 220


def random_actions(factory: MettagridFactory, num_worlds: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = num_worlds * factory.spec.num_agents
    return generator.integers(0, len(factory.spec.action_names), (STEPS, rows), dtype=np.int32)


def fresh(factory: MettagridFactory, seeds: list[int], *, facts: bool = False) -> MettagridWorld:
    world = factory(len(seeds))
    for slot, seed in enumerate(seeds):
        world.reset(slot, map_seed=seed, sim_seed=seed + 1, collect_facts=facts)
    return world


def state_of(world: MettagridWorld, slot: int) -> list[dict]:
    """The simulator's own account of the agents."""
    sim = world._sims[slot]
    assert sim is not None
    static = [name for name in sim.object_type_names if name not in ("", "agent")]
    agents = sim.grid_objects(-1, -1, -1, -1, static).values()
    return sorted(agents, key=lambda agent: agent["agent_id"])


@pytest.mark.parametrize("preset", PRESETS)
def test_is_bit_identical_to_mettagrids_simulation(preset: str) -> None:
    factory = MettagridFactory.load(preset)
    num_agents = factory.spec.num_agents
    seeds = [11, 12, 13]
    world = fresh(factory, seeds)
    simulations = []
    for seed in seeds:
        config = load_config(preset)
        config.game.map_builder = config.game.map_builder.model_copy(update={"seed": seed})
        simulations.append(Simulation(config, seed=seed + 1))
    for action_R in random_actions(factory, len(seeds)):
        for slot, simulation in enumerate(simulations):
            rows = slice(slot * num_agents, (slot + 1) * num_agents)
            np.testing.assert_array_equal(
                world.observation_R[rows], simulation._c_sim.observations()
            )
            simulation._c_sim.actions()[:] = action_R[rows]
            simulation.step()
        world.step(action_R)
        for slot, simulation in enumerate(simulations):
            rows = slice(slot * num_agents, (slot + 1) * num_agents)
            np.testing.assert_array_equal(world.reward_R[rows], simulation._c_sim.rewards())


def test_a_world_does_not_depend_on_its_neighbours() -> None:
    factory = MettagridFactory.load("arena")
    num_agents = factory.spec.num_agents
    together, alone = fresh(factory, [5, 6, 7]), fresh(factory, [6])
    for action_R in random_actions(factory, 3)[:50]:
        together.step(action_R)
        alone.step(action_R[num_agents : 2 * num_agents])
        np.testing.assert_array_equal(
            together.observation_R[num_agents : 2 * num_agents], alone.observation_R
        )


@pytest.mark.parametrize("preset", PRESETS)
def test_facts_are_what_the_simulator_says(preset: str) -> None:
    factory = MettagridFactory.load(preset)
    world = fresh(factory, [3], facts=True)
    states = [state_of(world, 0)]
    for action_R in random_actions(factory, 1):
        world.step(action_R)
        states.append(state_of(world, 0))
    facts = world.retire(0)
    assert facts is not None
    resources = range(len(facts.resource_names))
    np.testing.assert_array_equal(
        facts.position_SA2, [[(agent["r"], agent["c"]) for agent in state] for state in states]
    )
    np.testing.assert_array_equal(
        facts.inventory_SAI,
        [[[a["inventory"].get(i, 0) for i in resources] for a in state] for state in states],
    )
    np.testing.assert_array_equal(facts.team_A, [agent["agent:group"] for agent in states[0]])
    assert facts.counter_SAN.shape[0] == STEPS + 1


def test_positions_are_found_without_position_tokens(tmp_path) -> None:
    config = load_config("forage")
    config.game.obs.global_obs.local_position = False
    path = tmp_path / "blind.json"
    path.write_text(config.model_dump_json())
    blind, sighted = MettagridFactory.load(str(path)), MettagridFactory.load("forage")
    positions = []
    for factory in (blind, sighted):
        world = fresh(factory, [4], facts=True)
        for action_R in random_actions(factory, 1)[:60]:
            world.step(action_R)
        facts = world.retire(0)
        assert facts is not None
        positions.append(facts.position_SA2)
    np.testing.assert_array_equal(*positions)


def test_the_map_shows_stations_where_they_stand() -> None:
    factory = MettagridFactory.load("hazard")
    world = fresh(factory, [8], facts=True)
    sim = world._sims[0]
    assert sim is not None
    expected = {
        (thing["r"], thing["c"]): thing["type_name"]
        for thing in sim.grid_objects().values()
        if thing["type_name"] != "agent"
    }
    world.step(random_actions(factory, 1)[0])
    facts = world.retire(0)
    assert facts is not None
    found = {
        (int(row), int(col)): facts.object_names[facts.map_HW[row, col]]
        for row, col in zip(*np.nonzero(facts.map_HW), strict=True)
    }
    assert found == expected


@pytest.mark.parametrize(
    ("world", "content", "said"),
    [
        ("forrage", None, "forage, hazard, arena"),
        ("missing.json", None, "No such file"),
        ("broken.json", "{", "Invalid JSON"),
        ("wrong.json", '{"game": {"num_agents": "many"}}', "game.num_agents"),
    ],
)
def test_a_bad_world_is_refused_with_what_is_wrong(
    world: str, content: str | None, said: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / world).write_text(content)
    with pytest.raises(ValueError, match=said):
        MettagridFactory.load(world)


def test_too_few_observation_tokens_are_found_before_any_work(tmp_path) -> None:
    content = json.loads(load_config("forage").model_dump_json())
    content["game"]["obs"]["num_tokens"] = 4
    path = tmp_path / "short.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="short: the simulator refuses this config"):
        MettagridFactory.load(str(path))
