"""The undisturbed recording, jobs to disturb, and a table of all comparisons at the end."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import recordings
from cluster.recorder import RecordShard, plan_recording
from cluster.store import Store
from cluster.studio import Studio
from tests.chaos.disturbed import (
    CONFIG,
    FACTORY,
    TABLE,
    Job,
    Recorded,
    add_policy,
    end_all,
    objects,
)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Made in this process, without Ray."""
    store = Store.open(tmp_path_factory.mktemp("undisturbed") / "store")
    plan = plan_recording(store, add_policy(store), FACTORY, CONFIG)
    recordings.begin(store, plan)
    studio = Studio(store)
    for shard in plan.shards:
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY))
    recordings.commit(store, plan)
    return Recorded(plan=plan, objects=objects(store))


@pytest.fixture
def policy_store(store: Store) -> Store:
    """A store with the policy, and nothing recorded yet."""
    add_policy(store)
    return store


@pytest.fixture
def start_job(undisturbed: Recorded, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start(store: Store, *more: str) -> Job:
        jobs.append(Job(store, undisturbed.plan, tmp_path, *more))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            job.process.kill()
            job.process.communicate()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TABLE:
        return
    form = "{:<42} {:>6} {:>7} {:>7} {:>15}  {}"
    terminalreporter.section("recordings under faults")
    terminalreporter.write_line(
        form.format("fault", "shards", "retries", "rows", "differing bytes", "manifest")
    )
    for line in TABLE:
        terminalreporter.write_line(
            form.format(
                line.fault,
                line.shards,
                "-" if line.retries is None else line.retries,
                line.rows,
                line.differing_bytes,
                line.digest[:16],
            )
        )


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs a script of this folder, with a Ray of its own, of which no process is left afterwards."""

    def start(name: str, *arguments: str) -> str:
        root = Path(__file__).parents[2]
        environment = {
            **os.environ,
            "RAY_AUTH_TOKEN_PATH": str(tmp_path / "auth_token"),
            "RAY_AUTH_MODE": "token",
            "PYTHONPATH": str(root),
        }
        (tmp_path / "auth_token").write_text("ab" * 32)
        process = subprocess.Popen(
            [sys.executable, str(root / "tests" / "chaos" / name), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        said, complaints = process.communicate(timeout=180)
        assert process.returncode == 0, complaints[-3000:]
        return said

    yield start
    end_all(tmp_path)
