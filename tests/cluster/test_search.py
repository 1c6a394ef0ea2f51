"""Searches over dictionaries of a small recording: a row for every trial, a front, and the one that is kept."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster import dictionaries, policies, recordings, search
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.search import Runner, SearchConfig
from cluster.staging import Split, read_held_out_labels, stage
from cluster.store import Store
from cluster.studio import Studio
from cluster.sweep import Halving
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.training import SaeConfig, Trainer
from interp.policies.bundle import PolicyBundle
from interp.policies.sb3_recurrent import Sb3RecurrentArchitecture, Sb3RecurrentPolicy
from interp.worlds.gymnasium import GymnasiumFactory
from jobs.sweep import trials_table

WORLD = GymnasiumFactory.load("gym:CartPole-v1?mask=1,3&max_steps=40")
BASE = SaeConfig(family=BatchTopK(k=2), d_sae=24, samples=6000, batch_rows=64, reports=4, lr=1e-2)
SPLIT = Split(held_out_fraction=0.4, salt="search")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    store = Store.open(tmp_path_factory.mktemp("search"))
    architecture = Sb3RecurrentArchitecture(
        num_observations=4, num_actions=2, hidden=8, critic="shared"
    )
    network = Sb3RecurrentPolicy(architecture)
    bundle = PolicyBundle.of(architecture, network.state_dict()).untrained(seed=0)
    card = policies.save(store, bundle, name="small", run="t-0", step=0, world=WORLD.name)
    plan = plan_recording(store, card.policy_id, WORLD, RecordingConfig(num_episodes=48))
    recordings.begin(store, plan)
    studio = Studio(store)
    for shard in plan.shards:
        studio.run(RecordShard(plan=plan, shard=shard, factory=WORLD))
    recordings.commit(store, plan)
    return store, plan.recording_id


def searched(recorded, config, max_concurrent=2, **options):
    store, recording_id = recorded
    runner = Runner(max_concurrent=max_concurrent, **options)
    return search.run_search(store, recording_id, config, split=SPLIT, runner=runner)


def figures(result):
    """All that must not depend on when and where it was run; as text, in which nan equals nan."""
    return str(result.trials.drop_columns("trial_s").to_pylist())


GRID = SearchConfig(
    space={
        "family.name": ["batch_topk", "relu_l1"],
        "family.k": [1, 3],
        "family.l1": [0.5],
        "site": ["lstm.h", "lstm.c"],
        "seed": [0, 5],
    },
    base=BASE,
    stability_seeds=1,
    target_l0=(2.0, 4.0),
)


@pytest.mark.ray
def test_every_trial_of_a_grid_is_a_row_and_the_chosen_one_is_in_the_store(ray_session, recorded):
    result = searched(recorded, GRID, tensorboard=True)
    rows = result.trials.to_pylist()
    assert len(rows) == 12
    assert {(row["site"], row["family.name"], row["seed"]) for row in rows} == {
        (site, family, seed)
        for site in ("lstm.h", "lstm.c")
        for family in ("batch_topk", "relu_l1")
        for seed in (0, 5)
    }
    for row in rows:
        assert row["is_whole"]
        assert row["curve.step"] == sorted(row["curve.step"])
        assert row["curve.fvu"][-1] == row["fvu"]
        assert 0 <= row["coverage"] <= 1
        assert row["batch_rows"] == 64
    chosen = rows[result.chosen]
    assert 2 <= chosen["l0"] <= 4
    in_range = [row["fvu"] for row in rows if 2 <= row["l0"] <= 4]
    assert chosen["fvu"] == min(in_range)
    assert result.rule == "lowest FVU among trials with 2 to 4 latents a row"
    for index in result.front:
        assert not any(
            other["fvu"] < rows[index]["fvu"]
            and other["l0"] < rows[index]["l0"]
            and other["coverage"] > rows[index]["coverage"]
            for other in rows
        )
    store, _ = recorded
    assert dictionaries.load(store, result.entry.dict_id).fvu == chosen["fvu"]
    assert result.stability is not None
    assert result.stability.num_dictionaries == 2
    assert -1 <= result.stability.chance <= result.stability.mcc <= 1.0001
    assert "->" in str(
        [cell for column in trials_table(result, "t").columns for cell in column.cells]
    )
    events = list(store.workspace("sweeps").rglob("events.out.tfevents.*"))
    assert len(events) >= 12

    again = search.find(store, result.search_id)
    assert again == replace(result, trials=again.trials)
    assert again.trials.equals(result.trials)


@pytest.mark.ray
def test_coverage_is_that_of_the_held_out_rows(ray_session, recorded):
    store, recording_id = recorded
    names, labels_ML = read_held_out_labels(store, recording_id, SPLIT)
    held_out = np.load(stage(store, recording_id, "lstm.h", SPLIT).held_out_path)
    assert labels_ML.shape == (len(held_out), len(names))
    config = replace(
        GRID, space={}, site="lstm.h", stability_seeds=0, target_l0=None, coverage_auroc=0.501
    )
    easy = searched(recorded, config).trials.to_pylist()[0]
    hard = searched(recorded, replace(config, coverage_auroc=0.999)).trials.to_pylist()[0]
    assert easy["fvu"] == hard["fvu"]
    assert easy["coverage"] > hard["coverage"]


@pytest.mark.ray
def test_halving_ends_the_worse_of_the_equally_sparse(ray_session, recorded):
    config = replace(
        GRID,
        space={"lr": [1e-2, 8e-3, 1e-5, 2e-5, 1e-5 / 2]},
        site="lstm.h",
        stability_seeds=0,
        target_l0=None,
        halving=Halving(rungs=(0.25,), factor=2),
    )
    result = searched(recorded, config, max_concurrent=1)
    rows = result.trials.to_pylist()
    assert rows[0]["is_whole"]  # who comes first has nobody to be worse than
    ended = [row for row in rows if not row["is_whole"]]
    assert {row["lr"] for row in ended} >= {1e-5, 2e-5, 1e-5 / 2}
    for row in ended:
        assert len(row["curve.step"]) < 4
        assert np.isnan(row["coverage"])
    assert rows[result.chosen]["is_whole"]
    store, _ = recorded
    shutil.rmtree(store.workspace("sweeps"))
    shutil.rmtree(Path(store.url, "sweeps", result.search_id))
    same = searched(recorded, config, max_concurrent=1)
    assert figures(same) == figures(result)


@pytest.mark.ray
def test_temporal_trials_are_shown_the_steps_of_the_recording(ray_session, recorded):
    store, recording_id = recorded
    space = {"family.name": ["temporal"], "family.k": [2], "family.contrast": [0.0, 5.0]}
    config = replace(GRID, space=space, site="lstm.h", stability_seeds=1, target_l0=None)
    result = searched(recorded, config)
    without, with_contrast = result.trials.to_pylist()
    assert without["curve.loss"] != with_contrast["curve.loss"]
    staged = stage(store, recording_id, "lstm.h", SPLIT, with_before=True)
    train, held_out = (np.load(path) for path in (staged.train_path, staged.held_out_path))
    before_N = np.load(staged.before_path)
    assert (before_N >= 0).mean() > 0.9
    candidate = config.checked_space().grid()[result.chosen]
    torch.set_num_threads(1)
    trainer = Trainer(candidate.config, train, held_out, site="lstm.h", seed=0, before_N=before_N)
    *_, last = trainer.run()
    assert last.fvu == result.trials.to_pylist()[result.chosen]["fvu"]


@pytest.mark.ray
def test_random_search_gives_the_same_trials_however_many_run_at_once(ray_session, recorded):
    config = replace(
        GRID,
        space={"lr": {"low": 1e-3, "high": 1e-2, "log": True}, "family.k": [1, 2, 3]},
        site="lstm.h",
        method="random",
        num_trials=3,
        stability_seeds=0,
        target_l0=None,
    )
    one = searched(recorded, config, max_concurrent=1)
    store, _ = recorded
    shutil.rmtree(store.workspace("sweeps"))
    shutil.rmtree(Path(store.url, "sweeps", one.search_id))
    two = searched(recorded, config, max_concurrent=2)
    assert figures(two) == figures(one)
    other = searched(recorded, replace(config, seed=1), max_concurrent=2)
    assert other.trials.column("lr").to_pylist() != one.trials.column("lr").to_pylist()


@pytest.mark.ray
def test_gpus_that_are_not_there_are_refused_before_anything_trains(ray_session, recorded):
    with pytest.raises(ValueError, match=r"gpus_per_trial is 0.5 but this Ray has 0 GPUs; take 0"):
        searched(recorded, replace(GRID, seed=9), gpus_per_trial=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"girth": [1]}}, r"a space has no field \['girth'\]"),
        ({"space": {"lr": {"low": 1.0, "high": 2.0}}}, r"lr is a range, of which there is no grid"),
        ({"num_trials": 0}, r"num_trials is 0, wanted at least 1"),
        ({"coverage_auroc": 0.4}, r"coverage_auroc is 0.4"),
        ({"stability_seeds": -1}, r"stability_seeds is -1"),
    ],
)
def test_search_that_means_nothing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(GRID, **change)
