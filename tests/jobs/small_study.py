"""One small study that several tests look at, and what it is compared by."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cluster.discovery import FindingsConfig
from cluster.evaluation import EvaluationConfig
from cluster.evolution import EvolutionConfig
from cluster.recorder import RecordingConfig
from cluster.store import Store
from interp.concepts.catalogue import ScoringConfig
from interp.concepts.discovery import DiscoveryConfig
from interp.steering.arms import SteeringConfig
from interp.study import Study
from jobs.pipeline import run
from jobs.progress import Reporter
from jobs.recipes import DemoPipelineConfig, PipelineConfig, SweepConfig, TrainDemoConfig

FINDINGS = (
    *(
        "recordings",
        "dictionaries",
        "concepts",
        "groups",
        "findings",
        "selections",
        "registrations",
        "effects",
        "verdicts",
    ),
    "windows",
)


def tables(
    store: Store, folders: Sequence[str] = (*FINDINGS, "lineages", "policies")
) -> dict[str, bytes]:
    return {key: store.get(key) for folder in folders for key in store.list(folder)}


def tiny(store: Path, *, actors: int, worlds_per_actor: int) -> DemoPipelineConfig:
    """Every stage, as small as its statistics allow; lenient limits, so that an untrained policy has concepts."""
    return DemoPipelineConfig(
        store=str(store),
        study="tiny",
        actors=actors,
        worlds_per_actor=worlds_per_actor,
        concepts_per_policy=1,
        stability_seeds=1,
        train=TrainDemoConfig(
            worlds=("hazard",), seeds=(0,), budget_agent_steps=8 * 4096, num_checkpoints=5
        ),
        evaluate=EvaluationConfig(num_episodes=10),
        record=RecordingConfig(num_episodes=40, episodes_per_shard=8),
        sweep=SweepConfig(d_sae=64, samples=40_000, k=(8, 16), l1=(1.0,), target_l0=(4.0, 40.0)),
        score=ScoringConfig(num_permutations=1500, min_auroc=0.5, max_q_value=0.2),
        discover=FindingsConfig(discovery=DiscoveryConfig(max_clusters=8)),
        steer=SteeringConfig(
            selection_episodes=4,
            num_episodes=10,
            add_doses=(0.0, 2.0),
            clamp_doses=(0.0,),
            ablate_doses=(0.0, 1.0),
        ),
        evolve=EvolutionConfig(episodes_per_player=10),
    )


def run_quietly(config: PipelineConfig) -> Study:
    return run(config, Reporter(Console(quiet=True)))
