"""Features of a recording's site, read from its training episodes: what `sparsight steer` edits along."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from cluster import crosscoders, dictionaries, recordings
from cluster.scoring import read_tracks
from cluster.staging import Split
from cluster.store import Store
from interp.features.feature_set import SUPERVISED, FeatureKind, FeatureSet
from interp.features.sources import (
    crosscoder_latents,
    latents,
    mean_differences,
    neurons,
    principal_components,
    probes,
    random_features,
    sparse_probes,
)
from interp.steering.arms import SteeredLatent

NUM_PCA = 32
NUM_RANDOM = 32
SPARSE_UNITS = 5
STRIDE_STEPS = 4


def features_of(
    store: Store,
    recording_id: str,
    kind: FeatureKind,
    *,
    site: str,
    dict_id: str | None,
    labels: Sequence[str],
    split: Split,
    seed: int,
) -> FeatureSet:
    """All features of a kind at one site, measured on training episodes; `labels` are those of supervised kinds.

    Raises:
        ValueError: a site or label that was not recorded, or latents of a dictionary of another site.
    """
    tracks = read_tracks(store, recording_id, site=site, labels=labels, stride_steps=STRIDE_STEPS)
    train = tracks.select(~split.held_out(tracks.env_seed_E))
    x_ND, label_NL = train.activation_ESD[train.mask_ES], train.label_ESL[train.mask_ES]
    known_NL = train.targets.known_ESC[train.mask_ES]
    labelled = {"names": labels, "known_NL": known_NL}
    match kind:
        case "sae":
            if dict_id is None:
                raise ValueError("latents are of a dictionary: name it with --dictionary")
            dictionary = dictionaries.load(store, dict_id)
            if dictionary.site != site:
                raise ValueError(
                    f"dictionary {dict_id} reads {dictionary.site}, not {site}; leave --site out"
                )
            return latents(dictionary, x_ND)
        case "neuron":
            return neurons(site, x_ND)
        case "pca":
            return principal_components(site, x_ND, num=NUM_PCA)
        case "random_direction":
            return random_features(site, x_ND, num=NUM_RANDOM, seed=seed)
        case "diff_in_means":
            return mean_differences(site, x_ND, label_NL, **labelled)
        case "probe":
            return probes(site, x_ND, label_NL, **labelled)
        case "sparse_probe":
            return sparse_probes(
                site, x_ND, label_NL, **labelled, k=min(SPARSE_UNITS, x_ND.shape[1])
            )
        case "crosscoder":
            return _of_crosscoder(store, recording_id, dict_id, x_ND, site=site)


def _of_crosscoder(
    store: Store,
    recording_id: str,
    crosscoder_id: str | None,
    x_ND: Float32[np.ndarray, "N D"],
    *,
    site: str,
) -> FeatureSet:
    """The latents that several policies share, as the policy of this recording reads and writes them."""
    if crosscoder_id is None:
        raise ValueError("crosscoder latents are of a crosscoder: name it with --dictionary x-...")
    crosscoder = crosscoders.load(store, crosscoder_id)
    if (own := crosscoder.dictionary.site) != site:
        raise ValueError(f"crosscoder {crosscoder_id} reads {own}, not {site}; leave --site out")
    policy_id = recordings.open_manifest(store, recording_id).plan.inputs.get("policy", "none")
    return crosscoder_latents(crosscoder, crosscoder.index(policy_id), x_ND, site=site)


def site_of(store: Store, dict_id: str) -> str:
    """Which site a dictionary or a crosscoder reads."""
    if dict_id.startswith(crosscoders.PREFIX):
        return crosscoders.load(store, dict_id).dictionary.site
    return dictionaries.load(store, dict_id).site


def chosen(known: FeatureSet, wanted: Sequence[str]) -> list[SteeredLatent]:
    """Features by name, LABEL:NUMBER or, of supervised kinds, LABEL.

    ValueError for one that is not there.
    """
    found = []
    for name in wanted:
        label, _, number = name.rpartition(":")
        if known.kind in SUPERVISED:
            label, number = name, name
        elif not label:
            raise ValueError(
                f"feature {name!r}: wanted LABEL:NUMBER, the label that it is thought to be about and its number among "
                f"the {len(known)} {known.kind} features of {known.site}"
            )
        if number not in known.names:
            raise ValueError(
                f"feature {name!r}: no {number!r} among the {len(known)} {known.kind} features of {known.site}, which "
                f"are {known.names[0]} to {known.names[-1]}"
            )
        found.append(known.steered(known.names.index(number), label=label))
    return found
