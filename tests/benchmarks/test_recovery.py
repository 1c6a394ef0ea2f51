"""The benchmark of recovery, without the libraries: figures that are ours, and sides that are named."""

import numpy as np
import pytest
import torch

from benchmarks.recovery.__main__ import Config, chosen, main, tell_apart
from benchmarks.recovery.judging import Learnt, Problem, judge
from benchmarks.recovery.ours import OURS
from interp.dictionaries.metrics import measure
from interp.dictionaries.planted import Planted, PlantedConfig
from interp.dictionaries.topk import TopK
from interp.dictionaries.training import SaeConfig, Trainer

TINY = {"samples": 2048, "pool_rows": 2000, "held_out_rows": 500, "seeds": 1}


def a_problem() -> Problem:
    truth = Planted(PlantedConfig(d_in=16, num_features=24, mean_active=3.0))
    train_ND, _ = truth.rows(2000, seed=0)
    held_out_MD, on_MG = truth.rows(500, seed=1)
    return Problem(truth=truth, train_ND=train_ND, held_out_MD=held_out_MD, on_MG=on_MG)


def test_every_library_is_measured_as_we_measure_ourselves() -> None:
    problem = a_problem()
    config = SaeConfig(family=TopK(k=3), d_sae=48, samples=4000, batch_rows=500, reports=1)
    trainer = Trainer(config, problem.train_ND, problem.held_out_MD, site="x", seed=0)
    list(trainer.run())
    ours = trainer.dictionary()
    learnt = Learnt(W_dec_FD=ours.W_dec, encode=ours.encode, decode=ours.decode)
    found, wanted = judge(problem, learnt), measure(ours, problem.held_out_MD)
    assert (found.fvu, found.l0) == pytest.approx((wanted.fvu, wanted.l0), rel=1e-5)
    assert found.dead_fraction == wanted.dead_fraction
    assert found.recovery == problem.truth.recovery(ours, problem.held_out_MD, problem.on_MG)


def test_the_truth_is_judged_to_be_the_truth() -> None:
    problem = a_problem()
    features_GD = torch.from_numpy(problem.truth.features_GD)
    on_MG = iter(torch.from_numpy(problem.on_MG).float().split(2000))
    learnt = Learnt(
        W_dec_FD=features_GD,
        encode=lambda _: next(on_MG),
        decode=lambda latents_BF: latents_BF @ features_GD,
    )
    assert judge(problem, learnt).recovery.verdict == "recovered"


def test_batches_take_every_row_once_before_any_twice() -> None:
    problem = a_problem()
    budget = type("B", (), {"seed": 3, "batch_rows": 500})()
    batches = problem.batches(budget)  # pyright: ignore[reportArgumentType]
    seen = torch.cat([next(batches) for _ in range(4)]).numpy()
    assert np.array_equal(np.sort(seen[:, 0]), np.sort(problem.train_ND[:, 0]))


def test_sides_are_found_by_a_part_of_their_name() -> None:
    assert chosen(Config(only="gated")) == ["SAELens gated, tuned (l1 3)", "Sparsight gated"]
    assert chosen(Config(sides="ours")) == list(OURS)
    with pytest.raises(ValueError, match=r"no side has 'gpt' in its name"):
        chosen(Config(only="gpt"))


def test_a_line_for_each_side(capsys: pytest.CaptureFixture[str]) -> None:
    main(Config(only="Sparsight topk", parts=("known",), **TINY))  # pyright: ignore[reportArgumentType]
    said = capsys.readouterr().out
    assert "MCC by chance 0.211" in said
    assert "Sparsight topk, exactly k" in said


def test_calling_recovered_what_cannot_be_recovered_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("interp.dictionaries.planted.RECOVERED_SHARE", 0.0)
    monkeypatch.setattr("benchmarks.recovery.__main__.IMPOSSIBLE", (("together", 4),))
    with pytest.raises(AssertionError, match=r"said to be recovered.*together"):
        tell_apart(Config(k=4, **TINY), 16, 24)  # pyright: ignore[reportArgumentType]
    assert "not steady over seeds" in capsys.readouterr().out
