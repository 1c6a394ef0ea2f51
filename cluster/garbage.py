"""What in a store is of no use to anyone: found first, shown, and removed only if that is asked for.

* data of a finished recording that its manifest does not list: a shard that was written twice with other bytes;
* recordings that were begun and never finished, if they are named, or have not changed for some days;
* staged activations of this machine whose recording is gone or which were not used for some days, and what a cut-short
  staging left;
* notes in scratch: of jobs that were killed and not heard of for a day, and of shards that were set aside and whose
  recording was finished or removed since.

What a study, a dictionary, a table or another recording names is never garbage. Ages of objects are differences between
times of the storage's own clock, which this machine's need not agree with.
"""

import fcntl
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from cluster import pulse, quarantine, recordings, staging
from cluster.backends import Entry, StoreError
from cluster.fanout import in_threads
from cluster.notes import Note, silent
from cluster.store import Store

DAY_S = 86_400.0
_RECORDING_ID = re.compile(rb"\br-[0-9a-f]{16}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """Things that go together."""

    kind: Literal["orphans", "unfinished", "staged", "notes"]
    what: str
    """A recording's id, the name of a folder of this machine, or a folder of notes."""
    why: str
    keys: tuple[str, ...] = ()
    """Objects of the store, in the order of removal."""
    folder: Path | None = None
    """Of this machine, instead of objects."""
    bytes: int


def find(
    store: Store, *, unfinished: Sequence[str] = (), older_than_days: float | None = None
) -> list[Garbage]:
    """All garbage of a store. Reads the store and nothing else, but for one small object that tells the storage's time.

    Args:
        unfinished: Recordings that are given up; they must not be under way.
        older_than_days: If nothing happened to them for so long, unfinished recordings and staged activations are
            garbage too; recordings that something refers to are not.

    Raises:
        FileNotFoundError: a recording that is not in the store.
        ValueError: a recording is finished, or something refers to it.
    """
    if older_than_days is not None and older_than_days < 0:
        raise ValueError(f"older_than_days {older_than_days}: at least 0")
    known = recordings.known_ids(store)
    for recording_id in unfinished:
        if recording_id not in known:
            raise FileNotFoundError(f"recording {recording_id} is not in store {store.url}")
        if store.exists(recordings.manifest_key(recording_id)):
            raise ValueError(f"recording {recording_id} is finished: it is not garbage")
    now_s = None if older_than_days is None else _storage_time(store)
    is_abandoned = partial(_is_abandoned, now_s=now_s, older_than_days=older_than_days)
    orphans: list[Garbage] = []
    given_up: list[Garbage] = []
    finished = []
    for recording_id in known:
        objects = store.inventory(f"recordings/{recording_id}")
        if store.exists(recordings.manifest_key(recording_id)):
            finished.append(recording_id)
            orphans += _orphans(store, recording_id, objects)
        elif recording_id in unfinished or is_abandoned(objects):
            given_up.append(_given_up(recording_id, objects, named=recording_id in unfinished))
    referred = references(store, [one.what for one in given_up]) if given_up else {}
    for recording_id, key in referred.items():
        if recording_id in unfinished:
            raise ValueError(
                f"recording {recording_id} is not finished, but {key} refers to it: finish it with the command that "
                "began it, or remove what refers to it first"
            )
    abandoned = [one for one in given_up if one.what not in referred]
    notes = _notes_of_dead_jobs(store) + _notes_of_settled_shards(store, known, finished)
    return orphans + abandoned + _stale_caches(store, finished, older_than_days) + notes


def remove(store: Store, garbage: Sequence[Garbage], note: Note = silent) -> None:
    """Removes what `find` found. What was put back to use in the meantime stays."""
    total = sum(len(one.keys) + (one.folder is not None) for one in garbage)
    done = 0
    for one in garbage:
        if one.folder is not None:
            _unless_in_use(one.folder, partial(shutil.rmtree, one.folder, ignore_errors=True))
            done += 1
            note(done, total, one.what)
        if one.kind == "unfinished" and store.exists(recordings.manifest_key(one.what)):
            raise StoreError(f"recording {one.what} was finished a moment ago; run again")
        for _ in in_threads(store.remove, one.keys):
            done += 1
            note(done, total, one.what)


def references(store: Store, recording_ids: Sequence[str]) -> dict[str, str]:
    """Of those recordings, the ones that are named somewhere outside of themselves, and one key that names each.

    Reads every JSON object but receipts, manifests and scratch: whatever names a recording, of whatever kind, is found.
    """
    keys = [
        key
        for folder in store.folders()
        if folder not in ("recordings", "scratch")
        for key in store.list(folder)
        if key.endswith(".json")
    ]
    keys += [f"recordings/{recording_id}/plan.json" for recording_id in recordings.known_ids(store)]

    def named(key: str) -> set[str]:
        try:
            content = store.get(key)
        except FileNotFoundError:  # a recording without a plan, or removed since it was listed
            return set()
        own = key.split("/")[1] if key.startswith("recordings/") else None
        return {name.decode() for name in _RECORDING_ID.findall(content)} - {own}

    wanted = set(recording_ids)
    found: dict[str, str] = {}
    for key, names in zip(keys, in_threads(named, keys), strict=True):
        found |= dict.fromkeys(wanted & names - found.keys(), key)
    return found


def _orphans(store: Store, recording_id: str, objects: Sequence[Entry]) -> list[Garbage]:
    manifest = recordings.open_manifest(store, recording_id)
    used = {*manifest.data_keys, *manifest.pages}
    folders = tuple(f"recordings/{recording_id}/{name}/" for name in ("data", "manifests"))
    orphans = [one for one in objects if one.key.startswith(folders) and one.key not in used]
    if not orphans:
        return []
    return [
        Garbage(
            kind="orphans",
            what=recording_id,
            why="objects that its manifest does not list",
            keys=tuple(one.key for one in orphans),
            bytes=sum(one.bytes for one in orphans),
        )
    ]


def _given_up(recording_id: str, objects: Sequence[Entry], *, named: bool) -> Garbage:
    # Receipts go first: were they left behind by a removal that is cut short, they would promise rows that are gone.
    keys = sorted((one.key for one in objects), key=lambda key: not key.endswith(".json"))
    return Garbage(
        kind="unfinished",
        what=recording_id,
        why="begun and never finished, and named" if named else "begun, never finished, and old",
        keys=tuple(keys),
        bytes=sum(one.bytes for one in objects),
    )


def _is_abandoned(
    objects: Sequence[Entry], *, now_s: float | None, older_than_days: float | None
) -> bool:
    if now_s is None or older_than_days is None or not objects:
        return False
    return now_s - max(one.modified_s for one in objects) > older_than_days * DAY_S


def _storage_time(store: Store) -> float:
    """Now, by the clock that dates the objects."""
    folder = f"scratch/time-{secrets.token_hex(8)}"
    store.replace(f"{folder}/now.json", b"{}")
    try:
        (entry,) = store.inventory(folder)
    finally:
        store.remove(f"{folder}/now.json")
    return entry.modified_s


def _notes_of_dead_jobs(store: Store) -> list[Garbage]:
    notes = store.inventory(pulse.FOLDER)
    if not notes:
        return []
    now_s = _storage_time(store)
    old = [note for note in notes if now_s - note.modified_s > pulse.REMEMBERED_S]
    return _notes(pulse.FOLDER, "of jobs that were not heard of for a day", old)


def _notes_of_settled_shards(
    store: Store, known: Sequence[str], finished: Sequence[str]
) -> list[Garbage]:
    notes = {entry.key: entry for entry in store.inventory(quarantine.FOLDER)}
    settled = []
    for one in quarantine.read(store) if notes else ():
        recording_id, is_shard, _ = one.task.partition("/")
        has_gone = recording_id not in known or recording_id in finished
        if is_shard and recording_id.startswith("r-") and has_gone and one.key in notes:
            settled.append(notes[one.key])
    return _notes(
        quarantine.FOLDER, "of shards whose recording was finished or removed since", settled
    )


def _notes(folder: str, why: str, notes: Sequence[Entry]) -> list[Garbage]:
    if not notes:
        return []
    return [
        Garbage(
            kind="notes",
            what=folder,
            why=f"notes {why}",
            keys=tuple(note.key for note in notes),
            bytes=sum(note.bytes for note in notes),
        )
    ]


def _stale_caches(
    store: Store, finished: Sequence[str], older_than_days: float | None
) -> list[Garbage]:
    stale = []
    for cache in staging.caches(store):
        age_days = (time.time() - cache.used_s) / DAY_S
        if cache.recording_id is None:
            why = "staged activations that were not finished, or by another version"
        elif cache.recording_id not in finished:
            why = f"staged activations of {cache.recording_id}, which is not in the store"
        elif older_than_days is not None and age_days > older_than_days:
            why = f"staged activations of {cache.recording_id}, not used for {age_days:.0f} days"
        else:
            continue
        if _unless_in_use(cache.folder, lambda: None):
            stale.append(
                Garbage(
                    kind="staged",
                    what=cache.folder.name,
                    why=why,
                    folder=cache.folder,
                    bytes=cache.bytes,
                )
            )
    return stale


def _unless_in_use(folder: Path, act: Callable[[], None]) -> bool:
    """Acts while no process of this machine stages into the folder; False, without acting, if one does."""
    with staging.lock_of(folder).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        act()
    return True
