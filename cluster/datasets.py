"""A finished recording as a Ray Dataset, and the proof that all of its rows came through.

    dataset = read(store, "r-...", ["site.lstm.h", "label.landmark"], "train")
    for batch in delivered(store, "r-...", ["site.lstm.h"], "train"): ...
    mean, scale = normalisation(store, "r-...", "lstm.h")

Ray Data 2.60 loses rows, without an error, when a file is listed twice (its `count()` even says otherwise), so paths
come from the manifest only, are refused if repeated, and delivered rows are counted.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import numpy as np
import pyarrow as pa
import ray.data
from fsspec import AbstractFileSystem

from cluster.backends import Corrupt
from cluster.fanout import in_threads
from cluster.recordings import Manifest, Receipt, check_present, open_manifest, read_columns
from cluster.staging import Part, Split, stage
from cluster.store import Store
from interp.dictionaries.training import Normalisation

SEED = "env_seed"
"""The column that says to which episode a row belongs."""


def read(
    store: Store,
    recording_id: str,
    columns: Sequence[str] | None = None,
    split: Split | Part = Split(),  # noqa: B008 - frozen
    *,
    part: Part = "all",
) -> ray.data.Dataset:
    """Rows of a committed recording, or of its training or held-out episodes, in no particular order; lazy.

    `split` is "train" or "held_out" where episodes are divided as by default, else the division itself, of which
    `part` is wanted.

    Iterate it through `check_delivered`, or let `delivered` do both. Objects are checked to be there with their sizes;
    `cluster.recordings.verify` reads every byte. Shards without an episode of the part are not read. Ray Data needs a
    free CPU: `cluster.runtime.check_cpus` refuses a pool that would leave none.

    Raises:
        FileNotFoundError: no such recording in the store, or it is not finished.
        ValueError: a part without an episode.
        Corrupt: an object is missing or has another size.
    """
    split, part = _wanted(split, part)
    manifest = open_manifest(store, recording_id)
    check_present(store, manifest)
    if part != "all":
        split.check(manifest)
    chosen, mixed = _receipts_of(manifest, part, split)
    wanted = list(columns) if columns is not None else None
    dataset = read_paths(
        [store.address(receipt.key) for receipt in (*chosen, *mixed)],
        columns=wanted if wanted is None or not mixed else [*dict.fromkeys([*wanted, SEED])],
        filesystem=store.backend.filesystem(),
    )
    if not mixed:
        return dataset

    def keep(batch: pa.Table) -> pa.Table:
        kept = batch.filter(pa.array(split.chosen(batch.column(SEED).to_numpy(), part)))
        return kept if wanted is None else kept.select(wanted)

    return dataset.map_batches(keep, batch_format="pyarrow", batch_size=None)


def delivered(
    store: Store,
    recording_id: str,
    columns: Sequence[str] | None = None,
    split: Split | Part = Split(),  # noqa: B008 - frozen
    *,
    part: Part = "all",
    batch_rows: int | None = None,
) -> Iterator[pa.Table]:
    """The rows of `read` as tables of `batch_rows` rows (by default as Ray has them), counted.

    Raises Corrupt at the end unless as many came as the part has.
    """
    split, part = _wanted(split, part)
    manifest = open_manifest(store, recording_id)
    dataset = read(store, recording_id, columns, split, part=part)
    batches = dataset.iter_batches(batch_size=batch_rows, batch_format="pyarrow")
    return check_delivered(manifest, batches, rows=expected_rows(store, manifest, part, split))


def normalisation(
    store: Store,
    recording_id: str,
    site: str,
    split: Split = Split(),  # noqa: B008 - frozen
) -> Normalisation:
    """Mean and scale of a site's activations in training episodes, as dictionaries are trained with.

    Stages the site on this machine if that has not been done; raises as `cluster.staging.stage` does.
    """
    return stage(store, recording_id, site, split).normalisation()


def _wanted(split: Split | Part, part: Part) -> tuple[Split, Part]:
    if isinstance(split, Split):
        return split, part
    if split not in get_args(Part):
        raise ValueError(f"split {split!r}: wanted {', '.join(get_args(Part))}, or a Split")
    if part not in ("all", split):
        raise ValueError(f"split {split!r} and part {part!r} are not the same; give one of them")
    return Split(), split


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


def expected_rows(store: Store, manifest: Manifest, part: Part, split: Split) -> int:
    """How many rows a part has, told without Ray.

    Shards whose episodes are all on one side count by their receipts; of the others the one column that tells the
    episode is read.
    """
    chosen, mixed = _receipts_of(manifest, part, split)

    def count(receipt: Receipt) -> int:
        seed_N = read_columns(store, receipt, [SEED]).column(SEED).to_numpy()
        return int(split.chosen(seed_N, part).sum())

    return sum(receipt.rows for receipt in chosen) + sum(in_threads(count, mixed))


def check_delivered(
    manifest: Manifest, batches: Iterable[pa.Table], *, rows: int | None = None
) -> Iterator[pa.Table]:
    """Pass batches on, and raise Corrupt at the end unless they had so many rows; by default all of the recording."""
    wanted = manifest.rows if rows is None else rows
    found = 0
    for batch in batches:
        found += batch.num_rows
        yield batch
    if found != wanted:
        raise Corrupt(
            f"{manifest.key}: {found} rows were delivered, it has {wanted}; do not use what was computed from them"
        )


def _receipts_of(
    manifest: Manifest, part: Part, split: Split
) -> tuple[list[Receipt], list[Receipt]]:
    """Shards of which every episode belongs to the part, and those of which some do."""
    if part == "all":
        return list(manifest.receipts), []
    whole, mixed = [], []
    for shard, receipt in zip(manifest.plan.shards, manifest.receipts, strict=True):
        chosen_E = split.chosen(np.array(shard.env_seeds), part)
        if chosen_E.all():
            whole.append(receipt)
        elif chosen_E.any():
            mixed.append(receipt)
    return whole, mixed
