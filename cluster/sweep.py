"""Which sparsity, which family? Many dictionaries trained on the same rows, as one Ray Tune experiment.

    train.npy, held_out.npy  ->  one trial per config (1 CPU, 1 thread, actors reused)  ->  [TrialResult]

A trial that does badly can be ended early, see `Halving`.

The rows are staged once per node as two `.npy` files that every trial maps into memory; only their paths and
digests travel. An experiment is named by the hash of all that its numbers depend on, so asking again for the same
sweep resumes what was cut short and returns what was finished; the number of trials at once never changes a number.
Tune keeps its own state there as pickles: a storage path must be as trusted as this code. Of a store on S3 that is its
scratch/sweeps, so that another machine goes on where one was lost; every process has its own credentials.
"""

import hashlib
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import torch
from pyarrow.fs import FileSelector, FSSpecHandler, PyFileSystem
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.logger import TBXLoggerCallback
from ray.tune.schedulers import FIFOScheduler

from cluster.placement import Device, check_placement, take_device
from cluster.process import settle
from cluster.store import Store
from interp.dictionaries.dictionary import CONFIG_FILE, WEIGHTS_FILE, Dictionary
from interp.dictionaries.metrics import DensitySummary
from interp.dictionaries.temporal import Temporal
from interp.dictionaries.training import (
    CurvePoint,
    Normalisation,
    Progress,
    SaeConfig,
    Trainer,
    check_rows,
)

_STATE_FILE = "trainer.pt"
# After a crash Tune goes by an index that may be a few checkpoints old; with few kept it would point at deleted ones.
_NUM_CHECKPOINTS = 5
MAX_LOSSES = 5
"""Losses that a trial survives, each of which costs it the time since its last report. Tune counts those of its process
and its node like its own errors: with one, the second preempted node failed a sweep that would have ended well."""


class SweepError(RuntimeError):
    """Some trials failed; the others are kept, and the same call tries the failed ones again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialProgress:
    """One report of one trial, as it arrives at the driver."""

    trial: int
    """Position of its config in the list given to `sweep`."""
    num_trials: int
    num_done: int
    """Trials finished, this report included."""
    config: SaeConfig
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    config: SaeConfig
    fvu: float
    """Fraction of variance unexplained on all held-out rows."""
    l0: float
    """Latents active per held-out row."""
    dead_fraction: float
    """Share of latents silent on every held-out row."""
    dictionary_uri: str | None
    """Folder with the dictionary's files, which `load_dictionary` reads; None if the trial was ended early."""
    filesystem: pyarrow.fs.FileSystem | None = field(default=None, compare=False, repr=False)
    """Of that folder, if it is not one of this machine."""
    curve: tuple[CurvePoint, ...]
    """Every report of the trial, in order."""
    seed: int
    """Of its weights and the order of its rows."""
    trial_s: float
    """Seconds that it trained and reported."""

    @property
    def is_whole(self) -> bool:
        """False if it was ended early."""
        return self.dictionary_uri is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Where experiments keep their state and checkpoints."""

    path: str
    filesystem: pyarrow.fs.FileSystem | None = None
    """None for a folder that every node has. It travels to trials, so it holds no credentials: each process takes its
    own from the environment that its node started with."""

    @classmethod
    def of(cls, store: Store) -> "Storage":
        """A folder store's own workspace; of another the objects below its scratch/sweeps."""
        filesystem = store.backend.filesystem()
        if filesystem is None:
            return cls(path=str(store.workspace("sweeps").resolve()))
        _, _, path = store.address("scratch/sweeps").partition("://")
        return cls(path=path, filesystem=PyFileSystem(FSSpecHandler(filesystem)))

    def forget(self, name: str) -> None:
        """Takes away what is left of experiments of that name, once all that is worth keeping is in the store.

        A folder keeps it: there it is in nobody's way, and `--tensorboard` has its files there.
        """
        if self.filesystem is None:
            return
        for found in self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True)):
            if found.base_name.startswith(f"{name}-"):
                self.filesystem.delete_dir(found.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Halving:
    """Ends trials that do badly among their likes: asynchronous successive halving (Li et al. 2020, arXiv:1810.05934).

    At each rung a trial goes on if its FVU is among the best 1 / `factor` of those that came there so far with as many
    active latents, to a factor of two: a sparser dictionary has the higher FVU and is not the worse for it. So which
    trials end depends on who comes first; with one trial at a time it is the same every time. A sweep that is resumed
    counts from its resumption.
    """

    rungs: tuple[float, ...] = (0.25, 0.5)
    """Shares of the budget at which trials are compared; the next report counts."""
    factor: int = 3
    """One in so many goes on, as soon as so many have come."""

    def __post_init__(self) -> None:
        if not self.rungs or not all(0 < rung < 1 for rung in self.rungs):
            raise ValueError(f"rungs are {self.rungs}, wanted shares above 0 and below 1")
        if self.factor < 2:
            raise ValueError(f"factor is {self.factor}, wanted at least 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedRows:
    """A `.npy` file of [rows, D] float16 or float32 at the same path on every node, and what it must contain."""

    path: str
    sha256: str

    @classmethod
    def of(cls, path: str | Path) -> "StagedRows":
        path = Path(path).resolve()
        return cls(
            path=str(path),
            sha256=_file_sha256(str(path), path.stat().st_mtime_ns, path.stat().st_size),
        )

    def open(self, restage: Callable[[], object] | None = None) -> np.ndarray:
        """Maps the rows read-only, after checking that this node has the right file.

        `restage` is called on a node that has none, and must put it there.
        """
        path = Path(self.path)
        if not path.exists() and restage is not None:
            restage()
        if not path.exists():
            raise ValueError(
                f"rows {self.path} not on node {os.uname().nodename}; stage the file on every node"
            )
        found = _file_sha256(self.path, path.stat().st_mtime_ns, path.stat().st_size)
        if found != self.sha256:
            raise ValueError(
                f"rows {self.path} have sha256 {found[:16]}, wanted {self.sha256[:16]}; stage them again"
            )
        return np.load(self.path, mmap_mode="r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What all trials of a sweep share."""

    train: StagedRows
    held_out: StagedRows
    site: str
    known: Normalisation | None
    """Of the train rows; None if every trial is to compute it."""
    before: StagedRows | None
    """For each train row the number of the row one step earlier, which the temporal family needs."""
    restage: Callable[[], object] | None
    """Puts both files on a node that lacks them."""
    device: str
    """Where trials compute: cpu, or cuda."""
    gpus: float
    """Of each trial."""


class SaeTrial(tune.Trainable):
    """A `Trainer` in Tune's clothes: one step trains from one report to the next."""

    def setup(self, config: dict[str, Any], inputs: Inputs | None = None) -> None:
        """Called once per actor; `tune.with_parameters` provides the inputs."""
        assert inputs is not None
        logging.getLogger("ray.train").setLevel(logging.WARNING)  # a line per checkpoint
        logging.getLogger("ray.tune").setLevel(logging.WARNING)
        settle()
        self._inputs = inputs
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        # Made at the first step: an error there is the trial's, an error here would be a dead actor.
        self._config = SaeConfig.from_dict(new_config["trial"]["sae"])
        self._seed = int(new_config["trial"]["seed"])
        self.__dict__.pop("_trainer", None)
        self._curve: list[dict[str, Any]] = []
        return True

    @cached_property
    def _trainer(self) -> Trainer:
        inputs = self._inputs
        rows = inputs.train.open(inputs.restage), inputs.held_out.open(inputs.restage)
        return Trainer(
            self._config,
            *rows,
            site=inputs.site,
            seed=self._seed,
            known=inputs.known,
            before_N=self._before_N,
            device=str(take_device(inputs.device, inputs.gpus)),
        )

    @property
    def _before_N(self) -> np.ndarray | None:
        before = self._inputs.before
        if before is None or not isinstance(self._config.family, Temporal):
            return None
        return np.asarray(before.open(self._inputs.restage))

    def step(self) -> dict[str, Any]:
        """The next report, in plain values; its `done` is also what tells Tune that the trial is over."""
        report = self._trainer.report()
        self._curve.append(asdict(CurvePoint.of(report)))
        return {**asdict(report), "curve": list(self._curve)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        state = {"trainer": self._trainer.state_dict(), "curve": self._curve}
        torch.save(state, Path(checkpoint_dir, _STATE_FILE))
        if self._trainer.done:
            for name, content in self._trainer.dictionary().to_bytes().items():
                Path(checkpoint_dir, name).write_bytes(content)

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | None) -> None:
        """Tune gives the folder that `save_checkpoint` wrote to."""
        assert isinstance(checkpoint, str)
        state = torch.load(Path(checkpoint, _STATE_FILE), weights_only=True)
        self._trainer.load_state_dict(state["trainer"])
        self._curve = state["curve"]


def sweep(
    configs: Sequence[SaeConfig],
    *,
    train_path: str | Path,
    held_out_path: str | Path,
    site: str,
    storage_path: str | Path | Storage,
    name: str,
    seed: int,
    known: Normalisation | None = None,
    before_path: str | Path | None = None,
    restage: Callable[[], object] | None = None,
    max_concurrent: int | None = None,
    max_losses: int = MAX_LOSSES,
    seeds: Sequence[int] | None = None,
    halving: Halving | None = None,
    gpus_per_trial: float = 0.0,
    device: Device | None = None,
    tensorboard: bool = False,
    on_progress: Callable[[TrialProgress], None] | None = None,
) -> list[TrialResult]:
    """Trains every config on the same rows; results in the order of `configs`.

    Ray must be running. Ctrl-C raises KeyboardInterrupt once the state is saved; call again to go on (with the
    `max_concurrent` of the first call, which Tune keeps).

    Args:
        storage_path: A folder or a URL that every node can write, or a `Storage`.
        known: The normalisation of the train rows, if that was computed before.
        before_path: A `.npy` file with, for each train row, the number of the row one step earlier, or -1; of the
            temporal family, which other families never read.
        restage: Called on a node without the files; must put them at the same paths there.
        max_concurrent: Trials at once; by default as many as there are CPUs.
        max_losses: Of its process or node, that a trial survives.
        seeds: Of the trials, by default `seed` for all.
        halving: Ends trials that do badly.
        gpus_per_trial: Perhaps a part of a GPU, which Ray then gives to several trials, each of which keeps within its
            part of the memory.
        device: Where trials compute; by default on their GPU if they have any.
        tensorboard: Writes what is reported as TensorBoard files, beside each trial's checkpoints.
    """
    if not ray.is_initialized():
        raise ValueError("Ray is not running; call ray.init before a sweep")
    if not configs:
        raise ValueError("no config to train; give at least one")
    if max_concurrent is not None and max_concurrent < 1:
        raise ValueError(f"max_concurrent is {max_concurrent}, wanted at least 1")
    if seeds is not None and len(seeds) != len(configs):
        raise ValueError(f"{len(seeds)} seeds for {len(configs)} configs; give one for each")
    is_temporal = any(isinstance(config.family, Temporal) for config in configs)
    if is_temporal and before_path is None:
        raise ValueError(
            "the temporal family compares neighbouring steps; give before_path, or leave it out"
        )
    check_placement(name="gpus_per_trial", gpus=gpus_per_trial)
    seeds = [seed] * len(configs) if seeds is None else list(seeds)
    inputs = Inputs(
        train=StagedRows.of(train_path),
        held_out=StagedRows.of(held_out_path),
        site=site,
        known=known,
        before=StagedRows.of(before_path) if is_temporal and before_path is not None else None,
        restage=restage,
        device=device or ("cuda" if gpus_per_trial else "cpu"),
        gpus=gpus_per_trial,
    )
    check_rows(inputs.train.open(), inputs.held_out.open())
    if isinstance(storage_path, Storage):
        storage = storage_path
    elif "://" in str(storage_path):
        storage = Storage(path=str(storage_path))
    else:
        storage = Storage(path=str(Path(storage_path).resolve()))
    experiment = f"{name}-{_digest(configs, seeds, inputs, halving)}"
    experiment_uri = f"{storage.path}/{experiment}"

    trainable = tune.with_resources(
        tune.with_parameters(SaeTrial, inputs=inputs), {"cpu": 1, "gpu": gpus_per_trial}
    )
    space = {
        "trial": tune.grid_search(
            [
                {"index": index, "sae": config.to_dict(), "seed": own_seed}
                for index, (config, own_seed) in enumerate(zip(configs, seeds, strict=True))
            ]
        )
    }
    callbacks: list[tune.Callback] = [_Forward(experiment_uri, num_trials=len(configs))]
    if tensorboard:
        callbacks.append(TBXLoggerCallback())
    with _listening(experiment_uri, on_progress), _tune_in_the_background():
        if tune.Tuner.can_restore(experiment_uri, storage_filesystem=storage.filesystem):
            tuner = tune.Tuner.restore(
                experiment_uri,
                trainable=trainable,
                param_space=space,
                resume_unfinished=True,
                restart_errored=True,
                storage_filesystem=storage.filesystem,
            )
        else:
            tuner = tune.Tuner(
                trainable,
                param_space=space,
                tune_config=tune.TuneConfig(
                    reuse_actors=True,
                    max_concurrent_trials=max_concurrent,
                    scheduler=None if halving is None else BandedHalving(halving),
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=tune.RunConfig(
                    name=experiment,
                    storage_path=storage.path,
                    storage_filesystem=storage.filesystem,
                    verbose=0,
                    callbacks=callbacks,
                    checkpoint_config=tune.CheckpointConfig(
                        num_to_keep=_NUM_CHECKPOINTS, checkpoint_frequency=1, checkpoint_at_end=True
                    ),
                    failure_config=tune.FailureConfig(max_failures=max_losses),
                ),
            )
        grid = tuner.fit()
    trials = _collect(grid, configs, seeds, experiment_uri)
    return [replace(trial, filesystem=storage.filesystem) for trial in trials]


def load_dictionary(trial: TrialResult) -> Dictionary:
    """Reads the dictionary of a trial from the sweep's storage; ValueError if it was ended early and has none."""
    if trial.dictionary_uri is None:
        raise ValueError(f"the trial of {trial.config} was ended early and has no dictionary")
    filesystem, path = trial.filesystem, trial.dictionary_uri
    if filesystem is None:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(path)
    files = {}
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            files[name] = stream.read()
    return Dictionary.from_bytes(files)


class BandedHalving(FIFOScheduler):
    """`Halving` for Tune."""

    def __init__(self, halving: Halving) -> None:
        super().__init__()
        self._halving = halving
        self._came: dict[tuple[float, int], dict[str, float]] = {}
        """By rung and band of sparsity: FVU of the trials that came there."""

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        if result["done"]:
            return FIFOScheduler.CONTINUE
        share = result["step"] / result["num_steps"]
        band = round(log2(max(result["l0"], 1.0)))
        for rung in self._halving.rungs:
            is_first = not any(
                trial.trial_id in came for (at, _), came in self._came.items() if at == rung
            )
            if share < rung or not is_first:
                continue
            came = self._came.setdefault((rung, band), {})
            came[trial.trial_id] = result["fvu"]
            best = sorted(came.values())[: max(1, len(came) // self._halving.factor)]
            if len(came) >= self._halving.factor and result["fvu"] > best[-1]:
                return FIFOScheduler.STOP
        return FIFOScheduler.CONTINUE


def _collect(
    grid: tune.ResultGrid, configs: Sequence[SaeConfig], seeds: Sequence[int], experiment_uri: str
) -> list[TrialResult]:
    """Results in the order of `configs`; raises if one failed or the sweep was interrupted."""
    results = {_trial_index(result.path): result for result in grid}
    if failed := {index: result.error for index, result in sorted(results.items()) if result.error}:
        raise SweepError(
            f"{len(failed)} of {len(configs)} trials failed; {experiment_uri} keeps the others, call again to retry: "
            + "; ".join(
                f"trial {index}: {_cause(error)!r} with {configs[index]}"
                for index, error in failed.items()
            )
        )
    ended = {
        _trial_index(trial.local_path or "")
        for trial in grid._experiment_analysis.trials
        if trial.status == Trial.TERMINATED
    }
    trials = []
    for index, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
        result = results.get(index)
        if result is None or index not in ended:
            raise KeyboardInterrupt(
                f"sweep stopped before trial {index} was done; call again to resume"
            )
        assert result.metrics is not None
        uri = None
        if (
            result.metrics["step"] >= result.metrics["num_steps"]
        ):  # Tune says "done" of ended ones too
            assert result.checkpoint is not None
            checkpoint = Path(result.checkpoint.path)
            uri = f"{experiment_uri}/{checkpoint.parent.name}/{checkpoint.name}"
        trials.append(
            TrialResult(
                config=config,
                fvu=result.metrics["fvu"],
                l0=result.metrics["l0"],
                dead_fraction=result.metrics["dead_fraction"],
                dictionary_uri=uri,
                curve=tuple(CurvePoint(**point) for point in result.metrics["curve"]),
                seed=seed,
                trial_s=result.metrics["time_total_s"],
            )
        )
    return trials


def _digest(
    configs: Sequence[SaeConfig], seeds: Sequence[int], inputs: Inputs, halving: Halving | None
) -> str:
    """Hash of all that the numbers of a sweep depend on; where the rows lie is not part of it."""
    content = {
        "configs": [config.to_dict() for config in configs],
        "rows": [file.sha256 for file in (inputs.train, inputs.held_out, inputs.before) if file],
        "site": inputs.site,
        "seeds": list(seeds),
        "device": inputs.device,
        "halving": halving and asdict(halving),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _file_sha256(path: str, modified_ns: int, size: int) -> str:
    """Digest of a file, computed once per process and version of the file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.config['trial']['index']:03d}"


def _trial_index(path: str) -> int:
    return int(Path(path).name.removeprefix("trial-"))


def _cause(error: Exception) -> Exception:
    """What the trial raised, without Ray's wrapping."""
    return error.cause if isinstance(error, RayTaskError) else error


# A listener may hold a progress bar, which cannot be pickled, but Tune pickles its callbacks with the experiment and
# restores them. So the callback keeps only a key, and the process that runs the sweep keeps the listener.
_listeners: dict[str, Callable[[TrialProgress], None]] = {}


@contextmanager
def _listening(key: str, listener: Callable[[TrialProgress], None] | None) -> Iterator[None]:
    if listener is not None:
        _listeners[key] = listener
    try:
        yield
    finally:
        _listeners.pop(key, None)


class _Forward(tune.Callback):
    """Hands every report to the listener of this process, if there is one."""

    def __init__(self, key: str, *, num_trials: int) -> None:
        self._key = key
        self._num_trials = num_trials

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: object,
    ) -> None:
        if (listener := _listeners.get(self._key)) is None:
            return
        # a trial that has said "done" is terminated only later, maybe after the next report of another
        num_done = sum(
            other.status == Trial.TERMINATED or bool((other.last_result or {}).get("done"))
            for other in trials
            if other is not trial
        )
        listener(
            TrialProgress(
                trial=trial.config["trial"]["index"],
                num_trials=self._num_trials,
                num_done=num_done + bool(result["done"]),
                config=SaeConfig.from_dict(trial.config["trial"]["sae"]),
                progress=Progress(
                    **{
                        name.name: result[name.name]
                        for name in fields(Progress)
                        if name.name != "density"
                    },
                    density=DensitySummary(**result["density"]),
                ),
            )
        )


_TUNE_ENVIRONMENT = {
    # The new output engine prints a banner and the end of every trial even at verbose=0; the old one is silent.
    "RAY_AIR_NEW_OUTPUT": "0",
    # No CSV, JSON and TensorBoard copies of what is reported: results are read from the experiment's state.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Trials may last seconds, so their state is saved every second, on purpose.
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def _is_news(record: logging.LogRecord) -> bool:
    """False for the one failure that follows every crash: deleting an old checkpoint that is already deleted."""
    is_missing_file = record.exc_info is not None and record.exc_info[0] is FileNotFoundError
    return not (is_missing_file and "Error handling checkpoint" in record.getMessage())


@contextmanager
def _tune_in_the_background() -> Iterator[None]:
    """Keeps Tune off the terminal and away from credentials; gives Ctrl-C back afterwards (Tune leaves its own handler
    behind).

    Tune copies the AWS_ variables of this process into the runtime_env of its trials, which Ray writes to a log as it
    is. A trial that needs some has those of its node, like all other actors.
    """
    environment = {name: os.environ.get(name) for name in _TUNE_ENVIRONMENT}
    level = (tune_logger := logging.getLogger("ray.tune")).level
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    propagated = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in propagated if not name.startswith("AWS_")}
    os.environ.update(_TUNE_ENVIRONMENT)
    tune_logger.setLevel(logging.ERROR)
    controller_logger = logging.getLogger("ray.tune.execution.tune_controller")
    controller_logger.addFilter(_is_news)
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = propagated
        controller_logger.removeFilter(_is_news)
        tune_logger.setLevel(level)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if in_main_thread:
            for number, handler in handlers.items():
                signal.signal(number, handler)
