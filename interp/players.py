"""Scripted players: strategies that really play, with ground truth that no policy is told.

They find their ways on the map of the simulator, agent by agent, and are seeded: which of two equal moves is taken is a
function of (env_seed, agent, t). What they do is what the labels of the same names describe (`interp.worlds.labels`).

goal_seeking          ore at a source, battery at a generator, heart at an altar: one after the other, for ever
resource_collection   the same, but it fills up with ore, then with batteries, before it goes on
exploration           to the nearest cell where it has not been
combat                at the nearest enemy with a laser in hand; without one, ore at a source and a laser at a "lasery"
avoidance             wanders, as far as it can from hazards and from enemies that carry a laser
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Int32
from scipy import ndimage

from interp.records import Facts
from interp.worlds.labels import Scene
from interp.worlds.mettagrid import MettagridFactory, MettagridWorld
from interp.worlds.paths import FAR, steps_to
from interp.worlds.presets import PRESETS

MOVES = {"move_north": (-1, 0), "move_south": (1, 0), "move_west": (0, -1), "move_east": (0, 1)}
"""Action -> rows and columns."""
_STREAM = 0x506C61796572  # second half of the key of the players' noise
CAREFUL = 6
"""Cells from a danger beyond which further is no better."""
FULL = 3
"""Ore or batteries that resource_collection carries before it goes on, or fewer if it is given no more."""


class Walker:
    """One episode as its players see it: the map, where they have been, and the ways there are.

    Arrays end in their axes, as everywhere; they are not annotated, for a test would check them at every step.
    """

    def __init__(self, facts: Facts, env_seed: int) -> None:
        self._scene = Scene(facts)
        self.free_HW = facts.map_HW == 0
        self.visited_AHW = np.zeros((len(facts.team_A), *facts.map_HW.shape), np.bool_)
        key = [env_seed & 0xFFFFFFFFFFFFFFFF, _STREAM]
        self._now = self._scene
        self._idle_A = np.full(len(facts.team_A), -1)  # 0 after the first look
        self._generator = np.random.Generator(np.random.Philox(key=key))
        self._steps: dict[str, np.ndarray] = {}
        self._distance: dict[str, np.ndarray] = {}
        self.see(facts)

    def see(self, facts: Facts) -> None:
        """Takes note of the state before the next action."""
        before = self._now.facts
        is_same_A = (facts.position_SA2[0] == before.position_SA2[0]).all(-1) & (
            facts.inventory_SAI[0] == before.inventory_SAI[0]
        ).all(-1)
        self._idle_A = np.where(is_same_A, self._idle_A + 1, 0)
        self._now = Scene(facts)
        self.position_A2 = facts.position_SA2[0].astype(int)
        self._taken = {(int(row), int(col)) for row, col in self.position_A2}
        self.visited_AHW[np.arange(len(self.position_A2)), *self.position_A2.T] = True
        # drawn for all, whether they are used or not, so that one agent's choices do not move another's
        self._preference_A4 = self._generator.random((len(self.position_A2), len(MOVES)))

    def is_idle(self, agent: int) -> bool:
        """Whether its last two actions changed neither its place nor what it carries."""
        return bool(self._idle_A[agent] >= 2)

    def amount(self, agent: int, resource: str) -> int:
        return int(self._now.amount(resource)[0, agent])

    def enemies(self, agent: int, *, armed: bool = False) -> np.ndarray:
        """[A]: which agents are of another team, or of those the ones with a laser."""
        is_enemy_A = self._now.enemy_AA[agent]
        return is_enemy_A & (self._now.amount("laser")[0] > 0) if armed else is_enemy_A

    def cells(self, who_A: np.ndarray) -> np.ndarray:
        """[H, W]: where some of the agents are."""
        cells_HW = np.zeros_like(self.free_HW)
        cells_HW[tuple(self.position_A2[who_A].T)] = True
        return cells_HW

    def go_to(self, agent: int, kind: str) -> str:
        """One step towards the nearest object of a kind, or into it."""
        objects_HW = self._scene.objects(kind)
        if kind not in self._steps:
            self._steps[kind] = steps_to(objects_HW, free_HW=self.free_HW)
        return self.approach(agent, objects_HW, self._steps[kind])

    def approach(
        self,
        agent: int,
        goal_HW: np.ndarray,
        steps_HW: np.ndarray | None = None,
    ) -> str:
        """The same for any cells; a step aside if somebody is in the way."""
        if steps_HW is None:
            steps_HW = steps_to(goal_HW, free_HW=self.free_HW)
        return self.best_move(agent, partial(self._steps_from, goal_HW, steps_HW))

    def _steps_from(
        self, goal_HW: np.ndarray, steps_HW: np.ndarray, cell: tuple[int, int]
    ) -> float:
        """To the goal, by way of a cell where nobody stands; -1 in the goal itself."""
        if goal_HW[cell]:
            return -1.0
        if not self.free_HW[cell] or cell in self._taken:
            return float("inf")
        return float(steps_HW[cell])

    def best_move(self, agent: int, cost: Callable[[tuple[int, int]], float]) -> str:
        """The move to the neighbouring cell of least cost; noop if none is finite."""
        row, col = self.position_A2[agent]
        height, width = self.free_HW.shape
        moves = []
        for (move, (down, right)), preference in zip(
            MOVES.items(), self._preference_A4[agent], strict=True
        ):
            cell = (int(row + down), int(col + right))
            if 0 <= cell[0] < height and 0 <= cell[1] < width:
                moves.append((cost(cell), float(preference), move))
        if not moves:
            return "noop"
        least, _, move = min(moves)
        return move if np.isfinite(least) else "noop"

    def danger(self, agent: int) -> np.ndarray:
        """[H, W]: Manhattan distance from the nearest hazard or armed enemy; `FAR` if there is none."""
        if "hazard" not in self._distance:
            self._distance["hazard"] = _taxicab(self._scene.objects("hazard"))
        armed_A = self.enemies(agent, armed=True)
        if not armed_A.any():
            return self._distance["hazard"]
        return np.minimum(self._distance["hazard"], _taxicab(self.cells(armed_A)))

    def is_standable(self, cell: tuple[int, int]) -> bool:
        return bool(self.free_HW[cell]) and cell not in self._taken


def _taxicab(goal_HW: Bool[np.ndarray, "H W"]) -> Int32[np.ndarray, "H W"]:
    if not goal_HW.any():
        return np.full(goal_HW.shape, FAR, np.int32)
    return ndimage.distance_transform_cdt(~goal_HW, "taxicab").astype(np.int32)


def goal_seeking(walker: Walker, agent: int) -> str:
    """One link of the chain after the other."""
    if walker.amount(agent, "battery"):
        return walker.go_to(agent, "altar")
    return walker.go_to(agent, "generator" if walker.amount(agent, "ore") else "source")


def resource_collection(walker: Walker, agent: int) -> str:
    """As much of each link as it can carry."""
    ore, batteries = walker.amount(agent, "ore"), walker.amount(agent, "battery")
    is_full = walker.is_idle(agent)
    if batteries and (not ore or batteries >= FULL or is_full):
        return walker.go_to(agent, "altar")
    if ore >= FULL or (ore and (batteries or is_full)):
        return walker.go_to(agent, "generator")
    return walker.go_to(agent, "source")


def exploration(walker: Walker, agent: int) -> str:
    """To where it has not been."""
    return walker.approach(agent, walker.free_HW & ~walker.visited_AHW[agent])


def combat(walker: Walker, agent: int) -> str:
    """After the nearest enemy, or a laser."""
    if walker.amount(agent, "laser"):
        return walker.approach(agent, walker.cells(walker.enemies(agent)))
    return walker.go_to(agent, "lasery" if walker.amount(agent, "ore") else "source")


def avoidance(walker: Walker, agent: int) -> str:
    """Anywhere but nearer to a danger."""
    danger_HW = walker.danger(agent)
    here = min(CAREFUL, int(danger_HW[tuple(walker.position_A2[agent])]))
    return walker.best_move(agent, partial(_risk, walker, danger_HW, here))


def _risk(walker: Walker, danger_HW: np.ndarray, here: int, cell: tuple[int, int]) -> float:
    if not walker.is_standable(cell):
        return float("inf")
    safety = min(CAREFUL, int(danger_HW[cell]))
    return float(-safety) if safety >= here else float("inf")  # rather stand than come nearer


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to play, and what it needs of a world."""

    choose: Callable[[Walker, int], str]
    """The action of one agent, by name."""
    lacks: Callable[[Facts], str]
    """What a world lacks for it, from its first state; empty if nothing."""


def _lacks_objects(*kinds: str) -> Callable[[Facts], str]:
    def lacks(facts: Facts) -> str:
        scene = Scene(facts)
        return ", ".join(kind for kind in kinds if not scene.objects(kind).any())

    return lacks


def _lacks_fights(facts: Facts) -> str:
    return "" if Scene(facts).enemy_AA.any() and "attack.hit" in facts.counter_names else "enemies"


def _lacks_danger(facts: Facts) -> str:
    scene = Scene(facts)
    return "" if scene.objects("hazard").any() or scene.enemy_AA.any() else "hazards and enemies"


STRATEGIES: Mapping[str, Strategy] = {
    "goal_seeking": Strategy(goal_seeking, _lacks_objects("source", "generator", "altar")),
    "resource_collection": Strategy(
        resource_collection, _lacks_objects("source", "generator", "altar")
    ),
    "exploration": Strategy(exploration, lambda facts: ""),
    "combat": Strategy(combat, _lacks_fights),
    "avoidance": Strategy(avoidance, _lacks_danger),
}


def check_strategy(name: str, factory: object) -> MettagridFactory:
    """The world, if the strategy can play in it. ValueError says what it lacks, and which presets have that."""
    if name not in STRATEGIES:
        raise ValueError(f"strategy {name!r} does not exist; there are {', '.join(STRATEGIES)}")
    if not isinstance(factory, MettagridFactory):
        raise ValueError(
            f"strategy {name}: it finds its way on a map, which mettagrid worlds have; play one of those "
            f"({', '.join(PRESETS)}, or a MettaGridConfig .json file)"
        )
    if lacking := _lacking(name, factory):
        able = [world for world in PRESETS if not _lacking(name, MettagridFactory.load(world))]
        raise ValueError(
            f"strategy {name}: world {factory.name} lacks {lacking}; {', '.join(able)} would do"
        )
    return factory


def _lacking(name: str, factory: MettagridFactory) -> str:
    unknown = [move for move in MOVES if move not in factory.spec.action_names]
    if unknown:
        return f"the action {unknown[0]}"
    world = factory(1)
    world.reset(0, map_seed=0, sim_seed=0, collect_facts=True)
    return STRATEGIES[name].lacks(world.look(0))


def play_strategies(
    factory: MettagridFactory, strategies: Sequence[str], env_seeds: Sequence[int]
) -> Iterator[tuple[int, Int32[np.ndarray, "_ _"]]]:
    """Actions of one episode per seed, in their order; agent a plays strategy a modulo their number.

    Raises:
        ValueError: a strategy that does not exist or cannot play in this world. Before anything is played.
    """
    for name in strategies:
        check_strategy(name, factory)
    world = factory(1)
    return (
        (env_seed, _play_episode(world, [STRATEGIES[name] for name in strategies], env_seed))
        for env_seed in env_seeds
    )


def _play_episode(
    world: MettagridWorld, strategies: Sequence[Strategy], env_seed: int
) -> Int32[np.ndarray, "T A"]:
    names = world.spec.action_names
    world.reset(0, map_seed=env_seed, sim_seed=env_seed, collect_facts=True)
    walker = Walker(world.look(0), env_seed)
    actions = []
    while True:
        chosen = [
            strategies[agent % len(strategies)].choose(walker, agent)
            for agent in range(world.spec.num_agents)
        ]
        action_A = np.array([names.index(move) for move in chosen], np.int32)
        world.step(action_A)
        actions.append(action_A)
        if world.done_R.all():
            world.retire(0)
            return np.array(actions)
        walker.see(world.look(0))
