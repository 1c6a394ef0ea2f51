"""Activations of a recording as two plain arrays: the episodes to train on, and the held-out ones."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float16, Int64

from cluster import datasets, recordings
from cluster.recordings import Manifest
from cluster.store import Store
from interp.identity import content_id
from interp.recording import activations
from interp.records import SITE_PREFIX
from interp.stats import episode_split


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedActivations:
    """Two `.npy` files of float16 [N, D], in the order of the plan: scratch, made again whenever they are missing."""

    train_path: Path
    held_out_path: Path


def stage(store: Store, recording_id: str, site: str, split: Split) -> StagedActivations:
    """Reads the recording as a Ray Dataset, checks that every row came, and writes the arrays for trials to map."""
    identity = content_id("a", {"recording": recording_id, "site": site, "split": asdict(split)})
    folder = store.workspace("activations") / identity
    staged = StagedActivations(
        train_path=folder / "train.npy", held_out_path=folder / "held_out.npy"
    )
    if folder.exists():
        return staged
    manifest = recordings.open_manifest(store, recording_id)
    dataset = datasets.read(store, recording_id, ["env_seed", "t", "agent", SITE_PREFIX + site])
    batches = datasets.check_delivered(
        manifest, dataset.iter_batches(batch_format="pyarrow", batch_size=None)
    )
    table = pa.concat_tables(batches).sort_by(
        [("env_seed", "ascending"), ("t", "ascending"), ("agent", "ascending")]
    )
    train_ND, held_out_ND = _divide(table, site, split)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.save(partial / staged.train_path.name, train_ND)
    np.save(partial / staged.held_out_path.name, held_out_ND)
    partial.rename(folder)
    return staged


def read_rows(
    store: Store, recording_id: str, site: str, split: Split
) -> tuple[Float16[np.ndarray, "N D"], Float16[np.ndarray, "M D"]]:
    """The same two arrays in memory, from verified shards and without Ray: for a task that reads them once."""
    manifest: Manifest = recordings.open_manifest(store, recording_id)
    columns = ["env_seed", SITE_PREFIX + site]
    return _divide(pa.concat_tables(recordings.shard_tables(store, manifest, columns)), site, split)


def _divide(
    table: pa.Table, site: str, split: Split
) -> tuple[Float16[np.ndarray, "N D"], Float16[np.ndarray, "M D"]]:
    seed_N = table.column("env_seed").to_numpy()
    seed_E, episode_N = np.unique(seed_N, return_inverse=True)
    held_out_N = split.held_out(seed_E)[episode_N]
    x_ND = activations(table, site)
    for name, chosen_N in (("train", ~held_out_N), ("held-out", held_out_N)):
        if not chosen_N.any():
            raise ValueError(
                f"{len(seed_E)} episodes with held_out_fraction {split.held_out_fraction} leave no {name} episode; "
                "record more"
            )
    return x_ND[~held_out_N], x_ND[held_out_N]
