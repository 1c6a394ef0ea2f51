"""A latent is named by what is seen where it peaks, and by nothing if nothing is."""

import numpy as np
import pytest

from interp.concepts.naming import (
    NOTHING,
    NamingConfig,
    choose_moments,
    contrast,
    describe,
    joined,
    label_items,
    name_of,
    token_items,
)
from interp.worlds.world import TokenVocabulary

EPISODES, STEPS, AGENTS, TOKENS = 24, 40, 2, 6
CONFIG = NamingConfig(num_resamples=300)
VOCABULARY = TokenVocabulary(
    window_rows=5,
    window_cols=5,
    num_tokens=TOKENS,
    features={"tag": 0, "inv:ore": 1, "noise": 2},
    tags=("agent", "wall", "altar"),
    tells_position=False,
)
CENTRE = 2 << 4 | 2
ALTAR = (0, 2)


def seen(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[E, S, N, 3] observations, and where an altar stands right north of the agent.

    It is in one of eight cells around, or out of view; a wall is always somewhere; noise has any of four values.
    """
    generator = np.random.default_rng(seed)
    shape = (EPISODES, STEPS * AGENTS)
    token = np.full((*shape, TOKENS, 3), 0xFF, np.uint8)
    around = np.array([r << 4 | c for r in (1, 2, 3) for c in (1, 2, 3) if (r, c) != (2, 2)])
    place = np.append(around, 0xFF)[generator.integers(0, 9, shape)]
    token[:, :, 0] = np.stack([place, np.zeros(shape), np.full(shape, 2)], -1)
    token[:, :, 1] = np.stack(
        [generator.choice(around, shape), np.zeros(shape), np.ones(shape)], -1
    )
    noise = generator.integers(0, 4, shape)
    token[:, :, 2] = np.stack([np.full(shape, CENTRE), np.full(shape, 2), noise], -1)
    token[:, :, 3] = np.stack([np.full(shape, 0xFE), np.ones(shape), noise // 2], -1)
    token[token[..., 0] == 0xFF] = 0xFF
    return token, place == (1 << 4 | 2)


def found_for(value_ES: np.ndarray, token: np.ndarray, seed: int = 0):
    mask_ES = np.ones(value_ES.shape, np.bool_)
    moments = choose_moments(
        value_ES.astype(np.float32), mask_ES, num_agents=AGENTS, config=CONFIG, seed=seed
    )
    items = token_items(token[moments.episode_W, moments.sample_W], VOCABULARY)
    return contrast(moments, items, config=CONFIG, seed=seed)


def test_a_latent_that_fires_where_a_thing_is_has_the_name_of_the_thing_and_its_place() -> None:
    token, fires = seen()
    found = found_for(fires * (1 + np.random.default_rng(1).random(fires.shape)), token)
    assert name_of(found) == "altar 1 north"
    (only,) = found.stand_outs  # next to it and in view are the same topic
    assert only.share_peaks == 1
    assert only.share_others < 0.3
    assert only.lo > np.log(2) and only.q < 0.01
    assert describe(found).startswith("Peaks with altar 1 north (at 100% of the strong moments")


def test_what_is_the_same_in_all_places_is_named_without_a_place() -> None:
    token, _ = seen()
    near = (token[:, :, 0, 0] != 0xFF) & np.isin(token[:, :, 0, 0], [0x12, 0x21, 0x23, 0x32])
    assert name_of(found_for(near, token)) == "altar next to it"


def test_a_latent_of_other_episodes_gets_no_name() -> None:
    token, fires = seen()
    value_ES = fires * (1 + np.random.default_rng(1).random(fires.shape))
    for turn in (1, 5, 11):
        found = found_for(np.roll(value_ES, turn, axis=0), token)
        assert found.num_items > 20
        assert name_of(found) == NOTHING
        assert describe(found).startswith(f"Nothing stands out among {found.num_items} items")


def test_names_are_given_by_chance_no_more_often_than_promised() -> None:
    """A latent of noise over and over; 5 % of 60 are 3, and 9 or more of them would come once in 400 times."""
    token, _ = seen()
    generator = np.random.default_rng(3)
    named = 0
    for seed in range(60):
        value_ES = generator.random((EPISODES, STEPS * AGENTS)) * (
            generator.random((EPISODES, STEPS * AGENTS)) < 0.1
        )
        named += name_of(found_for(value_ES, token, seed)) != NOTHING
    assert named < 9


def test_a_latent_of_few_episodes_is_too_rare_to_be_named() -> None:
    token, fires = seen()
    fires[9:] = False
    found = found_for(fires, token)
    assert (found.num_items, found.num_episodes) == (0, 9)
    assert describe(found) == "Too rare to say what stands out: strong moments in 9 episodes."


def test_moments_are_the_strongest_apart_and_as_many_others_of_the_same_episode() -> None:
    value_ES = np.zeros((2, 40), np.float32)
    value_ES[0, [4, 5, 6, 20]] = [3, 1, 2, 0.5]  # agent 0: steps 2 and 3, 10; agent 1: step 2
    moments = choose_moments(
        value_ES, np.ones((2, 40), np.bool_), num_agents=2, config=CONFIG, seed=0
    )
    assert moments.episode_W.tolist() == [0] * 6
    assert moments.sample_W[moments.is_peak_W].tolist() == [4, 5, 20]
    assert set(moments.sample_W[~moments.is_peak_W]).isdisjoint({4, 5, 20})
    again = choose_moments(
        value_ES, np.ones((2, 40), np.bool_), num_agents=2, config=CONFIG, seed=0
    )
    np.testing.assert_array_equal(moments.sample_W, again.sample_W)


def test_tokens_are_named_as_a_person_would_point_at_them() -> None:
    one = np.full((1, 5, 3), 0xFF, np.uint8)
    one[0, 0] = (0 << 4 | 4, 0, 1)  # two rows up, two columns right
    one[0, 1] = (CENTRE, 1, 3)
    one[0, 2] = (0xFE, 1, 0)
    one[0, 3] = (3 << 4 | 2, 9, 7)
    assert set(token_items(one, VOCABULARY).names) == {
        "wall 2 north 2 east", "wall in view", "inv:ore=3 on itself", "inv:ore=0",
        "feature 9=7 1 south", "feature 9=7 next to it", "feature 9=7 in view",
    }  # fmt: skip


def test_labels_name_what_no_token_tells() -> None:
    generator = np.random.default_rng(0)
    label_ESL = generator.random((EPISODES, STEPS * AGENTS, 2)) < 0.3
    value_ES = (label_ESL[..., 0] & ~label_ESL[..., 1]).astype(np.float32)
    moments = choose_moments(
        value_ES, np.ones(value_ES.shape, np.bool_), num_agents=AGENTS, config=CONFIG, seed=0
    )
    label_WL = label_ESL[moments.episode_W, moments.sample_W]
    items = joined([label_items(label_WL, np.ones_like(label_WL), ["combat", "landmark"])])
    found = contrast(moments, items, config=CONFIG, seed=0)
    assert [one.item for one in found.stand_outs] == ["combat", "not landmark"]
    unknown = label_items(label_WL, np.zeros_like(label_WL), ["combat", "landmark"])
    assert not unknown.present_WM.any()


def test_both_kinds_of_moments_count_the_same_in_every_episode() -> None:
    """An episode in which everything is full of altars must not name a latent that fires in it."""
    token, _ = seen()
    value_ES = np.random.default_rng(0).random((EPISODES, STEPS * AGENTS))
    value_ES[12:] = 0
    token[:12, :, 0] = (1 << 4 | 2, 0, 2)
    found = found_for(value_ES, token)
    assert not any("altar" in one.item for one in found.stand_outs)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_episodes 5: at least 10"):
        NamingConfig(min_episodes=5)
    with pytest.raises(ValueError, match=r"max_q_value 1\.5: between 0 and 1"):
        NamingConfig(max_q_value=1.5)
