"""From a URI to the policies that it names: the checkpoints of one training run, in the order of training.

Listing opens nothing. Only the checkpoints that were chosen are fetched, read without running code from them, and kept
in the store as policies.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cluster import policies, training
from cluster.notes import Note, silent
from cluster.store import Store
from cluster.tracking import source
from cluster.tracking.access import Access
from cluster.tracking.service import WandbService
from cluster.tracking.source import STEP_KEYS, ModelArtifact, whole
from cluster.training import TrainedRun
from cluster.uris import LocalPath, S3Address, WandbArtifact, WandbRun, ZooRun, parse_uri
from interp.identity import content_id
from interp.policies.bundle import PolicyBundle, PolicyCard
from interp.policies.formats.limits import MAX_FILE_BYTES
from interp.policies.formats.reading import read_policy_file
from interp.policies.policy_file import PolicyFile
from interp.policies.recognition import recognise
from interp.worlds.catalogue import load_world

if TYPE_CHECKING:
    from cluster.s3 import S3Prefix

CHOICES = """\
  all        every checkpoint
  last       the last one
  log:N      N of them, evenly spaced on a logarithmic scale of training steps, first and last included
  A:B        those from step A to step B; either may be left out"""
BUNDLE_FILES = (
    *("weights.safetensors", "policy_spec.json", "architecture.json", "cogames.toml"),
    *("module_state.pkl", "rllib_checkpoint.json"),
)
"""A folder that holds one of these is one checkpoint; any other folder holds many."""
SUFFIXES = (".pt", ".pth", ".safetensors", ".mpt", ".zip")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Checkpoint:
    """The objects of one checkpoint: one file, or all that lie below a prefix."""

    bucket: str
    prefix: str
    """Folder of the objects, which may be empty."""
    keys: tuple[str, ...]
    """Below the prefix."""
    name: str
    """File or folder below the prefix that is the checkpoint; empty if the prefix itself is."""

    def download(self, folder: Path) -> Path:
        """Copies the objects into a folder, after looking at their sizes; the path of the file, or of the folder."""
        objects = _objects(self.bucket, self.prefix)
        total = sum(objects.size(key) or 0 for key in self.keys)
        if total > MAX_FILE_BYTES:
            raise ValueError(
                f"policy {objects.address(self.keys[0])}: {total:,} bytes, wanted at most {MAX_FILE_BYTES:,}; "
                "keep the policy's weights apart"
            )
        for key in self.keys:
            path = folder / key
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"policy {objects.address(key)}: the key leaves its folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(objects.get(key))
        return folder / self.name


def _objects(bucket: str, prefix: str) -> "S3Prefix":
    from cluster.s3 import S3Prefix  # takes half a second, which other addresses need not wait

    return S3Prefix(bucket=bucket, prefix=prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One checkpoint as its source lists it, not opened yet."""

    label: str
    """Its name there."""
    order: int
    """Training steps as far as the listing tells: from metadata, or else the last number in the label."""
    place: "LocalPath | S3Checkpoint | ModelArtifact | str"
    """Where it lies; a string is the id of a policy of the store."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the source says of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The checkpoints of one training run, ascending."""

    uri: str
    name: str
    checkpoints: tuple[Checkpoint, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the source says of the run: its config, summary, tags and web address."""


def choose(items: Sequence[Item], steps: Sequence[int], choice: str) -> list[Item]:
    """Some of a run's checkpoints, which come in ascending order of their steps.

    Raises:
        ValueError: a choice that is none of `CHOICES`, or that leaves nothing.
    """
    if choice == "all":
        return list(items)
    if choice == "last":
        return list(items[-1:])
    if spaced := re.fullmatch(r"log:([1-9]\d{0,5})", choice):
        return [items[index] for index in _log_spaced(np.array(steps, np.float64), int(spaced[1]))]
    if bounds := re.fullmatch(r"(\d*):(\d*)", choice):
        low, high = (int(text) if text else None for text in bounds.groups())
        chosen = [
            item
            for item, step in zip(items, steps, strict=True)
            if (low is None or step >= low) and (high is None or step <= high)
        ]
        if not chosen:
            raise ValueError(
                f"checkpoints {choice!r}: none of the {len(items)} lies there; they are at steps "
                f"{', '.join(f'{step:,}' for step in steps[:20])}"
            )
        return chosen
    raise ValueError(f"checkpoints {choice!r:.80}: not a choice. Choose\n{CHOICES}")


def _log_spaced(step_C: np.ndarray, number: int) -> list[int]:
    """Indices of at most `number` checkpoints; step 0 counts as the first of the scale."""
    if number >= len(step_C):
        return list(range(len(step_C)))
    if number == 1:
        return [len(step_C) - 1]
    log_C = np.log(np.maximum(step_C, 1))
    if (
        step_C[0] <= 0
    ):  # from 0 to the first step is one more notch of the scale, not the whole of it
        log_C[0] = log_C[1] - (log_C[-1] - log_C[1]) / max(1, number - 2)
    chosen: list[int] = []
    for target in np.linspace(log_C[0], log_C[-1], number):
        free = [index for index in range(len(step_C)) if index not in chosen]
        chosen.append(min(free, key=lambda index: abs(log_C[index] - target)))
    return sorted(chosen)


def list_local(uri: str, path: Path) -> Trajectory:
    """A file, a folder of one checkpoint, or a folder of many: ordered by the last number in their names.

    Raises:
        FileNotFoundError: no such path, or a folder without policies.
    """
    if not path.exists():
        raise FileNotFoundError(f"policy {uri}: no such file or folder: {path}")
    if path.is_file():
        return _trajectory(uri, path.stem, {path.name: LocalPath(path)})
    keys = [one.relative_to(path).as_posix() for one in (*path.glob("*"), *path.glob("*/*"))]
    places = {name: LocalPath(path / name) for name in checkpoints_among(keys)}
    if not places:
        raise FileNotFoundError(
            f"policy {uri}: found no policy in {path}; wanted files ending in {', '.join(SUFFIXES)}, or folders with "
            f"one of {', '.join(BUNDLE_FILES)}"
        )
    return _trajectory(uri, path.name, places)


def _trajectory(uri: str, name: str, places: Mapping[str, LocalPath | S3Checkpoint]) -> Trajectory:
    """Checkpoints by their labels, in the order of the last numbers in these; the label "" stands for the name."""
    checkpoints = [
        Checkpoint(label=label or name, order=last_number(label or name), place=place)
        for label, place in places.items()
    ]
    return Trajectory(
        uri=uri,
        name=name,
        checkpoints=tuple(sorted(checkpoints, key=lambda one: (one.order, one.label))),
    )


def last_number(label: str) -> int:
    """The last number in a name such as model_000200.pt; 0 if there is none."""
    suffix = Path(label).suffix
    numbers = re.findall(r"\d+", label.removesuffix(suffix) if suffix in SUFFIXES else label)
    return int(numbers[-1]) if numbers else 0


def list_zoo(store: Store, uri: str, run: ZooRun) -> Trajectory:
    """The checkpoints of a run that was trained in this store.

    Raises:
        FileNotFoundError: the store has no such run; the message names those that it has.
    """
    runs = training.list_runs(store)
    found = [one for one in runs if one.name == run.name]
    if not found:
        known = ", ".join(sorted(one.name for one in runs)) or "none yet"
        raise FileNotFoundError(
            f"policy {uri}: store {store.url} has no run of that name; it has {known}. "
            "`sparsight train-demo` trains forage-s0, forage-s1 and hazard-s0"
        )
    if len(found) > 1:
        raise ValueError(
            f"policy {uri}: {len(found)} runs of store {store.url} have that name: "
            f"{', '.join(one.run_id for one in found)}; give the id of one instead"
        )
    return Trajectory(
        uri=uri,
        name=run.name,
        checkpoints=tuple(
            Checkpoint(label=card.policy_id, order=card.step, place=card.policy_id)
            for card in found[0].checkpoints
        ),
    )


def list_checkpoints(store: Store, uri: str, service: WandbService) -> Trajectory:
    """What a URI names, in the order of training; nothing is opened. W&B is asked only if the URI is one of its own.

    Raises:
        ValueError: a URI of no accepted form.
        FileNotFoundError: nothing there.
        OSError: the place does not answer.
    """
    match parse_uri(uri):
        case ZooRun() as run:
            return list_zoo(store, uri, run)
        case LocalPath(path):
            return list_local(uri, path)
        case S3Address() as address:
            return list_s3(uri, address)
        case WandbRun() as run:
            listing = source.list_run(run, service)
            return Trajectory(
                uri=uri,
                name=listing.name,
                checkpoints=tuple(map(_artifact_checkpoint, listing.artifacts)),
                about=listing.about,
            )
        case WandbArtifact() as place:
            artifact = source.find_artifact(place, service)
            return Trajectory(
                uri=uri, name=place.name, checkpoints=(_artifact_checkpoint(artifact),)
            )


def _artifact_checkpoint(artifact: ModelArtifact) -> Checkpoint:
    return Checkpoint(
        label=artifact.path.rpartition("/")[2],
        order=artifact.order,
        place=artifact,
        metadata=artifact.metadata,
    )


def list_s3(uri: str, address: S3Address) -> Trajectory:
    """An object, or all checkpoints below a prefix: files, and prefixes that hold one checkpoint each.

    Raises:
        FileNotFoundError: no such object and no policy below such a prefix.
        StoreError: the server fails, or refuses.
    """
    parent, _, name = address.key.rpartition("/")
    if _objects(address.bucket, parent).size(name) is not None:
        found = {name: (name,)}
        prefix, label = parent, PurePosixPath(name).stem
    else:
        prefix, label = address.key, name
        found = checkpoints_among(_objects(address.bucket, prefix).list(""))
    if not found:
        raise FileNotFoundError(
            f"policy {uri}: no such object, and no policy below it; wanted objects ending in {', '.join(SUFFIXES)}, "
            f"or prefixes with one of {', '.join(BUNDLE_FILES)}"
        )
    places = {
        name: S3Checkpoint(bucket=address.bucket, prefix=prefix, keys=keys, name=name)
        for name, keys in found.items()
    }
    return _trajectory(uri, label, places)


def checkpoints_among(keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Which files below a folder make up which checkpoint: label -> files.

    If the folder itself is one checkpoint, that one, under the label "". Otherwise every file with the suffix of a
    policy and every folder directly below that is a checkpoint; other files are not looked at.
    """
    if any(key in BUNDLE_FILES for key in keys):
        return {"": tuple(keys)}
    bundles = {
        folder
        for folder, _, file in (key.rpartition("/") for key in keys)
        if file in BUNDLE_FILES and "/" not in folder
    }
    return {
        **{key: (key,) for key in keys if "/" not in key and key.endswith(SUFFIXES)},
        **{
            folder: tuple(key for key in keys if key.startswith(f"{folder}/"))
            for folder in sorted(bundles)
        },
    }


@contextmanager
def fetched(store: Store, checkpoint: Checkpoint, service: WandbService) -> Iterator[Path]:
    """The checkpoint as a file or folder of this machine, for as long as it is being read."""
    match checkpoint.place:
        case LocalPath(path):
            yield path
        case S3Checkpoint() as place:
            with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
                yield place.download(Path(folder))
        case ModelArtifact() as artifact:
            cache = store.workspace("wandb")
            with source.downloaded(artifact, service, cache=cache) as folder:
                yield folder
        case str(policy_id):
            raise ValueError(f"policy {policy_id} is in the store already")


def open_run(
    store: Store,
    uri: str,
    *,
    choice: str = "all",
    name: str | None = None,
    world: str | None = None,
    factories: Sequence[str] = (),
    note: Note = silent,
) -> TrainedRun:
    """Fetches the chosen checkpoints and keeps them as policies of the store.

    Runs of equal checkpoints under one name are one run, wherever they came from.

    Args:
        choice: See `CHOICES`.
        name: What to call the run; by default as its source does.
        world: World to play in; by default the one that the policy says it was trained in.
        factories: Allowed factories of modules, one of which may have these tensors; they want a `world`.

    Raises:
        ValueError: nothing known has such tensors, no world is named, or a choice that is none.
        FileNotFoundError: nothing there.
    """
    with WandbService() as service:
        trajectory = list_checkpoints(store, uri, service)
        listed = trajectory.checkpoints
        chosen = choose(listed, [one.order for one in listed], choice)
        name = name or trajectory.name
        if all(isinstance(one.place, str) for one in chosen):
            cards = [policies.read_card(store, str(one.place)) for one in chosen]
            return _run(name, world or cards[0].world, cards)
        spec = load_world(world).spec if factories and world is not None else None
        opened: list[_Opened] = []
        for number, checkpoint in enumerate(chosen):
            with fetched(store, checkpoint, service) as path:
                file = read_policy_file(path)
            bundle = recognise(file, factories=factories, world=spec)
            opened.append(_Opened(checkpoint, file, bundle))
            note(number + 1, len(chosen), checkpoint.label)
    by_step, steps_are_told = _by_step(uri, opened)
    identity = _identity(name, [one.bundle.policy_id for one in by_step.values()])
    cards = []
    for step, one in by_step.items():
        card = policies.save(
            store,
            one.bundle,
            name=name,
            run=identity,
            step=step,
            world=world or _world_of(uri, one.checkpoint, one.file),
            source={
                "uri": uri,
                "label": one.checkpoint.label,
                "format": one.file.format,
                "sha256": one.file.sha256,
                "origin": _origin(one.checkpoint),
                "metadata": {**one.checkpoint.metadata, **one.file.metadata},
                "run": trajectory.about,
            },
        )
        # the card of a policy that was there before tells of another run
        cards.append(replace(card, name=name, run=identity, step=step, world=world or card.world))
    return _run(name, cards[-1].world, cards, steps_are_told=steps_are_told)


@dataclass(frozen=True, slots=True)
class _Opened:
    checkpoint: Checkpoint
    file: PolicyFile
    bundle: PolicyBundle


def _origin(checkpoint: Checkpoint) -> dict[str, str] | None:
    """The W&B artifact of a checkpoint; only the server that listed it says so, never the file."""
    if not isinstance(checkpoint.place, ModelArtifact):
        return None
    return {
        "artifact": checkpoint.place.path,
        "digest": checkpoint.place.digest,
        "server": Access.of_environment().host,
    }


def _run(
    name: str, world: str, cards: Sequence[PolicyCard], *, steps_are_told: bool = True
) -> TrainedRun:
    return TrainedRun(
        run_id=_identity(name, [card.policy_id for card in cards]),
        name=name,
        world=world,
        checkpoints=tuple(cards),
        steps_are_told=steps_are_told,
    )


def _identity(name: str, policy_ids: Sequence[str]) -> str:
    """Equal checkpoints under one name are one run, wherever they came from."""
    return content_id("t", {"name": name, "policies": list(policy_ids)})


def training_step(checkpoint: Checkpoint, file: PolicyFile) -> int | None:
    """Steps of training behind a checkpoint, if it or its source tells."""
    steps = _told_steps([(file.metadata, checkpoint.metadata)])
    return steps[0] if steps else None


def _by_step(uri: str, opened: Sequence[_Opened]) -> tuple[dict[int, _Opened], bool]:
    """Checkpoints by steps of training, ascending, and whether the files or their source told the steps.

    Otherwise the order of the listing stands in for them.

    Raises:
        ValueError: two different policies have one step.
    """
    told = _told_steps([(one.file.metadata, one.checkpoint.metadata) for one in opened])
    steps = told or [one.checkpoint.order for one in opened]
    found: dict[int, _Opened] = {}
    for step, one in zip(steps, opened, strict=True):
        before = found.setdefault(step, one)
        if before.bundle.policy_id != one.bundle.policy_id:
            raise ValueError(
                f"policy {uri}: {before.checkpoint.label} and {one.checkpoint.label} differ but are both at step "
                f"{step:,}; put the steps into their names, or open one of them alone"
            )
    return dict(sorted(found.items())), told is not None


def _told_steps(said: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[int] | None:
    """Steps of each, counted in one way for all, from what its file says and what its source says of it."""
    for key in STEP_KEYS:
        steps = [
            next((step for one in pair if (step := whole(one.get(key))) is not None), None)
            for pair in said
        ]
        known = [step for step in steps if step is not None]
        if len(known) == len(steps):
            return known
    return None


def _world_of(uri: str, checkpoint: Checkpoint, file: PolicyFile) -> str:
    for said in (file.metadata, checkpoint.metadata):
        if isinstance(said.get("world"), str):
            return said["world"]
    raise ValueError(
        f"policy {uri}: {checkpoint.label} does not say which world it was trained in; give one with --world"
    )
