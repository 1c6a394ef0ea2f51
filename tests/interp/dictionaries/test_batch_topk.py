import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from interp.dictionaries.autoencoder import Autoencoder
from interp.dictionaries.batch_topk import BatchTopK, add_auxk_gradient


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_k_falls_linearly_from_wide_to_target():
    family = BatchTopK(k=10, wide=4.0, anneal=0.5)
    assert [family.k_at(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [40, 25, 10, 10, 10]
    assert BatchTopK(k=10, anneal=0.0).k_at(0.0) == 10


@given(rows=st.integers(1, 40), k=st.integers(1, 8), seed=st.integers(0, 1000))
def test_exactly_k_per_row_on_average_are_above_threshold(rows, k, seed):
    z_BF = normal(rows, 30, seed=seed)
    threshold = BatchTopK(k=k, anneal=0.0).threshold(z_BF, 1.0)
    active = int((z_BF > threshold).sum())
    assert active == min(k * rows, int((z_BF > 0).sum()))


def test_threshold_is_zero_when_all_positive_values_fit():
    family = BatchTopK(k=4, wide=1.0)
    assert family.threshold(torch.full((5, 4), 2.0), 1.0) == 0
    assert family.threshold(-torch.ones(5, 8), 1.0) == 0


def test_rows_share_the_budget_of_the_batch():
    z_BF = torch.tensor([[9.0, 8.0, 7.0, 0.1], [0.2, 0.3, 0.4, 6.0]])
    threshold = BatchTopK(k=2, wide=1.0).threshold(z_BF, 1.0)
    assert (z_BF > threshold).sum(1).tolist() == [3, 1]


D, F, B = 8, 40, 25


def auxk_setting():
    generator = torch.Generator().manual_seed(1)
    sae = Autoencoder(d_in=D, d_sae=F, generator=generator)
    sae.b_dec.normal_(generator=generator)
    sae.b_enc.normal_(generator=generator)
    return sae, normal(B, D, seed=2), normal(B, D, seed=3)


@pytest.mark.parametrize("num_dead", [3, 4, 5, 40])
def test_auxk_gradient_equals_autograd_of_its_formula(num_dead):
    sae, x_BD, error_BD = auxk_setting()
    dead_F = torch.zeros(F, dtype=torch.bool)
    dead_F[torch.randperm(F, generator=torch.Generator().manual_seed(4))[:num_dead]] = True
    loss = add_auxk_gradient(sae, x_BD, error_BD, dead_F, weight=0.25)

    leaves = {
        name: weight.detach().clone().requires_grad_() for name, weight in sae.weights.items()
    }
    z_BF = (x_BD - leaves["b_dec"]) @ leaves["W_enc"] + leaves["b_enc"]
    z_BF = z_BF.masked_fill(~dead_F, -np.inf)
    kept = z_BF.topk(min(D // 2, num_dead), dim=1)
    h_BF = torch.zeros_like(z_BF).scatter(1, kept.indices, kept.values.relu())
    wanted = 0.25 * (-error_BD - h_BF @ leaves["W_dec"]).square().sum() / B
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    for name, weight in sae.weights.items():
        torch.testing.assert_close(weight.grad, leaves[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_auxk_reaches_the_encoder_of_dead_latents_only():
    # One public implementation selects dead latents in a way that detaches them: its encoder gradient is zero.
    sae, x_BD, error_BD = auxk_setting()
    dead_F = torch.zeros(F, dtype=torch.bool)
    dead_F[:3] = True
    add_auxk_gradient(sae, x_BD, error_BD, dead_F, weight=0.25)
    assert (sae.W_enc.grad[:, dead_F].norm(dim=0) > 0).all()
    assert (sae.b_enc.grad[dead_F] != 0).all()
    assert (sae.W_enc.grad[:, ~dead_F] == 0).all()
    assert (sae.W_dec.grad[~dead_F] == 0).all()


@pytest.mark.parametrize(
    "change", [{"k": 0}, {"wide": 0.5}, {"anneal": 2.0}, {"aux": -1.0}, {"dead_window": 0.0}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        BatchTopK(**change)
