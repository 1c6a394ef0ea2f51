"""Each label on the smallest drawing where a wrong definition would give another answer, then laws for all of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jaxtyping import Bool

from interp.records import Facts
from interp.worlds.labels import (
    HORIZON,
    LABELS,
    Scene,
    _registry,
    compute_labels,
    label,
)
from interp.worlds.paths import FAR

GLYPHS = {".": "empty", "#": "wall", "m": "mine", "g": "generator", "a": "altar", "t": "turret"}
MOVES = {"N": (-1, 0), "S": (1, 0), "W": (0, -1), "E": (0, 1), ".": (0, 0)}
RESOURCES = ("ore", "battery", "heart", "laser")
COUNTERS = ("attack.hit", "attack.hit_by", "attack.blocked", "attack.defended", "use.mine")

AHEAD = {"goal_seeking", "exploration", "avoidance", "altar_soon"}
REMEMBERS = {"exploration", "episode_start", "episode_middle", "episode_end"}


def draw(picture: str, *walks: tuple[tuple[int, int], str], **facts) -> Facts:
    """A map in ASCII art and, for each agent, where it starts and one letter per step; nothing carried."""
    rows = picture.split()
    names = list(GLYPHS.values())
    track = [np.cumsum([start, *(MOVES[m] for m in moves)], axis=0) for start, moves in walks]
    position_SA2 = np.stack(track, axis=1).astype(np.int16)
    num_states, num_agents = position_SA2.shape[:2]
    whole = Facts(
        map_HW=np.array([[names.index(GLYPHS[g]) for g in row] for row in rows], dtype=np.uint8),
        object_names=tuple(names),
        position_SA2=position_SA2,
        inventory_SAI=np.zeros((num_states, num_agents, len(RESOURCES)), dtype=np.int16),
        resource_names=RESOURCES,
        counter_SAN=np.zeros((num_states, num_agents, len(COUNTERS)), dtype=np.float32),
        counter_names=COUNTERS,
        team_A=np.zeros(num_agents, dtype=np.int16),
        max_steps=num_states - 1,
        view_radius=(5, 5),
    )
    return replace(whole, **facts)


def carry(facts: Facts, agent: int = 0, **amounts_S: str) -> Facts:
    """One digit per state for each resource: `ore="0011"`."""
    inventory_SAI = facts.inventory_SAI.copy()
    for resource, amount_S in amounts_S.items():
        inventory_SAI[:, agent, RESOURCES.index(resource)] = [int(digit) for digit in amount_S]
    return replace(facts, inventory_SAI=inventory_SAI)


def teams(facts: Facts, *team_A: int) -> Facts:
    return replace(facts, team_A=np.array(team_A, dtype=np.int16))


def truth(facts: Facts, name: str, agent: int = 0) -> str:
    """The label of one agent as a string: "1" where it is true."""
    return "".join("01"[int(true)] for true in compute_labels(facts, [name])[name][:, agent])


# Behavioural


def test_goal_seeking_is_nearing_the_station_by_two_within_three_steps():
    row = "m......."
    assert truth(draw(row, ((0, 7), "WWW")), "goal_seeking") == "110"  # only one step is left at 2
    assert truth(draw(row, ((0, 7), "W..W")), "goal_seeking") == "0000"  # 1, then 1, in any three
    assert truth(draw(row, ((0, 1), "EEE")), "goal_seeking") == "000"


@pytest.mark.parametrize(
    ("carried", "moves", "seeks"),
    [
        ({}, "WWW", True),
        ({}, "EEE", False),
        ({"ore": "1111"}, "WWW", False),
        ({"ore": "1111"}, "NNN", True),
        ({"battery": "1111"}, "EEE", True),
        ({"battery": "1111", "ore": "1111"}, "EEE", True),
        ({"battery": "1111", "ore": "1111"}, "NNN", False),
    ],
)
def test_goal_seeking_follows_what_the_agent_carries(carried, moves, seeks):
    cross = "....g.... ......... ......... ......... m.......a"
    facts = carry(draw(cross, ((4, 4), moves)), **carried)
    assert truth(facts, "goal_seeking")[0] == str(int(seeks))


def test_goal_seeking_counts_steps_around_walls():
    hook = """
        m#....
        .#.##.
        ......
    """
    # Away from the mine as the crow flies, nearer on foot.
    assert truth(draw(hook, ((0, 2), "SSW")), "goal_seeking") == "110"
    # Beside the mine, with the wall between: no arrival, and no way shorter than around.
    assert Scene(draw(hook, ((0, 2), ""))).path_distance("source").tolist() == [[5]]


def test_goal_seeking_is_true_until_the_station_is_used_and_needs_a_use():
    waits_then_mines = draw("m....", ((0, 1), "....."))
    assert truth(carry(waits_then_mines, ore="000111"), "goal_seeking") == "11100"
    assert truth(waits_then_mines, "goal_seeking") == "00000"


def test_ore_gained_far_from_a_mine_is_not_goal_seeking_but_is_collection():
    robber = carry(draw("m....", ((0, 4), "..")), ore="011")
    assert truth(robber, "goal_seeking") == "00"
    assert truth(robber, "resource_collection") == "10"


def test_an_unreachable_station_is_never_sought():
    assert truth(draw("m#......", ((0, 7), "WWWW")), "goal_seeking") == "0000"
    assert Scene(draw("m#......", ((0, 7), ""))).path_distance("source").tolist() == [[FAR]]


def test_exploration_is_a_first_visit_within_three_steps():
    facts = draw("......", ((0, 0), "EWEWEWE.E"))
    # The second new cell is entered by the last action: seen from three steps before.
    assert truth(facts, "exploration") == "100000" + "111"


def test_exploration_is_each_agents_own():
    facts = draw("...", ((0, 0), "E..."), ((0, 1), "...."))
    assert truth(facts, "exploration", agent=0) == "1000"
    assert truth(facts, "exploration", agent=1) == "0000"


def test_exploration_remembers_the_first_state():
    assert truth(draw("...", ((0, 0), "E...W...")), "exploration") == "10000000"


def test_resource_collection_is_a_rise_of_ore_or_battery_during_the_step():
    facts = carry(draw(".", ((0, 0), ".....")), ore="011000", battery="000110", heart="000001")
    assert truth(facts, "resource_collection") == "10100"


@pytest.mark.parametrize("counter", ["attack.hit", "attack.hit_by", "attack.blocked"])
def test_combat_is_the_step_where_an_attack_counter_rises(counter):
    facts = draw(".", ((0, 0), "...."), ((0, 0), "...."))
    facts.counter_SAN[:, 0, COUNTERS.index(counter)] = [3, 3, 4, 4, 4]
    facts.counter_SAN[:, 0, COUNTERS.index("use.mine")] = [0, 1, 2, 3, 4]
    assert truth(facts, "combat", agent=0) == "0100"
    assert truth(facts, "combat", agent=1) == "0000"


def test_avoidance_is_getting_two_cells_away_from_a_near_turret():
    road = "t" + 9 * "."
    assert truth(draw(road, ((0, 3), "EEEEE")), "avoidance") == "11000"  # at 5 it is out of reach
    assert truth(draw(road, ((0, 4), "E..E")), "avoidance") == "0000"
    assert truth(draw(road, ((0, 4), "WWW")), "avoidance") == "000"


def test_avoidance_needs_distance_from_every_turret():
    between = draw("t.......t", ((0, 3), "EE."))
    assert truth(between, "avoidance") == "000"


def test_avoidance_is_of_armed_enemies_only():
    flees = draw(9 * ".", ((0, 3), "EEE"), ((0, 1), "..."))
    assert truth(teams(carry(flees, agent=1, laser="1111"), 0, 1), "avoidance") == "110"
    assert truth(teams(carry(flees, agent=0, laser="1111"), 0, 1), "avoidance") == "000"
    assert truth(teams(carry(flees, agent=1, laser="1111"), 0, 0), "avoidance") == "000"
    assert truth(teams(flees, 0, 1), "avoidance") == "000"

    friend = draw(9 * ".", ((0, 3), "EEE"), ((0, 1), "..."), ((0, 8), "..."))
    assert truth(teams(carry(friend, agent=1, laser="1111"), 0, 0, 1), "avoidance") == "000"


def test_an_enemy_counts_by_the_laser_it_has_before_the_action():
    flees = teams(draw(9 * ".", ((0, 3), "EEE"), ((0, 1), "...")), 0, 1)
    assert truth(carry(flees, agent=1, laser="1000"), "avoidance") == "100"


def test_an_enemy_that_fires_is_not_thereby_avoided():
    stands = teams(draw(9 * ".", ((0, 3), "..."), ((0, 1), "...")), 0, 1)
    assert truth(carry(stands, agent=1, laser="1000"), "avoidance") == "000"


# Spatial


def test_wall_proximity_is_the_four_neighbours():
    room = """
        #...
        ....
        ...m
    """
    assert truth(draw(room, ((1, 1), "NSWSEEE")), "wall_proximity") == "0101000"


def test_open_area_needs_a_window_inside_the_map_without_any_object():
    hall = """
        .......
        .......
        .......
        .......
        .......
        ......m
    """
    assert truth(draw(hall, ((2, 1), "EEES...")), "open_area") == "0111000"


def test_landmark_is_a_station_within_two_and_walls_are_none():
    assert truth(draw("....a", ((0, 1), "EW..")), "landmark") == "0100"
    assert truth(draw("....#", ((0, 1), "EW..")), "landmark") == "0000"
    diagonal = "... ... ..g"
    assert truth(draw(diagonal, ((1, 1), "N..")), "landmark") == "100"


# Temporal


def test_temporal_labels_split_the_time_limit_at_exact_tenths():
    facts = draw(".", ((0, 0), 20 * "."))
    assert truth(facts, "episode_start") == "11" + 18 * "0"
    assert truth(facts, "episode_middle") == 8 * "0" + "1111" + 8 * "0"
    assert truth(facts, "episode_end") == 18 * "0" + "11"


def test_an_episode_cut_short_has_no_end():
    facts = draw(".", ((0, 0), 20 * "."), max_steps=200)
    assert truth(facts, "episode_start") == 20 * "1"
    assert truth(facts, "episode_end") == 20 * "0"


# Object-based


def test_battery_proximity_is_of_generators():
    assert truth(draw("....g", ((0, 1), "EW")), "battery_proximity") == "01"
    assert truth(draw("....a", ((0, 1), "EW")), "battery_proximity") == "00"


def test_altar_interaction_turns_a_battery_into_a_heart_in_one_step():
    facts = carry(draw(".a", ((0, 0), ".....")), battery="211100", heart="011222")
    #                                   used, -, heart alone (robbed), battery alone (robbed), -
    assert truth(facts, "altar_interaction") == "10000"


def test_altar_soon_starts_two_steps_before():
    facts = carry(draw(".a", ((0, 0), 6 * ".")), battery="1111100", heart="0000011")
    assert truth(facts, "altar_interaction") == "000010"
    assert truth(facts, "altar_soon") == "001110"


def test_carrying_describes_the_state_before_the_action():
    facts = carry(draw(".", ((0, 0), "...")), ore="0110", battery="0012")
    assert truth(facts, "carrying_ore") == "011"
    assert truth(facts, "carrying_battery") == "001"


def test_enemy_detection_has_a_radius_for_each_axis():
    field = "\n".join(6 * ["......"])
    facts = draw(field, ((0, 0), "...."), ((0, 2), "ESSS"), view_radius=(2, 3))
    assert truth(teams(facts, 0, 1), "enemy_detection") == "1111"  # the fourth move comes after
    wide = draw(field, ((0, 0), "..."), ((2, 2), "SEE"), view_radius=(2, 3))
    assert truth(teams(wide, 0, 1), "enemy_detection") == "100"
    assert truth(teams(wide, 0, 1), "enemy_detection", agent=1) == "100"
    assert truth(teams(wide, 1, 1), "enemy_detection") == "000"


# The registry


def test_every_label_of_the_plan_is_defined_and_typed():
    assert {name: entry.kind for name, entry in LABELS.items()} == {
        "goal_seeking": "behavioural",
        "exploration": "behavioural",
        "resource_collection": "behavioural",
        "combat": "behavioural",
        "avoidance": "behavioural",
        "wall_proximity": "spatial",
        "open_area": "spatial",
        "landmark": "spatial",
        "episode_start": "temporal",
        "episode_middle": "temporal",
        "episode_end": "temporal",
        "battery_proximity": "object-based",
        "altar_interaction": "object-based",
        "altar_soon": "object-based",
        "carrying_ore": "object-based",
        "carrying_battery": "object-based",
        "enemy_detection": "object-based",
    }
    for entry in LABELS.values():
        assert entry.definition.startswith(("State: ", "Result: ", "Ahead: "))
        assert entry.definition.startswith("Ahead: ") == (entry.name in AHEAD)


def test_names_of_other_games_mean_the_same():
    facts = draw("m.g.a", ((0, 1), "."))
    renamed = replace(
        facts,
        object_names=("empty", "wall", "carbon_extractor", "generator_red", "Hub", "zapper"),
        resource_names=("ore_red", "battery_red", "heart", "laser"),
    )
    for kind in ("source", "generator", "altar"):
        assert Scene(renamed).objects(kind).tolist() == Scene(facts).objects(kind).tolist()
    assert truth(carry(renamed, ore="11"), "carrying_ore") == "1"


def test_an_unknown_label_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(ValueError, match=r"'alter_soon'.*did you mean 'altar_soon'.*'combat'"):
        compute_labels(draw(".", ((0, 0), ".")), ["combat", "alter_soon"])


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch):
    before = dict(_registry)
    yield _registry
    _registry.clear()
    _registry.update(before)


@pytest.mark.usefixtures("registry")
def test_a_label_of_ones_own_joins_the_others():
    for _ in range(2):  # a notebook cell may run twice

        @label("turret_close", kind="spatial")
        def turret_close(scene: Scene) -> Bool[np.ndarray, "T A"]:
            """State: a turret
            stands next to the agent.
            """
            return scene.near("turret", 1)

    assert LABELS["turret_close"].definition == "State: a turret stands next to the agent."
    assert truth(draw("t..", ((0, 1), "E.")), "turret_close") == "10"
    assert list(compute_labels(draw(".", ((0, 0), "."))))[-1] == "turret_close"


@pytest.mark.usefixtures("registry")
def test_a_label_that_cannot_be_trusted_is_refused():
    def undocumented(scene: Scene) -> Bool[np.ndarray, "T A"]:
        return scene.near("wall", 1)

    def second_combat(scene: Scene) -> Bool[np.ndarray, "T A"]:
        """State: another idea of combat."""
        return scene.near("wall", 1)

    def one_too_many(scene: Scene):
        """State: a label that kept the last state."""
        return scene.amount("ore") > 0

    with pytest.raises(ValueError, match="no docstring"):
        label("undocumented", kind="spatial")(undocumented)
    with pytest.raises(ValueError, match=r"'combat' is already defined by .*labels\.combat"):
        label("combat", kind="spatial")(second_combat)
    label("one_too_many", kind="spatial")(one_too_many)
    with pytest.raises(ValueError, match=r"bool \(3, 1\) but this episode needs bool \(2, 1\)"):
        compute_labels(draw(".", ((0, 0), "..")), ["one_too_many"])


# Laws


def random_facts(seed: int) -> Facts:
    """Any world at all: agents wander, gain, lose and fight at random, on maps with and without each thing."""
    rng = np.random.default_rng(seed)
    height, width, num_agents = rng.integers(1, [9, 9, 5])
    num_states = int(rng.integers(1, 24))
    shape_SA = (num_states, num_agents)
    kinds = rng.choice(len(GLYPHS), size=3)
    map_HW = np.where(rng.random((height, width)) < 0.7, 0, rng.choice(kinds, (height, width)))
    map_HW[rng.integers(height), rng.integers(width)] = 0
    free_N2 = np.argwhere(map_HW == 0)
    inventory_SAI = rng.integers(0, 3, (*shape_SA, len(RESOURCES)))
    return Facts(
        map_HW=map_HW.astype(np.uint8),
        object_names=tuple(GLYPHS.values()),
        position_SA2=free_N2[rng.integers(len(free_N2), size=shape_SA)].astype(np.int16),
        inventory_SAI=inventory_SAI.astype(np.int16),
        resource_names=RESOURCES,
        counter_SAN=rng.integers(0, 2, (*shape_SA, len(COUNTERS))).cumsum(0).astype(np.float32),
        counter_names=COUNTERS,
        team_A=rng.integers(0, 2, num_agents).astype(np.int16),
        max_steps=num_states + int(rng.integers(0, 10)),
        view_radius=(int(rng.integers(0, 4)), int(rng.integers(0, 4))),
    )


def cut(facts: Facts, states: slice) -> Facts:
    return replace(
        facts,
        position_SA2=facts.position_SA2[states],
        inventory_SAI=facts.inventory_SAI[states],
        counter_SAN=facts.counter_SAN[states],
    )


seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=60, deadline=None)


@quick
@given(seeds)
def test_labels_have_one_truth_per_step_and_agent(seed: int):
    facts = random_facts(seed)
    num_states, num_agents = facts.position_SA2.shape[:2]
    for true_TA in compute_labels(facts).values():
        assert true_TA.dtype == np.bool_
        assert true_TA.shape == (num_states - 1, num_agents)


@quick
@given(seeds, st.randoms())
def test_permuting_agents_permutes_columns(seed: int, random):
    facts = random_facts(seed)
    order = list(range(len(facts.team_A)))
    random.shuffle(order)
    permuted = replace(
        facts,
        position_SA2=facts.position_SA2[:, order],
        inventory_SAI=facts.inventory_SAI[:, order],
        counter_SAN=facts.counter_SAN[:, order],
        team_A=facts.team_A[order],
    )
    relabelled = compute_labels(permuted)
    for name, true_TA in compute_labels(facts).items():
        np.testing.assert_array_equal(relabelled[name], true_TA[:, order], err_msg=name)


@quick
@given(seeds)
def test_rows_and_columns_play_the_same_part(seed: int):
    facts = random_facts(seed)
    transposed = replace(
        facts,
        map_HW=facts.map_HW.T,
        position_SA2=facts.position_SA2[..., ::-1],
        view_radius=facts.view_radius[::-1],
    )
    relabelled = compute_labels(transposed)
    for name, true_TA in compute_labels(facts).items():
        np.testing.assert_array_equal(relabelled[name], true_TA, err_msg=name)


@quick
@given(seeds, st.data())
def test_labels_forget_the_past_unless_their_definition_remembers_it(seed: int, data):
    facts = random_facts(seed)
    first = data.draw(st.integers(0, len(facts.position_SA2) - 1))
    later = compute_labels(cut(facts, slice(first, None)))
    for name in LABELS.keys() - REMEMBERS:
        whole_TA = compute_labels(facts, [name])[name]
        np.testing.assert_array_equal(later[name], whole_TA[first:], err_msg=name)


@quick
@given(seeds, st.data())
def test_labels_see_no_further_than_their_definition(seed: int, data):
    facts = random_facts(seed)
    num_steps = data.draw(st.integers(0, len(facts.position_SA2) - 1))
    earlier = compute_labels(cut(facts, slice(num_steps + 1)))
    for name, whole_TA in compute_labels(facts).items():
        settled = max(0, num_steps - (HORIZON - 1)) if name in AHEAD else num_steps
        np.testing.assert_array_equal(earlier[name][:settled], whole_TA[:settled], err_msg=name)


@quick
@given(seeds)
def test_a_world_without_the_thing_never_has_its_label(seed: int):
    facts = random_facts(seed)
    bare = replace(
        facts,
        map_HW=np.zeros_like(facts.map_HW),
        inventory_SAI=facts.inventory_SAI[..., :0],
        resource_names=(),
        counter_SAN=facts.counter_SAN[..., :0],
        counter_names=(),
        team_A=np.zeros_like(facts.team_A),
    )
    of_nothing = REMEMBERS | {"open_area"}
    for name in LABELS.keys() - of_nothing:
        assert not compute_labels(bare, [name])[name].any(), name


@quick
@given(seeds, st.sampled_from(["source", "altar", "station"]))
def test_path_distance_is_the_only_fixed_point_of_walking(seed: int, kind: str):
    facts = random_facts(seed)
    free_N2 = np.argwhere(facts.map_HW == 0)
    stops = [((int(row), int(column)), "") for row, column in free_N2]
    visits_all = draw(".", *stops, map_HW=facts.map_HW)  # one agent on every free cell
    scene = Scene(visits_all)
    distance = dict(zip(map(tuple, free_N2), scene.path_distance(kind)[0].tolist(), strict=True))
    goals = set(map(tuple, np.argwhere(scene.objects(kind))))
    for (row, column), steps in distance.items():
        around = {(row + down, column + right) for down, right in MOVES.values()} - {(row, column)}
        if around & goals:
            assert steps == 0
        else:
            assert steps == min(FAR, 1 + min(distance.get(cell, FAR) for cell in around))
