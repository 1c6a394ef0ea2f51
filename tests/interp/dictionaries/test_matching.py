"""Pairs of directions, and whether dictionaries of several seeds have the same latents."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.matching import Stability, chance_mcc, match, stability


def directions(num, width, seed=0):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def dictionary(W_dec_FD, *, bias: torch.Tensor | float = 0.0):
    """Reads what it writes; `bias` below 0 silences latents."""
    W_dec_FD = W_dec_FD / W_dec_FD.norm(dim=1, keepdim=True)
    num, width = W_dec_FD.shape
    return Dictionary(
        W_enc=W_dec_FD.T.contiguous(),
        b_enc=torch.zeros(num) + torch.as_tensor(bias),
        W_dec=W_dec_FD,
        b_dec=torch.zeros(width),
        threshold=torch.tensor(0.0),
        mean=torch.zeros(width),
        scale=1.0,
        family="relu_l1",
        site="s",
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_permutation_with_other_lengths_is_found(seed):
    rows = directions(12, 6, seed)
    order = np.random.default_rng(seed).permutation(12)
    found = match(rows, rows[order] * torch.rand(12, 1).add(0.5))
    assert found.mcc == pytest.approx(1, abs=1e-5)
    assert (order[found.second_M] == found.first_M).all()


def test_no_other_matching_has_a_larger_sum():
    first, second = torch.eye(2), torch.tensor([[0.8, 0.6], [0.75, 0.66]])
    found = match(first, second)
    assert found.second_M.tolist() == [0, 1]  # taking each one's nearest would use row 0 twice
    assert found.share_above(0.7) == pytest.approx(0.5)


def test_an_opposite_direction_matches_only_without_signs():
    rows = directions(4, 8)
    assert match(rows, -rows, signed=False).mcc == pytest.approx(1, abs=1e-6)
    assert match(rows, -rows).mcc < 0.5


def test_chance_rises_with_the_choice_and_falls_with_the_width():
    assert chance_mcc(20, 200, 16, seed=0) > chance_mcc(20, 20, 16, seed=0)
    assert chance_mcc(20, 20, 16, seed=0) > chance_mcc(20, 20, 256, seed=0)


def test_directions_of_two_widths_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\) cannot be matched"):
        match(directions(3, 4), directions(3, 5))


def test_the_same_latents_in_another_order_are_steady_and_others_are_not():
    rows, held_out = directions(24, 16), directions(500, 16, 9).numpy()
    same = stability([dictionary(rows), dictionary(rows.flip(0))], held_out)
    assert (same.verdict, same.matched_share) == ("steady", 1.0)
    other = stability([dictionary(rows), dictionary(directions(24, 16, 1))], held_out)
    assert (other.verdict, other.matched_share) == ("not steady", 0.0)
    assert other.mcc == pytest.approx(other.chance, abs=0.1)


def test_dead_latents_count_for_nothing():
    rows, held_out = directions(24, 16), directions(500, 16, 9).numpy()
    padded = torch.cat([rows, directions(40, 16, 5)])
    silent = torch.cat([torch.zeros(24), torch.full((40,), -1e3)])
    found = stability([dictionary(rows), dictionary(padded, bias=silent)], held_out)
    assert found.matched_share == 1.0


def test_a_latent_that_the_other_lacks_is_not_matched():
    rows, held_out = directions(24, 16), directions(500, 16, 9).numpy()
    found = stability([dictionary(rows), dictionary(rows[:12])], held_out)
    assert found.matched_share == pytest.approx(0.5)
    assert found.verdict == "partly steady"


def test_one_dictionary_cannot_be_steady():
    with pytest.raises(ValueError, match=r"1 dictionaries; stability compares at least two"):
        stability([dictionary(directions(4, 8))], directions(10, 8).numpy())


@pytest.mark.parametrize(
    ("share", "verdict"),
    [(0.4, "not steady"), (0.41, "partly steady"), (0.69, "partly steady"), (0.7, "steady")],
)
def test_the_verdict_is_the_stated_rule(share, verdict):
    found = Stability(mcc=0.9, matched_share=share, chance=0.2, num_dictionaries=2)
    assert found.verdict == verdict
