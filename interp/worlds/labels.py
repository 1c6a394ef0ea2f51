"""What was true, step by step, of every agent of one episode: the ground truth that concepts are scored against.

The labels here are those of mettagrid's worlds. A world of another kind brings its own, each a range of one variable
of its `Trace` (`interp.worlds.tasks`), and `compute_labels` serves both.

Labels are bool [T, A] and are computed after the episode has ended, from `Facts` alone, since some look ahead.
Each definition says what it describes: the *state* before action t, the *result* of action t (state t against state
t + 1), or the steps *ahead* (actions t to t + 2, states t + 1 to t + 3; near the end, those of them that exist).
A world without the thing that a label is about gives False everywhere.

Moves are to the four neighbouring cells, and a station is used by walking into it. A name of an object or a resource
means a thing if one of its words does: "mine", "mine_red" and "carbon_extractor" are all sources.

A label of your own takes five lines and is recorded like the others:

    @label("altar_alone", kind="spatial")
    def altar_alone(scene: Scene) -> Bool[np.ndarray, "T A"]:
        '''State: an altar stands within distance 3 and no enemy is in view.'''
        return scene.near("altar", 3) & ~enemy_detection(scene)

Wherever a label may be named, so may one made of labels: `altar_alone@within5`, `carrying_ore&!landmark`
(`interp.worlds.expressions`).
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float32, Int16, Int32, Int64
from scipy import ndimage

from interp.records import Facts, LabelKind, Trace, VariableLabel
from interp.worlds.expressions import NAME, Judged, Name, looks_ahead, parse, parts_of
from interp.worlds.paths import FAR, distance_to, steps_to

HORIZON = 3
"""How many steps the labels of kind *ahead* look into the future."""

ECONOMY = {"source": "ore", "generator": "battery", "altar": "heart"}
"""The chain of stations, each with what it gives; each consumes what the one before it gave."""
SYNONYMS: Mapping[str, frozenset[str]] = {
    "wall": frozenset({"wall", "block"}),
    "source": frozenset({"source", "mine", "extractor"}),
    "generator": frozenset({"generator", "battery"}),
    "altar": frozenset({"altar", "assembler", "hub"}),
    "hazard": frozenset({"hazard", "turret", "trap", "lava"}),
}
"""Kind of object -> the words that mean it. Any other kind is meant by its own name only."""
COMBAT_COUNTERS = ("attack.hit", "attack.hit_by", "attack.blocked", "attack.defended")


class Scene:
    """One episode as labels look at it: questions to its `Facts`, the costly answers kept."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.num_steps, self.num_agents = facts.position_SA2.shape[0] - 1, facts.team_A.shape[0]
        self._path_distance: dict[str, Int32[np.ndarray, "S A"]] = {}
        self._amount: dict[str, Int16[np.ndarray, "S A"]] = {}

    @cached_property
    def t(self) -> Int64[np.ndarray, " T"]:
        return np.arange(self.num_steps)

    @cached_property
    def t_ahead(self) -> Int64[np.ndarray, " T"]:
        """The state that lies `HORIZON` steps after each t, or the last one."""
        return np.minimum(self.t + HORIZON, self.num_steps)

    @cached_property
    def cell_SA(self) -> Int64[np.ndarray, "S A"]:
        """Every agent's cell, as an index into the flattened map."""
        row_SA, column_SA = np.moveaxis(self.facts.position_SA2.astype(np.int64), -1, 0)
        return row_SA * self.facts.map_HW.shape[1] + column_SA

    def objects(self, kind: str) -> Bool[np.ndarray, "H W"]:
        """Where the objects of a kind stand; "station" is whatever is neither empty nor a wall."""
        if kind == "station":
            return (self.facts.map_HW != 0) & ~self.objects("wall")
        return _means(self.facts.object_names, kind)[self.facts.map_HW]

    def distance(self, kind: str) -> Int32[np.ndarray, "S A"]:
        """Manhattan distance to the nearest object of a kind, through walls; `FAR` if none exists."""
        return distance_to(self.objects(kind)).take(self.cell_SA)

    def near(self, kind: str, radius: int) -> Bool[np.ndarray, "T A"]:
        """Whether, before action t, an object of a kind stands within a Manhattan distance."""
        return self.distance(kind)[:-1] <= radius

    def path_distance(self, kind: str) -> Int32[np.ndarray, "S A"]:
        """Steps to a cell next to an object of a kind, 0 if there already; other agents are not in the way."""
        if kind not in self._path_distance:
            steps_HW = steps_to(self.objects(kind), free_HW=self.facts.map_HW == 0)
            self._path_distance[kind] = steps_HW.take(self.cell_SA)
        return self._path_distance[kind]

    def amount(self, resource: str) -> Int16[np.ndarray, "S A"]:
        """How much of a resource each agent carries, all its varieties together."""
        if resource not in self._amount:
            is_meant_I = _means(self.facts.resource_names, resource)
            amount_SAI = self.facts.inventory_SAI[..., is_meant_I]
            self._amount[resource] = amount_SAI.sum(-1, dtype=np.int16)
        return self._amount[resource]

    def change(self, resource: str) -> Int16[np.ndarray, "T A"]:
        """By how much the amount of a resource rises during action t."""
        return np.diff(self.amount(resource), axis=0)

    @cached_property
    def enemy_AA(self) -> Bool[np.ndarray, "A A"]:
        return self.facts.team_A[:, None] != self.facts.team_A

    @cached_property
    def offset_SAA2(self) -> Int16[np.ndarray, "S A A 2"]:
        """Rows and columns between every two agents, unsigned."""
        position_SA2 = self.facts.position_SA2
        return np.abs(position_SA2[:, :, None] - position_SA2[:, None])

    def everyone(self, fact_T: Bool[np.ndarray, " T"]) -> Bool[np.ndarray, "T A"]:
        """The same truth for all agents."""
        return np.repeat(fact_T[:, None], self.num_agents, axis=1)


LabelFunction = Callable[[Scene], Bool[np.ndarray, "T A"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    name: str
    kind: LabelKind
    definition: str
    """The docstring of the function, on one line."""
    compute: LabelFunction


_registry: dict[str, Label] = {}
LABELS: Mapping[str, Label] = MappingProxyType(_registry)
"""Every label by name, in the order of definition."""


def label(name: str, *, kind: LabelKind) -> Callable[[LabelFunction], LabelFunction]:
    """Makes a function a label; its docstring is the definition that reports print."""

    def register(compute: LabelFunction) -> LabelFunction:
        definition = " ".join((compute.__doc__ or "").split())
        if not NAME.fullmatch(name):
            raise ValueError(
                f"label {name!r}: wanted letters, digits, _ . or -, beginning with a letter; other signs combine labels"
            )
        if not definition:
            raise ValueError(f"label {name!r} has no docstring; write its exact definition there")
        if name in _registry and _origin(_registry[name].compute) != _origin(compute):
            raise ValueError(
                f"label {name!r} is already defined by {_origin(_registry[name].compute)}; "
                "choose another name"
            )
        _registry[name] = Label(name=name, kind=kind, definition=definition, compute=compute)
        return compute

    return register


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedLabel:
    """A label made of others."""

    name: str
    kind: LabelKind
    """That of its parts if they have one, else "mixed"."""
    definition: str


WorldLabel = Label | VariableLabel | DerivedLabel
"""What every world's labels have in common: a name, a kind and a definition."""


def label_named(name: str, known: Mapping[str, WorldLabel]) -> WorldLabel:
    """The label of that name, or the one that an expression makes of those of the world.

    Raises:
        ValueError: an expression that cannot be read, or a part that is no label of the world.
    """
    expression = parse(name, known)
    if isinstance(expression, Name):
        return _plain_label(expression.name, known)
    parts = [_plain_label(part, known) for part in parts_of(expression)]
    kinds: set[LabelKind] = {part.kind for part in parts}
    ahead = (
        " Known up to where its windows pass the episode's end." if looks_ahead(expression) else ""
    )
    return DerivedLabel(
        name=name,
        kind=parts[0].kind if len(kinds) == 1 else "mixed",
        definition=f"{name}, where{ahead} "
        + " ".join(f"[{part.name}] {part.definition}" for part in parts),
    )


def check_labels(names: Sequence[str], known: Mapping[str, WorldLabel]) -> None:
    """Raises ValueError if one of the names is no label of the world whose labels are `known`, nor made of them."""
    for name in names:
        label_named(name, known)


def label_parts(names: Sequence[str], known: Mapping[str, WorldLabel]) -> tuple[str, ...]:
    """The plain labels that those names are made of, each once: what a recording has to keep."""
    check_labels(names, known)
    return tuple(dict.fromkeys(part for name in names for part in parts_of(parse(name, known))))


def compute_labels(
    facts: Facts | Trace, names: Sequence[str] | None = None
) -> dict[str, Bool[np.ndarray, "T A"]]:
    """The named labels of one episode, or all that its world has, in the order asked for.

    False where a label is not known, which those with a horizon are not near the end; see `judge_labels`.
    """
    return {name: judged.true_TA for name, judged in judge_labels(facts, names).items()}


def compute_labels_together(
    episodes: Sequence[Facts | Trace], names: Sequence[str]
) -> dict[str, Bool[np.ndarray, "T A"]]:
    """As `compute_labels`, of several episodes of one world; their steps follow each other.

    Plain labels that are ranges of a variable are computed for all episodes at once, which is most of the work where
    these are short.
    """
    traces = [facts for facts in episodes if isinstance(facts, Trace)]
    if len(traces) == len(episodes) and all(name in traces[0].labels for name in names):
        known = traces[0].labels
        variables = {
            key: np.concatenate(
                [
                    trace.variables[key[0]][1:] if key[1] else trace.variables[key[0]][:-1]
                    for trace in traces
                ]
            )
            for key in {(known[name].variable, known[name].after_action) for name in names}
        }
        return {
            name: _within(known[name], variables[known[name].variable, known[name].after_action])
            for name in names
        }
    computed = [compute_labels(facts, names) for facts in episodes]
    return {name: np.concatenate([each[name] for each in computed]) for name in names}


def judge_labels(facts: Facts | Trace, names: Sequence[str] | None = None) -> dict[str, Judged]:
    """As `compute_labels`, with where each of them is known."""
    known = facts.labels if isinstance(facts, Trace) else LABELS
    chosen = tuple(known if names is None else names)
    truth = _plain_truth(facts, label_parts(chosen, known))
    return {name: parse(name, known).judge(truth) for name in chosen}


def _plain_truth(facts: Facts | Trace, names: Sequence[str]) -> dict[str, Bool[np.ndarray, "T A"]]:
    if isinstance(facts, Trace):
        return {name: _in_range(facts.labels[name], facts) for name in names}
    scene = Scene(facts)
    truth = {}
    for name in names:
        truth[name] = LABELS[name].compute(scene)
        found, wanted = truth[name], (scene.num_steps, scene.num_agents)
        if found.dtype != np.bool_ or found.shape != wanted:
            raise ValueError(
                f"label {name!r} gave {found.dtype} {found.shape} but this episode needs "
                f"bool {wanted} (steps, agents)"
            )
    return truth


def _in_range(label: VariableLabel, trace: Trace) -> Bool[np.ndarray, "T A"]:
    value_SA = trace.variables[label.variable]
    value_TA = value_SA[1:] if label.after_action else value_SA[:-1]
    return _within(label, value_TA)


def _within(label: VariableLabel, value_TA: Float32[np.ndarray, "T A"]) -> Bool[np.ndarray, "T A"]:
    return (value_TA >= label.at_least) & (value_TA < label.below)


# Behavioural


@label("goal_seeking", kind="behavioural")
def goal_seeking(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """Ahead: the agent nears or uses the station that it needs in the state before action t.

    That is an altar if it carries a battery, else a generator if it carries ore, else a source. Either the path
    distance to the nearest such station is at least 2 smaller 3 steps later (or in the last state), or one of the
    actions t to t + 2 uses one: it raises what such a station gives (ore, battery, heart) while the agent stands
    next to one.
    """
    needed_TA = np.where(
        scene.amount("battery")[:-1] > 0, 2, np.where(scene.amount("ore")[:-1] > 0, 1, 0)
    )
    success_KTA = []
    for station, product in ECONOMY.items():
        distance_SA = scene.path_distance(station)
        nears_TA = distance_SA[:-1] - distance_SA[scene.t_ahead] >= 2
        uses_TA = (scene.change(product) > 0) & (distance_SA[:-1] == 0)
        success_KTA.append(nears_TA | _soon(uses_TA))
    return np.choose(needed_TA, success_KTA)


@label("exploration", kind="behavioural")
def exploration(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """Ahead: within 3 steps the agent enters a cell where it has not been before in this episode.

    Where it was before action t counts as visited, back to the first state. The last steps look to the end only.
    """
    visit_SA = scene.cell_SA * scene.num_agents + np.arange(scene.num_agents)
    first_visits = np.unique(visit_SA, return_index=True)[1]
    is_new_SA = np.zeros_like(visit_SA, dtype=bool)
    is_new_SA.flat[first_visits] = True
    return _soon(is_new_SA[1:])


@label("resource_collection", kind="behavioural")
def resource_collection(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """Result: the agent has more ore or more batteries after action t than before, mined, made or robbed."""
    return (scene.change("ore") > 0) | (scene.change("battery") > 0)


@label("combat", kind="behavioural")
def combat(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """Result: during step t the agent attacks or is attacked, successfully or not.

    That is, one of its counters attack.hit, attack.hit_by, attack.blocked, attack.defended rises.
    """
    is_combat_N = np.isin(scene.facts.counter_names, COMBAT_COUNTERS)
    risen_TAN = np.diff(scene.facts.counter_SAN[..., is_combat_N], axis=0) > 0
    return np.any(risen_TAN, axis=-1)


@label("avoidance", kind="behavioural")
def avoidance(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """Ahead: the agent gets away from a hazard that is within Manhattan distance 4 before action t.

    Hazards are turrets and the enemies that carry a laser before action t. The distance to the nearest of them is at
    least 2 larger 3 steps later (or in the last state); an enemy that has meanwhile fired its laser still counts.
    """
    turret_SA = scene.distance("hazard")
    if not scene.enemy_AA.any():
        now_TA, ahead_TA = turret_SA[:-1], turret_SA[scene.t_ahead]
    else:
        threat_TAA = scene.enemy_AA & (scene.amount("laser")[:-1, None] > 0)
        apart_SAA = scene.offset_SAA2.sum(-1, dtype=np.int32)

        def nearest(state_T: Int64[np.ndarray, " T"]) -> Int32[np.ndarray, "T A"]:
            enemy_TA = np.where(threat_TAA, apart_SAA[state_T], FAR).min(-1)
            return np.minimum(enemy_TA, turret_SA[state_T]).astype(np.int32)

        now_TA, ahead_TA = nearest(scene.t), nearest(scene.t_ahead)
    return (now_TA <= 4) & (ahead_TA - now_TA >= 2)


# Spatial


@label("wall_proximity", kind="spatial")
def wall_proximity(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """State: a wall stands in one of the four cells next to the agent."""
    return scene.near("wall", 1)


@label("open_area", kind="spatial")
def open_area(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """State: the 5x5 window centred on the agent lies inside the map and holds no wall and no station."""
    occupied_HW = scene.facts.map_HW != 0
    crowded_HW = ndimage.maximum_filter(occupied_HW, size=5, mode="constant", cval=1)
    return ~crowded_HW.take(scene.cell_SA[:-1])


@label("landmark", kind="spatial")
def landmark(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """State: a station, that is any static object but a wall, stands within Manhattan distance 2."""
    return scene.near("station", 2)


# Temporal, in whole numbers so that the borders are exact


@label("episode_start", kind="temporal")
def episode_start(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """State: t lies in the first tenth of the episode's time limit, t / max_steps < 0.1."""
    return scene.everyone(10 * scene.t < scene.facts.max_steps)


@label("episode_middle", kind="temporal")
def episode_middle(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """State: t lies in the middle fifth of the episode's time limit, 0.4 <= t / max_steps < 0.6."""
    tenths_T, limit = 10 * scene.t, scene.facts.max_steps
    return scene.everyone((4 * limit <= tenths_T) & (tenths_T < 6 * limit))


@label("episode_end", kind="temporal")
def episode_end(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """State: t lies in the last tenth of the episode's time limit, t / max_steps >= 0.9."""
    return scene.everyone(10 * scene.t >= 9 * scene.facts.max_steps)


# Object-based


@label("battery_proximity", kind="object-based")
def battery_proximity(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """State: a generator, which makes batteries, stands within Manhattan distance 2."""
    return scene.near("generator", 2)


@label("altar_interaction", kind="object-based")
def altar_interaction(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """Result: action t uses an altar, which turns batteries into hearts: these rise, those fall."""
    return (scene.change("heart") > 0) & (scene.change("battery") < 0)


@label("altar_soon", kind="object-based")
def altar_soon(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """Ahead: one of the actions t to t + 2, if the episode lasts so long, uses an altar (altar_interaction)."""
    return _soon(altar_interaction(scene))


@label("carrying_ore", kind="object-based")
def carrying_ore(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """State: the agent carries at least one ore."""
    return scene.amount("ore")[:-1] > 0


@label("carrying_battery", kind="object-based")
def carrying_battery(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """State: the agent carries at least one battery."""
    return scene.amount("battery")[:-1] > 0


@label("enemy_detection", kind="object-based")
def enemy_detection(scene: Scene) -> Bool[np.ndarray, "T A"]:
    """State: an agent of another team is within the rows and columns that the agent sees; walls do not hide it."""
    rows, columns = scene.facts.view_radius
    row_SAA, column_SAA = np.moveaxis(scene.offset_SAA2, -1, 0)
    seen_SAA = scene.enemy_AA & (row_SAA <= rows) & (column_SAA <= columns)
    return seen_SAA[:-1].any(-1)


def _soon(event_TA: Bool[np.ndarray, "T A"]) -> Bool[np.ndarray, "T A"]:
    """Whether the event happens at one of the steps t to t + HORIZON - 1."""
    soon_TA = event_TA.copy()
    for later in range(1, HORIZON):
        soon_TA[:-later] |= event_TA[later:]
    return soon_TA


@lru_cache
def _means(names: tuple[str, ...], kind: str) -> Bool[np.ndarray, " N"]:
    """Which of the names have a word that means the kind."""
    meanings = SYNONYMS.get(kind, frozenset({kind}))
    return np.array(
        [not meanings.isdisjoint(re.split("[^a-z]+", n.lower())) for n in names], dtype=bool
    )


def _origin(function: LabelFunction) -> str:
    """Where a function was written: the same for a notebook cell that is run again."""
    return f"{function.__module__}.{function.__qualname__}"


def _plain_label(name: str, known: Mapping[str, WorldLabel]) -> WorldLabel:
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    raise ValueError(
        f"label {name!r} does not exist; did you mean {nearest[0]!r}? The labels are {sorted(known)}"
    )
