"""Compiled loops over maps and tokens: what is known of an episode, cell by cell and token by token.

Whole numbers only, so each gives exactly what the plain formula gives.
"""

from typing import Any, no_type_check

import numpy as np
from numba import njit

_compiled: Any = njit(nogil=True, cache=True)


@_compiled
@no_type_check
def steps_to_goals(goal_HW, free_HW, far):
    """Steps from each free cell to the nearest free neighbour of a goal, 0 there; `far` elsewhere. Breadth first."""
    height, width = goal_HW.shape
    steps_HW = np.full((height, width), far, np.int32)
    queue = np.empty(height * width, np.int64)
    begin, end = 0, 0
    for row in range(height):
        for col in range(width):
            if free_HW[row, col] and (
                (row > 0 and goal_HW[row - 1, col])
                or (row < height - 1 and goal_HW[row + 1, col])
                or (col > 0 and goal_HW[row, col - 1])
                or (col < width - 1 and goal_HW[row, col + 1])
            ):
                steps_HW[row, col] = 0
                queue[end] = row * width + col
                end += 1
    while begin < end:
        row, col = queue[begin] // width, queue[begin] % width
        begin += 1
        for way in range(4):
            to_row = row + (way == 0) - (way == 1)
            to_col = col + (way == 2) - (way == 3)
            if (
                0 <= to_row < height
                and 0 <= to_col < width
                and free_HW[to_row, to_col]
                and steps_HW[to_row, to_col] == far
            ):
                steps_HW[to_row, to_col] = steps_HW[row, col] + 1
                queue[end] = to_row * width + to_col
                end += 1
    return steps_HW


@_compiled
@no_type_check
def manhattan(object_HW, far):
    """Manhattan distance of each cell to the nearest object; `far` if there is none. Down the map, and up again."""
    height, width = object_HW.shape
    distance_HW = np.full((height, width), far, np.int32)
    for row in range(height):
        for col in range(width):
            if object_HW[row, col]:
                distance_HW[row, col] = 0
                continue
            nearest = distance_HW[row, col]
            if row > 0:
                nearest = min(nearest, distance_HW[row - 1, col] + 1)
            if col > 0:
                nearest = min(nearest, distance_HW[row, col - 1] + 1)
            distance_HW[row, col] = min(nearest, far)
    for row in range(height - 1, -1, -1):
        for col in range(width - 1, -1, -1):
            nearest = distance_HW[row, col]
            if row < height - 1:
                nearest = min(nearest, distance_HW[row + 1, col] + 1)
            if col < width - 1:
                nearest = min(nearest, distance_HW[row, col + 1] + 1)
            distance_HW[row, col] = nearest
    return distance_HW


@_compiled
@no_type_check
def read_own_tokens(
    token_PRN3, start, first_row, global_location, own_location, moves_F2, resource_F, unit_F,
    moved_SA2, amount_SAI,
):  # fmt: skip
    """Adds up what agents were told of themselves, state by state from position `start` of a ring on.

    `moves_F2` is by feature byte how a unit of its value counts in rows and columns; `resource_F` the resource that it
    tells an amount of, or -1, in units of `unit_F`.
    """
    num_places, num_tokens = token_PRN3.shape[0], token_PRN3.shape[2]
    num_states, num_agents, _ = moved_SA2.shape
    for s in range(num_states):
        place = (start + s) % num_places
        for a in range(num_agents):
            for n in range(num_tokens):
                location = token_PRN3[place, first_row + a, n, 0]
                feature = token_PRN3[place, first_row + a, n, 1]
                value = np.int16(token_PRN3[place, first_row + a, n, 2])
                if location == global_location:
                    moved_SA2[s, a, 0] += moves_F2[feature, 0] * value
                    moved_SA2[s, a, 1] += moves_F2[feature, 1] * value
                elif location == own_location and resource_F[feature] >= 0:
                    amount_SAI[s, a, resource_F[feature]] += unit_F[feature] * value
