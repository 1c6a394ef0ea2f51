"""How many rows one forward pass may have without changing a number.

An episode may not depend on what it is batched with, to the last bit. The definition of a policy's numbers is therefore
a pass over `REFERENCE_ROWS` rows: BLAS may choose another kernel, and so another rounding, for another number of rows
(seen with a product over 1,024 inputs, where 192 rows and 128 rows differ). More rows a pass are faster, since they
share what a pass costs whatever its size. So a policy is asked, on the machine that it runs on, up to which size it
computes the same bits, and of those sizes the one whose rows are cheapest is used. Which that is depends on the
machine, the numbers do not.
"""

import time
from collections.abc import Sequence
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from interp.policies.policy import Policy, State
from interp.policies.taps import RecordingTap, untapped

REFERENCE_ROWS = 64
"""Rows of the pass that defines the numbers; rows that are missing are padded."""
SIZES = (64, 128, 256, 512)
"""Passes that are tried. On a quiet machine, playing `forage` with an LSTM of 128 costs 17.3, 15.0, 13.6 and 12.8 us a
row, 8.7 of them by the simulator; with one of 512, 48, 45, 36 and 35. On a busy one, whose caches others fill, 512 rows
cost more than 256: so each size is timed where it is used."""
STEPS = 3
"""Steps over which two sizes are compared: a difference reaches the memory and shows again."""
ROUNDS = 3
"""Passes of each size that are timed, in turns; the fastest counts."""

CLEARLY = 1.1
"""A smaller pass must be cheaper by more than this: what a step costs around the policy's pass is not timed."""

_best: WeakKeyDictionary[object, dict[tuple[int, ...], int]] = WeakKeyDictionary()


def tile_sizes(policy: Policy, observation_R: np.ndarray, *, known_as: object) -> list[int]:
    """Sizes of the passes that together cover the rows of a batch, the last one padded.

    `observation_R` are observations that the policy may really see. They serve to compare and to time sizes, once in
    the life of `known_as`: the policy itself, or the network inside if the policy is a translation that is made anew
    every time. What is timed decides how long a step takes, never what it computes.
    """
    left, sizes = len(observation_R), []
    largest = REFERENCE_ROWS
    if left > REFERENCE_ROWS:
        known = _best.setdefault(known_as, {})
        shape = observation_R.shape[1:]
        if shape not in known:
            known[shape] = fastest(policy, observation_R, exact_sizes(policy, observation_R))
        largest = known[shape]
    while left > 0:
        # up to a quarter of a pass may be padding: two smaller ones would cost more
        fitting = [size for size in SIZES if size <= largest and 3 * size <= 4 * left]
        sizes.append(max(fitting, default=REFERENCE_ROWS))
        left -= sizes[-1]
    return sizes


def exact_sizes(policy: Policy, observation_R: np.ndarray) -> list[int]:
    """The sizes up to the largest at which the policy computes, to the last bit, what it does at `REFERENCE_ROWS`.

    All of them may be used, so a size that is not exact ends the search.
    """
    exact = [REFERENCE_ROWS]
    for size in SIZES[1:]:
        if not _computes_the_same(policy, observation_R, size):
            break
        exact.append(size)
    return exact


def fastest(policy: Policy, observation_R: np.ndarray, sizes: Sequence[int]) -> int:
    """The largest size whose rows are about as cheap as any, by this thread's time on a CPU and by the clock on a GPU.

    Nothing else in interp asks a clock, and nothing that is computed depends on the answer.
    """
    on_gpu = policy.device.type == "cuda"
    seconds = dict.fromkeys(sizes, float("inf"))
    shown = {size: np.resize(np.arange(len(observation_R)), size) for size in sizes}
    states = {size: policy.initial_state(size) for size in sizes}
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):  # the first allocates, and its time is hardly ever the least
            for size in sizes:
                batch_R = np.ascontiguousarray(observation_R[shown[size]])
                start = time.perf_counter() if on_gpu else time.thread_time()
                states[size] = policy.step(batch_R, states[size], untapped).state
                if on_gpu:
                    torch.cuda.synchronize()
                stop = time.perf_counter() if on_gpu else time.thread_time()
                seconds[size] = min(seconds[size], (stop - start) / size)
    return max(size for size in sizes if seconds[size] <= CLEARLY * min(seconds.values()))


def _computes_the_same(policy: Policy, observation_R: np.ndarray, size: int) -> bool:
    """Compares one pass over `size` rows with several over `REFERENCE_ROWS`, all sites and memories included."""
    shown = np.resize(np.arange(len(observation_R)), size)
    borders = list(pairwise(range(0, size + 1, REFERENCE_ROWS)))
    state = policy.initial_state(size)
    states = [policy.initial_state(REFERENCE_ROWS) for _ in borders]
    with torch.inference_mode():
        for _ in range(STEPS):
            shown = np.roll(shown, 1)  # other rows see it next
            state, whole = _pass(policy, observation_R[shown], state)
            parts = []
            for number, (start, stop) in enumerate(borders):
                states[number], part = _pass(
                    policy, observation_R[shown[start:stop]], states[number]
                )
                parts.append(part)
            for tensor, *pieces in zip(whole, *parts, strict=True):
                if not torch.equal(tensor, torch.cat(pieces)):
                    return False
    return True


def _pass(policy: Policy, observation_R: np.ndarray, state: State) -> tuple[State, list[Tensor]]:
    """The next memory, and a copy of everything that was computed."""
    tap = RecordingTap(policy.sites)
    step = policy.step(np.ascontiguousarray(observation_R), state, tap)
    computed = [*tap.activations.values(), step.logits_RN, step.value_R, *step.state]
    return step.state, [tensor.clone() for tensor in computed]
