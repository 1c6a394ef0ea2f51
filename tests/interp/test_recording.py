"""What goes into rows comes out of them, and what a float16 cannot hold is refused."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from interp.recording import (
    FLOAT16_MAX,
    STEP_KEY,
    activations,
    episode_rows,
    label_columns,
    row_schema,
    shard_rows,
    steps_before,
)
from interp.records import KEY_FIELDS, Episode

STEPS, AGENTS, D = 5, 2, 3
WIDTHS = {"encoder": D, "value": 1}


def episode(h_TAD: np.ndarray | None = None, captured=(0, 1, 2, 3, 4)) -> Episode:
    generator = np.random.default_rng(0)
    captured_t = np.array(captured, np.int32)
    if h_TAD is None:
        h_TAD = generator.standard_normal((len(captured_t), AGENTS, D)).astype(np.float32)
    return Episode(
        env_seed=11,
        index=4,
        action_TA=np.arange(STEPS * AGENTS, dtype=np.int32).reshape(STEPS, AGENTS),
        reward_TA=generator.standard_normal((STEPS, AGENTS)).astype(np.float32),
        done_TA=np.arange(STEPS)[:, None].repeat(AGENTS, 1) == STEPS - 1,
        captured_t=captured_t,
        activations={"encoder": h_TAD, "value": h_TAD[..., :1] * 2},
    )


LABELS = {
    "open_area": np.random.default_rng(1).random((STEPS, AGENTS)) < 0.5,
    "combat": np.random.default_rng(2).random((STEPS, AGENTS)) < 0.5,
}


def rows(one: Episode) -> pa.Table:
    return episode_rows(
        one, LABELS, policy_id="p-1", step=64, world="w", episode_number=9, site_widths=WIDTHS
    )


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32,
        (STEPS, AGENTS, D),
        elements=st.floats(-FLOAT16_MAX / 2, FLOAT16_MAX / 2, width=32),
    )
)
def test_activations_come_back_as_float16(h_TAD) -> None:
    table = rows(episode(h_TAD))
    np.testing.assert_array_equal(
        activations(table, "encoder"), h_TAD.reshape(-1, D).astype(np.float16)
    )
    np.testing.assert_array_equal(
        activations(table, "value"), (2 * h_TAD[..., :1]).reshape(-1, 1).astype(np.float16)
    )


def test_activations_come_back_from_pieces() -> None:
    whole = rows(episode())
    pieces = pa.concat_tables([whole.slice(0, 0), whole.slice(0, 3), whole.slice(3)])
    assert pieces.column("site.encoder").num_chunks > 1
    np.testing.assert_array_equal(activations(pieces, "encoder"), activations(whole, "encoder"))
    np.testing.assert_array_equal(
        activations(whole.slice(2, 4), "encoder"), activations(whole, "encoder")[2:6]
    )
    assert activations(whole.slice(0, 0), "encoder").shape == (0, D)


def test_rows_of_several_episodes_are_those_of_each() -> None:
    first, second = episode(captured=(0, 2, 4)), replace(episode(captured=(1, 3)), env_seed=12)
    together = shard_rows(
        [first, second],
        {name: np.concatenate([label_TA, ~label_TA]) for name, label_TA in LABELS.items()},
        policy_id="p-1",
        step=64,
        world="w",
        first_env_seed=2,
        site_widths=WIDTHS,
    )
    inverted = {name: ~label_TA for name, label_TA in LABELS.items()}
    keys = {"policy_id": "p-1", "step": 64, "world": "w", "site_widths": WIDTHS}
    one_by_one = [
        episode_rows(first, LABELS, episode_number=9, **keys),
        episode_rows(second, inverted, episode_number=10, **keys),
    ]
    assert together.combine_chunks().equals(pa.concat_tables(one_by_one).combine_chunks())


def test_labels_come_back_in_the_order_asked_for() -> None:
    table = rows(episode())
    np.testing.assert_array_equal(
        label_columns(table, ["combat", "open_area"]),
        np.stack([LABELS["combat"].reshape(-1), LABELS["open_area"].reshape(-1)], axis=1),
    )
    assert label_columns(table, []).shape == (STEPS * AGENTS, 0)


def test_rows_are_step_by_step_and_agent_by_agent() -> None:
    table = rows(episode()).to_pydict()
    assert table["t"] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert table["agent"] == [0, 1] * 5
    assert table["action"] == list(range(10))
    assert table["done"] == [False] * 8 + [True] * 2
    for name, constant in {"policy_id": "p-1", "step": 64, "env_seed": 11, "episode": 9}.items():
        assert table[name] == [constant] * 10


def test_only_captured_steps_have_rows() -> None:
    one = episode(captured=(0, 3))
    table = rows(one)
    assert table.column("t").to_pylist() == [0, 0, 3, 3]
    np.testing.assert_array_equal(label_columns(table, ["combat"])[2:, 0], LABELS["combat"][3])
    np.testing.assert_array_equal(table.column("reward").to_numpy()[2:], one.reward_TA[3])


def test_the_schema_says_how_to_read_an_activation() -> None:
    table = rows(episode())
    assert table.schema == row_schema(WIDTHS, list(LABELS))
    assert table.column_names == [
        *(field.name for field in KEY_FIELDS),
        "label.open_area",
        "label.combat",
        "site.encoder",
        "site.value",
    ]
    assert table.schema.field("site.encoder").metadata == {
        b"dtype": b"float16",
        b"shape": b"3",
        b"site": b"encoder",
    }
    assert all(column.null_count == 0 for column in table.columns)


@pytest.mark.parametrize(
    ("bad", "said"), [(70_000.0, "70000"), (-70_000.0, "70000"), (np.nan, "nan"), (np.inf, "inf")]
)
def test_what_does_not_fit_a_float16_is_refused(bad, said) -> None:
    h_TAD = np.zeros((STEPS, AGENTS, D), np.float32)
    h_TAD[3, 1, 2] = bad
    with pytest.raises(ValueError, match=rf"site encoder: an activation of {said}.* float16"):
        rows(episode(h_TAD))


def test_the_largest_float16_fits() -> None:
    h_TAD = np.zeros((STEPS, AGENTS, D), np.float32)
    h_TAD[0, 0, 0] = FLOAT16_MAX
    one = replace(episode(h_TAD), activations={"encoder": h_TAD, "value": h_TAD[..., :1]})
    assert activations(rows(one), "encoder").max() == FLOAT16_MAX


def test_unknown_sites_and_labels_are_refused_with_those_there_are() -> None:
    table = rows(episode())
    with pytest.raises(ValueError, match=r"site 'lstm.h' was not recorded.*encoder, value"):
        activations(table, "lstm.h")
    with pytest.raises(ValueError, match=r"label 'altar' was not recorded.*open_area, combat"):
        label_columns(table, ["combat", "altar"])


def test_step_before_is_of_the_same_agent_and_episode_and_one_step_earlier() -> None:
    rows = [  # env_seed, episode, agent, t
        (7, 0, 0, 0),
        (7, 0, 1, 0),
        (7, 0, 0, 1),
        (7, 0, 1, 2),  # its step 1 is missing
        (8, 0, 0, 1),  # another episode
        (7, 0, 0, 2),
        (8, 0, 0, 2),
    ]
    table = pa.table(dict(zip(STEP_KEY, np.array(rows).T, strict=True)))
    assert steps_before(table).tolist() == [-1, -1, 0, -1, -1, 2, 4]
    assert steps_before(table.slice(0, 0)).tolist() == []
