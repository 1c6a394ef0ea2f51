"""Notes are whole however long an episode lasts, and no longer than somebody asked for."""

import numpy as np
import pytest
import torch

from interp.notebook import RING_STEPS, Notebook, Noted, StepChoice
from interp.rollout import EveryStep, SequenceEnd, Stride

AGENTS, D = 2, 3


def x_RD(t: int) -> torch.Tensor:
    """Activations of the four rows of two worlds at a step of the clock."""
    return t + torch.arange(4 * D, dtype=torch.float32).reshape(4, D) / 16


def play(steps: StepChoice, *, begin: int, end: int) -> Noted:
    """The second world's notes of an episode between two times, the first world playing all along."""
    notebook = Notebook(2, AGENTS, {"h": D}, steps, "float32", pinned=False)
    notebook.begin(0)
    for t in range(end):
        if t == begin:
            notebook.begin(1)
        notebook.keep(slice(0, 3), {"h": x_RD(t)[:3]})  # as two passes, the second padded
        notebook.keep(slice(3, 4), {"h": torch.cat([x_RD(t)[3:], torch.zeros(5, D)])})
        row_R = np.arange(4, dtype=np.int32)
        notebook.note(10 * t + row_R, (t + row_R).astype(np.float32), np.full(4, t == end - 1))
        if t < end - 1:
            notebook.turn()
    return notebook.end(1)


@pytest.mark.parametrize("steps", [EveryStep(), Stride(5), Stride(100), SequenceEnd()])
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (3, 20),
        (3, RING_STEPS),
        (RING_STEPS, 2 * RING_STEPS),
        (RING_STEPS - 1, RING_STEPS + 1),
        (30, 5 * RING_STEPS + 7),
    ],
)
def test_an_episode_is_whole_wherever_it_lies_in_the_ring(steps, begin: int, end: int) -> None:
    noted = play(steps, begin=begin, end=end)
    t = np.arange(begin, end)
    np.testing.assert_array_equal(noted.action_TA, 10 * t[:, None] + [2, 3])
    np.testing.assert_array_equal(noted.reward_TA, t[:, None] + [2, 3])
    np.testing.assert_array_equal(noted.done_TA, np.repeat(t[:, None] == end - 1, 2, axis=1))
    np.testing.assert_array_equal(noted.captured_t, steps.steps(end - begin))
    expected = [x_RD(begin + step)[2:].numpy() for step in noted.captured_t]
    np.testing.assert_array_equal(noted.activations["h"], expected)


def test_steps_that_nobody_asked_for_are_forgotten() -> None:
    notebook = Notebook(1, 1, {"h": D}, SequenceEnd(), "float32", pinned=False)
    notebook.begin(0)
    for t in range(3 * RING_STEPS):
        notebook.keep(slice(0, 1), {"h": x_RD(t)[:1]})
        notebook.note(np.zeros(1, np.int32), np.zeros(1, np.float32), np.zeros(1, np.bool_))
        notebook.turn()
    (pieces,) = notebook._pieces
    assert pieces is not None and sum(map(len, pieces.activations["h"])) == 0
