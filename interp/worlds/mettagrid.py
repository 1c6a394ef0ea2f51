"""The only door to mettagrid: E simulations through its raw C class, on one shared set of numpy buffers.

About 48 times as fast as mettagrid's own `Rollout`, because the config is converted once, nothing is copied between
C++ and numpy, and all agents of all worlds form one batch; bit-identical to mettagrid's `Simulation` (a test compares
observations and rewards). `convert_to_cpp_game_config` and the C class are not a documented API, hence the pinned
version of mettagrid.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product, starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int16, Int32, UInt8
from mettagrid.config.mettagrid_c_config import convert_to_cpp_game_config, rename_map_agents
from mettagrid.config.mettagrid_config import MettaGridConfig
from mettagrid.mettagrid_c import MettaGrid
from mettagrid.policy.policy_env_interface import PolicyEnvInterface

from interp.records import Facts
from interp.worlds.kernels import read_own_tokens
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
        self._sightings = _Sightings(
            self.observation_R, self._vocabulary, self._resource_names, self.spec.max_steps + 1
        )
        # the arms of a steering experiment play the same maps one after the other
        self._map = lru_cache(maxsize=4)(self._build_map)

    def _rows(self, world: int) -> slice:
        return slice(world * self.spec.num_agents, (world + 1) * self.spec.num_agents)

    def reset(self, world: int, *, map_seed: int, sim_seed: int, collect_facts: bool) -> None:
        built = self._map(int(map_seed))
        sim = MettaGrid(self._c_config, built.cells, int(sim_seed) & 0x7FFFFFFF)
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
        self._sightings.forget(rows)
        if collect_facts:
            self._scribes[world] = _Scribe(
                sim,
                self._sightings,
                rows,
                vocabulary=self._vocabulary,
                map_HW=built.map_HW,
                object_names=self._object_names,
                resource_names=self._resource_names,
                counter_names=self._counter_names,
                max_steps=self.spec.max_steps,
            )

    def _build_map(self, seed: int) -> "_Map":
        builder = self._map_builder.model_copy(update={"seed": seed})
        grid = builder.create().build_for_num_agents(self.spec.num_agents).grid
        cells = grid.tolist()
        if self._agent_renames:
            cells = rename_map_agents(cells, self._agent_renames)
        map_HW = _static_map(grid, self._map_names)
        map_HW.flags.writeable = False  # episodes share it
        return _Map(cells, map_HW)

    def step(self, action_R: Int32[np.ndarray, " R"]) -> None:
        self._action_R[:] = action_R
        for sim in self._sims:
            if sim is not None:
                sim.step()
        scribes = [scribe for scribe in self._scribes if scribe is not None]
        if scribes:
            self._sightings.note()
            if self._counter_names or not self._vocabulary.tells_position:
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


class _Map(NamedTuple):
    """What a map's seed decides."""

    cells: list[list[str]]
    map_HW: UInt8[np.ndarray, "H W"]


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
    """What the agents of all worlds were last told of themselves: the first tokens of their observations, in a ring
    over time that is as long as the longest episode in play.

    They are decoded at once when an episode has ended, and copied for the whole batch in one go: numpy calls on the few
    rows of one world would cost more than the simulator itself.
    """

    def __init__(
        self,
        observation_R: UInt8[np.ndarray, "R N 3"],
        vocabulary: TokenVocabulary,
        resource_names: Sequence[str],
        most_states: int,
    ) -> None:
        self._observation_R = observation_R
        self._centre = vocabulary.window_rows // 2 << 4 | vocabulary.window_cols // 2
        """Location of the agent itself."""
        self._first_states = min(most_states, 1024)
        self._num_tokens = min(24, observation_R.shape[1])
        self._tokens = np.empty((0, 0, 0, 3), np.uint8)  # until somebody asks for facts
        self._clock = 0
        self._starts: dict[int, int] = {}
        """First row of a world -> clock at the first state of its episode."""
        self._num_resources = len(resource_names)
        self._moves_F2 = np.zeros((256, 2), np.int16)
        for name, move in _MOVES.items():
            if name in vocabulary.features:
                self._moves_F2[vocabulary.features[name]] = move
        self._resource_F = np.full(256, -1, np.int16)
        self._unit_F = np.zeros(256, np.int16)
        for index, resource in enumerate(resource_names):
            for suffix, unit in (("", 1), (":p1", TOKEN_VALUE_BASE)):
                feature = vocabulary.features.get(f"inv:{resource}{suffix}")
                if feature is not None:
                    self._resource_F[feature], self._unit_F[feature] = index, unit

    def start(self, rows: slice) -> None:
        """Notes the first state of a world between two steps."""
        if not len(self._tokens):
            self._tokens = self._blank(self._first_states)
        self._starts[rows.start] = self._clock
        self._keep(rows)

    def forget(self, rows: slice) -> None:
        """Gives up an episode that nobody will ask for."""
        self._starts.pop(rows.start, None)

    def note(self) -> None:
        """Notes the state after a step of all worlds."""
        self._clock += 1
        first = min(self._starts.values())
        if self._clock - first >= (num_states := len(self._tokens)):
            longer, kept = self._blank(2 * num_states), np.arange(first, self._clock)
            longer[kept % len(longer)] = self._tokens[kept % num_states]
            self._tokens = longer
        self._keep(slice(0, len(self._observation_R)))

    def _blank(self, num_states: int) -> UInt8[np.ndarray, "S R n 3"]:
        shape = (num_states, len(self._observation_R), self._num_tokens, 3)
        return np.full(shape, PADDING, np.uint8)

    def _keep(self, rows: slice) -> None:
        while self._is_own(self._observation_R[rows, self._num_tokens - 1, 0]).any():
            if self._num_tokens == self._observation_R.shape[1]:
                break
            more = min(self._num_tokens, self._observation_R.shape[1] - self._num_tokens)
            padding = np.full((*self._tokens.shape[:2], more, 3), PADDING, np.uint8)
            self._tokens = np.concatenate([self._tokens, padding], axis=2)
            self._num_tokens += more
        self._tokens[self._clock % len(self._tokens), rows] = self._observation_R[
            rows, : self._num_tokens
        ]

    def end(self, rows: slice) -> "_Told":
        """What the agents of a world were told from the first state of its episode to the last."""
        start = self._starts.pop(rows.start)
        shape = (self._clock + 1 - start, rows.stop - rows.start)
        told = _Told(
            np.zeros((*shape, 2), np.int16), np.zeros((*shape, self._num_resources), np.int16)
        )
        read_own_tokens(
            self._tokens,
            start,
            rows.start,
            GLOBAL,
            self._centre,
            self._moves_F2,
            self._resource_F,
            self._unit_F,
            *told,
        )
        return told

    def _is_own(self, location: UInt8[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        return (location == GLOBAL) | (location == self._centre)


_MOVES = {"lp:south": (1, 0), "lp:north": (-1, 0), "lp:east": (0, 1), "lp:west": (0, -1)}
"""Feature that tells how far an agent is from where it started -> rows and columns of a unit."""


class _Told(NamedTuple):
    """What agents were told of themselves."""

    moved_SA2: Int16[np.ndarray, "S A 2"]
    """Rows and columns from where each started."""
    amount_SAI: Int16[np.ndarray, "S A I"]


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
        sightings.start(rows)
        self._counted = list(product(range(self._num_agents), counter_names))
        self._counters: list[list[float | None]] = []
        """None of what has not happened yet."""
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
            self._counters.append(list(starmap(self._sim.get_agent_stat, self._counted)))
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
        told = self._sightings.end(self._rows)
        position_SA2 = (
            self._spawn_A2 + told.moved_SA2
            if self._vocabulary.tells_position
            else np.array(self._queried_positions, np.int16)
        )
        return self._facts(position_SA2, told.amount_SAI, self._counters)

    def _facts(
        self,
        position_SA2: Int16[np.ndarray, "S A 2"],
        inventory_SAI: Int16[np.ndarray, "S A I"],
        counters: list[list[float | None]],
    ) -> Facts:
        return Facts(
            map_HW=self._map_HW,
            object_names=self._object_names,
            position_SA2=position_SA2,
            inventory_SAI=inventory_SAI,
            resource_names=self._resource_names,
            counter_SAN=np.nan_to_num(np.array(counters, np.float32)).reshape(
                *position_SA2.shape[:2], len(self._counter_names)
            ),
            counter_names=self._counter_names,
            team_A=self._team_A,
            max_steps=self._max_steps,
            view_radius=(self._vocabulary.window_rows // 2, self._vocabulary.window_cols // 2),
        )
