"""From scores to concepts: every live latent against every label, with the controls beside each score.

All choices (threshold, orientation, best neuron, which latent stands for a label) are made on training episodes; all
figures are of held-out episodes. Beside every score stand those of its rivals (`interp.concepts.rivals`), so that a
concept which the units, plain linear algebra, the architecture or the observations would give for nothing is seen to
be one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32

from interp.concepts.blocks import known_auroc, known_table, score_all
from interp.concepts.detection import average_precision, count, detect, event_coverage
from interp.concepts.generality import generality, moments
from interp.concepts.lags import Targets
from interp.concepts.reconstruction import Reconstruction, best_latents, fit_rules, judge
from interp.concepts.rivals import Lead, Rival, best_of, compare, feature_sets, values
from interp.concepts.scoring import (
    AurocTable,
    ThresholdedF1,
    auroc_interval,
    best_threshold_f1,
)
from interp.concepts.tracks import Tracks
from interp.dictionaries.dictionary import Dictionary
from interp.features.feature_set import FeatureSet
from interp.features.sources import neurons, values_of
from interp.stats.episodes import MIN_EPISODES
from interp.worlds.labels import LABELS, WorldLabel, label_named


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringConfig:
    """How concepts are scored."""

    stride_steps: int = 4
    """Every so manieth step is scored; neighbouring steps say nearly the same."""
    num_permutations: int = 2000
    """Episode permutations behind each p-value; p is at least 1 / (num_permutations + 1)."""
    num_resamples: int = 1000
    """Bootstrap resamples of episodes behind each interval."""
    num_pca: int = 32
    """Principal directions among which the best is a rival."""
    sparse_units: int = 5
    """Units that a sparse probe reads."""
    num_random: int = 32
    """Random directions among which the best is a rival."""
    min_active_episodes: int = 10
    """Held-out episodes in which a latent must fire to be live, and a label hold to be tested."""
    max_q_value: float = 0.05
    """Largest Benjamini-Hochberg q-value of a discovery."""
    min_auroc: float = 0.6
    """Smallest AUROC on training episodes of a latent that may stand for a label."""

    def __post_init__(self) -> None:
        if self.stride_steps < 1:
            raise ValueError(f"stride_steps {self.stride_steps}: at least 1")
        if not 0.5 <= self.min_auroc < 1:
            raise ValueError(f"min_auroc {self.min_auroc}: from 0.5 (chance) to below 1")


STATE_COLUMNS = (
    "state_f1",
    "state_lo",
    "state_hi",
    "board_f1",
    "board_lo",
    "board_hi",
    "board_coverage",
)
STATE_OF = {"": "latents", "neuron_": "units", "random_init_": "latents of the untrained policy"}
"""Who rebuilds the state, by the prefix of the columns."""

CONCEPT_SCHEMA = pa.schema(
    [
        ("policy_id", pa.string()),
        ("policy_name", pa.string()),
        ("dict_id", pa.string()),
        ("site", pa.string()),
        ("concept", pa.string()),
        ("latent", pa.int32()),
        ("label", pa.string()),
        ("kind", pa.string()),
        ("auroc", pa.float64()),
        ("auroc_lo", pa.float64()),
        ("auroc_hi", pa.float64()),
        ("f1", pa.float64()),
        ("threshold", pa.float64()),
        ("base_rate", pa.float64()),
        ("firing_rate", pa.float64()),
        ("precision", pa.float64()),
        ("scale", pa.float64()),
        ("mean", pa.float64()),
        ("p_value", pa.float64()),
        ("q_value", pa.float64()),
        ("null", pa.string()),
        ("neuron_auroc", pa.float64()),
        ("pca_auroc", pa.float64()),
        ("random_init_auroc", pa.float64()),
        ("diff_in_means_auroc", pa.float64()),
        ("probe_auroc", pa.float64()),
        ("sparse_probe_auroc", pa.float64()),
        ("random_direction_auroc", pa.float64()),
        ("strongest_rival", pa.string()),
        ("lead", pa.float64()),
        ("lead_lo", pa.float64()),
        ("lead_hi", pa.float64()),
        ("beats", pa.string()),
        ("better", pa.string()),
        ("n_episodes", pa.int32()),
        ("description", pa.string()),
        ("family_p_value", pa.float64()),
        ("selectivity", pa.float64()),
        ("average_precision", pa.float64()),
        ("phi", pa.float64()),
        ("mutual_information_bits", pa.float64()),
        ("effective_samples", pa.float64()),
        ("event_coverage", pa.float64()),
        ("generality", pa.string()),
        ("effective_episodes", pa.float64()),
        ("strength", pa.float64()),
        ("evidence", pa.float64()),
        ("rule_latents", pa.list_(pa.int32())),
        ("rule_f1", pa.float64()),
        ("rule_precision", pa.float64()),
        ("rule_recall", pa.float64()),
        *((f"{who}{name}", pa.float64()) for who in STATE_OF for name in STATE_COLUMNS),
    ]
)
"""One row per live latent and label. `concept` is null but for the latent that stands for its label; `scale` is the
99th percentile of the latent over the training rows where it fires, `mean` its mean over all of them; `precision` is
the share of held-out firings with the label. `family_p_value` is adjusted for all pairs by max-T; `phi` (Matthews),
the mutual information and the share of the label's events that are covered are of the latent above `threshold`;
`generality` says in how many episodes it fires (`interp.concepts.generality`); `average_precision` is to be compared
with `base_rate`. Of a concept, `lead` is its AUROC minus that of `strongest_rival`, `beats` names the rivals of which
it is surely ahead and `better` those which are surely ahead of it (`interp.concepts.rivals.verdict` says it in words);
all are null for other pairs.
How far a row is to be trusted is two numbers: `strength`, the held-out AUROC, and `evidence`, 1 - q; NaN if the label
was not tested.
The same in all rows of a label: its rule, an OR of precise latents (`interp.concepts.reconstruction`). The same in all
rows: what such rules make of the whole state, those of latents, of units (`neuron_`) and of the untrained policy's
latents (`random_init_`); `board_f1` and `board_coverage` are those of Karvonen et al. 2024, NaN of too few episodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Representation:
    """One site of one policy, seen through its dictionary, on training and on held-out episodes.

    Units, components or probes (a `FeatureSet`) are scored by the same code as the latents of a dictionary.
    """

    train: Tracks
    held_out: Tracks
    dictionary: Dictionary | FeatureSet

    def latents(self, tracks: Tracks) -> Float32[np.ndarray, "E S F"]:
        flat_ND = tracks.activation_ESD.reshape(-1, tracks.activation_ESD.shape[2])
        latent_ESF = values_of(self.dictionary, flat_ND).reshape(*tracks.mask_ES.shape, -1)
        latent_ESF[~tracks.mask_ES] = 0
        return latent_ESF


def score_concepts(
    policy: Representation,
    random_init: Representation,
    config: ScoringConfig,
    *,
    seed: int,
    identity: Mapping[str, str],
    known_labels: Mapping[str, WorldLabel] = LABELS,
) -> pa.Table:
    """The table of all live latents against all labels.

    `identity` gives the columns policy_id, policy_name, dict_id and site, `known_labels` (those of the world) the kind
    of every label. Rows are ordered by label, then by latent.
    """
    train, held_out = policy.train, policy.held_out
    labels = held_out.label_names
    train_ESF, held_out_ESF = policy.latents(train), policy.latents(held_out)
    live_F = (held_out_ESF > 0).any(1).sum(0) >= config.min_active_episodes
    live = np.flatnonzero(live_F)
    train_ESF, held_out_ESF = train_ESF[..., live], held_out_ESF[..., live]

    train_targets, targets = train.targets, held_out.targets
    train_auroc_FL = known_auroc(train_ESF, train_targets)
    held_out_table = known_table(held_out_ESF, targets)
    interval = auroc_interval(held_out_table, num_resamples=config.num_resamples, seed=seed)
    scores = score_all(
        held_out_ESF,
        targets,
        num_permutations=config.num_permutations,
        min_positive_episodes=config.min_active_episodes,
        seed=seed,
    )
    f1_FL, threshold_FL = _known_f1(train_ESF, train_targets, held_out_ESF, targets)
    average_precision_FL = np.full(held_out_table.auroc_FC.shape, np.nan)
    for columns, known_ES in targets.alike():
        average_precision_FL[:, columns] = average_precision(
            held_out_ESF, targets.label_ESC[..., columns], known_ES
        )
    detected = detect(count(held_out_ESF, targets, threshold_FL))
    covered_FL = event_coverage(held_out_ESF, targets, threshold_FL, num_agents=held_out.num_agents)
    spread = generality(
        held_out_ESF,
        moments(held_out.mask_ES, num_agents=held_out.num_agents),
        held_out.mask_ES,
        num_agents=held_out.num_agents,
    )
    rivals = _rivals(policy, random_init, config, seed=seed)
    rules, state = _state(policy, random_init, train_ESF, held_out_ESF, seed=seed)
    concept_of = _representatives(train_auroc_FL, held_out_table.auroc_FC, scores.q_FC, config)
    leads = _leads(concept_of, held_out_table, rivals, config, seed=seed)

    fires_NF = held_out_ESF[held_out.mask_ES] > 0
    firing_F = fires_NF.mean(0)
    label_NL, known_NL = (x[held_out.mask_ES] for x in (targets.label_ESC, targets.known_ESC))
    hits_FL, firings_FL = (
        (fires_NF.T.astype(np.float32) @ fact_NL.astype(np.float32)).astype(np.float64)
        for fact_NL in (label_NL, known_NL)
    )
    precision_FL = hits_FL / np.maximum(firings_FL, 1)
    base_L = label_NL.sum(0) / np.maximum(known_NL.sum(0), 1)
    train_NF = train_ESF[train.mask_ES]
    scale_F, mean_F = scales(train_NF), train_NF.mean(0, dtype=np.float64)
    rows = [
        {
            **identity,
            "concept": f"{label}:{live[f]}" if concept_of.get(ell) == f else None,
            "latent": int(live[f]),
            "label": label,
            "kind": label_named(label, known_labels).kind,
            "auroc": float(held_out_table.auroc_FC[f, ell]),
            "auroc_lo": float(interval.lo[f, ell]),
            "auroc_hi": float(interval.hi[f, ell]),
            "f1": float(f1_FL[f, ell]),
            "threshold": float(threshold_FL[f, ell]),
            "base_rate": float(base_L[ell]),
            "firing_rate": float(firing_F[f]),
            "precision": float(precision_FL[f, ell]),
            "scale": float(scale_F[f]),
            "mean": float(mean_F[f]),
            "p_value": float(scores.p_FC[f, ell]),
            "q_value": float(scores.q_FC[f, ell]),
            "null": scores.null_C[ell],
            **{f"{name}_auroc": float(rival.auroc_L[ell]) for name, rival in rivals.items()},
            **(_lead_columns(leads[ell]) if concept_of.get(ell) == f else {}),
            "n_episodes": len(held_out.env_seed_E),
            "description": (
                f"Fires on {firing_F[f]:.1%} of agent-steps; {label} holds on {precision_FL[f, ell]:.0%} of them, "
                f"on {base_L[ell]:.0%} of all."
            ),
            "family_p_value": float(scores.family_p_FC[f, ell]),
            "selectivity": float(scores.selectivity_FC[f, ell]),
            "average_precision": float(average_precision_FL[f, ell]),
            "phi": float(detected.phi_FC[f, ell]),
            "mutual_information_bits": float(detected.mutual_information_FC[f, ell]),
            "effective_samples": float(detected.effective_samples_FC[f, ell]),
            "event_coverage": float(covered_FL[f, ell]),
            "generality": spread.kind_F[f],
            "effective_episodes": float(spread.effective_episodes_F[f]),
            "strength": float(held_out_table.auroc_FC[f, ell]),
            "evidence": float(1 - scores.q_FC[f, ell]),
            "rule_latents": live[list(rules.latents_C[ell])].tolist(),
            "rule_f1": rules.f1_C[ell],
            "rule_precision": rules.precision_C[ell],
            "rule_recall": rules.recall_C[ell],
            **state,
        }
        for ell, label in enumerate(labels)
        for f in range(len(live))
    ]
    return pa.Table.from_pylist(rows, schema=CONCEPT_SCHEMA)


def _rivals(
    policy: Representation, random_init: Representation, config: ScoringConfig, *, seed: int
) -> dict[str, Rival]:
    """The best of each kind for each label."""
    train, held_out = policy.train, policy.held_out
    known = feature_sets(
        train,
        site=policy.dictionary.site,
        num_pca=config.num_pca,
        sparse_units=config.sparse_units,
        num_random=config.num_random,
        seed=seed,
    )
    return {
        **{
            name: best_of(values(one, train), values(one, held_out), train, held_out)
            for name, one in known.items()
        },
        "random_init": best_of(
            random_init.latents(random_init.train),
            random_init.latents(random_init.held_out),
            random_init.train,
            random_init.held_out,
        ),
    }


def _leads(
    concept_of: Mapping[int, int],
    table: AurocTable,
    rivals: Mapping[str, Rival],
    config: ScoringConfig,
    *,
    seed: int,
) -> list[Lead | None]:
    """How far the concept of each label is ahead of its rivals; None for a label without one."""
    num_labels = table.auroc_FC.shape[1]
    auroc_L = np.full(num_labels, np.nan)
    influence_EL = np.zeros((len(table.influence_EFC), num_labels), np.float32)
    for ell, f in concept_of.items():
        auroc_L[ell], influence_EL[:, ell] = table.auroc_FC[f, ell], table.influence_EFC[:, f, ell]
    return compare(auroc_L, influence_EL, rivals, seed=seed, num_resamples=config.num_resamples)


class _Rules(NamedTuple):
    """What the rules of latents are worth, label by label."""

    latents_C: list[tuple[int, ...]]
    """Their places among the live ones."""
    f1_C: Sequence[float]
    precision_C: Sequence[float]
    recall_C: Sequence[float]


def _state(
    policy: Representation,
    random_init: Representation,
    train_ESF: Float32[np.ndarray, "E S F"],
    held_out_ESF: Float32[np.ndarray, "E_ S_ F"],
    *,
    seed: int,
) -> tuple[_Rules, dict[str, float]]:
    """The labels' rules, and the columns of what latents, units and untrained latents make of the whole state.

    NaN where there are too few held-out episodes for an interval.
    """
    train, held_out = policy.train, policy.held_out
    targets, num_labels = train.targets, len(train.label_names)
    rules = fit_rules(train_ESF, targets)
    latents_C = [rule.latents for rule in rules]
    if len(held_out.env_seed_E) < MIN_EPISODES:
        unknown_C = [math.nan] * num_labels
        return _Rules(latents_C, unknown_C, unknown_C, unknown_C), {}
    units = neurons(policy.dictionary.site, train.activation_ESD[train.mask_ES])
    columns: dict[str, float] = {}
    found: list[Reconstruction] = []
    for who, (fitted, fitted_ESF, judged, judged_ESF) in zip(
        STATE_OF,
        (
            (train, train_ESF, held_out, held_out_ESF),
            (train, values(units, train), held_out, values(units, held_out)),
            (
                random_init.train,
                random_init.latents(random_init.train),
                random_init.held_out,
                random_init.latents(random_init.held_out),
            ),
        ),
        strict=True,
    ):
        whole = judge(fit_rules(fitted_ESF, fitted.targets), judged_ESF, judged.targets, seed=seed)
        single = judge(
            best_latents(fitted_ESF, fitted.targets), judged_ESF, judged.targets, seed=seed
        )
        covered = [f1 for f1 in single.f1_C if not math.isnan(f1)]
        figures = (
            *(whole.state_f1, whole.lo, whole.hi, whole.board_f1, whole.board_lo, whole.board_hi),
            float(np.mean(covered)) if covered else math.nan,
        )
        columns |= {who + name: x for name, x in zip(STATE_COLUMNS, figures, strict=True)}
        found.append(whole)
    own = found[0]
    return _Rules(latents_C, own.f1_C, own.precision_C, own.recall_C), columns


def _lead_columns(lead: Lead | None) -> dict[str, object]:
    if lead is None:
        return {}
    return {
        "strongest_rival": lead.rival,
        "lead": lead.lead,
        "lead_lo": lead.lo,
        "lead_hi": lead.hi,
        "beats": ", ".join(lead.beaten),
        "better": ", ".join(lead.better),
    }


def _known_f1(
    train_ESF: Float32[np.ndarray, "E S F"],
    train: Targets,
    held_out_ESF: Float32[np.ndarray, "E_ S_ F"],
    held_out: Targets,
) -> ThresholdedF1:
    """F1 and threshold of every label on the samples where it is known; NaN where it is nowhere."""
    shape = (train_ESF.shape[2], train.label_ESC.shape[2])
    scores = ThresholdedF1(np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32))
    for columns, train_known_ES in train.alike():
        for others, known_ES in held_out.alike():
            if shared := [column for column in columns if column in others]:
                scores.f1_FC[:, shared], scores.threshold_FC[:, shared] = best_threshold_f1(
                    train_ESF,
                    train.label_ESC[..., shared],
                    train_known_ES,
                    held_out_ESF,
                    held_out.label_ESC[..., shared],
                    known_ES,
                )
    return scores


def _representatives(
    train_auroc_FL: Float[np.ndarray, "F L"],
    held_out_auroc_FL: Float[np.ndarray, "F L"],
    q_FL: Float[np.ndarray, "F L"],
    config: ScoringConfig,
) -> dict[int, int]:
    """Label -> the latent that stands for it: the one with the highest AUROC on *training* episodes.

    It is a concept if held-out episodes then confirm it, with q below the limit and an AUROC above one half. They have
    no say in which latent it is, so its held-out AUROC flatters nobody; a label that they do not confirm has none.
    """
    chosen = {}
    for ell in range(train_auroc_FL.shape[1]):
        train_F = np.nan_to_num(train_auroc_FL[:, ell], nan=0.0)
        best = int(train_F.argmax()) if len(train_F) else 0
        if (
            len(train_F)
            and train_F[best] >= config.min_auroc
            and q_FL[best, ell] < config.max_q_value
            and held_out_auroc_FL[best, ell] > 0.5
        ):
            chosen[ell] = best
    return chosen


def scales(latent_NF: Float32[np.ndarray, "N F"]) -> Float[np.ndarray, " F"]:
    """99th percentile of each latent over the rows where it fires; 0 if it never does."""
    return np.array(
        [
            np.percentile(values[values > 0], 99) if (values > 0).any() else 0.0
            for values in latent_NF.T
        ]
    )
