"""Rows are folded back into episodes: nothing is mixed up, and what is missing is masked."""

import numpy as np
import pyarrow as pa
import pytest

from interp.concepts.tracks import Tracks
from interp.recording import episode_rows
from interp.records import Episode

AGENTS, D = 2, 3


def episode(env_seed: int, steps: int) -> Episode:
    """Activations and labels that tell where they come from: seed, step, agent."""
    t, agent = np.mgrid[:steps, :AGENTS].astype(np.float32)
    return Episode(
        env_seed=env_seed,
        index=0,
        action_TA=np.zeros((steps, AGENTS), np.int32),
        reward_TA=np.zeros((steps, AGENTS), np.float32),
        done_TA=np.zeros((steps, AGENTS), np.bool_),
        captured_t=np.arange(steps, dtype=np.int32),
        activations={"lstm.h": np.stack([np.full_like(t, env_seed), t, agent], -1)},
    )


def recording(*episodes: Episode) -> pa.Table:
    return pa.concat_tables(
        episode_rows(
            one,
            {
                "even": np.arange(one.num_steps)[:, None] % 2 == np.zeros(AGENTS),
                "first_agent": np.tile([True, False], (one.num_steps, 1)),
            },
            policy_id="p",
            step=0,
            world="w",
            episode_number=number,
            site_widths={"lstm.h": D},
        )
        for number, one in enumerate(episodes)
    )


def tracks(*episodes: Episode, **choices) -> Tracks:
    return Tracks.of(recording(*episodes), site="lstm.h", labels=("first_agent", "even"), **choices)


@pytest.mark.parametrize("stride_steps", [1, 3])
def test_every_sample_is_found_again_under_its_episode_step_and_agent(stride_steps) -> None:
    folded = tracks(episode(5, 7), episode(3, 7), stride_steps=stride_steps)
    assert folded.env_seed_E.tolist() == [5, 3]
    assert folded.num_agents == AGENTS
    assert folded.mask_ES.all()
    kept_t = np.arange(0, 7, stride_steps)
    for e, env_seed in enumerate([5, 3]):
        for s in range(len(kept_t) * AGENTS):
            t, agent = kept_t[s // AGENTS], s % AGENTS
            assert folded.activation_ESD[e, s].tolist() == [env_seed, t, agent]
            assert folded.label_ESL[e, s].tolist() == [agent == 0, t % 2 == 0]


def test_a_shorter_episode_is_padded_with_nothing() -> None:
    folded = tracks(episode(1, 4), episode(2, 2))
    assert folded.mask_ES.tolist() == [[True] * 8, [True] * 4 + [False] * 4]
    assert not folded.activation_ESD[1, 4:].any()
    assert not folded.label_ESL[1, 4:].any()


def test_labels_are_found_by_name() -> None:
    folded = tracks(episode(1, 4))
    assert folded.label_names == ("first_agent", "even")
    assert folded.label("even").tolist() == [[True, True, False, False] * 2]


def test_selected_episodes_keep_all_their_columns_together() -> None:
    folded = tracks(episode(1, 4), episode(2, 2), episode(3, 3))
    some = folded.select(np.array([True, False, True]))
    assert some.env_seed_E.tolist() == [1, 3]
    for name in ("activation_ESD", "label_ESL", "mask_ES"):
        np.testing.assert_array_equal(getattr(some, name), getattr(folded, name)[[0, 2]])


def test_it_works_on_a_slice_of_a_table() -> None:
    """Shards are read in pieces; the bytes of a slice begin elsewhere in their buffer."""
    whole = recording(episode(1, 4), episode(2, 4))
    folded = Tracks.of(whole.slice(4 * AGENTS), site="lstm.h", labels=())
    assert folded.env_seed_E.tolist() == [2]
    assert (folded.activation_ESD[..., 0] == 2).all()


def test_labels_made_of_recorded_ones_are_judged_at_every_step_before_some_are_left_out() -> None:
    table = recording(episode(1, 7), episode(2, 4))
    names = ("even&first_agent", "first_agent@within3")
    folded = Tracks.of(table, site="lstm.h", labels=names, stride_steps=2)
    targets = folded.targets
    both_TA = folded.label("even&first_agent")[0].reshape(-1, AGENTS)
    assert both_TA.tolist() == [[True, False]] * 4  # steps 0, 2, 4, 6
    known_TA = targets.known_ESC[0, :, 1].reshape(-1, AGENTS)
    assert known_TA.tolist() == [[True] * 2, [True] * 2, [False] * 2, [False] * 2]
    assert (
        folded.label("first_agent@within3")[0].reshape(-1, AGENTS)[:2].tolist()
        == [[True, False]] * 2
    )
    assert targets.known_ESC[1, :, 1].reshape(-1, AGENTS)[:, 0].tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert targets.known_ESC[..., 0].sum() == folded.mask_ES.sum()
    joined = Tracks.joined([folded.select(np.array([False, True])), folded])
    np.testing.assert_array_equal(joined.targets.known_ESC[1:], targets.known_ESC)


def test_a_horizon_wants_every_step() -> None:
    table = recording(episode(1, 7))
    every_second = table.filter(np.repeat(np.arange(7) % 2 == 0, AGENTS))
    with pytest.raises(ValueError, match=r"looks ahead, but the episode of env_seed 1 lacks steps"):
        Tracks.of(every_second, site="lstm.h", labels=("even@within3",))
    Tracks.of(every_second, site="lstm.h", labels=("!even",))
    with pytest.raises(ValueError, match=r"label 'odd' was not recorded"):
        Tracks.of(table, site="lstm.h", labels=("even&odd",))
