"""When is a recording finished, and is what we read what was written?

    recordings/<recording_id>/plan.json                     what shall be recorded; a pure function of the config
                              data/<shard>-<sha16>.parquet  rows; the name is the content
                              receipts/<shard>.json         this shard is done, and these are its bytes
                              manifest.json                 all shards are done; readers look at nothing else
                              manifests/<part>-<sha16>.json pages of a manifest that is too long for one object

Every object is create-only, so a shard may be recorded twice, by two actors at once or again after a crash: the first
receipt wins and the rows are counted once. To resume is to record the shards of the plan that have no receipt.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.backends import Conflict, Corrupt
from cluster.fanout import in_threads
from cluster.notes import Note, silent
from cluster.store import Store
from interp.identity import ID_DIGITS, canonical_json, content_id, parse_json, sha256

VERSION = 1
ROW_GROUP_ROWS = 8192
MANIFEST_SHARDS = 4096
"""Shards that one manifest lists by itself, in under 2 MB; one of more is divided into pages of so many. Part of
the format: another number would give long recordings other digests."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """The unit of work of a recording."""

    shard: str
    """Safe name, unique in its plan."""
    env_seeds: tuple[int, ...]
    """One episode each, in this order."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole work list of a recording."""

    config: Mapping[str, Any]
    """JSON-able: all that decides the rows, besides the inputs."""
    inputs: Mapping[str, str]
    """Role -> id of what the recording is made from, for instance "policy" -> "p-0123456789abcdef"."""
    shards: tuple[ShardPlan, ...]
    part_of: str | None = None
    """plan_id of the whole plan, if this is one shard of it; see `only`."""

    def __post_init__(self) -> None:
        names = [shard.shard for shard in self.shards]
        if not names:
            raise ValueError("a recording of no shards: its plan needs at least one")
        if repeated := _repeated(names):
            raise ValueError(f"shard {repeated!r} is twice in the plan; shard names must differ")
        for shard in self.shards:
            if not shard.env_seeds:
                raise ValueError(f"shard {shard.shard!r} has no env_seeds: it would record nothing")
            if "/" in shard.shard:
                raise ValueError(f"shard {shard.shard!r}: a shard's name may not contain '/'")

    @cached_property
    def recording_id(self) -> str:
        """Same config, same inputs: same recording."""
        return content_id("r", {"version": VERSION, "config": self.config, "inputs": self.inputs})

    @cached_property
    def plan_id(self) -> str:
        """Hash of the work list too: a receipt of one division into shards is no receipt of another."""
        return self.part_of or content_id("plan", self.to_record())

    @cached_property
    def by_name(self) -> Mapping[str, ShardPlan]:
        """The shards by their names."""
        return {shard.shard: shard for shard in self.shards}

    def only(self, shard: str) -> "Plan":
        """What the recorder of one shard must know, small however long the plan is: `write_shard` takes it as well.

        A task that carried the whole plan of 100,000 shards would carry 15 MB, and there are 100,000 tasks.
        """
        part = replace(self, shards=(self.by_name[shard],), part_of=self.plan_id)
        part.__dict__["recording_id"] = (
            self.recording_id
        )  # else each of them would hash the config again
        return part

    def to_record(self) -> dict[str, Any]:
        """Of a whole plan; one shard of a plan is nothing to keep."""
        if self.part_of is not None:
            raise ValueError(
                f"one shard of {self.recording_id}: only its whole plan can be begun or committed"
            )
        shards = [
            {"shard": shard.shard, "env_seeds": list(shard.env_seeds)} for shard in self.shards
        ]
        return {**self.head(), "shards": shards}

    def head(self) -> dict[str, Any]:
        """The record without the shards."""
        return {"version": VERSION, "config": dict(self.config), "inputs": dict(self.inputs)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], *, source: str) -> Self:
        """Inverse of `to_record`; ValueError names `source` and the field."""
        _expect(record, source, version=int, config=dict, inputs=dict, shards=list)
        if record["version"] != VERSION:
            raise ValueError(
                f"{source}: version {record['version']}, this program reads {VERSION}; record again"
            )
        for role, artefact in record["inputs"].items():
            if not isinstance(artefact, str):
                raise ValueError(f"{source}: inputs[{role!r}] is {artefact!r:.80}, wanted an id")
        for index, shard in enumerate(record["shards"]):
            where = f"{source}: shards[{index}]"
            _expect(shard, where, shard=str, env_seeds=list)
            if not all(type(seed) is int for seed in shard["env_seeds"]):
                raise ValueError(f"{where}: env_seeds must be whole numbers")
        shards = tuple(
            ShardPlan(shard=shard["shard"], env_seeds=tuple(shard["env_seeds"]))
            for shard in record["shards"]
        )
        return cls(config=record["config"], inputs=record["inputs"], shards=shards)

    @property
    def key(self) -> str:
        return f"{_folder(self.recording_id)}/plan.json"

    def receipt_key(self, shard: str) -> str:
        return f"{_folder(self.recording_id)}/receipts/{shard}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The promise that a shard's rows are in the store."""

    shard: str
    plan_id: str
    key: str
    """Of the Parquet object."""
    sha256: str
    bytes: int
    rows: int
    schema: str
    """First digits of the hash of the Arrow schema, metadata included; equal for all shards of a recording."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any], *, source: str) -> Self:
        """ValueError names `source` and the field."""
        _expect(
            record,
            source,
            shard=str,
            plan_id=str,
            key=str,
            sha256=str,
            bytes=int,
            rows=int,
            schema=str,
        )
        return cls(**record)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A finished recording: the only thing that a reader trusts."""

    plan: Plan
    receipts: tuple[Receipt, ...]
    """One per shard, in the order of the plan."""

    def __post_init__(self) -> None:
        key = self.key
        planned = [shard.shard for shard in self.plan.shards]
        done = [receipt.shard for receipt in self.receipts]
        if planned != done:
            raise Corrupt(f"{key}: its receipts are of shards {done}, its plan has {planned}")
        for receipt in self.receipts:
            if receipt.plan_id != self.plan.plan_id:
                raise Conflict(
                    f"{self.plan.receipt_key(receipt.shard)}: receipt of {receipt.plan_id}, this recording is "
                    f"{self.plan.plan_id}; the same config and inputs were divided into other shards"
                )
            if receipt.schema != self.receipts[0].schema:
                raise Conflict(
                    f"{receipt.key}: schema {receipt.schema}, shard {self.receipts[0].shard} has "
                    f"{self.receipts[0].schema}; one recording has one schema"
                )
        if repeated := _repeated(self.data_keys):
            raise Conflict(
                f"{repeated}: listed twice in {key}; its rows would be lost or counted twice"
            )

    @property
    def recording_id(self) -> str:
        return self.plan.recording_id

    @property
    def key(self) -> str:
        return manifest_key(self.recording_id)

    @property
    def rows(self) -> int:
        return sum(receipt.rows for receipt in self.receipts)

    @property
    def data_bytes(self) -> int:
        return sum(receipt.bytes for receipt in self.receipts)

    @property
    def data_keys(self) -> list[str]:
        return [receipt.key for receipt in self.receipts]

    @cached_property
    def digest(self) -> str:
        """sha256 over everything that the manifest says, which is also in it: same digest, same rows, same bytes."""
        return sha256(canonical_json(self.to_record()))

    @cached_property
    def pages(self) -> Mapping[str, bytes]:
        """Key -> content of the objects that a long manifest lists instead of its shards; none of a short one."""
        shards, receipts = self.plan.to_record()["shards"], self.receipts
        if len(shards) <= MANIFEST_SHARDS:
            return {}
        contents = (
            canonical_json({"shards": shards[start:stop], "receipts": receipts[start:stop]})
            for start, stop in (
                (start, start + MANIFEST_SHARDS) for start in range(0, len(shards), MANIFEST_SHARDS)
            )
        )
        folder = f"{_folder(self.recording_id)}/manifests"
        return {
            f"{folder}/{number:05d}-{sha256(content)[:ID_DIGITS]}.json": content
            for number, content in enumerate(contents)
        }

    def to_record(self) -> dict[str, Any]:
        """What `manifest.json` says, its own hash apart: all of it, or, if it is long, where its pages are."""
        if not self.pages:
            return {
                "plan": self.plan.to_record(),
                "receipts": list(self.receipts),
                "rows": self.rows,
            }
        return {
            "plan": self.plan.head(),
            "pages": [
                {"key": key, "sha256": sha256(content)} for key, content in self.pages.items()
            ],
            "shards": len(self.receipts),
            "rows": self.rows,
        }


def check_whole(plan: Plan, purpose: str) -> None:
    """ValueError if the recording is a sample of its rows, which that purpose cannot do with."""
    if (sampling := plan.config.get("sampling")) is not None:
        raise ValueError(
            f"recording {plan.recording_id} is a sample of at most {sampling['rows']} rows a shard; {purpose} needs "
            "every row: record without max_bytes and rows_per_shard"
        )


def begin(store: Store, plan: Plan) -> None:
    """Write the plan, or find the same one there; the same config and inputs in other shards raise Conflict."""
    store.ensure(plan.key, canonical_json(plan.to_record()))


def open_plan(store: Store, recording_id: str) -> Plan:
    """The work list of a recording, finished or not."""
    key = f"{_folder(recording_id)}/plan.json"
    plan = Plan.from_record(parse_json(store.get(key), source=key), source=key)
    _check_id(plan, recording_id, key)
    return plan


def write_shard(store: Store, plan: Plan, shard: str, table: pa.Table) -> Receipt:
    """Store a shard's rows, then its receipt. Equal tables give equal bytes, so a repetition finds its own work.

    If another writer's receipt is there already it stands, and is returned; a warning says so if its rows differ.
    """
    if shard not in plan.by_name:
        raise ValueError(f"shard {shard!r} is not in the plan of {plan.recording_id}")
    content = parquet_bytes(table)
    digest = sha256(content)
    receipt = Receipt(
        shard=shard,
        plan_id=plan.plan_id,
        key=f"{_folder(plan.recording_id)}/data/{shard}-{digest[:ID_DIGITS]}.parquet",
        sha256=digest,
        bytes=len(content),
        rows=table.num_rows,
        schema=_schema_digest(table.schema),
    )
    store.ensure(receipt.key, content)
    if store.create(plan.receipt_key(shard), canonical_json(receipt)):
        return receipt
    first = _read_receipt(store, plan, shard)
    if first.sha256 != receipt.sha256:
        logger.warning(
            "shard %s of %s was recorded before with other rows; the first receipt stands",
            shard,
            plan.recording_id,
            extra={"shard": shard, "first_sha256": first.sha256, "sha256": receipt.sha256},
        )
    return first


def missing_shards(store: Store, plan: Plan) -> tuple[ShardPlan, ...]:
    """What is left to record, in the order of the plan."""
    done = set(store.list(f"{_folder(plan.recording_id)}/receipts"))
    return tuple(shard for shard in plan.shards if plan.receipt_key(shard.shard) not in done)


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a recording has come."""

    recording_id: str
    plan: Plan | None
    """None if there are objects of it but no plan: what an earlier removal left."""
    manifest: Manifest | None
    """None if it is not finished."""
    num_done: int
    """Shards with a receipt."""


def known_ids(store: Store) -> Sequence[str]:
    """Recordings of which the store has anything, finished or not."""
    return store.folders("recordings")


def status(store: Store, recording_id: str) -> Status:
    """FileNotFoundError if the store has nothing of that recording."""
    try:
        manifest = open_manifest(store, recording_id)
    except FileNotFoundError:
        manifest = None
    if manifest is not None:
        return Status(
            recording_id=recording_id,
            plan=manifest.plan,
            manifest=manifest,
            num_done=len(manifest.receipts),
        )
    try:
        plan = open_plan(store, recording_id)
    except FileNotFoundError:
        plan = None
    num_done = len(store.list(f"{_folder(recording_id)}/receipts"))
    if plan is None and not num_done and recording_id not in known_ids(store):
        raise FileNotFoundError(
            f"recording {recording_id} is not in store {store.url}; `sparsight recordings list` shows what is"
        )
    return Status(recording_id=recording_id, plan=plan, manifest=None, num_done=num_done)


def commit(store: Store, plan: Plan) -> Manifest:
    """Publish the recording. ValueError if a shard has no receipt; to commit twice changes nothing."""
    begin(store, plan)
    if missing := missing_shards(store, plan):
        raise ValueError(
            f"recording {plan.recording_id}: {len(missing)} of {len(plan.shards)} shards have no receipt, first "
            f"{missing[0].shard}; record them, then commit"
        )
    receipts = read_receipts(store, plan, plan.shards)
    manifest = Manifest(plan=plan, receipts=receipts)
    check_present(store, manifest)
    for key, content in manifest.pages.items():
        store.ensure(key, content)
    record = {**manifest.to_record(), "sha256": manifest.digest}
    store.ensure(manifest.key, canonical_json(record))
    return manifest


def open_manifest(store: Store, recording_id: str) -> Manifest:
    """A finished recording. FileNotFoundError if it is not committed; Corrupt if its manifest was altered."""
    key = manifest_key(recording_id)
    if not store.exists(key):
        raise FileNotFoundError(
            f"no object {key} in store {store.url}: recording {recording_id} is not committed"
        )
    try:
        record = parse_json(store.get(key), source=key)
        digest = record.pop("sha256", None)
        if sha256(canonical_json(record)) != digest:
            raise Corrupt(
                f"{key}: sha256 does not match its content; it was altered after the commit"
            )
        if "pages" in record:
            _expect(record, key, plan=dict, pages=list, shards=int, rows=int)
            shards, listed = _read_pages(store, record["pages"], key)
            if len(shards) != record["shards"]:
                raise Corrupt(
                    f"{key}: says {record['shards']} shards, its pages have {len(shards)}"
                )
            plan_record = {**record["plan"], "shards": shards}
        else:
            _expect(record, key, plan=dict, receipts=list, rows=int)
            plan_record, listed = record["plan"], record["receipts"]
        plan = Plan.from_record(plan_record, source=f"{key}: plan")
        _check_id(plan, recording_id, key)
        receipts = tuple(
            Receipt.from_record(receipt, source=f"{key}: receipts[{index}]")
            for index, receipt in enumerate(listed)
        )
        manifest = Manifest(plan=plan, receipts=receipts)
    except ValueError as error:
        raise Corrupt(str(error)) from error
    if manifest.rows != record["rows"]:
        raise Corrupt(f"{key}: says {record['rows']} rows, its receipts have {manifest.rows}")
    return manifest


def _read_pages(
    store: Store, pages: Sequence[Mapping[str, Any]], source: str
) -> tuple[list[Any], list[Any]]:
    """Shards and receipts of all pages, in order; Corrupt if a page is not the one that was committed."""
    for index, page in enumerate(pages):
        _expect(page, f"{source}: pages[{index}]", key=str, sha256=str)

    def read(page: Mapping[str, Any]) -> dict[str, Any]:
        try:
            content = store.get(page["key"])
        except FileNotFoundError as error:
            raise Corrupt(f"{page['key']}: missing, but {source} lists it") from error
        if sha256(content) != page["sha256"]:
            raise Corrupt(f"{page['key']}: sha256 differs from {source}; its bytes were altered")
        return parse_json(content, source=page["key"])

    shards: list[Any] = []
    receipts: list[Any] = []
    for content in in_threads(read, pages, large=True):
        shards += content["shards"]
        receipts += content["receipts"]
    return shards, receipts


def check_present(store: Store, manifest: Manifest) -> None:
    """The quick half of `verify`: every object is there and has its size."""
    listed = store.inventory(f"{_folder(manifest.recording_id)}/data")
    bytes_of = {entry.key: entry.bytes for entry in listed}
    for receipt in manifest.receipts:
        _check_size(receipt, bytes_of.get(receipt.key))


def verify(store: Store, manifest: Manifest, note: Note = silent, *, threads: int = 4) -> None:
    """Read every byte: sizes, hashes, schemas and row counts are those of the manifest, or Corrupt names the key.

    As many shards are in memory at once as there are threads, and as many again.
    """
    done = in_threads(
        lambda receipt: read_shard(store, receipt).num_rows,
        manifest.receipts,
        threads=threads,
        large=True,
    )
    for number, receipt in enumerate(manifest.receipts):
        next(done)
        note(number + 1, len(manifest.receipts), receipt.shard)


def shard_tables(
    store: Store, manifest: Manifest, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Verified rows, shard by shard in the order of the plan; `columns` are returned in the order asked for."""
    for receipt in manifest.receipts:
        yield read_shard(store, receipt, columns)


def read_shard(store: Store, receipt: Receipt, columns: Sequence[str] | None = None) -> pa.Table:
    """Verified rows of one shard: Corrupt if its bytes are not the receipt's, ValueError if it lacks a column."""
    try:
        content = store.get(receipt.key)
    except FileNotFoundError:
        content = None
    _check_size(receipt, None if content is None else len(content))
    assert content is not None
    if sha256(content) != receipt.sha256:
        raise Corrupt(f"{receipt.key}: sha256 differs from the manifest; its bytes were altered")
    file = pq.ParquetFile(pa.BufferReader(content))
    if _schema_digest(file.schema_arrow) != receipt.schema:
        raise Corrupt(f"{receipt.key}: schema differs from the manifest")
    if absent := set(columns or ()) - set(file.schema_arrow.names):
        raise ValueError(
            f"{receipt.key}: no column {min(absent)!r}; it has {file.schema_arrow.names}"
        )
    table = file.read(columns=list(columns) if columns is not None else None)
    if table.num_rows != receipt.rows:
        raise Corrupt(f"{receipt.key}: {table.num_rows} rows, the manifest says {receipt.rows}")
    return table.select(list(columns)) if columns is not None else table


def read_columns(store: Store, receipt: Receipt, columns: Sequence[str]) -> pa.Table:
    """Some columns of one shard, for much less than its whole: the number of rows is checked, the hash is not."""
    address, filesystem = store.address(receipt.key), store.backend.filesystem()
    try:
        with pq.ParquetFile(address, filesystem=filesystem) as file:
            table = file.read(columns=list(columns))
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise Corrupt(f"{receipt.key}: missing or not Parquet: {error}") from error
    if table.num_rows != receipt.rows:
        raise Corrupt(f"{receipt.key}: {table.num_rows} rows, the manifest says {receipt.rows}")
    return table


_PARQUET_OVERHEAD = 16 << 20
"""Room for what Parquet adds to a table, beyond its own size again: headers, statistics, metadata of every chunk."""


def parquet_bytes(table: pa.Table) -> bytes:
    """Parquet of a table: the same bytes for equal tables, however they were put together.

    Fixed-size binaries are activations: they do not repeat, so a dictionary or a minimum of them is wasted time.
    """
    metadata = dict(sorted((table.schema.metadata or {}).items()))
    table = table.replace_schema_metadata(metadata)
    repetitive = [
        field.name for field in table.schema if not pa.types.is_fixed_size_binary(field.type)
    ]
    # a buffer that grows is copied whenever it does; pages of this one that are never written are never there
    room = pa.allocate_buffer(2 * table.nbytes + _PARQUET_OVERHEAD)
    sink = pa.FixedSizeBufferWriter(room)
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="lz4",
        use_dictionary=repetitive,  # pyright: ignore[reportArgumentType] - columns are accepted too
        write_statistics=repetitive,  # pyright: ignore[reportArgumentType] - likewise
    ) as writer:
        # group by group, each in one piece: the bytes are those of the whole table in one piece, without its copy
        for start in range(0, max(table.num_rows, 1), ROW_GROUP_ROWS):
            group = table.slice(start, ROW_GROUP_ROWS).combine_chunks()
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
    return room[: sink.tell()].to_pybytes()


def read_receipts(store: Store, plan: Plan, shards: Sequence[ShardPlan]) -> tuple[Receipt, ...]:
    """Receipts of those shards of a plan, in their order. Corrupt if one cannot be read."""
    return tuple(in_threads(lambda shard: _read_receipt(store, plan, shard.shard), shards))


def _read_receipt(store: Store, plan: Plan, shard: str) -> Receipt:
    key = plan.receipt_key(shard)
    try:
        receipt = Receipt.from_record(parse_json(store.get(key), source=key), source=key)
    except ValueError as error:
        raise Corrupt(f"{error}; remove it and record the shard again") from error
    if receipt.shard != shard:
        raise Corrupt(f"{key}: receipt of shard {receipt.shard!r}, wanted {shard!r}")
    return receipt


def _check_size(receipt: Receipt, size: int | None) -> None:
    if size is None:
        raise Corrupt(f"{receipt.key}: missing (shard {receipt.shard})")
    if size != receipt.bytes:
        raise Corrupt(f"{receipt.key}: {size} bytes, its receipt says {receipt.bytes}")


def _check_id(plan: Plan, recording_id: str, key: str) -> None:
    if plan.recording_id != recording_id:
        raise Corrupt(f"{key}: its config and inputs are those of recording {plan.recording_id}")


def _expect(record: Mapping[str, Any], source: str, **types: type) -> None:
    """Exactly these fields, of exactly these JSON types."""
    if not isinstance(record, dict):
        raise ValueError(f"{source}: found {type(record).__name__}, wanted an object")
    if record.keys() != types.keys():
        raise ValueError(f"{source}: fields {sorted(record)}, wanted {sorted(types)}")
    for name, kind in types.items():
        if type(record[name]) is not kind:
            raise ValueError(
                f"{source}: field {name!r} is {record[name]!r:.80}, wanted {kind.__name__}"
            )


def _repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _schema_digest(schema: pa.Schema) -> str:
    metadata = dict(sorted((schema.metadata or {}).items()))
    return sha256(schema.with_metadata(metadata).serialize().to_pybytes())[:ID_DIGITS]


def _folder(recording_id: str) -> str:
    return f"recordings/{recording_id}"


def manifest_key(recording_id: str) -> str:
    """The object whose presence says that a recording is finished."""
    return f"{_folder(recording_id)}/manifest.json"
