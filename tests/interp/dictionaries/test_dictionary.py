import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load, save

from interp.dictionaries.dictionary import CONFIG_FILE, WEIGHTS_FILE, Dictionary

D, F = 12, 20
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "mean")


def a_dictionary(*, per_latent=False, **changes):
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    fields = {
        "W_enc": normal(D, F),
        "b_enc": normal(F),
        "W_dec": normal(F, D),
        "b_dec": normal(D),
        "threshold": normal(F).abs() if per_latent else torch.tensor(0.7),
        "mean": 5 * normal(D),
        "scale": 2.5,
        "family": "batch_topk",
        "site": "lstm.h",
        "fvu": 0.125,
        "l0": 6.5,
        "dead_fraction": 0.25,
    }
    return Dictionary(**{**fields, **changes})


def rows(num_rows, seed=0):
    return 5 * torch.randn(num_rows, D, generator=torch.Generator().manual_seed(seed))


@given(start=st.integers(0, 599), count=st.integers(1, 600))
def test_code_of_a_row_does_not_depend_on_its_batch(start, count):
    dictionary = a_dictionary()
    x_BD = rows(600)
    together_BF = dictionary.encode(x_BD)
    part_BF = dictionary.encode(x_BD[start : start + count])
    assert torch.equal(part_BF, together_BF[start : start + count])
    assert torch.equal(
        dictionary.decode(part_BF), dictionary.decode(together_BF)[start : start + count]
    )


@pytest.mark.parametrize("per_latent", [False, True])
def test_latents_below_threshold_are_zero_and_others_are_kept(per_latent):
    dictionary = a_dictionary(per_latent=per_latent)
    x_BD = rows(300)
    z_BF = ((x_BD - dictionary.mean) / dictionary.scale) @ dictionary.W_enc + dictionary.b_enc
    wanted_BF = torch.where(z_BF > dictionary.threshold, z_BF, 0)
    torch.testing.assert_close(dictionary.encode(x_BD), wanted_BF, atol=1e-5, rtol=1e-5)


def test_decode_returns_original_units():
    dictionary = a_dictionary()
    recon_BD = dictionary.decode(torch.zeros(2, F))
    torch.testing.assert_close(recon_BD[1], dictionary.scale * dictionary.b_dec + dictionary.mean)


def test_float16_rows_are_read_as_float32():
    dictionary = a_dictionary()
    x_BD = rows(10).half()
    assert torch.equal(dictionary.encode(x_BD), dictionary.encode(x_BD.float()))


@pytest.mark.parametrize("per_latent", [False, True])
@given(latent=st.integers(0, F - 1), seed=st.integers(0, 1000))
def test_direction_reads_what_encode_reads(per_latent, latent, seed):
    dictionary = a_dictionary(per_latent=per_latent)
    direction = dictionary.direction(latent)
    x_BD = rows(64, seed)
    z_B = x_BD.double() @ direction.read_D.double() + direction.read_bias
    code_B = dictionary.encode(x_BD)[:, latent]
    clear_B = (z_B - direction.threshold).abs() > 1e-4
    wanted_B = torch.where(z_B > direction.threshold, z_B, 0).float()
    torch.testing.assert_close(code_B[clear_B], wanted_B[clear_B], atol=1e-4, rtol=1e-4)


@given(latent=st.integers(0, F - 1), dose=st.floats(-4, 4))
def test_direction_writes_what_decode_writes(latent, dose):
    dictionary = a_dictionary()
    latents_BF = dictionary.encode(rows(8))
    raised_BF = latents_BF.clone()
    raised_BF[:, latent] += dose
    change_BD = dictionary.decode(raised_BF) - dictionary.decode(latents_BF)
    wanted_BD = (dose * dictionary.direction(latent).write_D).expand_as(change_BD)
    torch.testing.assert_close(change_BD, wanted_BD, atol=1e-4, rtol=1e-4)


def test_direction_of_unknown_latent_is_refused():
    with pytest.raises(ValueError, match="latent 20 not in this dictionary; it has 0 to 19"):
        a_dictionary().direction(20)


@pytest.mark.parametrize("per_latent", [False, True])
def test_bytes_round_trip_is_bitwise(per_latent):
    dictionary = a_dictionary(per_latent=per_latent)
    files = dictionary.to_bytes()
    again = Dictionary.from_bytes(files)
    assert again.to_bytes() == files
    for name in TENSORS:
        assert torch.equal(getattr(again, name), getattr(dictionary, name))
    for name in ("scale", "family", "site", "fvu", "l0", "dead_fraction"):
        assert getattr(again, name) == getattr(dictionary, name)
    assert torch.equal(again.encode(rows(10)), dictionary.encode(rows(10)))


def test_unmeasured_dictionary_round_trips():
    dictionary = a_dictionary(fvu=math.nan, l0=math.nan, dead_fraction=math.nan)
    assert json.loads(dictionary.to_bytes()[CONFIG_FILE])["held_out"]["fvu"] is None
    assert math.isnan(Dictionary.from_bytes(dictionary.to_bytes()).fvu)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": torch.full((D,), torch.nan)}, "mean has 12 non-finite values"),
        ({"b_dec": torch.zeros(D).double()}, "b_dec is torch.float64, wanted torch.float32"),
        ({"scale": 0.0}, "scale is 0.0, wanted a finite number above 0"),
        ({"threshold": torch.tensor(-0.5)}, "threshold goes down to -0.5"),
    ],
)
def test_impossible_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(a_dictionary(), **change)


def with_config(**changes):
    files = a_dictionary().to_bytes()
    config = {**json.loads(files[CONFIG_FILE]), **changes}
    return {**files, CONFIG_FILE: json.dumps(config).encode()}


def with_tensors(edit):
    files = a_dictionary().to_bytes()
    tensors = load(files[WEIGHTS_FILE])
    edit(tensors)
    return {**files, WEIGHTS_FILE: save(tensors)}


def with_tensor(name, tensor):
    return with_tensors(lambda tensors: tensors.update({name: tensor}))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({CONFIG_FILE: b"{}"}, r"without \['weights.safetensors'\]"),
        ({**a_dictionary().to_bytes(), CONFIG_FILE: b"{"}, "config.json is not JSON"),
        ({**a_dictionary().to_bytes(), CONFIG_FILE: b"[]"}, "config.json has format 'list'"),
        (with_config(format="other/9"), "format 'other/9', wanted 'sparsight-dictionary/1'"),
        (with_config(extra=1), r"lacks \[\] and has unknown \['extra'\]"),
        (with_config(scale="big"), "scale is 'big', wanted a number"),
        (with_config(held_out={"fvu": 0.1}), "held_out is"),
        (with_config(d_in=99), "d_in 99, d_sae 20 but weights.safetensors has 12, 20"),
        ({**a_dictionary().to_bytes(), WEIGHTS_FILE: b"rubbish"}, "not a safetensors file"),
        (with_tensors(lambda tensors: tensors.pop("mean")), r"lacks \['mean'\]"),
        (
            with_tensors(lambda tensors: tensors["W_dec"].fill_(torch.inf)),
            "W_dec has 240 non-finite",
        ),
        (
            with_tensor("b_enc", torch.zeros(F - 1)),
            r"b_enc has shape \(19,\), wanted \(20,\) = \[d_sae\]",
        ),
        (with_tensor("W_dec", torch.zeros(D, F)), r"W_dec has shape \(12, 20\), wanted \(20, 12\)"),
        (with_tensor("W_enc", torch.zeros(D)), r"W_enc has shape \(12,\), wanted \[d_in, d_sae\]"),
        (with_tensor("threshold", torch.zeros(3)), r"threshold has shape \(3,\), wanted \(20,\)"),
        (with_config(scale=-1.0), "config.json: scale is -1.0"),
    ],
)
def test_damaged_files_are_refused_with_the_field(files, message):
    with pytest.raises(ValueError, match=message):
        Dictionary.from_bytes(files)


def test_rows_of_another_site_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 13\) but this dictionary of 'lstm.h' reads"):
        a_dictionary().encode(torch.zeros(2, 13))
    with pytest.raises(ValueError, match=r"latents have shape \(2, 13\), wanted \[rows, 20\]"):
        a_dictionary().decode(torch.zeros(2, 13))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused_and_not_called_silent(bad):
    x_BD = rows(300)
    x_BD[260, 1] = bad
    with pytest.raises(ValueError, match=r"1 of 300 rows .* not finite \(row 260\)"):
        a_dictionary().encode(x_BD)
    with pytest.raises(ValueError, match="not finite"):
        a_dictionary().encode_rows(x_BD.numpy())
