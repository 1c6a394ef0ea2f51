import pytest
import torch

from interp.dictionaries.autoencoder import Autoencoder

B, D, F = 33, 8, 20


def an_autoencoder(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sae = Autoencoder(d_in=D, d_sae=F, generator=generator)
    sae.b_enc.normal_(generator=generator)
    sae.b_dec.normal_(generator=generator)
    sae.W_enc.add_(0.3 * torch.randn(D, F, generator=generator))
    return sae, torch.randn(B, D, generator=generator)


def forward_backward(sae, x_BD, *, threshold, l1):
    latents_BF, error_BD = torch.empty(B, F), torch.empty(B, D)
    sae.preactivations(x_BD, out_BF=latents_BF)
    torch.threshold_(latents_BF, threshold, 0.0)
    sae.error(x_BD, latents_BF, out_BD=error_BD)
    sae.backward(x_BD, latents_BF, error_BD, l1=l1, out_BF=torch.empty(B, F))
    return error_BD


@pytest.mark.parametrize(("threshold", "l1"), [(0.0, 0.0), (0.0, 0.7), (1.1, 0.0)])
def test_gradient_by_hand_equals_autograd(threshold, l1):
    sae, x_BD = an_autoencoder()
    forward_backward(sae, x_BD, threshold=threshold, l1=l1)

    leaves = {
        name: weight.detach().clone().requires_grad_() for name, weight in sae.weights.items()
    }
    z_BF = (x_BD - leaves["b_dec"]) @ leaves["W_enc"] + leaves["b_enc"]
    h_BF = z_BF * (z_BF > threshold)
    recon_BD = h_BF @ leaves["W_dec"] + leaves["b_dec"]
    ((x_BD - recon_BD).square().sum() / B + l1 * h_BF.sum() / B).backward()
    for name, weight in sae.weights.items():
        torch.testing.assert_close(weight.grad, leaves[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_starts_tied_with_unit_decoder():
    sae = Autoencoder(d_in=D, d_sae=F, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(F))


def test_projected_gradient_is_orthogonal_to_decoder():
    sae, x_BD = an_autoencoder()
    forward_backward(sae, x_BD, threshold=0.0, l1=0.0)
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() > 1e-2
    sae.project_decoder_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-4


def test_clipping_keeps_direction_and_bounds_norm():
    sae, x_BD = an_autoencoder()
    forward_backward(sae, x_BD, threshold=0.0, l1=0.0)
    before = torch.cat([weight.grad.flatten() for weight in sae.weights.values()])
    sae.clip_gradient(0.5)
    after = torch.cat([weight.grad.flatten() for weight in sae.weights.values()])
    assert after.norm() == pytest.approx(0.5, rel=1e-5)
    assert torch.cosine_similarity(before, after, dim=0) == pytest.approx(1, abs=1e-5)
    sae.clip_gradient(100.0)
    assert torch.equal(after, torch.cat([w.grad.flatten() for w in sae.weights.values()]))
