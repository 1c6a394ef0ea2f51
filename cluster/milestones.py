"""How far has a study come? Its stages in order, and the objects that each has left: scratch/milestones/<study>.json.

A run of the study begins the list anew and fills it as it passes its stages, found or made. So it is the latest run
that is told of, and a stage counts as long as what it left is there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.results import Kind
from cluster.store import Store
from interp.identity import canonical_json, parse_json

FOLDER = "scratch/milestones"


@dataclass(slots=True, kw_only=True)
class Milestones:
    """Of one study."""

    study: str
    stages: tuple[str, ...]
    """In the order of the run."""
    left: dict[str, list[str]] = field(default_factory=dict)
    """Stage -> keys of what it left; a stage is here once it was passed, also if it had nothing to leave."""

    def begin(self, store: Store) -> None:
        """Says that the study is under way and has passed nothing."""
        self._write(store)

    def passed(self, store: Store, stage: str, keys: Iterable[str]) -> None:
        """Keeps what a stage left."""
        assert stage in self.stages, stage
        self.left[stage] = sorted(keys)
        self._write(store)

    def _write(self, store: Store) -> None:
        store.replace(
            f"{FOLDER}/{self.study}.json",
            canonical_json({"study": self.study, "stages": list(self.stages), "left": self.left}),
        )


def read(store: Store, study: str) -> Milestones | None:
    """None if no run of that study has begun, or scratch was emptied since."""
    key = f"{FOLDER}/{study}.json"
    try:
        record: Any = parse_json(store.get(key), source=key)
    except FileNotFoundError:
        return None
    if record.keys() != {"study", "stages", "left"}:
        raise ValueError(f"{key}: fields {sorted(record)}, wanted left, stages, study; remove it")
    return Milestones(study=record["study"], stages=tuple(record["stages"]), left=record["left"])


def known(store: Store) -> Sequence[str]:
    """Studies that have begun."""
    return [key.rsplit("/", 1)[1].removesuffix(".json") for key in store.list(FOLDER)]


def tables(kind: Kind, ids: Iterable[str]) -> list[str]:
    """Keys of the notes of tables, which are written last."""
    return [f"{kind}/{table_id}.json" for table_id in ids]


def cards(kind: str, ids: Iterable[str]) -> list[str]:
    """Keys of the cards of policies or dictionaries, which are written last."""
    return [f"{kind}/{one}/card.json" for one in ids]
