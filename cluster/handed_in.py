"""What a job that was handed in asks of the cluster before it works, by reference: names and folders, never values.

And what no job may do, handed in by us or by `ray job submit`: keep its work in the folder that goes with it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

VARIABLES = "SPARSIGHT_NEEDS_VARIABLES"
"""Names of environment variables that the head must have, separated by commas."""
FOLDER = "SPARSIGHT_NEEDS_FOLDER"
"""A folder that the machine of the head must have: the store, where that is one."""
_UNPACKED = "working_dir_files"
"""Where Ray's nodes keep the working directories of jobs."""
UNAUTHENTICATED = "SPARSIGHT_ALLOW_UNAUTHENTICATED"
"""1 if a cluster without a token may be joined."""


def needs(variables: Sequence[str], folder: Path | None) -> dict[str, str]:
    """The same in the words of an environment."""
    return {
        **({VARIABLES: ",".join(variables)} if variables else {}),
        **({FOLDER: str(folder)} if folder is not None else {}),
    }


def check_needs() -> None:
    """Raises ValueError if this machine lacks what was asked of it: nothing, of a verb that was not handed in."""
    names = [name for name in os.environ.get(VARIABLES, "").split(",") if name]
    if missing := [name for name in names if not os.environ.get(name)]:
        raise ValueError(
            f"the head's environment lacks {', '.join(missing)}, which the job needs; set it where the head is "
            "started (on Kubernetes: a secret that its pod names) and submit again"
        )
    folder = os.environ.get(FOLDER)
    if folder and not Path(folder).is_dir():
        raise ValueError(
            f"the head's machine has no folder {folder}: it is not the machine that submitted. Use a store that both "
            "reach: s3://bucket/prefix"
        )


def unpacked_in() -> Path | None:
    """The folder into which Ray has unpacked the code of this job, and which it removes after it; None elsewhere."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if folder.parent.name == _UNPACKED:
            return folder
    return None


def check_lasting(option: str, path: Path) -> None:
    """Raises ValueError if what is written there would be removed with the job."""
    folder = unpacked_in()
    if folder is not None and path.expanduser().resolve().is_relative_to(folder):
        raise ValueError(
            f"{option} {path} lies in {folder}, into which Ray has unpacked this job and which it removes afterwards; "
            "say --store s3://bucket/prefix, or the absolute path of a folder that every node has"
        )
