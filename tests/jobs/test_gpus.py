"""GPUs of a whole study: who gets them, and that nobody waits for those that are not there."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cluster.laboratory import Laboratory
from cluster.recordings import Plan
from cluster.steering import Experiment
from cluster.store import Store
from interp.worlds.mettagrid import MettagridFactory
from jobs.main import main
from jobs.pipeline import _Pipeline
from jobs.progress import Reporter
from jobs.recipes import DemoPipelineConfig
from tests.cluster.test_recorder import add_policy

pytestmark = pytest.mark.mettagrid
FORAGE = MettagridFactory.load("forage")


class Enough(Exception):
    """What is asked for was seen."""


class Asked(Laboratory):
    """Keeps what it is asked for."""

    def record(self, plans: Sequence[tuple[Plan, Any]], *_: Any, **__: Any) -> Any:
        self.plans = [plan for plan, _ in plans]
        raise Enough

    def steer(self, experiments: Sequence[Experiment], note: Any = None) -> Any:
        self.experiments = experiments
        raise Enough


def pipeline(store: Store, **options: Any) -> tuple[_Pipeline, Asked]:
    laboratory = Asked(store, num_actors=1)
    config = DemoPipelineConfig(store=store.url, **options)
    mirror: Any = None  # nothing comes so far
    of = _Pipeline(config, laboratory, mirror, Reporter(Console(quiet=True)))
    of.factories = {FORAGE.name: FORAGE}
    return of, laboratory


@pytest.mark.parametrize(("gpus", "device"), [(0.0, "cpu"), (0.25, "cuda")])
def test_policies_are_recorded_and_steered_where_actors_have_gpus(
    store: Store, gpus: float, device: str
) -> None:
    of, asked = pipeline(store, gpus_per_actor=gpus)
    last: Any = SimpleNamespace(policy_id=add_policy(store))
    run: Any = SimpleNamespace(name="forage-s0", world=FORAGE.name, checkpoints=[last])
    with pytest.raises(Enough):
        of._record([run])
    assert [plan.config.get("device", "cpu") for plan in asked.plans] == [device]
    plan = SimpleNamespace(recording_id="r-0", inputs={"policy": "p-0"})
    scored: Any = SimpleNamespace(
        recorded=SimpleNamespace(
            run=run,
            policy_id=last.policy_id,
            factory=FORAGE,
            recording=SimpleNamespace(plan=plan),
            untrained=SimpleNamespace(plan=plan),
        ),
        dictionary=SimpleNamespace(dict_id="d-0"),
        concepts_id="c-0",
        latents=(),
    )
    with pytest.raises(Enough):
        of._steer([scored])
    assert [one.subject.device for one in asked.experiments] == [device]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("option", ["gpus-per-actor", "gpus-per-trial"])
def test_gpus_that_no_node_has_are_refused_before_anything_is_trained(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(tmp_path / "store")
    with pytest.raises(SystemExit) as ended:
        main(["pipeline", "demo", "--store", store.url, "--actors", "1", f"--{option}", "0.5"])
    assert ended.value.code == 2
    name = option.replace("-", "_")
    assert f"{name} is 0.5 but this Ray has 0 GPUs; take 0" in capsys.readouterr().err
    assert set(store.folders()) <= {"scratch"}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_ray_that_is_too_small_for_later_stages_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(tmp_path / "store")
    with pytest.raises(SystemExit) as ended:
        main(["pipeline", "demo", "--store", store.url, "--actors", "4"])
    assert ended.value.code == 2
    assert "the pool takes 4 of Ray's 4 CPUs" in capsys.readouterr().err
    assert set(store.folders()) <= {"scratch"}


def test_a_number_of_gpus_that_nobody_hands_out_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pipeline", "demo", "--store", str(tmp_path / "store"), "--gpus-per-trial", "1.5"])
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("|", " ").split())  # in a frame, and wrapped
    assert "gpus_per_trial is 1.5, wanted 0, a part of one GPU" in said
    assert not (tmp_path / "store").exists()
