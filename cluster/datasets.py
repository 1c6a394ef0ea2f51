"""A finished recording as a Ray Dataset, and the proof that all of its rows came through.

Ray Data 2.60 loses rows, without an error, when a file is listed twice (its `count()` even says otherwise), so paths
come from the manifest only, are refused if repeated, and delivered rows are counted.
"""

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import ray.data
from fsspec import AbstractFileSystem

from cluster.backends import Corrupt
from cluster.recordings import Manifest, check_present, open_manifest
from cluster.store import Store


def read(store: Store, recording_id: str, columns: Sequence[str] | None = None) -> ray.data.Dataset:
    """Rows of a committed recording, in no particular order; lazy. Iterate it through `check_delivered`.

    Objects are checked to be there with their sizes; `cluster.recordings.verify` reads every byte. Ray Data needs a
    free CPU: `cluster.runtime.check_cpus` refuses a pool that would leave none.
    """
    manifest = open_manifest(store, recording_id)
    check_present(store, manifest)
    addresses = [store.address(key) for key in manifest.data_keys]
    return read_paths(addresses, columns=columns, filesystem=store.backend.filesystem())


def read_paths(
    paths: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    filesystem: AbstractFileSystem | None = None,
) -> ray.data.Dataset:
    """Parquet files as a Ray Dataset; a path that is listed twice is refused."""
    if len(set(paths)) != len(paths):
        repeated = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(
            f"{repeated} is listed twice: Ray Data would lose rows; list every file once"
        )
    dataset = ray.data.read_parquet(list(paths), filesystem=filesystem)
    return dataset if columns is None else dataset.select_columns(list(columns))


def check_delivered(manifest: Manifest, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Pass batches on, and raise Corrupt at the end unless they had as many rows as the recording."""
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        yield batch
    if rows != manifest.rows:
        raise Corrupt(
            f"{manifest.key}: {rows} rows were delivered, it has {manifest.rows}; do not use what was computed from "
            "them"
        )
