"""Dictionaries in the store, and the sweep that chooses one.

dictionaries/<dict_id>/{config.json, weights.safetensors, card.json}
sweeps/<sweep_id>.json      all trials of a sweep and the dictionary that was chosen
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cluster import recordings
from cluster.backends import Corrupt
from cluster.notes import Note, silent
from cluster.placement import Device, device_of, in_identity
from cluster.staging import Split, needs_before, read_before, read_rows, stage
from cluster.store import Store
from cluster.studio import Studio
from cluster.sweep import MAX_LOSSES, Storage, TrialProgress, load_dictionary, sweep
from interp.dictionaries.dictionary import CONFIG_FILE, WEIGHTS_FILE, Dictionary
from interp.dictionaries.metrics import measure
from interp.dictionaries.selection import choose, pareto_front
from interp.dictionaries.training import CurvePoint, SaeConfig, Trainer
from interp.identity import canonical_json, content_id, parse_json, sha256
from interp.study import DictionaryEntry, TrialEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What a sweep gave: every trial, and the dictionary chosen among them."""

    trials: tuple[TrialEntry, ...]
    curves: tuple[tuple[CurvePoint, ...], ...]
    """Of each trial, every report of its training."""
    chosen: DictionaryEntry
    chosen_config: SaeConfig


def dictionary_id(
    recording_id: str,
    site: str,
    config: SaeConfig,
    *,
    split: Split,
    seed: int,
    device: Device = "cpu",
) -> str:
    """Same rows, same config, same seed, same kind of device: same dictionary."""
    return content_id(
        "d",
        {
            "recording": recording_id,
            "site": site,
            "config": config.to_dict(),
            "split": asdict(split),
            "seed": seed,
            **in_identity(device),
        },
    )


def save(
    store: Store, dict_id: str, dictionary: Dictionary, origin: Mapping[str, Any]
) -> DictionaryEntry:
    """Writes a dictionary, card last; `origin` tells what it was trained on and chosen from."""
    folder = f"dictionaries/{dict_id}"
    entry = DictionaryEntry(
        dict_id=dict_id,
        d_in=dictionary.d_in,
        d_sae=dictionary.d_sae,
        family=dictionary.family,
        fvu=dictionary.fvu,
        l0=dictionary.l0,
        dead_fraction=dictionary.dead_fraction,
    )
    for name, content in dictionary.to_bytes().items():
        store.ensure(f"{folder}/{name}", content)
    store.create(f"{folder}/card.json", canonical_json({"entry": asdict(entry), **origin}))
    return entry


def find(store: Store, dict_id: str) -> DictionaryEntry | None:
    """The entry of a dictionary that the store has, or None."""
    key = f"dictionaries/{dict_id}/card.json"
    if not store.exists(key):
        return None
    try:
        return DictionaryEntry(**parse_json(store.get(key), source=key)["entry"])
    except (KeyError, TypeError) as error:
        raise Corrupt(f"{key}: not a dictionary's card: {error}") from error


def known(store: Store) -> list[DictionaryEntry]:
    """All that are complete, by id."""
    ids = sorted({key.split("/")[1] for key in store.list("dictionaries")})
    entries = [find(store, dict_id) for dict_id in ids]
    return [entry for entry in entries if entry is not None]


def load(store: Store, dict_id: str) -> Dictionary:
    """Raises FileNotFoundError if the store has no such dictionary."""
    if find(store, dict_id) is None:
        raise FileNotFoundError(
            f"dictionary {dict_id} is not in store {store.url}; `sparsight sweep` trains some"
        )
    folder = f"dictionaries/{dict_id}"
    return Dictionary.from_bytes(
        {name: store.get(f"{folder}/{name}") for name in (CONFIG_FILE, WEIGHTS_FILE)}
    )


def adopt(
    store: Store,
    dictionary: Dictionary,
    recording_id: str | None,
    *,
    split: Split,
    origin: Mapping[str, Any],
    note: Note = silent,
) -> DictionaryEntry:
    """Keeps a dictionary that was trained elsewhere, with its figures on held-out rows of a recording.

    Its id is a hash of its content and of what it was measured on. `origin` tells where it comes from.

    Args:
        recording_id: None keeps the figures that it brought with it.

    Raises:
        FileNotFoundError: no such recording in the store, or it is not finished.
        ValueError: no recording, and it has brought no figures; the recording has no such site, or of another width; or
            the dictionary is no better there than the mean row, so that it must have been trained on something else.
    """
    source: dict[str, Any] = {}
    if recording_id is not None:
        source = {"recording": recording_id, "site": dictionary.site, "split": asdict(split)}
        dictionary = _measured(store, recording_id, dictionary, split, note)
    elif math.isnan(dictionary.fvu + dictionary.l0 + dictionary.dead_fraction):
        raise ValueError(
            "the dictionary does not tell its error, sparsity and dead latents; name a recording to measure it on"
        )
    files = {name: sha256(content) for name, content in dictionary.to_bytes().items()}
    return save(
        store, content_id("d", {"files": files, **source}), dictionary, {**source, **origin}
    )


def _measured(
    store: Store, recording_id: str, dictionary: Dictionary, split: Split, note: Note
) -> Dictionary:
    site = dictionary.site
    widths = recordings.open_manifest(store, recording_id).plan.config["site_widths"]
    if site not in widths:
        raise ValueError(
            f"the dictionary reads site {site!r}, which is not in recording {recording_id}; it has "
            f"{', '.join(widths) or 'none'}"
        )
    if widths[site] != dictionary.d_in:
        raise ValueError(
            f"the dictionary reads {dictionary.d_in} activations, but site {site!r} of recording {recording_id} has "
            f"{widths[site]}"
        )
    held_out_path = stage(store, recording_id, site, split, note).held_out_path
    measured = measure(dictionary, np.load(held_out_path, mmap_mode="r"))
    if not measured.fvu < 1:
        raise ValueError(
            f"on held-out rows of {site!r} of recording {recording_id} the dictionary leaves {measured.fvu:.3g} of the "
            "variance unexplained, no better than the mean row: it was trained on another site, policy or scale"
        )
    return replace(
        dictionary, fvu=measured.fvu, l0=measured.l0, dead_fraction=measured.dead_fraction
    )


def sweep_id(
    recording_id: str,
    site: str,
    configs: Sequence[SaeConfig],
    *,
    split: Split,
    seed: int,
    device: Device = "cpu",
) -> str:
    """Same rows, same configs, same seed, same kind of device: same sweep."""
    return content_id(
        "w",
        {
            "recording": recording_id,
            "site": site,
            "configs": [config.to_dict() for config in configs],
            "split": asdict(split),
            "seed": seed,
            **in_identity(device),
        },
    )


def find_sweep(store: Store, identity: str) -> SweepResult | None:
    """A finished sweep, or None."""
    key = f"sweeps/{identity}.json"
    if not store.exists(key):
        return None
    record = parse_json(store.get(key), source=key)
    if "curves" not in record:
        raise Corrupt(f"{key}: of an earlier version, without curves; remove it and run again")
    return SweepResult(
        trials=tuple(TrialEntry(**trial) for trial in record["trials"]),
        curves=tuple(tuple(CurvePoint(**point) for point in curve) for curve in record["curves"]),
        chosen=DictionaryEntry(**record["chosen"]),
        chosen_config=SaeConfig.from_dict(record["chosen_config"]),
    )


def run_sweep(
    store: Store,
    recording_id: str,
    site: str,
    configs: Sequence[SaeConfig],
    *,
    split: Split,
    seed: int,
    target_l0: tuple[float, float] | None,
    max_concurrent: int,
    max_losses: int = MAX_LOSSES,
    gpus_per_trial: float = 0.0,
    on_progress: Callable[[TrialProgress], None] | None = None,
) -> SweepResult:
    """Trains all configs on one recording with Ray Tune, keeps the chosen dictionary and the figures of all trials.

    Resumes a sweep that was cut short. `target_l0` is the range of latents per row that a dictionary should use. With
    `gpus_per_trial` trials compute on GPUs, and the sweep and its dictionary have ids of their own.
    """
    device = device_of(gpus_per_trial)
    identity = sweep_id(recording_id, site, configs, split=split, seed=seed, device=device)
    with_before = any(map(needs_before, configs))
    staged = stage(store, recording_id, site, split, with_before=with_before)
    results = sweep(
        configs,
        train_path=staged.train_path,
        held_out_path=staged.held_out_path,
        site=site,
        storage_path=Storage.of(store),
        name=identity,
        seed=seed,
        known=staged.normalisation(),
        before_path=staged.before_path if with_before else None,
        restage=partial(stage, store, recording_id, site, split, with_before=with_before),
        max_concurrent=max_concurrent,
        max_losses=max_losses,
        gpus_per_trial=gpus_per_trial,
        on_progress=on_progress,
    )
    trials = tuple(
        TrialEntry(
            config=result.config.to_dict(),
            fvu=result.fvu,
            l0=result.l0,
            dead_fraction=result.dead_fraction,
        )
        for result in results
    )
    curves = tuple(result.curve for result in results)
    chosen = choose(results, target_l0=target_l0)
    entry = save(
        store,
        dictionary_id(recording_id, site, chosen.config, split=split, seed=seed, device=device),
        load_dictionary(chosen),
        {
            "recording": recording_id,
            "site": site,
            "sweep": identity,
            "config": chosen.config.to_dict(),
            "pareto_front": [
                {"config": trial.config.to_dict(), "fvu": trial.fvu, "l0": trial.l0}
                for trial in pareto_front(results)
            ],
        },
    )
    store.ensure(
        f"sweeps/{identity}.json",
        canonical_json(
            {
                "trials": [asdict(trial) for trial in trials],
                "curves": [[asdict(point) for point in curve] for curve in curves],
                "chosen": asdict(entry),
                "chosen_config": chosen.config.to_dict(),
            }
        ),
    )
    Storage.of(store).forget(identity)
    return SweepResult(trials=trials, curves=curves, chosen=entry, chosen_config=chosen.config)


@dataclass(frozen=True)
class TrainDictionary:
    """Task: one dictionary of a known config, on staged activations."""

    recording_id: str
    site: str
    config: SaeConfig
    split: Split
    seed: int

    @property
    def dict_id(self) -> str:
        return dictionary_id(
            self.recording_id, self.site, self.config, split=self.split, seed=self.seed
        )

    @property
    def key(self) -> str:
        return f"dictionary of {self.recording_id} {self.site} seed {self.seed}"

    def run(self, studio: Studio) -> DictionaryEntry:
        train_ND, held_out_ND = read_rows(studio.store, self.recording_id, self.site, self.split)
        before_N = None
        if needs_before(self.config):
            manifest = recordings.open_manifest(studio.store, self.recording_id)
            before_N = read_before(studio.store, manifest, self.split)
        trainer = Trainer(
            self.config,
            train_ND,
            held_out_ND,
            site=self.site,
            seed=self.seed,
            before_N=before_N,
        )
        for _ in trainer.run():
            pass
        return save(
            studio.store,
            self.dict_id,
            trainer.dictionary(),
            {
                "recording": self.recording_id,
                "site": self.site,
                "config": self.config.to_dict(),
            },
        )
