"""The only door to mettagrid: E simulations through its raw C class, on one shared set of numpy buffers.

About 48 times as fast as mettagrid's own `Rollout`, because the config is converted once, nothing is copied between
C++ and numpy, and all agents of all worlds form one batch; bit-identical to mettagrid's `Simulation` (a test compares
observations and rewards). `convert_to_cpp_game_config` and the C class are not a documented API, hence the pinned
version of mettagrid.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int16, Int32, UInt8
from mettagrid.config.mettagrid_c_config import convert_to_cpp_game_config, rename_map_agents
from mettagrid.config.mettagrid_config import MettaGridConfig
from mettagrid.mettagrid_c import MettaGrid
from mettagrid.policy.policy_env_interface import PolicyEnvInterface

from interp.records import Facts
from interp.worlds.labels import COMBAT_COUNTERS, LABELS, Label
from interp.worlds.presets import PRESETS, load_config
from interp.worlds.world import TokenVocabulary, WorldSpec

PADDING = 0xFF
"""Location byte of an unused token."""
GLOBAL = 0xFE
"""Location byte of a token about the world or the agent as such."""


TOKEN_VALUE_BASE = 256
"""An amount of so many or more is told by two tokens."""


@dataclass(frozen=True)
class MettagridFactory:
    """Makes batches of one mettagrid world from its JSON, the only form in which a config travels."""

    name: str
    config_json: str

    @classmethod
    def load(cls, world: str) -> "MettagridFactory":
        """From a preset's name or a `MettaGridConfig` JSON file; ValueError if it is neither or does not play."""
        config = load_config(world)
        factory = cls(
            name=world if world in PRESETS else Path(world).stem,
            config_json=config.model_dump_json(),
        )
        if (base := config.game.obs.token_value_base) != TOKEN_VALUE_BASE:
            raise ValueError(
                f"world {world}: game.obs.token_value_base is {base}, but amounts are read only by {TOKEN_VALUE_BASE}"
            )
        factory._play_once()
        return factory

    def _play_once(self) -> None:
        """A few steps, so that a config that cannot play (too few observation tokens, say) fails here and now."""
        try:
            world = self(1)
            world.reset(0, map_seed=0, sim_seed=0, collect_facts=False)
            generator = np.random.default_rng(0)
            for _ in range(min(16, self.spec.max_steps)):
                world.step(
                    generator.integers(
                        0, len(self.spec.action_names), self.spec.num_agents, dtype=np.int32
                    )
                )
        except (RuntimeError, TypeError, KeyError) as error:
            raise ValueError(
                f"world {self.name}: the simulator refuses this config: {error}"
            ) from error

    @cached_property
    def mettagrid_config(self) -> MettaGridConfig:
        return MettaGridConfig.model_validate_json(self.config_json)

    @cached_property
    def vocabulary(self) -> TokenVocabulary:
        obs = self.mettagrid_config.game.obs
        interface = PolicyEnvInterface.from_mg_cfg(self.mettagrid_config)
        return TokenVocabulary(
            window_rows=obs.height,
            window_cols=obs.width,
            num_tokens=obs.num_tokens,
            features={feature.name: int(feature.id) for feature in interface.obs_features},
            tags=tuple(interface.tags),
            tells_position=obs.global_obs.local_position,
        )

    @property
    def spec(self) -> WorldSpec:
        return self._spec  # to a type checker, a cached_property is not the property of a protocol

    @cached_property
    def _spec(self) -> WorldSpec:
        game = self.mettagrid_config.game
        if game.max_steps <= 0:
            raise ValueError(
                f"world {self.name}: game.max_steps is {game.max_steps}, but an episode must end; set a limit"
            )
        return WorldSpec(
            name=self.name,
            num_agents=game.num_agents,
            max_steps=game.max_steps,
            action_names=tuple(PolicyEnvInterface.from_mg_cfg(self.mettagrid_config).action_names),
            observation_shape=(game.obs.num_tokens, 3),
            observation_dtype="uint8",
            has_map=True,
            vocabulary=self.vocabulary,
            teams=tuple(agent.team_id for agent in game.agents),
        )

    @property
    def labels(self) -> Mapping[str, Label]:
        return LABELS

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": "mettagrid", "name": self.name, "config_json": self.config_json}

    def __call__(self, num_worlds: int) -> "MettagridWorld":
        return MettagridWorld(self, num_worlds)


class MettagridWorld:
    """E simulations that write into shared buffers; see `World` for the protocol."""

    def __init__(self, factory: MettagridFactory, num_worlds: int) -> None:
        # Its helper threads spin while they wait: 3.5 to 34 times slower beside another busy process.
        os.environ.pop("METTAGRID_OBS_THREADS", None)
        self.spec = factory.spec
        self.num_worlds = num_worlds
        self._vocabulary = factory.vocabulary
        config = factory.mettagrid_config.model_copy(deep=True)  # the conversion edits its argument
        self._c_config, self._agent_renames = convert_to_cpp_game_config(config.game)
        self._map_builder = config.game.map_builder
        self._object_names = ("empty", *config.game.objects)
        self._map_names = ("empty", *(kind.map_name for kind in config.game.objects.values()))
        self._resource_names = tuple(config.game.resource_names)
        self._counter_names = tuple(
            name for name in COMBAT_COUNTERS if f'"stat":"{name}"' in factory.config_json
        )
        rows = num_worlds * self.spec.num_agents
        self.observation_R = np.full((rows, *self.spec.observation_shape), PADDING, np.uint8)
        self.reward_R = np.zeros(rows, np.float32)
        self.done_R = np.zeros(rows, np.bool_)
        self._truncated_R = np.zeros(rows, np.bool_)
        self._terminated_R = np.zeros(rows, np.bool_)
        self._action_R = np.zeros(rows, np.int32)
        self._vibe_R = np.zeros(rows, np.int32)
        self._sims: list[MettaGrid | None] = [None] * num_worlds
        self._scribes: list[_Scribe | None] = [None] * num_worlds
        self._sightings = _Sightings(self.observation_R, self._vocabulary, self.spec.max_steps + 1)

    def _rows(self, world: int) -> slice:
        return slice(world * self.spec.num_agents, (world + 1) * self.spec.num_agents)

    def reset(self, world: int, *, map_seed: int, sim_seed: int, collect_facts: bool) -> None:
        builder = self._map_builder.model_copy(update={"seed": int(map_seed)})
        grid = builder.create().build_for_num_agents(self.spec.num_agents).grid
        cells = grid.tolist()
        if self._agent_renames:
            cells = rename_map_agents(cells, self._agent_renames)
        sim = MettaGrid(self._c_config, cells, int(sim_seed) & 0x7FFFFFFF)
        rows = self._rows(world)
        # slices along the first axis are views: the simulator writes straight into the batch
        sim.set_buffers(
            self.observation_R[rows],
            self._terminated_R[rows],
            self._truncated_R[rows],
            self.reward_R[rows],
            self._action_R[rows],
            self._vibe_R[rows],
        )
        self.done_R[rows] = False
        self._sims[world] = sim
        self._scribes[world] = None
        if collect_facts:
            self._scribes[world] = _Scribe(
                sim,
                self._sightings,
                rows,
                vocabulary=self._vocabulary,
                map_HW=_static_map(grid, self._map_names),
                object_names=self._object_names,
                resource_names=self._resource_names,
                counter_names=self._counter_names,
                max_steps=self.spec.max_steps,
            )

    def step(self, action_R: Int32[np.ndarray, " R"]) -> None:
        self._action_R[:] = action_R
        for sim in self._sims:
            if sim is not None:
                sim.step()
        scribes = [scribe for scribe in self._scribes if scribe is not None]
        if scribes:
            self._sightings.note()
            for scribe in scribes:
                scribe.note()
        np.logical_or(self._truncated_R, self._terminated_R, out=self.done_R)

    def look(self, world: int) -> Facts:
        """What is true now, as the facts of an episode of one state: for players that know what no agent sees.

        About 5 us an agent. The world must have been reset with facts.
        """
        scribe = self._scribes[world]
        assert scribe is not None
        return scribe.look()

    def retire(self, world: int) -> Facts | None:
        scribe = self._scribes[world]
        self._sims[world] = self._scribes[world] = None
        rows = self._rows(world)
        self.observation_R[rows] = PADDING
        for buffer_R in (self.reward_R, self.done_R, self._truncated_R, self._terminated_R):
            buffer_R[rows] = 0
        return None if scribe is None else scribe.facts()


def _static_map(grid: np.ndarray, map_names: tuple[str, ...]) -> UInt8[np.ndarray, "H W"]:
    """Index of the object in each cell of the builder's map; agents stand on empty cells."""
    map_HW = np.zeros(grid.shape, np.uint8)
    for index, name in enumerate(map_names):
        map_HW[grid == name] = index
    present = {str(name) for name in np.unique(grid)}
    if unknown := {name for name in present - set(map_names) if not name.startswith("agent")}:
        raise ValueError(
            f"the map has {sorted(unknown)}, which no object of the world is called; its objects are "
            f"{sorted(map_names)}"
        )
    return map_HW


class _Sightings:
    """What the agents of all worlds were last told of themselves: the first tokens of as many observations as an
    episode has states, in a ring over time.

    They are decoded at once when an episode has ended, and copied for the whole batch in one go: numpy calls on the few
    rows of one world would cost more than the simulator itself.
    """

    def __init__(
        self,
        observation_R: UInt8[np.ndarray, "R N 3"],
        vocabulary: TokenVocabulary,
        num_states: int,
    ) -> None:
        self._observation_R = observation_R
        self.centre = vocabulary.window_rows // 2 << 4 | vocabulary.window_cols // 2
        """Location of the agent itself."""
        self._num_states = num_states
        self._num_tokens = min(24, observation_R.shape[1])
        self._tokens = np.empty((0, 0, 0, 3), np.uint8)  # until somebody asks for facts
        self.clock = 0

    def start(self, rows: slice) -> int:
        """Notes the first state of a world between two steps; the clock at that state."""
        if not len(self._tokens):
            shape = (self._num_states, len(self._observation_R), self._num_tokens, 3)
            self._tokens = np.full(shape, PADDING, np.uint8)
        self._keep(rows)
        return self.clock

    def note(self) -> None:
        """Notes the state after a step of all worlds."""
        self.clock += 1
        self._keep(slice(0, len(self._observation_R)))

    def _keep(self, rows: slice) -> None:
        while self._is_own(self._observation_R[rows, self._num_tokens - 1, 0]).any():
            if self._num_tokens == self._observation_R.shape[1]:
                break
            more = min(self._num_tokens, self._observation_R.shape[1] - self._num_tokens)
            padding = np.full((*self._tokens.shape[:2], more, 3), PADDING, np.uint8)
            self._tokens = np.concatenate([self._tokens, padding], axis=2)
            self._num_tokens += more
        at = self.clock % self._num_states
        self._tokens[at, rows] = self._observation_R[rows, : self._num_tokens]

    def since(self, clock: int, rows: slice) -> UInt8[np.ndarray, "S A n 3"]:
        """The tokens about the agents themselves, from the state at `clock` to the last: they come first, then others
        by distance.
        """
        at_S = np.arange(clock, self.clock + 1) % self._num_states
        is_own_n = np.atleast_1d(self._is_own(self._tokens[:, rows, :, 0][at_S]).any((0, 1)))
        num_own = len(is_own_n) if is_own_n.all() else int(is_own_n.argmin())
        return self._tokens[:, rows, :num_own][at_S]

    def _is_own(self, location: UInt8[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        return (location == GLOBAL) | (location == self.centre)


class _Scribe:
    """Notes one episode while it is played and turns it into Facts at its end."""

    def __init__(
        self,
        sim: MettaGrid,
        sightings: _Sightings,
        rows: slice,
        *,
        vocabulary: TokenVocabulary,
        map_HW: UInt8[np.ndarray, "H W"],
        object_names: tuple[str, ...],
        resource_names: tuple[str, ...],
        counter_names: tuple[str, ...],
        max_steps: int,
    ) -> None:
        self._sim = sim
        self._sightings = sightings
        self._rows = rows
        self._vocabulary = vocabulary
        self._map_HW = map_HW
        self._object_names = object_names
        self._resource_names = resource_names
        self._counter_names = counter_names
        self._max_steps = max_steps
        self._num_agents = rows.stop - rows.start
        self._start_clock = sightings.start(rows)
        self._counters: list[list[float]] = []
        spawn = self._query_agents()
        self._spawn_A2 = np.array([(agent["r"], agent["c"]) for agent in spawn], np.int16)
        self._team_A = np.array([agent["agent:group"] for agent in spawn], np.int16)
        self._queried_positions: list[list[tuple[int, int]]] = []
        self.note()

    def _query_agents(self) -> list[dict[str, Any]]:
        """Agents in the order of their numbers; about 5 us an agent, so not used where tokens tell the position."""
        static_types = [name for name in self._sim.object_type_names if name not in ("", "agent")]
        agents = self._sim.grid_objects(-1, -1, -1, -1, static_types).values()
        return sorted(agents, key=lambda agent: agent["agent_id"])

    def note(self) -> None:
        """Asks the simulator what no observation tells."""
        if self._counter_names:
            self._counters.append(
                [
                    self._sim.get_agent_stat(agent, name) or 0.0
                    for agent in range(self._num_agents)
                    for name in self._counter_names
                ]
            )
        if not self._vocabulary.tells_position:
            self._queried_positions.append(
                [(agent["r"], agent["c"]) for agent in self._query_agents()]
            )

    def look(self) -> Facts:
        """The facts of this moment."""
        agents = self._query_agents()
        inventory_SAI = np.zeros((1, self._num_agents, len(self._resource_names)), np.int16)
        for number, agent in enumerate(agents):
            for resource, amount in agent["inventory"].items():
                inventory_SAI[0, number, resource] = amount
        position_SA2 = np.array([[(agent["r"], agent["c"]) for agent in agents]], np.int16)
        return self._facts(position_SA2, inventory_SAI, self._counters[-1:])

    def facts(self) -> Facts:
        """The facts of the episode so far."""
        states = self._sightings.since(self._start_clock, self._rows)
        return self._facts(self._position(states), self._inventory(states), self._counters)

    def _facts(
        self,
        position_SA2: Int16[np.ndarray, "S A 2"],
        inventory_SAI: Int16[np.ndarray, "S A I"],
        counters: list[list[float]],
    ) -> Facts:
        return Facts(
            map_HW=self._map_HW,
            object_names=self._object_names,
            position_SA2=position_SA2,
            inventory_SAI=inventory_SAI,
            resource_names=self._resource_names,
            counter_SAN=np.array(counters, np.float32).reshape(
                *position_SA2.shape[:2], len(self._counter_names)
            ),
            counter_names=self._counter_names,
            team_A=self._team_A,
            max_steps=self._max_steps,
            view_radius=(self._vocabulary.window_rows // 2, self._vocabulary.window_cols // 2),
        )

    def _position(self, states: UInt8[np.ndarray, "S A N 3"]) -> Int16[np.ndarray, "S A 2"]:
        if not self._vocabulary.tells_position:
            return np.array(self._queried_positions, np.int16)
        is_global = states[..., 0] == GLOBAL
        south, north, east, west = (
            (
                states[..., 2] * (is_global & (states[..., 1] == self._vocabulary.features[name]))
            ).sum(-1, dtype=np.int16)
            for name in ("lp:south", "lp:north", "lp:east", "lp:west")
        )
        return self._spawn_A2 + np.stack([south - north, east - west], -1)

    def _inventory(self, states: UInt8[np.ndarray, "S A N 3"]) -> Int16[np.ndarray, "S A I"]:
        """Own inventory: tokens at the centre of the window; `inv:x:p1` carries the multiples of 256."""
        own = states[..., 0] == self._sightings.centre
        amount_SAI = np.zeros((*states.shape[:2], len(self._resource_names)), np.int16)
        own_feature = np.where(own, states[..., 1], PADDING)
        present = set(np.unique(own_feature).tolist())
        for index, resource in enumerate(self._resource_names):
            for suffix, unit in (("", 1), (":p1", TOKEN_VALUE_BASE)):
                feature = self._vocabulary.features.get(f"inv:{resource}{suffix}")
                if feature in present:
                    token = own_feature == feature
                    amount_SAI[..., index] += unit * (states[..., 2] * token).sum(
                        -1, dtype=np.int16
                    )
        return amount_SAI
