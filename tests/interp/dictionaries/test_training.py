import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from interp.dictionaries import precision
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.loading import Loader
from interp.dictionaries.metrics import measure
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.temporal import Temporal
from interp.dictionaries.training import SaeConfig, Shuffle, Targets, Trainer, fit, normalisation

D = 16
# A short dead window, so that AuxK takes part.
BATCH_TOPK = SaeConfig(
    family=BatchTopK(k=2, wide=2.0, aux=1 / 32, dead_window=0.02),
    d_sae=96,
    samples=6000,
    batch_rows=128,
    reports=4,
)
RELU_L1 = replace(BATCH_TOPK, family=ReluL1(l1=1.0))
BOTH = pytest.mark.parametrize("config", [BATCH_TOPK, RELU_L1], ids=["batch_topk", "relu_l1"])


def rows(num_rows, seed, dtype=np.float16):
    generator = np.random.default_rng(seed)
    codes = generator.exponential(size=(num_rows, 24)) * (generator.random((num_rows, 24)) < 0.1)
    dictionary = np.random.default_rng(99).normal(size=(24, D))
    return (codes @ dictionary + 3).astype(dtype)


TRAIN, HELD_OUT = rows(1000, 0), rows(500, 1)


def a_trainer(config, train=TRAIN, held_out=HELD_OUT, seed=0):
    return Trainer(config, train, held_out, site="lstm.h", seed=seed)


def drained(generator):
    reports = []
    while True:
        try:
            reports.append(next(generator))
        except StopIteration as stop:
            return reports, stop.value


@BOTH
def test_run_reports_at_intervals_and_returns_dictionary(config):
    reports, dictionary = drained(fit(config, TRAIN, HELD_OUT, site="lstm.h", seed=0))
    assert [report.step for report in reports] == [12, 24, 36, 47]
    assert [report.done for report in reports] == [False, False, False, True]
    assert reports[-1].samples == 47 * 128 >= config.samples
    assert reports[-1].fvu < reports[0].fvu
    measured = measure(dictionary, HELD_OUT)
    assert (dictionary.fvu, dictionary.l0) == (measured.fvu, measured.l0)
    assert (reports[-1].fvu, reports[-1].dead_fraction) == (measured.fvu, measured.dead_fraction)
    assert (dictionary.family, dictionary.site) == (config.family.name, "lstm.h")


@BOTH
@pytest.mark.parametrize("stop", [1, 17, 30])
def test_resumed_run_equals_uninterrupted_one_bit_for_bit(config, stop):
    whole = a_trainer(config)
    whole_reports = list(whole.run())

    first = a_trainer(config)
    first.advance(stop)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    first.advance(5)  # must not reach into the state that was saved
    file.seek(0)
    second = a_trainer(config)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.step == stop
    second_reports = list(second.run())

    assert second.dictionary().to_bytes() == whole.dictionary().to_bytes()
    assert second_reports == whole_reports[-len(second_reports) :]
    for part in ("silent_F", "weights", "adam"):
        torch.testing.assert_close(
            second.state_dict()[part], whole.state_dict()[part], rtol=0, atol=0
        )


def test_auxk_took_part_in_these_tests():
    without = replace(BATCH_TOPK, family=replace(BATCH_TOPK.family, aux=0.0))
    losses = []
    for config in (BATCH_TOPK, without):
        trainer = a_trainer(config)
        trainer.advance(20)
        losses.append(trainer.progress().loss)
    assert losses[0] != losses[1]


def test_same_seed_same_bytes_and_other_seed_other_bytes():
    def trained(seed):
        trainer = a_trainer(BATCH_TOPK, seed=seed)
        trainer.advance(10)
        return trainer.dictionary().to_bytes()

    assert trained(0) == trained(0)
    assert trained(0) != trained(1)


@BOTH
def test_decoder_rows_keep_norm_one(config):
    trainer = a_trainer(config)
    for report in trainer.run():
        norms = trainer.dictionary().W_dec.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(config.d_sae), msg=f"step {report.step}")


def test_frozen_threshold_gives_about_k_latents_per_row():
    config = replace(BATCH_TOPK, samples=100_000, family=BatchTopK(k=4))
    trainer = a_trainer(config)
    *_, last = trainer.run()
    assert last.l0 == pytest.approx(4, rel=0.15)


def test_dictionary_predicts_rows_of_float32_memory_map(tmp_path):
    np.save(tmp_path / "train.npy", TRAIN.astype(np.float32))
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    from_map, from_memory = a_trainer(BATCH_TOPK, mapped), a_trainer(BATCH_TOPK)
    from_map.advance(5)
    from_memory.advance(5)
    assert from_map.dictionary().to_bytes() == from_memory.dictionary().to_bytes()


@given(num_rows=st.integers(1, 30), batch=st.integers(1, 50), batches=st.integers(1, 6))
def test_shuffle_visits_every_row_once_per_epoch_whatever_the_batch(num_rows, batch, batches):
    shuffle = Shuffle(num_rows, seed=7)
    seen = np.concatenate([shuffle.rows(i * batch, batch) for i in range(batches)])
    counts = np.bincount(seen, minlength=num_rows)
    assert len(seen) == batch * batches
    assert counts.max() - counts.min() <= 1
    fresh = Shuffle(num_rows, seed=7)
    np.testing.assert_array_equal(
        fresh.rows((batches - 1) * batch, batch), seen[(batches - 1) * batch :]
    )


def test_normalisation_is_exact_far_from_zero():
    x_ND = np.random.default_rng(0).normal(1000, 2, size=(9000, 5)).astype(np.float32)
    mean_D, scale = normalisation(x_ND)
    np.testing.assert_allclose(mean_D, x_ND.mean(0, dtype=np.float64), rtol=1e-6)
    assert scale == pytest.approx(np.sqrt(x_ND.astype(np.float64).var(0).mean()), rel=1e-6)


def test_learning_rate_warms_up_and_decays():
    config = SaeConfig(samples=100, batch_rows=1, lr=1.0, warm_up=0.1, decay=0.2)
    assert [config.lr_at(step) for step in (0, 4, 9, 50, 80)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert config.lr_at(90) == pytest.approx(0.5)
    assert 0 < config.lr_at(99) < 0.06


@BOTH
def test_config_round_trips_as_plain_values(config):
    assert SaeConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SaeConfig(samples=0), "samples is 0, wanted at least 1"),
        (lambda: SaeConfig(lr=0.0), "lr is 0.0, wanted a finite number above 0"),
        (lambda: SaeConfig(lr=math.inf), "lr is inf, wanted a finite number above 0"),
        (
            lambda: SaeConfig(family=ReluL1(l1=math.inf)),
            "family.l1 is inf, wanted a finite number",
        ),
        (lambda: SaeConfig(warm_up=0.5, decay=0.6), "warm_up is 0.5 and decay 0.6"),
        (lambda: SaeConfig(family=BatchTopK(k=99), d_sae=64), "family.k is 99 but d_sae is 64"),
        (
            lambda: SaeConfig.from_dict({"family": {"name": "ica"}}),
            r"family 'ica' is not known; there are \['batch_topk', 'gated', ",
        ),
        (
            lambda: SaeConfig.from_dict({"family": {"name": "relu_l1", "k": 3}}),
            r"ReluL1 has no \['k'\]",
        ),
        (lambda: a_trainer(BATCH_TOPK, TRAIN[0]), r"train rows have shape \(16,\)"),
        (lambda: a_trainer(BATCH_TOPK, TRAIN[:0]), r"train rows have shape \(0, 16\)"),
        (lambda: a_trainer(BATCH_TOPK, TRAIN.astype(int)), "train rows are int64, wanted float16"),
        (lambda: a_trainer(BATCH_TOPK, TRAIN[:, :7]), "held-out rows are 16 wide but train rows 7"),
        (lambda: a_trainer(BATCH_TOPK, np.full_like(TRAIN, 1)), "all 1000 train rows are equal"),
        (
            lambda: a_trainer(BATCH_TOPK, np.where(TRAIN > 9, np.inf, TRAIN).astype(np.float16)),
            "train rows hold non-finite values",
        ),
    ],
)
def test_wrong_input_is_refused_with_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_checkpoint_of_another_run_is_refused():
    state = a_trainer(BATCH_TOPK).state_dict()
    with pytest.raises(ValueError, match="checkpoint is of another run"):
        a_trainer(RELU_L1).load_state_dict(state)
    with pytest.raises(ValueError, match="checkpoint is of another run"):
        a_trainer(BATCH_TOPK, seed=1).load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"checkpoint is of other rows \(normalisation, train differ\)"
    ):
        a_trainer(BATCH_TOPK, TRAIN + np.float16(1)).load_state_dict(state)


def test_checkpoint_of_rows_in_another_order_is_refused():
    # mean, scale and shape are the same, and so was once what a checkpoint knew of its rows
    state = a_trainer(RELU_L1).state_dict()
    with pytest.raises(ValueError, match=r"other rows \(held-out differ\)"):
        a_trainer(RELU_L1, held_out=HELD_OUT[::-1]).load_state_dict(state)
    swapped = TRAIN.copy()
    swapped[[3, 700]] = swapped[[700, 3]]
    known = normalisation(TRAIN)
    one, other = (
        Trainer(RELU_L1, rows, HELD_OUT, site="x", seed=0, known=known) for rows in (TRAIN, swapped)
    )
    with pytest.raises(ValueError, match=r"other rows \(train differ\)"):
        other.load_state_dict(one.state_dict())


TARGET_ROWS = TRAIN[:, :5] * 2
TARGETS = Targets(train_NO=TARGET_ROWS, held_out_NO=HELD_OUT[:, :5] * 2, site="lstm.c")
BEFORE_N = np.arange(-1, len(TRAIN) - 1)
TEMPORAL = replace(BATCH_TOPK, family=Temporal(k=2, slow=0.3))


@pytest.mark.parametrize(
    ("config", "more"),
    [(BATCH_TOPK, {"targets": TARGETS}), (TEMPORAL, {"before_N": BEFORE_N})],
    ids=["transcoder", "temporal"],
)
def test_resumed_run_with_more_inputs_equals_uninterrupted_one_bit_for_bit(config, more):
    def begun(**changed):
        return Trainer(config, TRAIN, HELD_OUT, site="lstm.h", seed=0, **{**more, **changed})

    whole, first, second = begun(), begun(), begun()
    first.advance(13)
    second.load_state_dict(first.state_dict())
    for trainer in (whole, second):
        trainer.advance(config.num_steps)
    assert second.dictionary().to_bytes() == whole.dictionary().to_bytes()

    other = (
        {"targets": replace(TARGETS, train_NO=TARGET_ROWS + np.float16(1))}
        if "targets" in more
        else {"before_N": np.roll(BEFORE_N, 1)}
    )
    name = "train targets" if "targets" in more else "before_N"
    with pytest.raises(ValueError, match=rf"other rows \(.*{name} differ\)"):
        begun(**other).load_state_dict(first.state_dict())


@pytest.mark.parametrize("options", [{"known": normalisation(TRAIN)}, {}], ids=["known", "plain"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_non_finite_rows_are_named_whether_or_not_they_are_normalised(options, dtype):
    config = replace(RELU_L1, normalise=bool(options))
    for bad in (np.nan, np.inf):
        broken = TRAIN.astype(dtype)
        broken[412, 3] = bad
        with pytest.raises(ValueError, match=r"train rows hold non-finite .* row 412 of 1000"):
            Trainer(config, broken, HELD_OUT, site="x", seed=0, **options)
        with pytest.raises(ValueError, match=r"held-out rows hold non-finite"):
            Trainer(config, TRAIN, broken, site="x", seed=0, **options)
    broken = TRAIN[:, :5].astype(dtype)
    broken[7] = np.nan
    targets = replace(TARGETS, train_NO=broken)
    with pytest.raises(ValueError, match=r"train lstm.c rows hold non-finite .* row 7 "):
        Trainer(config, TRAIN, HELD_OUT, site="x", seed=0, targets=targets, **options)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_on_the_device_are_the_rows_that_are_gathered(dtype):
    x_ND, normal, device = TRAIN.astype(dtype), normalisation(TRAIN), torch.device("cpu")
    gathered = Loader(x_ND, normal, device)
    resident = Loader(x_ND, normal, device, resident=True)
    assert (gathered.is_resident, resident.is_resident) == (False, True)
    for rows_B in (np.arange(700), np.array([999, 0, 5])):
        wanted = (torch.from_numpy(x_ND[rows_B]).float() - normal.mean_D) / normal.scale
        assert torch.equal(gathered.load(rows_B), wanted)
        assert torch.equal(resident.load(rows_B), wanted)


@pytest.mark.parametrize("error", [3e-7, 2e-3])
def test_faster_products_hold_for_one_run_only_where_they_are_exact(monkeypatch, caplog, error):
    seen = []
    config = replace(RELU_L1, encoder_precision="float32_fast", samples=256)
    monkeypatch.setattr(precision, "medium_error", lambda: error)
    monkeypatch.setattr(
        Trainer,
        "_advance_once",
        lambda self: seen.append(torch.get_float32_matmul_precision()),
    )
    precision.is_exact.cache_clear()
    with caplog.at_level("INFO", logger=precision.__name__):
        a_trainer(config).advance(1)
    precision.is_exact.cache_clear()
    assert seen == ["medium" if error < 1e-5 else "highest"]
    assert torch.get_float32_matmul_precision() == "highest"
    assert ("faster matrix products: on" if error < 1e-5 else "products: off") in caplog.text


def test_error_of_the_faster_backend_is_measured_and_leaves_no_trace():
    assert 0 <= precision.medium_error() < 0.01
    assert torch.get_float32_matmul_precision() == "highest"
