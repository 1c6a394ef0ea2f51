"""Tables of findings in the store: `<kind>/<id>.parquet` beside `<id>.json`, which tells what they were computed from.

The id is a hash of config, inputs and the version of the code, so the same question is answered once.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.backends import Corrupt
from cluster.recordings import parquet_bytes
from cluster.store import Store
from interp.identity import canonical_json, content_id, parse_json, sha256

Kind = Literal[
    "clips",
    "concepts",
    "effects",
    "evaluations",
    "findings",
    "groups",
    "lineages",
    "returns",
    "scores",
    "selections",
    "sequences",
    "stabilities",
    "verdicts",
    "windows",
]
CODE_VERSION = version("sparsight")


@dataclass(frozen=True)
class Question:
    """A table that can be asked for: what it is made from decides its id."""

    kind: Kind
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Role -> id."""

    @cached_property
    def id(self) -> str:
        return content_id(
            self.kind[0],
            {
                "kind": self.kind,
                "config": self.config,
                "inputs": self.inputs,
                "code_version": CODE_VERSION,
            },
        )

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.id}.parquet"

    @property
    def _note_key(self) -> str:
        return f"{self.kind}/{self.id}.json"

    def find(self, store: Store) -> pa.Table | None:
        """The answer if it is in the store; Corrupt if it is not what its note says."""
        return read_table(store, self.kind, self.id) if store.exists(self._note_key) else None

    def answer(self, store: Store, table: pa.Table) -> pa.Table:
        """Keeps the answer: rows first, note last."""
        content = parquet_bytes(table)
        store.ensure(self.key, content)
        store.ensure(
            self._note_key,
            canonical_json(
                {
                    "config": self.config,
                    "inputs": self.inputs,
                    "code_version": CODE_VERSION,
                    "rows": table.num_rows,
                    "sha256": sha256(content),
                }
            ),
        )
        return table


def read_table(store: Store, kind: Kind, table_id: str) -> pa.Table:
    """A table by its id. FileNotFoundError if the store lacks it, Corrupt if it is not what its note says."""
    key, note_key = f"{kind}/{table_id}.parquet", f"{kind}/{table_id}.json"
    note = parse_json(store.get(note_key), source=note_key)
    content = store.get(key)
    if sha256(content) != note.get("sha256"):
        raise Corrupt(
            f"{key}: its bytes are not those that {note_key} names; remove both and run again"
        )
    return pq.read_table(io.BytesIO(content))
