"""How far it is on a map, step by step to one of the four neighbouring cells."""

import numpy as np
from jaxtyping import Bool, Int32

from interp.worlds.kernels import manhattan, steps_to_goals

FAR = 1 << 20
"""Distance to a thing that does not exist or cannot be reached; no map is this large."""


def steps_to(
    goal_HW: Bool[np.ndarray, "H W"], *, free_HW: Bool[np.ndarray, "H W"]
) -> Int32[np.ndarray, "H W"]:
    """Steps from each free cell to the nearest free neighbour of a goal, 0 there; `FAR` elsewhere."""
    return steps_to_goals(goal_HW, free_HW, FAR)


def distance_to(object_HW: Bool[np.ndarray, "H W"]) -> Int32[np.ndarray, "H W"]:
    """Manhattan distance to the nearest object, through whatever is between; `FAR` if there is none."""
    return manhattan(object_HW, FAR)
