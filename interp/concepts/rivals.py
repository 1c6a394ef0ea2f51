"""What a latent must beat to be worth a name: for each label the best that anything else makes of it.

    neuron, pca         a unit of the same site, a principal direction of it
    random_direction    the best of some random ones
    diff_in_means       the label's own difference of means
    probe               its linear discriminant of all units; sparse_probe of a few
    random_init         the best latent of a dictionary trained in the same way on the untrained policy

All are fitted, chosen and oriented on training episodes and scored on held-out ones, as latents are. The supervised
ones were made for the label; a latent that was not and still does as well has found it by itself.

E episodes · S samples · F features · L labels.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from interp.concepts.blocks import known_auroc, known_table
from interp.concepts.scoring import best_feature
from interp.concepts.tracks import Tracks
from interp.features.feature_set import SUPERVISED, FeatureSet
from interp.features.sources import (
    mean_differences,
    neurons,
    principal_components,
    probes,
    random_features,
    sparse_probes,
)
from interp.stats.bootstrap import resample_weights
from interp.steering.arms import BASELINES, SteeredLatent

CONTROLS = {
    "neuron": "best neuron",
    "pca": "best principal direction",
    "random_direction": "best random direction",
    "diff_in_means": "difference of means",
    "probe": "linear probe",
    "sparse_probe": "sparse probe",
    "random_init": "best untrained latent",
}
"""What a concept is compared with -> how people call it; its AUROC is in the column `<name>_auroc`."""
BEATS_ALL = "beats every control"
Standing = Literal["beaten", "level", "better", "missing"]
"""Of a rival beside a concept: surely below it, neither, surely above it; or never scored."""


class Rival(NamedTuple):
    """The best of one kind for each label, on held-out episodes."""

    auroc_L: Float64[np.ndarray, " L"]
    influence_EL: Float32[np.ndarray, "E L"]
    """As in `interp.concepts.scoring.AurocTable`."""


class Lead(NamedTuple):
    """AUROC of a latent minus that of its strongest rival, with an interval over episodes."""

    rival: str
    lead: float
    lo: float
    hi: float
    beaten: tuple[str, ...]
    """Rivals of which the latent is surely ahead, all of them tested together."""
    better: tuple[str, ...]
    """Rivals which are surely ahead of the latent, by the same rule."""


def feature_sets(
    train: Tracks, *, site: str, num_pca: int, sparse_units: int, num_random: int, seed: int
) -> dict[str, FeatureSet]:
    """Everything but the untrained policy, fitted on training episodes."""
    x_ND, label_NL = train.activation_ESD[train.mask_ES], train.label_ESL[train.mask_ES]
    known_NL = None if train.known_ESL is None else train.known_ESL[train.mask_ES]
    labelled = {"names": train.label_names, "known_NL": known_NL}
    return {
        "neuron": neurons(site, x_ND),
        "pca": principal_components(site, x_ND, num=num_pca),
        "diff_in_means": mean_differences(site, x_ND, label_NL, **labelled),
        "probe": probes(site, x_ND, label_NL, **labelled),
        "sparse_probe": sparse_probes(
            site, x_ND, label_NL, **labelled, k=min(sparse_units, x_ND.shape[1])
        ),
        "random_direction": random_features(site, x_ND, num=num_random, seed=seed),
    }


def steered_rivals(
    train: Tracks, *, site: str, num_pca: int, sparse_units: int
) -> dict[str, dict[str, SteeredLatent]]:
    """Label -> kind -> the feature to steer against: the unit and the component farthest from chance, the label's own
    difference of means and probes, all turned so that more of it is more of the label.

    A label that never varies in the training episodes has none.
    """
    if not train.label_names:
        return {}
    known = feature_sets(
        train, site=site, num_pca=num_pca, sparse_units=sparse_units, num_random=1, seed=0
    )
    found: dict[str, dict[str, SteeredLatent]] = {label: {} for label in train.label_names}
    for kind in BASELINES:
        auroc_FL = known_auroc(values(known[kind], train), train.targets)
        index_L = best_feature(auroc_FL, auroc_FL).index_C
        for ell, label in enumerate(train.label_names):
            index = ell if kind in SUPERVISED else int(index_L[ell])
            one = known[kind].steered(index, label=label)
            if np.isfinite(auroc_FL[index, ell]) and one.write_D.any():
                found[label][kind] = _reversed(one) if auroc_FL[index, ell] < 0.5 else one
    return found


def _reversed(one: SteeredLatent) -> SteeredLatent:
    """The same line, the other way."""
    return replace(
        one, read_D=-one.read_D, read_bias=-one.read_bias, write_D=-one.write_D, mean=-one.mean
    )


def values(known: FeatureSet, tracks: Tracks) -> Float32[np.ndarray, "E S F"]:
    """Of every feature at every sample."""
    flat_ND = tracks.activation_ESD.reshape(-1, known.width)
    return known.values(flat_ND).reshape(*tracks.mask_ES.shape, len(known))


def best_of(
    train_ESF: Float32[np.ndarray, "E_ S_ F"],
    held_out_ESF: Float32[np.ndarray, "E S F"],
    train: Tracks,
    held_out: Tracks,
) -> Rival:
    """For each label the feature that is farthest from chance on training episodes."""
    train_FL = known_auroc(train_ESF, train.targets)
    index_L = best_feature(train_FL, train_FL).index_C
    columns = np.arange(len(index_L))
    sign_L = np.where(train_FL[index_L, columns] < 0.5, -1, 1)
    table = known_table(held_out_ESF[..., index_L], held_out.targets)
    return Rival(
        0.5 + sign_L * (table.auroc_FC[columns, columns] - 0.5),
        (sign_L * table.influence_EFC[:, columns, columns]).astype(np.float32),
    )


def compare(
    auroc_L: Float64[np.ndarray, " L"],
    influence_EL: Float32[np.ndarray, "E L"],
    rivals: Mapping[str, Rival],
    *,
    seed: int,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> list[Lead | None]:
    """For each label how far its latent is ahead; None where it has no AUROC.

    Paired: both are of the same episodes, so the cluster bootstrap resamples the difference of their influences. The
    lead over the strongest rival has an interval of `level`; to be called beaten, or better, a rival must lie outside
    one that is corrected for the number of rivals (Bonferroni).
    """
    weight_BE = (resample_weights(len(influence_EL), num_resamples, seed=seed) - 1).astype(
        np.float32
    )
    for name, rival in rivals.items():
        if rival.influence_EL.shape != influence_EL.shape:
            raise ValueError(
                f"{name} was scored on {len(rival.influence_EL)} episodes and the latents on {len(influence_EL)}; "
                "a lead is of the same episodes"
            )
    below = (1 - level) / 2

    def tail(rival: Rival, ell: int, share: float) -> float:
        moved_B = weight_BE @ (influence_EL[:, ell] - rival.influence_EL[:, ell])
        return float(auroc_L[ell] - rival.auroc_L[ell] + np.quantile(moved_B, share))

    leads: list[Lead | None] = []
    for ell, mine in enumerate(auroc_L):
        known = {name: r for name, r in rivals.items() if np.isfinite(r.auroc_L[ell])}
        if not known or not np.isfinite(mine):
            leads.append(None)
            continue
        strongest = max(known, key=lambda name, ell=ell: float(known[name].auroc_L[ell]))
        rival, share = known[strongest], below / len(known)
        leads.append(
            Lead(
                rival=strongest,
                lead=float(mine - rival.auroc_L[ell]),
                lo=tail(rival, ell, below),
                hi=tail(rival, ell, 1 - below),
                beaten=tuple(name for name, one in known.items() if tail(one, ell, share) > 0),
                better=tuple(name for name, one in known.items() if tail(one, ell, 1 - share) < 0),
            )
        )
    return leads


def standings(row: Mapping[str, Any]) -> dict[str, Standing]:
    """Where every control stands beside the concept of a row of the table of concepts.

    The one rule by which reports, command lines and cards speak of controls: that of `compare`, paired and corrected.
    """
    beaten, better = (set((row[column] or "").split(", ")) for column in ("beats", "better"))

    def standing(name: str) -> Standing:
        auroc = row[f"{name}_auroc"]
        if auroc is None or math.isnan(auroc):
            return "missing"
        return "beaten" if name in beaten else "better" if name in better else "level"

    return {name: standing(name) for name in CONTROLS}


def verdict(row: Mapping[str, Any]) -> str:
    """What the controls leave of a concept: all of them beaten, or which are better, level with it or missing."""
    found = standings(row)
    if set(found.values()) == {"beaten"}:
        return BEATS_ALL
    clauses = []
    for place, phrase in (("better", "{} better"), ("level", "{} level"), ("missing", "no {}")):
        if names := [CONTROLS[name] for name in CONTROLS if found[name] == place]:
            clauses.append(phrase.format(" and ".join(names)))
    return "; ".join(clauses)
