"""Does the memory of a recording process grow with what it records? The real recorder, in a process of its own."""

import multiprocessing
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.measuring import peak_rss_mib
from benchmarks.untrained import save_untrained
from cluster import recordings
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.store import Store
from cluster.studio import Studio
from interp.worlds.mettagrid import MettagridFactory


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How much a process records."""

    num_episodes: int
    hidden: int = 128
    """Width of the LSTM."""
    episodes_per_shard: int | None = None
    """None for what the recorder chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What it took."""

    num_shards: int
    rows: int
    seconds: float
    before_mib: float
    """Peak before the first shard: what imports, the policy and the world take."""
    peak_mib: float


def record_apart(world: str, length: Length) -> Recorded:
    """Records in a fresh process, for memory that was once used stays with a process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_record, (world, length))


def _record(world: str, length: Length) -> Recorded:
    """As an actor does: one shard is encoded and stored while the next is played."""
    factory = MettagridFactory.load(world)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max_workers=2) as threads:
        store = Store.open(folder)
        policy_id = save_untrained(store, factory, hidden=length.hidden)
        plan = plan_recording(
            store,
            policy_id,
            factory,
            RecordingConfig(
                num_episodes=length.num_episodes, episodes_per_shard=length.episodes_per_shard
            ),
        )
        recordings.begin(store, plan)
        studio = Studio(store)
        studio.policy(policy_id)
        before_mib = peak_rss_mib()
        start = time.perf_counter()
        tasks = [RecordShard(plan=plan, shard=shard, factory=factory) for shard in plan.shards]
        list(threads.map(studio.run, tasks))
        seconds = time.perf_counter() - start
        return Recorded(
            num_shards=len(plan.shards),
            rows=recordings.commit(store, plan).rows,
            seconds=seconds,
            before_mib=before_mib,
            peak_mib=peak_rss_mib(),
        )
