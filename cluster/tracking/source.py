"""Policies that W&B keeps: the artifacts that a run logged, in the order of training, each downloaded once.

A download is compared with the digests of the artifact's manifest by the client, and with our own sha256 whenever it is
used again. However many processes of a machine ask for an artifact, one downloads it.
"""

import fcntl
import fnmatch
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.tracking.access import Access, WandbError
from cluster.tracking.service import WandbService
from cluster.uris import WandbArtifact, WandbRun
from interp.identity import canonical_json, parse_json, sha256
from interp.policies.formats.limits import MAX_FILE_BYTES

LIST_S = 60.0
"""Seconds that a listing may take."""
SLOWEST_BYTES_PER_S = 250_000
"""A download that is slower than this, over all, is given up."""
STEP_KEYS = ("agent_step", "step", "epoch")
"""What trainers call the length of the training behind a checkpoint, in files and in metadata; best first."""
FINAL = "_final"
"""Ends the name under which some trainers log the last checkpoint of a run once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArtifact:
    """A version of an artifact, pinned."""

    path: str
    """entity/project/name:vN."""
    order: int
    """Steps of training if all artifacts of its run tell them, or else its place in the order of versions."""
    digest: str
    num_bytes: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunListing:
    name: str
    about: Mapping[str, Any]
    """Config, summary, tags, state and web address."""
    artifacts: tuple[ModelArtifact, ...]
    """Ascending in the length of training."""


def list_run(place: WandbRun, service: WandbService) -> RunListing:
    """The policies that a run logged: its artifacts of type `model`, or those whose name matches the URI's pattern.

    Of several with one length of training the highest version counts, so a run that logged its last checkpoint again
    as final has it once.

    Raises:
        FileNotFoundError: no such run, or none of its artifacts is a policy; the message lists what it has.
        ValueError: it logged several policies; the message says how to choose one.
        WandbError: the server does not answer.
    """
    path = f"{place.entity}/{place.project}/{place.run_id}"
    said = _ask(service, "describe_run", path)
    found = [
        one
        for one in said["artifacts"]
        if (
            fnmatch.fnmatchcase(one["collection"], place.pattern)
            if place.pattern
            else one["type"] == "model"
        )
    ]
    if not found:
        wanted = f"a name like {place.pattern!r}" if place.pattern else "type 'model'"
        has = ", ".join(f"{one['path']} ({one['type']})" for one in said["artifacts"][:12])
        raise FileNotFoundError(
            f"W&B run {path} logged no artifact of {wanted}; it logged {has or 'none'}. Choose by name with "
            f"'{path}?name=PATTERN'"
        )
    policies = sorted({one["collection"].removesuffix(FINAL) for one in found})
    if len(policies) > 1:
        raise ValueError(
            f"W&B run {path} logged {len(policies)} policies: {', '.join(policies[:12])}; choose one with "
            f"'{path}?name={policies[0]}*'"
        )
    return RunListing(
        name=said["name"],
        about={
            **{key: said[key] for key in ("url", "state", "tags", "config", "summary")},
            "project": f"{place.entity}/{place.project}",
        },
        artifacts=_ordered(found),
    )


def _ordered(found: Sequence[Mapping[str, Any]]) -> tuple[ModelArtifact, ...]:
    key = next(
        (
            key
            for key in STEP_KEYS
            if all(whole(one["metadata"].get(key)) is not None for one in found)
        ),
        None,
    )

    def order(one: Mapping[str, Any]) -> int:
        return one["version"] if key is None else whole(one["metadata"][key]) or 0

    # of a run that logged its last checkpoint again as final, without steps, the final one is the last
    ascending = sorted(
        found,
        key=lambda one: (
            key is None and one["collection"].endswith(FINAL),
            order(one),
            one["version"],
            one["path"],
        ),
    )
    if key is None:
        return tuple(_model(one, number) for number, one in enumerate(ascending))
    return tuple({order(one): _model(one, order(one)) for one in ascending}.values())


def whole(value: object) -> int | None:
    """A step as metadata spells it: 200, 200.0; never true, "200" or infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def _model(one: Mapping[str, Any], order: int) -> ModelArtifact:
    return ModelArtifact(
        path=one["path"],
        order=order,
        digest=one["digest"],
        num_bytes=one["bytes"],
        metadata=one["metadata"],
    )


def find_artifact(place: WandbArtifact, service: WandbService) -> ModelArtifact:
    """The version that an alias names now.

    Raises:
        FileNotFoundError: no such artifact.
        WandbError: the server does not answer.
    """
    return _ordered([_ask(service, "describe_artifact", place.path)])[0]


def _ask(service: WandbService, verb: str, path: str) -> Any:  # noqa: ANN401 - JSON
    access = Access.of_environment()
    if not access.has_key:
        raise ValueError(
            f"W&B {path}: no key for {access.host}; set WANDB_API_KEY or run `wandb login`"
        )
    if reason := access.probe():
        raise WandbError(f"W&B {path}: {reason}; try again, or give a file that was downloaded")
    try:
        return service.ask(verb, path=path, deadline_s=LIST_S)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"W&B {path}: {error}") from error
    except WandbError as error:
        raise WandbError(f"W&B {path}: {error}") from error


@contextmanager
def downloaded(artifact: ModelArtifact, service: WandbService, *, cache: Path) -> Iterator[Path]:
    """A folder with the artifact's files, which nobody removes meanwhile.

    Raises:
        ValueError: larger than any policy that could be opened.
        WandbError: it could not be downloaded, or arrived damaged twice.
    """
    if artifact.num_bytes > MAX_FILE_BYTES:
        raise ValueError(
            f"W&B {artifact.path}: {artifact.num_bytes:,} bytes, wanted at most {MAX_FILE_BYTES:,}; "
            "log the policy's weights alone"
        )
    folder = cache / sha256(f"{artifact.path} {artifact.digest}".encode())[:32]
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_intact(folder):
            _download(artifact, service, folder)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield folder / "files"


def _is_intact(folder: Path) -> bool:
    """Whether an earlier download is there, with the bytes that it had when it was verified."""
    record = folder / "verified.json"
    if not record.exists():
        return False
    try:
        wanted = parse_json(record.read_bytes(), source=str(record))
    except ValueError:
        return False
    return wanted == _digests(folder / "files")


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _download(artifact: ModelArtifact, service: WandbService, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        service.ask(
            "download",
            path=artifact.path,
            folder=str(partial / "files"),
            max_bytes=MAX_FILE_BYTES,
            deadline_s=LIST_S + artifact.num_bytes / SLOWEST_BYTES_PER_S,
        )
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise WandbError(f"W&B {artifact.path}: {error}") from error
    (partial / "verified.json").write_bytes(canonical_json(_digests(partial / "files")))
    partial.rename(folder)
