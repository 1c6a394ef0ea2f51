"""What does a row cost beside playing: labels, sampling, staging, verifying, exporting, replaying? One core, no Ray.

    python -m benchmarks.rows --parts labels sampling staging verify export replays

A recording of `forage` is made first, `lstm.h` and `lstm.c` of 128, with all labels of that world. CPU time of this
process and its threads, so that a busy machine changes little; what waits for a disk is not in it.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro

from benchmarks.control_plane.driver import put_receipt
from benchmarks.measuring import peak_rss_mib, use_one_core
from benchmarks.untrained import save_untrained
from cluster import recordings
from cluster.export import Layout, export
from cluster.recorder import RecordingConfig, RecordShard, plan_recording, recorded_actions
from cluster.recordings import Manifest, Plan, ShardPlan
from cluster.staging import Split, stage
from cluster.store import Store
from cluster.studio import Studio
from interp.policies.uniform import UniformPolicy
from interp.rollout import Capture, Trial, roll
from interp.sampling import Reservoir
from interp.worlds.labels import compute_labels
from interp.worlds.mettagrid import MettagridFactory
from jobs.progress import Reporter

Part = Literal["labels", "sampling", "staging", "verify", "export", "replays"]
SITES = ("lstm.h", "lstm.c")
KEPT_SHARE = 50
"""One of so many rows is kept where rows are sampled."""


@dataclass(frozen=True)
class Config:
    parts: tuple[Part, ...] = get_args(Part)
    """What to measure."""
    episodes: int = 64
    """Episodes of the recording, 1,024 rows each."""
    rounds: int = 3
    """Rounds; the quickest counts."""
    manifest_shards: int = 100_000
    """Shards of the recording whose replay is opened, in the part replays."""


def main(config: Config) -> None:
    """Prints microseconds of CPU for a row, part by part."""
    use_one_core()
    factory = MettagridFactory.load("forage")
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store")
        with Reporter().stage("recording"):
            manifest = record(store, factory, config.episodes)
        for part in config.parts:
            match part:
                case "labels":
                    measure_labels(factory, config)
                case "sampling":
                    measure_sampling(store, manifest, config)
                case "staging":
                    measure_staging(store, manifest)
                case "verify":
                    measure_verify(store, manifest, config)
                case "export":
                    measure_export(store, manifest, Path(folder))
                case "replays":
                    measure_replays(store, manifest, config)


def record(store: Store, factory: MettagridFactory, num_episodes: int) -> Manifest:
    """A recording by an untrained policy, made in this process."""
    recording = RecordingConfig(num_episodes=num_episodes, episodes_per_shard=16, sites=SITES)
    plan = plan_recording(store, save_untrained(store, factory), factory, recording)
    recordings.begin(store, plan)
    studio = Studio(store)
    for shard in plan.shards:
        studio.run(RecordShard(plan=plan, shard=shard, factory=factory))
    return recordings.commit(store, plan)


def measure_labels(factory: MettagridFactory, config: Config) -> None:
    names = tuple(factory.labels)
    trials = [Trial(env_seed=seed) for seed in range(16)]
    policy = UniformPolicy(factory.spec.action_names)
    facts = [
        episode.facts
        for episode in roll(policy, factory(16), trials, Capture(sites=(), facts=True))
        if episode.facts is not None
    ]
    rows = len(facts) * factory.spec.num_agents * factory.spec.max_steps
    cpu_s = least(config.rounds, lambda: [compute_labels(one, names) for one in facts])
    print(f"labels      {1e6 * cpu_s / rows:6.2f} us a row for all {len(names)}")


def measure_sampling(store: Store, manifest: Manifest, config: Config) -> None:
    tables = [recordings.read_shard(store, receipt) for receipt in manifest.receipts]
    reservoir = Reservoir(rows=tables[0].num_rows // KEPT_SHARE, label_share=0.5, salt="sample-0")
    cpu_s = least(config.rounds, lambda: [reservoir.sample(table) for table in tables])
    print(
        f"sampling    {1e6 * cpu_s / manifest.rows:6.2f} us a row, one of {KEPT_SHARE} kept, "
        f"{len(manifest.plan.config['labels'])} labels"
    )


def measure_staging(store: Store, manifest: Manifest) -> None:
    before_mib = peak_rss_mib()
    cpu_s = spent(lambda: stage(store, manifest.recording_id, SITES[0], Split()))
    print(
        f"staging     {1e6 * cpu_s / manifest.rows:6.2f} us a row of one site; peak memory {before_mib:.0f} "
        f"MiB before, {peak_rss_mib():.0f} after"
    )


def measure_verify(store: Store, manifest: Manifest, config: Config) -> None:
    size = sum(receipt.bytes for receipt in manifest.receipts)
    cpu_s = least(config.rounds, lambda: recordings.verify(store, manifest))
    print(f"verify      {1e6 * cpu_s / manifest.rows:6.2f} us a row, {size / cpu_s / 1e9:.2f} GB/s")


def measure_export(store: Store, manifest: Manifest, folder: Path) -> None:
    for layout in get_args(Layout):
        out = folder / layout
        cpu_s = spent(
            lambda layout=layout, out=out: export(
                store, manifest.recording_id, out, layout=layout, split=Split()
            )
        )
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        print(
            f"export      {1e6 * cpu_s / manifest.rows:6.2f} us a row as {layout}; {size / 1e6:.1f} MB of "
            f"{sum(receipt.bytes for receipt in manifest.receipts) / 1e6:.1f}"
        )


def measure_replays(store: Store, manifest: Manifest, config: Config) -> None:
    """What every shard of a replay asks first: the actions that it replays, of a recording of many shards.

    Its shards but for the first are listed and not there; nobody reads them.
    """
    long = many_shards(store, manifest, config.manifest_shards)
    seeds = set(manifest.plan.shards[0].env_seeds)
    studio = Studio(store)
    opened_s = spent(lambda: recordings.open_manifest(store, long.recording_id))
    first_s = spent(lambda: recorded_actions(store, studio.manifest(long.recording_id), seeds))
    next_s = least(
        config.rounds,
        lambda: recorded_actions(store, studio.manifest(long.recording_id), seeds),
    )
    print(
        f"replays     of {config.manifest_shards:,} shards: the manifest opens in {1000 * opened_s:.0f} ms; the first "
        f"shard of a process waits {1000 * first_s:.0f} ms for its actions, the next ones {1000 * next_s:.1f} ms"
    )


def many_shards(store: Store, manifest: Manifest, num_shards: int) -> Plan:
    """Commits a recording of that many shards, of which the first one is there."""
    (first, *_), (receipt, *_) = manifest.plan.shards, manifest.receipts
    seeds = first.env_seeds
    plan = Plan(
        config={**manifest.plan.config, "copies": num_shards},
        inputs=dict(manifest.plan.inputs),
        shards=tuple(
            ShardPlan(
                shard=f"s{number:05d}",
                env_seeds=tuple(seed + number * len(seeds) for seed in seeds),
            )
            for number in range(num_shards)
        ),
    )
    recordings.begin(store, plan)
    recordings.write_shard(store, plan, plan.shards[0].shard, recordings.read_shard(store, receipt))
    for shard in plan.shards[1:]:
        put_receipt(store, plan, shard.shard, rows=receipt.rows, schema=receipt.schema)
    recordings.commit(store, plan)
    return plan


def spent(work: Callable[[], object]) -> float:
    """CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def least(rounds: int, work: Callable[[], object]) -> float:
    return min(spent(work) for _ in range(rounds))


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.rows", description=__doc__))
