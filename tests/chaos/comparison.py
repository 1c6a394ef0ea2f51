"""Two stores that should hold the same study: every object compared, byte by byte, but for what tells of one run only.

Left out, by name:

scratch/                     states, times and leases of unfinished work; but scratch/steering, whose outcomes of played
                             arms are findings, is compared
studies/*/mirror/sent/       receipts of W&B
study.json: wall_s           seconds
report.html, report letter   show or hash those seconds: see `contents`
"""

import json
from collections.abc import Iterator, Mapping

from cluster.store import Store


def contents(store: Store) -> dict[str, bytes]:
    """All objects of a store that the study decides, by key."""
    found = {}
    for key in store.list(""):
        if key.startswith("scratch/") and not key.startswith("scratch/steering/"):
            continue
        if "/mirror/sent/" in key:
            continue
        found[key] = _without_times(key, store.get(key))
    return found


def _without_times(key: str, content: bytes) -> bytes:
    if key.startswith("studies/") and key.endswith("/study.json"):
        study = json.loads(content)
        assert study.pop("wall_s")
        return json.dumps(study).encode()
    return content


def differences(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> Iterator[str]:
    """Keys that are not in both, or not the same, each with what is wrong."""
    for key in sorted(before.keys() | after.keys()):
        if key not in after:
            yield f"{key}: missing"
        elif key not in before:
            yield f"{key}: not of the undisturbed study"
        elif before[key] != after[key]:
            left, right = before[key], after[key]
            length = min(len(left), len(right))
            first = next((n for n in range(length) if left[n] != right[n]), length)
            here = slice(max(0, first - 20), first + 40)
            yield f"{key}: differs from byte {first} on: {left[here]!r}, {right[here]!r}"
