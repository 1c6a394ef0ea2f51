"""A finished study in the store: `studies/<name>/{study.json, report.html, figures/*.svg}`, the only names that move."""

import re
from dataclasses import replace
from pathlib import Path

from cluster.store import Store
from interp.report.document import Report, figures, render
from interp.study import Study

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


def save_study(store: Store, report: Report) -> Path:
    """Writes report and figures, then study.json; returns the path of the report.

    A study that was found complete keeps the wall times of the run that made it.
    """
    study = report.study
    key = _key(study.study, "study.json")
    if store.exists(key):
        before = Study.from_json(store.get(key).decode())
        if replace(before, wall_s=study.wall_s) == study:
            report = replace(report, study=before)
    for name, svg in figures(report).items():
        store.replace(_key(study.study, f"figures/{name}.svg"), svg.encode())
    store.replace(_key(study.study, "report.html"), render(report).encode())
    store.replace(key, report.study.to_json().encode())
    return store.local_path(_key(study.study, "report.html"))


def _key(name: str, file: str) -> str:
    return f"studies/{name}/{file}"
