"""The `sparsight` command: one verb per thing that Sparsight does."""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from cluster.handed_in import check_needs
from cluster.logs import configure
from cluster.stopping import answer_sigterm
from jobs.errors import explain

VERBS = {
    "pipeline": (
        "jobs.pipeline",
        "the main job: train, record, decompose, score, steer, follow, report",
    ),
    "train-demo": ("jobs.train_demo", "train demo policies by recurrent PPO"),
    "policies": ("jobs.policies", "list, show or fetch policies: files, W&B runs, S3"),
    "record": ("jobs.record", "play a policy and record its activations with ground truth"),
    "recordings": ("jobs.recordings", "list, show or verify recordings; remove what is of no use"),
    "sequences": (
        "jobs.sequences",
        "banks of trajectories, their replay through policies, stretches of recordings",
    ),
    "export": ("jobs.export", "write a recording for other tools: Parquet, npy, Hugging Face"),
    "sweep": ("jobs.sweep", "train sparse autoencoders on a recording"),
    "steer": ("jobs.steer", "edit a policy along its concepts; what causes what, with a verdict"),
    "concepts": (
        "jobs.concepts",
        "find concepts without labels and groups of latents; show tables",
    ),
    "dictionaries": (
        "jobs.dictionaries",
        "list dictionaries, play with one in the loop; exchange them with SAELens",
    ),
    "status": ("jobs.status", "what a store holds, what is at work on it, what is still missing"),
    "report": ("jobs.report", "draw the report of a study again"),
    "sync": ("jobs.sync", "deliver to W&B what studies could not deliver while they ran"),
    "submit": ("jobs.submit", "hand a verb in to a Ray cluster, and follow it"),
    "jobs": ("jobs.jobs", "list, follow or stop what was handed in"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit status: 0 done, 2 refused, 130 interrupted, 143 asked to end."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"sparsight: no verb {verb!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    with explain():
        configure()
        check_needs()
        job = importlib.import_module(VERBS[verb][0])
        answer_sigterm()  # after the import: Ray has an answer of its own
        job.main(rest)
    return 0


def run_as_module(verb: str) -> NoReturn:
    """The same for `python -m jobs.record` and its like, as `ray job submit` wants it."""
    sys.exit(main([verb, *sys.argv[1:]]))


def _usage() -> str:
    lines = "\n".join(f"  {verb:<12} {what}" for verb, (_, what) in VERBS.items())
    return (
        "usage: sparsight VERB [options]\n\n"
        "Finds, tests and follows the concepts inside trained reinforcement-learning policies.\n\n"
        f"{lines}\n\n"
        "sparsight VERB --help tells more; `sparsight pipeline demo` does everything once, small."
    )


if __name__ == "__main__":
    sys.exit(main())
