"""What a user writes to name a trained policy, and what kind of place it means. Nothing is opened here."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from cluster.tracking.access import Access

FORMS = """\
  path/to/policy.pt            a file, or a folder of one checkpoint or of many
  s3://bucket/key              the same on S3
  entity/project/run_id        a W&B run: all checkpoints that it logged as artifacts of type model
  entity/.../run_id?name=GLOB  the same, but those of its artifacts that have such a name
  entity/project/name:alias    one W&B artifact, for instance acme/foraging/policy:v3
  wandb://...                  either of the two
  https://wandb.ai/...         the web address of a run or of an artifact
  zoo:name                     a demo run of this store, for instance zoo:forage-s0"""

LEGACY_PROJECT = "metta"
"""Project of addresses of the form wandb://run/NAME, which name neither entity nor project."""
REGISTRY_PREFIX = "wandb-registry-"
_NAME = r"[^/:?#*\s](?:[^/:?#*]{0,126}[^/:?#*\s])?"
"""Of a run, a project or an artifact: W&B allows almost anything, and spaces inside."""
_PATTERN = r"[^/:]{1,128}"
_ALIASED = re.compile(rf"({_NAME}):({_NAME})")


@dataclass(frozen=True, slots=True)
class LocalPath:
    path: Path


@dataclass(frozen=True, slots=True)
class S3Address:
    """An object, or all objects below a prefix."""

    bucket: str
    key: str


@dataclass(frozen=True, slots=True)
class WandbRun:
    entity: str
    project: str
    run_id: str
    pattern: str = ""
    """Of the artifacts' names, such as `policy-*`; empty for all artifacts of type `model`."""


@dataclass(frozen=True, slots=True)
class WandbArtifact:
    """One version of an artifact; the entity is empty for a registry path that leaves the organisation out."""

    entity: str
    project: str
    name: str
    alias: str

    @property
    def path(self) -> str:
        """As W&B spells it."""
        return "/".join(filter(None, (self.entity, self.project, f"{self.name}:{self.alias}")))


@dataclass(frozen=True, slots=True)
class ZooRun:
    """A training run of the store, by its name."""

    name: str


PolicyUri = LocalPath | S3Address | WandbRun | WandbArtifact | ZooRun


def parse_uri(text: str) -> PolicyUri:
    """The place that a URI names.

    A bare `a/b/c` is a path if there is such a file, or if it looks like one (`./`, `/`, `~`, a known suffix), and a
    W&B run otherwise.

    Raises:
        ValueError: none of the accepted forms; the message lists them.
    """
    if not text or any(not character.isprintable() for character in text):
        raise _not_accepted(text, "it is empty or holds control characters")
    scheme, separator, rest = text.partition(":")
    match scheme.lower() if separator else "":
        case "zoo":
            if not re.fullmatch(_NAME, rest):
                raise _not_accepted(text, "wanted a run's name after 'zoo:'")
            return ZooRun(rest)
        case "s3":
            return _s3(text)
        case "file":
            return LocalPath(Path(unquote(urlsplit(text).path)))
        case "wandb":
            return _wandb(text, rest.removeprefix("//"))
        case "http" | "https":
            try:
                address = urlsplit(text)
            except ValueError as error:
                raise _not_accepted(text, str(error)) from error
            return _web_address(text, address)
        case _ if "://" in text:
            raise _not_accepted(text, f"no such kind as {scheme}://")
        case _ if _is_path(text):
            try:
                return LocalPath(Path(text).expanduser())
            except RuntimeError as error:
                raise _not_accepted(text, str(error)) from error
        case _:
            return _wandb(text, text)


def _is_path(text: str) -> bool:
    if text.startswith(("/", "./", "../", "~")):
        return True
    if text.endswith((".pt", ".pth", ".safetensors", ".mpt", ".zip")):
        return True
    try:
        return Path(text).exists()
    except OSError:  # too long for a name
        return False


def _s3(text: str) -> S3Address:
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError(
            "a policy's s3:// address may not hold credentials: put them into the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and write s3://bucket/key"
        )
    key = parts.path.strip("/")
    if not parts.netloc or not key or parts.query or parts.fragment:
        raise _not_accepted(text, "wanted s3://bucket/key")
    return S3Address(parts.netloc, key)


def _wandb(text: str, path: str) -> WandbRun | WandbArtifact:
    path, query, pattern = path.partition("?name=")
    found = _wandb_path(text, path)
    if not query:
        return found
    if not isinstance(found, WandbRun) or not re.fullmatch(_PATTERN, pattern):
        raise _not_accepted(text, "wanted entity/project/run_id?name=PATTERN")
    return replace(found, pattern=pattern)


def _wandb_path(text: str, path: str) -> WandbRun | WandbArtifact:
    *folders, last = path.strip("/").split("/")
    if not all(re.fullmatch(_NAME, folder) for folder in folders):
        raise _not_accepted(text, "neither a file nor entity/project/run_id nor .../name:alias")
    aliased = _ALIASED.fullmatch(last)
    match folders, aliased:
        case ["run"], None:
            return WandbArtifact(_entity(text), LEGACY_PROJECT, last, "latest")
        case ["run"], re.Match():
            return WandbArtifact(_entity(text), LEGACY_PROJECT, *aliased.groups())
        case [organisation, project], None if project.startswith(REGISTRY_PREFIX):
            return WandbArtifact(organisation, project, last, "latest")
        case [entity, project], None if re.fullmatch(_NAME, last):
            return WandbRun(entity, project, last)
        case [entity, project, "runs"], None if re.fullmatch(_NAME, last):
            return WandbRun(entity, project, last)
        case [project], re.Match() if project.startswith(REGISTRY_PREFIX):
            return WandbArtifact("", project, *aliased.groups())
        case [entity, project], re.Match():
            return WandbArtifact(entity, project, *aliased.groups())
        case [entity, project, "model" | "sweep_model"], re.Match():
            return WandbArtifact(entity, project, *aliased.groups())
        case _:
            raise _not_accepted(text, "neither a file nor entity/project/run_id nor .../name:alias")


def _entity(text: str) -> str:
    entity = os.environ.get("WANDB_ENTITY")
    if not entity:
        raise ValueError(
            f"policy {text!r} names no entity: set WANDB_ENTITY, or write wandb://entity/project/name:alias"
        )
    return entity


def _web_address(text: str, address: SplitResult) -> WandbRun | WandbArtifact:
    if "@" in address.netloc:
        raise ValueError(
            "a policy's web address may not hold credentials: put the key into WANDB_API_KEY and leave them out"
        )
    host = Access.of_environment().host.lower().removeprefix("api.")
    if address.netloc.lower().removeprefix("www.") != host:
        raise _not_accepted(
            text,
            f"its host is not the W&B server in use, {host} (WANDB_BASE_URL or `wandb login --host` decides)",
        )
    match unquote(address.path).strip("/").split("/"):
        case [entity, project, "runs", run_id, *_]:
            pattern = parse_qs(address.query).get("name", [""])[0]
            query = f"?name={pattern}" if pattern else ""
            return _wandb(text, f"{entity}/{project}/{run_id}{query}")
        case [entity, project, "artifacts", _, name, alias, *_]:
            return _wandb(text, f"{entity}/{project}/{name}:{alias}")
        case _:
            raise _not_accepted(text, "wanted .../entity/project/runs/run_id")


def _not_accepted(text: str, why: str) -> ValueError:
    return ValueError(f"policy {text!r:.200}: {why}. Accepted are\n{FORMS}")
