"""A finished study in the store, under a name that may move: study.json, report.html, figures/*.svg, cards/*.json."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from cluster import recordings
from cluster.results import Kind, read_table
from cluster.store import Store
from interp.concepts.windows import window_from_json
from interp.identity import canonical_json, parse_json
from interp.report.cards import card_name, cards
from interp.report.document import Clip, Report, figures, render
from interp.study import Study
from interp.worlds.catalogue import recorded_world
from interp.worlds.expressions import parse, parts_of
from interp.worlds.labels import label_named

REPORT = "report.html"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_study_name(name: str) -> None:
    """Raises ValueError if a study cannot be called so."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"study {name!r:.80}: wanted up to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )


def read_study(store: Store, name: str) -> Study:
    """Raises FileNotFoundError if the store has no study of that name."""
    key = _key(name, "study.json")
    if not store.exists(key):
        known = sorted({key.split("/")[1] for key in store.list("studies")})
        raise FileNotFoundError(
            f"study {name} is not in store {store.url}; it has {', '.join(known) or 'none'}"
        )
    return Study.from_json(store.get(key).decode())


def load_report(store: Store, name: str) -> Report:
    """Everything that the report of a finished study shows, from the store."""
    return report_of(store, read_study(store, name))


def report_of(store: Store, study: Study) -> Report:
    """The tables that a study names, put together."""
    windows = _concatenated(store, "windows", study.windows)
    clips = _concatenated(store, "clips", study.clips)
    concepts = _concatenated(store, "concepts", study.concepts)
    groups = _concatenated(store, "groups", study.groups)
    return Report(
        study=study,
        concepts=concepts,
        groups=groups,
        findings=_concatenated(store, "findings", study.findings),
        effects=_concatenated(store, "effects", study.effects),
        lineages=_concatenated(store, "lineages", study.lineages),
        verdicts=_concatenated(store, "verdicts", study.verdicts),
        windows=tuple(
            window_from_json(text)
            for text in (windows.column("window").to_pylist() if study.windows else ())
        ),
        stabilities=_concatenated(store, "stabilities", study.stabilities),
        splices=_concatenated(store, "evaluations", study.splices),
        clips=tuple(
            Clip(
                arm=row["arm"],
                before=window_from_json(row["before"]),
                after=window_from_json(row["after"]),
            )
            for row in clips.to_pylist()
        ),
        label_definitions=_definitions(
            store,
            study,
            {
                name
                for table in (concepts, groups)
                if "label" in table.column_names
                for name in table.column("label").unique().to_pylist()
            },
        ),
    )


def _definitions(store: Store, study: Study, names: Collection[str]) -> dict[str, str]:
    """Of all recorded labels, and of those among the names that are made of them."""
    found: dict[str, str] = {}
    for entry in study.recordings:
        config = recordings.open_manifest(store, entry.recording_id).plan.config
        found |= config["labels"]
        made = [
            name
            for name in sorted(names)
            if name not in found
            and config["labels"].keys() >= set(parts_of(parse(name, config["labels"])))
        ]
        if made:
            known = recorded_world(config["world"], source=f"recording {entry.recording_id}").labels
            found |= {name: label_named(name, known).definition for name in made}
    return found


def _concatenated(store: Store, kind: Kind, ids: Sequence[str]) -> pa.Table:
    tables = [read_table(store, kind, table_id) for table_id in ids]
    return pa.concat_tables(tables) if tables else pa.table({})


def find_same(store: Store, study: Study) -> Study | None:
    """The study as an earlier run left it, with its times and figures, if it found the same and has its report."""
    keys = [_key(study.study, name) for name in ("study.json", REPORT)]
    if not all(store.exists(key) for key in keys):
        return None
    before = read_study(store, study.study)
    same = replace(before, wall_s=study.wall_s, figures=study.figures) == study
    return before if same else None


def draw_report(store: Store, report: Report) -> tuple[str, ...]:
    """Writes figures, cards and page; returns the names of the figures."""
    name = report.study.study
    drawn = figures(report)
    for figure, svg in drawn.items():
        store.replace(_key(name, f"figures/{figure}.svg"), svg.encode())
    for card, content in cards(report).items():
        store.replace(_key(name, f"cards/{card}.json"), canonical_json(content))
    store.replace(_key(name, REPORT), render(report).encode())
    return tuple(drawn)


def card_files(store: Store, study: Study) -> list[str]:
    """The cards of the study's concepts, as names in its folder; of an earlier run's concepts others may lie there."""
    verdicts = _concatenated(store, "verdicts", study.verdicts).to_pylist()
    names = [card_name(row["policy_name"], row["concept"]) for row in verdicts]
    files = [f"cards/{name}.json" for name in dict.fromkeys(names)]
    return [file for file in files if store.exists(_key(study.study, file))]


def save_study(store: Store, study: Study) -> None:
    """Writes study.json, which says that the study is complete: the last thing to be written."""
    store.replace(_key(study.study, "study.json"), study.to_json().encode())


def read_times(store: Store, name: str) -> dict[str, float]:
    """Seconds of wall time of each stage when it last did work, also by attempts that were interrupted."""
    key = f"scratch/studies/{name}.json"
    return parse_json(store.get(key), source=key) if store.exists(key) else {}


def save_times(store: Store, name: str, wall_s: Mapping[str, float]) -> None:
    """Keeps what `read_times` reads."""
    store.replace(f"scratch/studies/{name}.json", canonical_json(dict(wall_s)))


def study_keys(name: str) -> list[str]:
    """Objects whose presence says that a study is finished."""
    return [_key(name, file) for file in (REPORT, "study.json")]


def report_address(store: Store, name: str) -> str:
    """Where the page of a study is."""
    return store.address(_key(name, REPORT))


def _key(name: str, file: str) -> str:
    return f"studies/{name}/{file}"
