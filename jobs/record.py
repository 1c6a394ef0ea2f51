"""Play a policy of the store and record its activations, beside ground truth, as committed shards."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import tyro
from rich.filesize import decimal

from cluster import policies
from cluster.laboratory import Laboratory
from cluster.placement import device_of
from cluster.recorder import Estimate, RecordingConfig, estimate_recording, plan_recording
from cluster.store import Store
from interp.rollout import CaptureSteps, EveryStep
from interp.worlds.catalogue import load_world
from jobs.factories import allow_factories
from jobs.main import run_as_module
from jobs.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Config:
    policy: str
    """Policy id; `sparsight policies` lists them."""
    world: str | None = None
    """Preset, MettaGridConfig .json file or gym:ENV_ID[?mask=1,3&max_steps=200]; by default the world that the policy
    was trained in, if its card tells."""
    store: str = "./store"
    """Folder in which everything rests."""
    factory: tuple[str, ...] = ()
    """package.module:callable that makes the policy's network, or a label, of your own (docs/concepts.md); actors
    import it too."""
    actors: int | None = None
    """Actor processes; by default one per core. Never changes a number."""
    worlds_per_actor: int | None = None
    """Worlds that an actor plays at once; by default as many as are fast. Never changes a number."""
    gpus_per_actor: float = 0.0
    """GPUs of an actor, perhaps a part of one, on which policies compute; 0 computes on its core. A recording made on
    GPUs has an id of its own, for its last bits may differ."""
    steps: CaptureSteps = field(default_factory=EveryStep)
    """Which steps to keep: every one, every n-th, or the last of each episode."""
    record: RecordingConfig = field(default_factory=RecordingConfig)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, records and prints the recording's id."""
    config = tyro.cli(Config, args=list(arguments), prog="sparsight record", description=__doc__)
    allow_factories(config.factory)
    store = Store.open(config.store)
    store.probe()
    world = config.world or policies.read_card(store, config.policy).world
    factory = load_world(world)
    policies.load(
        store, config.policy
    )  # one that cannot be opened is refused here, and not by an actor
    estimate = estimate_recording(store, config.policy, factory, config.record, steps=config.steps)
    plan = plan_recording(
        store,
        config.policy,
        factory,
        config.record,
        steps=config.steps,
        device=device_of(config.gpus_per_actor),
    )
    reporter = Reporter()
    reporter.say(describe(estimate))
    laboratory = Laboratory(
        store,
        num_actors=config.actors,
        worlds_per_actor=config.worlds_per_actor,
        factories=config.factory,
        say=reporter.say,
        gpus_per_actor=config.gpus_per_actor,
    )
    with laboratory, reporter.stage("record") as stage:
        laboratory.watch("record", stage)
        (manifest,) = laboratory.record([(plan, factory)], stage.update, steps=config.steps)
    reporter.done("record", f"{manifest.rows:,} rows of {config.record.num_episodes} episodes")
    print(manifest.plan.recording_id)


def describe(estimate: Estimate) -> str:
    """How large the recording may become, and what is done about it."""
    rows = estimate.num_shards * estimate.shard_rows
    size = f"at most {rows:,} rows and {decimal(estimate.whole_bytes)} in {estimate.num_shards:,} shards"
    if not estimate.is_sample:
        return size
    return (
        f"{size}; sampled to at most {estimate.kept_rows:,} of {estimate.shard_rows:,} rows a shard, "
        f"{decimal(estimate.bytes)} in all"
    )


if __name__ == "__main__":
    run_as_module("record")
