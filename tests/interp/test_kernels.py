"""Compiled loops give what the plain formulas give, to the last bit."""

from collections import deque

import numpy as np
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from interp.kernels import choose
from interp.policies.token_lstm import TokenEncoder, TokenLstmArchitecture
from interp.worlds.paths import FAR, distance_to, steps_to

ARCHITECTURE = TokenLstmArchitecture(
    window_rows=3,
    window_cols=3,
    features={"tag": 1, "inv:hp": 2, "agent_id": 3, "inv:ore": 4},
    tags=("wall", "agent"),
    action_names=("noop",),
    embedding=17,
    hidden=4,
)
COMPILES = settings(deadline=None)  # at the first call
MAP_HW = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))


def tokens(seed: int) -> np.ndarray:
    """[7, 12, 3]; each row has its own number of tokens, the first none."""
    generator = np.random.default_rng(seed)
    observation_R = np.full((7, 12, 3), 0xFF, np.uint8)
    for row, tokens_N3 in enumerate(observation_R):
        for token in tokens_N3[: 2 * row]:
            location = generator.choice([0x00, 0x12, 0x22, 0x77, 0xFE])
            token[:] = location, generator.integers(0, 6), generator.integers(0, 256)
    return observation_R


def encoder() -> TokenEncoder:
    torch.manual_seed(0)
    made = TokenEncoder(ARCHITECTURE).requires_grad_(False)
    made.bias.normal_()
    return made


@COMPILES
@given(st.integers(0, 2**32 - 1))
def test_the_compiled_encoder_sums_as_the_embedding_bag_does(seed: int) -> None:
    observation_R = tokens(seed)
    plain, compiled = encoder()(observation_R), encoder().look(observation_R)
    np.testing.assert_array_equal(compiled.numpy(), plain.numpy())


def test_a_policy_that_diverged_is_seen_to() -> None:
    broken = encoder()
    broken.bias.fill_(torch.nan)
    assert broken.look(tokens(0)).isnan().all()


@COMPILES
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_actions_are_the_first_of_the_largest(seed: int, has_nan: bool) -> None:
    generator = np.random.default_rng(seed)
    worlds, steps, agents, actions = 3, 4, 2, 5
    logits_RN = generator.integers(0, 3, (worlds * agents, actions)).astype(np.float32)
    noise_ESAN = generator.integers(0, 3, (worlds, steps, agents, actions)).astype(np.float32)
    if has_nan:
        logits_RN[generator.integers(len(logits_RN)), generator.integers(actions)] = np.nan
    step_E = generator.integers(0, steps, worlds)
    action_R = np.full(worlds * agents, -1, np.int32)
    choose(logits_RN, noise_ESAN, step_E, action_R)
    noise_RN = noise_ESAN[np.arange(worlds), step_E].reshape(logits_RN.shape)
    np.testing.assert_array_equal(action_R, (logits_RN + noise_RN).argmax(1))


@COMPILES
@given(MAP_HW)
def test_distances_are_those_of_the_taxicab(object_HW: np.ndarray) -> None:
    if not object_HW.any():
        assert (distance_to(object_HW) == FAR).all()
        return
    expected_HW = ndimage.distance_transform_cdt(~object_HW, "taxicab")
    np.testing.assert_array_equal(distance_to(object_HW), expected_HW)


@COMPILES
@given(MAP_HW, st.integers(0, 2**32 - 1))
def test_steps_are_those_of_a_search_cell_by_cell(goal_HW: np.ndarray, seed: int) -> None:
    free_HW = (np.random.default_rng(seed).random(goal_HW.shape) < 0.7) & ~goal_HW
    reached: dict[tuple[int, int], int] = {}
    queue = deque((cell, -1) for cell in zip(*np.nonzero(goal_HW), strict=True))
    while queue:
        (row, col), steps = queue.popleft()
        for to in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
            inside = 0 <= to[0] < goal_HW.shape[0] and 0 <= to[1] < goal_HW.shape[1]
            if inside and free_HW[to] and to not in reached:
                reached[to] = steps + 1
                queue.append((to, steps + 1))
    expected_HW = np.full(goal_HW.shape, FAR)
    for cell, steps in reached.items():
        expected_HW[cell] = steps
    np.testing.assert_array_equal(steps_to(goal_HW, free_HW=free_HW), expected_HW)
