import json
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.trajectories import choose, last_number, list_local, open_run
from tests.cluster.tracking.test_source import bundle

STEPS = [0, 10, 20, 40, 80, 160, 320, 640]


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ("all", STEPS),
        ("last", [640]),
        ("log:1", [640]),
        ("log:2", [0, 640]),
        ("log:4", [0, 10, 80, 640]),
        ("log:8", STEPS),
        ("log:99", STEPS),
        ("20:80", [20, 40, 80]),
        (":20", [0, 10, 20]),
        ("160:", [160, 320, 640]),
        (":", STEPS),
    ],
)
def test_a_choice_keeps_the_order_of_training(choice, chosen):
    assert choose(STEPS, STEPS, choice) == chosen


@pytest.mark.parametrize("choice", ["", "log:0", "log:", "first", "1-2", "log:1000000000"])
def test_a_choice_of_no_kind_is_refused_with_the_kinds(choice):
    with pytest.raises(ValueError, match="log:N"):
        choose(STEPS, STEPS, choice)


def test_a_range_without_checkpoints_says_where_they_are():
    with pytest.raises(ValueError, match=r"none of the 8 .* 0, 10, 20, 40"):
        choose(STEPS, STEPS, "700:900")


def test_evenly_spaced_steps_are_thinned_on_a_logarithmic_scale():
    steps = list(range(0, 1001, 10))
    chosen = choose(steps, steps, "log:6")
    assert chosen[0] == 0
    assert chosen[-1] == 1000
    ratios = [b / a for a, b in pairwise(chosen[1:])]
    assert max(ratios) / min(ratios) < 1.3


@pytest.mark.parametrize(
    ("label", "number"),
    [
        ("model_000200.pt", 200),
        ("run7:v12", 12),
        ("final.pt", 0),
        ("s3_epoch4_step900.zip", 900),
        ("ckpt.100", 100),
    ],
)
def test_the_last_number_of_a_label_is_its_place(label, number):
    assert last_number(label) == number


def test_a_folder_of_many_is_ordered_by_number_and_not_by_name(tmp_path):
    for name in ("model_10.pt", "model_9.pt", "model_100.pt", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "model_20").mkdir()
    (tmp_path / "model_20" / "weights.safetensors").touch()
    found = list_local("x", tmp_path)
    labels = [one.label for one in found.checkpoints]
    assert labels == ["model_9.pt", "model_10.pt", "model_20", "model_100.pt"]
    assert found.name == tmp_path.name


def test_a_folder_of_one_checkpoint_is_one(tmp_path):
    for name in ("weights.safetensors", "trainer_state.pt"):
        (tmp_path / name).touch()
    assert len(list_local("x", tmp_path).checkpoints) == 1


def test_a_checkpoint_of_rllib_is_one_among_those_of_its_run(tmp_path):
    for number in (12, 9):
        (tmp_path / f"checkpoint_{number:06}").mkdir()
        (tmp_path / f"checkpoint_{number:06}" / "rllib_checkpoint.json").touch()
    found = list_local("x", tmp_path)
    assert [one.order for one in found.checkpoints] == [9, 12]
    (one,) = list_local("x", tmp_path / "checkpoint_000012").checkpoints
    assert one.order == 12
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "module_state.pkl").touch()
    assert len(list_local("x", tmp_path / "module").checkpoints) == 1


def test_nothing_to_open_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        list_local("gone.pt", tmp_path / "gone.pt")
    with pytest.raises(FileNotFoundError, match="no policy in"):
        list_local("x", tmp_path)


def bundles(folder: Path, *named: tuple[str, int, dict]) -> str:
    """A folder of checkpoints: name, seed of its weights, what its card says."""
    for name, seed, said in named:
        policy = bundle(seed)
        (folder / name).mkdir(parents=True)
        (folder / name / "weights.safetensors").write_bytes(policy.weights)
        (folder / name / "architecture.json").write_text(json.dumps(policy.architecture))
        (folder / name / "card.json").write_text(json.dumps({"world": "forage", **said}))
    return str(folder)


def test_a_policy_of_unknown_step_is_not_its_own_untrained_control(store, tmp_path):
    run = open_run(store, bundles(tmp_path / "run", ("final", 1, {})))
    assert [card.step for card in run.checkpoints] == [0]
    assert run.untrained is None
    told = open_run(store, bundles(tmp_path / "told", ("a", 2, {"step": 0}), ("b", 3, {"step": 5})))
    assert told.untrained == told.checkpoints[0]


def test_different_policies_of_one_step_are_refused_and_equal_ones_are_one(store, tmp_path):
    uri = bundles(tmp_path / "run", ("best", 1, {}), ("last", 2, {}))
    with pytest.raises(ValueError, match=r"best and last differ but are both at step 0"):
        open_run(store, uri)
    same = bundles(tmp_path / "same", ("best_5", 1, {}), ("last_5", 1, {}))
    assert len(open_run(store, same).checkpoints) == 1
    dotted = bundles(tmp_path / "dotted", *((f"ckpt.{n}", n, {}) for n in (100, 200, 300)))
    assert [card.step for card in open_run(store, dotted).checkpoints] == [100, 200, 300]


def test_a_policy_that_is_in_the_store_takes_the_role_that_it_has_now(store, tmp_path):
    uri = bundles(tmp_path / "run", ("model_7", 1, {}))
    assert open_run(store, uri, world="forage").world == "forage"
    again = open_run(store, uri, world="hazard", name="other")
    (card,) = again.checkpoints
    assert (again.world, card.world, card.name) == ("hazard", "hazard", "other")
