"""A network of another time in today's worlds: what it sees, and what it may do."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.policies.translation import (
    GLOBAL,
    NEVER,
    PADDING,
    TokenLanguage,
    Translation,
)
from interp.worlds.world import TokenVocabulary, WorldSpec

LANGUAGE = TokenLanguage(
    num_tokens=4,
    num_actions=4,
    window_rows=3,
    window_cols=3,
    features={"inv:heart": 7, "inv:ore_red": 2, "hp": 3},
    actions=("attack_0", "noop_0", "rotate_0", "rotate_3"),
)
PAD = (PADDING, PADDING, PADDING)


def world(features: Mapping[str, int], *, window: int = 3) -> WorldSpec:
    return WorldSpec(
        name="test",
        num_agents=1,
        max_steps=8,
        action_names=("noop", "move_north", "move_south", "move_east"),
        observation_shape=(5, 3),
        observation_dtype="uint8",
        vocabulary=TokenVocabulary(
            window_rows=window,
            window_cols=window,
            num_tokens=5,
            features=features,
            tags=(),
            tells_position=False,
        ),
    )


FEATURES = {"tag": 0, "inv:heart": 1, "inv:ore": 2, "inv:hp": 3}


def tokens(*given: tuple[int, int, int]) -> np.ndarray:
    return np.array([[*given, *[PAD] * (5 - len(given))]], np.uint8)


def test_features_go_by_name_whatever_their_bytes() -> None:
    first = Translation.between(LANGUAGE, world(FEATURES))
    other = Translation.between(LANGUAGE, world({"inv:hp": 0, "inv:ore": 1, "inv:heart": 9}))
    seen = first.tokens(tokens((0x11, 1, 5), (0x12, 2, 6), (0x10, 3, 7)))
    assert seen[0].tolist() == [[0x11, 7, 5], [0x12, 2, 6], [0x10, 3, 7], list(PAD)]
    again = other.tokens(tokens((0x11, 9, 5), (0x12, 1, 6), (0x10, 0, 7)))
    np.testing.assert_array_equal(seen, again)


def test_what_the_network_never_knew_is_left_out_and_the_rest_moves_up() -> None:
    seen = Translation.between(LANGUAGE, world(FEATURES)).tokens(
        tokens((0x11, 0, 9), (0x12, 1, 4), (0x00, 0, 9), (0x22, 2, 3))
    )
    assert seen[0].tolist() == [[0x12, 7, 4], [0x22, 2, 3], list(PAD), list(PAD)]


def test_windows_are_centred_and_what_holds_everywhere_is_told_in_the_middle() -> None:
    seen = Translation.between(LANGUAGE, world(FEATURES, window=5)).tokens(
        tokens((GLOBAL, 1, 1), (0x22, 1, 2), (0x33, 1, 3), (0x00, 1, 4), (0x14, 1, 5))
    )
    assert seen[0].tolist() == [[0x11, 7, 1], [0x11, 7, 2], [0x22, 7, 3], list(PAD)]


def test_tokens_are_cut_or_padded_to_what_the_network_reads() -> None:
    plain = TokenLanguage(num_tokens=2, num_actions=4)
    given = tokens((0xFE, 200, 1), (0x99, 201, 2), (0x11, 1, 3))
    assert Translation.between(plain, world(FEATURES)).tokens(given)[0].tolist() == [
        [0xFE, 200, 1],
        [0x99, 201, 2],
    ]
    longer = replace(plain, num_tokens=7)
    seen = Translation.between(longer, world(FEATURES)).tokens(given)
    np.testing.assert_array_equal(seen[:, :5], given)
    assert (seen[:, 5:] == PADDING).all()


def test_what_numbers_things_of_a_world_is_not_carried_to_another() -> None:
    features = {"tag": 0, "last_action": 1, "inv:heart": 2}
    language = replace(LANGUAGE, features=features)
    assert Translation.between(language, world(features)).features == {"inv:heart": "inv:heart"}


def test_a_network_of_early_days_hears_in_the_middle_what_holds_everywhere() -> None:
    early = TokenLanguage(num_tokens=2, num_actions=4, is_global_central=True)
    seen = Translation.between(early, world(FEATURES)).tokens(tokens((GLOBAL, 9, 1), (0x20, 9, 2)))
    assert seen[0].tolist() == [[0x11, 9, 1], [0x20, 9, 2]]


def test_actions_go_by_name_and_one_without_counterpart_is_never_chosen() -> None:
    translation = Translation.between(LANGUAGE, world(FEATURES))
    logits = translation.logits(torch.tensor([[10.0, 1.0, 2.0, 3.0]]))
    assert logits.tolist() == [[1.0, 2.0, NEVER, 3.0]]
    told = translation.describe()
    assert told["actions"] == "noop = noop_0, move_north = rotate_0, move_east = rotate_3"
    assert told["actions never chosen"] == "move_south"
    assert told["features read"] == "inv:heart, inv:ore = inv:ore_red, inv:hp = hp"
    assert told["features left out"] == "tag"


def test_a_name_of_its_own_goes_before_an_earlier_one() -> None:
    language = replace(LANGUAGE, features={"inv:ore": 4, "inv:ore_red": 5})
    assert Translation.between(language, world(FEATURES)).features == {"inv:ore": "inv:ore"}


def test_actions_without_names_go_by_position_and_say_so() -> None:
    translation = Translation.between(replace(LANGUAGE, actions=None), world(FEATURES))
    logits = torch.tensor([[10.0, 1.0, 2.0, 3.0]])
    assert translation.logits(logits).tolist() == logits.tolist()
    assert "by position" in translation.describe()["actions"]
    with pytest.raises(ValueError, match=r"4 actions but the policy 3 without names"):
        Translation.between(replace(LANGUAGE, actions=None, num_actions=3), world(FEATURES))


def test_a_world_without_a_single_action_of_the_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noop, move_north.* of which the policy has none"):
        Translation.between(replace(LANGUAGE, actions=("attack_0", "swap_0")), world(FEATURES))


def test_a_world_without_tokens_is_refused() -> None:
    spec = replace(world(FEATURES), vocabulary=None, observation_shape=(4,), name="gym:CartPole-v1")
    with pytest.raises(
        ValueError, match=r"reads mettagrid tokens, but world gym:CartPole-v1 shows"
    ):
        Translation.between(LANGUAGE, spec)
