"""What does a store hold, what is at work on it, and what is still missing?

Reads listings and small records and no rows. Of R recordings, F of them finished, it asks F + 3 (R - F) times, and once
more for every thousand receipts of an unfinished one; of other objects it lists a thousand at a time. Nothing is
written, so it may be asked while jobs are at work, by somebody who may only read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster import milestones, pulse, quarantine, recordings
from cluster.backends import Corrupt
from cluster.fanout import in_threads
from cluster.pulse import Heard
from cluster.quarantine import Quarantined
from cluster.recordings import Plan
from cluster.store import Store
from cluster.tracking import letters
from interp.identity import parse_json

State = Literal["finished", "unfinished", "without a plan", "unreadable"]
OTHERS = ("recordings", "scratch", "studies")
"""Folders that are more than a listing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingState:
    """How far a recording has come."""

    recording: str
    policy: str | None
    """None of a bank of several players, and where there is no plan."""
    state: State
    shards: int | None
    """In all; None where there is no plan."""
    shards_done: int
    """With a receipt. All of them and yet unfinished: it only wants its commit."""
    rows: int | None
    """None until it is finished."""
    quarantined: tuple[str, ...] = ()
    """Shards that failed on every attempt and have no receipt."""
    last_shard_s: float | None = None
    """Seconds since 1970 of the last receipt, by the storage's clock; None if finished or without one."""
    problem: str = ""
    """Why it is unreadable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyState:
    """How far a study has come."""

    study: str
    is_finished: bool
    """Its study.json is there."""
    passed: tuple[str, ...]
    """Stages of the latest run whose artifacts are there, in order."""
    pending: tuple[str, ...]
    """Stages that have no artifact yet, or lost it."""
    stages_known: bool
    """False where scratch was emptied, or the study is older than the list of its stages."""
    running: tuple[str, ...]
    """Jobs that were heard of lately."""
    letters_unsent: int
    """Letters to W&B without a receipt: `sparsight sync` delivers them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """All of it."""

    store: str
    policies: int
    sweeps: int
    dictionaries: int
    tables: dict[str, int]
    """By kind: concepts, effects, verdicts, ..., and registrations and trainings, which are no tables."""
    recordings: tuple[RecordingState, ...]
    studies: tuple[StudyState, ...]
    running: tuple[Heard, ...]
    """Heard of within `pulse.FRESH_S`."""
    silent: tuple[Heard, ...]
    """Heard of in the last day, but not lately: killed, or cut off from the store."""
    quarantined: tuple[Quarantined, ...]
    """Tasks that failed on every attempt, shards that have a receipt since then left out."""


def read(store: Store) -> StoreState:
    """The state of a store. FileNotFoundError if there is nothing in it."""
    folders = store.folders()
    if not folders:
        raise FileNotFoundError(
            f"store {store.url} is empty or not there; name the folder or s3://bucket/prefix that jobs were given"
        )
    kinds = [folder for folder in folders if folder not in OTHERS]
    keys_of = dict(zip(kinds, in_threads(store.list, kinds), strict=True))
    set_aside = quarantine.read(store)
    states = tuple(_recordings(store, set_aside))
    heard = pulse.heard(store)
    finished = {recordings.manifest_key(one.recording) for one in states if one.state == "finished"}
    present = finished.union(*keys_of.values())
    open_shards = {f"{one.recording}/{shard}" for one in states for shard in one.quarantined}
    return StoreState(
        store=store.url,
        policies=_count(keys_of.pop("policies", ()), "/card.json"),
        sweeps=len({_name(key) for key in keys_of.pop("sweeps", ())}),
        dictionaries=_count(keys_of.pop("dictionaries", ()), "/card.json"),
        tables={kind: _count(keys, ".json") for kind, keys in keys_of.items()},
        recordings=states,
        studies=tuple(_studies(store, present, [one for one in heard if one.is_fresh])),
        running=tuple(one for one in heard if one.is_fresh),
        silent=tuple(one for one in heard if not one.is_fresh),
        quarantined=tuple(
            one for one in set_aside if not one.task.startswith("r-") or one.task in open_shards
        ),
    )


def _recordings(store: Store, set_aside: Sequence[Quarantined]) -> Sequence[RecordingState]:
    shards_of: dict[str, list[str]] = {}
    for one in set_aside:
        recording_id, _, shard = one.task.partition("/")
        shards_of.setdefault(recording_id, []).append(shard)

    def state_of(recording_id: str) -> RecordingState:
        try:
            return _recording(store, recording_id, shards_of.get(recording_id, ()))
        except (ValueError, Corrupt) as error:
            return RecordingState(
                recording=recording_id,
                policy=None,
                state="unreadable",
                shards=None,
                shards_done=0,
                rows=None,
                problem=str(error),
            )

    return list(in_threads(state_of, recordings.known_ids(store)))


def _recording(store: Store, recording_id: str, set_aside: Sequence[str]) -> RecordingState:
    key = recordings.manifest_key(recording_id)
    try:
        manifest: Any = parse_json(store.get(key), source=key)
    except FileNotFoundError:
        return _unfinished(store, recording_id, set_aside)
    try:
        # of a long recording the pages are not opened: the manifest itself counts their shards
        num = manifest["shards"] if "pages" in manifest else len(manifest["receipts"])
        return RecordingState(
            recording=recording_id,
            policy=manifest["plan"]["inputs"].get("policy"),
            state="finished",
            shards=num,
            shards_done=num,
            rows=manifest["rows"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{key}: not a manifest: {error!r}") from error


def _unfinished(store: Store, recording_id: str, set_aside: Sequence[str]) -> RecordingState:
    receipts = store.inventory(f"recordings/{recording_id}/receipts")
    last_shard_s = max((entry.modified_s for entry in receipts), default=None)
    try:
        plan: Plan = recordings.open_plan(store, recording_id)
    except FileNotFoundError:
        return RecordingState(
            recording=recording_id,
            policy=None,
            state="without a plan",
            shards=None,
            shards_done=len(receipts),
            rows=None,
            last_shard_s=last_shard_s,
        )
    done = {_name(entry.key) for entry in receipts} & plan.by_name.keys()
    return RecordingState(
        recording=recording_id,
        policy=plan.inputs.get("policy"),
        state="unfinished",
        shards=len(plan.shards),
        shards_done=len(done),
        rows=None,
        quarantined=tuple(shard for shard in set_aside if shard not in done),
        last_shard_s=last_shard_s,
    )


def _studies(store: Store, present: set[str], fresh: Sequence[Heard]) -> Sequence[StudyState]:
    keys = store.list("studies")
    begun = milestones.known(store)
    names = sorted({key.split("/")[1] for key in keys}.union(begun))
    present = present.union(keys)
    known = in_threads(lambda name: milestones.read(store, name), begun)
    stones = dict(zip(begun, known, strict=True))
    states = []
    for name in names:
        of_run = stones.get(name)
        stages = of_run.stages if of_run else ()
        passed = tuple(
            stage
            for stage in stages
            if of_run and stage in of_run.left and present.issuperset(of_run.left[stage])
        )
        states.append(
            StudyState(
                study=name,
                is_finished=f"studies/{name}/study.json" in present,
                passed=passed,
                pending=tuple(stage for stage in stages if stage not in passed),
                stages_known=of_run is not None,
                running=tuple(one.beat.job for one in fresh if one.beat.study == name),
                letters_unsent=len(letters.unsent(keys, name)),
            )
        )
    return states


def _count(keys: Sequence[str], ending: str) -> int:
    return sum(key.endswith(ending) for key in keys)


def _name(key: str) -> str:
    """sweeps/w-1.json and sweeps/h-1/search.json -> w-1 and h-1; .../receipts/s00001.json -> s00001."""
    parts = key.split("/")
    return (parts[1] if parts[0] == "sweeps" else parts[-1]).removesuffix(".json")
