"""Two stores that should hold the same study: every object compared, byte by byte, but for what tells of one run only.

Left out, by name:

scratch/                   states, times and leases of unfinished work; but scratch/steering, whose outcomes of played
                           arms are findings, is compared
studies/*/mirror/sent/     receipts of W&B

Compared with 0 in place of every duration:

study.json                 wall_s
report.html                the sum of those seconds, and the table of them
letter of the report       seconds/*, and the hash of the two above, which must be theirs

Compared without its address:

letters of recordings      metadata.store, which must be the store's own
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.store import Store
from cluster.studies import read_study
from cluster.tracking import letters

_SUM = re.compile(rb"(?<=\n    )[\d,]+(?= s in \d+ stages, each when it last did work</summary>)")
_TABLE = re.compile(
    rb'<thead><tr><th>stage</th><th class="n">seconds</th></tr></thead><tbody>(.*?)</tbody>',
    re.DOTALL,
)
_SECONDS = re.compile(rb'(?<=<td class="n">)[\d,]+\.\d(?=</td></tr>)')


def contents(store: Store) -> dict[str, bytes]:
    """All objects of a store that the study decides, by key, without durations.

    Raises:
        ValueError: durations are not where they should be, or a letter's hash is not that of what it names.
    """
    found = {}
    for key in store.list(""):
        if key.startswith("scratch/") and not key.startswith("scratch/steering/"):
            continue
        if "/mirror/sent/" in key:
            continue
        found[key] = _without_durations(store, key, store.get(key))
    return found


def _without_durations(store: Store, key: str, content: bytes) -> bytes:
    match key.split("/"):
        case ["studies", _, "study.json"]:
            study = json.loads(content)
            study["wall_s"] = _zeros(study["wall_s"])
            return json.dumps(study).encode()
        case ["studies", _, "report.html"]:
            return _page_without_durations(key, content)
        case ["studies", study, "mirror", _]:
            letter = json.loads(content)
            if letter["stage"] == "report":
                _check_report_letter(store, study, key, letter)
                summary = letter["summary"]
                letter["summary"] = _zeros(summary) | {"content": "checked"}
            for sent in letter.get("logs", ()):
                if sent["metadata"].get("store") == store.url:
                    sent["metadata"]["store"] = "its own"
            return json.dumps(letter).encode()
    return content


def _page_without_durations(key: str, page: bytes) -> bytes:
    page, num_sums = _SUM.subn(b"0", page)
    table = _TABLE.search(page)
    if num_sums != 1 or table is None:
        raise ValueError(f"{key}: wanted one sum of seconds and one table of them")
    rows, num_seconds = _SECONDS.subn(b"0.0", table[1])
    if num_seconds != rows.count(b"<tr>"):
        raise ValueError(f"{key}: a stage without its seconds: {rows!r}")
    return page[: table.start(1)] + rows + page[table.end(1) :]


def _check_report_letter(store: Store, study: str, key: str, letter: Mapping[str, Any]) -> None:
    """Made anew of the objects that lie there, the letter must say the same; its address is its sender's."""
    again = letters.report_letter(store, read_study(store, study))
    if again.summary != letter["summary"]:
        raise ValueError(
            f"{key}: says {letter['summary']}, but the objects that it names give {again.summary}"
        )


def _zeros(durations: Mapping[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(durations, 0)


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
