"""Concept cards: everything that is known of one concept of one policy, as JSON that other programs can read.

    concept           the row of the table of concepts: scores, intervals, nulls, rivals, leads
    against_controls  which of the rivals it beats, by the paired rule, and the same in words
    labels            the same latent against every other label, the clearest first, each beside its null
    claims            what was registered, what became of it, and the verdict
    dose_response     effects on return and own label by site, mode and dose, with the range of the random directions
    episodes          where it responded most: seed, agent, steps, from which it is played again, and the values, around
                      the peak and over the whole episode
    clips             of each claim the first seed that its edit changes: where the two part, and how to play both
    stability         the cosine with which dictionaries of other seeds have it
    evolution         its scores over the checkpoints of the run

No picture and no episode is stored in a card: seeds are, and an episode is a function of them.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from interp.concepts import rivals
from interp.identity import nulled
from interp.records import Window
from interp.report.document import Clip, Report, null_auroc
from interp.steering.diagnosis import MEASURES

Card = dict[str, Any]
_IDENTITY = ("policy_id", "policy_name", "concept", "label", "latent")


def cards(report: Report) -> dict[str, Card]:
    """The cards of all concepts that were steered, by a name that is safe for a file."""
    claimed: dict[tuple[str, str], list[Card]] = {}
    for row in report.verdicts.to_pylist():
        claimed.setdefault((row["policy_name"], row["concept"]), []).append(row)
    found = {}
    for (policy_name, concept), claims in claimed.items():
        found[card_name(policy_name, concept)] = _card(report, policy_name, concept, claims)
    return found


def card_name(policy_name: str, concept: str) -> str:
    """Safe for a file."""
    return re.sub(r"[: /]", "-", f"{policy_name}-{concept}")


def _card(report: Report, policy_name: str, concept: str, claims: list[Card]) -> Card:
    def about(table: pa.Table) -> list[Card]:
        return [
            row
            for row in table.to_pylist()
            if row["policy_name"] == policy_name and row.get("concept") == concept
        ]

    scored = about(report.concepts)
    own = scored[0] if scored else None
    others = (
        [
            row
            for row in report.concepts.to_pylist()
            if (row["policy_name"], row["dict_id"], row["latent"])
            == (policy_name, own["dict_id"], own["latent"])
        ]
        if own
        else []
    )
    label = claims[0]["label"]
    return nulled(
        {
            "study": report.study.study,
            "policy": policy_name,
            "policy_id": claims[0]["policy_id"],
            "name": concept,
            "label": label,
            "definition": report.label_definitions.get(label),
            "verdict": claims[0]["verdict"],
            "registration": claims[0]["registration_id"],
            "concept": own,
            "against_controls": {"verdict": rivals.verdict(own), "standings": rivals.standings(own)}
            if own
            else None,
            "labels": [
                {**{name: row[name] for name in _LABEL_COLUMNS}, "null_auroc": null_auroc(row)}
                for row in sorted(others, key=_distance_from_chance, reverse=True)
            ],
            "claims": [
                {name: value for name, value in row.items() if name not in _IDENTITY}
                for row in claims
            ],
            "dose_response": [
                {name: row.get(name) for name in _DOSE_COLUMNS}
                for row in about(report.effects)
                if row["outcome"] in ("return", label)
            ],
            "episodes": [
                _episode(window)
                for window in report.windows
                if (window.policy_name, window.concept) == (policy_name, concept)
            ],
            "clips": [
                _clip(clip)
                for clip in report.clips
                if (clip.before.policy_name, clip.before.concept) == (policy_name, concept)
            ],
            "stability": [
                {name: row[name] for name in ("other_dict_id", "cosine", "random_cosine")}
                for row in report.stabilities.to_pylist()
                if own and (row["dict_id"], row["latent"]) == (own["dict_id"], own["latent"])
            ],
            "evolution": [
                {name: row[name] for name in _LINEAGE_COLUMNS} for row in about(report.lineages)
            ],
        }
    )


_LABEL_COLUMNS = (
    *("label", "kind", "auroc", "auroc_lo", "auroc_hi", "p_value", "q_value", "null"),
    *("base_rate", "n_episodes"),
)
_DOSE_COLUMNS = (
    *("site", "mode", "dose", "outcome", "base", "difference", "lo", "hi", "p_value", "q_value"),
    *("random_lo", "random_hi", "random_direction_percentile", "n_episodes", "specificity"),
    *MEASURES,
)
_LINEAGE_COLUMNS = (
    *("step", "auroc", "auroc_lo", "auroc_hi", "null_hi", "probe_auroc", "firing_rate"),
    *("emergence_step", "n_episodes"),
)


def _distance_from_chance(row: Mapping[str, Any]) -> float:
    auroc = row["auroc"]
    return 0.0 if auroc is None or math.isnan(auroc) else abs(auroc - 0.5)


def _episode(window: Window) -> Card:
    return {
        "world": window.world,
        "env_seed": window.env_seed,
        "agent": window.agent,
        "peak_step": window.peak_t,
        "first_step": int(window.t[0]),
        "latent": [float(value) for value in window.latent_T],
        "label_holds": window.label_T.tolist(),
        "whole_latent": [float(value) for value in window.whole_latent_S],
        "whole_label_holds": window.whole_label_S.tolist(),
    }


def _clip(clip: Clip) -> Card:
    return {
        "arm": clip.arm,
        "divergence_step": clip.before.peak_t,
        "before": _episode(clip.before),
        "after": _episode(clip.after),
    }
