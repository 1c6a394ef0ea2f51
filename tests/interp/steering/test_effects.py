"""What is made of the outcomes of all arms: differences, percentiles, and the refusal of a broken pairing."""

from dataclasses import replace

import numpy as np
import pytest

from interp.policies.uniform import UniformPolicy
from interp.records import Episode, Facts
from interp.stats.bootstrap import bootstrap_mean
from interp.stats.multiplicity import benjamini_hochberg
from interp.stats.sign_flip import paired_sign_flip
from interp.steering.arms import SteeredLatent, SteeringConfig, arms
from interp.steering.diagnosis import Diagnosis
from interp.steering.effects import ConceptTrials, effects_table
from interp.steering.trials import (
    NoOpViolationError,
    _check_no_op,
    outcome_names,
    outcome_of,
    play_arms,
)
from interp.worlds.world import WorldSpec

EPISODES = 12
CONFIG = SteeringConfig(add_doses=(-1.0, 0.0, 1.0), clamp_doses=(0.0, 1.0), ablate_doses=())
LATENT = SteeredLatent(
    concept="combat:3",
    label="combat",
    latent=3,
    site="lstm.h",
    scale=1.0,
    write_D=np.ones(4, np.float32),
    read_D=np.ones(4, np.float32),
    read_bias=0.0,
    threshold=0.0,
)
ARMS = tuple(arms(LATENT, CONFIG, seed=0))
OUTCOMES = outcome_names(["combat"])


def trials(seed: int = 0, latent: SteeredLatent = LATENT) -> ConceptTrials:
    """Noise everywhere, but dose 0 is as the unedited rollout; outcomes are return and rate of combat."""
    outcome_XEO = np.random.default_rng(seed).standard_normal((len(ARMS) + 1, EPISODES, 2))
    for number, arm in enumerate(ARMS, start=1):
        if arm.dose == 0:
            outcome_XEO[number] = outcome_XEO[0]
    return ConceptTrials(latent=latent, arms=ARMS, outcome_names=OUTCOMES, outcome_XEO=outcome_XEO)


def table(*concepts: ConceptTrials) -> list[dict]:
    return effects_table(concepts, policy_id="p-1", policy_name="forage", seed=0).to_pylist()


def row(rows: list[dict], mode: str, dose: float, outcome: str) -> dict:
    (found,) = (r for r in rows if (r["mode"], r["dose"], r["outcome"]) == (mode, dose, outcome))
    return found


def own(mode: str, dose: float) -> int:
    """Place of an arm of the latent's own direction in `outcome_XEO`."""
    return 1 + next(
        number
        for number, arm in enumerate(ARMS)
        if (arm.mode, arm.dose, arm.rival) == (mode, dose, None)
    )


def controls(mode: str, size: float) -> list[int]:
    return [
        number
        for number, arm in enumerate(ARMS, start=1)
        if arm.rival is not None and (arm.mode, arm.dose) == (mode, size)
    ]


def test_outcomes_are_the_return_and_the_rate_of_every_label() -> None:
    assert OUTCOMES == ("return", "combat")


def test_every_dose_and_outcome_has_one_row_and_random_directions_have_none() -> None:
    keys = [(r["mode"], r["dose"], r["outcome"]) for r in table(trials())]
    assert keys == [
        (mode, dose, outcome)
        for mode, doses in (("add", (-1, 0, 1)), ("clamp", (0, 1)))
        for dose in doses
        for outcome in OUTCOMES
    ]


def test_differences_are_paired_within_episodes() -> None:
    concept = trials()
    found = row(table(concept), "add", -1, "combat")
    base_E, edited_E = concept.outcome_XEO[[0, own("add", -1)], :, 1]
    difference_E1 = (edited_E - base_E)[:, None]
    interval = bootstrap_mean(difference_E1, seed=0)
    assert found["base"] == pytest.approx(base_E.mean())
    assert found["edited"] == pytest.approx(edited_E.mean())
    assert found["difference"] == pytest.approx(difference_E1.mean())
    assert (found["lo"], found["hi"]) == pytest.approx((interval.lo[0], interval.hi[0]))
    assert found["p_value"] == paired_sign_flip(difference_E1, seed=0)[0]
    assert found["n_episodes"] == EPISODES


def test_what_all_episodes_share_cancels() -> None:
    concept = trials()
    shifted = replace(concept, outcome_XEO=concept.outcome_XEO + 100 * np.arange(EPISODES)[:, None])
    for before, after in zip(table(concept), table(shifted), strict=True):
        for name in ("difference", "lo", "hi", "p_value", "q_value"):
            assert after[name] == pytest.approx(before[name], abs=1e-9)


def test_dose_zero_is_exactly_nothing_and_is_no_test() -> None:
    rows = table(trials(0), trials(1, replace(LATENT, concept="combat:4", latent=4)))
    for found in rows:
        if found["dose"] == 0:
            assert (found["difference"], found["lo"], found["hi"]) == (0, 0, 0)
            assert (found["p_value"], found["q_value"]) == (1, 1)
            assert np.isnan(found["random_direction_percentile"])
    tested = [found for found in rows if found["dose"] != 0]
    assert len(tested) == 2 * 3 * 2
    np.testing.assert_array_equal(
        [found["q_value"] for found in tested],
        benjamini_hochberg(np.array([found["p_value"] for found in tested])),
    )


@pytest.mark.parametrize("dose", [-1.0, 1.0])  # both signs share the directions of their size
def test_the_percentile_is_the_share_of_random_directions_that_move_less(dose) -> None:
    concept = trials()
    outcome_XEO = concept.outcome_XEO.copy()
    base_EO = outcome_XEO[0]
    outcome_XEO[own("add", dose)] = base_EO + np.array([-0.5, 0.5])
    sizes = np.linspace(0.01, 0.99, 20) * np.where(np.arange(20) % 2, 1, -1)  # half go down
    for number, size in zip(controls("add", 1.0), sizes, strict=True):
        outcome_XEO[number] = base_EO + size
    outcome_XEO[controls("clamp", 1.0)] = base_EO + 9  # of another mode: not compared with
    rows = table(replace(concept, outcome_XEO=outcome_XEO))
    for outcome in OUTCOMES:
        assert row(rows, "add", dose, outcome)["random_direction_percentile"] == 50


def test_an_effect_as_large_as_all_random_ones_is_in_their_middle() -> None:
    concept = trials()
    outcome_XEO = concept.outcome_XEO.copy()
    outcome_XEO[[own("add", 1.0), *controls("add", 1.0)]] = outcome_XEO[0]  # nothing moves anything
    rows = table(replace(concept, outcome_XEO=outcome_XEO))
    assert row(rows, "add", 1, "return")["random_direction_percentile"] == 50


def episode(**changes) -> Episode:
    steps, agents = 4, 2
    whole = Episode(
        env_seed=20_003,
        index=1,
        action_TA=np.zeros((steps, agents), np.int32),
        reward_TA=np.arange(steps * agents, dtype=np.float32).reshape(steps, agents),
        done_TA=np.zeros((steps, agents), np.bool_),
        captured_t=np.arange(steps, dtype=np.int32),
    )
    return replace(whole, **changes)


NO_OP = next(arm for arm in ARMS if arm.dose == 0)


def test_two_equal_episodes_are_no_violation() -> None:
    _check_no_op(episode(), episode(index=2), NO_OP)


@pytest.mark.parametrize("name", ["action_TA", "reward_TA"])
def test_a_dose_of_zero_that_changes_an_episode_stops_the_run(name) -> None:
    altered = getattr(episode(), name).copy()
    altered[2, 1] += 1
    with pytest.raises(NoOpViolationError, match=rf"dose 0 of add on lstm.h changed {name}.*20003"):
        _check_no_op(episode(), episode(**{name: altered}), NO_OP)


def facts() -> Facts:
    """Two agents in the open for 4 steps; a wall is next to the first."""
    map_HW = np.zeros((7, 7), np.uint8)
    map_HW[0] = 1
    return Facts(
        map_HW=map_HW,
        object_names=("empty", "wall"),
        position_SA2=np.tile(np.array([[1, 3], [5, 3]], np.int16), (5, 1, 1)),
        inventory_SAI=np.zeros((5, 2, 0), np.int16),
        resource_names=(),
        counter_SAN=np.zeros((5, 2, 0), np.float32),
        counter_names=(),
        team_A=np.zeros(2, np.int16),
        max_steps=4,
        view_radius=(5, 5),
    )


def test_an_outcome_is_the_mean_return_and_the_share_of_agent_steps() -> None:
    outcome_O = outcome_of(episode(facts=facts()), ["wall_proximity", "combat"])
    assert outcome_O.tolist() == [(12 + 16) / 2, 0.5, 0]


class Nowhere:
    """A world in name only: `roll` is faked below."""

    spec = WorldSpec(
        name="nowhere",
        num_agents=2,
        max_steps=4,
        action_names=("noop",),
        observation_shape=(1,),
        observation_dtype="uint8",
    )
    num_worlds = 1
    observation_R = np.zeros((2, 1), np.uint8)
    reward_R = np.zeros(2, np.float32)
    done_R = np.zeros(2, np.bool_)

    def reset(self, world: int, *, map_seed: int, sim_seed: int, collect_facts: bool) -> None: ...

    def step(self, action_R: np.ndarray) -> None: ...

    def retire(self, world: int) -> Facts | None: ...


def play(monkeypatch, *, broken_dose_zero: bool) -> np.ndarray:
    """Outcomes [arms + 1, 2, 1] where the reward of every step is the dose plus a thousandth of the seed."""

    def fake_roll(policy, world, trials, capture):
        assert capture.facts
        for index, trial in reversed(list(enumerate(trials))):  # episodes end in any order
            dose = sum(edit.dose for edit in trial.edits)
            if broken_dose_zero and trial.edits and dose == 0:
                dose = 1e-3
            reward_TA = np.full((4, 2), dose + trial.env_seed / 1000, np.float32)
            yield episode(env_seed=trial.env_seed, index=index, reward_TA=reward_TA, facts=facts())

    monkeypatch.setattr("interp.steering.trials.roll", fake_roll)
    return play_arms(UniformPolicy(("noop",)), Nowhere(), ARMS, [7, 9], labels=[])


def test_outcomes_lie_under_their_arm_and_seed_whatever_the_order_of_arrival(monkeypatch) -> None:
    outcome_XEO = play(monkeypatch, broken_dose_zero=False)
    dose_X = np.array([0, *(arm.dose for arm in ARMS)])
    expected_XE = 4 * (dose_X[:, None] + np.array([7, 9]) / 1000)
    np.testing.assert_allclose(outcome_XEO[..., 0], expected_XE, rtol=1e-6)


def test_no_outcome_is_reported_when_dose_zero_is_not_nothing(monkeypatch) -> None:
    with pytest.raises(NoOpViolationError, match="no effect is reported"):
        play(monkeypatch, broken_dose_zero=True)


def test_every_arm_but_dose_zero_says_how_it_works_and_every_outcome_how_specific_it_is() -> None:
    """Effects of 3 and 1 standard deviations: 3 of specificity on the one outcome, 1/3 on the other."""
    one = trials()
    base_EO = one.outcome_XEO[0]
    sd_O = base_EO.std(0, ddof=1)
    one.outcome_XEO[own("add", 1.0)] = base_EO + np.array([3.0, -1.0]) * sd_O
    columns = {name: np.linspace(0, 1, 10) for name in Diagnosis.__slots__}
    place = {n: Diagnosis(**columns) for n, arm in enumerate(ARMS) if not arm.rival and arm.dose}
    rows = table(replace(one, diagnoses=place))
    assert row(rows, "add", 1.0, OUTCOMES[0])["specificity"] == pytest.approx(3)
    assert row(rows, "add", 1.0, OUTCOMES[1])["specificity"] == pytest.approx(1 / 3)
    for found in rows:
        assert found["off_manifold"] == (pytest.approx(0.5) if found["dose"] else None)
        assert found["n_diagnosed"] == (10 if found["dose"] else None)
    plain = table(one)
    for with_diagnosis, without in zip(rows, plain, strict=True):
        shared = ("difference", "lo", "hi", "p_value", "q_value", "random_direction_percentile")
        np.testing.assert_equal(
            [with_diagnosis[name] for name in shared], [without[name] for name in shared]
        )
