import math

import pytest
import torch
from hypothesis import given, strategies as st

from interp.dictionaries import coherence as module
from interp.dictionaries.coherence import coherence


def test_orthogonal_latents_are_incoherent_and_a_copy_is_found_whatever_its_sign_and_length():
    apart = coherence(torch.eye(6))
    assert (apart.mean, apart.nearest, apart.max, apart.welch_bound) == (0, 0, 0, 0)
    with_copy = coherence(torch.cat([torch.eye(6), -3 * torch.eye(6)[:1]]))
    assert with_copy.max == pytest.approx(1)
    assert with_copy.nearest == pytest.approx(2 / 7)
    assert with_copy.mean == pytest.approx(2 / (7 * 6))


def test_three_directions_in_a_plane_reach_the_welch_bound():
    angle = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    found = coherence(torch.stack([angle.cos(), angle.sin()], 1))
    assert found.max == pytest.approx(found.welch_bound, abs=1e-6)
    assert found.welch_bound == pytest.approx(0.5)


@given(seed=st.integers(0, 1000))
def test_it_does_not_depend_on_order_length_or_blocks(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(9, 4, generator=generator)
    whole = coherence(rows)
    length = 0.1 + torch.rand(9, 1, generator=generator)
    assert coherence((length * rows)[torch.randperm(9, generator=generator)]) == pytest.approx(
        whole, abs=1e-5
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_BLOCK_LATENTS", 4)
        assert coherence(rows) == pytest.approx(whole, abs=1e-5)
    assert whole.welch_bound - 1e-6 <= whole.max <= 1


def test_latents_that_write_nothing_have_no_direction():
    assert coherence(torch.cat([torch.eye(3), torch.zeros(2, 3)])) == coherence(torch.eye(3))
    with pytest.raises(ValueError, match="1 of 3 decoder rows are not zero"):
        coherence(torch.diag(torch.tensor([1.0, 0, 0])))
