"""Recordings in the layouts of other tools: the same rows, whole or not at all."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.backends import Corrupt
from cluster.export import Layout, export
from cluster.recordings import Manifest, Plan, ShardPlan, begin, commit, write_shard
from cluster.staging import Split
from cluster.store import Store
from jobs.main import main

SPLIT = Split(held_out_fraction=0.5)
SEEDS = range(12)
ROWS = 6
"""Of each episode."""


def activation(site: str, seed: int) -> np.ndarray:
    width = {"lstm.h": 4, "encoder": 3}[site]
    generator = np.random.default_rng([seed, width])
    return generator.standard_normal((ROWS, width)).astype(np.float16)


def table(shard: ShardPlan) -> pa.Table:
    episodes = [
        pa.table(
            {
                "env_seed": pa.array([seed] * ROWS, pa.int64()),
                "t": pa.array(range(ROWS), pa.int32()),
                "label.near": pa.array([seed % 2 == 0] * ROWS),
                **{
                    f"site.{site}": pa.FixedSizeBinaryArray.from_buffers(
                        pa.binary(2 * activation(site, seed).shape[1]),
                        ROWS,
                        [None, pa.py_buffer(activation(site, seed))],
                    )
                    for site in ("lstm.h", "encoder")
                },
            }
        )
        for seed in shard.env_seeds
    ]
    return pa.concat_tables(episodes)


@pytest.fixture
def manifest(store: Store) -> Manifest:
    shards = tuple(
        ShardPlan(shard=f"s{n:05d}", env_seeds=tuple(SEEDS[3 * n : 3 * n + 3])) for n in range(4)
    )
    config = {
        "site_widths": {"lstm.h": 4, "encoder": 3},
        "labels": {"near": "an altar within two cells"},
    }
    plan = Plan(config=config, inputs={"policy": "p-0123456789abcdef"}, shards=shards)
    begin(store, plan)
    for shard in shards:
        write_shard(store, plan, shard.shard, table(shard))
    return commit(store, plan)


def wanted(site: str, seeds: range | list[int] = SEEDS) -> np.ndarray:
    return np.concatenate([activation(site, seed) for seed in seeds])


def exported(
    store: Store, manifest: Manifest, folder: Path, layout: Layout, **options: Any
) -> Path:
    options = {"split": SPLIT, **options}
    rows = export(store, manifest.plan.recording_id, folder, layout=layout, **options)
    assert rows == len(SEEDS) * ROWS
    return folder


def lists(found: pa.Table, site: str) -> np.ndarray:
    column = found.column(f"site.{site}").combine_chunks()
    return np.asarray(column.flatten()).reshape(len(found), -1)


def test_parquet_holds_the_rows_with_lists_of_floats(
    store: Store, manifest: Manifest, tmp_path: Path
) -> None:
    folder = exported(store, manifest, tmp_path / "out", "parquet") / "data"
    found = pq.read_table(folder)
    assert len(list(folder.glob("*.parquet"))) == 4
    assert found.schema.field("site.lstm.h").type == pa.list_(pa.float32(), 4)
    np.testing.assert_array_equal(lists(found, "lstm.h"), wanted("lstm.h").astype(np.float32))
    assert found.column("env_seed").to_pylist() == [seed for seed in SEEDS for _ in range(ROWS)]
    assert found.column("label.near").to_pylist()[: ROWS + 1] == [True] * ROWS + [False]


def test_arrays_can_be_mapped_and_lie_in_the_order_of_the_rows(
    store: Store, manifest: Manifest, tmp_path: Path
) -> None:
    folder = exported(store, manifest, tmp_path / "out", "npy", precision="float16")
    mapped = np.load(folder / "lstm.h.npy", mmap_mode="r")
    assert mapped.dtype == np.float16
    np.testing.assert_array_equal(mapped, wanted("lstm.h"))
    np.testing.assert_array_equal(np.load(folder / "encoder.npy"), wanted("encoder"))
    rows = pq.read_table(folder / "rows.parquet")
    assert rows.column_names == ["env_seed", "t", "label.near"]
    assert len(rows) == len(mapped)


def test_a_dataset_folder_divides_by_episode_and_tells_its_files(
    store: Store, manifest: Manifest, tmp_path: Path
) -> None:
    folder = exported(store, manifest, tmp_path / "out", "hf", sites=("encoder",))
    held_out_E = SPLIT.held_out(np.array(SEEDS))
    for name, chosen_E in (("train", ~held_out_E), ("test", held_out_E)):
        files = sorted((folder / "data").glob(f"{name}-*.parquet"))
        found = pa.concat_tables(pq.read_table(file) for file in files)
        seeds = [seed for seed, chosen in zip(SEEDS, chosen_E, strict=True) if chosen]
        assert seeds
        np.testing.assert_array_equal(lists(found, "encoder"), wanted("encoder", seeds))
        assert "site.lstm.h" not in found.column_names
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nconfigs:\n- config_name: default\n")
    assert "path: data/test-*.parquet" in card
    assert "`label.near`: an altar within two cells" in card


def test_a_dataset_folder_loads_by_its_card_alone(
    store: Store, manifest: Manifest, tmp_path: Path
) -> None:
    """As `datasets.load_dataset` goes about it, which is no dependency: the card's globs, then one schema for all."""
    folder = exported(store, manifest, tmp_path / "out", "hf")
    head = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    (config,) = head["configs"]
    assert config["config_name"] == "default"
    files = {one["split"]: sorted(folder.glob(one["path"])) for one in config["data_files"]}
    assert files.keys() == {"train", "test"}
    listed = [file for found in files.values() for file in found]
    assert sorted(listed) == sorted((folder / "data").iterdir())
    schemas = {pq.read_schema(file).to_string() for file in listed}
    assert len(schemas) == 1
    schema = pq.read_schema(listed[0])
    assert schema.metadata is None  # of pandas or ours: what a loader would interpret
    assert {field.name: field.type for field in schema} == {
        "env_seed": pa.int64(),
        "t": pa.int32(),
        "label.near": pa.bool_(),
        "site.lstm.h": pa.list_(pa.float32(), 4),
        "site.encoder": pa.list_(pa.float32(), 3),
    }
    seeds = {
        name: set(ds.dataset(found).to_table(["env_seed"]).column(0).to_pylist())
        for name, found in files.items()
    }
    assert seeds["train"].isdisjoint(seeds["test"])
    about = json.loads((folder / "recording.json").read_text())
    assert about["rows"] == sum(pq.read_metadata(file).num_rows for file in listed)


@pytest.mark.parametrize("layout", get_args(Layout))
def test_a_damaged_recording_leaves_no_folder(
    store: Store, manifest: Manifest, tmp_path: Path, layout: Layout
) -> None:
    last = store.local_path(manifest.receipts[-1].key)
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(bytes(content))
    with pytest.raises(Corrupt, match=r"sha256 differs"):
        exported(store, manifest, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over_and_what_is_not_there_is_named(
    store: Store, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording_id = manifest.plan.recording_id
    with pytest.raises(ValueError, match=r"site 'lstm.z' .* it has encoder, lstm.h"):
        exported(store, manifest, tmp_path / "out", "npy", sites=("lstm.z",))
    arguments = ["export", "--store", store.url, "--recording", recording_id, "--out"]
    main([*arguments, str(tmp_path / "new")])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "new")
    with pytest.raises(SystemExit):
        main([*arguments, str(tmp_path / "new")])
    assert "exists; name a new folder" in capsys.readouterr().err
