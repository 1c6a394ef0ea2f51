"""Trials and actors land where Ray has GPUs for them, as many at once as fit; what no node can give is refused."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.arms import Subject
from cluster.clips import ShowEdits
from cluster.dictionaries import dictionary_id, sweep_id
from cluster.laboratory import Laboratory
from cluster.placement import Device, check_gpus, take_device
from cluster.recorder import plan_recording
from cluster.search import SearchConfig, search_id
from cluster.staging import Split
from cluster.store import Store
from cluster.studio import Studio
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.training import SaeConfig
from interp.policies import factories
from interp.policies.policy import PolicyNetwork
from interp.worlds.mettagrid import MettagridFactory
from jobs.recipes import DemoPipelineConfig
from tests.cluster.gpu_nodes import NAME, RECORDING, WORLD, own_policy

DEVICES: tuple[Device, ...] = ("cpu", "cuda")
SAE = SaeConfig(family=BatchTopK(k=2), d_sae=16, samples=2048)


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test allows to build networks is allowed in that test."""
    monkeypatch.setattr(factories, "_allowed", {})


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was seen on three nodes of which two have a GPU."""
    folder = tmp_path_factory.mktemp("gpus")
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "RAY_AUTH_TOKEN_PATH": str(folder / "auth_token"),
        "RAY_AUTH_MODE": "token",
        "PYTHONPATH": str(root),
    }
    (folder / "auth_token").write_text("ab" * 32)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.gpu_nodes", str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, complaints = process.communicate(timeout=400)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, complaints[-3000:]
    return json.loads(said.splitlines()[-1])


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(420)
def test_trials_land_on_nodes_with_a_gpu_and_are_told_which(seen: dict[str, Any]) -> None:
    assert len(seen["with_gpu"]) == 2
    assert seen["trials"]
    assert {trial["node"] for trial in seen["trials"]} <= set(seen["with_gpu"])
    assert {trial["visible"] for trial in seen["trials"]} == {"0"}


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(420)
def test_as_many_trials_share_a_gpu_as_its_parts_allow(seen: dict[str, Any]) -> None:
    most = 0
    for node in seen["with_gpu"]:
        steps = [trial for trial in seen["trials"] if trial["node"] == node]
        for step in steps:
            at_once = {
                other["pid"] for other in steps if other["began"] <= step["began"] < other["ended"]
            }
            assert len(at_once) <= 2
            most = max(most, len(at_once))
    assert most == 2, "no two trials ever shared a GPU"


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(420)
def test_actors_that_ask_for_a_gpu_get_one_each(seen: dict[str, Any]) -> None:
    assert {node for node, _ in seen["actors"]} == set(seen["with_gpu"])
    assert {visible for _, visible in seen["actors"]} == {"0"}


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(420)
def test_what_no_node_can_give_is_refused_by_name_before_work_starts(seen: dict[str, Any]) -> None:
    two, five_halves, three, uneven = seen["refusals"]
    assert "gpus_per_trial is 2, but no node of this Ray has that many" in two
    assert "1 GPUs with 4 CPUs" in two
    assert "5 processes with gpus_per_trial 0.5" in five_halves
    assert "3 processes with gpus_per_trial 1" in three
    assert "gpus_per_trial is 1.5, wanted 0, a part of one GPU" in uneven
    assert "gpus_per_trial is 2, but no node" in seen["refused_sweep"]
    assert not seen["refused_sweep_began"]
    assert "3 processes with gpus_per_actor 1" in seen["refused_pool"]


@pytest.mark.parametrize("gpus", [-0.5, 1.5, float("nan"), float("inf")])
def test_a_number_of_gpus_that_ray_hands_out_to_nobody(gpus: float, store: Store) -> None:
    with pytest.raises(ValueError, match=r"gpus_per_trial is .*wanted 0, a part of one GPU"):
        check_gpus("gpus_per_trial", gpus)
    for kind in (partial(Laboratory, store), DemoPipelineConfig):
        with pytest.raises(ValueError, match=r"gpus_per_actor is"):
            kind(gpus_per_actor=gpus)
        with pytest.raises(ValueError, match=r"gpus_per_trial is"):
            kind(gpus_per_trial=gpus)


def test_a_part_of_a_gpu_is_that_part_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", taken.append)
    assert take_device("cuda", 0.25) == torch.device("cuda")
    assert take_device("cuda", 1.0) == torch.device("cuda")
    assert take_device("cpu", 0.0) == torch.device("cpu")
    assert taken == [0.25]


def test_a_gpu_of_which_torch_knows_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"PyTorch .* finds no CUDA on node .*take 0 GPUs"):
        take_device("cuda", 0.5)
    with pytest.raises(ValueError, match=r"Ray gave this process 0.5 GPUs"):
        Studio(store, gpus=0.5)


def test_a_plan_for_another_device_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"planned for device cuda, but actors compute on cpu"):
        Studio(store).policy("p-0", "cuda")


def test_an_actor_with_a_gpu_uses_it_for_what_was_planned_for_it_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    moved: list[str] = []
    monkeypatch.setattr(PolicyNetwork, "move", lambda self, device: moved.append(str(device)))
    policy_id = own_policy(store)
    studio = Studio(store, [NAME], gpus=1.0)
    on_processor = studio.policy(policy_id)
    assert moved == []
    assert studio.policy(policy_id, "cuda") is not on_processor
    assert moved == ["cuda"]
    assert studio.policy(policy_id) is on_processor


def test_what_is_computed_on_a_gpu_has_an_id_of_its_own(store: Store) -> None:
    policy_id = own_policy(store)
    plans = {
        device: plan_recording(store, policy_id, WORLD, RECORDING, device=device)
        for device in DEVICES
    }
    assert "device" not in plans["cpu"].config, "ids of what there was before stay"
    assert plans["cuda"].config["device"] == "cuda"
    asked: list[Callable[[Device], str]] = [
        lambda device: plans[device].recording_id,
        lambda device: dictionary_id("r-0", "h", SAE, split=Split(), seed=0, device=device),
        lambda device: sweep_id("r-0", "h", [SAE], split=Split(), seed=0, device=device),
        lambda device: search_id(
            "r-0", SearchConfig(space={"d_sae": [16]}), split=Split(), device=device
        ),
        lambda device: clips_on(device).question.id,
    ]
    for identity in asked:
        assert identity("cpu") != identity("cuda")


def clips_on(device: Device) -> ShowEdits:
    subject = Subject(
        policy_id="p-0", factory=MettagridFactory.load("forage"), labels=(), device=device
    )
    return ShowEdits(subject=subject, claimed=(), env_seeds=(1,), registration_id="g-0")
