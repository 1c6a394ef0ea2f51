"""A pass of more rows is used only where it computes the same bits."""

import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from interp import tiles
from interp.policies.policy import State, Step
from interp.policies.taps import Tap
from interp.tiles import REFERENCE_ROWS, SIZES, exact_sizes, fastest, tile_sizes

OBSERVATION_R = np.random.default_rng(0).standard_normal((700, 3)).astype(np.float32)


class Rounding:
    """A policy whose memory is off by one rounding in passes of more than `exact` rows; its first step never is."""

    action_names = ("left", "right")

    def __init__(self, exact: int) -> None:
        self.sites = {"lstm.h": 3}
        self.device = torch.device("cpu")
        self.exact = exact
        self.passes: list[int] = []

    def initial_state(self, num_rows: int) -> State:
        return (torch.zeros(num_rows, 3),)

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
        num_rows = len(observation_R)
        self.passes.append(num_rows)
        h_RD = torch.tanh(torch.from_numpy(observation_R) + state[0])
        if num_rows > self.exact and bool(state[0].any()):
            h_RD = h_RD * (1 + 2**-23)
        h_RD = tap("lstm.h", h_RD)
        return Step(h_RD[:, :2], h_RD[:, 0], (h_RD,))


@pytest.mark.parametrize("exact", SIZES)
def test_the_largest_pass_that_computes_the_same_bits_is_found(exact: int) -> None:
    assert exact_sizes(Rounding(exact), OBSERVATION_R)[-1] == exact


def test_a_difference_in_one_row_is_enough() -> None:
    class OneRow(Rounding):
        def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
            step = super().step(observation_R, state, tap)
            if len(observation_R) > REFERENCE_ROWS:
                step.value_R[77] += 1e-7
            return step

    assert exact_sizes(OneRow(256), OBSERVATION_R) == [REFERENCE_ROWS]


@pytest.mark.parametrize(
    ("rows", "exact", "expected"),
    [
        (4, 256, [64]),
        (64, 256, [64]),
        (65, 256, [64, 64]),
        (96, 256, [128]),
        (208, 256, [256]),
        (320, 256, [256, 64]),
        (700, 256, [256, 256, 128, 64]),
        (700, 64, [64] * 11),
    ],
)
def test_passes_cover_the_batch_with_little_padding(
    rows: int, exact: int, expected: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "fastest", lambda _policy, _observation_R, sizes: sizes[-1])
    policy = Rounding(exact)
    assert tile_sizes(policy, OBSERVATION_R[:rows], known_as=policy) == expected


def test_of_exact_passes_the_one_with_the_cheapest_rows_is_used() -> None:
    class Slow(Rounding):
        """A row costs 20 us in passes of 64 and 256 rows and next to nothing in those of 128."""

        def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
            num_rows = len(observation_R)
            until = time.thread_time() + (0 if num_rows == 128 else 2e-5 * num_rows)
            while time.thread_time() < until:
                pass
            return super().step(observation_R, state, tap)

    assert fastest(Slow(256), OBSERVATION_R, [64, 128, 256]) == 128
    slow = Slow(256)
    assert tile_sizes(slow, OBSERVATION_R[:256], known_as=slow) == [128, 128]


def test_a_pass_that_is_not_exact_ends_the_search() -> None:
    class NotAt128(Rounding):
        def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
            step = super().step(observation_R, state, tap)
            if len(observation_R) == 128:
                step.value_R[3] += 1e-7
            return step

    assert exact_sizes(NotAt128(512), OBSERVATION_R) == [64]


def test_a_policy_is_asked_once_in_its_life() -> None:
    policy = Rounding(256)
    tile_sizes(policy, OBSERVATION_R, known_as=policy)
    asked = len(policy.passes)
    tile_sizes(policy, OBSERVATION_R, known_as=policy)
    assert len(policy.passes) == asked > 0
    other = Rounding(256)
    tile_sizes(other, OBSERVATION_R, known_as=other)
    assert other.passes


def test_a_small_batch_asks_nothing() -> None:
    policy = Rounding(256)
    assert tile_sizes(policy, OBSERVATION_R[:50], known_as=policy) == [REFERENCE_ROWS]
    assert policy.passes == []
    assert policy not in tiles._best
