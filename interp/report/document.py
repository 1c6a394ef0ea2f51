"""The report of a study: one HTML file that opens offline and answers a sceptical reader in the order of doubt.

    what was found -> what was run -> is it real (controls, nulls) -> what else is there (found without labels,
    groups of latents) -> does it matter (steering) -> when was it born -> show me ->
    how it was computed, and how to make it again

Records and tables in, text out. Every number on the page is one of theirs.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from interp import figures as draw
from interp.concepts.catalogue import STATE_COLUMNS, STATE_OF
from interp.concepts.discovery import leading_kind
from interp.concepts.rivals import BEATS_ALL, CONTROLS, standings, verdict
from interp.figures import Band, DoseCurve, SweepPoint
from interp.records import Window
from interp.steering.arms import BASELINES
from interp.steering.verdicts import Verdict
from interp.study import Study

Row = dict[str, Any]
MAX_Q = 0.05
"""A discovery has a q-value below this."""
MAX_PERCENTILE = 95.0
"""An effect is the direction's own if more than this share (in %) of random directions of equal norm do less."""
STRONG_AUROC = 0.6
"""Discoveries from here on are counted apart: with enough rows, q finds differences too small to matter."""
LEAD = ("lead", "lead_lo", "lead_hi")
"""Columns of how far a concept is ahead of its strongest control; null where it has none."""
BASELINE_NAMES = {
    "neuron": "neuron",
    "pca": "PCA",
    "diff_in_means": "means",
    "probe": "probe",
    "sparse_probe": "sparse probe",
}
"""Kinds of `interp.steering.arms.BASELINES` -> their heading."""
SPLICE_METRICS = {
    "return": "return",
    "return recovered": "return recovered",
    "KL recovered": "KL recovered",
    "agreement": "same action",
    "stays finite": "finite",
}
"""Of `interp.steering.splicing`, what the page shows -> its heading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One seed, unedited and along an arm: the same steps and the same agent."""

    arm: str
    before: Window
    after: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A study and the tables that it names."""

    study: Study
    concepts: pa.Table
    effects: pa.Table
    lineages: pa.Table
    verdicts: pa.Table
    stabilities: pa.Table
    splices: pa.Table
    groups: pa.Table
    findings: pa.Table
    windows: tuple[Window, ...]
    clips: tuple[Clip, ...]
    label_definitions: Mapping[str, str]


def figures(report: Report) -> dict[str, str]:
    """All figures as SVG text, by a name that is safe for a file."""
    drawn = {}
    if report.study.policies:
        drawn["training"] = _training(report)
    if report.study.sweep:
        drawn["pareto"] = _pareto(report)
    named = _named(report)
    if named:
        drawn["heat-map"] = _heat_map(named)
    tested = [row for row in _rows(report.concepts) if not math.isnan(row["q_value"])]
    if tested:
        drawn["auroc-histogram"] = draw.histogram(
            np.array([row["auroc"] for row in tested]),
            np.array([row["q_value"] < MAX_Q for row in tested]),
        )
    for number, effects in enumerate(_by_concept(report.effects)):
        for outcome, svg in _dose_responses(effects).items():
            drawn[f"effect-{number:02d}-{outcome}"] = svg
    for number, lineage in enumerate(_by_concept(report.lineages)):
        drawn[f"evolution-{number:02d}"] = _evolution(lineage)
    return drawn


def render(report: Report) -> str:
    """The whole page; the same bytes for the same report."""
    drawn = {name: _inline(name, svg) for name, svg in figures(report).items()}
    environment = _environment()
    environment.filters |= {
        "number": _number,
        "count": _count,
        "signed": _signed,
        "percent": lambda value: "–" if math.isnan(value) else f"{100 * value:.1f} %",
        "p": _p,
        "evidence": _evidence,
        "some": _some,
        "breakable": lambda name: Markup("_<wbr>").join(name.split("_")),
        "key": lambda value: "" if math.isnan(value) else repr(value),
    }
    template = environment.from_string(_asset("template.html.j2"))
    return template.render(
        study=report.study,
        summary=_summary(report),
        figures=drawn,
        last=_last_policies(report.study),
        spliced=_spliced(report),
        splice_metrics=SPLICE_METRICS,
        concepts=[_concept_view(row) for row in _named(report)],
        states=_states(report),
        findings=[_finding_view(row) for row in _rows(report.findings)],
        groups=_rows(report.groups),
        steered=[
            _steered_view(
                number,
                rows,
                _verdicts_of(report, rows[0]),
                _found_again(report, rows[0]),
                _labels_of(report, rows[0]),
            )
            for number, rows in enumerate(_by_concept(report.effects))
        ],
        lineages=[
            _lineage_view(number, rows) for number, rows in enumerate(_by_concept(report.lineages))
        ],
        windows=report.windows,
        **_player(report.windows, report.clips),
        label_definitions=report.label_definitions,
        style=Markup(_asset("style.css")),
        player=Markup(_asset("player.js")),
        max_q=MAX_Q,
        max_percentile=MAX_PERCENTILE,
        strong_auroc=STRONG_AUROC,
        controls=CONTROLS,
        beats_all=BEATS_ALL,
        baselines=BASELINE_NAMES,
    )


def replay_page(title: str, windows: tuple[Window, ...]) -> str:
    """A page of its own, which opens offline, with nothing but the player; the same bytes for the same windows."""
    return (
        _environment()
        .get_template("replay.html.j2")
        .render(
            title=title,
            **_player(windows, ()),
            style=Markup(_asset("style.css")),
            player=Markup(_asset("player.js")),
        )
    )


def _player(windows: tuple[Window, ...], clips: tuple[Clip, ...]) -> Row:
    """What `player.html.j2` draws on: the choices in their order, and the data of each."""
    return {
        "choices": [_choice(window, _moment(window)) for window in windows]
        + [
            _choice(clip.before, f"before and after {clip.arm}, {_moment(clip.before)}")
            for clip in clips
        ],
        "clips": clips,
        "player_data": _script_json(
            [_window_data(window) for window in windows] + [_clip_data(clip) for clip in clips]
        ),
    }


def _choice(window: Window, what: str) -> str:
    return f"{window.policy_name} · {window.label} · latent {window.latent} · {what}"


def _moment(window: Window) -> str:
    return f"seed {window.env_seed}, agent {window.agent}"


def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> str:
    return files("interp.report").joinpath(name).read_text(encoding="utf-8")


def _inline(name: str, svg: str) -> Markup:
    """A figure among others on one page: ids of its own, and a name for those who cannot see it."""
    for reference in ('id="', "url(#", 'href="#'):
        svg = svg.replace(reference, f"{reference}{name}-")
    return Markup(
        svg.replace("<svg ", f'<svg role="img" aria-label="{name.replace("-", " ")}" ', 1)
    )


def _script_json(value: object) -> Markup:
    """JSON that cannot leave the script element that it is put into."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _rows(table: pa.Table) -> list[Row]:
    return table.to_pylist()


def _named(report: Report) -> list[Row]:
    """The latents that stand for a label, policy by policy, the surest first."""
    rows = [row for row in _rows(report.concepts) if row["concept"] is not None]
    return sorted(rows, key=lambda row: (row["policy_name"], -row["auroc"]))


def _by_concept(table: pa.Table) -> list[list[Row]]:
    """Rows of the same policy and concept together, in the order of their first row."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in _rows(table):
        groups.setdefault((row["policy_name"], row["concept"]), []).append(row)
    return list(groups.values())


def _last_policies(study: Study) -> list[Row]:
    """The last checkpoint of each run beside its first one and beside chance."""
    runs: dict[str, list[Any]] = {}
    for policy in study.policies:
        runs.setdefault(policy.run, []).append(policy)
    return [
        {
            "first": min(checkpoints, key=lambda policy: policy.step),
            "last": max(checkpoints, key=lambda policy: policy.step),
            "count": len(checkpoints),
            "random": study.random_returns[checkpoints[0].world],
        }
        for checkpoints in runs.values()
    ]


def _spliced(report: Report) -> list[Row]:
    """What the policies keep of their play, a row for each thing that a site was replaced by."""
    ways: dict[tuple[str, str, str], Row] = {}
    for row in _rows(report.splices):
        way = ways.setdefault(
            (row["policy_name"], row["site"], row["replaced_by"]),
            {key: row[key] for key in ("policy_name", "site", "replaced_by", "n_episodes")},
        )
        way[row["metric"]] = row
    return list(ways.values())


# --- what was found


def _summary(report: Report) -> Row:
    study = report.study
    rows = _rows(report.concepts)
    tested = [row for row in rows if not math.isnan(row["q_value"])]
    discoveries = [row for row in tested if row["q_value"] < MAX_Q]
    named = _named(report)
    standing_of = [standings(row) for row in named]
    effects = _rows(report.effects)
    no_op = [row for row in effects if row["dose"] == 0]
    arms = [
        row
        for rows in _by_concept(report.effects)
        for row in rows
        if row["dose"] != 0 and _is_own(row) and row["outcome"] not in _unmoved(rows)
    ]
    played = [recording for recording in study.recordings if recording.replay_of is None]
    return {
        "runs": len({policy.run for policy in study.policies}),
        "checkpoints": len(study.policies),
        "recordings": len(study.recordings),
        "rows": sum(recording.rows for recording in played),
        "episodes": sum(recording.episodes for recording in played),
        "wall_s": sum(study.wall_s.values()),
        "pairs": len(tested),
        "untested": len(rows) - len(tested),
        "discoveries": len(discoveries),
        "strong": sum(row["auroc"] >= STRONG_AUROC for row in discoveries),
        "named": len(named),
        "clusters": len(report.findings),
        "clusters_named": sum(not math.isnan(row["strength"]) for row in _rows(report.findings)),
        "kinds": Counter(row["type"] for row in _rows(report.findings)),
        "groups": len(report.groups),
        "groups_better": sum(row["beats_best"] for row in _rows(report.groups)),
        "latents": len({(row["dict_id"], row["latent"]) for row in named}),
        "beats": {
            control: sum(standing[control] == "beaten" for standing in standing_of)
            for control in CONTROLS
        },
        "beats_all": sum(verdict(row) == BEATS_ALL for row in named),
        "steered": len({(row["policy_name"], row["concept"]) for row in effects}),
        "causal": len({(row["policy_name"], row["concept"]) for row in arms if _is_causal(row)}),
        "words": _words(report),
        "arms": len(arms),
        "arms_significant": sum(row["q_value"] < MAX_Q for row in arms),
        "arms_beyond": sum(row["random_direction_percentile"] > MAX_PERCENTILE for row in arms),
        "arms_causal": sum(_is_causal(row) for row in arms),
        "arms_by_chance": len(arms) * (100 - MAX_PERCENTILE) / 100,
        "peaks": _peaks(report.windows),
        "peaks_with_label": sum(held for held, _ in _peaks(report.windows).values()),
        "no_op_rows": len(no_op),
        "no_op_largest": max((abs(row["difference"]) for row in no_op), default=0.0),
        "no_op_episodes": max((row["n_episodes"] for row in no_op), default=0),
    }


def _peaks(windows: tuple[Window, ...]) -> dict[tuple[str, str], tuple[int, int]]:
    """Of each policy and concept, in how many windows the label holds at the peak, and how many there are."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for window in windows:
        held, shown = counts.get((window.policy_name, window.concept), (0, 0))
        at_peak = bool(window.label_T[window.t == window.peak_t].any())
        counts[window.policy_name, window.concept] = (held + at_peak, shown + 1)
    return counts


def _states(report: Report) -> list[Row]:
    """Of each policy, what latents, units and untrained latents make of the whole state, a row for each of them."""
    first = {row["policy_name"]: row for row in reversed(_rows(report.concepts))}
    return [
        {
            "policy_name": policy_name,
            "who": who,
            **{name: _or_nan(row[prefix + name]) for name in STATE_COLUMNS},
        }
        for policy_name, row in sorted(first.items())
        if row["state_f1"] is not None
        for prefix, who in STATE_OF.items()
    ]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _concept_view(row: Row) -> Row:
    return {
        **row,
        "verdict": verdict(row),
        "standing": standings(row),
        **{name: _or_nan(row[name]) for name in (*LEAD, "rule_f1", "rule_precision")},
        "left": 100 * row["auroc_lo"],
        "width": max(0.8, 100 * (row["auroc_hi"] - row["auroc_lo"])),
        "middle": 100 * row["auroc"],
        "evidence": 1 - row["q_value"],
    }


def null_auroc(row: Row) -> float | None:
    """Mean distance from 1/2 on labels of other episodes, as an AUROC above 1/2; None if untested."""
    selectivity = row.get("selectivity")
    if selectivity is None or math.isnan(selectivity):
        return None
    return 0.5 + abs(row["auroc"] - 0.5) - selectivity


# --- what else is there


def _finding_view(row: Row) -> Row:
    kind, share, q = leading_kind(row)
    return {
        **row,
        "leading": kind,
        "leading_share": share,
        "leading_q": q,
        "curve": _curve(row["profile"]),
    }


def _curve(profile: list[float], *, width: float = 72.0, height: float = 18.0) -> str:
    """The points of a polyline: steps from left to right, 0 at the bottom, the highest value at the top."""
    top = max(profile, default=0.0) or 1.0
    apart = width / max(1, len(profile) - 1)
    return " ".join(
        f"{apart * p:.1f},{height * (1 - value / top):.1f}" for p, value in enumerate(profile)
    )


# --- does it matter


def _is_own(row: Row) -> bool:
    """Whether the outcome is one that the concept promises to move: its own label, or the return."""
    return row["outcome"] in ("return", row["label"])


def _is_causal(row: Row) -> bool:
    """Whether an edit moved the outcome, and more than random directions of equal norm do."""
    return row["q_value"] < MAX_Q and row["random_direction_percentile"] > MAX_PERCENTILE


def _unmoved(rows: list[Row]) -> list[str]:
    """The outcomes of a concept that no arm can move, such as the share of an episode that is its start."""
    return [
        outcome
        for outcome in ("return", rows[0]["label"])
        if all(row["difference"] == 0 for row in rows if row["outcome"] == outcome)
    ]


def _verdicts_of(report: Report, concept: Row) -> list[Row]:
    """The claims about a concept and what became of them; none in studies of earlier versions."""
    return [
        row
        for row in _rows(report.verdicts)
        if (row["policy_name"], row["concept"]) == (concept["policy_name"], concept["concept"])
    ]


def _found_again(report: Report, concept: Row) -> list[Row]:
    """How well dictionaries of other seeds have the latent."""
    dict_ids = {
        row["dict_id"]
        for row in _rows(report.concepts)
        if (row["policy_name"], row["concept"]) == (concept["policy_name"], concept["concept"])
    }
    return [
        row
        for row in _rows(report.stabilities)
        if row["dict_id"] in dict_ids and row["latent"] == concept["latent"]
    ]


def _words(report: Report) -> dict[str, int]:
    """How many concepts have each verdict, the strongest word first."""
    word_of = {
        (row["policy_name"], row["concept"]): row["verdict"] for row in _rows(report.verdicts)
    }
    counts = Counter(word_of.values())
    return {word: counts[word] for word in get_args(Verdict) if counts[word]}


def _labels_of(report: Report, concept: Row) -> list[Row]:
    """The scores of a concept's latent on every label, the farthest from chance first."""
    scored = [row for row in _rows(report.concepts) if row["policy_name"] == concept["policy_name"]]
    of_dict = {row["dict_id"] for row in scored if row["concept"] == concept["concept"]}
    own = [
        {**row, "null_auroc": null_auroc(row)}
        for row in scored
        if row["dict_id"] in of_dict and row["latent"] == concept["latent"]
    ]
    return sorted(
        own, key=lambda row: -abs(row["auroc"] - 0.5) if not math.isnan(row["auroc"]) else 0.0
    )


def _steered_view(
    number: int, rows: list[Row], claims: list[Row], again: list[Row], labels: list[Row]
) -> Row:
    arms = [{**row, "causal": _is_causal(row)} for row in rows if row["dose"] != 0]
    own = [row for row in arms if _is_own(row)]
    return {
        "number": number,
        "first": rows[0],
        "claims": claims,
        "again": again,
        "labels": labels,
        "works": list(
            {
                (row["site"], row["mode"], row["dose"]): row
                for row in arms
                if row.get("n_diagnosed") is not None
            }.values()
        ),
        "rivals": [_rivals_of(claim) for claim in claims if claim.get("strongest_rival")],
        "figures": [f"effect-{number:02d}-{outcome}" for outcome in ("return", "label")],
        "unmoved": _unmoved(rows),
        "own": own,
        "others": [row for row in arms if not _is_own(row)],
        "num_causal": sum(row["causal"] for row in own),
    }


def _rivals_of(claim: Row) -> Row:
    """A claim beside what the best feature of each kind does in its place, and the kinds that it is not ahead of."""
    beaten = claim["beats"].split(", ") if claim["beats"] else []
    effects = {kind: claim[f"{kind}_effect"] for kind in BASELINES}
    played = [kind for kind, effect in effects.items() if effect is not None]
    return {
        **claim,
        "effects": effects,
        "played": len(played),
        "beaten": beaten,
        "level": [kind for kind in played if kind not in beaten],
    }


def _dose_responses(rows: list[Row]) -> dict[str, str]:
    """Return and the rate of the concept's own label against dose, one curve per mode; none for what never moved."""
    drawn = {}
    for name, outcome in (("return", "return"), ("label", rows[0]["label"])):
        if outcome in _unmoved(rows):
            continue
        measured = [row for row in rows if row["outcome"] == outcome]
        what = "return per agent" if outcome == "return" else f"rate of {outcome}"
        drawn[name] = draw.dose_response(
            [
                _dose_curve(mode, [row for row in measured if row["mode"] == mode])
                for mode in dict.fromkeys(row["mode"] for row in measured)
            ],
            f"Δ {what}",
            max_percentile=MAX_PERCENTILE,
        )
    return drawn


def _dose_curve(mode: str, rows: list[Row]) -> DoseCurve:
    rows = sorted(rows, key=lambda row: row["dose"])
    return DoseCurve(
        name=mode,
        x=[row["dose"] for row in rows],
        y=[row["difference"] for row in rows],
        lo=[row["lo"] for row in rows],
        hi=[row["hi"] for row in rows],
        percentile=[row["random_direction_percentile"] for row in rows],
        causal=[_is_causal(row) for row in rows],
        random_lo=[_or_zero(row["random_lo"]) for row in rows],
        random_hi=[_or_zero(row["random_hi"]) for row in rows],
    )


def _or_zero(value: float | None) -> float:
    """Of dose 0, which has no random directions: they would do nothing, too."""
    return 0.0 if value is None else value


# --- when was it born


def _lineage_view(number: int, rows: list[Row]) -> Row:
    rows = sorted(rows, key=lambda row: row["step"])
    return {
        "number": number,
        "first": rows[0],
        "last": rows[-1],
        "unconfirmed": rows[0]["emergence_step"] == rows[-1]["step"],
    }


# --- figures of what was run


def _training(report: Report) -> str:
    study = report.study
    runs: dict[str, list[Any]] = {}
    for policy in study.policies:
        runs.setdefault(policy.name, []).append(policy)
    bands = [
        Band(
            name=name,
            x=[float(policy.step) for policy in policies],
            y=[policy.return_mean for policy in policies],
            lo=[policy.return_mean - policy.return_se for policy in policies],
            hi=[policy.return_mean + policy.return_se for policy in policies],
        )
        for name, policies in (
            (name, sorted(run, key=lambda policy: policy.step)) for name, run in runs.items()
        )
    ]
    return draw.training(bands, list(study.random_returns.items()))


def _pareto(report: Report) -> str:
    kept = report.study.dictionaries[0] if report.study.dictionaries else None
    return draw.pareto(
        [
            SweepPoint(
                family=trial.config["family"]["name"],
                l0=trial.l0,
                fvu=trial.fvu,
                kept=kept is not None and (trial.fvu, trial.l0) == (kept.fvu, kept.l0),
            )
            for trial in report.study.sweep
            if trial.l0 > 0
        ]
    )


def _heat_map(named: list[Row]) -> str:
    labels = list(
        dict.fromkeys(row["label"] for row in sorted(named, key=lambda row: -row["auroc"]))
    )
    policies = sorted({row["policy_name"] for row in named})
    value = np.full((len(labels), len(policies)), np.nan)
    for row in named:
        value[labels.index(row["label"]), policies.index(row["policy_name"])] = row["auroc"]
    return draw.heat_map(labels, policies, value, "AUROC")


def _evolution(rows: list[Row]) -> str:
    rows = sorted(rows, key=lambda row: row["step"])
    band = Band(
        name="latent",
        x=[float(row["step"]) for row in rows],
        y=[row["auroc"] for row in rows],
        lo=[row["auroc_lo"] for row in rows],
        hi=[row["auroc_hi"] for row in rows],
    )
    emergence = rows[0]["emergence_step"]
    return draw.evolution(
        band,
        [row["probe_auroc"] for row in rows],
        [row["null_hi"] for row in rows],
        None if emergence is None else float(emergence),
    )


# --- show me


def _window_data(window: Window) -> Row:
    """What the player needs, in plain JSON values."""
    return {
        "concept": window.concept,
        "label": window.label,
        "number": window.latent,
        "agent": window.agent,
        "t": window.t.tolist(),
        "peak": window.peak_t,
        "map": window.map_HW.tolist(),
        "objects": list(window.object_names),
        "position": window.position_TA2.tolist(),
        "team": window.team_A.tolist(),
        "inventory": window.inventory_TI.tolist(),
        "resources": list(window.resource_names),
        "latent": [round(float(value), 4) for value in window.latent_T],
        "truth": window.label_T.tolist(),
        "action": [window.action_names[action] for action in window.action_T],
        "reward": [round(float(value), 4) for value in window.reward_T],
        "whole": [round(float(value), 4) for value in window.whole_latent_S],
        "wholeTruth": window.whole_label_S.astype(int).tolist(),
    }


def _clip_data(clip: Clip) -> Row:
    """The unedited window, with the edited one as its twin."""
    return {**_window_data(clip.before), "arm": clip.arm, "twin": _window_data(clip.after)}


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "<0.0001" if value < 1e-4 else f"{value:.4f}".rstrip("0").rstrip(".")


def _evidence(value: float) -> str:
    """1 - q, which is never certain."""
    return "–" if math.isnan(value) else ">0.9999" if value > 0.9999 else f"{value:.4f}"


def _some(numbers: list[int], most: int = 8) -> str:
    """The first few of many numbers."""
    rest = len(numbers) - most
    return ", ".join(map(str, numbers[:most])) + (f" and {rest} more" if rest > 0 else "")


def _count(value: int) -> str:
    return f"{value:,}"
