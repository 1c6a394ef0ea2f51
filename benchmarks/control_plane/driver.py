"""What happens in the process of the driver."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.control_plane.actors import Idler, NamedTask, SimulatedCrew
from benchmarks.measuring import peak_rss_mib
from benchmarks.untrained import save_untrained
from cluster import recordings, runtime
from cluster.laboratory import Laboratory
from cluster.notes import Note, silent
from cluster.pool import Pool, schedule
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.recordings import Plan, Receipt, ShardPlan
from cluster.store import Store
from cluster.studio import Task
from interp.identity import canonical_json, sha256
from interp.worlds.gymnasium import GymnasiumFactory

Value = TypeVar("Value")
WORLD = "gym:CartPole-v1?mask=1,3&max_steps=2"
ROWS = 16_384
"""Of a simulated shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    """What it took to hand out all tasks."""

    num_tasks: int
    seconds: float
    """Wall."""
    cpu_s: float
    """Of the driver."""
    simulation_s: float
    """CPU seconds of actors that are not there; not in `cpu_s`."""
    ideal_s: float
    """Wall if the driver took no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What a recording took, stage by stage."""

    before_s: float
    scheduling: Scheduling
    after_s: float
    open_s: float
    plan_bytes: int
    manifest_bytes: int
    start_mib: float
    peak_mib: float


class Rehearsal(Laboratory):
    """A laboratory whose pool is a simulated crew."""

    def __init__(self, store: Store, crew: SimulatedCrew) -> None:
        super().__init__(store, num_actors=crew.size)
        self._crew = crew
        self.began_at = self.ended_at = 0.0
        self.scheduling: Scheduling | None = None

    def make(self, tasks: Sequence[Task[Value]], note: Note = silent) -> list[Value]:
        self.began_at = time.perf_counter()
        values, self.scheduling = hand_out(self._crew, tasks)
        self.ended_at = time.perf_counter()
        return values


def hand_out(crew: SimulatedCrew, tasks: Sequence[Task[Value]]) -> tuple[list[Value], Scheduling]:
    """All results in the order of the tasks, collected as `Laboratory.make` does."""
    cpu, start = time.process_time(), time.perf_counter()
    values = {result.task.key: result.value for result in schedule(crew, tasks)}
    in_order = [values[task.key] for task in tasks]
    return in_order, Scheduling(
        num_tasks=len(tasks),
        seconds=time.perf_counter() - start,
        cpu_s=time.process_time() - cpu - crew.cpu_s,
        simulation_s=crew.cpu_s,
        ideal_s=crew.task_s * len(tasks) / crew.size,
    )


def record_all(
    *, num_actors: int, num_shards: int, episodes_per_shard: int, shard_s: float
) -> Whole:
    """A whole recording, in a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        factory = GymnasiumFactory.load(WORLD)
        config = RecordingConfig(
            num_episodes=num_shards * episodes_per_shard, episodes_per_shard=episodes_per_shard
        )
        plan = plan_recording(store, save_untrained(store, factory), factory, config)
        crew = SimulatedCrew(num_actors, shard_s, lambda task: put_shard(store, task))
        laboratory = Rehearsal(store, crew)
        recording = store.local_path(f"recordings/{plan.recording_id}")
        for name in ("data", "receipts"):
            (recording / name).mkdir(parents=True)
        start_mib, start = peak_rss_mib(), time.perf_counter()
        (manifest,) = laboratory.record([(plan, factory)])
        end, peak_mib = time.perf_counter(), peak_rss_mib()
        recordings.open_manifest(store, plan.recording_id)
        open_s = time.perf_counter() - end
        assert manifest.rows == ROWS * num_shards
        assert laboratory.scheduling is not None
        pages = [file for file in recording.glob("manifest*/*.json") if file.is_file()]
        return Whole(
            before_s=laboratory.began_at - start,
            scheduling=laboratory.scheduling,
            after_s=end - laboratory.ended_at,
            open_s=open_s,
            plan_bytes=store.size(plan.key) or 0,
            manifest_bytes=sum(
                file.stat().st_size for file in [store.local_path(manifest.key), *pages]
            ),
            start_mib=start_mib,
            peak_mib=peak_mib,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Committing:
    """What it takes to commit a recording whose shards are all there, in a local folder."""

    missing_s: float
    receipts_s: float
    commit_s: float
    """Of which the receipts are part."""
    open_s: float
    sizes_s: float
    plan_bytes: int
    peak_mib: float


def commit_alone(*, num_shards: int, episodes_per_shard: int) -> Committing:
    """Wall seconds; receipts and objects of a byte are put there before, unsynced."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        shards = tuple(
            ShardPlan(
                shard=f"s{number:05d}",
                env_seeds=tuple(
                    range(number * episodes_per_shard, (number + 1) * episodes_per_shard)
                ),
            )
            for number in range(num_shards)
        )
        plan = Plan(config={"num_episodes": num_shards}, inputs={"policy": "p-0"}, shards=shards)
        for name in ("data", "receipts"):
            store.local_path(f"recordings/{plan.recording_id}/{name}").mkdir(parents=True)
        for shard in shards:
            put_receipt(store, plan, shard.shard)
        recordings.begin(store, plan)
        missing_s = _seconds(lambda: recordings.missing_shards(store, plan))
        receipts_s = _seconds(lambda: recordings.read_receipts(store, plan, shards))
        commit_s = _seconds(lambda: recordings.commit(store, plan))
        open_s = _seconds(lambda: recordings.open_manifest(store, plan.recording_id))
        manifest = recordings.open_manifest(store, plan.recording_id)
        return Committing(
            missing_s=missing_s,
            receipts_s=receipts_s,
            commit_s=commit_s,
            open_s=open_s,
            sizes_s=_seconds(lambda: recordings.check_present(store, manifest)),
            plan_bytes=store.size(plan.key) or 0,
            peak_mib=peak_rss_mib(),
        )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def put_shard(store: Store, task: object) -> Receipt:
    """A shard as its recorder would leave it, but for its rows, and for waiting until the disk has it."""
    assert isinstance(task, RecordShard)
    return put_receipt(store, task.plan, task.shard.shard)


def put_receipt(
    store: Store, plan: Plan, shard: str, *, rows: int = ROWS, schema: str = "0" * 16
) -> Receipt:
    """A shard of one byte that says to have so many rows, in folders that are there."""
    digest = sha256(shard.encode())
    receipt = Receipt(
        shard=shard,
        plan_id=plan.plan_id,
        key=f"recordings/{plan.recording_id}/data/{shard}-{digest[:16]}.parquet",
        sha256=digest,
        bytes=1,
        rows=rows,
        schema=schema,
    )
    store.local_path(receipt.key).write_bytes(b"x")
    store.local_path(plan.receipt_key(shard)).write_bytes(canonical_json(receipt))
    return receipt


def schedule_only(*, num_actors: int, num_tasks: int, task_s: float) -> Scheduling:
    """Tasks of which nothing is left."""
    crew = SimulatedCrew(num_actors, task_s, lambda task: task)
    _, scheduling = hand_out(crew, [NamedTask(f"s{number:05d}") for number in range(num_tasks)])
    return scheduling


def schedule_on_ray(*, num_tasks: int) -> tuple[float, float]:
    """Wall and CPU seconds of the driver, once both actors are there."""
    runtime.start(2)
    try:
        with Pool(Idler, size=2) as pool:
            for _ in pool.run(NamedTask(f"w{number}") for number in range(100)):
                pass
            cpu, start = time.process_time(), time.perf_counter()
            for _ in pool.run(NamedTask(f"s{number}") for number in range(num_tasks)):
                pass
            return time.perf_counter() - start, time.process_time() - cpu
    finally:
        runtime.stop()
