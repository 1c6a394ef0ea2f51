from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.sweep import StagedRows, SweepError, load_dictionary, sweep
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.metrics import measure
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.training import SaeConfig, Trainer, normalisation

CONFIG = SaeConfig(family=BatchTopK(k=4), d_sae=32, samples=4000, batch_rows=128, reports=4)
CONFIGS = [CONFIG, replace(CONFIG, family=ReluL1(l1=1.0)), replace(CONFIG, d_sae=48)]


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    generator = np.random.default_rng(0)
    codes = generator.exponential(size=(3000, 24)) * (generator.random((3000, 24)) < 0.1)
    x_ND = (codes @ generator.normal(size=(24, 16))).astype(np.float16)
    np.save(folder / "train.npy", x_ND[:2500])
    np.save(folder / "held_out.npy", x_ND[2500:])
    return {
        "train_path": folder / "train.npy",
        "held_out_path": folder / "held_out.npy",
        "site": "lstm.h",
        "seed": 0,
    }


def a_trainer(config, staged):
    """The same run without Ray; on one thread like a trial, for the last bits depend on it."""
    torch.set_num_threads(1)
    train, held_out = (np.load(staged[path]) for path in ("train_path", "held_out_path"))
    return Trainer(config, train, held_out, site=staged["site"], seed=staged["seed"])


@pytest.mark.ray
def test_sweep_gives_the_numbers_of_a_plain_trainer_with_one_or_two_at_once(
    ray_session, staged, tmp_path, capfd
):
    reports = []
    torch.set_num_threads(1)
    known = normalisation(np.load(staged["train_path"]))
    one = sweep(
        CONFIGS, **staged, known=known, storage_path=tmp_path / "1", name="a", max_concurrent=1
    )
    two = sweep(
        CONFIGS,
        **staged,
        storage_path=tmp_path / "2",
        name="a",
        max_concurrent=2,
        on_progress=reports.append,
    )
    for config, first, second in zip(CONFIGS, one, two, strict=True):
        assert first.config == second.config == config
        assert load_dictionary(first).to_bytes() == load_dictionary(second).to_bytes()
    assert len({trial.fvu for trial in one}) == 3

    trainer = a_trainer(CONFIG, staged)
    *_, last = trainer.run()
    assert (one[0].fvu, one[0].l0, one[0].dead_fraction) == (last.fvu, last.l0, last.dead_fraction)
    assert load_dictionary(one[0]).to_bytes() == trainer.dictionary().to_bytes()
    held_out = np.load(staged["held_out_path"])
    assert measure(load_dictionary(one[0]), held_out).fvu == one[0].fvu

    for index in range(3):
        mine = [report for report in reports if report.trial == index]
        assert [report.progress.step for report in mine] == [8, 16, 24, 32]
        assert mine[-1].progress.done
        assert mine[-1].config == CONFIGS[index]
    assert (reports[-1].num_done, reports[-1].num_trials) == (3, 3)
    assert "trial" not in capfd.readouterr().out.lower()


@pytest.mark.ray
def test_stopped_sweep_resumes_to_the_same_numbers_and_a_finished_one_is_not_repeated(
    ray_session, staged, tmp_path
):
    # Long enough that the stop finds the first trial with checkpoints on disk.
    configs = [replace(CONFIG, samples=20_000, reports=10), CONFIGS[1]]

    def stop_midway(report):
        if report.trial == 0 and report.progress.step >= 100:
            raise RuntimeError("pulled the plug")

    stopped = {**staged, "storage_path": tmp_path / "stopped", "name": "b", "max_concurrent": 1}
    with pytest.raises(Exception, match="pulled the plug"):
        sweep(configs, **stopped, on_progress=stop_midway)

    steps = []
    resumed = sweep(
        configs,
        **stopped,
        on_progress=lambda report: steps.append((report.trial, report.progress.step)),
    )
    assert min(step for trial, step in steps if trial == 0) > 16, "the first trial started over"
    for trial, config in zip(resumed, configs, strict=True):
        whole = a_trainer(config, staged)
        whole.advance(config.num_steps)
        assert load_dictionary(trial).to_bytes() == whole.dictionary().to_bytes()

    repeated = []
    assert sweep(configs, **stopped, on_progress=repeated.append) == resumed
    assert repeated == []


@pytest.mark.ray
def test_failed_trial_is_named_with_its_cause(ray_session, staged, tmp_path):
    broken = np.load(staged["train_path"])
    broken[7] = np.inf
    np.save(tmp_path / "broken.npy", broken)
    with pytest.raises(
        SweepError, match=r"(?s)1 of 1 trials failed.*trial 0.*train rows hold non-finite values"
    ):
        sweep(
            [CONFIG],
            **{**staged, "train_path": tmp_path / "broken.npy"},
            storage_path=tmp_path / "store",
            name="c",
        )


@pytest.mark.ray
def test_wrong_request_is_refused_before_any_trial_starts(ray_session, staged, tmp_path):
    request = {**staged, "storage_path": tmp_path, "name": "d"}
    with pytest.raises(ValueError, match="no config to train"):
        sweep([], **request)
    with pytest.raises(ValueError, match="max_concurrent is 0"):
        sweep(CONFIGS, **request, max_concurrent=0)
    np.save(tmp_path / "narrow.npy", np.zeros((5, 3), dtype=np.float16))
    with pytest.raises(ValueError, match="held-out rows are 3 wide but train rows 16"):
        sweep(CONFIGS, **{**request, "held_out_path": tmp_path / "narrow.npy"})


def test_node_with_other_rows_is_refused(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((5, 3), dtype=np.float16))
    staged = StagedRows.of(path)
    np.save(path, np.ones((5, 4), dtype=np.float16))
    with pytest.raises(ValueError, match="stage them again"):
        staged.open()
    path.unlink()
    with pytest.raises(ValueError, match="not on node"):
        staged.open()
