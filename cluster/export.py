"""Recordings for other tools: every row of a finished recording, verified, in a layout that they read without us.

parquet   data/, one file a shard; an activation is a FixedSizeList of D floats, keys and labels beside it
npy       one array [N, D] per site, to be mapped into memory, and rows.parquet with keys and labels in the same order
hf        Parquet below data/, divided into train and test by episode, with a dataset card: a folder that
          `datasets.load_dataset` reads
"""

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import recordings
from cluster.notes import Note, silent
from cluster.recordings import Manifest
from cluster.staging import Split
from cluster.store import Store
from interp.recording import activations
from interp.records import LABEL_PREFIX, SITE_PREFIX

Layout = Literal["parquet", "npy", "hf"]
Precision = Literal["float16", "float32"]


def export(
    store: Store,
    recording_id: str,
    folder: Path,
    *,
    layout: Layout,
    sites: Sequence[str] = (),
    precision: Precision = "float32",
    split: Split,
    note: Note = silent,
) -> int:
    """Writes a recording into a folder that must not exist yet; the number of rows.

    The folder appears when it is whole. One shard is in memory at a time.

    Args:
        sites: Which activations; all of the recording by default.
        precision: Of the activations; they were recorded as float16.
        split: Which episodes are `test` in the layout hf.

    Raises:
        FileExistsError: the folder exists.
        FileNotFoundError: no such recording in the store, or it is not finished.
        ValueError: a site that was not recorded.
        Corrupt: the recording is not what its manifest says.
    """
    manifest = recordings.open_manifest(store, recording_id)
    recorded = tuple(manifest.plan.config["site_widths"])
    if unknown := [site for site in sites if site not in recorded]:
        raise ValueError(
            f"site {unknown[0]!r} is not in recording {recording_id}; it has {', '.join(recorded)}"
        )
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder, or remove it")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    widths = {site: manifest.plan.config["site_widths"][site] for site in sites or recorded}
    shards = _shards(store, manifest, note)
    match layout:
        case "parquet":
            _write_parquet(shards, partial, widths, precision)
        case "npy":
            _write_npy(shards, partial, widths, precision, num_rows=manifest.rows)
        case "hf":
            total = len(manifest.receipts)
            rows = _write_hf(shards, partial, widths, precision, split, total=total)
            (partial / "README.md").write_text(_card(manifest, widths, rows, split))
    about = {
        "recording": recording_id,
        "rows": manifest.rows,
        "sites": widths,
        "precision": precision,
        "labels": manifest.plan.config["labels"],
        "inputs": dict(manifest.plan.inputs),
    }
    (partial / "recording.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
    partial.rename(folder)
    return manifest.rows


def _shards(store: Store, manifest: Manifest, note: Note) -> Iterator[tuple[str, pa.Table]]:
    """Names and verified rows, in the order of the plan; a shard is noted once it was used."""
    for number, receipt in enumerate(manifest.receipts):
        yield receipt.shard, recordings.read_shard(store, receipt)
        note(number + 1, len(manifest.receipts), receipt.shard)


Shards = Iterable[tuple[str, pa.Table]]


def _write_parquet(
    shards: Shards, folder: Path, sites: Collection[str], precision: Precision
) -> None:
    data = folder / "data"
    data.mkdir()
    for shard, table in shards:
        pq.write_table(_with_lists(table, sites, precision), data / f"{shard}.parquet")


def _write_npy(
    shards: Shards,
    folder: Path,
    widths: Mapping[str, int],
    precision: Precision,
    *,
    num_rows: int,
) -> None:
    arrays = {
        site: np.lib.format.open_memmap(
            folder / f"{site}.npy", mode="w+", dtype=np.dtype(precision), shape=(num_rows, width)
        )
        for site, width in widths.items()
    }
    start = 0
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for _, table in shards:
            rows = _without_activations(table)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(folder / "rows.parquet", rows.schema))
            writer.write_table(rows)
            for site, array in arrays.items():
                array[start : start + len(table)] = activations(table, site)
            start += len(table)
    for array in arrays.values():
        array.flush()


def _write_hf(
    shards: Shards,
    folder: Path,
    sites: Collection[str],
    precision: Precision,
    split: Split,
    *,
    total: int,
) -> dict[str, int]:
    """Rows of each split; `total` is the number of shards, which the names of the files tell."""
    data = folder / "data"
    data.mkdir()
    num_rows = {"train": 0, "test": 0}
    for number, (_, table) in enumerate(shards):
        listed = _with_lists(table, sites, precision)
        held_out_N = split.held_out(table.column("env_seed").to_numpy())
        for name, chosen_N in (("train", ~held_out_N), ("test", held_out_N)):
            if chosen_N.any():
                part = listed.filter(pa.array(chosen_N))
                pq.write_table(part, data / f"{name}-{number:05d}-of-{total:05d}.parquet")
                num_rows[name] += len(part)
    return num_rows


def _card(manifest: Manifest, sites: Collection[str], rows: Mapping[str, int], split: Split) -> str:
    """What a dataset's page shows; its head names the files of each split."""
    files = "".join(
        f"  - split: {name}\n    path: data/{name}-*.parquet\n"
        for name, number in rows.items()
        if number
    )
    labels = "".join(
        f"- `{LABEL_PREFIX}{name}`: {definition}\n"
        for name, definition in manifest.plan.config["labels"].items()
    )
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n"
        f"# Activations of {manifest.plan.inputs.get('policy', 'a replay bank')}\n\n"
        f"Recording {manifest.plan.recording_id}: {manifest.rows:,} agent-steps of {len(manifest.receipts)} shards; "
        f"{', '.join(f'{number:,} {name}' for name, number in rows.items())}, divided by episode "
        f"(a hash of env_seed and {split.salt!r}). Columns {', '.join(f'`{SITE_PREFIX}{site}`' for site in sites)} are "
        f"activations; the rows of one episode are not independent.\n\n{labels}"
    )


def _with_lists(table: pa.Table, sites: Collection[str], precision: Precision) -> pa.Table:
    """Activations as lists of floats, which every reader of Parquet knows."""
    out = _without_activations(table)
    for site in sites:
        x_ND = activations(table, site).astype(precision)
        values = pa.array(x_ND.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(values, x_ND.shape[1])
        out = out.append_column(SITE_PREFIX + site, column)
    return out


def _without_activations(table: pa.Table) -> pa.Table:
    kept = [name for name in table.column_names if not name.startswith(SITE_PREFIX)]
    return table.select(kept).replace_schema_metadata(None)
