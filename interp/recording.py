"""From an episode to the rows of a recording: one row per agent and captured step, labels and activations included."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float16, Float32, Int64

from interp.records import KEY_FIELDS, LABEL_PREFIX, SITE_PREFIX, Episode
from interp.worlds.expressions import Judged, looks_ahead, parse, parts_of

FLOAT16_MAX = float(np.finfo(np.float16).max)
FLOAT16_INFINITY = 0x7C00
"""Bits of its exponent, all of which are set in infinities and NaN only."""

STEP_KEY = ("env_seed", "episode", "agent", "t")
"""Columns that together tell one row from all others of a recording."""


def row_schema(
    site_widths: Mapping[str, int], labels: Sequence[str], metadata: Mapping[str, str] | None = None
) -> pa.Schema:
    """Schema of a recording's shards; every activation column carries its dtype, width and site in its metadata."""
    return pa.schema(
        [
            *KEY_FIELDS,
            *(pa.field(LABEL_PREFIX + label, pa.bool_(), nullable=False) for label in labels),
            *(
                pa.field(
                    SITE_PREFIX + site,
                    pa.binary(2 * width),
                    nullable=False,
                    metadata={"dtype": "float16", "shape": str(width), "site": site},
                )
                for site, width in site_widths.items()
            ),
        ],
        metadata=dict(metadata or {}),
    )


def episode_rows(
    episode: Episode,
    labels: Mapping[str, Bool[np.ndarray, "T A"]],
    *,
    policy_id: str,
    step: int,
    world: str,
    episode_number: int,
    site_widths: Mapping[str, int],
) -> pa.Table:
    """Rows of one episode, step by step and within a step agent by agent.

    `episode_number` is its place in the recording, `step` the policy's agent-steps of training.

    Raises:
        ValueError: an activation that is not finite or does not fit a float16; nothing is then recorded of the episode.
    """
    return shard_rows(
        [episode],
        labels,
        policy_id=policy_id,
        step=step,
        world=world,
        first_env_seed=episode.env_seed - episode_number,
        site_widths=site_widths,
    )


def shard_rows(
    episodes: Sequence[Episode],
    labels: Mapping[str, Bool[np.ndarray, "T A"]],
    *,
    policy_id: str,
    step: int,
    world: str,
    first_env_seed: int,
    site_widths: Mapping[str, int],
) -> pa.Table:
    """Rows of several episodes of one world, one after the other: the same as those of each, made at once.

    Labels are of all their steps, likewise one after the other (`interp.worlds.labels.compute_labels_together`). The
    number of an episode is how far its seed is from the first.

    Raises:
        ValueError: an activation that is not finite or does not fit a float16; nothing is then recorded of any.
    """
    num_agents = episodes[0].action_TA.shape[1]
    rows_E = [len(episode.captured_t) * num_agents for episode in episodes]
    num_rows = sum(rows_E)
    env_seed_E = np.array([episode.env_seed for episode in episodes], np.int64)
    number_E = (env_seed_E - first_env_seed).astype(np.int32)
    captured_t = np.concatenate([episode.captured_t for episode in episodes])
    start_E = np.cumsum([0, *(episode.num_steps for episode in episodes[:-1])])
    captured_T = captured_t + start_E.repeat([len(episode.captured_t) for episode in episodes])

    def captured(every_TA: np.ndarray) -> np.ndarray:
        return (every_TA if len(every_TA) == len(captured_T) else every_TA[captured_T]).reshape(-1)

    action_TA, reward_TA, done_TA = (
        np.concatenate([getattr(episode, name) for episode in episodes])
        for name in ("action_TA", "reward_TA", "done_TA")
    )
    columns: list[pa.Array | pa.ChunkedArray] = [
        _constant(policy_id, num_rows, pa.string()),
        _constant(step, num_rows, pa.int64()),
        _constant(world, num_rows, pa.string()),
        pa.array(env_seed_E.repeat(rows_E)),
        pa.array(number_E.repeat(rows_E)),
        pa.array(np.tile(np.arange(num_agents, dtype=np.int16), num_rows // num_agents)),
        pa.array(captured_t.repeat(num_agents).astype(np.int32)),
        pa.array(captured(action_TA).astype(np.int16)),
        pa.array(captured(reward_TA)),
        pa.array(captured(done_TA)),
        *(pa.array(captured(label_TA)) for label_TA in labels.values()),
        *(
            pa.chunked_array(
                [
                    _float16_column(site, x_ND)
                    for x_ND in _pieces([one.activations[site] for one in episodes], width)
                ],
                pa.binary(2 * width),
            )
            for site, width in site_widths.items()
        ),
    ]
    return pa.Table.from_arrays(columns, schema=row_schema(site_widths, list(labels)))


_PIECE_ROWS = 1024
"""Rows from which on an episode's activations are a chunk as they are; shorter ones are put together."""


def _pieces(activations: Sequence[np.ndarray], width: int) -> Iterator[np.ndarray]:
    """The rows of all episodes, in order and in pieces of some length."""
    short: list[np.ndarray] = []
    num_rows = 0
    for x_TAD in activations:
        short.append(x_TAD.reshape(-1, width))
        num_rows += len(short[-1])
        if num_rows >= _PIECE_ROWS:
            yield short[0] if len(short) == 1 else np.concatenate(short)
            short, num_rows = [], 0
    if short:
        yield np.concatenate(short)


def _constant(value: object, num_rows: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), num_rows)


def _float16_column(
    site: str, x_ND: Float32[np.ndarray, "N D"] | Float16[np.ndarray, "N D"]
) -> pa.Array:
    """The bytes of each row as float16: ten times faster to write and five to scan than a list column."""
    with np.errstate(over="ignore"):
        half_ND = np.ascontiguousarray(x_ND, np.float16)
    # its exponent has no bit to spare: looking at bits is five times faster than asking each float16
    if (half_ND.view(np.uint16) & FLOAT16_INFINITY).max(initial=0) == FLOAT16_INFINITY:
        worst = float(np.abs(x_ND).max())
        raise ValueError(
            f"site {site}: an activation of {worst} does not fit a float16 (at most {FLOAT16_MAX}); "
            "the policy diverges, or record another site"
        )
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(2 * x_ND.shape[1]), len(x_ND), [None, pa.py_buffer(half_ND)]
    )


def activations(table: pa.Table, site: str) -> np.ndarray:
    """The float16 [N, D] matrix of a site; ValueError names the sites there are if it is not one of them."""
    name = SITE_PREFIX + site
    if name not in table.column_names:
        known = [
            c.removeprefix(SITE_PREFIX) for c in table.column_names if c.startswith(SITE_PREFIX)
        ]
        raise ValueError(f"site {site!r} was not recorded; the recording has {', '.join(known)}")
    column = table.column(name)
    width = column.type.byte_width // 2
    parts = [
        np.frombuffer(chunk.buffers()[1], np.float16, len(chunk) * width, 2 * width * chunk.offset)
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([*parts, np.empty(0, np.float16)]).reshape(-1, width)


def steps_before(table: pa.Table) -> Int64[np.ndarray, " N"]:
    """For each row the number of the row of the same agent and episode one step earlier; -1 where that is missing."""
    key_NC = np.stack([table.column(name).to_numpy().astype(np.int64) for name in STEP_KEY], axis=1)
    order_N = np.lexsort(key_NC.T[::-1])
    step_NC = np.diff(key_NC[order_N], axis=0)
    follows_N = (step_NC[:, :-1] == 0).all(1) & (step_NC[:, -1] == 1)
    before_N = np.full(len(order_N), -1, np.int64)
    before_N[order_N[1:][follows_N]] = order_N[:-1][follows_N]
    return before_N


def label_columns(table: pa.Table, labels: Sequence[str]) -> Bool[np.ndarray, "N L"]:
    """The named labels as columns; ValueError names the labels there are if one is not among them."""
    for label in labels:
        if LABEL_PREFIX + label not in table.column_names:
            known = [
                c.removeprefix(LABEL_PREFIX)
                for c in table.column_names
                if c.startswith(LABEL_PREFIX)
            ]
            raise ValueError(
                f"label {label!r} was not recorded; the recording has {', '.join(known)}"
            )
    columns = [table.column(LABEL_PREFIX + label).to_numpy() for label in labels]
    return np.array(columns, np.bool_).reshape(len(labels), table.num_rows).T


class JudgedRows(NamedTuple):
    """Labels of the rows of a recording."""

    label_NL: Bool[np.ndarray, "N L"]
    """False where not known."""
    known_NL: Bool[np.ndarray, "N L"]


def judged_labels(table: pa.Table, labels: Sequence[str]) -> JudgedRows:
    """Labels, and those made of recorded ones (`interp.worlds.expressions`), with where they are known.

    Raises:
        ValueError: a part that was not recorded; or a horizon, in rows that are not all steps of whole episodes.
    """
    shape = (table.num_rows, len(labels))
    rows = JudgedRows(np.zeros(shape, np.bool_), np.zeros(shape, np.bool_))
    recorded = [
        name.removeprefix(LABEL_PREFIX)
        for name in table.column_names
        if name.startswith(LABEL_PREFIX)
    ]
    for column, label in enumerate(labels):
        expression = parse(label, recorded)
        parts = parts_of(expression)
        part_NP = label_columns(table, parts)
        # what does not look ahead is judged step by step, so that all rows are as good as one episode
        every_row = [np.arange(table.num_rows)[:, None]]
        episodes = _whole_episodes(table, label) if looks_ahead(expression) else every_row
        for rows_TA in episodes:
            judged: Judged = expression.judge(
                {part: part_NP[rows_TA, number] for number, part in enumerate(parts)}
            )
            rows.label_NL[rows_TA, column], rows.known_NL[rows_TA, column] = judged
    return rows


def _whole_episodes(table: pa.Table, label: str) -> list[np.ndarray]:
    """Rows [T, A] of every episode; ValueError if a step is missing."""
    env_seed_N, agent_N, t_N = (
        table.column(name).to_numpy() for name in ("env_seed", "agent", "t")
    )
    if not len(env_seed_N):
        return []
    num_agents = int(agent_N.max()) + 1
    starts = np.flatnonzero(np.diff(env_seed_N, prepend=env_seed_N[0] - 1))
    episodes = []
    for rows_N in np.split(np.arange(len(env_seed_N)), starts[1:]):
        every_N = np.arange(len(rows_N))
        if (t_N[rows_N] != every_N // num_agents).any() or (
            agent_N[rows_N] != every_N % num_agents
        ).any():
            raise ValueError(
                f"label {label!r} looks ahead, but the episode of env_seed {env_seed_N[rows_N[0]]} lacks steps; "
                "record every step, or ask for the label without its horizon"
            )
        episodes.append(rows_N.reshape(-1, num_agents))
    return episodes
