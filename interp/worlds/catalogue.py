"""A world by what a person calls it."""

import os

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
