"""Three small economies that a recurrent policy can learn in minutes, as mettagrid configs.

In all of them ore is dug at a mine, turned into a battery at a generator and into a heart at an altar. A heart is
worth 1; ore and batteries that are carried are worth 0.1 and 0.3, which shapes the search and cannot be farmed.
`hazard` adds turrets that cost health near them; `arena` adds two teams with lasers and armour.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from mettagrid.config.action_config import (
    ActionsConfig,
    ChangeVibeActionConfig,
    MoveActionConfig,
    NoopActionConfig,
)
from mettagrid.config.filter import actorHas, isNot, sharedTagPrefix, targetHas
from mettagrid.config.game_value import InventoryValue, stat
from mettagrid.config.handler_config import AnyHandler, AOEConfig, Handler, firstMatch
from mettagrid.config.mettagrid_config import (
    AgentConfig,
    GameConfig,
    GridObjectConfig,
    InventoryConfig,
    MettaGridConfig,
    ResourceLimitsConfig,
    WallConfig,
)
from mettagrid.config.mutation import (
    logActorAgentStat,
    logTargetAgentStat,
    updateActor,
    updateTarget,
    withdraw,
)
from mettagrid.config.obs_config import GlobalObsConfig, ObsConfig
from mettagrid.config.reward_config import reward
from mettagrid.map_builder.random_map import RandomMapBuilder
from pydantic import ValidationError

RESOURCES = ["ore", "battery", "heart", "laser", "armor", "hp"]
VIEW_CELLS = 11  # square window; encoding observations is 90 % of the simulator's time and grows with its area
OBSERVATION_TOKENS = (
    200  # at most 52 were seen; too few raise inside the simulator's step, spare ones cost 2 %
)


def _station(name: str, cost: Mapping[str, int], gain: Mapping[str, int]) -> GridObjectConfig:
    """An object that exchanges `cost` for `gain` when an agent moves onto it."""
    exchange = {**{resource: -amount for resource, amount in cost.items()}, **gain}
    return GridObjectConfig(
        name=name,
        on_use_handler=Handler(
            name=name,
            filters=[actorHas(dict(cost))] if cost else [],
            mutations=[updateActor(exchange), logActorAgentStat(f"use.{name}")],
        ),
    )


def _turret() -> GridObjectConfig:
    return GridObjectConfig(
        name="turret",
        aoes={
            "zap": AOEConfig(
                radius=2, mutations=[updateTarget({"hp": -1}), logTargetAgentStat("hazard.hit")]
            )
        },
    )


def _attack() -> AnyHandler | None:
    """Moving onto an enemy with a laser: armour blocks, else it costs the enemy health and what it carries."""
    foe = isNot(sharedTagPrefix("team:"))
    return firstMatch(
        [
            Handler(
                name="blocked",
                filters=[foe, actorHas({"laser": 1}), targetHas({"armor": 1})],
                mutations=[
                    updateActor({"laser": -1}),
                    updateTarget({"armor": -1}),
                    logActorAgentStat("attack.blocked"),
                    logTargetAgentStat("attack.defended"),
                ],
            ),
            Handler(
                name="hit",
                filters=[foe, actorHas({"laser": 1})],
                mutations=[
                    updateActor({"laser": -1}),
                    updateTarget({"hp": -10}),
                    withdraw({"heart": 1, "battery": -1, "ore": -1}),
                    logActorAgentStat("attack.hit"),
                    logTargetAgentStat("attack.hit_by"),
                ],
            ),
        ]
    )


def _economy(
    *,
    num_agents: int,
    side: int,
    counts: Mapping[str, int],
    num_turrets: int = 0,
    num_teams: int = 1,
    max_steps: int = 256,
) -> MettaGridConfig:
    fights = num_teams > 1
    objects = {
        "wall": WallConfig(name="wall"),
        "mine": _station("mine", {}, {"ore": 1}),
        "generator": _station("generator", {"ore": 1}, {"battery": 1}),
        "altar": _station("altar", {"battery": 1}, {"heart": 1}),
    }
    rewards = {
        "heart": reward(InventoryValue(item="heart"), weight=1.0),
        "ore": reward(InventoryValue(item="ore"), weight=0.1),
        "battery": reward(InventoryValue(item="battery"), weight=0.3),
    }
    if fights:
        objects |= {
            "armory": _station("armory", {"ore": 1}, {"armor": 1}),
            "lasery": _station("lasery", {"ore": 1}, {"laser": 1}),
        }
        rewards["attack"] = reward(stat("attack.hit"), weight=0.5)
    if num_turrets:
        objects["turret"] = _turret()
        # not InventoryValue("hp"): a reward on a resource with an initial amount pays that amount at the first step
        rewards["hp"] = reward(stat("hp.lost"), weight=-0.02)

    def agent(team: int) -> AgentConfig:
        return AgentConfig(
            team_id=team,
            tags=[f"team:{team}"],
            on_use_handler=_attack() if fights else None,
            rewards=rewards,
            inventory=InventoryConfig(
                default_limit=3,
                initial={"hp": 100, **({"laser": 2} if fights else {})},
                limits={
                    "heart": ResourceLimitsConfig(base=255, resources=["heart"]),
                    "hp": ResourceLimitsConfig(base=100, resources=["hp"]),
                },
            ),
        )

    teams = [index % num_teams for index in range(num_agents)]
    return MettaGridConfig(
        game=GameConfig(
            num_agents=num_agents,
            max_steps=max_steps,
            episode_truncates=True,
            resource_names=RESOURCES,
            agents=[agent(team) for team in teams],
            obs=ObsConfig(
                width=VIEW_CELLS,
                height=VIEW_CELLS,
                num_tokens=OBSERVATION_TOKENS,
                global_obs=GlobalObsConfig(local_position=True),
            ),
            protocol_details_obs=False,
            actions=ActionsConfig(
                noop=NoopActionConfig(),
                move=MoveActionConfig(),
                change_vibe=ChangeVibeActionConfig(enabled=False, vibes=[]),
            ),
            objects=objects,
            map_builder=RandomMapBuilder.Config(
                seed=0,
                width=side,
                height=side,
                border_width=1,
                objects={**counts, **({"turret": num_turrets} if num_turrets else {})},
                agents=num_agents
                if num_teams == 1
                else {f"team_{team}": teams.count(team) for team in range(num_teams)},
            ),
        )
    )


def forage() -> MettaGridConfig:
    """Four agents of one team on 16 x 16: dig, refine, deliver. The easiest to learn."""
    return _economy(
        num_agents=4, side=16, counts={"mine": 4, "generator": 3, "altar": 3, "wall": 12}
    )


def hazard() -> MettaGridConfig:
    """`forage` with two turrets, so that avoidance pays."""
    return _economy(
        num_agents=4,
        side=16,
        counts={"mine": 4, "generator": 3, "altar": 3, "wall": 12},
        num_turrets=2,
    )


def arena() -> MettaGridConfig:
    """Eight agents in two teams on 18 x 18, with turrets, lasers and armour: every behaviour at once."""
    return _economy(
        num_agents=8,
        side=18,
        counts={"mine": 6, "generator": 4, "altar": 4, "armory": 2, "lasery": 4, "wall": 12},
        num_turrets=2,
        num_teams=2,
    )


PRESETS = {"forage": forage, "hazard": hazard, "arena": arena}


def load_config(world: str) -> MettaGridConfig:
    """The config of a preset, or of the `MettaGridConfig` JSON file of that path.

    Raises:
        ValueError: unknown preset, unreadable file, or a config that mettagrid refuses.
    """
    if world in PRESETS:
        return PRESETS[world]()
    path = Path(world)
    if path.suffix != ".json" and os.sep not in world:
        raise ValueError(
            f"world {world!r} is neither a preset ({', '.join(PRESETS)}) nor the path of a MettaGridConfig .json file"
        )
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"world config {world}: {error.strerror or error}") from error
    try:
        return MettaGridConfig.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(
            f"world config {world}: {field}: {first['msg']} ({error.error_count()} error(s) in all); "
            "write one with `MettaGridConfig.model_dump_json()`"
        ) from error
