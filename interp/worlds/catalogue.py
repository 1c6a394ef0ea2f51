"""A world by what a person calls it."""

import os
from collections.abc import Mapping
from typing import Any

from interp.worlds.gymnasium import FORM, SCHEME, GymnasiumFactory
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.presets import PRESETS
from interp.worlds.world import WorldFactory


def load_world(text: str) -> WorldFactory:
    """The world of a preset's name, of a `MettaGridConfig` JSON file, or of a gymnasium environment.

    Raises:
        ValueError: none of these, or a world that does not play.
    """
    if text.startswith(SCHEME):
        return GymnasiumFactory.load(text)
    if text in PRESETS or text.endswith(".json") or os.sep in text:
        return MettagridFactory.load(text)
    raise ValueError(
        f"world {text!r} is neither a preset ({', '.join(PRESETS)}), nor the path of a MettaGridConfig .json file, "
        f"nor {FORM}"
    )


def recorded_world(config: Mapping[str, Any], *, source: str) -> WorldFactory:
    """The world of a recording, from what its plan keeps of it; `source` names the recording.

    Raises:
        ValueError: what is kept is no world of this program, or one that has become another.
    """
    name = config.get("name")
    if not isinstance(name, str) or config.get("kind") not in ("mettagrid", "gymnasium"):
        raise ValueError(
            f"{source}: its world is {dict(config)!r:.80}, wanted one of kind mettagrid or gymnasium; record again"
        )
    if config["kind"] == "mettagrid":
        return MettagridFactory(name=name, config_json=config["config_json"])
    factory = GymnasiumFactory.load(name)
    if factory.config != config:
        raise ValueError(
            f"{source}: world {name} was {dict(config)}, but is {factory.config} now; record again"
        )
    return factory
