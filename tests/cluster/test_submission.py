"""What goes to a cluster with a job and what does not, which attempt it is, and whom the token is told."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster import submission
from cluster.handed_in import FOLDER, VARIABLES, check_needs, needs
from cluster.submission import (
    Bundle,
    Head,
    HeadError,
    Request,
    check_address,
    check_variables,
    describe,
    exit_status,
    is_loopback,
    read_token,
    secrets_here,
)

TOKEN = "f00d" * 16
SECRETS = {"WANDB_API_KEY": "c4n4ry-of-wandb"}
NOTHING = Bundle(files={}, version="code-0")


def request(*arguments: str, **changes) -> Request:
    return Request(
        **{
            "arguments": arguments or ("record", "--store", "s3://b/s"),
            "bundle": NOTHING,
            **changes,
        }
    )


def job(submission_id: str, status: JobStatus, **more) -> JobDetails:
    told = {"type": JobType.SUBMISSION, "submission_id": submission_id, "status": status}
    return JobDetails.model_validate({**told, "entrypoint": "python", **more})


class Jobs:
    """The jobs API as far as attempts and logs need it."""

    def __init__(self, *known: JobDetails, logs: tuple[tuple[str | Exception, ...], ...] = ()):
        self.known = list(known)
        self.sent: list[dict] = []
        self.logs = list(logs)

    def list_jobs(self) -> list[JobDetails]:
        return self.known

    def submit_job(self, *, submission_id: str, **sent) -> str:
        if submission_id in [one.submission_id for one in self.known]:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists. ")
        self.sent.append(sent)
        self.known.append(job(submission_id, JobStatus.PENDING))
        return submission_id

    async def tail_job_logs(self, _submission_id: str):
        for piece in self.logs.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece


def head(jobs: Jobs) -> Head:
    return Head("http://127.0.0.1:1", jobs, has_token=True)  # pyright: ignore[reportArgumentType]


# --- which job


def test_the_id_is_of_the_verb_the_arguments_the_code_and_the_environment() -> None:
    asked = request()
    assert asked.request_id == request(metadata={"study": "s"}).request_id
    others = [
        request("record", "--store", "s3://b/t"),
        request("export", "--store", "s3://b/s"),
        request(bundle=Bundle(files={}, version="code-1")),
        request(environment={"SPARSIGHT_LOG": "json"}),
    ]
    assert len({asked.request_id, *(other.request_id for other in others)}) == 5
    assert asked.attempt_id(1) == asked.request_id
    assert asked.attempt_id(2) == f"{asked.request_id}-2"


@pytest.mark.parametrize("status", [JobStatus.PENDING, JobStatus.RUNNING, JobStatus.SUCCEEDED])
def test_a_job_that_runs_or_has_succeeded_is_found(status: JobStatus) -> None:
    asked = request()
    jobs = Jobs(job(asked.request_id, status))
    assert head(jobs).submit(asked) == (asked.request_id, False)
    assert jobs.sent == []


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.STOPPED])
def test_after_a_failed_or_stopped_job_comes_the_next_attempt(status: JobStatus) -> None:
    asked = request()
    jobs = Jobs(job(asked.request_id, status), job(asked.attempt_id(2), status))
    assert head(jobs).submit(asked) == (asked.attempt_id(3), True)
    assert head(jobs).submit(asked) == (asked.attempt_id(3), False)


def test_again_goes_past_what_has_succeeded_but_not_past_what_runs() -> None:
    asked = request()
    jobs = Jobs(job(asked.request_id, JobStatus.SUCCEEDED))
    assert head(jobs).submit(asked, again=True) == (asked.attempt_id(2), True)
    assert head(jobs).submit(asked, again=True) == (asked.attempt_id(2), False)


def test_of_two_who_ask_at_the_same_time_one_finds_the_other_s_job() -> None:
    asked = request()

    class Late(Jobs):
        """The other's job is listed only after we have tried."""

        def list_jobs(self) -> list[JobDetails]:
            shown = self.known if self.tried else []
            self.tried = True
            return shown

    jobs = Late(job(asked.request_id, JobStatus.RUNNING))
    jobs.tried = False
    assert head(jobs).submit(asked) == (asked.request_id, False)


# --- what goes with it


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_our_packages_go_with_a_job_and_nothing_else_does(here: Path) -> None:
    (here / "wandb-key").write_text(SECRETS["WANDB_API_KEY"])
    names = set(Bundle.of().files)
    assert {"jobs/main.py", "cluster/submission.py", "interp/identity.py"} <= names
    assert any(name.endswith((".css", ".html", ".j2")) for name in names)
    assert {name.partition("/")[0] for name in names} == {"interp", "cluster", "jobs"}
    assert not [name for name in names if "__pycache__" in name or "/." in name]


def test_named_files_keep_their_places_and_decide_the_version(here: Path) -> None:
    (here / "worlds").mkdir()
    (here / "worlds" / "mine.json").write_text("{}")
    (here / "worlds" / ".hidden").write_text("")
    (here / "net.py").write_text("x = 1")
    chosen = [Path("worlds"), Path("net.py")]
    bundle = Bundle.of(chosen, secrets={})
    assert {"worlds/mine.json", "net.py"} == bundle.files.keys() - Bundle.of().files.keys()
    with bundle.unpacked() as folder:
        assert (folder / "worlds" / "mine.json").read_text() == "{}"
        assert (folder / "jobs" / "main.py").is_file()
    assert not folder.exists()
    (here / "net.py").touch()
    assert Bundle.of(chosen, secrets={}).version == bundle.version
    (here / "net.py").write_text("x = 2")
    assert Bundle.of(chosen, secrets={}).version != bundle.version


def test_files_from_elsewhere_or_in_our_place_are_refused(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "net.py"
    elsewhere.write_text("")
    with pytest.raises(ValueError, match=r"lies outside of the working directory"):
        Bundle.of([elsewhere])
    with pytest.raises(ValueError, match=r"--file gone\.py: not there"):
        Bundle.of([Path("gone.py")])
    (here / "cluster").mkdir()
    (here / "cluster" / "pool.py").write_text("")
    with pytest.raises(ValueError, match=r"cluster is a package of Sparsight"):
        Bundle.of([Path("cluster")])


@pytest.mark.parametrize("spell", [str.encode, lambda text: base64.b64encode(text.encode())])
def test_a_file_with_a_secret_is_refused_without_repeating_it(
    here: Path, spell: Callable[[str], bytes]
) -> None:
    (here / "net.py").write_bytes(b"key = '" + spell(SECRETS["WANDB_API_KEY"]) + b"'")
    with pytest.raises(ValueError, match=r"net\.py holds the value of WANDB_API_KEY") as refused:
        Bundle.of([Path("net.py")], secrets=SECRETS)
    assert SECRETS["WANDB_API_KEY"] not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": ("record", "--x", "a" + SECRETS["WANDB_API_KEY"])},
        {"environment": {"NOTE": SECRETS["WANDB_API_KEY"]}},
        {"metadata": {"study": SECRETS["WANDB_API_KEY"]}},
        {"arguments": ("record", "--policies", "https://me:pw@wandb.ai/a/b")},
    ],
)
def test_a_secret_in_a_request_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"holds the value of WANDB_API_KEY|URL with credentials"):
        request(**changes).check(SECRETS)
    request().check(SECRETS)


def test_what_sounds_secret_is_found_and_places_are_not(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    environment = {
        "AWS_SECRET_ACCESS_KEY": "0123456789",
        "WANDB_API_KEY": "k" * 40,
        "DB_PASSWORD": "hunter2hunter2",
        "HOME": "/home/somebody",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "SSH_KEY": "short",
    }
    assert secrets_here(environment) == {
        "AWS_SECRET_ACCESS_KEY": "0123456789",
        "WANDB_API_KEY": "k" * 40,
        "DB_PASSWORD": "hunter2hunter2",
        "RAY_AUTH_TOKEN": TOKEN,
    }


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "WANDB_API_KEY", "MY_TOKEN", "RAY_AUTH_MODE"]
)
def test_values_that_the_cluster_must_hold_are_not_sent(name: str) -> None:
    with pytest.raises(ValueError, match=rf"--env {name}: .*--need {name}"):
        check_variables({name: "x"})
    check_variables({"SPARSIGHT_LOG": "json"}, [name])
    with pytest.raises(ValueError, match=rf"--need '{name}': wanted the name") as refused:
        check_variables({}, [f"{name}=c4n4ry"])
    assert "c4n4ry" not in str(refused.value)


def test_a_job_is_told_of_by_study_store_and_ids() -> None:
    d, p = "d-" + "1" * 16, "p-" + "2" * 16
    assert describe(
        ["steer", "--dictionary", d, "--policy", p, "--store=s3://b/s", "--top", "5"]
    ) == {
        "verb": "steer",
        "dictionaries": d,
        "policies": p,
        "store": "s3://b/s",
    }
    told = describe(["pipeline", "trained", "--policies", "s3://b/runs/7", "a/b/c", "--seed", "1"])
    assert told == {"verb": "pipeline", "study": "demo", "policies": "s3://b/runs/7 a/b/c"}


# --- what it needs there


def test_a_job_refuses_a_head_that_lacks_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_needs()
    for name, value in needs(["STORE_KEY", "OTHER_KEY"], tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTHER_KEY", "x")
    with pytest.raises(ValueError, match=r"environment lacks STORE_KEY, which"):
        check_needs()
    monkeypatch.setenv("STORE_KEY", "x")
    check_needs()
    monkeypatch.setenv(FOLDER, str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"has no folder .*gone"):
        check_needs()
    assert needs([], None).keys().isdisjoint({FOLDER, VARIABLES})


# --- its log and its end


def test_a_log_that_breaks_off_is_followed_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission.time, "sleep", lambda _: None)
    jobs = Jobs(
        job("job-1", JobStatus.FAILED, driver_exit_code=3),
        logs=(
            ("one\n", "two\n", RuntimeError("closed")),
            ("one\ntw", ConnectionResetError()),
            ("one\n", "two\nthree\n"),
        ),
    )
    written: list[str] = []
    assert head(jobs).follow("job-1", written.append) == 3
    assert "".join(written) == "one\ntwo\nthree\n"


def test_a_log_that_stays_broken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission.time, "sleep", lambda _: None)
    jobs = Jobs(
        job("job-1", JobStatus.RUNNING),
        logs=((ConnectionResetError("gone"),),) * (submission.RECONNECTIONS + 1),
    )
    with pytest.raises(HeadError, match=r"cannot be followed: gone; the job goes on"):
        head(jobs).follow("job-1", print)


def test_exit_statuses_are_the_driver_s_if_it_could_say_one() -> None:
    assert exit_status(job("j", JobStatus.SUCCEEDED)) == 0
    assert exit_status(job("j", JobStatus.STOPPED)) == 143
    assert exit_status(job("j", JobStatus.FAILED, driver_exit_code=2)) == 2
    assert exit_status(job("j", JobStatus.FAILED)) == 1
    with pytest.raises(ValueError, match=r"job 'k' is not at .* it has j"):
        head(Jobs(job("j", JobStatus.FAILED))).job("k")


# --- whom the token is told


@contextmanager
def answering(token: str | None, content: str = "[]") -> Iterator[tuple[str, list[str | None]]]:
    """A jobs API with a token or without; its address, and the Authorization of every request."""
    asked: list[str | None] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = self.headers["Authorization"]
            asked.append(said)
            status = 200 if token is None else 401 if said is None else 403
            if token is not None and said == f"Bearer {token}":
                status = 200
            version = {
                "version": "4",
                "ray_version": "2.60.0",
                "ray_commit": "",
                "session_name": "",
            }
            body = json.dumps(version) if self.path == "/api/version" else content
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def no_token(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)


def test_a_head_without_a_token_is_refused_unless_allowed_and_never_told_ours(
    no_token: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    # Ray's own client would go there instead.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    with answering(None) as (address, asked):
        with pytest.raises(ValueError, match=r"has no token: whoever .* --allow-unauthenticated"):
            Head.connect(address)
        found = Head.connect(address, allow_unauthenticated=True)
        assert not found.has_token
        assert found.jobs() == []
    assert len(asked) >= 4
    assert not any(TOKEN in said for said in asked if said)


def test_a_head_with_a_token_wants_ours(no_token: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(TOKEN) as (address, asked):
        with pytest.raises(ValueError, match=r"wants a token: name it in RAY_AUTH_TOKEN"):
            Head.connect(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong" * 10)
        with pytest.raises(HeadError, match=r"refuses the token"):
            Head.connect(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        assert Head.connect(address).has_token
    assert asked[-1] == f"Bearer {TOKEN}"


def test_who_is_no_ray_is_told_apart(no_token: None) -> None:
    with (
        answering(None, "<html>") as (address, _),
        pytest.raises(HeadError, match=r"is no jobs API of Ray"),
    ):
        Head.connect(address, allow_unauthenticated=True)
    with pytest.raises(HeadError, match=r"nobody answers at"):
        Head.connect(address)


@pytest.mark.parametrize("address", ["ray://h:1", "127.0.0.1:8265", "http://", "http://h:1/x"])
def test_addresses_are_those_of_dashboards(address: str) -> None:
    with pytest.raises(ValueError, match=r"wanted the dashboard of a head"):
        check_address(address)


def test_an_address_holds_no_credentials_and_loopback_is_known() -> None:
    with pytest.raises(ValueError, match=r"may not hold credentials") as refused:
        check_address("http://me:secret@h:8265")
    assert "secret" not in str(refused.value)
    assert check_address("http://h:8265/") == "http://h:8265"
    assert is_loopback("http://localhost:1")
    assert is_loopback("http://[::1]:1")
    assert not is_loopback("http://127.0.0.1.example.com:1")


def test_a_token_file_that_is_named_must_be_there(
    no_token: None, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_token() is None
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(here / "token"))
    with pytest.raises(ValueError, match=r"RAY_AUTH_TOKEN_PATH names"):
        read_token()
    (here / "token").write_text(TOKEN + "\n")
    assert read_token() == TOKEN
