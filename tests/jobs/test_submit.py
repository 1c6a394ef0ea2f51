"""Verbs handed in to a cluster: what is refused here, and what a head of Ray with a token does with the rest."""

import base64
import json
import os
import runpy
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from ray.job_submission import JobStatus

from cluster import recordings, runtime
from cluster.handed_in import UNAUTHENTICATED
from cluster.store import Store
from cluster.submission import Head
from jobs import jobs, submit
from jobs.main import VERBS, main
from tests.cluster.test_recordings import make_plan
from tests.cluster.test_submission import job as job_details
from tests.fakes.s3 import forget_connections
from tests.jobs.ray_head import RayHead, ray_head

REMOTE = ["--address", "http://head.example:8265"]
BANK = ["sequences", "bank", "--world", "gym:CartPole-v1?max_steps=20", "--actors", "1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ab" * 32)
    return tmp_path


def planned(*arguments: str, is_local: bool = True):
    own, verb = submit.divide(arguments)
    return submit.plan(submit.tyro.cli(submit.Config, args=own), verb, is_local=is_local)


# --- every verb is a module


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_runs_as_a_module(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _ = VERBS[verb]
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    assert f"sparsight {verb}" in capsys.readouterr().out


# --- what is sent, and what is refused before anything is


def test_options_of_both_verbs_may_be_mixed() -> None:
    typed = "--detach record --policy p-1 --address=http://h:1 --need A --store s3://bkt/s steps:stride --file x.py"
    own, verb = submit.divide([*typed.split(), "--", "--address", "theirs"])
    assert own == ["--detach", "--address=http://h:1", "--need", "A", "--file", "x.py"]
    assert verb == [
        *(
            "record",
            "--policy",
            "p-1",
            "--store",
            "s3://bkt/s",
            "steps:stride",
            "--address",
            "theirs",
        )
    ]
    with pytest.raises(ValueError, match=r"--need wants a value"):
        submit.divide(["record", "--need"])


def test_the_entrypoint_is_the_verb_as_it_was_typed(here: Path) -> None:
    request = planned(
        *(*BANK, "--store", "s3://bkt/s", "--need", "WANDB_API_KEY", "--env", "SPARSIGHT_LOG=json"),
        is_local=False,
    )
    assert request.entrypoint == (
        "python -m jobs.main sequences bank --world 'gym:CartPole-v1?max_steps=20' --actors 1 --store s3://bkt/s"
    )
    assert request.environment == {
        "OMP_NUM_THREADS": "1",
        "SPARSIGHT_LOG": "json",
        "SPARSIGHT_NEEDS_VARIABLES": "WANDB_API_KEY",
    }
    assert request.metadata == {"verb": "sequences", "store": "s3://bkt/s"}


def test_a_folder_is_a_store_only_of_a_head_on_this_machine(here: Path) -> None:
    with pytest.raises(ValueError, match=r"--store \./s: a folder of this machine, .* s3://"):
        planned(*BANK, "--store", "./s", is_local=False)
    with pytest.raises(ValueError, match=r"say --store: a job's own folder is removed"):
        planned(*BANK)
    request = planned(*BANK, "--store=./s")
    assert request.arguments[-1] == f"--store={here / 's'}"
    assert request.environment["SPARSIGHT_NEEDS_FOLDER"] == str(here / "s")
    assert (here / "s").is_dir()


def test_a_job_tells_the_policy_of_the_recording_that_was_typed(here: Path) -> None:
    plan = make_plan()
    recordings.begin(Store.open(here / "s"), plan)
    asked = ["sweep", "--recording", plan.recording_id, "--store", "s"]
    request = planned(*asked)
    assert request.metadata == {
        "verb": "sweep",
        "store": str(here / "s"),
        "recordings": plan.recording_id,
        "policies": plan.inputs["policy"],
    }
    # what a job is called is no part of what it is
    (here / "t").mkdir()
    assert planned(*asked[:-1], "t").metadata.keys() == {"verb", "store", "recordings"}
    store = Store.open(here / "s")
    store.create("studies/mine/study.json", plan.recording_id.encode())
    again = planned(*asked)
    assert again.metadata["study"] == "mine"
    assert again.request_id == request.request_id


@pytest.mark.parametrize("verb", ["record", "export"])
def test_a_verb_refuses_to_keep_its_work_in_the_folder_of_its_job(
    verb: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `ray job submit` starts with the default store, or with --out, would be lost with the job."""
    job = here / "working_dir_files" / "_ray_pkg_0123"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    asked = {
        "record": ["record", "--policy", "p-1"],
        "export": ["export", "--recording", "r-1", "--out", "there", "--store", str(here / "s")],
    }
    with pytest.raises(SystemExit) as ended:
        main(asked[verb])
    assert ended.value.code == 2
    option = {"record": "--store store", "export": "--out there"}[verb]
    said = capsys.readouterr().err
    assert f"{option} lies in {job}, into which Ray has unpacked this job" in said
    assert list(job.iterdir()) == []


def test_paths_of_this_machine_are_made_whole_or_refused(here: Path) -> None:
    (here / "worlds").mkdir()
    (here / "worlds" / "w.json").write_text("{}")
    world = ["sequences", "bank", "--world", "worlds/w.json", "--store", "s3://bkt/s"]
    with pytest.raises(ValueError, match=r"worlds/w\.json is of this machine, .* say --file"):
        planned(*world, is_local=False)
    assert planned(*world).arguments[3] == str(here / "worlds" / "w.json")
    sent = planned(*world, "--file", "worlds", is_local=False)
    assert sent.arguments[3] == "worlds/w.json"
    assert "worlds/w.json" in sent.bundle.files
    export = ["export", "--recording", "r-1", "--out", "there", "--store", "s3://bkt/s"]
    with pytest.raises(ValueError, match=r"--out there: what the job writes there stays"):
        planned(*export, is_local=False)
    assert planned(*export).arguments[4] == str(here / "there")


def test_a_factory_s_module_must_go_along(here: Path) -> None:
    (here / "my_policy.py").write_text("")
    asked = ["record", "--policy", "p-1", "--factory", "my_policy:Network", "--store", "s3://bkt/s"]
    with pytest.raises(ValueError, match=r"say --file my_policy\.py"):
        planned(*asked)
    assert "my_policy.py" in planned(*asked, "--file", "my_policy.py").bundle.files


@pytest.mark.parametrize("verb", [[], ["submit"], ["jobs"], ["rm"]])
def test_only_verbs_that_work_are_handed_in(
    verb: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["submit", *verb, *REMOTE])
    assert ended.value.code == 2
    assert "wanted one of pipeline, train-demo" in capsys.readouterr().err


def test_a_cluster_without_a_token_is_joined_only_if_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Asked(Exception):
        pass

    def init(**_: object) -> None:
        raise Asked

    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(runtime.ray, "init", init)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ValueError, match=rf"RAY_AUTH_MODE is 'disabled'.*{UNAUTHENTICATED}=1"):
        runtime.start()
    monkeypatch.setenv(UNAUTHENTICATED, "1")
    with pytest.raises(Asked):
        runtime.start()
    monkeypatch.delenv("RAY_ADDRESS")  # what we start has a token, whatever is said
    with pytest.raises(ValueError, match=r"RAY_AUTH_MODE is 'disabled'"):
        runtime.start()


# --- a head

CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "c4n4ry/of+aws/at/home/0123456789",
    "WANDB_API_KEY": "c4n4ry0of0wandb0at0home0" + "7" * 16,
}
"""Of whoever submits."""
THEIRS = {
    "AWS_SECRET_ACCESS_KEY": "c4n4ry/of+aws/on/the/cluster/012",
    "WANDB_API_KEY": "c4n4ry0of0wandb0on0cluster" + "8" * 14,
}
"""Of the cluster."""


@pytest.fixture(scope="module")
def cluster(s3_upstream: str) -> Iterator[RayHead]:
    """A head whose environment knows an S3 server, as whoever submits need not."""
    known = {
        "AWS_ENDPOINT_URL": s3_upstream,
        "AWS_ACCESS_KEY_ID": "AKIDTEST",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    with ray_head({**THEIRS, **known}) as head:
        yield head


@pytest.fixture
def submitting(cluster: RayHead, here: Path, monkeypatch: pytest.MonkeyPatch) -> RayHead:
    """The environment of whoever submits to that head."""
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token_path))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.address)
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    return cluster


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str, str]:
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_verb_runs_on_a_cluster_once_and_no_secret_goes_with_it(
    submitting: RayHead, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["submit", *BANK, "--bank.episodes-per-player", "4", "--store", "store"]
    asked += ["--need", "WANDB_API_KEY"]
    endless = [*BANK, "--bank.episodes-per-player", "2000000", "--store", "endless"]
    status, said, told = ended(capsys, *asked, "--detach")
    assert status == 0, told
    submission_id = said.strip()
    endless_id = ended(capsys, "submit", *endless, "--detach")[1].strip()

    # a job that fails has its verb's exit status, and is tried again under the next number
    refused = ["submit", "recordings", "list", "--store", "store", "--need", "OTHER_STORE_KEY"]
    status, log, told = ended(capsys, *refused)
    assert status == 2
    assert "the head's environment lacks OTHER_STORE_KEY" in log
    refused_id = told.partition(":")[0]
    assert ended(capsys, *refused, "--detach")[1] == f"{refused_id}-2\n"

    # the same command finds the first job, and ends as it does
    status, log, told = ended(capsys, *asked)
    assert status == 0, log
    assert f"{submission_id} is there already" in told
    recording_id = log.splitlines()[-1]
    assert f"dashboard {submitting.address}" in log
    store = Store.open(here / "store")
    assert store.exists(f"recordings/{recording_id}/manifest.json")
    known = [job.submission_id or "" for job in Head.connect(submitting.address).jobs()]
    assert sorted(known) == sorted([submission_id, endless_id, refused_id, f"{refused_id}-2"])

    # what is under way can be seen and ended
    until = time.monotonic() + 60
    while "play ..." not in ended(capsys, "jobs", "logs", endless_id)[1]:
        assert time.monotonic() < until
        time.sleep(0.5)
    assert ended(capsys, "jobs", "stop", endless_id)[:2] == (0, f"{endless_id} stopped\n")
    assert ended(capsys, "jobs", "logs", endless_id)[0] == 143
    listed = ended(capsys, "jobs", "list")[1].splitlines()
    (line,) = [line for line in listed if line.startswith(f"{submission_id} ")]
    assert "succeeded" in line and f"sequences, store {here / 'store'}" in line

    # no secret of either side is anywhere, nor is the token
    client = Head.connect(submitting.address)
    told_of = {
        **{f"job {job.submission_id}": job.model_dump_json().encode() for job in client.jobs()},
        **{
            f"log {job.submission_id}": client.logs(job.submission_id or "").encode()
            for job in client.jobs()
        },
        **{key: store.get(key) for key in store.list()},
        **files_of(submitting.folder / "s"),
    }
    assert any("jobs/main.py" in place for place in told_of), "the session's files were looked at"
    assert any(b"OTHER_STORE_KEY" in content for content in told_of.values()), "names are there"
    assert json.loads(told_of[f"job {submission_id}"])["runtime_env"]["env_vars"] == {
        "OMP_NUM_THREADS": "1",
        "SPARSIGHT_NEEDS_VARIABLES": "WANDB_API_KEY",
        "SPARSIGHT_NEEDS_FOLDER": str(here / "store"),
    }
    canaries = [*CANARIES.values(), *THEIRS.values(), submitting.token]
    found = [
        (place, canary)
        for place, content in told_of.items()
        for canary in canaries
        if any(spelling in content for spelling in spellings(canary))
    ]
    assert found == []


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_job_whose_store_is_on_s3_leaves_its_work_there(
    submitting: RayHead,
    s3_upstream: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["submit", *BANK, "--bank.episodes-per-player", "3"]
    with boto3_bucket(s3_upstream, monkeypatch) as url:
        status, log, told = ended(capsys, *asked, "--store", url, "--need", "AWS_ENDPOINT_URL")
        assert status == 0, log + told
        bank = log.splitlines()[-1]
        store = Store.open(url)
        assert store.exists(f"recordings/{bank}/manifest.json")
        assert store.list("scratch/running") == []
        # who submits can read it, so a job that names the bank tells more of it
        listed = ["submit", "recordings", "show", bank, "--store", url]
        assert ended(capsys, *listed)[0] == 0
        job = Head.connect(submitting.address).jobs()[-1]
        assert job.metadata is not None
        assert (job.metadata["store"], job.metadata["recordings"]) == (url, bank)


@contextmanager
def boto3_bucket(upstream: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket, and this process's environment as somebody's who may read it."""
    bucket = f"bucket-{secrets.token_hex(4)}"
    boto3.client(
        "s3",
        endpoint_url=upstream,
        region_name="us-east-1",
        aws_access_key_id="AKIDTEST",
        aws_secret_access_key="made-up",
    ).create_bucket(Bucket=bucket)
    for name, value in {
        "AWS_ENDPOINT_URL": upstream,
        "AWS_ACCESS_KEY_ID": "AKIDTEST",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    yield f"s3://{bucket}/some/prefix"
    forget_connections()


def ray_job_submit(head: RayHead, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As docs/jobs.md says, from the root of the repository."""
    ray = Path(sys.executable).parent / "ray"
    return subprocess.run(
        [ray, "job", "submit", "--working-dir", ".", "--", "python", "-m", *arguments],
        cwd=Path(__file__).parents[2],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(head.folder),
            "RAY_API_SERVER_ADDRESS": head.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(head.token_path),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(300)
def test_ray_s_own_command_runs_a_verb_as_it_is(submitting: RayHead, here: Path) -> None:
    verb = ["jobs.sequences", *BANK[1:], "--bank.episodes-per-player", "2"]
    done = ray_job_submit(submitting, *verb, "--store", str(here / "store"))
    assert done.returncode == 0, done.stdout + done.stderr
    (bank,) = recordings.known_ids(Store.open(here / "store"))
    assert bank in done.stdout.splitlines()
    assert Store.open(here / "store").exists(recordings.manifest_key(bank))

    # the default store would go with the job's folder
    refused = ray_job_submit(submitting, *verb)
    assert refused.returncode != 0
    assert "error: --store store lies in" in refused.stdout + refused.stderr
    assert "say --store s3://bucket/prefix" in refused.stdout + refused.stderr


def spellings(secret: str) -> list[bytes]:
    """Plain, and in base64 wherever it begins in a text."""
    plain = secret.encode()
    shifted = [base64.b64encode(b"\0" * shift + plain) for shift in range(3)]
    return [plain, *(text[4 if shift else 0 : -4] for shift, text in enumerate(shifted))]


def files_of(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found[str(path)] = path.read_bytes()
    return found


@pytest.mark.ray
def test_a_head_refuses_whoever_has_another_token(
    submitting: RayHead, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "00" * 32)
    status, _, said = ended(capsys, "jobs", "list")
    assert status == 2
    assert "refuses the token" in said


def test_a_line_of_the_list_tells_what_a_job_is_about() -> None:
    job = job_details(
        "job-1",
        JobStatus.SUCCEEDED,
        start_time=1_700_000_000_000,
        end_time=1_700_000_065_000,
        metadata={"verb": "pipeline", "study": "mine", "store": "s3://bkt/s", "code": "code-1"},
    )
    assert jobs.job_line(job, 0.0) == (
        f"{'job-1':<22} succeeded 11-14 22:13:20  0:01:05  pipeline, study mine, store s3://bkt/s"
    )
