"""The rows and nouns that cross a process boundary. This file imports nothing of ours.

Legend of array suffixes, used in the whole project:
R rows of a batch (worlds x agents) · T steps of an episode · S = T + 1 states · E episodes or worlds · A agents ·
D activation width · F latents · L labels · H, W rows and columns of a map · C checkpoints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float16, Float32, Int16, Int32, UInt8

LabelKind = Literal["behavioural", "spatial", "temporal", "object-based", "mixed"]

# One row is one agent at one step. Labels (bool, `label.<name>`) and activations (`site.<name>`, the little-endian
# float16 bytes of the whole vector) follow these columns, in the order of the plan.
KEY_FIELDS = (
    pa.field("policy_id", pa.string(), nullable=False),
    pa.field("step", pa.int64(), nullable=False),
    pa.field("world", pa.string(), nullable=False),
    pa.field("env_seed", pa.int64(), nullable=False),
    pa.field("episode", pa.int32(), nullable=False),
    pa.field("agent", pa.int16(), nullable=False),
    pa.field("t", pa.int32(), nullable=False),
    pa.field("action", pa.int16(), nullable=False),
    pa.field("reward", pa.float32(), nullable=False),
    pa.field("done", pa.bool_(), nullable=False),
)
LABEL_PREFIX = "label."
SITE_PREFIX = "site."
# Last column of a sampled recording only: the probability with which the row was kept; see interp/sampling.py.
INCLUSION_FIELD = pa.field("inclusion", pa.float64(), nullable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What mettagrid knew during one episode: the source of every ground-truth label of its worlds.

    State t (first axis, S = T + 1 long) is what the agents saw *before* action t; the last state follows the last
    action. Objects other than agents do not move, so one map serves the whole episode.
    """

    map_HW: UInt8[np.ndarray, "H W"]
    """Index into `object_names` of the static object in each cell; 0 is an empty cell."""
    object_names: tuple[str, ...]
    """`object_names[0] == "empty"`, then for instance "wall", "mine", "generator", "altar", "turret"."""
    position_SA2: Int16[np.ndarray, "S A 2"]
    """Row and column of every agent."""
    inventory_SAI: Int16[np.ndarray, "S A I"]
    """Amount of every resource that each agent carries, in the order of `resource_names`."""
    resource_names: tuple[str, ...]
    counter_SAN: Float32[np.ndarray, "S A N"]
    """The simulator's own running event counts per agent, in the order of `counter_names`."""
    counter_names: tuple[str, ...]
    """For instance "attack.hit", "attack.hit_by", "attack.blocked", "hazard.hit"; empty if the world counts none."""
    team_A: Int16[np.ndarray, " A"]
    """Team of each agent; agents of different teams are enemies."""
    max_steps: int
    """Time limit of the episode in steps."""
    view_radius: tuple[int, int]
    """How many rows and columns away an agent still sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableLabel:
    """A label that holds where one ground-truth variable lies in a range fixed by its world, never by the data."""

    name: str
    kind: LabelKind
    definition: str
    variable: str
    at_least: float = -math.inf
    below: float = math.inf
    after_action: bool = False
    """Whether it reads the state after action t instead of the one before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a simulator without a map of ours knew during one episode: named variables, and the labels over them.

    State t (first axis, S = T + 1 long) is the one *before* action t; the last state follows the last action.
    """

    variables: Mapping[str, Float32[np.ndarray, "S A"]]
    """Hidden ones too, for instance the velocities that a mask keeps from the policy."""
    labels: Mapping[str, VariableLabel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One world played once by all of its agents: the independent unit of every statistic in Sparsight."""

    env_seed: int
    index: int
    """Position of the trial in the list given to `roll`."""
    action_TA: Int32[np.ndarray, "T A"]
    reward_TA: Float32[np.ndarray, "T A"]
    done_TA: Bool[np.ndarray, "T A"]
    captured_t: Int32[np.ndarray, " T_"]
    """Steps at which activations were captured, ascending."""
    activations: Mapping[str, Float32[np.ndarray, "T_ A D"] | Float16[np.ndarray, "T_ A D"]] = (
        field(default_factory=dict)
    )
    """Site name -> activations at the captured steps, in the precision of the capture."""
    facts: Facts | Trace | None = None
    """None if the rollout was asked not to collect them."""

    @property
    def num_steps(self) -> int:
        return self.action_TA.shape[0]

    @property
    def return_A(self) -> Float32[np.ndarray, " A"]:
        """Undiscounted sum of rewards of each agent."""
        return self.reward_TA.sum(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of one episode around a strong response of a latent, with all that a picture of it needs."""

    concept: str
    """Name of the concept that the window illustrates."""
    label: str
    latent: int
    policy_name: str
    world: str
    env_seed: int
    agent: int
    """The agent whose latent responded."""
    t: Int32[np.ndarray, " T"]
    """Steps shown, ascending and contiguous."""
    peak_t: int
    """Step of the strongest response."""
    map_HW: UInt8[np.ndarray, "H W"]
    object_names: tuple[str, ...]
    position_TA2: Int16[np.ndarray, "T A 2"]
    team_A: Int16[np.ndarray, " A"]
    inventory_TI: Int16[np.ndarray, "T I"]
    """Inventory of the focal agent."""
    resource_names: tuple[str, ...]
    latent_T: Float32[np.ndarray, " T"]
    """Value of the latent, in its own units, at least 0."""
    label_T: Bool[np.ndarray, " T"]
    """Ground truth of the concept's label."""
    action_T: Int32[np.ndarray, " T"]
    action_names: tuple[str, ...]
    reward_T: Float32[np.ndarray, " T"]
    whole_latent_S: Float32[np.ndarray, " S"] = field(
        default_factory=lambda: np.zeros(0, np.float32)
    )
    """The latent at every step of the episode; empty in windows of earlier versions."""
    whole_label_S: Bool[np.ndarray, " S"] = field(default_factory=lambda: np.zeros(0, np.bool_))
