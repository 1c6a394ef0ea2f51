"""A search over configurations of dictionaries: Tune sweeps, what came of all trials, and the dictionary that is kept.

    sweeps/<search_id>/trials.parquet     one row a trial: its config flattened, its figures, its curve
                       search.json        what was asked, the Pareto front, the dictionary kept, and why it was

A search is named by the hash of what it asks. Each round, and each site within it, is an experiment of its own, kept
where `cluster.sweep.Storage` says, so that a search which was cut short goes on where it was, on a store on S3 from any
machine; one that is asked again is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import dictionaries
from cluster.placement import Device, device_of, in_identity
from cluster.staging import Split, needs_before, read_held_out_labels, stage
from cluster.store import Store
from cluster.sweep import Halving, Storage, TrialProgress, TrialResult, load_dictionary, sweep
from interp.concepts.scoring import rank_auroc
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.matching import Stability, stability
from interp.dictionaries.search import Candidate, Space, Tpe
from interp.dictionaries.selection import choose, trade_offs
from interp.dictionaries.training import SaeConfig
from interp.identity import canonical_json, content_id, parse_json
from interp.study import DictionaryEntry

Method = Literal["grid", "random", "tpe"]

_MAX_COVERAGE_ROWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """What to try, and how."""

    space: Mapping[str, Any]
    """See `interp.dictionaries.search`."""
    base: SaeConfig = field(default_factory=SaeConfig)
    """What the space does not name."""
    site: str = "lstm.h"
    """Site of all trials, unless the space names some."""
    method: Method = "grid"
    """grid: every combination. random: draws. tpe: rounds, each by the results of those before (Optuna)."""
    num_trials: int = 16
    """Trials in all, for random and tpe."""
    round_trials: int = 4
    """Trials of a round of tpe."""
    seed: int = 0
    """Of the search, and of trials unless the space names some."""
    halving: Halving | None = None
    """Ends trials that do badly among those as sparse."""
    target_l0: tuple[float, float] | None = None
    """Latents per row that the chosen dictionary should use."""
    coverage_auroc: float = 0.8
    """A label is covered by a dictionary if a latent reaches this AUROC for it on held-out episodes."""
    stability_seeds: int = 2
    """Further seeds of the chosen config, with which its latents are matched; 0 leaves that out."""

    def __post_init__(self) -> None:
        for name in ("num_trials", "round_trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted at least 1")
        if not 0.5 < self.coverage_auroc < 1:
            raise ValueError(
                f"coverage_auroc is {self.coverage_auroc}, wanted above .5 and below 1"
            )
        if self.stability_seeds < 0:
            raise ValueError(f"stability_seeds is {self.stability_seeds}, wanted at least 0")
        self.checked_space()

    def checked_space(self) -> Space:
        """ValueError if it means nothing."""
        space = Space(self.space, base=self.base, site=self.site, seed=self.seed)
        if self.method == "grid":
            space.grid()
        return space

    def to_dict(self) -> dict[str, Any]:
        """Plain values, of which the search's id is a hash."""
        return {**asdict(self), "base": self.base.to_dict(), "space": dict(self.space)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One trial of a search and what came of it, on held-out episodes."""

    candidate: Candidate
    result: TrialResult
    coverage: float
    """Share of labels of which both kinds of rows exist that a latent tells apart; nan if the trial was ended early."""

    @property
    def fvu(self) -> float:
        return self.result.fvu

    @property
    def l0(self) -> float:
        return self.result.l0


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What the store keeps of a search."""

    search_id: str
    trials: pa.Table
    """One row a trial; see `trial_row`."""
    front: tuple[int, ...]
    """Rows of the trials that no other beats in FVU, L0 and coverage at once."""
    chosen: int
    """Row of the trial whose dictionary is kept."""
    rule: str
    """How it was chosen, in words."""
    entry: DictionaryEntry
    stability: Stability | None
    """Of the chosen config over seeds."""


def search_id(
    recording_id: str, config: SearchConfig, *, split: Split, device: Device = "cpu"
) -> str:
    """Same rows, same question, same kind of device: same search."""
    return content_id(
        "h",
        {
            "recording": recording_id,
            "split": asdict(split),
            "search": config.to_dict(),
            **in_identity(device),
        },
    )


def find(store: Store, identity: str) -> SearchResult | None:
    """A finished search, or None."""
    key = f"sweeps/{identity}/search.json"
    if not store.exists(key):
        return None
    content = parse_json(store.get(key), source=key)
    known = content["stability"]
    return SearchResult(
        search_id=identity,
        trials=pq.read_table(pa.BufferReader(store.get(f"sweeps/{identity}/trials.parquet"))),
        front=tuple(content["front"]),
        chosen=content["chosen"],
        rule=content["rule"],
        entry=DictionaryEntry(**content["entry"]),
        stability=None if known is None else Stability(**known),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """How trials are run, none of which changes a number but `gpus_per_trial`, which is part of the search's id."""

    max_concurrent: int
    gpus_per_trial: float = 0.0
    """A part of a GPU may be given; with any, trials compute on it."""
    tensorboard: bool = False
    on_progress: Callable[[TrialProgress], None] | None = None


def run_search(
    store: Store, recording_id: str, config: SearchConfig, *, split: Split, runner: Runner
) -> SearchResult:
    """Trains what the search asks for by Ray, which must be running; keeps one dictionary and all figures."""
    device = device_of(runner.gpus_per_trial)
    identity = search_id(recording_id, config, split=split, device=device)
    space = config.checked_space()
    train = partial(_train, store, recording_id, identity, split=split, runner=runner)
    candidates, results = _all_rounds(space, config, train)
    names, labels_ML = read_held_out_labels(store, recording_id, split)
    tried = [
        Tried(
            candidate=candidate,
            result=result,
            coverage=_coverage(
                store, recording_id, candidate.site, split, result, labels_ML, config
            ),
        )
        for candidate, result in zip(candidates, results, strict=True)
    ]
    whole = [trial for trial in tried if trial.result.is_whole]
    if not whole:
        raise ValueError("halving ended every trial; give it fewer rungs")
    chosen, rule = choose(whole, target_l0=config.target_l0), _rule(config, whole)
    dictionary = load_dictionary(chosen.result)
    steady = _stability(store, recording_id, chosen, dictionary, config, split, train)
    entry = dictionaries.save(
        store,
        dictionaries.dictionary_id(
            recording_id,
            chosen.candidate.site,
            chosen.candidate.config,
            split=split,
            seed=chosen.candidate.seed,
            device=device,
        ),
        dictionary,
        {
            "recording": recording_id,
            "site": chosen.candidate.site,
            "search": identity,
            "config": chosen.candidate.config.to_dict(),
            "rule": rule,
        },
    )
    front = trade_offs([(trial.fvu, trial.l0, -trial.coverage) for trial in tried])
    table = pa.Table.from_pylist([trial_row(trial) for trial in tried])
    store.ensure(f"sweeps/{identity}/trials.parquet", _parquet(table))
    content = {
        "asked": {"recording": recording_id, "split": asdict(split), **config.to_dict()},
        "labels": list(names),
        "front": front,
        "chosen": tried.index(chosen),
        "rule": rule,
        "entry": asdict(entry),
        "stability": None if steady is None else asdict(steady),
    }
    store.ensure(f"sweeps/{identity}/search.json", canonical_json(content))
    Storage.of(store).forget(identity)
    found = find(store, identity)
    assert found is not None
    return found


Train = Callable[[Sequence[Candidate], SearchConfig], list[TrialResult]]


def _all_rounds(
    space: Space, config: SearchConfig, train: Train
) -> tuple[list[Candidate], list[TrialResult]]:
    if config.method != "tpe":
        candidates = (
            space.grid()
            if config.method == "grid"
            else space.random(config.num_trials, seed=config.seed)
        )
        return candidates, train(candidates, config)
    tpe = Tpe(space, seed=config.seed)
    candidates, results = [], []
    while len(candidates) < config.num_trials:
        asked = tpe.ask(min(config.round_trials, config.num_trials - len(candidates)))
        came = train(asked, config)
        tpe.tell([(result.fvu, result.l0) for result in came])
        candidates += asked
        results += came
    return candidates, results


def _train(
    store: Store,
    recording_id: str,
    identity: str,
    candidates: Sequence[Candidate],
    config: SearchConfig,
    *,
    split: Split,
    runner: Runner,
) -> list[TrialResult]:
    """Results in the order of the candidates; each site is staged once and swept by itself."""
    results: dict[int, TrialResult] = {}
    for site in dict.fromkeys(candidate.site for candidate in candidates):
        mine = [number for number, candidate in enumerate(candidates) if candidate.site == site]
        with_before = any(needs_before(candidates[number].config) for number in mine)
        staged = stage(store, recording_id, site, split, with_before=with_before)
        came = sweep(
            [candidates[number].config for number in mine],
            train_path=staged.train_path,
            held_out_path=staged.held_out_path,
            site=site,
            storage_path=Storage.of(store),
            name=identity,
            seed=config.seed,
            seeds=[candidates[number].seed for number in mine],
            known=staged.normalisation(),
            before_path=staged.before_path if with_before else None,
            restage=partial(stage, store, recording_id, site, split, with_before=with_before),
            max_concurrent=runner.max_concurrent,
            halving=config.halving,
            gpus_per_trial=runner.gpus_per_trial,
            tensorboard=runner.tensorboard,
            on_progress=runner.on_progress,
        )
        results |= dict(zip(mine, came, strict=True))
    return [results[number] for number in range(len(candidates))]


def _coverage(
    store: Store,
    recording_id: str,
    site: str,
    split: Split,
    result: TrialResult,
    labels_ML: np.ndarray,
    config: SearchConfig,
) -> float:
    """Share of labels that some latent tells with the wanted AUROC, on evenly spaced held-out rows."""
    if not result.is_whole:
        return float("nan")
    stride = -(-len(labels_ML) // _MAX_COVERAGE_ROWS)
    rows_MD = np.load(stage(store, recording_id, site, split).held_out_path, mmap_mode="r")
    latents_MF = load_dictionary(result).encode_rows(rows_MD[::stride].astype(np.float32))
    label_ML = labels_ML[::stride]
    has_both_L = label_ML.any(0) & ~label_ML.all(0)
    if not has_both_L.any():
        return float("nan")
    all_known = np.ones((1, len(label_ML)), dtype=np.bool_)
    auroc_FL = rank_auroc(latents_MF[None], label_ML[None][..., has_both_L], all_known)
    return float((auroc_FL.max(0) >= config.coverage_auroc).mean())


def _stability(
    store: Store,
    recording_id: str,
    chosen: Tried,
    dictionary: Dictionary,
    config: SearchConfig,
    split: Split,
    train: Train,
) -> Stability | None:
    if not config.stability_seeds:
        return None
    others = [
        Candidate(
            config=chosen.candidate.config,
            site=chosen.candidate.site,
            seed=chosen.candidate.seed + number + 1,
        )
        for number in range(config.stability_seeds)
    ]
    whole = SearchConfig(space={}, base=config.base, site=config.site, seed=config.seed)
    again = [load_dictionary(result) for result in train(others, whole)]
    staged = stage(store, recording_id, chosen.candidate.site, split)
    rows_MD = np.load(staged.held_out_path, mmap_mode="r")
    return stability([dictionary, *again], rows_MD, seed=config.seed)


def _rule(config: SearchConfig, whole: Sequence[Tried]) -> str:
    knee = "the trial farthest below the chord of the Pareto front of FVU and log L0"
    if config.target_l0 is None:
        return knee
    low, high = config.target_l0
    if any(low <= trial.l0 <= high for trial in whole):
        return f"lowest FVU among trials with {low:g} to {high:g} latents a row"
    return f"no trial has {low:g} to {high:g} latents a row, so {knee}"


def trial_row(trial: Tried) -> dict[str, Any]:
    """A trial as a row of the table: config flattened with dots, and every report of its curve in lists."""
    config = trial.candidate.config.to_dict()
    family = config.pop("family")
    curve = [asdict(point) for point in trial.result.curve]
    return {
        "site": trial.candidate.site,
        "seed": trial.candidate.seed,
        "family.name": family.pop("name"),
        **{name: value for name, value in config.items()},
        "family": canonical_json(family).decode().strip(),
        "fvu": trial.fvu,
        "l0": trial.l0,
        "dead_fraction": trial.result.dead_fraction,
        "coverage": trial.coverage,
        "is_whole": trial.result.is_whole,
        "trial_s": trial.result.trial_s,
        **{f"curve.{name}": [point[name] for point in curve] for name in curve[0]},
    }


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
