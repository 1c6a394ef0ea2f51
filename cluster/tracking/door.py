"""The only process that imports wandb: it reads requests, a JSON object per line, and answers each with one.

It can be killed at any moment, so nothing here is awaited without a deadline by the process that asks
(`cluster.tracking.service`). W&B's own output goes nowhere: answers are the only thing that leaves.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import CommError

API_TIMEOUT_S = 15
INIT_TIMEOUT_S = 20
FINISH_TIMEOUT_S = 30
WAIT_S = 60
"""Seconds that one artifact has to be committed."""
MAX_SAID_CHARACTERS = 250_000
"""Of a run's config or summary, or of an artifact's metadata."""
MARK = "sparsight/letter"
"""Summary key by which a delivered run is known."""


class Door:
    def __init__(self) -> None:
        self._api: wandb.Api | None = None
        self._live: dict[str, Any] = {}
        """Run id -> run that is fed while its letter is still to come."""

    @property
    def api(self) -> wandb.Api:
        if self._api is None:
            self._api = wandb.Api(timeout=API_TIMEOUT_S)
        return self._api

    # --- reading

    def describe_run(self, *, path: str) -> dict[str, Any]:
        """What a run is, and every artifact that it logged."""
        run = self.api.run(path)
        return {
            "name": run.name,
            "url": run.url,
            "state": run.state,
            "tags": list(run.tags),
            "config": _plain(run.config),
            "summary": _plain(
                {
                    key: value
                    for key, value in run.summary._json_dict.items()
                    if not key.startswith("_")
                }
            ),
            "artifacts": [_described(one) for one in run.logged_artifacts(per_page=100)],
        }

    def describe_artifact(self, *, path: str) -> dict[str, Any]:
        return _described(self.api.artifact(path))

    def download(self, *, path: str, folder: str, max_bytes: int) -> None:
        """Files of an artifact, each compared with its digest in the manifest; a second attempt if one differs.

        References are refused: the client would follow them, to files of this machine or to any address that it can
        reach, and without comparing anything. The client takes a truncated or altered body for the file, and then
        keeps it in its cache: hence the comparison, and no cache.
        """
        for attempt in (1, 2):
            artifact = self.api.artifact(path)
            entries = artifact.manifest.entries
            if references := sorted(name for name, entry in entries.items() if entry.ref):
                raise ValueError(
                    f"{references[0]!r} is a reference to another place, not a file; log the policy's file itself"
                )
            if not entries:
                raise ValueError("it has no files")
            if (size := sum(entry.size or 0 for entry in entries.values())) > max_bytes:
                raise ValueError(f"{size:,} bytes, wanted at most {max_bytes:,}")
            artifact.download(root=folder, skip_cache=True)
            try:
                artifact.verify(folder)
                break
            except ValueError as error:
                shutil.rmtree(folder)
                if attempt == 2:
                    raise ValueError(
                        f"downloaded twice and damaged twice ({error}); ask again later"
                    ) from error

    # --- writing

    def feed(self, *, run: dict[str, Any], step: int, row: dict[str, float]) -> None:
        """A row of a run whose letter comes later."""
        self._open(run).log(row, step=step)

    def deliver(self, *, run: dict[str, Any], letter: dict[str, Any]) -> dict[str, Any]:
        """A whole letter. Everything in it may be there already, of an attempt that was cut short: rows of a step that
        the run has are dropped by the client, and equal artifacts are one version.
        """
        opened = self._open(run)
        path = f"{_project(opened)}/{run['id']}"
        logged: list[str] = []
        try:
            for row in letter["curve"]:
                values = {key: value for key, value in row.items() if key != "step"}
                opened.log(values, step=int(row["step"]))
            for used in letter["uses"]:
                opened.use_artifact(used if used.count("/") == 2 else f"{_project(opened)}/{used}")
            logged = [self._log_artifact(opened, one) for one in letter["logs"]]
            media = {
                **{
                    title: wandb.Html(Path(page).read_text(encoding="utf-8"), inject=False)
                    for title, page in letter["pages"].items()
                },
                **{title: _table(table) for title, table in letter["tables"].items()},
            }
            if media:
                opened.log(media)
            opened.summary.update({**letter["summary"], MARK: letter["id"]})
        finally:
            self._live.pop(run["id"], None)
            opened.finish()
        self._check(path, letter)
        return {"url": opened.url, "artifacts": logged}

    def _open(self, run: dict[str, Any]) -> Any:  # noqa: ANN401 - wandb's own
        if run["id"] not in self._live:
            self._live[run["id"]] = wandb.init(
                id=run["id"],
                entity=run["entity"],
                project=run["project"],
                name=run["name"],
                group=run["group"],
                job_type=run["stage"],
                config=run["config"],
                dir=os.environ["WANDB_DIR"],
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(
                    init_timeout=INIT_TIMEOUT_S,
                    finish_timeout=FINISH_TIMEOUT_S,
                    finish_timeout_raises=True,
                    console="off",
                    silent=True,
                    disable_git=True,
                    disable_code=True,
                    x_disable_machine_info=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                ),
            )
        return self._live[run["id"]]

    def _log_artifact(self, run: Any, given: dict[str, Any]) -> str:  # noqa: ANN401 - wandb's own
        artifact = wandb.Artifact(given["name"], given["type"], metadata=given["metadata"])
        for name, path in given["files"].items():
            artifact.add_file(path, name=name, skip_cache=True, policy="immutable")
        run.log_artifact(artifact, aliases=["latest", *given["aliases"]])
        artifact.wait(timeout=WAIT_S)  # only this says that the server has it
        return artifact.qualified_name

    def _check(self, path: str, letter: dict[str, Any]) -> None:
        """`finish` also returns when the server refused the rows; so ask it what it has."""
        found = wandb.Api(timeout=API_TIMEOUT_S).run(path)
        there = found.summary._json_dict
        missing = [title for title in (*letter["pages"], *letter["tables"]) if title not in there]
        last_step = max((int(row["step"]) for row in letter["curve"]), default=-1)
        if there.get(MARK) != letter["id"] or missing or found.lastHistoryStep < last_step:
            raise OSError(
                f"run {path} was not taken whole: it has letter {there.get(MARK)} and step {found.lastHistoryStep} of "
                f"{last_step}, and lacks {missing}"
            )

    def close(self) -> None:
        for run in self._live.values():
            run.finish()
        self._live.clear()


def _project(run: Any) -> str:  # noqa: ANN401 - wandb's own
    return f"{run.entity}/{run.project}"


def _described(artifact: wandb.Artifact) -> dict[str, Any]:
    return {
        "path": f"{artifact.source_entity}/{artifact.source_project}/{artifact.source_name}",
        "collection": artifact.source_name.rpartition(":")[0],
        "version": int(artifact.source_version.removeprefix("v")),
        "type": artifact.type,
        "digest": artifact.digest,
        "bytes": artifact.size,
        "metadata": _plain(artifact.metadata if isinstance(artifact.metadata, dict) else {}),
    }


def _plain(said: Any) -> Any:  # noqa: ANN401 - any JSON
    """As strict JSON: no NaN, and nothing at all of what is too long to be kept with a policy."""
    text = json.dumps(said, default=str)
    if len(text) > MAX_SAID_CHARACTERS:
        return {"left_out": f"{len(text):,} characters"}
    return json.loads(text, parse_constant=str)


def _table(given: dict[str, Any]) -> wandb.Table:
    return wandb.Table(columns=given["columns"], data=given["rows"])


def _kind(error: BaseException) -> str:
    """Only the text of wandb's errors tells one cause from another."""
    text = str(error)
    if isinstance(error, CommError) and ("not found" in text or "Could not find" in text):
        return "missing"
    return "error"


def _reason(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return "the server does not answer" if "service process is busy" in text else text


def main() -> None:
    """Serves until its input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    door = Door()
    for line in sys.stdin:
        request = json.loads(line)
        verb = request.pop("verb")
        try:
            answer = {"value": getattr(door, verb)(**request)}
        except Exception as error:  # noqa: BLE001 - whatever wandb raises is told to the one who asked
            answer = {"error": _kind(error), "reason": _reason(error)}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()
    door.close()


if __name__ == "__main__":
    main()
