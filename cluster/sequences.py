"""Sequences of the recordings of a store: cut once, kept as a table, and their rows found again.

sequences/<id>.parquet   one row a sequence (`interp.sequences.SEQUENCE_SCHEMA`)
          <id>.json      what they were cut from, and how
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa

from cluster import recordings
from cluster.fanout import in_threads
from cluster.notes import Note, silent
from cluster.recordings import Manifest
from cluster.results import Question, read_table
from cluster.store import Store
from interp.identity import parse_json
from interp.rollout import EveryStep
from interp.sampling import ranks
from interp.sequences import (
    Choice,
    columns_for,
    extract,
    rows_of,
    sequence_table,
    sequences_of,
)
from interp.worlds.expressions import parse, parts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CutConfig:
    """How many of the sequences that there are shall be kept."""

    most: int | None = None
    """Keep at most so many, chosen evenly among all; by default all."""
    salt: str = "sequences-0"
    """Where too many are found, another salt chooses others."""

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            raise ValueError(f"most {self.most}: at least 1 sequence")


def question(recording_id: str, choice: Choice, config: CutConfig) -> Question:
    """What a set of sequences is made from, which decides its id."""
    return Question(
        "sequences",
        {"choice": {"kind": type(choice).__name__, **asdict(choice)}, **asdict(config)},
        {"recording": recording_id},
    )


def cut(
    store: Store,
    recording_id: str,
    choice: Choice,
    config: CutConfig = CutConfig(),
    note: Note = silent,
) -> tuple[str, pa.Table]:
    """Id and table of the sequences of a recording; found again if they were cut before.

    Raises:
        FileNotFoundError: no such recording, or it is not finished.
        ValueError: it did not keep every step, or lacks the label; or it has no such sequence.
        Corrupt: it is not what its manifest says.
    """
    asked = question(recording_id, choice, config)
    if (found := asked.find(store)) is not None:
        return asked.id, found
    manifest = recordings.open_manifest(store, recording_id)
    check_cuttable(manifest, choice)
    columns = columns_for(choice, manifest.plan.config["labels"])
    parts = []
    tables = in_threads(
        lambda receipt: sequence_table(
            extract(recordings.read_columns(store, receipt, columns), choice)
        ),
        manifest.receipts,
        threads=4,
        large=True,
    )
    for number, part in enumerate(tables):
        parts.append(part)
        note(number + 1, len(manifest.receipts), manifest.receipts[number].shard)
    table = _at_most(pa.concat_tables(parts), config)
    if not table.num_rows:
        raise ValueError(
            f"recording {recording_id} has no sequence of {choice}: ask for shorter ones, another label, or record "
            "more episodes; `sparsight recordings show` says how often each label holds"
        )
    return asked.id, asked.answer(store, table)


def check_cuttable(manifest: Manifest, choice: Choice) -> None:
    """ValueError if there is no cutting such sequences from that recording."""
    plan = manifest.plan
    recordings.check_whole(plan, "cutting sequences")
    if plan.config["steps"]["kind"] != EveryStep.__name__:
        raise ValueError(
            f"recording {plan.recording_id} kept the steps {plan.config['steps']}; sequences are cut from every step"
        )
    labels = plan.config["labels"]
    for part in () if choice.label is None else parts_of(parse(choice.label, labels)):
        if part not in labels:
            raise ValueError(
                f"label {part!r} is not in recording {plan.recording_id}; it has {', '.join(labels)}"
            )


def _at_most(table: pa.Table, config: CutConfig) -> pa.Table:
    if config.most is None or table.num_rows <= config.most:
        return table
    env_seed, agent, first_t = (
        table.column(name).to_numpy().astype(np.int64) for name in ("env_seed", "agent", "first_t")
    )
    rank_N = ranks(env_seed, agent, first_t, salt=config.salt)
    return table.take(pa.array(np.sort(np.argsort(rank_N)[: config.most])))


@dataclass(frozen=True, slots=True, kw_only=True)
class CutNote:
    """What is known of a set of sequences besides its rows."""

    recording_id: str
    """What it was cut from."""
    num_sequences: int
    how: str
    """For people, for instance "ByLength min_steps 10, max_steps 50"."""


def read_note(store: Store, sequences_id: str) -> CutNote:
    """FileNotFoundError if the store lacks those sequences."""
    key = f"sequences/{sequences_id}.json"
    if not store.exists(key):
        raise FileNotFoundError(
            f"sequences {sequences_id} are not in store {store.url}; `sparsight sequences list` shows what is"
        )
    note = parse_json(store.get(key), source=key)
    config = dict(note["config"])
    choice = config.pop("choice")
    limits = {name: value for name, value in config.items() if config["most"] is not None}
    settings = {**choice, **limits}
    kind = settings.pop("kind")
    return CutNote(
        recording_id=note["inputs"]["recording"],
        num_sequences=note["rows"],
        how=f"{kind} {', '.join(f'{name} {value}' for name, value in settings.items())}",
    )


def known_ids(store: Store) -> list[str]:
    """Sets of sequences that are in the store."""
    return sorted(
        key.removeprefix("sequences/").removesuffix(".json")
        for key in store.list("sequences")
        if key.endswith(".json")
    )


def read_rows(
    store: Store,
    sequences_id: str,
    columns: Sequence[str] | None = None,
    *,
    recording_id: str | None = None,
    ends_only: bool = False,
    note: Note = silent,
) -> pa.Table:
    """Rows of a set of sequences, activations included, sequence by sequence, under their numbers in a first column.

    Args:
        columns: By default all.
        recording_id: The recording to take them from: by default the one that they were cut from, or one that shows its
            episodes to another policy.
        ends_only: Only the rows at which a sequence is complete.

    Raises:
        FileNotFoundError: no such sequences, or recording.
        ValueError: a column that the recording lacks, or a recording of other episodes.
        Corrupt: the recording is not what its manifest says.
    """
    source = read_note(store, sequences_id).recording_id
    sequences = sequences_of(read_table(store, "sequences", sequences_id))
    manifest = recordings.open_manifest(store, recording_id or source)
    shown = [manifest.plan.inputs.get(role) for role in ("replay_of", "bank")]
    if source not in (manifest.recording_id, *shown):
        raise ValueError(
            f"recording {manifest.recording_id} is neither {source}, from which {sequences_id} were cut, nor a replay "
            "of it"
        )
    recordings.check_whole(manifest.plan, "rows of sequences")
    # a replay may have begun with another seed: episodes are the same if their seeds are
    first_seed = manifest.plan.config["first_env_seed"]
    placed = [replace(one, episode=one.env_seed - first_seed) for one in sequences]
    wanted = {one.env_seed for one in sequences}
    there = {seed for shard in manifest.plan.shards for seed in shard.env_seeds}
    if missing := wanted - there:
        raise ValueError(
            f"recording {manifest.recording_id} has no episode of env_seed {min(missing)}, of which there are "
            f"sequences in {sequences_id}: replay the whole of {source}"
        )
    keys = ["episode", "agent", "t"]
    asked = None if columns is None else list(dict.fromkeys([*keys, *columns]))
    parts = []
    for number, (shard, receipt) in enumerate(
        zip(manifest.plan.shards, manifest.receipts, strict=True)
    ):
        if not wanted.isdisjoint(shard.env_seeds):
            table = recordings.read_shard(store, receipt, asked)
            # none but those of the shard: where an episode is found, its number counts only so far
            here = [number for number, one in enumerate(placed) if one.env_seed in shard.env_seeds]
            found = rows_of(table, [placed[number] for number in here], ends_only=ends_only)
            rows = table.take(pa.array(found.row_K)).replace_schema_metadata(None)
            numbers = np.array(here, np.int32)[found.sequence_K]
            parts.append(rows.add_column(0, "sequence", pa.array(numbers)))
        note(number + 1, len(manifest.receipts), receipt.shard)
    table = pa.concat_tables(parts).combine_chunks()
    num_wanted = sum(1 if ends_only else one.end_t - one.first_t + 1 for one in sequences)
    if len(table) < num_wanted:
        raise ValueError(
            f"recording {manifest.recording_id} has {len(table)} of the {num_wanted} rows wanted, for it kept the "
            f"steps {manifest.plan.config['steps']}; take a recording or a replay of every step"
        )
    order = pa.array(np.argsort(table.column("sequence").to_numpy(), kind="stable"))
    return (
        table.take(order) if columns is None else table.take(order).select(["sequence", *columns])
    )
