"""Labels moved in time: by so many steps, never over the end of an episode, and missing where that would be needed."""

import numpy as np
import pytest

from interp.concepts.blocks import score_all
from interp.concepts.lags import Targets, best_lag, lagged, within

AGENTS = 2


def targets(*lengths: int, labels: int = 2, seed: int = 0) -> Targets:
    """Episodes of so many steps, padded with nonsense."""
    longest = max(lengths) * AGENTS
    mask_ES = np.arange(longest) < np.array(lengths)[:, None] * AGENTS
    label_ESC = np.random.default_rng(seed).random((len(lengths), longest, labels)) < 0.4
    return Targets.known(label_ESC, mask_ES)


def cells(of: Targets, lengths: tuple[int, ...]):
    """Every existing (episode, t, agent), with its place in the row."""
    for e, steps in enumerate(lengths):
        for t in range(steps):
            for a in range(AGENTS):
                yield e, t, a, t * AGENTS + a


def test_a_label_at_a_lag_is_that_of_the_same_agent_so_many_steps_away() -> None:
    lengths, lags = (9, 6), (-2, 0, 3)
    of = targets(*lengths)
    moved = lagged(of, lags=lags, num_agents=AGENTS)
    for e, t, a, s in cells(of, lengths):
        exists = 2 <= t < lengths[e] - 3  # at all lags, or at none
        assert moved.known_ESC[e, s].tolist() == [exists] * 6
        if exists:
            for c in range(2):
                for k, lag in enumerate(lags):
                    there = of.label_ESC[e, (t + lag) * AGENTS + a, c]
                    assert moved.label_ESC[e, s, c * 3 + k] == there
    assert not moved.known_ESC[~of.mask_ES].any()
    assert moved.num_missing_C.tolist() == [2 * 5 * AGENTS] * 6


def test_within_is_any_of_the_next_steps_and_missing_near_the_end_whatever_holds_there() -> None:
    lengths = (9, 6)
    of = targets(*lengths)
    soon = within(of, steps=3, num_agents=AGENTS)
    for e, t, a, s in cells(of, lengths):
        assert soon.known_ESC[e, s].all() == (t + 3 < lengths[e])
        if t + 3 < lengths[e]:
            ahead = [of.label_ESC[e, (t + k) * AGENTS + a] for k in (1, 2, 3)]
            assert soon.label_ESC[e, s].tolist() == np.any(ahead, axis=0).tolist()
        else:
            assert not soon.label_ESC[e, s].any()
    assert soon.num_missing_C.tolist() == [2 * 3 * AGENTS] * 2


def test_nothing_of_an_episode_depends_on_the_next_one() -> None:
    of = targets(8, 8)
    other = Targets.known(np.concatenate([of.label_ESC[:1], ~of.label_ESC[1:]]), of.mask_ES)
    for move in (
        lambda x: lagged(x, lags=(-3, 2), num_agents=AGENTS),
        lambda x: within(x, steps=2, num_agents=AGENTS),
    ):
        np.testing.assert_array_equal(move(of).label_ESC[0], move(other).label_ESC[0])
        assert (move(of).label_ESC[1] != move(other).label_ESC[1]).any()


def test_what_is_missing_already_stays_missing() -> None:
    of = targets(8)
    known_ESC = of.known_ESC.copy()
    known_ESC[0, 5 * AGENTS] = False  # agent 0 at step 5
    holes = Targets(label_ESC=of.label_ESC & known_ESC, known_ESC=known_ESC, mask_ES=of.mask_ES)
    soon = within(holes, steps=2, num_agents=AGENTS)
    assert np.flatnonzero(~soon.known_ESC[0, 0::2, 0]).tolist() == [3, 4, 6, 7]
    assert np.flatnonzero(~soon.known_ESC[0, 1::2, 0]).tolist() == [6, 7]


def test_lags_that_leave_nothing_are_refused() -> None:
    of = targets(9, 6)
    with pytest.raises(
        ValueError, match=r"lags from -3 to 3 steps, but the shortest episode has 6"
    ):
        lagged(of, lags=(-3, 0, 3), num_agents=AGENTS)
    with pytest.raises(ValueError, match=r"lags \[1, 1\]"):
        lagged(of, lags=(1, 1), num_agents=AGENTS)
    with pytest.raises(ValueError, match=r"within 6 steps: .* the 6 steps of the shortest"):
        within(of, steps=6, num_agents=AGENTS)


def test_a_planted_lag_is_found() -> None:
    """One feature is a plan, three steps ahead of its label; one a memory, two steps behind."""
    generator = np.random.default_rng(1)
    label_ESC = generator.random((24, 40 * AGENTS, 1)) < 0.3
    of = Targets.known(label_ESC, np.ones((24, 40 * AGENTS), np.bool_))
    plan = np.roll(label_ESC, -3 * AGENTS, axis=1)
    memory = np.roll(label_ESC, 2 * AGENTS, axis=1)
    feature_ESF = np.concatenate([plan, memory], -1) + 0.5 * generator.random((24, 80, 2))
    lags = range(-4, 5)
    moved = lagged(of, lags=lags, num_agents=AGENTS)
    scores = score_all(feature_ESF.astype(np.float32), moved, seed=0, num_permutations=99)
    best = best_lag(scores.auroc_FC.reshape(2, 1, len(lags)))
    assert [lags[k] for k in best[:, 0]] == [3, -2]
    assert (scores.auroc_FC.max(1) == 1).all()


def test_a_feature_that_knows_the_end_of_an_episode_knows_nothing_of_what_is_soon() -> None:
    """Were the steps near the end counted as False, or only where they are True, it would look as if it did."""
    generator = np.random.default_rng(2)
    label_ESC = generator.random((200, 30, 1)) < 0.1
    of = Targets.known(label_ESC, np.ones((200, 30), np.bool_))
    near_end = np.broadcast_to((np.arange(30.0) - 25).clip(0)[None, :, None], (200, 30, 1))
    soon = within(of, steps=8, num_agents=1)
    noise = 1e-3 * generator.random((200, 30, 1))
    score = score_all((near_end + noise).astype(np.float32), soon, seed=0, num_permutations=99)
    assert score.auroc_FC[0, 0] == pytest.approx(0.5, abs=0.03)
    filled = Targets.known(soon.label_ESC, soon.mask_ES)
    naive = score_all((near_end + noise).astype(np.float32), filled, seed=0, num_permutations=99)
    assert naive.auroc_FC[0, 0] < 0.42
