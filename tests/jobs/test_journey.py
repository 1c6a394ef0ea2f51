"""The main job as a user runs it: policies of a W&B run, a store on S3, a mirror on W&B, in processes of their own."""

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.store import Store
from interp.study import Study
from jobs.recipes import DemoPipelineConfig
from tests.conftest import WANDB_CANARY
from tests.fakes.s3 import CANARY as S3_CANARY
from tests.fakes.wandb_client import Logged, log_run
from tests.fakes.wandb_server import WandbServer
from tests.jobs.small_study import FINDINGS, tables

pytestmark = [pytest.mark.mettagrid, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
RUN = "acme/foraging/abc123"
TINY = """
    --names hazard-s0 --study tiny --actors 2 --concepts-per-policy 1 --stability-seeds 1 --evaluate.num-episodes 10
    --record.num-episodes 40 --record.episodes-per-shard 8 --discover.discovery.max-clusters 8
    --discover.max-episodes 150
    --sweep.d-sae 64 --sweep.samples 40000 --sweep.k 8 16 --sweep.l1 1.0 --sweep.target-l0 4.0 40.0
    --score.num-permutations 1500 --score.min-auroc 0.5 --score.max-q-value 0.2
    --steer.selection-episodes 4 --steer.num-episodes 10 --steer.add-doses 0.0 2.0 --steer.clamp-doses 0.0
    --steer.ablate-doses 0.0 1.0
    --evolve.episodes-per-player 10
""".split()
"""`tiny` of small_study, in the words of the command line."""


class Watch:
    """Looks for a secret in the command line of every process of the machine."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self.found: set[str] = set()
        self._secrets = [secret.encode() for secret in secrets]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:
                    continue
                self.found |= {str(path) for secret in self._secrets if secret in line}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Short, because Ray's sockets lie in it."""
    folder = Path(f"/tmp/ray-{os.getpid()}")
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_policies_of_a_wandb_run_in_a_store_on_s3_give_the_findings_of_the_files(
    wandb_server: WandbServer,
    s3_url: str,
    finished: tuple[DemoPipelineConfig, Study],
    ray_folder: Path,
    tmp_path: Path,
) -> None:
    demo, study = finished
    there = Store.open(demo.store)
    names = ("weights.safetensors", "architecture.json", "card.json")
    log_run(
        RUN,
        [
            Logged(
                name="hazard",
                files={
                    name: str(there.local_path(f"policies/{policy.policy_id}/{name}"))
                    for name in names
                },
                metadata={"agent_step": policy.step},
            )
            for policy in reversed(study.policies)
        ],
    )

    with Watch((WANDB_CANARY, S3_CANARY)) as watch:
        job = subprocess.run(
            [
                *(sys.executable, "-m", "jobs.main", "pipeline", "trained", *TINY),
                *("--policies", RUN, "--store", s3_url),
            ],
            capture_output=True,
            text=True,
            timeout=600,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "SPARSIGHT_CACHE": str(tmp_path / "cache"),
                "RAY_TMPDIR": str(ray_folder),
                "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
            },
        )
    assert job.returncode == 0, job.stderr + job.stdout
    assert job.stdout.splitlines()[-1] == "wandb: synced"

    # the same, to the bit
    store = Store.open(s3_url)
    assert tables(store, FINDINGS) == tables(there, FINDINGS)

    # every checkpoint was downloaded once
    assert wandb_server.count("GET /storage") == 5 * (1 + len(names))
    model = wandb_server.model
    found = Study.from_json(store.get("studies/tiny/study.json").decode())
    lineage = {
        kind: [model.versions(table_id)[0] for table_id in getattr(found, kind)]
        for kind in (
            *("concepts", "groups", "findings", "effects", "verdicts", "lineages", "windows"),
            *("clips", "splices"),
        )
    }
    (concepts,), (effects,) = lineage["concepts"], lineage["effects"]
    policy = model.versions("hazard")[0]  # the last checkpoint was logged first
    recordings = {model.versions(one.recording_id)[0]["id"] for one in study.recordings}
    dictionaries = {model.versions(one.dict_id)[0]["id"] for one in study.dictionaries}
    assert recordings | dictionaries == inputs_of(concepts)
    own = {model.versions(study.recordings[0].recording_id)[0]["id"]}
    own |= {model.versions(study.dictionaries[0].dict_id)[0]["id"]}
    steered = {policy["id"], concepts["id"], *own}
    (untrained,) = inputs_of(effects) - steered
    assert steered < inputs_of(effects)
    assert untrained in {version["id"] for version in model.versions("hazard")}
    assert inputs_of(model.versions(found.verdicts[0])[0]) == inputs_of(effects)
    assert policy["id"] in inputs_of(model.versions(study.recordings[0].recording_id)[0])
    (report,) = model.versions("report-tiny")
    assert {one["id"] for tables_ in lineage.values() for one in tables_} == inputs_of(report)
    assert {"report.html", "study.json"} <= model.content(report).keys()
    cards = {name for name in model.content(report) if name.startswith("cards/")}
    assert {f"studies/tiny/{name}" for name in cards} == set(store.list("studies/tiny/cards"))
    assert cards
    assert model.content(concepts)["concepts.parquet"] == there.get(
        f"concepts/{study.concepts[0]}.parquet"
    )
    curves = [run for run in model.runs.values() if run["jobType"] == "sae"]
    assert len(curves) == 3
    assert all(len({row["_step"] for row in run["_history"]}) > 3 for run in curves)
    figures = [name for name in model.run("report of tiny")["_files"] if "figures" in name]
    assert len(figures) >= 4

    # no secret leaves the environment
    assert watch.found == set()
    secrets = (
        WANDB_CANARY.encode(),
        base64.b64encode(f"api:{WANDB_CANARY}".encode()),
        S3_CANARY.encode(),
    )
    told = {
        "stdout": job.stdout.encode(),
        "stderr": job.stderr.encode(),
        **{key: store.get(key) for key in store.list()},
        **{
            str(path.relative_to(ray_folder)): path.read_bytes()
            for path in ray_folder.rglob("*")
            if path.is_file()
        },
    }
    assert len(told) > 100
    assert [(place, s) for place, text in told.items() for s in secrets if s in text] == []


def inputs_of(artifact: dict) -> set[str]:
    """Ids of the artifacts that the run behind an artifact has used."""
    return {one["id"] for one in artifact["createdBy"]["_inputs"]}
