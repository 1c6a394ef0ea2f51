"""What one side of the comparison is to do."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Work:
    """What a side is to do."""

    side: str
    rows_path: str
    """.npy of [rows, d_in] float32."""
    d_in: int
    d_sae: int
    k: int
    batch_rows: int
    steps: int
    """In a turn."""
    turns: int
    threads: int
    tuned: bool
    """Whether malloc keeps what is freed, and whether matrix products may use another backend if it is as exact."""
    device: str = "cpu"

    def to_json(self) -> str:
        return json.dumps(asdict(self))
