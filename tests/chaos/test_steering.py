"""Whatever happens to an experiment of steering on the way, its claims, effects and verdicts have the same bytes.

The first of these runs with every `make test`, all of them with `make chaos`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster import arms
from cluster.arms import PlayArms
from cluster.pool import Pool
from cluster.steering import Experiment, conduct
from cluster.store import Store
from cluster.studio import Studio, Task
from interp.steering.arms import SteeringConfig
from jobs.steer import Config, plan_experiment
from tests.chaos.disturbed import Counter
from tests.fakes.planted_policy import (
    GENERATOR,
    LABELS,
    STANDS_STILL,
    Prepared,
    findings,
    prepared,
    world_file,
)

pytestmark = [pytest.mark.ray, pytest.mark.mettagrid, pytest.mark.chaos]

CONCEPT = f"{LABELS[GENERATOR]}:{GENERATOR}"
CONFIG = SteeringConfig(
    add_doses=(0.0, 1.0),
    clamp_doses=(),
    selection_episodes=8,
    num_episodes=10,
    num_random_latents=2,
)
ARGUMENTS = (
    *("--concepts", CONCEPT, "--steer.add-doses", "0", "1", "--steer.clamp-doses"),
    *("--steer.selection-episodes", "8", "--steer.num-episodes", "10"),
    *("--steer.num-random-latents", "2"),
)
"""The same experiment on the command line."""
KEPT = ("selections", "registrations", "effects", "verdicts")


def kept(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for folder in KEPT for key in store.list(folder)}


@dataclass(frozen=True)
class Begun:
    """A store in which everything is ready and nothing was steered."""

    store: Store
    made: Prepared
    experiment: Experiment


def begin(folder: Path) -> Begun:
    store = Store.open(folder / "store")
    made = prepared(store, STANDS_STILL)
    config = Config(
        recording=made.recording_id,
        dictionary=made.dict_id,
        concepts=(CONCEPT,),
        untrained=made.untrained_id,
        world=str(world_file(folder)),
        steer=CONFIG,
    )
    return Begun(store, made, plan_experiment(store, config))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What is kept of it if it is done in this process, without Ray."""
    begun = begin(tmp_path_factory.mktemp("undisturbed"))
    found = findings(begun.store, begun.experiment)
    assert {row["verdict"] for row in found.verdicts.to_pylist()} == {"causal"}
    return kept(begun.store)


@pytest.fixture
def begun(tmp_path: Path) -> Begun:
    return begin(tmp_path)


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some twenty instead of four, so that there is something to lose."""
    monkeypatch.setattr(arms, "ARMS_PER_TASK", 20)
    monkeypatch.setattr(arms, "TRIALS_PER_TASK", 60)


def steer(begun: Begun, make: Callable[[Sequence[Task[Any]]], Sequence[Any]]) -> dict[str, bytes]:
    conduct(begun.store, [begun.experiment], make)
    return kept(begun.store)


def by_pool(pool: Pool, counter: Counter) -> Callable[[Sequence[Task[Any]]], Sequence[Any]]:
    def make(tasks: Sequence[Task[Any]]) -> list[Any]:
        values = {result.task.key: result.value for result in pool.run(tasks, counter)}
        return [values[task.key] for task in tasks]

    return make


class Mortal(Studio):
    """Its processes are killed twice: before arms are played, and after they were but before anybody heard of it."""

    def __init__(self, store: Store, scars: Path) -> None:
        super().__init__(store)
        self._scars = scars

    def run(self, task: Task) -> object:
        if isinstance(task, PlayArms):
            self._die_once("before arms")
        result = super().run(task)
        if isinstance(task, PlayArms):
            self._die_once("after arms")
        return result

    def _die_once(self, scar: str) -> None:
        with contextlib.suppress(FileExistsError):
            (self._scars / scar).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.everyday
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session", "small_tasks")
def test_killed_workers(undisturbed: dict[str, bytes], begun: Begun, tmp_path: Path) -> None:
    (scars := tmp_path / "scars").mkdir()
    counter = Counter()
    with Pool(Mortal, args=(begun.store, scars), size=2, tasks_at_once=2) as pool:
        assert steer(begun, by_pool(pool, counter)) == undisturbed
    assert len(list(scars.iterdir())) == 2
    assert counter.retries >= 2
    assert counter.quarantined_keys == []


@pytest.mark.usefixtures("ray_session", "small_tasks")
@pytest.mark.parametrize(("actors", "num_worlds"), [(1, 1), (1, 64), (2, 3)])
def test_actors_and_batches(
    undisturbed: dict[str, bytes], begun: Begun, actors: int, num_worlds: int
) -> None:
    with Pool(Studio, args=(begun.store,), size=actors) as pool:
        make = by_pool(pool, Counter())

        def in_batches(tasks: Sequence[Task[Any]]) -> Sequence[Any]:
            return make(
                [
                    replace(task, num_worlds=num_worlds) if isinstance(task, PlayArms) else task
                    for task in tasks
                ]
            )

        assert steer(begun, in_batches) == undisturbed


def start(begun: Begun, tmp_path: Path, *, actors: int) -> subprocess.Popen:
    """`sparsight steer` in a process of its own, with a Ray of its own."""
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "auth_token")}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "jobs.main", "steer", "--store", begun.store.url),
            *("--recording", begun.made.recording_id, "--dictionary", begun.made.dict_id),
            *("--untrained", begun.made.untrained_id, "--actors", str(actors)),
            *("--world", str(world_file(tmp_path)), *ARGUMENTS),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill_as_soon_as(there_is: Callable[[], object], job: subprocess.Popen) -> None:
    """With all its processes."""
    deadline = time.monotonic() + 120
    try:
        while not there_is():
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate(timeout=30)


@pytest.mark.timeout(500)
def test_a_driver_that_is_killed_twice_goes_on(
    undisturbed: dict[str, bytes], begun: Begun, tmp_path: Path
) -> None:
    """Once while it selects, once when its claims are registered and about to be tested."""
    store = begun.store
    kill_as_soon_as(lambda: store.list("scratch/steering"), start(begun, tmp_path, actors=2))
    assert kept(store) == {}
    played = set(store.list("scratch/steering"))
    kill_as_soon_as(lambda: store.list("registrations"), start(begun, tmp_path, actors=1))
    registered = kept(store)
    assert registered.keys() < undisturbed.keys()
    assert not store.list("verdicts")
    assert played < set(store.list("scratch/steering"))

    last = start(begun, tmp_path, actors=2)
    _, errors = last.communicate(timeout=150)
    assert last.returncode == 0, errors
    assert kept(store) == undisturbed
