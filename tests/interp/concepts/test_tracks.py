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
