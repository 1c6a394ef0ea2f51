"""Which stretches of an episode are chosen, and whose rows they are."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from interp.sequences import (
    ByEvent,
    ByLength,
    ByStrategy,
    Choice,
    Stretch,
    columns_for,
    extract,
    rows_of,
    sequence_table,
    sequences_of,
)


def track(text: str) -> np.ndarray:
    return np.array([letter == "#" for letter in text])


def places(choice: Choice, text: str) -> list[tuple[int, int]]:
    return [(one.first_t, one.num_steps) for one in choice.choose(track(text))]


def test_by_length_they_follow_each_other_and_a_short_rest_is_left() -> None:
    assert places(ByLength(min_steps=2, max_steps=4), "." * 10) == [(0, 4), (4, 4), (8, 2)]
    assert places(ByLength(min_steps=3, max_steps=4), "." * 10) == [(0, 4), (4, 4)]
    assert places(ByLength(min_steps=3, max_steps=4), "..") == []


def test_by_event_they_lie_around_its_beginning() -> None:
    choice = ByEvent(label="x", before=2, after=1)
    assert choice.choose(track("...##..")) == [Stretch(1, 4, 3)]
    # one that is cut short, one that overlaps the one before, and what holds from the start
    assert places(choice, ".##....") == []
    assert places(choice, "..#.#..#") == [(0, 4)]
    assert places(choice, "##.....") == []


def test_by_strategy_they_are_the_longest_stretches_with_enough_of_it() -> None:
    choice = ByStrategy(label="x", min_steps=3, max_steps=6, min_share=0.7)
    assert places(choice, "..###.#....") == [(2, 5)]
    assert places(choice, "#.#.#.#.#") == []
    assert places(choice, "#########") == [(0, 6), (6, 3)]


@given(
    st.lists(st.booleans(), max_size=80),
    st.integers(1, 6),
    st.integers(0, 10),
    st.floats(0.1, 1.0),
)
def test_no_choice_breaks_its_own_rules(held: list[bool], least: int, more: int, share) -> None:
    label_T = np.array(held, np.bool_)
    for choice in (
        ByLength(min_steps=least, max_steps=least + more),
        ByEvent(label="x", before=least, after=more),
        ByStrategy(label="x", min_steps=least, max_steps=least + more, min_share=share),
    ):
        free_t = 0
        for one in choice.choose(label_T):
            assert free_t <= one.first_t
            free_t = one.first_t + one.num_steps
            assert free_t <= len(label_T)
            if isinstance(choice, ByEvent):
                assert one.onset_t == one.first_t + least
                assert label_T[one.onset_t] and not label_T[one.onset_t - 1]
                continue
            assert least <= one.num_steps <= least + more
            if isinstance(choice, ByStrategy):
                assert label_T[one.first_t : free_t].mean() >= share - 1e-9


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ByLength(min_steps=9, max_steps=8), r"min_steps 9 and max_steps 8"),
        (lambda: ByStrategy(label="x", min_steps=0), r"min_steps 0"),
        (lambda: ByStrategy(label="x", min_share=0.0), r"min_share 0.0: above 0"),
        (lambda: ByEvent(label="x", before=-1), r"before -1: at least 0"),
    ],
)
def test_contradictions_are_refused(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def recorded(*episodes: tuple[str, str], combat: str = "") -> pa.Table:
    """Episodes of two agents, each with a track of one label; the reward is t + 10 x agent."""
    rows = [
        {
            "policy_id": "p-0",
            "step": 7,
            "world": "toy",
            "env_seed": 100 + episode,
            "episode": episode,
            "agent": agent,
            "t": t,
            "reward": float(t + 10 * agent),
            "label.x": held[t] == "#",
            "label.combat": t < len(combat) and combat[t] == "#",
        }
        for episode, tracks in enumerate(episodes)
        for t in range(len(tracks[0]))
        for agent, held in enumerate(tracks)
    ]
    schema = pa.schema(
        [
            ("policy_id", pa.string()),
            ("step", pa.int64()),
            ("world", pa.string()),
            ("env_seed", pa.int64()),
            ("episode", pa.int32()),
            ("agent", pa.int16()),
            ("t", pa.int32()),
            ("reward", pa.float32()),
            ("label.x", pa.bool_()),
            ("label.combat", pa.bool_()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def test_a_sequence_tells_where_it_is_and_what_it_earned() -> None:
    table = recorded(("......", "..#..."), ("...#..", "......"), combat="#.")
    first, second = extract(table, ByEvent(label="x", before=1, after=1))
    assert (first.env_seed, first.episode, first.agent) == (100, 0, 1)
    assert (first.first_t, first.num_steps, first.end_t, first.onset_t) == (1, 3, 3, 2)
    assert first.total_reward == 11 + 12 + 13
    assert first.label_share == pytest.approx(1 / 3)
    assert (second.env_seed, second.agent, second.first_t, second.step) == (101, 0, 2, 7)
    assert first.strategy is None
    chosen = extract(table, ByLength(min_steps=2, max_steps=2))
    assert [one.strategy for one in chosen[:3]] == ["combat", None, None]
    assert chosen[0].label_share is None


def test_sequences_outlive_a_table() -> None:
    table = recorded(("..#...", "......"))
    chosen = extract(table, ByEvent(label="x", before=1, after=1))
    chosen += extract(table, ByLength(min_steps=2, max_steps=3))
    assert sequences_of(sequence_table(chosen)) == chosen


def test_rows_of_a_sequence_are_found_in_any_order_of_the_table() -> None:
    table = recorded(("......", "..#..."), ("...#..", "......"))
    chosen = extract(table, ByEvent(label="x", before=1, after=2))
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    rows = rows_of(shuffled, chosen)
    found = shuffled.take(rows.row_K)
    assert rows.sequence_K.tolist() == [0] * 4 + [1] * 4
    assert found.column("t").to_pylist() == [1, 2, 3, 4, 2, 3, 4, 5]
    assert found.column("agent").to_pylist() == [1] * 4 + [0] * 4
    ends = shuffled.take(rows_of(shuffled, chosen, ends_only=True).row_K)
    assert ends.column("t").to_pylist() == [4, 5]


def test_rows_that_a_table_lacks_are_left_out() -> None:
    table = recorded(("..#...", "......"))
    chosen = extract(table, ByEvent(label="x", before=1, after=2))
    every_other = table.filter(np.array([t % 2 == 0 for t in table.column("t").to_pylist()]))
    found = every_other.take(rows_of(every_other, chosen).row_K)
    assert found.column("t").to_pylist() == [2, 4]
    assert len(rows_of(table, []).row_K) == 0


def test_an_episode_with_gaps_is_refused() -> None:
    table = recorded(("......", "......"))
    every_other = table.filter(np.array([t % 2 == 0 for t in table.column("t").to_pylist()]))
    with pytest.raises(ValueError, match=r"episode 0: steps are missing"):
        extract(every_other, ByLength(min_steps=1))


def test_a_label_that_was_not_recorded_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"label 'y' was not recorded; the recording has x, combat"
    ):
        extract(recorded(("...", "...")), ByEvent(label="y"))


def test_only_columns_that_are_needed_are_read() -> None:
    columns = columns_for(ByEvent(label="x"), ["x", "combat", "landmark"])
    assert [name for name in columns if name.startswith("label.")] == ["label.combat", "label.x"]
    table = recorded(("..#..", "....."))
    narrow = table.select(columns)
    choice = ByEvent(label="x", before=1, after=1)
    assert extract(narrow, choice) == extract(table, choice)
