"""Planted: two policies of different widths with features in common and features of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save

from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.config import SaeConfig
from interp.dictionaries.crosscoder import Crosscoder, CrosscoderTrainer, Source, whose
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.gated import Gated
from interp.dictionaries.training import Normalisation

NUM_SHARED, NUM_OWN = 10, 4
WIDTHS = {"first": 24, "second": 16}
CONFIG = SaeConfig(
    family=BatchTopK(k=3),
    d_sae=32,
    samples=150_000,
    batch_rows=256,
    lr=1e-2,
    reports=1,
    decoder_norm="free",
)


def paired_rows(num_rows, seed):
    """Of features 0-9 both have a direction, of 10-13 the first alone, of 14-17 the second."""
    generator = np.random.default_rng(seed)
    on = generator.random((num_rows, NUM_SHARED + 2 * NUM_OWN)) < 0.15
    amount = on * generator.uniform(0.5, 1.5, on.shape)
    rows = {}
    for number, (name, width) in enumerate(WIDTHS.items()):
        directions = np.random.default_rng([50, number]).normal(size=(on.shape[1], width))
        absent = slice(14, 18) if name == "first" else slice(10, 14)
        directions[absent] = 0
        noise = 0.05 * generator.normal(size=(num_rows, width))
        # the two differ in scale and mean as well, which must not matter
        rows[name] = ((amount @ directions + noise) * (1 + 9 * number) + number).astype(np.float32)
    return rows, on


@pytest.fixture(scope="module")
def trained():
    train, _ = paired_rows(6000, 0)
    held_out, on = paired_rows(2000, 1)
    trainer = CrosscoderTrainer(CONFIG, train, held_out, site="lstm.h", seed=0)
    *_, last = trainer.trainer.run()
    return trainer.crosscoder(), last, held_out, on


def latent_of(crosscoder, held_out, on):
    """For each feature the latent that goes with it best, and how well."""
    code = crosscoder.encode(held_out).numpy()
    code = (code - code.mean(0)) / (code.std(0) + 1e-9)
    feature = (on - on.mean(0)) / on.std(0)
    alike = feature.T @ code / len(on)
    return alike.argmax(1), alike.max(1)


def test_features_are_recovered_from_both_at_once(trained):
    crosscoder, last, held_out, on = trained
    _, alike = latent_of(crosscoder, held_out, on)
    assert last.fvu < 0.2
    assert (alike > 0.8).mean() > 0.8


def test_presence_tells_whose_a_feature_is(trained):
    crosscoder, _, held_out, on = trained
    latent, alike = latent_of(crosscoder, held_out, on)
    presence = crosscoder.presence(held_out)[latent].numpy()
    found = alike > 0.8
    shared, first, second = (
        found & (np.isin(np.arange(18), part)) for part in (range(10), range(10, 14), range(14, 18))
    )
    assert shared.sum() >= 8
    assert min(first.sum(), second.sum()) >= 2
    assert presence[shared].min() > 0.4
    assert presence[first, 1].max() < 0.2
    assert presence[second, 0].max() < 0.2


def test_presence_sees_what_a_shrunken_decoder_hides(trained):
    # The row of a shared latent is taken away in one policy, as sparsity does: by norms alone it would be exclusive.
    crosscoder, _, held_out, on = trained
    latent, alike = latent_of(crosscoder, held_out, on)
    shared = int(latent[:10][alike[:10].argmax()])
    W_dec = crosscoder.dictionary.W_dec.clone()
    W_dec[shared, WIDTHS["first"] :] = 0
    fields = {
        name: getattr(crosscoder.dictionary, name)
        for name in ("W_enc", "b_enc", "b_dec", "threshold", "mean", "scale", "family", "site")
    }
    hidden = Crosscoder(
        dictionary=type(crosscoder.dictionary)(W_dec=W_dec, **fields), sources=crosscoder.sources
    )
    assert hidden.norms_FS[shared, 1] == 0
    assert hidden.presence(held_out)[shared, 1] > 0.3


def test_noise_alone_has_no_presence():
    # By hand: latents read and write the first source; the second is noise, which a free direction would fit.
    generator = np.random.default_rng(9)
    rows = {
        "first": np.maximum(generator.normal(size=(200, 4)), 0).astype(np.float32),
        "second": generator.normal(size=(200, 40)).astype(np.float32),
    }
    sources = tuple(
        Source(name=name, normal=Normalisation(torch.zeros(part.shape[1]), 1.0))
        for name, part in rows.items()
    )
    W_FD = torch.eye(4, 44)
    dictionary = Dictionary(
        W_enc=W_FD.T.contiguous(),
        b_enc=torch.zeros(4),
        W_dec=W_FD,
        b_dec=torch.zeros(44),
        threshold=torch.tensor(0.0),
        mean=torch.zeros(44),
        scale=1.0,
        family="batch_topk",
        site="x",
    )
    presence = Crosscoder(dictionary=dictionary, sources=sources).presence(rows)
    assert (presence[:, 0] == 1).all()
    noise_would_have = (40 / 100) ** 0.5  # root of its width by the rows on which a latent fires
    assert presence[:, 1].mean() < noise_would_have / 3


def test_norms_of_a_latent_sum_to_one_and_parts_have_their_widths(trained):
    crosscoder, *_ = trained
    torch.testing.assert_close(crosscoder.norms_FS.sum(1), torch.ones(32), atol=1e-4, rtol=1e-4)
    assert [crosscoder.decoder(s).shape[1] for s in range(2)] == [24, 16]


def test_scale_of_a_source_changes_nothing():
    train, _ = paired_rows(500, 0)
    held_out, _ = paired_rows(200, 1)

    def last(factor):
        parts = [
            rows | {"second": rows["second"] * np.float32(factor)} for rows in (train, held_out)
        ]
        trainer = CrosscoderTrainer(CONFIG, *parts, site="x", seed=0).trainer
        trainer.advance(30)
        return trainer.progress()

    assert last(100.0).fvu == pytest.approx(last(1.0).fvu, rel=1e-3)


def test_resumed_run_equals_uninterrupted_one_bit_for_bit():
    train, _ = paired_rows(500, 0)
    held_out, _ = paired_rows(200, 1)

    def a_trainer():
        return CrosscoderTrainer(CONFIG, train, held_out, site="x", seed=0)

    whole, first, second = a_trainer(), a_trainer(), a_trainer()
    whole.trainer.advance(20)
    first.trainer.advance(7)
    second.trainer.load_state_dict(first.trainer.state_dict())
    second.trainer.advance(13)
    assert second.crosscoder().dictionary.to_bytes() == whole.crosscoder().dictionary.to_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second": None}, r"train rows of \['first'\] and held-out rows of \['first', 'second'\]"),
        ({"second": "shorter"}, r"sources have \{'first': 500, 'second': 400\} rows"),
    ],
)
def test_sources_that_do_not_fit_are_refused(change, message):
    train, _ = paired_rows(500, 0)
    held_out, _ = paired_rows(200, 1)
    if change["second"] is None:
        train.pop("second")
    else:
        train["second"] = train["second"][:400]
    with pytest.raises(ValueError, match=message):
        CrosscoderTrainer(CONFIG, train, held_out, site="x", seed=0)


@pytest.mark.parametrize(
    "options", [{"family": Gated(), "decoder_norm": "free"}, {"family": BatchTopK()}]
)
def test_config_of_another_kind_is_refused(options):
    rows, _ = paired_rows(100, 0)
    with pytest.raises(ValueError, match=r"take batch_topk and decoder_norm \"free\""):
        CrosscoderTrainer(SaeConfig(d_sae=32, **options), rows, rows, site="x", seed=0)


def test_rows_of_unknown_sources_are_refused(trained):
    crosscoder, _, held_out, _ = trained
    with pytest.raises(ValueError, match=r"this crosscoder is of \['first', 'second'\]"):
        crosscoder.encode({"first": held_out["first"]})
    with pytest.raises(ValueError, match=r"rows of second are 5 wide, wanted 16"):
        crosscoder.encode(held_out | {"second": held_out["second"][:, :5]})


def test_crosscoder_comes_back_from_its_files_bit_for_bit(trained):
    crosscoder, _, held_out, _ = trained
    files = crosscoder.to_bytes()
    again = Crosscoder.from_bytes(files)
    assert again.to_bytes() == files
    assert torch.equal(again.encode(held_out), crosscoder.encode(held_out))
    assert [source.name for source in again.sources] == ["first", "second"]
    assert again.index("second") == 1
    with pytest.raises(ValueError, match=r"third is not a source .* \['first', 'second'\]"):
        again.index("third")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sources.json", b"{", "sources.json is not JSON"),
        ("sources.json", b'{"format": "x"}', "wanted format 'sparsight-crosscoder/1'"),
        (
            "sources.json",
            b'{"format": "sparsight-crosscoder/1", "sources": [{"name": "a"}, {}]}',
            "source .* wanted a name, a width",
        ),
        ("sources.safetensors", b"xx", "sources.safetensors is not a safetensors file"),
        ("sources.safetensors", None, "no 24 finite float32 means of source 0, first"),
        ("weights.safetensors", b"xx", "weights.safetensors is not a safetensors file"),
    ],
)
def test_damaged_file_of_a_crosscoder_is_named(trained, name, content, message):
    crosscoder, *_ = trained
    files = crosscoder.to_bytes()
    if content is None:
        content = save({"0": torch.zeros(3), "1": torch.zeros(16)})
    with pytest.raises(ValueError, match=message):
        Crosscoder.from_bytes({**files, name: content})


def test_latents_are_said_to_be_of_all_of_one_or_between():
    nan = np.nan
    presence = np.array([[1, 0.6], [0.1, 1], [1, 0.3], [nan, nan]], np.float32)
    assert whose(presence) == ["all", "one", "some", "silent"]


def test_permuting_latents_permutes_the_codes_of_a_crosscoder(trained):
    crosscoder, _, held_out, _ = trained
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    whole = crosscoder.dictionary
    permuted = Crosscoder(
        dictionary=replace(
            whole,
            W_enc=whole.W_enc[:, order],
            b_enc=whole.b_enc[order],
            W_dec=whole.W_dec[order],
        ),
        sources=crosscoder.sources,
    )
    wanted = crosscoder.encode(held_out)[:, order]
    torch.testing.assert_close(permuted.encode(held_out), wanted)
    torch.testing.assert_close(
        permuted.presence(held_out), crosscoder.presence(held_out)[order], equal_nan=True
    )
