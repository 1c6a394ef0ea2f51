"""The layout of SAELens, against plain copies of the formulas of its inference classes.

`python -m benchmarks.sae --parts saelens` compares with the package itself.
"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.saelens import CONFIG_FILE, WEIGHTS_FILE, from_saelens, to_saelens

D, F = 6, 20


def a_dictionary(threshold: float | torch.Tensor = 0.0, **changes):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return Dictionary(
        W_enc=normal(D, F),
        b_enc=normal(F),
        W_dec=normal(F, D),
        b_dec=normal(D),
        threshold=torch.as_tensor(threshold),
        mean=normal(D) + 3,
        scale=2.5,
        family="batch_topk",
        site="lstm.h",
        fvu=0.1,
        **changes,
    )


ROWS = 4 * torch.randn(300, D, generator=torch.Generator().manual_seed(1))


def their_encode(files, x):
    """As the classes of that architecture do in sae-lens 6."""
    config, w = json.loads(files[CONFIG_FILE]), load(files[WEIGHTS_FILE])
    if config["apply_b_dec_to_input"]:
        x = x - w["b_dec"]
    if config["architecture"] == "gated":
        pre = x @ w["W_enc"]
        return (pre + w["b_gate"] > 0) * (pre * w["r_mag"].exp() + w["b_mag"]).relu()
    pre = x @ w["W_enc"] + w["b_enc"]
    if config["architecture"] == "standard":
        return pre.relu()
    if config["architecture"] == "jumprelu":
        return pre.relu() * (pre > w["threshold"])
    if config["rescale_acts_by_decoder_norm"]:
        pre = pre * w["W_dec"].norm(dim=1)
    top = pre.topk(config["k"], dim=1)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())


def their_decode(files, f):
    config, w = json.loads(files[CONFIG_FILE]), load(files[WEIGHTS_FILE])
    if config.get("rescale_acts_by_decoder_norm"):
        f = f / w["W_dec"].norm(dim=1)
    return f @ w["W_dec"] + w["b_dec"]


CASES = [
    (a_dictionary(), None, "standard"),
    (a_dictionary(0.7), None, "jumprelu"),
    (a_dictionary(torch.linspace(0, 2, F)), None, "jumprelu"),
    (a_dictionary(torch.linspace(0, 2, F)), "gated", "gated"),
    (a_dictionary(k=4), None, "topk"),
]


@pytest.mark.parametrize(("dictionary", "asked", "architecture"), CASES)
def test_what_is_written_computes_the_same_there(dictionary, asked, architecture):
    files = to_saelens(dictionary, architecture=asked)
    assert json.loads(files[CONFIG_FILE])["architecture"] == architecture
    latents = dictionary.encode(ROWS)
    assert 0 < (latents > 0).float().mean() < 0.9
    torch.testing.assert_close(their_encode(files, ROWS), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        their_decode(files, latents), dictionary.decode(latents), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize(("dictionary", "asked", "architecture"), CASES)
def test_what_is_read_back_computes_the_same_here(dictionary, asked, architecture):
    again = from_saelens(to_saelens(dictionary, architecture=asked))
    torch.testing.assert_close(again.encode(ROWS), dictionary.encode(ROWS), atol=1e-5, rtol=1e-5)
    assert (again.site, again.family, again.fvu) == ("lstm.h", "batch_topk", 0.1)
    assert again.k == dictionary.k


def theirs(kind, **config):
    """Files as SAELens writes them, with everything that can differ from ours."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = {"W_enc": normal(D, F), "W_dec": normal(F, D), "b_dec": normal(D)}
    if kind == "gated":
        tensors |= {"b_gate": normal(F), "b_mag": normal(F), "r_mag": 0.3 * normal(F)}
    else:
        tensors["b_enc"] = normal(F)
    if kind == "jumprelu":
        tensors["threshold"] = normal(F).abs()
    content = {
        "architecture": kind,
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.3.hook_resid_post", "sae_lens_version": "6.1.0"},
    }
    return {CONFIG_FILE: json.dumps(content | config).encode(), WEIGHTS_FILE: save(tensors)}


@pytest.mark.parametrize("takes_off_bias", [True, False])
@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("standard", {}),
        ("jumprelu", {}),
        ("gated", {}),
        ("topk", {"k": 3, "rescale_acts_by_decoder_norm": True}),
        ("topk", {"k": 3, "rescale_acts_by_decoder_norm": False}),
    ],
)
def test_files_of_saelens_are_read_as_it_reads_them(architecture, config, takes_off_bias):
    files = theirs(architecture, apply_b_dec_to_input=takes_off_bias, **config)
    dictionary = from_saelens(files)
    latents = their_encode(files, ROWS)
    torch.testing.assert_close(dictionary.encode(ROWS), latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        dictionary.decode(latents), their_decode(files, latents), atol=1e-4, rtol=1e-4
    )
    assert dictionary.site == "blocks.3.hook_resid_post"


def test_site_may_be_given():
    assert from_saelens(theirs("standard"), site="lstm.c").site == "lstm.c"
    with pytest.raises(ValueError, match=r"does not tell its hook; say which site"):
        from_saelens(theirs("standard", metadata={}))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({CONFIG_FILE: b"{}"}, r"no \['sae_weights.safetensors'\]"),
        (theirs("standard") | {CONFIG_FILE: b"nonsense"}, r"cfg.json is not JSON"),
        (theirs("standard") | {CONFIG_FILE: b"[1]"}, r"cfg.json holds a list"),
        (theirs("standard", architecture="temporal"), r"architecture 'temporal'; only"),
        (theirs("standard", normalize_activations="layer_norm"), r"is 'layer_norm'; only"),
        (theirs("standard", d_in="6"), r"d_in is '6', wanted a number"),
        (
            theirs("standard", d_sae=21),
            r"W_enc is torch.float32 \(6, 20\), wanted floats \(6, 21\)",
        ),
        (theirs("topk"), r"k is None, wanted a number"),
        (theirs("jumprelu", architecture="gated"), r"lacks \['b_gate', 'b_mag', 'r_mag'\]"),
        (theirs("standard") | {WEIGHTS_FILE: b"\x80\x04."}, r"is not a safetensors file"),
    ],
)
def test_other_files_are_refused_by_name(files, message):
    with pytest.raises(ValueError, match=message):
        from_saelens(files)


def test_what_cannot_be_said_is_refused():
    transcoder = replace(
        a_dictionary(), target_site="lstm.y", out_mean=torch.zeros(D), out_scale=1.0
    )
    with pytest.raises(ValueError, match=r"transcoder from 'lstm.h' to 'lstm.y'"):
        to_saelens(transcoder)
    with pytest.raises(ValueError, match=r"take one of \['jumprelu', 'gated'\]"):
        to_saelens(a_dictionary(0.5), architecture="standard")
