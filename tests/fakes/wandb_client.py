"""What a trainer does: logs a run and its checkpoints with the W&B client as it is, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """An artifact to log."""

    name: str
    files: Mapping[str, str]
    """Name in the artifact -> path."""
    type: str = "model"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


def log_run(
    path: str, artifacts: Sequence[Logged], *, name: str | None = None, **config: Any
) -> None:
    """Logs a run under entity/project/run_id, on the server of the environment."""
    entity, project, run_id = path.split("/")
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "run": {
                "entity": entity,
                "project": project,
                "id": run_id,
                "name": name,
                "config": config,
                "tags": ["trained"],
            },
            "artifacts": [asdict(one) for one in artifacts],
        }
        names = ("DIR", "CACHE_DIR", "DATA_DIR", "ARTIFACT_DIR")
        subprocess.run(
            [sys.executable, __file__, json.dumps(spec)],
            env={
                **os.environ,
                **{f"WANDB_{name}": folder for name in names},
                "WANDB_SILENT": "true",
                "WANDB_ERROR_REPORTING": "false",
            },
            check=True,
            timeout=120,
        )


def main(spec: Mapping[str, Any]) -> None:
    import wandb

    run = wandb.init(**spec["run"], settings=wandb.Settings(console="off"))
    for given in spec["artifacts"]:
        artifact = wandb.Artifact(given["name"], given["type"], metadata=given["metadata"])
        for name, path in given["files"].items():
            artifact.add_file(str(Path(path)), name=name)
        run.log_artifact(artifact, aliases=["latest", *given["aliases"]])
        artifact.wait()
    run.log({"return": 1.5})
    run.finish()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
