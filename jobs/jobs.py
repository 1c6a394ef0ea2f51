"""Jobs that were handed in to a Ray cluster by `sparsight submit`: which there are, what they print, ending them.

sparsight jobs list --address http://127.0.0.1:8265
sparsight jobs logs job-0123456789abcdef --follow
sparsight jobs stop job-0123456789abcdef
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated

import tyro
from ray.job_submission import JobDetails

from cluster.submission import DONE, Head, exit_status
from jobs.main import run_as_module
from jobs.submit import ADDRESS_VARIABLE, DEFAULT_ADDRESS, follow

TOLD = ("study", "policies", "recordings", "dictionaries", "store")
"""What a line of the list says of a job, besides its verb."""


@dataclass(frozen=True, kw_only=True)
class _There:
    address: str = field(default_factory=lambda: os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS))
    """Dashboard of the head; by default RAY_API_SERVER_ADDRESS. Its token comes from RAY_AUTH_TOKEN, the file
    RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."""
    allow_unauthenticated: bool = False
    """Ask a head without a token, too."""


@dataclass(frozen=True, kw_only=True)
class List(_There):
    """The jobs of a cluster, the latest last: state, verb, study, policies and dictionaries, store."""


@dataclass(frozen=True, kw_only=True)
class Logs(_There):
    """What a job has printed; of one that has ended, its exit status is this verb's too."""

    job: tyro.conf.Positional[str]
    """Id of the job."""
    follow: bool = False
    """Go on until it ends."""


@dataclass(frozen=True, kw_only=True)
class Stop(_There):
    """Ask a job to end as SIGTERM does, and wait until it has. What it finished is kept."""

    job: tyro.conf.Positional[str]
    """Id of the job."""


Verb = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Logs, tyro.conf.subcommand("logs")]
    | Annotated[Stop, tyro.conf.subcommand("stop")]
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line and prints."""
    verb = tyro.cli(Verb, args=list(arguments), prog="sparsight jobs", description=__doc__)
    head = Head.connect(verb.address, allow_unauthenticated=verb.allow_unauthenticated)
    match verb:
        case List():
            print(f"{'job':<22} {'state':<9} {'begun (UTC)':<14} {'took':>8}  about")
            for job in head.jobs():
                print(job_line(job, time.time()))
        case Logs(job=submission_id, follow=True):
            sys.exit(follow(head, submission_id))
        case Logs(job=submission_id):
            print(head.logs(submission_id), end="")
            job = head.job(submission_id)
            if job.status in DONE:
                sys.exit(exit_status(job))
        case Stop(job=submission_id):
            job = head.stop(submission_id)
            print(f"{submission_id} {job.status.value.lower()}")


def job_line(job: JobDetails, now_s: float) -> str:
    """What is known of a job. Ids are to be copied, so lines are never cut."""
    told = job.metadata or {}
    begun_s = (job.start_time or 0) / 1000
    ended_s = job.end_time / 1000 if job.end_time else now_s
    times = ("", "")
    if begun_s:
        begun = datetime.fromtimestamp(begun_s, UTC)
        times = (f"{begun:%m-%d %H:%M:%S}", str(timedelta(seconds=round(ended_s - begun_s))))
    about = [f"{kind} {told[kind]}" for kind in TOLD if kind in told]
    what = told.get("verb", job.entrypoint)
    return (
        f"{job.submission_id:<22} {job.status.value.lower():<9} {times[0]:<14} {times[1]:>8}  "
        + ", ".join([what, *about])
    )


if __name__ == "__main__":
    run_as_module("jobs")
