"""What is known of an id: the policies, recordings and dictionaries behind it, and the studies that name it.

A job's entry at the cluster tells it, so that whoever looks for the jobs of a policy finds the one that only named a
recording. Read from small records of the store, by whoever hands the job in, and only as far as they can be read.
"""

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster import milestones
from cluster.fanout import in_threads
from cluster.store import Store
from interp.identity import parse_json

KINDS = {"p": "policies", "r": "recordings", "d": "dictionaries", "c": "concepts"}
"""First letter of an id -> what it is one of."""
PATIENCE_S = 8.0
"""A store that has not told by then is not waited for: the job may reach it where we do not."""
MOST_IDS = 24
"""Of one kind that are told of."""
_ID = re.compile(r"\b[prdc]-[0-9a-f]{16}\b")


@dataclass(slots=True)
class Known:
    """What was found, and why it is not all."""

    by_kind: dict[str, str] = field(default_factory=dict)
    """policies, recordings, ... and study -> names separated by spaces, those that were asked about first."""
    problem: str = ""


def is_id(text: str) -> bool:
    """Whether it looks like an id of something that a store keeps."""
    return _ID.fullmatch(text) is not None


def look_up(store: Store, described: Mapping[str, str], *, patience_s: float = PATIENCE_S) -> Known:
    """`described` with what the store adds to it; nothing is asked where no id and no study is named.

    Args:
        described: Kind -> names separated by spaces, as in `Known.by_kind`; other kinds are kept as they are.
    """
    asked = [name for kind in KINDS.values() for name in described.get(kind, "").split()]
    ids = [name for name in asked if is_id(name)]
    studies = described.get("study", "").split()
    known = Known(by_kind=dict(described))
    if not ids and not studies:
        return known
    answers: list[dict[str, list[str]]] = []

    def ask() -> None:
        try:
            answers.append(_behind(store, ids, studies))
        except (OSError, ValueError, KeyError, TypeError) as error:
            known.problem = str(error)

    thread = threading.Thread(target=ask, name="provenance", daemon=True)
    thread.start()
    thread.join(patience_s)
    if thread.is_alive():
        known.problem = f"no answer within {patience_s:g} s"
    for kind, names in answers[0].items() if answers else ():
        every = dict.fromkeys([*described.get(kind, "").split(), *names])
        if every:
            known.by_kind[kind] = _short(list(every))
    return known


def _short(names: list[str]) -> str:
    left = len(names) - MOST_IDS
    return " ".join([*names[:MOST_IDS], *([f"(and {left} more)"] if left > 0 else [])])


def _behind(store: Store, ids: Iterable[str], studies: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {kind: [] for kind in KINDS.values()}
    waiting = list(ids)
    for study in studies:  # its recordings' and dictionaries' own records tell nothing more
        for name in _ids_of_study(store, study):
            if name[0] in "pd":
                found[KINDS[name[0]]].append(name)
    named_by = [] if studies else _studies_that_name(store, set(waiting))
    seen: set[str] = set()
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        found[KINDS[name[0]]].append(name)
        waiting += _parents(store, name)
    return {**found, "study": named_by}


def _parents(store: Store, name: str) -> list[str]:
    """Ids that the record of an id names as what it was made from; none if the store has no such thing."""
    key = {
        "p": None,  # a policy has no parent here
        "r": f"recordings/{name}/plan.json",
        "d": f"dictionaries/{name}/card.json",
        "c": f"concepts/{name}.json",
    }[name[0]]
    if key is None:
        return []
    try:
        record: Any = parse_json(store.get(key), source=key)
    except FileNotFoundError:
        return []
    match name[0]:
        case "d":
            named = [record.get("recording")]
        case _:
            named = [*record["inputs"].values(), *record["config"].get("players", ())]
    return [one for one in named if isinstance(one, str) and is_id(one)]


def _ids_of_study(store: Store, study: str) -> list[str]:
    """Of its study.json, or, while it is under way, of what its stages have left."""
    try:
        text = store.get(f"studies/{study}/study.json").decode()
    except FileNotFoundError:
        stones = milestones.read(store, study)
        text = " ".join(key for keys in stones.left.values() for key in keys) if stones else ""
    return list(dict.fromkeys(_ID.findall(text)))


def _studies_that_name(store: Store, ids: set[str]) -> list[str]:
    names = store.folders("studies")
    ids_of = in_threads(lambda name: _ids_of_study(store, name), names)
    return [name for name, its in zip(names, ids_of, strict=True) if not ids.isdisjoint(its)]
