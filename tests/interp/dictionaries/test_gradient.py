"""Three ways to one gradient, for every family that has them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from interp.dictionaries import kernels
from interp.dictionaries.adam import Adam
from interp.dictionaries.autoencoder import Autoencoder, Batch
from interp.dictionaries.auxk import add_auxk_gradient
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.gated import Gated
from interp.dictionaries.gradient import Dense, Differentiated, Sparse, gradient_of
from interp.dictionaries.jumprelu import JumpRelu
from interp.dictionaries.matryoshka import Matryoshka
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.temporal import Temporal
from interp.dictionaries.topk import TopK

B, D, F = 33, 8, 40

COUNTING = [
    BatchTopK(k=4, wide=2.0),
    TopK(k=4, wide=2.0),
    Matryoshka(k=4, wide=2.0, nested=(0.2, 0.5, 1.0)),
]


def named(family):
    return family.name


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def an_autoencoder(family, seed=0, **options):
    """Away from where it starts, so that nothing is zero or equal by chance."""
    generator = torch.Generator().manual_seed(seed)
    more = family.more_weights(F)
    sae = Autoencoder(d_in=D, d_sae=F, generator=generator, more=more, **options)
    for name, weight in sae.weights.items():
        if name != "W_dec":
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
        elif sae.decoder_norm == "free":
            weight.mul_(0.5 + torch.rand(F, 1, generator=generator))
    return sae


def a_batch(sae, num_rows=B, seed=1):
    x_BD = normal(num_rows, D, seed=seed)
    y_BO = normal(num_rows, sae.b_dec.shape[0], seed=seed + 100) if sae.is_transcoder else x_BD
    return Batch(x_BD=x_BD, y_BO=y_BO)


def gradients(way, sae, batch, share):
    step = way(batch, share)
    return step, {name: sae.grad(name).clone() for name in sae.weights}


def assert_same(family, by_hand, *, share, batch=None, **options):
    sae = an_autoencoder(family, **options)
    batch = batch or a_batch(sae)
    wanted, wanted_grads = gradients(Differentiated(family, sae), sae, batch, share)
    found, found_grads = gradients(by_hand(family, sae), sae, batch, share)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert found.threshold == pytest.approx(wanted.threshold, rel=1e-5, abs=1e-6)
    assert torch.equal(found.fired_F, wanted.fired_F)
    torch.testing.assert_close(found.error_BO, wanted.error_BO, atol=1e-5, rtol=1e-4)
    for name, gradient in wanted_grads.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found_grads[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("family", COUNTING, ids=named)
@pytest.mark.parametrize("decoder_norm", ["unit", "free"])
@pytest.mark.parametrize("d_out", [None, 5])
def test_sparse_gradient_equals_autograd(family, share, decoder_norm, d_out):
    assert_same(family, Sparse, share=share, decoder_norm=decoder_norm, d_out=d_out)


@pytest.mark.parametrize("share", [0.02, 1.0])
@pytest.mark.parametrize("family", [*COUNTING[:2], ReluL1(l1=0.7)], ids=named)
@pytest.mark.parametrize("decoder_norm", ["unit", "free"])
@pytest.mark.parametrize("d_out", [None, 5])
def test_dense_gradient_equals_autograd(family, share, decoder_norm, d_out):
    assert_same(family, Dense, share=share, decoder_norm=decoder_norm, d_out=d_out)


@pytest.mark.parametrize("way", [Sparse, Dense])
def test_gradient_of_more_rows_than_a_chunk_holds_equals_autograd(way):
    family = BatchTopK(k=4)
    assert_same(family, way, share=1.0, batch=a_batch(an_autoencoder(family), num_rows=700))


@pytest.mark.parametrize("family", COUNTING, ids=named)
@pytest.mark.parametrize("low", [0.0, 0.7, 50.0])
def test_what_was_a_candidate_before_never_changes_a_bit(family, low):
    sae = an_autoencoder(family)
    fresh, fresh_grads = gradients(Sparse(family, sae), sae, a_batch(sae), 0.4)
    way = Sparse(family, sae)
    way._low = low
    again, again_grads = gradients(way, sae, a_batch(sae), 0.4)
    assert (again.loss, again.threshold) == (fresh.loss, fresh.threshold)
    for name, gradient in fresh_grads.items():
        assert torch.equal(gradient, again_grads[name]), name


@pytest.mark.parametrize("family", COUNTING, ids=named)
def test_threads_of_the_loops_never_change_a_bit(family, monkeypatch):
    """torch's own product before them has one thread in both: with more, some processors round it otherwise."""
    sae = an_autoencoder(family)
    alone, alone_grads = gradients(Sparse(family, sae), sae, a_batch(sae), 0.4)
    monkeypatch.setattr(kernels.torch, "get_num_threads", lambda: 3)
    many, many_grads = gradients(Sparse(family, sae), sae, a_batch(sae), 0.4)
    assert many.loss == alone.loss
    for name, gradient in alone_grads.items():
        assert torch.equal(gradient, many_grads[name]), name


@given(k=st.integers(1, 12), rows=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_as_many_latents_are_active_as_the_family_says(k, rows, seed):
    for family in (BatchTopK(k=k, anneal=0.0), TopK(k=k, anneal=0.0)):
        sae = an_autoencoder(family, seed=seed)
        batch = a_batch(sae, num_rows=rows, seed=seed + 1)
        with torch.no_grad():
            positive_B = (sae.preactivations(batch.x_BD) > 0).sum(1)
            active_B = (family.loss(sae, batch, 1.0).h_BF > 0).sum(1)
        if family.by_row:
            assert active_B.tolist() == positive_B.clamp_max(k).tolist()
        else:
            assert active_B.sum() == min(k * rows, int(positive_B.sum()))


def test_rows_share_the_budget_of_the_batch_or_have_their_own():
    z_BF = torch.tensor([[9.0, 8.0, 7.0, 0.1], [0.2, 0.3, 0.4, 6.0]])
    sae = Autoencoder(d_in=2, d_sae=4, generator=torch.Generator().manual_seed(0))
    shared, _ = BatchTopK(k=2, wide=1.0).choose(sae, z_BF, 1.0)
    own, _ = TopK(k=2, wide=1.0).choose(sae, z_BF, 1.0)
    assert (shared > 0).sum(1).tolist() == [3, 1]
    assert (own > 0).sum(1).tolist() == [2, 2]


@pytest.mark.parametrize(
    "family",
    [*COUNTING, JumpRelu(l0=0.5), Gated(l1=0.5), ReluL1(), Temporal(k=4, slow=0.3)],
    ids=named,
)
def test_permuting_latents_permutes_their_gradients(family):
    if isinstance(family, Matryoshka | Temporal):
        num_first = family.prefixes(F)[0]  # latents may change places within a prefix
        shuffled = torch.randperm(num_first, generator=torch.Generator().manual_seed(6))
        order = torch.cat([shuffled, torch.arange(num_first, F)])
    else:
        order = torch.randperm(F, generator=torch.Generator().manual_seed(5))
    sae = an_autoencoder(family)
    batch = a_batch(sae)
    if isinstance(family, Temporal):
        has_before_B = torch.arange(B) % 5 > 0
        batch = Batch(
            x_BD=batch.x_BD,
            y_BO=batch.y_BO,
            before_BD=normal(B, D, seed=9),
            has_before_B=has_before_B,
        )
    first, first_grads = gradients(Differentiated(family, sae), sae, batch, 0.4)
    with torch.no_grad():
        for name, weight in sae.weights.items():
            if name != "b_dec":
                weight.copy_(weight[order].clone())
    second, second_grads = gradients(Differentiated(family, sae), sae, batch, 0.4)
    assert second.loss == pytest.approx(first.loss, rel=1e-5)
    for name, gradient in first_grads.items():
        wanted = gradient if name == "b_dec" else gradient[order]
        torch.testing.assert_close(second_grads[name], wanted, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "family",
    [
        *COUNTING,
        TopK(k=4, inference="k"),
        JumpRelu(l0=0.5),
        Gated(l1=0.5),
        ReluL1(),
        Temporal(k=4, slow=0.3),
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"decoder_norm": "free"}, {"d_out": 5}], ids=str)
def test_permuting_latents_permutes_codes(family, options):
    def codes_and_recon(order):
        sae = an_autoencoder(family, **options)
        with torch.no_grad():
            for name, weight in sae.weights.items():
                if name != "b_dec":
                    weight.copy_(weight[order].clone())
        finished = family.freeze(sae, 0.3)
        is_transcoder = sae.is_transcoder
        dictionary = Dictionary(
            W_enc=finished.W_enc_FD.T.contiguous(),
            b_enc=finished.bias_F,
            W_dec=finished.W_dec_FO,
            b_dec=sae.b_dec.detach(),
            threshold=finished.threshold,
            k=finished.k,
            mean=normal(D, seed=7),
            scale=1.5,
            family=family.name,
            site="lstm.h",
            target_site="lstm.c" if is_transcoder else None,
            out_mean=normal(5, seed=8) if is_transcoder else None,
            out_scale=0.5 if is_transcoder else None,
        )
        code_BF = dictionary.encode(normal(B, D, seed=1))
        return code_BF, dictionary.decode(code_BF)

    order = torch.randperm(F, generator=torch.Generator().manual_seed(5))
    code_BF, recon_BO = codes_and_recon(torch.arange(F))
    permuted_BF, same_BO = codes_and_recon(order)
    assert 0 < (code_BF > 0).sum() < code_BF.numel()
    torch.testing.assert_close(permuted_BF, code_BF[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(same_BO, recon_BO, atol=1e-5, rtol=1e-4)


def test_one_output_bias_gradient_takes_the_encoder_into_account():
    # b_dec is taken off the input as well: half of its gradient comes from there
    family = BatchTopK(k=4)
    sae = an_autoencoder(family)
    batch = a_batch(sae)
    _, grads = gradients(Sparse(family, sae), sae, batch, 1.0)
    h = 1e-3
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            sae.b_dec[2] += sign * h
            losses.append(float(family.loss(sae, batch, 1.0).value))
            sae.b_dec[2] -= sign * h
    assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(float(grads["b_dec"][2]), rel=0.02)


@pytest.mark.parametrize("d_out", [None, 6])
@pytest.mark.parametrize("num_dead", [3, 4, 5, 40])
def test_auxk_gradient_equals_autograd_of_its_formula(num_dead, d_out):
    sae = an_autoencoder(BatchTopK(), d_out=d_out)
    batch = a_batch(sae)
    for name in sae.weights:
        sae.grad(name).zero_()
    error_BO = normal(B, d_out or D, seed=3)
    dead_F = torch.zeros(F, dtype=torch.bool)
    dead_F[torch.randperm(F, generator=torch.Generator().manual_seed(4))[:num_dead]] = True
    loss = add_auxk_gradient(sae, batch.x_BD, error_BO, dead_F, weight=0.25)
    found = {name: sae.grad(name).clone() for name in sae.weights}

    for name in sae.weights:
        sae.grad(name).zero_()
    z_BF = sae.preactivations(batch.x_BD).masked_fill(~dead_F, -np.inf)
    kept = z_BF.topk(min((d_out or D) // 2, num_dead), dim=1)
    h_BF = torch.zeros_like(z_BF).scatter(1, kept.indices, kept.values.relu())
    wanted = 0.25 * (-error_BO - h_BF @ sae.W_dec).square().sum() / B
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, sae.grad(name), atol=1e-5, rtol=1e-4, msg=name)
    # One public implementation selects dead latents in a way that detaches them: its encoder gradient is zero.
    assert (found["W_enc"][dead_F].norm(dim=1) > 0).any()
    assert (found["W_enc"][~dead_F] == 0).all()


@pytest.mark.parametrize("decoder_norm", ["unit", "free"])
def test_adam_moves_as_that_of_torch_does(decoder_norm):
    family = BatchTopK(k=4)
    ours, theirs = (an_autoencoder(family, decoder_norm=decoder_norm) for _ in range(2))
    mine = Adam(ours)
    weights = list(theirs.weights.values())
    reference = torch.optim.Adam(weights, lr=0.01)
    for number in range(5):
        for name in ours.weights:
            gradient = 3 * normal(*ours.weights[name].shape, seed=50 + number)
            ours.grad(name).copy_(gradient)
            theirs.grad(name).copy_(gradient)
        if decoder_norm == "unit":
            along_F = (theirs.grad("W_dec") * theirs.W_dec).sum(1, keepdim=True)
            theirs.grad("W_dec").sub_((along_F * theirs.W_dec).detach())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        reference.step()
        if decoder_norm == "unit":
            with torch.no_grad():
                theirs.W_dec.div_(theirs.W_dec.norm(dim=1, keepdim=True))
        mine.step(0.01, max_norm=1.0)
    for name, weight in theirs.weights.items():
        torch.testing.assert_close(ours.weights[name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_gradient_that_is_not_a_number_is_refused():
    sae = an_autoencoder(BatchTopK())
    sae.grad("W_enc")[3, 1] = float("nan")
    with pytest.raises(FloatingPointError, match=r"diverged; lower lr"):
        Adam(sae).step(0.01, max_norm=1.0)


def test_start_is_tied_with_unit_decoder_unless_asked_otherwise():
    def start(**options):
        return Autoencoder(d_in=D, d_sae=F, generator=torch.Generator().manual_seed(0), **options)

    assert torch.equal(start().W_enc, start().W_dec)
    for other in (start(tied=False), start(d_out=D)):
        assert not torch.allclose(other.W_enc, other.W_dec)
        torch.testing.assert_close(other.W_enc.norm(dim=1), torch.ones(F))
    torch.testing.assert_close(start().W_dec.norm(dim=1), torch.ones(F))


def test_way_is_chosen_by_family_and_share_of_active_latents():
    def way(family, **options):
        return type(gradient_of(family, an_autoencoder(family, **options)))

    assert way(ReluL1()) is Dense
    assert way(BatchTopK(k=1, wide=1.0)) is Sparse
    assert way(BatchTopK(k=20)) is Dense
    assert way(Matryoshka(k=20)) is Sparse
    assert way(JumpRelu()) is way(Gated()) is way(Temporal()) is Differentiated


def test_thresholds_move_towards_the_wanted_sparsity():
    # where a library keeps the logarithm of the threshold, in half precision, they have been seen to stand still
    family = JumpRelu(l0=5.0, l0_warm_up=0.0, first_threshold=0.3)
    sae = an_autoencoder(family)
    _, grads = gradients(Differentiated(family, sae), sae, a_batch(sae), 1.0)
    assert grads["threshold"].mean() < 0  # descent raises them
