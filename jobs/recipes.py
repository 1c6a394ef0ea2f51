"""Configurations worth repeating, by name; derive your own with `dataclasses.replace` or on the command line."""

from dataclasses import dataclass, field
from itertools import pairwise

import tyro

from cluster.discovery import FindingsConfig
from cluster.evaluation import EvaluationConfig
from cluster.evolution import EvolutionConfig
from cluster.placement import Device, check_gpus, device_of
from cluster.recorder import RecordingConfig
from cluster.staging import Split
from cluster.tracking.mirror import Mode
from interp.concepts.catalogue import ScoringConfig
from interp.concepts.discovery import DiscoveryConfig
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.training import SaeConfig
from interp.policies.ppo import PpoConfig
from interp.steering.arms import SteeringConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainDemoConfig:
    """Demo policies to train: one run per world and seed."""

    worlds: tuple[str, ...] = ("forage", "forage", "hazard")
    """World of each run: a preset (forage, hazard, arena) or the path of a MettaGridConfig .json file."""
    seeds: tuple[int, ...] = (0, 1, 0)
    """Seed of each run."""
    budget_agent_steps: int = 1_600_000
    """Length of each run in agent-steps: a million take about 40 s on one core."""
    num_checkpoints: int = 8
    """Checkpoints of each run: step 0, then each at twice the steps of the one before."""

    def __post_init__(self) -> None:
        if len(self.worlds) != len(self.seeds):
            raise ValueError(
                f"{len(self.worlds)} worlds but {len(self.seeds)} seeds; give one seed for each world"
            )
        if len(set(zip(self.worlds, self.seeds, strict=True))) != len(self.worlds):
            raise ValueError(
                f"worlds {self.worlds} with seeds {self.seeds}: two runs are the same; change a seed"
            )

    @property
    def runs(self) -> list[PpoConfig]:
        return [
            PpoConfig(
                world=world,
                seed=seed,
                budget_agent_steps=self.budget_agent_steps,
                num_checkpoints=self.num_checkpoints,
            )
            for world, seed in zip(self.worlds, self.seeds, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Sparse autoencoders to train on one site, and which of them to keep."""

    site: str = "lstm.c"
    """Site of the policy whose activations are decomposed."""
    d_sae: int = 512
    """Number of latents."""
    samples: int = 600_000
    """Rows that each trial sees, counting repeats."""
    k: tuple[int, ...] = (8, 16, 32, 64)
    """BatchTopK trials: average number of latents per row."""
    l1: tuple[float, ...] = (0.5, 1.0, 2.0)
    """ReLU + L1 trials: weight of the penalty."""
    target_l0: tuple[float, float] = (12.0, 40.0)
    """The dictionary with the lowest FVU among those with so many latents per row is kept."""

    def __post_init__(self) -> None:
        if not (self.k or self.l1):
            raise ValueError("a sweep of no trials: give values of k, of l1, or both")

    @property
    def trials(self) -> list[SaeConfig]:
        families = [*(BatchTopK(k=k) for k in self.k), *(ReluL1(l1=l1) for l1 in self.l1)]
        return [
            SaeConfig(family=family, d_sae=self.d_sae, samples=self.samples) for family in families
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """What every pipeline has in common: from trained policies to a report about their concepts."""

    store: str = "./store"
    """Folder in which everything rests; a second run finds it there."""
    study: str = "demo"
    """Name of the study: its report is STORE/studies/STUDY/report.html."""
    seed: int = 0
    """Seed of everything that is not an environment: dictionaries, permutations, resamples, random directions."""
    actors: int | None = None
    """Actor processes; by default one per core. Never changes a number."""
    worlds_per_actor: int | None = None
    """Worlds that an actor plays at once while recording; by default as many as are fast. Never changes a number."""
    attempts: int = 3
    """How often a task is tried whose process was lost, before it is set aside and named; more where machines are often
    taken away. Never changes a number."""
    gpus_per_actor: float = 0.0
    """GPUs of an actor, perhaps a part of one, on which policies are recorded and steered, and played again for windows
    and clips; 0 computes on its core. What comes of it has ids of its own, for its last bits may differ. All other
    stages compute on processors."""
    gpus_per_trial: float = 0.0
    """GPUs of a trial of the sweep, perhaps a part of one; 0 trains on a core. The dictionaries of the chosen recipe
    are trained on processors either way."""
    wandb: Mode = "auto"
    """Mirror of the study on W&B: online (refuses to start without a server), offline (sparsight sync delivers later),
    disabled, or auto: as WANDB_MODE says, or else online if there is a key and the server answers, offline if it does
    not answer, disabled without a key."""
    wandb_project: str | None = None
    """W&B project of the mirror; by default WANDB_PROJECT, or else sparsight."""
    wandb_entity: str | None = None
    """W&B entity of the mirror; by default WANDB_ENTITY, or else your own."""
    concepts_per_policy: int = 2
    """Concepts of each policy that are steered, followed over training and shown."""
    stability_seeds: int = 2
    """Further seeds with which each policy's dictionary is trained, to see whether they find its latents again."""
    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    record: RecordingConfig = field(default_factory=RecordingConfig)
    split: Split = field(default_factory=Split)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    score: ScoringConfig = field(default_factory=ScoringConfig)
    discover: FindingsConfig = field(
        default_factory=lambda: FindingsConfig(
            max_episodes=60, discovery=DiscoveryConfig(max_clusters=24)
        )
    )
    steer: SteeringConfig = field(default_factory=SteeringConfig)
    evolve: EvolutionConfig = field(default_factory=EvolutionConfig)

    def __post_init__(self) -> None:
        check_gpus("gpus_per_actor", self.gpus_per_actor)
        check_gpus("gpus_per_trial", self.gpus_per_trial)
        if self.sweep.site not in self.record.sites:
            raise ValueError(
                f"sweep.site is {self.sweep.site!r}, but record.sites are {', '.join(self.record.sites)}; "
                "record the site that is to be decomposed"
            )
        for name in ("max_bytes", "rows_per_shard"):
            if (limit := getattr(self.record, name)) is not None:
                raise ValueError(
                    f"record.{name} is {limit}: a pipeline replays and scores whole episodes, which a sample of rows "
                    "does not have; leave it out, or use `sparsight record`"
                )
        seeds = {
            "evaluate": range(
                self.evaluate.first_env_seed,
                self.evaluate.first_env_seed + self.evaluate.num_episodes,
            ),
            "record": self.record.env_seeds,
            "steer": self.steer.env_seeds,
            "steer (selection)": self.steer.selection_env_seeds,
            "evolve": range(
                self.evolve.first_env_seed,
                self.evolve.first_env_seed + 3 * self.evolve.episodes_per_player,
            ),
        }
        names = sorted(seeds, key=lambda name: seeds[name].start)
        for before, after in pairwise(names):
            if seeds[before].stop > seeds[after].start:
                raise ValueError(
                    f"{before} uses environment seeds {seeds[before]}, {after} uses {seeds[after]}: "
                    "what is scored would have been trained on; move one first_env_seed"
                )

    @property
    def device(self) -> Device:
        """Where policies compute while they are recorded and steered."""
        return device_of(self.gpus_per_actor)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPipelineConfig(PipelineConfig):
    """The main job on policies that it trains itself first."""

    train: TrainDemoConfig = field(default_factory=TrainDemoConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPipelineConfig(PipelineConfig):
    """The main job on policies that were trained elsewhere."""

    policies: tuple[str, ...]
    """Address of each training run or policy: entity/project/run_id, entity/project/name:alias, s3://bucket/key,
    zoo:name, a file or a folder."""
    checkpoints: str = "all"
    """Which checkpoints of each run: all, last, log:N (N, evenly on a logarithmic scale), A:B (by steps)."""
    names: tuple[str, ...] = ()
    """What to call each run in the report; by default as its source does."""
    world: str | None = None
    """World to play in; by default the one that each policy says it was trained in."""
    factory: tuple[str, ...] = ()
    """package.module:callable that makes the network of a policy, where it is one of your own; a policy that is not in
    the store yet wants --world too. This is the only code that is run; actors import it as well."""

    def __post_init__(self) -> None:
        PipelineConfig.__post_init__(self)
        if self.names and len(self.names) != len(self.policies):
            raise ValueError(
                f"{len(self.policies)} policies but {len(self.names)} names; give one name for each policy"
            )


DEMO = DemoPipelineConfig()
PIPELINES: dict[str, tuple[str, PipelineConfig]] = {
    "demo": ("Everything once, small, on policies trained first: about 7 minutes on 2 cores", DEMO),
    "trained": (
        "The same on policies that you have: --policies entity/project/run_id, a file, s3://...",
        TrainedPipelineConfig(policies=tyro.MISSING),
    ),
}
