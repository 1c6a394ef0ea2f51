"""A clip shows the first seed that an edit changes, before and after it, around the step where the two part."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.arms import Subject
from cluster.clips import ShowEdits
from cluster.store import Store
from cluster.studio import Studio
from interp.concepts.windows import window_from_json
from interp.records import Episode, Window
from interp.rollout import Capture, Trial, roll
from interp.steering.arms import Arm
from interp.worlds.gymnasium import GymnasiumFactory
from tests.fakes.planted_policy import (
    FACTORY,
    GENERATOR,
    LABELS,
    ORE,
    STANDS_STILL,
    experiment,
)

pytestmark = pytest.mark.mettagrid

SEEDS = (20_001, 20_002, 20_006, 20_007)
MARGIN_STEPS = 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("clips") / "store")


@pytest.fixture(scope="module")
def task(store: Store) -> ShowEdits:
    """Clips of a concept that the head reads, weakened a little, and of one that it does not, raised."""
    asked = experiment(store, STANDS_STILL, (GENERATOR, ORE))
    generator, ore = asked.latents
    return ShowEdits(
        subject=asked.subject,
        claimed=(
            (ore, Arm(mode="add", dose=1.0, edit=ore.edit("add", 1.0))),
            (generator, Arm(mode="ablate", dose=0.02, edit=generator.edit("ablate", 0.02))),
        ),
        env_seeds=SEEDS,
        registration_id="g-0",
    )


@pytest.fixture(scope="module")
def row(store: Store, task: ShowEdits) -> dict:
    """The one clip that there is: without effect there is none."""
    (row,) = task.run(Studio(store)).to_pylist()
    return row


@pytest.fixture(scope="module")
def pairs(store: Store, task: ShowEdits) -> list[tuple[Episode, Episode]]:
    """The same episodes played one by one, unedited and along the arm that changes something."""
    policy, world = Studio(store).policy(task.subject.policy_id), FACTORY(1)
    _, arm = task.claimed[1]

    def play(seed: int, edits: tuple) -> Episode:
        (episode,) = roll(policy, world, [Trial(env_seed=seed, edits=edits)], Capture(facts=True))
        return episode

    return [(play(seed, ()), play(seed, (arm.edit,))) for seed in SEEDS]


def windows(row: dict) -> tuple[Window, Window]:
    return window_from_json(row["before"]), window_from_json(row["after"])


def test_an_arm_that_changes_nothing_has_no_clip(task: ShowEdits, row: dict) -> None:
    latent, _ = task.claimed[1]
    assert (row["concept"], row["arm"]) == (latent.concept, "ablate 0.02 at lstm.h")


def test_it_is_of_the_first_seed_on_which_an_action_changes(
    row: dict, pairs: list[tuple[Episode, Episode]]
) -> None:
    differs = [
        np.flatnonzero((before.action_TA != after.action_TA).any(1)) for before, after in pairs
    ]
    first = next(number for number, steps in enumerate(differs) if len(steps))
    assert first > 0, "a first seed that changed anyway would show nothing"
    assert row["env_seed"] == SEEDS[first]
    assert row["divergence_step"] == differs[first][0]


def test_both_windows_are_of_the_same_agent_and_steps_around_where_they_part(
    row: dict, pairs: list[tuple[Episode, Episode]]
) -> None:
    before, after = windows(row)
    at = row["divergence_step"]
    base, edited = pairs[SEEDS.index(row["env_seed"])]
    np.testing.assert_array_equal(before.t, after.t)
    assert before.t[0] == max(0, at - MARGIN_STEPS)
    assert before.t[-1] == min(base.num_steps - 1, at + MARGIN_STEPS)
    assert (before.agent, before.peak_t, before.env_seed) == (after.agent, at, row["env_seed"])
    for window, episode in ((before, base), (after, edited)):
        np.testing.assert_array_equal(window.action_T, episode.action_TA[window.t, window.agent])
        np.testing.assert_array_equal(window.reward_T, episode.reward_TA[window.t, window.agent])
    differs_T = before.action_T != after.action_T
    assert differs_T[before.t == at].all()
    assert not differs_T[before.t < at].any()
    np.testing.assert_array_equal(  # the states are the same until the action that differs was taken
        before.position_TA2[before.t <= at], after.position_TA2[after.t <= at]
    )


def test_the_latent_and_its_label_are_shown_as_they_were(row: dict) -> None:
    """The latent was planted to fire where a generator is within two cells."""
    before, after = windows(row)
    assert before.label == after.label == LABELS[GENERATOR]
    assert 0 < before.label_T.sum() < len(before.label_T)
    np.testing.assert_array_equal(before.latent_T > 0, before.label_T)
    at = before.t == row["divergence_step"]
    assert after.latent_T[at] == pytest.approx(before.latent_T[at] * 0.98, rel=0.005)


def test_the_answer_is_kept_and_is_of_this_registration(
    store: Store, task: ShowEdits, row: dict
) -> None:
    found = task.question.find(store)
    assert found is not None
    assert found.to_pylist() == [row]
    assert replace(task, registration_id="g-1").question.find(store) is None
    assert replace(task, env_seeds=SEEDS[1:]).question.find(store) is None


def test_a_world_without_a_map_is_refused() -> None:
    factory = GymnasiumFactory.load("gym:CartPole-v1?mask=1,3&max_steps=4")
    subject = Subject(policy_id="p-0", factory=factory, labels=())
    with pytest.raises(ValueError, match=r"world gym:CartPole-v1\S* has no map to draw clips on"):
        ShowEdits(subject=subject, claimed=(), env_seeds=SEEDS, registration_id="g-0")
