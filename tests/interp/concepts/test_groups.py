"""Latents that share a label: parts of one are found and add up, copies and strangers do not."""

import numpy as np
import pytest

from interp.concepts.coactivation import fires_nearby, linked, phi_matrix
from interp.concepts.groups import GroupConfig, find_groups
from interp.concepts.lags import Targets

EPISODES, STEPS, AGENTS = 30, 60, 2
CONFIG = GroupConfig(num_resamples=300)


def runs(generator: np.random.Generator, share: float = 0.25, length: int = 6) -> np.ndarray:
    """Stretches of so many steps, agent by agent, as [E, T, A]."""
    starts = generator.random((EPISODES, STEPS // length, AGENTS)) < share
    return starts.repeat(length, axis=1)


def flat(track_ETA: np.ndarray) -> np.ndarray:
    return track_ETA.reshape(EPISODES, STEPS * AGENTS)


def planted(seed: int) -> tuple[np.ndarray, Targets]:
    """Latents 0 and 1 take turns at random in the runs of the first label; 2 is a weaker copy of what 0 does; 3 fires
    in runs of its own; 4 covers half of the second label's runs, 5 the other half.
    """
    generator = np.random.default_rng(seed)
    label_ETA, other_ETA = runs(generator), runs(generator)
    turn_ETA = generator.random(label_ETA.shape) < 0.5
    which_ETA = (generator.random((EPISODES, STEPS // 6, AGENTS)) < 0.5).repeat(6, axis=1)
    fires = [
        label_ETA & turn_ETA,
        label_ETA & ~turn_ETA,
        label_ETA & turn_ETA & (generator.random(label_ETA.shape) < 0.8),
        runs(generator),
        other_ETA & which_ETA,
        other_ETA & ~which_ETA,
    ]
    value_ESF = np.stack([flat(x) for x in fires], -1) * (
        1 + generator.random((EPISODES, STEPS * AGENTS, len(fires)))
    )
    label_ESC = np.stack([flat(label_ETA), flat(other_ETA)], -1)
    return value_ESF.astype(np.float32), Targets.known(
        label_ESC, np.ones(label_ESC.shape[:2], np.bool_)
    )


def groups_of(latents: list[int], config: GroupConfig = CONFIG):
    (train_ESF, train), (held_out_ESF, held_out) = planted(0), planted(1)
    return find_groups(
        train_ESF[..., latents],
        train,
        held_out_ESF[..., latents],
        held_out,
        labels=("first", "second"),
        num_agents=AGENTS,
        config=config,
        seed=0,
    )


def test_two_latents_that_split_a_label_are_grouped_and_their_union_beats_both() -> None:
    (group,) = groups_of([0, 1, 3])
    assert group.label == "first"
    assert sorted(group.latents) == [0, 1]
    assert group.union_f1 == 1  # all of the label, nothing else
    assert group.best_f1 == pytest.approx(2 / 3, abs=0.03)  # half of it: 2 .5 / (1 + .5)
    assert group.gain == pytest.approx(1 / 3, abs=0.03)
    assert 0.2 < group.gain_lo < group.gain < group.gain_hi and group.beats_best


def test_a_copy_joins_the_group_but_adds_nothing() -> None:
    (group,) = groups_of([0, 2])
    assert group.latents == (0, 1)  # places: the better one first
    assert group.gain == 0
    assert not group.beats_best


def test_latents_of_one_label_that_never_meet_are_no_group() -> None:
    """Latents 4 and 5 share runs out among themselves, so that at 3 steps they meet at borders only."""
    assert groups_of([4, 5], GroupConfig(nearby_steps=0)) == []


def test_a_latent_of_another_label_is_not_taken_in() -> None:
    assert groups_of([0, 3, 4]) == []


def test_a_union_is_judged_where_the_label_is_known() -> None:
    (train_ESF, train), (held_out_ESF, held_out) = planted(0), planted(1)
    known_ESC = np.ones_like(held_out.known_ESC)
    known_ESC[:, -20:] = False
    held_out_ESF[:, -20:] = 1  # all wrong, where nobody may count it
    cut = Targets(
        label_ESC=held_out.label_ESC & known_ESC, known_ESC=known_ESC, mask_ES=held_out.mask_ES
    )
    group, *_ = find_groups(
        train_ESF, train, held_out_ESF, cut,
        labels=("first", "second"), num_agents=AGENTS, config=CONFIG, seed=0,
    )  # fmt: skip
    assert group.union_f1 == 1


def test_nearby_reaches_so_many_steps_of_the_same_agent_and_not_over_the_end() -> None:
    fires_ESF = np.zeros((1, 12, 1), np.bool_)
    fires_ESF[0, 2 * 2 + 1] = True  # step 2, agent 1
    mask_ES = np.arange(12)[None] < 8
    found = fires_nearby(fires_ESF, mask_ES, num_agents=2, steps=2)[0, :, 0].reshape(6, 2)
    assert found[:, 0].tolist() == [False] * 6
    assert found[:, 1].tolist() == [True, True, True, True, False, False]


def test_phi_is_that_of_the_counts_and_0_for_what_never_changes() -> None:
    generator = np.random.default_rng(0)
    fires_ESF = generator.random((4, 50, 3)) < 0.3
    fires_ESF[..., 1] |= fires_ESF[..., 0]
    fires_ESF[..., 2] = False
    phi_FF = phi_matrix(fires_ESF, np.ones((4, 50), np.bool_))
    flat_NF = fires_ESF.reshape(-1, 3).astype(float)
    assert phi_FF[0, 1] == pytest.approx(np.corrcoef(flat_NF[:, 0], flat_NF[:, 1])[0, 1], abs=1e-6)
    assert phi_FF[2].tolist() == [0, 0, 1]


def test_linked_joins_by_the_mean_of_pairs() -> None:
    similarity_FF = np.eye(4)
    for a, b, value in ((0, 1, 0.9), (2, 3, 0.5), (0, 2, 0.1)):
        similarity_FF[a, b] = similarity_FF[b, a] = value
    assert linked(similarity_FF, at_least=0.4) == [[0, 1], [2, 3]]
    assert linked(similarity_FF, at_least=0.6) == [[0, 1], [2], [3]]
    assert linked(similarity_FF[:1, :1], at_least=0.6) == [[0]]
