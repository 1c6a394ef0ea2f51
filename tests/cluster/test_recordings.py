import itertools
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from cluster import recordings
from cluster.backends import Conflict, Corrupt
from cluster.recordings import (
    Plan,
    ShardPlan,
    begin,
    commit,
    missing_shards,
    open_manifest,
    open_plan,
    parquet_bytes,
    shard_tables,
    verify,
    write_shard,
)
from cluster.store import Store
from interp.identity import canonical_json, sha256

ROWS = 40


def make_plan(num_shards: int = 3, **config: object) -> Plan:
    shards = tuple(
        ShardPlan(shard=f"s{index:05d}", env_seeds=(10 * index, 10 * index + 1))
        for index in range(num_shards)
    )
    return Plan(
        config={"world": "toy", **config}, inputs={"policy": "p-0123456789abcdef"}, shards=shards
    )


def make_table(shard: ShardPlan, *, rows: int = ROWS) -> pa.Table:
    generator = np.random.default_rng(shard.env_seeds[0])
    activations = generator.standard_normal((rows, 8)).astype("<f2")
    columns = {
        "policy_id": pa.array(["p-0"] * rows),
        "t": pa.array(np.arange(rows, dtype=np.int32)),
        "site.h": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), rows, [None, pa.py_buffer(activations)]
        ),
    }
    return pa.table(columns).replace_schema_metadata({"site.h": "<f2 8"})


def record(store: Store, plan: Plan) -> None:
    begin(store, plan)
    for shard in plan.shards:
        write_shard(store, plan, shard.shard, make_table(shard))


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path) -> Store:
    """Every promise holds of both kinds of store."""
    if request.param == "s3":
        return request.getfixturevalue("s3_store")
    return Store.open(tmp_path / "store")


@pytest.fixture
def plan() -> Plan:
    return make_plan()


@pytest.fixture
def manifest(store, plan):
    record(store, plan)
    return commit(store, plan)


def rewrite(store: Store, key: str, content: bytes) -> None:
    store.backend.replace(key, content)


def rewrite_manifest(store: Store, manifest, *, sign: bool, **changes) -> None:
    old = manifest.to_record()
    new = {**old, **changes}
    digest = sha256(canonical_json(new if sign else old))
    rewrite(store, manifest.key, canonical_json({**new, "sha256": digest}))


def test_what_was_recorded_is_read(store, plan, manifest):
    opened = open_manifest(store, plan.recording_id)
    verify(store, opened)
    assert opened.rows == 3 * ROWS
    assert opened.receipts == manifest.receipts
    for shard, table in zip(plan.shards, shard_tables(store, opened), strict=True):
        assert table.equals(make_table(shard), check_metadata=True)
    assert open_plan(store, plan.recording_id) == plan


def test_columns_come_in_the_order_asked_for_and_an_absent_one_is_named(store, manifest):
    table = next(shard_tables(store, manifest, ["t", "policy_id"]))
    assert table.column_names == ["t", "policy_id"]
    with pytest.raises(ValueError, match=r"no column 'label.x'"):
        next(shard_tables(store, manifest, ["t", "label.x"]))


def test_reader_sees_nothing_before_the_commit(store, plan):
    record(store, plan)
    with pytest.raises(FileNotFoundError, match=f"{plan.recording_id} is not committed"):
        open_manifest(store, plan.recording_id)


def test_resuming_is_recording_what_has_no_receipt(store, plan):
    first, second, third = plan.shards
    write_shard(store, plan, second.shard, make_table(second))
    assert missing_shards(store, plan) == (first, third)
    with pytest.raises(ValueError, match=f"2 of 3 shards have no receipt, first {first.shard}"):
        commit(store, plan)
    write_shard(store, plan, third.shard, make_table(third))
    write_shard(store, plan, first.shard, make_table(first))
    assert missing_shards(store, plan) == ()
    assert commit(store, plan) == commit(store, plan)


def test_recording_everything_again_changes_nothing(store, plan, manifest):
    before = {key: store.get(key) for key in store.list()}
    record(store, plan)
    assert commit(store, plan) == manifest
    assert {key: store.get(key) for key in store.list()} == before


def test_first_receipt_stands_when_a_repetition_differs(store, plan, caplog):
    shard = plan.shards[0]
    first = write_shard(store, plan, shard.shard, make_table(shard))
    assert write_shard(store, plan, shard.shard, make_table(plan.shards[1])) == first
    assert "the first receipt stands" in caplog.text


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, ROWS), max_size=4), reverse=st.booleans())
def test_equal_tables_have_equal_bytes(cuts, reverse):
    table = make_table(ShardPlan(shard="s", env_seeds=(1,)))
    table = table.replace_schema_metadata({"a": "1", "b": "2"})
    edges = [0, *sorted(cuts), ROWS]
    pieces = pa.concat_tables(
        [table.slice(low, high - low) for low, high in itertools.pairwise(edges)]
    )
    metadata = {"b": "2", "a": "1"} if reverse else {"a": "1", "b": "2"}
    assert parquet_bytes(pieces.replace_schema_metadata(metadata)) == parquet_bytes(table)


def test_id_is_that_of_config_and_inputs(plan):
    assert make_plan().recording_id == plan.recording_id
    assert make_plan(num_shards=2).recording_id == plan.recording_id
    assert make_plan(num_shards=2).plan_id != plan.plan_id
    assert make_plan(steps=2).recording_id != plan.recording_id
    assert replace(plan, inputs={"policy": "p-1"}).recording_id != plan.recording_id


def test_other_division_into_shards_conflicts(store, plan):
    begin(store, plan)
    with pytest.raises(Conflict, match=r"plan\.json"):
        begin(store, make_plan(num_shards=2))


def test_receipt_of_another_division_conflicts(store, plan):
    other = make_plan(num_shards=4)
    for shard in other.shards:
        write_shard(store, other, shard.shard, make_table(shard))
    with pytest.raises(Conflict, match=r"receipts/s00000\.json"):
        commit(store, plan)


def test_schemas_that_differ_conflict(store, plan):
    for index, shard in enumerate(plan.shards):
        table = make_table(shard)
        write_shard(store, plan, shard.shard, table.drop_columns(["t"]) if index == 2 else table)
    with pytest.raises(Conflict, match="one recording has one schema"):
        commit(store, plan)


def test_shard_outside_the_plan_is_refused(store, plan):
    with pytest.raises(ValueError, match="'s9' is not in the plan"):
        write_shard(store, plan, "s9", make_table(plan.shards[0]))


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ((), "no shards"),
        ((ShardPlan(shard="a", env_seeds=(1,)),) * 2, "'a' is twice"),
        ((ShardPlan(shard="a", env_seeds=()),), "no env_seeds"),
        ((ShardPlan(shard="../a", env_seeds=(1,)),), "may not contain"),
    ],
)
def test_impossible_plan_is_refused(shards, message):
    with pytest.raises(ValueError, match=message):
        Plan(config={}, inputs={}, shards=shards)


def flip_a_bit(store, keys):
    content = bytearray(store.get(keys[1]))
    content[len(content) // 2] ^= 1
    rewrite(store, keys[1], bytes(content))
    return keys[1]


def truncate(store, keys):
    rewrite(store, keys[1], store.get(keys[1])[:-10])
    return keys[1]


def remove(store, keys):
    store.backend.delete(keys[2])
    return keys[2]


def swap(store, keys):
    first, second = store.get(keys[0]), store.get(keys[1])
    rewrite(store, keys[0], second)
    rewrite(store, keys[1], first)
    return keys[0]


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove, swap])
def test_damaged_shard_is_refused_by_name(store, manifest, damage):
    key = damage(store, manifest.data_keys)
    with pytest.raises(Corrupt, match=key):
        verify(store, manifest)
    with pytest.raises(Corrupt, match=key):
        list(shard_tables(store, manifest))


def test_damage_before_the_commit_is_found_by_it(store, plan):
    record(store, plan)
    key = next(key for key in store.list() if key.endswith(".parquet"))
    store.backend.delete(key)
    with pytest.raises(Corrupt, match=f"{key}: missing"):
        commit(store, plan)


def test_edited_manifest_is_refused(store, plan, manifest):
    rewrite_manifest(store, manifest, sign=False, rows=1)
    with pytest.raises(Corrupt, match=rf"{manifest.key}: sha256 does not match"):
        open_manifest(store, plan.recording_id)


def test_edited_manifest_with_a_new_hash_is_refused_too(store, plan, manifest):
    receipts = json.loads(store.get(manifest.key))["receipts"]
    other_plan = make_plan(steps=2).to_record()
    for changes, message in (
        ({"rows": 1}, "says 1 rows"),
        ({"plan": other_plan}, "are those of recording"),
        ({"receipts": receipts[:2]}, "its receipts are of shards"),
        (
            {"receipts": [receipts[0], {**receipts[1], "key": receipts[0]["key"]}, receipts[2]]},
            "listed twice",
        ),
        (
            {"receipts": [{**receipts[0], "rows": "40"}, *receipts[1:]]},
            "field 'rows' is '40', wanted int",
        ),
        (
            {"receipts": [{"shard": "s00000"}, *receipts[1:]]},
            r"receipts\[0\]: fields \['shard'\], wanted",
        ),
        ({"plan": {**manifest.plan.to_record(), "version": 7}}, "version 7"),
        ({"extra": 1}, "fields"),
    ):
        rewrite_manifest(store, manifest, sign=True, **changes)
        with pytest.raises((Corrupt, Conflict), match=message):
            open_manifest(store, plan.recording_id)


def test_row_count_that_differs_is_refused(store, manifest):
    wrong = replace(manifest.receipts[0], rows=ROWS + 1)
    edited = replace(manifest, receipts=(wrong, *manifest.receipts[1:]))
    with pytest.raises(Corrupt, match=rf"{wrong.key}: 40 rows, the manifest says 41"):
        verify(store, edited)


@pytest.fixture
def paged(store, monkeypatch):
    """A recording of 5 shards whose manifest has pages of 2."""
    monkeypatch.setattr(recordings, "MANIFEST_SHARDS", 2)
    plan = make_plan(num_shards=5)
    record(store, plan)
    return commit(store, plan)


def test_long_manifest_is_divided_into_pages(store, paged, monkeypatch):
    assert [key.split("/")[-1][:6] for key in paged.pages] == ["00000-", "00001-", "00002-"]
    opened = open_manifest(store, paged.recording_id)
    assert opened == paged
    verify(store, opened)
    written = json.loads(store.get(paged.key))
    assert written["sha256"] == opened.digest
    assert "receipts" not in written
    assert "shards" not in written["plan"]
    before = {key: store.get(key) for key in store.list()}
    assert commit(store, paged.plan) == paged
    assert {key: store.get(key) for key in store.list()} == before


def test_short_manifest_has_no_pages(store, manifest):
    assert not manifest.pages
    written = json.loads(store.get(manifest.key))
    assert sorted(written) == ["plan", "receipts", "rows", "sha256"]
    assert written["sha256"] == manifest.digest


def test_damaged_page_is_refused_by_name(store, paged):
    first, second, _ = paged.pages
    rewrite(store, second, store.get(first))
    with pytest.raises(Corrupt, match=rf"{second}: sha256 differs from {paged.key}"):
        open_manifest(store, paged.recording_id)
    store.backend.delete(second)
    with pytest.raises(Corrupt, match=rf"{second}: missing, but {paged.key} lists it"):
        open_manifest(store, paged.recording_id)


def test_page_left_out_is_noticed(store, paged):
    record = paged.to_record()
    shorter = {**record, "pages": record["pages"][:-1]}
    digest = sha256(canonical_json(shorter))
    rewrite(store, paged.key, canonical_json({**shorter, "sha256": digest}))
    with pytest.raises(Corrupt, match=r"says 5 shards, its pages have 4"):
        open_manifest(store, paged.recording_id)


def test_one_shard_of_a_plan_is_recorded_as_of_the_whole(store, plan, manifest):
    part = plan.only("s00001")
    assert len(part.shards) == 1
    assert (part.recording_id, part.plan_id) == (plan.recording_id, plan.plan_id)
    assert write_shard(store, part, "s00001", make_table(plan.shards[1])) == manifest.receipts[1]
    with pytest.raises(ValueError, match=r"'s00000' is not in the plan"):
        write_shard(store, part, "s00000", make_table(plan.shards[0]))
    with pytest.raises(ValueError, match=r"only its whole plan can be begun"):
        begin(store, part)


def test_verification_tells_where_it_stands_and_ends_at_the_damage(store, manifest):
    noted = []
    verify(store, manifest, lambda *said: noted.append(said), threads=2)
    assert noted == [(1, 3, "s00000"), (2, 3, "s00001"), (3, 3, "s00002")]
    key = flip_a_bit(store, manifest.data_keys)
    noted.clear()
    with pytest.raises(Corrupt, match=key):
        verify(store, manifest, lambda *said: noted.append(said), threads=2)
    assert noted == [(1, 3, "s00000")]


def test_some_columns_are_read_alone_and_counted(store, manifest):
    receipt = manifest.receipts[0]
    assert recordings.read_columns(store, receipt, ["t"]).column_names == ["t"]
    with pytest.raises(Corrupt, match=rf"{receipt.key}: {ROWS} rows, the manifest says 7"):
        recordings.read_columns(store, replace(receipt, rows=7), ["t"])
    truncate(store, [receipt.key, receipt.key])
    with pytest.raises(Corrupt, match=rf"{receipt.key}: missing or not Parquet"):
        recordings.read_columns(store, receipt, ["t"])
    store.backend.delete(receipt.key)
    with pytest.raises(Corrupt, match=rf"{receipt.key}: missing or not Parquet"):
        recordings.read_columns(store, receipt, ["t"])


def test_status_tells_how_far_a_recording_has_come(store, plan):
    with pytest.raises(FileNotFoundError, match=rf"{plan.recording_id} is not in store"):
        recordings.status(store, plan.recording_id)
    begin(store, plan)
    write_shard(store, plan, "s00001", make_table(plan.shards[1]))
    begun = recordings.status(store, plan.recording_id)
    assert (begun.plan, begun.manifest, begun.num_done) == (plan, None, 1)
    record(store, plan)
    manifest = commit(store, plan)
    done = recordings.status(store, plan.recording_id)
    assert (done.plan, done.manifest, done.num_done) == (plan, manifest, 3)
    assert recordings.known_ids(store) == [plan.recording_id]
