"""A small report whose numbers are made up, as the tests of a page may be."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from interp.comparison.evolution import LINEAGE_SCHEMA
from interp.concepts.catalogue import CONCEPT_SCHEMA, STATE_COLUMNS
from interp.concepts.naming import NOTHING
from interp.concepts.rivals import CONTROLS
from interp.records import Window
from interp.report.document import Clip, Report
from interp.steering.arms import BASELINES
from interp.steering.diagnosis import MEASURES
from interp.steering.effects import EFFECT_SCHEMA
from interp.steering.splicing import SPLICE_SCHEMA
from interp.steering.verdicts import VERDICT_SCHEMA
from interp.study import DictionaryEntry, PolicyEntry, RecordingEntry, Study, TrialEntry

IDENTITY = {"policy_id": "p-1", "policy_name": "forage-s0"}


def study(name: str) -> Study:
    return Study(
        study=name,
        seeds={"study": 0},
        policies=tuple(
            PolicyEntry(
                policy_id=f"p-{step}",
                name="forage-s0",
                run="t-1",
                world="forage",
                step=step,
                return_mean=step / 1000,
                return_se=0.1,
                n_episodes=32,
            )
            for step in (0, 1000, 4000)
        ),
        random_return=0.5,
        random_returns={"forage": 0.5},
        recordings=(
            RecordingEntry(
                recording_id="r-1",
                policy_id="p-4000",
                replay_of=None,
                rows=4096,
                episodes=40,
                sites=("lstm.c",),
            ),
        ),
        sweep=tuple(
            TrialEntry(
                config={"family": {"name": "batch_topk", "k": k}, "d_sae": 64},
                fvu=0.1 / k,
                l0=float(k),
                dead_fraction=0.0,
            )
            for k in (8, 16)
        ),
        dictionaries=(
            DictionaryEntry(
                dict_id="d-1",
                d_in=128,
                d_sae=64,
                family="batch_topk",
                fvu=0.1 / 16,
                l0=16.0,
                dead_fraction=0.0,
            ),
        ),
        concepts=("c-1",),
        effects=("e-1",),
        lineages=("l-1",),
        windows=("w-1",),
        wall_s={"train": 1.5},
    )


def splice_row(replaced_by: str, metric: str, value: float) -> dict:
    return {
        "policy_name": "forage-s0",
        "dict_id": "d-1",
        "site": "lstm.c",
        "replaced_by": replaced_by,
        "metric": metric,
        "value": value,
        "lo": value - 0.0625,
        "hi": value + 0.0625,
        "n_episodes": 32,
    }


def concept_row(latent: int, label: str, auroc: float, *, named: bool) -> dict:
    return {
        **IDENTITY,
        "dict_id": "d-1",
        "site": "lstm.c",
        "concept": f"{label}:{latent}" if named else None,
        "latent": latent,
        "label": label,
        "kind": "spatial",
        "auroc": auroc,
        "auroc_lo": auroc - 0.0213,
        "auroc_hi": auroc + 0.0187,
        "f1": 0.4321,
        "threshold": 0.1,
        "base_rate": 0.125,
        "selectivity": 0.4,
        "firing_rate": 0.25,
        "precision": 0.5,
        "scale": 2.0,
        "p_value": 0.001,
        "q_value": 0.0123,
        "null": "episode permutation",
        "neuron_auroc": 0.8125,
        "pca_auroc": 0.7125,
        "random_init_auroc": 0.6125,
        "diff_in_means_auroc": 0.8025,
        "probe_auroc": 0.8225,
        "sparse_probe_auroc": 0.8175,
        "random_direction_auroc": 0.5125,
        "strongest_rival": "probe" if named else None,
        "lead": auroc - 0.8225 if named else None,
        "lead_lo": auroc - 0.8325 if named else None,
        "lead_hi": auroc - 0.8125 if named else None,
        "beats": ", ".join(CONTROLS if auroc > 0.9 else ("random_direction", "random_init")),
        "better": "" if auroc > 0.9 else "neuron, pca, diff_in_means, probe, sparse_probe",
        "rule_latents": [latent, 61],
        "rule_f1": 0.5511,
        "rule_precision": 0.9622,
        "rule_recall": 0.3861,
        **{
            who + name: start + 0.01 * number
            for who, start in (("", 0.4), ("neuron_", 0.3), ("random_init_", 0.2))
            for number, name in enumerate(STATE_COLUMNS)
        },
        "n_episodes": 40,
        "description": f"Fires where {label} holds.",
    }


MEASURED = {
    **dict.fromkeys(MEASURES, 0.0),
    "off_manifold": 0.011,
    "kl_replay": 0.345,
    "kl_on_policy": 0.345,
    "divergence_step": 7.25,
    "n_diagnosed": 10,
}


def effect_row(mode: str, dose: float, outcome: str) -> dict:
    return {
        **IDENTITY,
        "concept": "wall:3",
        "label": "wall",
        "latent": 3,
        "site": "lstm.c",
        "mode": mode,
        "dose": dose,
        "outcome": outcome,
        "base": 1.0,
        "edited": 1.0 + dose,
        "difference": dose,
        "lo": dose - 0.1 * abs(dose),
        "hi": dose + 0.1 * abs(dose),
        "p_value": 0.01,
        "q_value": 0.02 if dose else 1.0,
        "random_direction_percentile": 97.5 if dose else float("nan"),
        "n_episodes": 12,
        "random_lo": -0.2 if dose else None,
        "random_hi": 0.3 if dose else None,
        "specificity": 2.5,
        **(MEASURED if dose else {}),
    }


def verdict_row(claim: str, mode: str, *, confirmed: bool) -> dict:
    return {
        **IDENTITY,
        "concept": "wall:3",
        "label": "wall",
        "features": "sae",
        "verdict": "sufficient only",
        "claim": claim,
        "confirmed": confirmed,
        "site": "lstm.c",
        "mode": mode,
        "dose": 1.0,
        "outcome": "wall",
        "sign": 1,
        "difference": 0.4567,
        "lo": 0.3,
        "hi": 0.6,
        "p_value": 0.001,
        "q_value": 0.002,
        "n_episodes": 16,
        "random_direction_percentile": 100.0,
        "random_latent_percentile": None,
        **MEASURED,
        **{f"{kind}_effect": 0.1234 for kind in BASELINES},
        "strongest_rival": "probe",
        "lead": 0.3333,
        "lead_lo": 0.2,
        "lead_hi": 0.4,
        "beats": ", ".join(BASELINES) if confirmed else "neuron, pca",
        "registration_id": "g-0123",
    }


def group_row(label: str, gain: float, *, beats_best: bool) -> dict:
    return {
        **IDENTITY,
        "label": label,
        "latents": [3, 5],
        "union_f1": 0.7531,
        "best_f1": 0.5421,
        "gain": gain,
        "gain_lo": gain - 0.1,
        "gain_hi": gain + 0.1,
        "beats_best": beats_best,
    }


def finding_row(cluster: int, name: str, kind: str) -> dict:
    value = 3.1416 if name != NOTHING else math.nan
    return {
        **IDENTITY,
        "cluster": cluster,
        "latents": list(range(11)),
        "name": name,
        "strength": value,
        "evidence": value / 4,
        "type": kind,
        "description": f"Peaks with {name} & more.",
        "active_episodes": 37,
        "share_behavioural": 0.0123,
        "share_spatial": 0.4567,
        "share_temporal": -0.001,
        "share_object-based": math.nan,
        "q_behavioural": 0.6,
        "q_spatial": 0.0021,
        "q_temporal": 1.0,
        "q_object-based": math.nan,
        "run_steps": 6.54,
        "shape": "pulse",
        "profile": [0.0, 0.0, 2.0, 1.0, 0.0],
    }


def lineage_row(step: int) -> dict:
    return {
        **IDENTITY,
        "run": "t-1",
        "step": step,
        "concept": "wall:3",
        "label": "wall",
        "latent": 3,
        "auroc": 0.5 + step / 10_000,
        "auroc_lo": 0.45 + step / 10_000,
        "auroc_hi": 0.55 + step / 10_000,
        "null_hi": 0.56,
        "probe_auroc": 0.7,
        "firing_rate": 0.2,
        "emergence_step": 1000,
        "n_episodes": 24,
    }


def window(label: str) -> Window:
    map_HW = np.zeros((6, 7), np.uint8)
    map_HW[0], map_HW[2, 3] = 1, 2
    steps = np.arange(10, 22, dtype=np.int32)
    return Window(
        concept="wall:3",
        label=label,
        latent=3,
        policy_name="forage-s0",
        world="forage",
        env_seed=7,
        agent=1,
        t=steps,
        peak_t=15,
        map_HW=map_HW,
        object_names=("empty", "wall", "altar"),
        position_TA2=np.stack(
            [np.tile([3, 3], (12, 1)), np.stack([np.full(12, 4), np.arange(12) % 7], 1)], 1
        ).astype(np.int16),
        team_A=np.zeros(2, np.int16),
        inventory_TI=np.tile([1, 0], (12, 1)).astype(np.int16),
        resource_names=("ore", "heart"),
        latent_T=np.linspace(0, 3, 12, dtype=np.float32),
        label_T=np.arange(12) % 2 == 0,
        action_T=np.ones(12, np.int32),
        action_names=("noop", "move"),
        reward_T=np.zeros(12, np.float32),
        whole_latent_S=np.concatenate([np.zeros(10), np.linspace(0, 3, 12), np.zeros(18)]).astype(
            np.float32
        ),
        whole_label_S=np.arange(40) % 2 == 0,
    )


def moved(before: Window) -> Window:
    """The same stretch with the agents one row further on."""
    return replace(before, position_TA2=before.position_TA2 + np.int16(1))


def make_report(name: str = "small", label: str = "wall") -> Report:
    effects = [
        effect_row(mode, dose, outcome)
        for mode, doses in (("add", (-1.0, 0.0, 1.0)), ("ablate", (0.0, 1.0)))
        for dose in doses
        for outcome in ("return", "wall", "exploration")
    ]
    return Report(
        study=study(name),
        concepts=pa.Table.from_pylist(
            [
                concept_row(3, label, 0.9137, named=True),
                concept_row(5, "open_area", 0.6543, named=True),
                concept_row(8, "open_area", 0.5, named=False),
            ],
            schema=CONCEPT_SCHEMA,
        ),
        effects=pa.Table.from_pylist(effects, schema=EFFECT_SCHEMA),
        lineages=pa.Table.from_pylist(
            [lineage_row(step) for step in (0, 1000, 4000)], schema=LINEAGE_SCHEMA
        ),
        verdicts=pa.Table.from_pylist(
            [
                verdict_row("sufficient", "add", confirmed=True),
                verdict_row("necessary", "ablate", confirmed=False),
            ],
            schema=VERDICT_SCHEMA,
        ),
        splices=pa.Table.from_pylist(
            [
                splice_row("dictionary", "return recovered", 0.875),
                splice_row("dictionary", "return", 2.5),
                splice_row("dictionary", "KL recovered", float("nan")),
                splice_row("dictionary", "agreement", 0.5),
                splice_row("dictionary", "stays finite", 1.0),
            ],
            schema=SPLICE_SCHEMA,
        ),
        stabilities=pa.Table.from_pylist(
            [
                {
                    "policy_name": "forage-s0",
                    "dict_id": "d-1",
                    "latent": 3,
                    "other_dict_id": "d-2",
                    "cosine": 0.95,
                    "random_cosine": 0.31,
                }
            ]
        ),
        groups=pa.Table.from_pylist(
            [group_row(label, 0.211, beats_best=True), group_row("ore", -0.0321, beats_best=False)]
        ),
        findings=pa.Table.from_pylist(
            [finding_row(0, label, "spatial"), finding_row(1, NOTHING, "undecided")]
        ),
        windows=(window(label), window(label)),
        clips=(Clip(arm="add 1 at lstm.c", before=window(label), after=moved(window(label))),),
        label_definitions={label: "State: a wall stands next to the agent."},
    )


@pytest.fixture
def report() -> Report:
    return make_report()


@pytest.fixture
def hostile() -> Report:
    """Names that would break out of an attribute, a text or a script if anything let them."""
    name = '</script><img src=x onerror="document.title=1">'
    return make_report(name=name, label=name)


@pytest.fixture
def empty() -> Report:
    """A study that found nothing."""
    full = make_report()
    return Report(
        study=full.study,
        concepts=CONCEPT_SCHEMA.empty_table(),
        effects=pa.table({}),
        lineages=pa.table({}),
        verdicts=pa.table({}),
        stabilities=pa.table({}),
        splices=pa.table({}),
        groups=pa.table({}),
        findings=pa.table({}),
        windows=(),
        clips=(),
        label_definitions={},
    )
