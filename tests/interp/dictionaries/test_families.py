"""What each family promises of its settings, its training and its finished dictionary."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from interp.dictionaries.autoencoder import Batch
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.config import FAMILIES, SaeConfig
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.family import counted
from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpRelu, is_above, jump
from interp.dictionaries.matryoshka import Matryoshka
from interp.dictionaries.metrics import measure
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.temporal import Temporal
from interp.dictionaries.topk import TopK
from interp.dictionaries.training import Targets, Trainer

D = 16
ALL = [
    BatchTopK(k=3),
    TopK(k=3),
    TopK(k=3, inference="k"),
    Matryoshka(k=3, nested=(0.25, 1.0)),
    Temporal(k=3, slow=0.25),
    JumpRelu(l0=1.0),
    JumpRelu(l0=4.0, target_l0=3.0),
    Gated(l1=2.0),
    ReluL1(l1=2.0),
]
EVERY = pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)


def rows(num_rows, seed, dtype=np.float16):
    generator = np.random.default_rng(seed)
    codes = generator.exponential(size=(num_rows, 24)) * (generator.random((num_rows, 24)) < 0.1)
    directions = np.random.default_rng(99).normal(size=(24, D))
    return (codes @ directions + 3).astype(dtype)


TRAIN, HELD_OUT = rows(1200, 0), rows(400, 1)
BEFORE = np.where(np.arange(len(TRAIN)) % 10 > 0, np.arange(len(TRAIN)) - 1, -1)


def a_config(family, **options):
    base = SaeConfig(family=family, d_sae=64, samples=20_000, batch_rows=128, reports=2)
    return replace(base, **options)


def a_trainer(family, *, targets=None, **options):
    config = a_config(family, **options)
    return Trainer(config, TRAIN, HELD_OUT, site="lstm.h", seed=0, targets=targets, before_N=BEFORE)


def trained(family, **options):
    trainer = a_trainer(family, **options)
    reports = list(trainer.run())
    return trainer, reports


def test_every_family_is_known_by_its_name():
    assert {family.name for family in ALL} == FAMILIES.keys()
    for family in ALL:
        config = a_config(family)
        assert SaeConfig.from_dict(config.to_dict()) == config


@EVERY
@pytest.mark.parametrize("options", [{}, {"decoder_norm": "free"}, {"ema": 0.9}], ids=str)
def test_run_learns_and_its_dictionary_is_sparse(family, options):
    trainer, reports = trained(family, **options)
    assert reports[-1].fvu < 0.5 * measure(a_trainer(family).dictionary(), HELD_OUT).fvu
    assert reports[-1].fvu < 0.6
    assert 0.5 < reports[-1].l0 < 32
    norms = trainer.dictionary().W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(64), atol=1e-4, rtol=1e-4)


@EVERY
def test_finished_dictionary_computes_what_training_computed(family):
    trainer, _ = trained(family, samples=4000)
    dictionary = trainer.dictionary()
    x_BD = (torch.from_numpy(HELD_OUT).float() - dictionary.mean) / dictionary.scale
    batch = Batch(x_BD=x_BD, y_BO=x_BD, before_BD=x_BD, has_before_B=torch.zeros(400).bool())
    sae = trainer._sae
    with torch.no_grad():
        h_BF = family.loss(sae, batch, 1.0).h_BF
        recon = sae.reconstruct(h_BF) * dictionary.scale + dictionary.mean
        h_BF = counted(h_BF, sae.norm_F)
    found_BF = dictionary.encode(torch.from_numpy(HELD_OUT).float())
    if isinstance(family, JumpRelu | Gated | ReluL1) or dictionary.k is not None:
        torch.testing.assert_close(found_BF, h_BF, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(dictionary.decode(found_BF), recon, atol=1e-3, rtol=1e-3)
    else:  # frozen to the threshold that was usual: where both are active they are equal
        both = (found_BF > 0) & (h_BF > 0)
        assert both.sum() > 0.4 * (h_BF > 0).sum()
        torch.testing.assert_close(found_BF[both], h_BF[both], atol=1e-4, rtol=1e-3)


@EVERY
def test_dictionary_survives_its_file(family):
    trainer, _ = trained(family, samples=1000)
    files = trainer.dictionary().to_bytes()
    again = Dictionary.from_bytes(files)
    assert again.to_bytes() == files
    assert again.k == trainer.dictionary().k


@EVERY
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_scale_of_the_rows_changes_nothing_but_the_scale(family, scale):
    def run(factor):
        config = a_config(family, samples=3000)
        train, held_out = (
            (part.astype(np.float32) * np.float32(factor)) for part in (TRAIN, HELD_OUT)
        )
        trainer = Trainer(config, train, held_out, site="x", seed=0, before_N=BEFORE)
        *_, last = trainer.run()
        return last, trainer.dictionary()

    (one, first), (other, second) = run(1.0), run(scale)
    assert other.fvu == pytest.approx(one.fvu, rel=0.05)
    assert other.l0 == pytest.approx(one.l0, rel=0.05)
    assert second.scale == pytest.approx(scale * first.scale, rel=1e-4)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *[(family, {}) for family in ALL],
        (ReluL1(), {"ema": 0.95, "resample_at": (0.3, 0.6), "resample_window": 0.05}),
        (BatchTopK(k=2, aux=1 / 32, dead_window=0.02), {"encoder_precision": "bfloat16"}),
        (JumpRelu(), {"decoder_norm": "free", "resample_at": (0.4,), "tied_init": False}),
    ],
    ids=str,
)
def test_resumed_run_equals_uninterrupted_one_bit_for_bit(family, options):
    options = {"samples": 3000} | options
    whole, _ = trained(family, **options)
    first = a_trainer(family, **options)
    first.advance(9)
    second = a_trainer(family, **options)
    second.load_state_dict(first.state_dict())
    list(second.run())
    assert second.dictionary().to_bytes() == whole.dictionary().to_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"normalise": False},
        {"tied_init": False},
        {"encoder_precision": "bfloat16"},
    ],
    ids=str,
)
def test_options_train_as_well(options):
    _, reports = trained(BatchTopK(k=3), **options)
    assert reports[-1].fvu < 0.35


def test_rows_that_are_not_normalised_leave_no_trace_of_it():
    trainer, _ = trained(BatchTopK(k=3), normalise=False, samples=1000)
    assert (trainer.dictionary().mean == 0).all()
    assert trainer.dictionary().scale == 1


def test_resampling_revives_dead_latents():
    options = {"d_sae": 256, "samples": 40_000, "lr": 2e-2}
    _, without = trained(ReluL1(l1=8.0, l1_warm_up=0.0), **options)
    _, with_it = trained(
        ReluL1(l1=8.0, l1_warm_up=0.0), **options, resample_at=(0.2, 0.4), resample_window=0.05
    )
    assert without[-1].dead_fraction > 0.3
    assert with_it[-1].dead_fraction < without[-1].dead_fraction


def test_average_of_weights_is_not_the_last_weights():
    (average, _), (last, _) = (trained(BatchTopK(k=3), ema=ema, samples=3000) for ema in (0.9, 0.0))
    assert not torch.allclose(average.dictionary().W_enc, last.dictionary().W_enc)
    for name, weight in average._sae.weights.items():
        torch.testing.assert_close(weight, last._sae.weights[name])  # the run itself is the same


def test_transcoder_learns_one_site_from_another():
    generator = np.random.default_rng(3)
    through = generator.normal(size=(D, 6)) / 4

    def outputs(rows_ND):
        return (np.maximum(rows_ND.astype(np.float32) @ through, 0) + 5).astype(np.float32)

    targets = Targets(train_NO=outputs(TRAIN), held_out_NO=outputs(HELD_OUT), site="lstm.y")
    trainer, reports = trained(BatchTopK(k=4), targets=targets, samples=60_000)
    dictionary = trainer.dictionary()
    assert reports[-1].fvu < 0.3
    assert (dictionary.d_in, dictionary.d_out, dictionary.target_site) == (D, 6, "lstm.y")
    recon = dictionary.decode(dictionary.encode(torch.from_numpy(HELD_OUT).float())).numpy()
    wanted = outputs(HELD_OUT)
    fvu = ((recon - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
    assert fvu == pytest.approx(reports[-1].fvu, rel=1e-3)
    assert Dictionary.from_bytes(dictionary.to_bytes()).to_bytes() == dictionary.to_bytes()
    with pytest.raises(ValueError, match=r"transcoder: its latents read 'lstm.h' but write"):
        dictionary.direction(0)


def slow_and_fast(num_episodes, steps, seed):
    """Episodes in which 4 features keep their state for the whole episode, and 8 come and go at every step."""
    generator = np.random.default_rng(seed)
    directions = np.random.default_rng(7).normal(size=(12, D))
    slow = np.repeat(generator.random((num_episodes, 4)) < 0.4, steps, axis=0)
    fast = generator.random((num_episodes * steps, 8)) < 0.2
    on = np.concatenate([slow, fast], axis=1)
    amount = on * generator.uniform(0.5, 1.5, on.shape)
    step = np.arange(num_episodes * steps)
    before = np.where(step % steps > 0, step - 1, -1)
    return (amount @ directions).astype(np.float32), on, before


def test_slow_latents_hold_what_stays_and_others_what_changes():
    train, _, before = slow_and_fast(400, 10, 0)
    held_out, on, _ = slow_and_fast(100, 10, 1)

    def slow_share(contrast):
        """Of the matches between slow features and latents: share that is with slow latents."""
        family = Temporal(k=4, slow=0.25, contrast=contrast)
        config = SaeConfig(
            family=family, d_sae=32, samples=300_000, batch_rows=256, reports=1, lr=1e-2
        )
        trainer = Trainer(config, train, held_out, site="x", seed=0, before_N=before)
        *_, last = trainer.run()
        code = trainer.dictionary().encode(torch.from_numpy(held_out)).numpy()
        active = (code - code.mean(0)) / (code.std(0) + 1e-9)
        feature = (on - on.mean(0)) / on.std(0)
        alike = np.abs(feature.T @ active) / len(on)  # [12 features, 32 latents]
        return alike[:4, :8].max(1).mean() - alike[4:, :8].max(1).mean(), last.fvu

    apart, fvu = slow_share(0.3)
    without, _ = slow_share(0.0)
    assert fvu < 0.3
    assert apart > 0.25
    assert apart > without + 0.1


def test_thresholds_get_the_slopes_of_their_kernel():
    z_BF = torch.tensor([[0.4, 0.6, 2.0, 0.1]], requires_grad=True)
    threshold_F = torch.full((4,), 0.5, requires_grad=True)
    jump(z_BF, threshold_F, 0.4).sum().backward()
    assert z_BF.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    torch.testing.assert_close(threshold_F.grad, torch.tensor([-1.25, -1.25, 0.0, 0.0]))
    z_BF.grad = threshold_F.grad = None
    is_above(z_BF, threshold_F, 0.4).sum().backward()
    assert z_BF.grad is None
    torch.testing.assert_close(threshold_F.grad, torch.tensor([-2.5, -2.5, 0.0, 0.0]))


def test_jumprelu_comes_close_to_the_wanted_sparsity():
    family = JumpRelu(l0=20.0, target_l0=4.0)
    _, reports = trained(family, samples=100_000)
    assert reports[-1].l0 == pytest.approx(4.0, rel=0.2)


def test_exact_k_is_never_exceeded_and_cannot_be_read_alone():
    trainer, _ = trained(TopK(k=3, inference="k"), samples=3000)
    dictionary = trainer.dictionary()
    active = (dictionary.encode(torch.from_numpy(HELD_OUT).float()) > 0).sum(1)
    assert active.max() == 3
    with pytest.raises(ValueError, match=r'compete for 3 places .* inference="threshold"'):
        dictionary.direction(0)


def test_penalty_rises_linearly_to_target():
    family = ReluL1(l1=4.0, l1_warm_up=0.1)
    assert [family.l1_at(share) for share in (0.0, 0.05, 0.1, 0.9)] == [0.0, 2.0, 4.0, 4.0]
    assert ReluL1(l1=4.0, l1_warm_up=0.0).l1_at(0.0) == 4.0


def test_k_falls_linearly_from_wide_to_target():
    family = BatchTopK(k=10, wide=4.0, anneal=0.5)
    assert [family.k_at(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [40, 25, 10, 10, 10]
    assert BatchTopK(k=10, anneal=0.0).k_at(0.0) == 10


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *[
            (kind, change)
            for kind in (BatchTopK, TopK, Matryoshka, Temporal)
            for change in (
                {"k": 0},
                {"wide": 0.5},
                {"anneal": 2.0},
                {"aux": -1.0},
                {"dead_window": 0.0},
            )
        ],
        (ReluL1, {"l1": -1.0}),
        (ReluL1, {"l1": float("nan")}),
        (ReluL1, {"l1_warm_up": 1.5}),
        (Gated, {"l1": -1.0}),
        (Gated, {"l1_warm_up": -0.5}),
        (JumpRelu, {"l0": -1.0}),
        (JumpRelu, {"l0_warm_up": 2.0}),
        (JumpRelu, {"target_l0": 0.0}),
        (JumpRelu, {"bandwidth": 0.0}),
        (Matryoshka, {"nested": (0.5, 0.2, 1.0)}),
        (Matryoshka, {"nested": (0.5, 0.9)}),
        (Temporal, {"slow": 1.0}),
        (Temporal, {"contrast": -1.0}),
        (Temporal, {"temperature": 0.0}),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(kind, change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        kind(**change)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (BatchTopK(k=65), r"family.k is 65 but d_sae is 64; wanted k at most d_sae"),
        (Matryoshka(k=3, nested=(0.001, 1.0)), r"nested .* gives prefixes of \(0, 64\)"),
        (Temporal(k=3, slow=0.001), "leaves none of one kind"),
        (JumpRelu(target_l0=99.0), "family.target_l0 is 99.0 but d_sae is 64"),
    ],
    ids=str,
)
def test_settings_that_contradict_the_width_are_refused(family, message):
    with pytest.raises(ValueError, match=message):
        a_config(family)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (None, "give before_N"),
        (np.zeros(5, dtype=np.int64), r"before_N has shape \(5,\)"),
        (np.full(len(TRAIN), len(TRAIN)), r"goes from 1200 to 1200"),
        (np.full(len(TRAIN), -1), "no train row has the step before it"),
    ],
)
def test_temporal_family_wants_the_steps_before(before, message):
    with pytest.raises(ValueError, match=message):
        Trainer(a_config(Temporal(k=3)), TRAIN, HELD_OUT, site="x", seed=0, before_N=before)


def test_targets_must_be_of_the_same_rows():
    targets = Targets(train_NO=TRAIN[:5], held_out_NO=HELD_OUT, site="lstm.y")
    with pytest.raises(ValueError, match=r"1200 train rows but 5 of their targets at lstm.y"):
        Trainer(a_config(BatchTopK(k=3)), TRAIN, HELD_OUT, site="x", seed=0, targets=targets)


def test_config_in_json_names_its_family_and_everything_else():
    content = a_config(Matryoshka(k=3, nested=(0.25, 1.0))).to_dict()
    assert content["family"] == {
        "name": "matryoshka",
        **asdict(Matryoshka(k=3)),
        "nested": [0.25, 1.0],
    }
