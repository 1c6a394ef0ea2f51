"""Latents that fire together become one concept, and what it looks like around its onsets is told."""

import numpy as np
import pytest

from interp.concepts.coactivation import peri_event, shape_name
from interp.concepts.discovery import (
    DiscoveryConfig,
    cluster_activation,
    find_clusters,
    shapes,
)

EPISODES, STEPS, AGENTS = 20, 60, 2
CONFIG = DiscoveryConfig(profile_steps=4)
MASK_ES = np.ones((EPISODES, STEPS * AGENTS), np.bool_)


def events(generator: np.random.Generator, response: list[float], apart: int = 15) -> np.ndarray:
    """[E, S]: the response, one value a step, follows each event; events of an agent do not overlap."""
    value_ETA = np.zeros((EPISODES, STEPS, AGENTS), np.float32)
    for e in range(EPISODES):
        for agent in range(AGENTS):
            t = int(generator.integers(0, 20))
            while t + len(response) <= STEPS:
                value_ETA[e, t : t + len(response), agent] = response
                t += int(generator.integers(apart, apart + 10))
    return value_ETA.reshape(EPISODES, -1)


def latents() -> np.ndarray:
    """0 and 2 are one event, at its first and second step; 1 and 3 are events of their own."""
    generator = np.random.default_rng(0)
    first_ES = events(generator, [2, 0, 0, 0, 0, 0, 0, 0])
    second_ES = np.roll(first_ES, AGENTS, axis=1)
    long_ES = events(generator, [1] * 8)
    other_ES = events(generator, [3, 0, 0, 0])
    return np.stack([first_ES, long_ES, second_ES, other_ES], -1)


def test_latents_that_take_turns_in_one_event_are_one_cluster() -> None:
    clusters = find_clusters(latents(), MASK_ES, num_agents=AGENTS, config=CONFIG)
    assert [cluster.latents for cluster in clusters] == [(0, 2), (1,), (3,)]
    assert clusters[0].mean_phi > 0.5
    assert np.isnan(clusters[1].mean_phi)
    value_ESC = cluster_activation(latents(), clusters, np.array([2, 1, 4, 3], np.float32))
    pair = latents()[..., [0, 2]] / [2, 4]
    np.testing.assert_allclose(value_ESC[..., 0], pair.max(-1))


@pytest.mark.parametrize(("nearby_steps", "number"), [(2, 2), (6, 1)])
def test_nearby_is_told_in_steps_whatever_the_stride(nearby_steps, number) -> None:
    """The second latent is on 6 steps after the first, which are 3 samples of every second step."""
    first_ES = events(np.random.default_rng(0), [1.0] * 2 + [0.0] * 10, apart=40)
    both_ESF = np.stack([first_ES, np.roll(first_ES, 6 * AGENTS, axis=1)], -1)
    strided = both_ESF.reshape(EPISODES, STEPS, AGENTS, 2)[:, ::2].reshape(EPISODES, -1, 2)
    clusters = find_clusters(
        strided,
        MASK_ES[:, : strided.shape[1]],
        num_agents=AGENTS,
        config=DiscoveryConfig(nearby_steps=nearby_steps),
        stride_steps=2,
    )
    assert len(clusters) == number


def test_concepts_of_one_shape_are_told_from_those_of_another() -> None:
    value_ESF = latents()
    found = shapes(value_ESF, MASK_ES, num_agents=AGENTS, config=CONFIG)
    assert [shape.name for shape in found] == ["pulse", "sustained", "pulse", "pulse"]
    assert [shape.group for shape in found] == [0, 1, 0, 0]
    assert found[1].profile_P == pytest.approx([0] * 4 + [1] * 5)


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        ([0, 0, 1, 0, 0], "pulse"),
        ([0, 0, 1, 1, 1], "sustained"),
        ([0, 0, 1, 0.8, 0.2, 0.1, 0], "silent"),
        ([0, 0, 0, 1, 0.9, 0.8, 0.2], "fading"),
        ([0, 0, 1, 2, 3], "ramp"),
    ],
)
def test_shapes_have_names_by_rule(profile, name) -> None:
    if name == "silent":
        profile = [0] * 7
    assert shape_name(np.array(profile, np.float32)) == name


def test_onsets_near_the_ends_of_an_episode_are_not_averaged() -> None:
    value_ESF = np.zeros((1, 20, 1), np.float32)
    value_ESF[0, [0, 9, 10, 19], 0] = [5, 1, 3, 7]
    mask_ES = np.ones((1, 20), np.bool_)
    profile_FP = peri_event(value_ESF, mask_ES, num_agents=1, steps=2)
    assert profile_FP[0].tolist() == [0, 0, 1, 3, 0]
    silent = peri_event(value_ESF * 0, mask_ES, num_agents=1, steps=2)
    assert not silent.any()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_phi 0\.0: above 0, at most 1"):
        DiscoveryConfig(min_phi=0.0)
    with pytest.raises(ValueError, match=r"profile_steps 1: at least 2"):
        DiscoveryConfig(profile_steps=1)
