"""How far it is on a map, step by step to one of the four neighbouring cells."""

import numpy as np
from jaxtyping import Bool, Int32

FAR = 1 << 20
"""Distance to a thing that does not exist or cannot be reached; no map is this large."""


def steps_to(
    goal_HW: Bool[np.ndarray, "H W"], *, free_HW: Bool[np.ndarray, "H W"]
) -> Int32[np.ndarray, "H W"]:
    """Steps from each free cell to the nearest free neighbour of a goal, 0 there; `FAR` elsewhere.

    Breadth first, a whole front at once: the map is one integer of a bit a cell. 0.03 ms on a 16x16 map, where a queue
    of cells takes 0.12 ms.
    """
    height, width = goal_HW.shape
    stride = width + 1  # an empty column at the edge keeps a move to the side in its row
    front, unreached = _as_bits(goal_HW), _as_bits(free_HW)
    unreached_after = []
    while front:
        front = (front << 1 | front >> 1 | front << stride | front >> stride) & unreached
        unreached &= ~front
        unreached_after.append(unreached)
    unreached_after.append(unreached)
    num_bytes = (height * stride + 7) // 8
    packed = b"".join(bits.to_bytes(num_bytes, "little") for bits in unreached_after)
    waits_KC = np.unpackbits(
        np.frombuffer(packed, np.uint8).reshape(-1, num_bytes),
        axis=1,
        count=height * stride,
        bitorder="little",
    )
    waits_KHW = waits_KC.reshape(-1, height, stride)[:, :, :width]
    is_reached_HW = free_HW & (waits_KHW[-1] == 0)
    return np.where(is_reached_HW, waits_KHW.sum(0, dtype=np.int32), np.int32(FAR))


def _as_bits(map_HW: Bool[np.ndarray, "H W"]) -> int:
    """Cell (row, column) is bit row * (W + 1) + column."""
    padded = np.zeros(
        (map_HW.shape[0], map_HW.shape[1] + 1), np.bool_
    )  # np.pad takes ten times as long
    padded[:, :-1] = map_HW
    return int.from_bytes(np.packbits(padded, bitorder="little").tobytes(), "little")
