"""The strongest responses are found where they were, and a window survives its journey through JSON."""

from dataclasses import fields

import numpy as np
import pytest

from interp.concepts.tracks import Tracks
from interp.concepts.windows import Peak, cut_window, peaks, window_from_json, window_to_json
from interp.records import Episode, Facts, Window

STEPS, AGENTS = 30, 2


def a_window(peak_t: int, margin_steps: int = 20) -> Window:
    """Of agent 1; every array tells the step that it belongs to."""
    state_S, t = np.arange(STEPS + 1), np.arange(STEPS)
    facts = Facts(
        map_HW=np.arange(6, dtype=np.uint8).reshape(2, 3),
        object_names=("empty", "wall"),
        position_SA2=np.broadcast_to(state_S[:, None, None], (STEPS + 1, AGENTS, 2)).astype(
            np.int16
        ),
        inventory_SAI=np.stack([0 * state_S, state_S], 1)[..., None].astype(np.int16),
        resource_names=("ore",),
        counter_SAN=np.zeros((STEPS + 1, AGENTS, 0), np.float32),
        counter_names=(),
        team_A=np.array([0, 1], np.int16),
        max_steps=STEPS,
        view_radius=(5, 5),
    )
    episode = Episode(
        env_seed=7,
        index=0,
        action_TA=np.stack([0 * t, t], 1).astype(np.int32),
        reward_TA=np.stack([0 * t, t], 1).astype(np.float32),
        done_TA=np.zeros((STEPS, AGENTS), np.bool_),
        captured_t=t.astype(np.int32),
        facts=facts,
    )
    return cut_window(
        episode,
        Peak(env_seed=7, agent=1, t=peak_t, value=1.5),
        concept="altar_soon:3",
        label="altar_soon",
        latent=3,
        latent_T=t.astype(np.float32) / 4,
        label_T=t % 2 == 0,
        policy_name="forage-s0",
        world="forage",
        action_names=["noop", "move"],
        margin_steps=margin_steps,
    )


def tracks(num_episodes: int, num_samples: int) -> Tracks:
    return Tracks(
        env_seed_E=np.arange(100, 100 + num_episodes),
        activation_ESD=np.zeros((num_episodes, num_samples, 1), np.float32),
        label_ESL=np.zeros((num_episodes, num_samples, 0), np.bool_),
        mask_ES=np.ones((num_episodes, num_samples), np.bool_),
        label_names=(),
        num_agents=AGENTS,
    )


def test_peaks_are_the_strongest_of_each_episode_strongest_first() -> None:
    latent_ES = np.zeros((4, 6), np.float32)
    latent_ES[0, 3] = 1.0  # step 1, agent 1
    latent_ES[2, [1, 4]] = 2.0, 3.0  # step 2, agent 0: one peak per episode
    latent_ES[3, 0] = 0.5
    found = peaks(tracks(4, 6), latent_ES, num=3, stride_steps=4)
    assert found == [
        Peak(env_seed=102, agent=0, t=8, value=3.0),
        Peak(env_seed=100, agent=1, t=4, value=1.0),
        Peak(env_seed=103, agent=0, t=0, value=0.5),
    ]


def test_silent_episodes_have_no_peak() -> None:
    assert peaks(tracks(4, 6), np.zeros((4, 6), np.float32), num=3) == []


@pytest.mark.parametrize(
    ("peak_t", "expected"), [(15, range(12, 19)), (1, range(5)), (29, range(26, 30))]
)
def test_a_window_is_cut_around_its_peak_within_the_episode(peak_t, expected) -> None:
    window = a_window(peak_t, margin_steps=3)
    steps = list(expected)
    assert window.t.tolist() == steps
    assert window.peak_t == peak_t
    # what belongs to the focal agent is agent 1's, and all of it is of the same steps
    for array in (window.action_T, window.reward_T, window.inventory_TI[:, 0], window.latent_T * 4):
        assert array.tolist() == steps
    assert window.position_TA2[:, 0, 0].tolist() == steps
    assert window.label_T.tolist() == [t % 2 == 0 for t in steps]


def test_json_gives_back_the_same_window() -> None:
    window = a_window(3)
    again = window_from_json(window_to_json(window))
    for field in fields(Window):
        before, after = getattr(window, field.name), getattr(again, field.name)
        np.testing.assert_array_equal(before, after, err_msg=field.name)
        assert type(before) is type(after)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype, field.name
