"""Edit a policy along its concepts while it plays, and tell what that proves.

    sparsight steer --recording r-1234... --dictionary d-1234... --concepts altar_soon:17 carrying_ore:3
    sparsight steer --recording r-1234... --dictionary d-1234... --from-table c-1234... --top 5
    sparsight steer --recording r-1234... --features diff_in_means --site lstm.h --concepts altar_soon
    sparsight steer --recording r-1234... --features neuron --site lstm.h --concepts altar_soon:12 --steer.agents one

Arms (ways and doses) are tried on episodes for selection; what is then claimed of the strongest is registered, with a
hash, and tested on episodes of its own, beside random directions, other latents, the label's difference of means and
the untrained policy. docs/steering.md tells what the verdicts mean. The same question asked again goes on where it was
cut short, or prints what came of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import tyro
from rich.table import Table

from cluster import policies, recordings
from cluster.features import chosen, features_of, site_of
from cluster.laboratory import Laboratory
from cluster.placement import device_of
from cluster.recordings import Plan
from cluster.results import read_table
from cluster.staging import Split
from cluster.steering import Experiment
from cluster.store import Store
from interp.features.feature_set import SUPERVISED, FeatureKind
from interp.steering.arms import BASELINES, SteeringConfig
from interp.worlds.catalogue import load_world
from interp.worlds.world import WorldFactory
from jobs.factories import allow_factories
from jobs.main import run_as_module
from jobs.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Config:
    recording: str
    """Recording of the policy, which tells what its activations are like; `sparsight recordings list` shows them."""
    dictionary: str | None = None
    """Dictionary of that recording: its latents are steered, or are the rivals of other features."""
    concepts: tuple[str, ...] = ()
    """What to steer: LABEL:NUMBER (a latent, unit, component, and the label that it is thought to be about); of
    diff_in_means, probe and sparse_probe just LABEL."""
    from_table: str | None = None
    """Table of scored concepts (c-...): steers those that it names, if --concepts is left out."""
    top: int = 8
    """At most so many of them, those with the largest lead over the untrained policy first."""
    features: FeatureKind = "sae"
    """What is edited along."""
    site: str | None = None
    """Site of features that are of no dictionary."""
    labels: tuple[str, ...] | None = None
    """Behaviours whose rates are outcomes, besides the return and the concepts' labels; by default all behavioural ones
    that were recorded."""
    world: str | None = None
    """World of the recording, if the policy's card names another: preset, MettaGridConfig .json file or
    gym:ENV_ID[?mask=1,3&max_steps=200]."""
    untrained: str | None = None
    """Policy before training, on which the same edits are tried; by default a fresh one of the same architecture."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""
    factory: tuple[str, ...] = ()
    """package.module:callable that makes the policy's network, if it is one of your own; actors import it too."""
    actors: int | None = None
    """Actor processes; by default one per core. Never changes a number."""
    gpus_per_actor: float = 0.0
    """GPUs of an actor, perhaps a part of one, on which policies compute; 0 computes on its core. What is played on
    GPUs is kept apart, for its last bits may differ."""
    seed: int = 0
    """Of random directions, intervals and the fresh policy."""
    split: Split = field(default_factory=Split)
    steer: SteeringConfig = field(default_factory=SteeringConfig)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, steers and prints a verdict for every concept."""
    config = tyro.cli(Config, args=list(arguments), prog="sparsight steer", description=__doc__)
    allow_factories(config.factory)
    store = Store.open(config.store)
    store.probe()
    experiment = plan_experiment(store, config)
    reporter = Reporter()
    laboratory = Laboratory(
        store,
        num_actors=config.actors,
        factories=config.factory,
        say=reporter.say,
        gpus_per_actor=config.gpus_per_actor,
    )
    with laboratory, reporter.stage("steer") as stage:
        laboratory.watch("steer", stage)
        (found,) = laboratory.steer([experiment], stage.update)
    reporter.console.print(verdicts_view(found.verdicts))
    reporter.say(f"registered before the test: registrations/{found.registration_id}.json")
    reporter.say(f"every arm: effects/{found.effects_id}.parquet")
    print(found.verdicts_id)


def plan_experiment(store: Store, config: Config) -> Experiment:
    """What the command line asks for. ValueError or FileNotFoundError if it cannot be asked."""
    plan = recordings.open_manifest(store, config.recording).plan
    policy_id = plan.inputs["policy"]
    card = policies.read_card(store, policy_id)
    factory = load_world(config.world or card.world)
    _check_recording(plan, factory, config.steer)
    names = config.concepts or _named(store, config)
    site = config.site
    if config.dictionary is not None:
        dictionary_site = site_of(store, config.dictionary)
        if site is None and config.features in ("sae", "crosscoder"):
            site = dictionary_site
    if site is None:
        raise ValueError(
            f"features {config.features} are of a site: name it with --site, one of "
            + ", ".join(plan.config["site_widths"])
        )
    known = features_of(
        store,
        config.recording,
        config.features,
        site=site,
        dict_id=config.dictionary,
        labels=names if config.features in SUPERVISED else (),
        split=config.split,
        seed=config.seed,
    )
    steered = tuple(chosen(known, names))
    behaviours = [
        name
        for name in plan.config["labels"]
        if name in factory.labels and factory.labels[name].kind == "behavioural"
    ]
    untrained_id = (
        config.untrained or policies.save_untrained(store, card, seed=config.seed).policy_id
    )
    return Experiment(
        policy_id=policy_id,
        policy_name=card.name,
        untrained_id=untrained_id,
        factory=factory,
        concepts_id=config.from_table,
        recording_id=config.recording,
        dict_id=config.dictionary,
        split=config.split,
        latents=steered,
        config=config.steer,
        labels=tuple(behaviours) if config.labels is None else config.labels,
        seed=config.seed,
        device=device_of(config.gpus_per_actor),
    )


def _check_recording(plan: Plan, factory: WorldFactory, config: SteeringConfig) -> None:
    """What is usual of activations is read from it: of the same world, and of episodes that test nothing."""
    recorded = plan.config["world"]
    if {**recorded, "name": None} != {**factory.config, "name": None}:
        raise ValueError(
            f"recording {plan.recording_id} was made in world {recorded['name']!r}, which is not {factory.name!r} as "
            "it is now; name the world of the recording with --world"
        )
    recorded_seeds = {seed for shard in plan.shards for seed in shard.env_seeds}
    if shared := recorded_seeds & {*config.env_seeds, *config.selection_env_seeds}:
        raise ValueError(
            f"recording {plan.recording_id} has the episode with env_seed {min(shared)}, on which arms would be tried; "
            "move --steer.first-env-seed or --steer.first-selection-seed"
        )


def _named(store: Store, config: Config) -> list[str]:
    """The concepts that a table names, in the order of their lead, one per latent."""
    if config.from_table is None:
        raise ValueError("nothing to steer: name --concepts, or a table of them with --from-table")
    if config.features not in ("sae", *SUPERVISED):
        raise ValueError(
            f"table {config.from_table} numbers latents, not {config.features} features; name these with --concepts"
        )
    table = read_table(store, "concepts", config.from_table).to_pylist()
    if config.features == "sae" and (
        other := {row["dict_id"] for row in table} - {config.dictionary}
    ):
        raise ValueError(
            f"table {config.from_table} is of dictionary {min(other)}, and --dictionary is {config.dictionary}; "
            "a latent's number means nothing in another"
        )
    rows = [row for row in table if row["concept"] is not None]
    if not rows:
        raise ValueError(
            f"table {config.from_table} names no concept: held-out episodes confirmed none"
        )
    rows.sort(key=lambda row: row["random_init_auroc"] - row["auroc"])
    if config.features in SUPERVISED:
        return list(dict.fromkeys(row["label"] for row in rows))[: config.top]
    best: dict[int, str] = {}
    for row in rows:
        best.setdefault(row["latent"], f"{row['label']}:{row['latent']}")
    return list(best.values())[: config.top]


def beats_view(row: Mapping[str, Any]) -> str:
    """How many kinds of other features the claim is surely ahead of, and the strongest if not of all."""
    played = [kind for kind in BASELINES if row[f"{kind}_effect"] is not None]
    if not played:
        return "–"
    beaten = [kind for kind in row["beats"].split(", ") if kind]
    strongest = (
        "" if len(beaten) == len(played) else f"\n{row['strongest_rival']} {row['lead']:+.3g}"
    )
    return f"{len(beaten)} of {len(played)}{strongest}"


def verdicts_view(verdicts: pa.Table) -> Table:
    """One line per claim, the verdict beside its concept's first."""
    table = Table(title="What steering proves", title_justify="left")
    for heading in ("concept", "verdict", "claim", "arm", "outcome"):
        table.add_column(heading)
    for heading in (
        "change [95 %]",
        "q",
        "random",
        "latents",
        "beats",
        "off manifold",
        "untrained",
    ):
        table.add_column(heading, justify="right")
    shown: set[str] = set()
    for row in verdicts.to_pylist():
        first = row["concept"] not in shown
        shown.add(row["concept"])
        table.add_row(
            row["concept"] if first else "",
            row["verdict"] if first else "",
            f"{row['claim']}{'' if row['confirmed'] else ' (not confirmed)'}",
            f"{row['mode']} {row['dose']:g} @ {row['site']}",
            row["outcome"],
            f"{row['difference']:+.3g} [{row['lo']:+.3g}, {row['hi']:+.3g}]",
            f"{row['q_value']:.3g}",
            f"{row['random_direction_percentile']:.0f} %",
            "–"
            if row["random_latent_percentile"] is None
            else f"{row['random_latent_percentile']:.0f} %",
            beats_view(row),
            f"{row['off_manifold']:+.1%}",
            "–" if row["untrained_difference"] is None else f"{row['untrained_difference']:+.3g}",
        )
    return table


if __name__ == "__main__":
    run_as_module("steer")
