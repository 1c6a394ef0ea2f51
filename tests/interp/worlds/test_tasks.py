"""The labels of gymnasium tasks: each against an account that does not come from the code that made it."""

from typing import Any

import numpy as np
import pytest

from interp.records import Trace, VariableLabel
from interp.worlds.gymnasium import GymnasiumFactory
from interp.worlds.labels import check_labels, compute_labels, compute_labels_together
from interp.worlds.tasks import CART_POLE, MINIGRID_MEMORY, Task

LEFT, RIGHT, FORWARD, PICKUP, TOGGLE = 0, 1, 2, 3, 5


def trace_of(task: Task, *, max_steps: int, **values: list[float]) -> Trace:
    """An episode whose variables are written down, one value per state; actions and rewards are 0 unless given."""
    length = len(next(iter(values.values())))
    given = {"action": [0.0] * length, "reward": [0.0] * length, **values}
    variables = {name: np.array(value, np.float32)[:, None] for name, value in given.items()}
    return Trace(variables=task.complete(variables), labels=task.registry(max_steps))


def truth(trace: Trace, name: str) -> str:
    """The label as a string: "1" where it is true."""
    return "".join("01"[int(true)] for true in compute_labels(trace, [name])[name][:, 0])


def cart_pole(**values: list[float]) -> Trace:
    length = len(next(iter(values.values())))
    still = dict.fromkeys(
        ("cart_position", "cart_velocity", "pole_angle", "pole_velocity"), [0.0] * length
    )
    return trace_of(CART_POLE, max_steps=10, **{**still, **values})


@pytest.mark.parametrize("max_steps", [10, 7, 100, 33])
def test_phases_have_the_same_borders_as_in_mettagrids_worlds(max_steps: int) -> None:
    states = [0.0] * (max_steps + 1)
    trace = trace_of(CART_POLE, max_steps=max_steps, pole_angle=states, pole_velocity=states)
    t = np.arange(max_steps)
    expected = {
        "episode_start": 10 * t < max_steps,
        "episode_middle": (4 * max_steps <= 10 * t) & (10 * t < 6 * max_steps),
        "episode_end": 10 * t >= 9 * max_steps,
    }
    for name, true_T in expected.items():
        assert truth(trace, name) == "".join("01"[int(true)] for true in true_T), name


def test_a_state_is_read_before_the_action_and_a_result_after_it() -> None:
    trace = cart_pole(
        cart_velocity=[-1, -1, 0, 1, 1], action=[-1, 0, 1, 1, 0], reward=[0, 0, 1, -1, 0.5]
    )
    assert truth(trace, "cart_moves_right") == "0011"
    assert truth(trace, "pushes_right") == "0110"
    assert truth(trace, "rewarded") == "0101"
    assert truth(trace, "switches_action") == "0101"


def test_a_pole_falls_when_it_turns_the_way_it_leans() -> None:
    trace = cart_pole(pole_angle=[0.1, 0.1, -0.1, -0.1, 0, 0], pole_velocity=[1, -1, 1, -1, 1, 0])
    assert truth(trace, "pole_falls") == "10010"


def test_an_unknown_label_is_refused_with_the_nearest_of_that_world() -> None:
    trace = cart_pole(pole_angle=[0, 0])
    with pytest.raises(ValueError, match="'pole_fall' does not exist; did you mean 'pole_falls'"):
        compute_labels(trace, ["pole_fall"])
    with pytest.raises(ValueError, match="'goal_seeking' does not exist"):
        check_labels(["pole_falls", "goal_seeking"], trace.labels)


def test_a_range_holds_from_its_lower_border_to_below_its_upper_one() -> None:
    label = VariableLabel(
        name="x", kind="spatial", definition="d", variable="x", at_least=1.0, below=2.0
    )
    values_SA = np.array([[0.5, 1.0], [1.5, 2.0], [9, 9]], np.float32)
    found = compute_labels(Trace(variables={"x": values_SA}, labels={"x": label}))
    np.testing.assert_array_equal(found["x"], [[False, True], [True, False]])


def test_labels_of_several_episodes_are_those_of_each() -> None:
    one = cart_pole(pole_angle=[0.1, 0.1, -0.1], pole_velocity=[1, -1, 1])
    other = cart_pole(pole_angle=[-0.1, 0.1, -0.1, 0], pole_velocity=[1, 1, -1, 1])
    names = tuple(one.labels)
    together = compute_labels_together([one, other], names)
    assert tuple(together) == names
    for name in names:
        each = [compute_labels(trace, [name])[name] for trace in (one, other)]
        np.testing.assert_array_equal(together[name], np.concatenate(each), err_msg=name)
    derived = "pole_falls@within2"  # what looks ahead ends with its episode
    each = [compute_labels(trace, [derived])[derived] for trace in (one, other)]
    np.testing.assert_array_equal(
        compute_labels_together([one, other], [derived])[derived], np.concatenate(each)
    )


# MiniGrid's memory task, played by hand: seed after seed, the way is a straight hallway to the east


def walk(seed: int, actions: list[int]) -> tuple[Trace, list[dict[str, bool]]]:
    """The trace of given actions, and beside it what MiniGrid itself says at every state."""
    world = GymnasiumFactory.load("gym:MiniGrid-MemoryS7-v0")(1)
    world.reset(0, map_seed=seed, sim_seed=seed, collect_facts=True)
    environment: Any = world._environments[0].unwrapped
    said = []

    def note() -> None:
        col, row = (int(part) for part in environment.agent_pos)
        cue = environment.grid.get(1, 2)
        choices = [(5, 1), (5, 5)]
        match = next(at for at in choices if environment.grid.get(*at).type == cue.type)
        said.append(
            {
                "cue_is_key": cue.type == "key",
                "cue_in_view": environment.agent_sees(1, 2),
                "choice_in_view": any(environment.agent_sees(*at) for at in choices),
                "match_is_north": match[1] == 1,
                "at_junction": (col, row) == (5, 3),
                "faces_east": environment.agent_dir == 0,
                "faces_south": environment.agent_dir == 1,
                "faces_west": environment.agent_dir == 2,
                "faces_north": environment.agent_dir == 3,
            }
        )

    note()
    for action in actions:
        world.step(np.array([action], np.int32))
        note()
        if world.done_R[0]:
            break
    trace = world.retire(0)
    assert trace is not None
    return trace, said


@pytest.mark.parametrize("seed", range(6))
def test_the_memory_task_is_told_as_minigrid_tells_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    actions = generator.choice([LEFT, RIGHT, FORWARD, FORWARD, TOGGLE], 60).tolist()
    trace, said = walk(seed, actions)
    for name in said[0]:
        found_S = trace.variables[name][:, 0] if name in trace.variables else None
        expected_S = np.array([state[name] for state in said])
        if found_S is not None:
            np.testing.assert_array_equal(found_S.astype(bool), expected_S, err_msg=name)
        true_T = compute_labels(trace, [name])[name][:, 0]
        np.testing.assert_array_equal(true_T, expected_S[:-1], err_msg=name)


def test_cues_and_matches_vary_between_seeds() -> None:
    """Otherwise the test above would not tell a label from a constant."""
    states = [walk(seed, [FORWARD])[1][0] for seed in range(6)]
    for name in ("cue_is_key", "match_is_north"):
        assert len({state[name] for state in states}) == 2, name


def test_the_right_turn_at_the_junction_is_rewarded() -> None:
    seed = 0
    _, said = walk(seed, [FORWARD])
    towards, away = (LEFT, RIGHT) if said[0]["match_is_north"] else (RIGHT, LEFT)
    to_junction = [FORWARD] * 6
    for turn, pays in ((towards, True), (away, False)):
        trace, _ = walk(seed, [*to_junction, turn, FORWARD, FORWARD])
        rewarded = compute_labels(trace, ["rewarded"])["rewarded"][:, 0]
        assert rewarded[-1] == pays
        assert not rewarded[:-1].any()
        assert trace.variables["reward"][-1, 0] == pytest.approx(0.97, abs=0.03) or not pays


def test_walls_do_not_count_as_moves_nor_other_actions_as_turns() -> None:
    trace, _ = walk(0, [LEFT, LEFT, LEFT, LEFT, PICKUP, *[FORWARD] * 7])
    assert truth(trace, "turns").startswith("11110")
    moved = int(trace.variables["agent_col"][-1, 0] - trace.variables["agent_col"][0, 0])
    assert truth(trace, "moves") == "00000" + "1" * moved + "0" * (7 - moved)
    assert moved < 7  # the wall behind the junction stops it
    assert set(MINIGRID_MEMORY.registry(245)) >= {"carrying", "moves", "turns"}
