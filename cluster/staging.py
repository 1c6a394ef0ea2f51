"""Activations of a recording as two plain arrays on this machine: the episodes to train on, and the held-out ones.

    <workspace>/activations/<identity>/  train.npy, held_out.npy   float16 [N, D], rows in the order of the plan
                                         normalisation.json        mean and scale of the train rows
                                         before.npy                each train row's step before, or -1; if asked for
                            about.json                what they were made from; its time is the last use
                            <identity>.lock

The identity is a hash of the manifest, the site and the split, so what is there is right. It is scratch: every node
makes its own from the store, and makes it again when it is missing.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float16, Int64

from cluster import recordings
from cluster.notes import Note, silent
from cluster.recordings import Manifest
from cluster.store import Store
from interp.dictionaries.temporal import Temporal
from interp.dictionaries.training import Normalisation, SaeConfig, normalisation
from interp.identity import content_id, parse_json
from interp.recording import STEP_KEY, activations, label_columns, steps_before
from interp.records import LABEL_PREFIX, SITE_PREFIX
from interp.stats.episodes import episode_split

logger = logging.getLogger(__name__)

Part = Literal["all", "train", "held_out"]
"""Which episodes of a recording."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Which episodes are held out; the same episodes for every site, policy and stage of a study."""

    held_out_fraction: float = 0.3
    """Share of the episodes that nothing is fitted to."""
    salt: str = "split-0"
    """Another salt draws another split."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(f"held_out_fraction {self.held_out_fraction}: between 0 and 1")

    def held_out(self, env_seed_E: Int64[np.ndarray, " E"]) -> Bool[np.ndarray, " E"]:
        return episode_split(env_seed_E, held_out_fraction=self.held_out_fraction, salt=self.salt)

    def chosen(self, env_seed_N: Int64[np.ndarray, " N"], part: Part) -> Bool[np.ndarray, " N"]:
        """Which rows, each with the seed of its episode, belong to a part."""
        if part == "all":
            return np.ones(len(env_seed_N), np.bool_)
        seed_E, episode_N = np.unique(env_seed_N, return_inverse=True)
        return (self.held_out(seed_E) == (part == "held_out"))[episode_N]

    def check(self, manifest: Manifest) -> None:
        """ValueError if one of the parts would have no episode."""
        seed_E = np.array([seed for shard in manifest.plan.shards for seed in shard.env_seeds])
        held_out_E = self.held_out(seed_E)
        for name, chosen_E in (("train", ~held_out_E), ("held-out", held_out_E)):
            if not chosen_E.any():
                raise ValueError(
                    f"{len(seed_E)} episodes with held_out_fraction {self.held_out_fraction} leave no {name} episode; "
                    "record more"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedActivations:
    """Files of this machine that trials map into memory."""

    folder: Path

    @property
    def train_path(self) -> Path:
        return self.folder / "train.npy"

    @property
    def held_out_path(self) -> Path:
        return self.folder / "held_out.npy"

    @property
    def before_path(self) -> Path:
        """Only there if `stage` was asked for it."""
        return self.folder / "before.npy"

    @property
    def about_path(self) -> Path:
        return self.folder / "about.json"

    @property
    def normalisation_path(self) -> Path:
        return self.folder / "normalisation.json"

    def normalisation(self) -> Normalisation:
        """Of the train rows, as training computes it."""
        content = json.loads(self.normalisation_path.read_text())
        return Normalisation(torch.tensor(content["mean"], dtype=torch.float32), content["scale"])


def stage(
    store: Store,
    recording_id: str,
    site: str,
    split: Split,
    note: Note = silent,
    *,
    with_before: bool = False,
) -> StagedActivations:
    """Writes the arrays of one site from verified shards, or finds them on this machine; in memory is one shard.

    `with_before` also writes which train rows follow each other, from a second look at the shards.

    Processes of one machine that stage the same at the same time wait for the one that began; the folder appears whole.

    Raises:
        FileNotFoundError: no such recording in the store, or it is not finished.
        ValueError: a site that was not recorded, or a split that leaves no episode on one side.
        Corrupt: the recording is not what its manifest says.
    """
    manifest = recordings.open_manifest(store, recording_id)
    source = {"manifest": manifest.digest, "site": site, "split": asdict(split)}
    folder = workspace(store) / content_id("a", source)
    staged = StagedActivations(folder=folder)
    with _locked(folder):
        if folder.exists():
            os.utime(staged.about_path)
            _stage_before(store, manifest, split, staged, wanted=with_before)
            return staged
        split.check(manifest)
        partial = StagedActivations(folder=folder.with_name(f"{folder.name}.partial"))
        shutil.rmtree(partial.folder, ignore_errors=True)
        partial.folder.mkdir()
        with (
            _GrowingArray(partial.train_path) as train,
            _GrowingArray(partial.held_out_path) as held_out,
        ):
            for number, (train_ND, held_out_ND) in enumerate(
                _divided(store, manifest, site, split)
            ):
                train.append(train_ND)
                held_out.append(held_out_ND)
                note(number + 1, len(manifest.receipts), manifest.receipts[number].shard)
        with _one_thread():
            mean_D, scale = normalisation(np.load(partial.train_path, mmap_mode="r"))
        partial.normalisation_path.write_text(json.dumps({"mean": mean_D.tolist(), "scale": scale}))
        partial.about_path.write_text(json.dumps({"recording": recording_id, **source}))
        partial.folder.rename(folder)
        _stage_before(store, manifest, split, staged, wanted=with_before)
    return staged


def needs_before(config: SaeConfig) -> bool:
    """Whether training compares neighbouring steps."""
    return isinstance(config.family, Temporal)


def _stage_before(
    store: Store, manifest: Manifest, split: Split, staged: StagedActivations, *, wanted: bool
) -> None:
    if not wanted or staged.before_path.exists():
        return
    partial = staged.folder / "before.partial.npy"
    np.save(partial, read_before(store, manifest, split))
    partial.rename(staged.before_path)


def read_before(store: Store, manifest: Manifest, split: Split) -> Int64[np.ndarray, " N"]:
    """For each train row, in the order of `stage`, the number of the train row one step earlier, or -1."""
    parts, num_rows = [np.empty(0, np.int64)], 0
    for table in recordings.shard_tables(store, manifest, list(STEP_KEY)):
        train = table.filter(split.chosen(table.column("env_seed").to_numpy(), "train"))
        before_N = steps_before(train)  # rows of one episode are in one shard
        parts.append(np.where(before_N < 0, -1, before_N + num_rows))
        num_rows += len(before_N)
    return np.concatenate(parts)


def read_rows(
    store: Store, recording_id: str, site: str, split: Split
) -> tuple[Float16[np.ndarray, "N D"], Float16[np.ndarray, "M D"]]:
    """The same two arrays in memory, for a task that reads them once."""
    manifest = recordings.open_manifest(store, recording_id)
    split.check(manifest)
    train, held_out = zip(*_divided(store, manifest, site, split), strict=True)
    return np.concatenate(train), np.concatenate(held_out)


def read_held_out_labels(
    store: Store, recording_id: str, split: Split
) -> tuple[tuple[str, ...], Bool[np.ndarray, "M L"]]:
    """Names of the recorded labels, and their values on the held-out rows, in the order of `stage`."""
    manifest = recordings.open_manifest(store, recording_id)
    names = tuple(manifest.plan.config["labels"])
    columns = ["env_seed", *(LABEL_PREFIX + name for name in names)]
    parts = []
    for table in recordings.shard_tables(store, manifest, columns):
        held_out_N = split.chosen(table.column("env_seed").to_numpy(), "held_out")
        parts.append(label_columns(table, names)[held_out_N])
    return names, np.concatenate(parts)


def workspace(store: Store) -> Path:
    """Where this machine keeps staged activations of a store."""
    return store.workspace("activations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A folder of staged activations as it lies on this machine."""

    folder: Path
    recording_id: str | None
    """None if it tells nothing: begun and never finished, or of another version."""
    bytes: int
    used_s: float
    """When it was last used, in seconds since 1970 by this machine's clock."""


def caches(store: Store) -> list[Cache]:
    """All that this machine has staged of a store."""
    found = []
    for folder in sorted(workspace(store).glob("*/")):
        about = StagedActivations(folder=folder).about_path
        known = about.exists() and folder.suffix != ".partial"
        found.append(
            Cache(
                folder=folder,
                recording_id=parse_json(about.read_bytes(), source=str(about)).get("recording")
                if known
                else None,
                bytes=sum(path.stat().st_size for path in folder.iterdir()),
                used_s=(about if known else folder).stat().st_mtime,
            )
        )
    return found


def lock_of(folder: Path) -> Path:
    """The file that is locked by whoever writes or removes that folder; a process that dies lets go of it."""
    return folder.with_name(f"{folder.name.removesuffix('.partial')}.lock")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock_of(folder).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _GrowingArray:
    """A `.npy` file of float16 rows that is written from front to back: the bytes that `np.save` would have written.

    How many rows there are is known at the end, and numpy leaves room for it in the header.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._num_rows = 0
        self._width: int | None = None

    def append(self, x_ND: Float16[np.ndarray, "N D"]) -> None:
        if self._width is None:
            self._width = x_ND.shape[1]
            self._write_header()
        self._file.write(np.ascontiguousarray(x_ND).data)
        self._num_rows += len(x_ND)

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": "<f2", "fortran_order": False, "shape": (self._num_rows, self._width)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._file.seek(0)
            self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())  # a power cut must not leave zeros under the final name
        self._file.close()


def _divided(
    store: Store, manifest: Manifest, site: str, split: Split
) -> Iterator[tuple[Float16[np.ndarray, "N D"], Float16[np.ndarray, "M D"]]]:
    """Train and held-out rows of one verified shard after the other."""
    if "sampling" in manifest.plan.config:
        logger.warning(
            "recording %s is a sample in which rare labels are frequent: mean, scale, FVU and L0 of what is fitted to "
            "it are those of kept rows",
            manifest.recording_id,
        )
    columns = ["env_seed", SITE_PREFIX + site]
    for table in recordings.shard_tables(store, manifest, columns):
        held_out_N = split.chosen(table.column("env_seed").to_numpy(), "held_out")
        x_ND = activations(table, site)
        yield x_ND[~held_out_N], x_ND[held_out_N]


@contextmanager
def _one_thread() -> Iterator[None]:
    """As trials compute: another number of threads may change the last bit of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
