"""What W&B is told of a study: one run per finding, with what it used and what it made, so that its graph shows

    policy -> recording -> dictionary -> concepts -> effects, lineages, windows -> report

A letter is written into the store when its finding is there, and delivered when the server is: the store is the
record and W&B a mirror of it. It names objects of the store instead of holding them. A study that is run twice is
mirrored once; where it found something else the second time, the new letter takes the place of the old one.

    studies/<study>/mirror/<rank>-<run_id>.json    the letter; delivered in this order
    studies/<study>/mirror/sent/<run_id>.json      the receipt of the letter that was delivered last
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster import policies, recordings
from cluster.dictionaries import SweepResult
from cluster.results import Kind, read_table
from cluster.search import SearchResult
from cluster.store import Store
from cluster.studies import REPORT, card_files
from cluster.tracking.access import Access
from cluster.training import TrainedRun
from interp.dictionaries.training import CurvePoint
from interp.identity import canonical_json, content_id, parse_json, sha256
from interp.policies.bundle import PolicyCard
from interp.study import DictionaryEntry, Study

STAGES = (
    "policies",
    "record",
    "sae",
    "sweep",
    "decompose",
    "score",
    "discover",
    "steer",
    "evolve",
    "show",
    "report",
)
"""In the order of delivery: what is used is there before its use."""
STAGE_OF: Mapping[Kind, str] = {
    "evaluations": "decompose",
    "concepts": "score",
    "groups": "discover",
    "findings": "discover",
    "effects": "steer",
    "verdicts": "steer",
    "clips": "show",
    "lineages": "evolve",
    "windows": "show",
}
SHOWN_COLUMNS = (
    *("policy_name", "label", "latent", "auroc", "auroc_lo", "auroc_hi", "q_value"),
    *("neuron_auroc", "pca_auroc", "random_init_auroc", "n_episodes"),
)
"""Of the named concepts, in the table on the run's page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingArtifact:
    name: str
    type: str
    files: Mapping[str, str]
    """Name in the artifact -> key in the store."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTable:
    """A small table on a run's page."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> "ShownTable":
        """The given columns of rows that may have more; a number that is none is left open, as in JSON."""
        return cls(
            columns=tuple(columns),
            rows=tuple(tuple(_finite(row[name]) for name in columns) for row in rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One W&B run, whole."""

    project: str = ""
    entity: str | None = None
    """Of the run; without one, the user's own."""
    study: str
    stage: str
    subject: str
    """Id of what it tells of."""
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[Mapping[str, float], ...] = ()
    """Rows in ascending `step`."""
    uses: tuple[str, ...] = ()
    """Artifacts as name:alias of the mirror's own project, or as entity/project/name:vN."""
    logs: tuple[OutgoingArtifact, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)
    """Title -> key of an HTML or SVG object, shown on the run's page."""
    tables: Mapping[str, ShownTable] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """The same study, the same finding: the same W&B run."""
        return content_id("s", [self.study, self.stage, self.subject])

    @property
    def digest(self) -> str:
        """sha256 of the letter as it lies in the store."""
        return sha256(canonical_json(self))

    @property
    def key(self) -> str:
        return f"{_folder(self.study)}/{STAGES.index(self.stage):02d}-{self.run_id}.json"

    @classmethod
    def from_json(cls, content: bytes, *, source: str) -> "Letter":
        """Raises ValueError if it is not a letter of this version."""
        record = parse_json(content, source=source)
        try:
            return cls(
                **{
                    **record,
                    "curve": tuple(record["curve"]),
                    "uses": tuple(record["uses"]),
                    "logs": tuple(
                        OutgoingArtifact(**{**one, "aliases": tuple(one["aliases"])})
                        for one in record["logs"]
                    ),
                    "tables": {
                        title: ShownTable(
                            columns=tuple(table["columns"]), rows=tuple(map(tuple, table["rows"]))
                        )
                        for title, table in record["tables"].items()
                    },
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{source}: not a letter of this version: {error}") from error


def write(store: Store, letter: Letter) -> None:
    """Puts a letter into the store, in place of an earlier one of the same W&B run."""
    content = canonical_json(letter)
    if not store.exists(letter.key) or store.get(letter.key) != content:
        store.replace(letter.key, content)


def pending(store: Store, study: str) -> list[str]:
    """Keys of letters that were not delivered as they are now, in the order of delivery."""
    keys = store.list(_folder(study))
    return [key for key in keys if "/sent/" not in key and not is_sent(store, key)]


def unsent(keys: Sequence[str], study: str) -> list[str]:
    """Of the keys of a listing, a study's letters without a receipt; those that changed since theirs do not count."""
    own = [key for key in keys if key.startswith(f"{_folder(study)}/")]
    there = set(own)
    return [key for key in own if "/sent/" not in key and _receipt_key(key) not in there]


def num_unsent(store: Store, study: str) -> int:
    """As `unsent`, for the price of a listing."""
    return len(unsent(store.list(_folder(study)), study))


def is_sent(store: Store, key: str) -> bool:
    """Whether the letter of that key was delivered as it is now."""
    receipt_key = _receipt_key(key)
    if not store.exists(receipt_key):
        return False
    receipt = parse_json(store.get(receipt_key), source=receipt_key)
    return receipt.get("letter") == sha256(store.get(key))


def read(store: Store, key: str) -> Letter:
    """Raises ValueError if the object is not a letter of this version."""
    return Letter.from_json(store.get(key), source=key)


def studies(store: Store) -> list[str]:
    """Studies that have letters."""
    return sorted({key.split("/")[1] for key in store.list("studies") if "/mirror/" in key})


def confirm(store: Store, letter: Letter, receipt: Mapping[str, Any]) -> None:
    """Keeps the receipt of a delivered letter."""
    content = canonical_json({**receipt, "letter": letter.digest})
    store.replace(_receipt_key(letter.key), content)


def _folder(study: str) -> str:
    return f"studies/{study}/mirror"


def _receipt_key(key: str) -> str:
    """<folder>/<rank>-<run_id>.json -> <folder>/sent/<run_id>.json"""
    folder, _, name = key.rpartition("/")
    return f"{folder}/sent/{name.partition('-')[2]}"


# --- what is told, finding by finding


def policies_letter(store: Store, study: str, run: TrainedRun) -> Letter:
    """The checkpoints of a run as versions of one artifact, unless they are that server's already."""
    cards = [policies.read_card(store, card.policy_id) for card in run.checkpoints]
    own = [card for card in cards if _origin(card) is None]
    return Letter(
        study=study,
        stage="policies",
        subject=run.run_id,
        name=run.name,
        config={"run": run.run_id, "world": run.world},
        summary={"checkpoints": len(run.checkpoints), "steps": run.checkpoints[-1].step},
        uses=tuple(origin for card in cards if (origin := _origin(card))),
        logs=tuple(
            OutgoingArtifact(
                name=_artifact_name(card.name),
                type="model",
                files={
                    name: f"policies/{card.policy_id}/{name}"
                    for name in ("weights.safetensors", "architecture.json", "card.json")
                },
                metadata={
                    "policy_id": card.policy_id,
                    "agent_step": card.step,
                    "world": card.world,
                    "num_parameters": card.num_parameters,
                },
                aliases=(card.policy_id,),
            )
            for card in own
        ),
    )


def _origin(card: PolicyCard) -> str | None:
    """The artifact of this W&B server that a policy was fetched from."""
    origin = card.source.get("origin")
    if not isinstance(origin, Mapping) or origin.get("server") != Access.of_environment().host:
        return None
    return str(origin["artifact"])


def _policy(store: Store, policy_id: str) -> tuple[str, ...]:
    """The artifact of a policy; none for an untrained copy, which its seed tells all of."""
    card = policies.read_card(store, policy_id)
    if "untrained_copy_of" in card.source:
        return ()
    return (_origin(card) or f"{_artifact_name(card.name)}:{policy_id}",)


def _artifact_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]


def recording_letter(store: Store, study: str, recording_id: str) -> Letter:
    """What was recorded, of whom, and where its rows are; the rows themselves stay in the store."""
    manifest = recordings.open_manifest(store, recording_id)
    plan = manifest.plan
    facts = {
        "rows": manifest.rows,
        "episodes": plan.config["num_episodes"],
        "sites": sorted(plan.config["site_widths"]),
    }
    key = recordings.manifest_key(recording_id)
    return Letter(
        study=study,
        stage="record",
        subject=recording_id,
        name=recording_id,
        config=dict(plan.config),
        summary=facts,
        uses=_artifacts(store, plan.inputs),
        logs=(
            OutgoingArtifact(
                name=recording_id,
                type="recording",
                files={"manifest.json": key, "plan.json": plan.key},
                metadata={**facts, "store": store.url},
            ),
        ),
    )


def _artifacts(store: Store, inputs: Mapping[str, str]) -> tuple[str, ...]:
    """The artifacts behind the ids that something was made from; other inputs than ids are no artifacts."""
    found: list[str] = []
    for thing in dict.fromkeys(inputs.values()):
        match thing.partition("-")[0]:
            case "p":
                found += _policy(store, thing)
            case "r" | "d" | "c":
                found.append(f"{thing}:latest")
            case _:
                pass
    return tuple(found)


def trial_run(
    study: str, sweep_id: str, number: int, config: Mapping[str, Any], *, recording_id: str
) -> Letter:
    """What is known of a trial before it has begun, so that its rows can be shown as they come."""
    return Letter(
        study=study,
        stage="sae",
        subject=f"{sweep_id}/{number}",
        name=trial_name(config),
        config={**config, "sweep": sweep_id, "recording": recording_id},
        uses=(f"{recording_id}:latest",),
    )


def curve_row(point: CurvePoint) -> dict[str, float]:
    """A report as a row of a W&B run, of which NaN is no part."""
    return {name: value for name, value in asdict(point).items() if math.isfinite(value)}


def trial_letters(
    study: str, sweep_id: str, sweep: SweepResult, *, recording_id: str
) -> list[Letter]:
    """The training curve of every trial of a sweep."""
    return [
        replace(
            trial_run(study, sweep_id, number, trial.config, recording_id=recording_id),
            summary={"fvu": trial.fvu, "l0": trial.l0, "dead_fraction": trial.dead_fraction},
            curve=tuple(map(curve_row, curve)),
        )
        for number, (trial, curve) in enumerate(zip(sweep.trials, sweep.curves, strict=True))
    ]


def trial_name(config: Mapping[str, Any]) -> str:
    """For people: family and strength of the sparsity."""
    family = dict(config["family"])
    return " ".join([family.pop("name"), *(f"{key}={value}" for key, value in family.items())][:2])


def sweep_letter(study: str, sweep_id: str, sweep: SweepResult, *, recording_id: str) -> Letter:
    """All trials as a table, and which was chosen."""
    return Letter(
        study=study,
        stage="sweep",
        subject=sweep_id,
        name=f"sweep of {recording_id}",
        config={"recording": recording_id},
        summary={"chosen": sweep.chosen.dict_id, **_metrics(sweep.chosen)},
        uses=(f"{recording_id}:latest",),
        logs=(_dictionary(sweep.chosen),),
        tables={
            "trials": ShownTable.of(
                [
                    {**asdict(trial), "trial": trial_name(trial.config), **trial.config}
                    for trial in sweep.trials
                ],
                ("trial", "d_sae", "fvu", "l0", "dead_fraction"),
            )
        },
    )


def search_letters(store: Store, search: SearchResult, *, recording_id: str) -> list[Letter]:
    """A sweep by itself, its runs grouped by its id: recording, every trial with its curve, all as a table, the choice.

    The recording is logged without what it was made from: the policy is no artifact unless a study has mirrored it.
    """
    identity, rows = search.search_id, search.trials.to_pylist()
    kept = rows[search.chosen]
    trials = []
    for number, row in enumerate(rows):
        curve_of = {
            name.removeprefix("curve."): values
            for name, values in row.items()
            if name.startswith("curve.")
        }
        points = [
            dict(zip(curve_of, point, strict=True))
            for point in zip(*curve_of.values(), strict=True)
        ]
        trials.append(
            Letter(
                study=identity,
                stage="sae",
                subject=f"{identity}/{number}",
                name=f"trial {number}: {row['family.name']} {row['site']}",
                config={
                    **{
                        name: value
                        for name, value in row.items()
                        if not name.startswith("curve.") and name not in _FIGURES
                    },
                    "sweep": identity,
                    "recording": recording_id,
                },
                summary={name: _finite(row[name]) for name in _FIGURES},
                curve=tuple(
                    {name: value for name, value in point.items() if math.isfinite(value)}
                    for point in points
                ),
                uses=(f"{recording_id}:latest",),
            )
        )
    columns = (
        "trial",
        "site",
        "family.name",
        "family",
        "d_sae",
        "lr",
        "seed",
        *_FIGURES,
        "front",
        "kept",
    )
    table = ShownTable.of(
        [
            {**row, "trial": number, "front": number in search.front, "kept": row is kept}
            for number, row in enumerate(rows)
        ],
        columns,
    )
    return [
        replace(recording_letter(store, identity, recording_id), uses=()),
        *trials,
        Letter(
            study=identity,
            stage="sweep",
            subject=identity,
            name=f"sweep {identity}",
            config={"recording": recording_id, "rule": search.rule},
            summary={"chosen": search.entry.dict_id, **_metrics(search.entry)},
            uses=(f"{recording_id}:latest",),
            logs=(_dictionary(search.entry),),
            tables={"trials": table},
        ),
    ]


_FIGURES = ("fvu", "l0", "dead_fraction", "coverage", "is_whole", "trial_s")
"""What came of a trial, among the columns of a search's table."""


def dictionary_letter(study: str, entry: DictionaryEntry, *, recording_id: str) -> Letter:
    """A dictionary and the recording that it was trained on."""
    return Letter(
        study=study,
        stage="decompose",
        subject=entry.dict_id,
        name=entry.dict_id,
        config={"recording": recording_id, "family": entry.family, "d_sae": entry.d_sae},
        summary=_metrics(entry),
        uses=(f"{recording_id}:latest",),
        logs=(_dictionary(entry),),
    )


def _dictionary(entry: DictionaryEntry) -> OutgoingArtifact:
    files = ("config.json", "weights.safetensors", "card.json")
    return OutgoingArtifact(
        name=entry.dict_id,
        type="dictionary",
        files={name: f"dictionaries/{entry.dict_id}/{name}" for name in files},
        metadata=asdict(entry),
    )


def _metrics(entry: DictionaryEntry) -> dict[str, Any]:
    return {"fvu": entry.fvu, "l0": entry.l0, "dead_fraction": entry.dead_fraction}


def table_letter(store: Store, study: str, kind: Kind, table_id: str) -> Letter:
    """A table of findings, and all that its note says it was computed from."""
    note = parse_json(store.get(f"{kind}/{table_id}.json"), source=f"{kind}/{table_id}.json")
    table = read_table(store, kind, table_id)
    named = (
        [row for row in table.to_pylist() if row["concept"] is not None]
        if kind == "concepts"
        else []
    )
    return Letter(
        study=study,
        stage=STAGE_OF[kind],
        subject=table_id,
        name=f"{kind} {table_id}",
        config=note["config"],
        summary={
            "rows": table.num_rows,
            **({"concepts": len(named)} if kind == "concepts" else {}),
        },
        uses=_artifacts(store, note["inputs"]),
        logs=(
            OutgoingArtifact(
                name=table_id,
                type=kind,
                files={
                    f"{kind}.parquet": f"{kind}/{table_id}.parquet",
                    "note.json": f"{kind}/{table_id}.json",
                },
                metadata={"rows": table.num_rows},
            ),
        ),
        tables={"concepts": ShownTable.of(named, SHOWN_COLUMNS)} if named else {},
    )


def report_letter(store: Store, study: Study) -> Letter:
    """The figures, the page, the concept cards, and every table that they were drawn from."""
    folder = f"studies/{study.study}"
    figures = [f"figures/{name}.svg" for name in study.figures]
    names = [REPORT, "study.json", *figures, *card_files(store, study)]
    return Letter(
        study=study.study,
        stage="report",
        # the objects of a study may be replaced: their content is what this letter is about
        subject=study.study,
        name=f"report of {study.study}",
        config={"seeds": dict(study.seeds)},
        summary={
            "content": sha256(b"".join(store.get(f"{folder}/{name}") for name in names)),
            **{f"seconds/{stage}": seconds for stage, seconds in study.wall_s.items()},
        },
        uses=tuple(
            f"{table_id}:latest"
            for kind in (
                *("concepts", "groups", "findings", "effects", "verdicts", "lineages", "windows"),
                *("clips", "splices"),
            )
            for table_id in getattr(study, kind)
        ),
        logs=(
            OutgoingArtifact(
                name=_artifact_name(f"report-{study.study}"),
                type="report",
                files={name: f"{folder}/{name}" for name in names},
            ),
        ),
        pages={f"figures/{name}": f"{folder}/figures/{name}.svg" for name in study.figures},
    )


def _finite(value: Any) -> Any:  # noqa: ANN401 - a cell of a table
    return None if isinstance(value, float) and not math.isfinite(value) else value
