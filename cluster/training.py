"""Training demo policies as Ray tasks: checkpoints into the store as they come, and exact resume after a kill.

training/<run_id>.json          the finished run: its config and its checkpoints
scratch/training/<run_id>.pt    the trainer's state while the run is under way
"""

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from cluster import policies
from cluster.backends import Corrupt
from cluster.crew import GONE, said
from cluster.pool import TasksLost
from cluster.store import Store
from interp.identity import canonical_json, content_id, parse_json
from interp.policies.bundle import PolicyBundle, PolicyCard
from interp.policies.ppo import PpoConfig, PpoProgress, Trainer
from interp.worlds.mettagrid import MettagridFactory

SAVES_PER_RUN = 16
"""How often the trainer's state is kept: a killed run loses at most this share of its time."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """A training run, whether it took place here or elsewhere."""

    run_id: str
    name: str
    world: str
    checkpoints: tuple[PolicyCard, ...]
    """Ascending; of a run that was trained here from step 0."""
    steps_are_told: bool = True
    """Whether the steps are steps of training, and not just the order of the checkpoints."""

    @property
    def untrained(self) -> PolicyCard | None:
        """The checkpoint before training, if the run is known to have it."""
        first = self.checkpoints[0]
        return first if self.steps_are_told and first.step == 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    run_id: str
    step: int
    """Agent-steps so far."""
    budget: int
    return_mean: float


def run_id(config: PpoConfig, factory: MettagridFactory) -> str:
    """Same config, same world: same run, to the bit on one kind of machine."""
    return content_id("t", {"config": asdict(config), "world": factory.config})


def run_name(config: PpoConfig, factory: MettagridFactory) -> str:
    """For people: world and seed."""
    return f"{factory.name}-s{config.seed}"


def find_run(store: Store, config: PpoConfig, factory: MettagridFactory) -> TrainedRun | None:
    """The finished run of this config, or None."""
    identity = run_id(config, factory)
    return _read_run(store, identity) if store.exists(_run_key(identity)) else None


def list_runs(store: Store) -> list[TrainedRun]:
    """All finished runs of the store."""
    return [_read_run(store, Path(key).stem) for key in store.list("training")]


def _read_run(store: Store, identity: str) -> TrainedRun:
    key = _run_key(identity)
    record = parse_json(store.get(key), source=key)
    cards = tuple(policies.read_card(store, policy_id) for policy_id in record["checkpoints"])
    world = record["world"]["name"]
    return TrainedRun(
        run_id=identity,
        name=f"{world}-s{record['config']['seed']}",
        world=world,
        checkpoints=cards,
    )


def train(store: Store, config: PpoConfig) -> Iterator[TrainingProgress]:
    """Trains one policy from where an earlier attempt left it; commits the run at the end."""
    torch.set_num_threads(1)
    factory = MettagridFactory.load(config.world)
    identity = run_id(config, factory)
    trainer, checkpoints = _begin(store, config, factory)
    save_every = max(1, trainer.num_updates // SAVES_PER_RUN)
    for progress in trainer.train():
        if progress.checkpoint is not None:
            checkpoints.append(_keep(store, trainer, progress, factory, identity).policy_id)
        if progress.done:
            record = {
                "config": asdict(config),
                "world": factory.config,
                "checkpoints": checkpoints,
            }
            store.ensure(_run_key(identity), canonical_json(record))
        elif trainer.update % save_every == 0:
            state = io.BytesIO()
            torch.save({"trainer": trainer.state, "checkpoints": checkpoints}, state)
            store.replace(_state_key(identity), state.getvalue())
        yield TrainingProgress(
            run_id=identity,
            step=progress.step,
            budget=trainer.num_updates * trainer.steps_per_update,
            return_mean=progress.return_mean,
        )


def _begin(store: Store, config: PpoConfig, factory: MettagridFactory) -> tuple[Trainer, list[str]]:
    """A trainer and the checkpoints that it already has: fresh, or as an interrupted attempt left them."""
    key = _state_key(run_id(config, factory))
    if not store.exists(key):
        return Trainer(config, factory), []
    state: dict[str, Any] = torch.load(io.BytesIO(store.get(key)), weights_only=True)
    trainer = Trainer.resume(config, factory, state["trainer"])
    logger.info("resuming %s at step %d", key, trainer.step)
    return trainer, list(state["checkpoints"])


def _keep(
    store: Store,
    trainer: Trainer,
    progress: PpoProgress,
    factory: MettagridFactory,
    identity: str,
) -> PolicyCard:
    assert progress.checkpoint is not None
    return policies.save(
        store,
        PolicyBundle.of(trainer.policy.architecture, progress.checkpoint),
        name=run_name(trainer.config, factory),
        run=identity,
        step=progress.step,
        world=factory.name,
    )


def train_all(
    store: Store,
    configs: Sequence[PpoConfig],
    *,
    max_losses: int = 3,
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
) -> list[TrainedRun]:
    """Trains every config that the store does not have yet, side by side; runs in the order of `configs`.

    Needs a running Ray if anything is left to train. Each survives `max_losses` of its process.
    """
    factories = [MettagridFactory.load(config.world) for config in configs]
    todo = [
        config
        for config, factory in zip(configs, factories, strict=True)
        if find_run(store, config, factory) is None
    ]
    if todo:
        # A streaming task that loses its worker starts again, from the state that it saved last.
        task = ray.remote(num_cpus=1, max_retries=max_losses, num_returns="streaming")(train)
        waiting: list[Any] = [task.remote(store, config) for config in todo]
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=None)
            for stream in ready:
                try:
                    on_progress(ray.get(next(stream)))  # pyright: ignore[reportArgumentType] - ray.wait forgets the type
                except StopIteration:
                    continue
                except GONE as loss:
                    raise TasksLost(
                        f"a training lost its process {max_losses + 1} times, last by {said(loss)}; the same command "
                        "goes on from the state that it saved"
                    ) from loss
                waiting.append(stream)
    runs = [
        find_run(store, config, factory) for config, factory in zip(configs, factories, strict=True)
    ]
    if None in runs:
        raise Corrupt(f"{_run_key('*')}: a training ended without its record; run again")
    return [run for run in runs if run is not None]


def _run_key(identity: str) -> str:
    return f"training/{identity}.json"


def _state_key(identity: str) -> str:
    return f"scratch/training/{identity}.pt"
