"""Tasks of the pool that score the concepts of one dictionary and show its strongest responses."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from cluster import dictionaries, policies, recordings
from cluster.results import Question
from cluster.staging import Split
from cluster.store import Store
from cluster.studio import Studio
from interp.concepts.catalogue import Representation, ScoringConfig, score_concepts
from interp.concepts.tracks import Tracks
from interp.concepts.windows import Peak, cut_window, peaks, window_to_json
from interp.dictionaries.dictionary import Dictionary
from interp.records import LABEL_PREFIX, SITE_PREFIX
from interp.rollout import Capture, Trial, roll
from interp.steering.arms import SteeredLatent
from interp.worlds.labels import compute_labels
from interp.worlds.world import WorldFactory


@dataclass(frozen=True)
class ScoreConcepts:
    """Task: all latents of a dictionary against all labels of its recording."""

    policy_name: str
    recording_id: str
    dict_id: str
    random_init_recording_id: str
    """The untrained policy on the same observations."""
    random_init_dict_id: str
    factory: WorldFactory
    """World of both recordings, which says of what kind its labels are."""
    labels: tuple[str, ...]
    split: Split
    config: ScoringConfig
    seed: int

    @property
    def key(self) -> str:
        return f"concepts of {self.policy_name}"

    @property
    def question(self) -> Question:
        return Question(
            "concepts",
            {
                "scoring": asdict(self.config),
                "split": asdict(self.split),
                "labels": list(self.labels),
                "seed": self.seed,
            },
            {
                "recording": self.recording_id,
                "dictionary": self.dict_id,
                "random_init_recording": self.random_init_recording_id,
                "random_init_dictionary": self.random_init_dict_id,
            },
        )

    def run(self, studio: Studio) -> pa.Table:
        store = studio.store
        policy = self._representation(store, self.recording_id, self.dict_id)
        random_init = self._representation(
            store, self.random_init_recording_id, self.random_init_dict_id
        )
        table = score_concepts(
            policy,
            random_init,
            self.config,
            seed=self.seed,
            known_labels=self.factory.labels,
            identity={
                "policy_id": recordings.open_manifest(store, self.recording_id).plan.inputs[
                    "policy"
                ],
                "policy_name": self.policy_name,
                "dict_id": self.dict_id,
                "site": policy.dictionary.site,
            },
        )
        return self.question.answer(store, table)

    def _representation(self, store: Store, recording_id: str, dict_id: str) -> Representation:
        dictionary = dictionaries.load(store, dict_id)
        tracks = read_tracks(
            store,
            recording_id,
            site=dictionary.site,
            labels=self.labels,
            stride_steps=self.config.stride_steps,
        )
        held_out_E = self.split.held_out(tracks.env_seed_E)
        return Representation(
            train=tracks.select(~held_out_E),
            held_out=tracks.select(held_out_E),
            dictionary=dictionary,
        )


def steered_latent(dictionary: Dictionary, concept: Mapping[str, Any]) -> SteeredLatent:
    """The latent of a row of the concept table, ready to be steered in the units of its site."""
    direction = dictionary.direction(concept["latent"])
    return SteeredLatent(
        concept=concept["concept"],
        label=concept["label"],
        latent=concept["latent"],
        site=concept["site"],
        scale=concept["scale"],
        write_D=direction.write_D.numpy(),
        read_D=direction.read_D.numpy(),
        read_bias=direction.read_bias,
        threshold=direction.threshold,
    )


def read_tracks(
    store: Store, recording_id: str, *, site: str, labels: Sequence[str], stride_steps: int
) -> Tracks:
    """Tracks of a recording from its verified shards.

    ValueError if the site or a label was not recorded, or if the recording is a sample of its rows.
    """
    manifest = recordings.open_manifest(store, recording_id)
    recordings.check_whole(manifest.plan, "scoring by episodes")
    for kind, name, known in (
        ("site", site, manifest.plan.config["site_widths"]),
        *(("label", label, manifest.plan.config["labels"]) for label in labels),
    ):
        if name not in known:
            raise ValueError(
                f"{kind} {name!r} is not in recording {recording_id}; it has {', '.join(known)}"
            )
    columns = ["env_seed", "agent", SITE_PREFIX + site, *(LABEL_PREFIX + label for label in labels)]
    table = pa.concat_tables(recordings.shard_tables(store, manifest, columns))
    return Tracks.of(table, site=site, labels=labels, stride_steps=stride_steps)


@dataclass(frozen=True)
class ShowConcepts:
    """Task: windows of the strongest held-out responses of some latents, played again from their seeds.

    They are drawn on the world's map, so a world without one is refused.
    """

    policy_id: str
    factory: WorldFactory
    recording_id: str
    dict_id: str
    latents: tuple[SteeredLatent, ...]
    split: Split
    num_windows: int = 3
    """Windows of each latent."""

    def __post_init__(self) -> None:
        if not self.factory.spec.has_map:
            raise ValueError(
                f"world {self.factory.name} has no map to draw windows on; leave this stage out"
            )

    @property
    def key(self) -> str:
        return f"windows of {self.policy_id}"

    @property
    def question(self) -> Question:
        return Question(
            "windows",
            {
                "concepts": [latent.concept for latent in self.latents],
                "split": asdict(self.split),
                "num_windows": self.num_windows,
            },
            {"recording": self.recording_id, "dictionary": self.dict_id, "policy": self.policy_id},
        )

    def run(self, studio: Studio) -> pa.Table:
        store = studio.store
        dictionary = dictionaries.load(store, self.dict_id)
        policy_name = policies.read_card(store, self.policy_id).name
        tracks = read_tracks(
            store, self.recording_id, site=dictionary.site, labels=(), stride_steps=1
        )
        held_out = tracks.select(self.split.held_out(tracks.env_seed_E))
        representation = Representation(train=tracks, held_out=held_out, dictionary=dictionary)
        latent_ESF = representation.latents(held_out)
        wanted: list[tuple[SteeredLatent, Peak]] = [
            (latent, peak)
            for latent in self.latents
            for peak in peaks(held_out, latent_ESF[..., latent.latent], num=self.num_windows)
        ]
        world = studio.world(self.factory, min(16, max(1, len(wanted))))
        capture = Capture(sites=(dictionary.site,), facts=True)
        trials = [Trial(env_seed=peak.env_seed) for _, peak in wanted]
        windows = [""] * len(wanted)
        for episode in roll(studio.policy(self.policy_id), world, trials, capture):
            latent, peak = wanted[episode.index]
            assert episode.facts is not None
            latent_TF = dictionary.encode_rows(episode.activations[dictionary.site][:, peak.agent])
            windows[episode.index] = window_to_json(
                cut_window(
                    episode,
                    peak,
                    concept=latent.concept,
                    label=latent.label,
                    latent=latent.latent,
                    latent_T=latent_TF[:, latent.latent],
                    label_T=compute_labels(episode.facts, [latent.label])[latent.label][
                        :, peak.agent
                    ],
                    policy_name=policy_name,
                    world=self.factory.name,
                    action_names=self.factory.spec.action_names,
                )
            )
        table = pa.table(
            {
                "concept": pa.array([latent.concept for latent, _ in wanted], pa.string()),
                "window": pa.array(windows, pa.string()),
            }
        )
        return self.question.answer(store, table)
