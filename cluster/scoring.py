"""Tasks of the pool that score the concepts of one dictionary and show its strongest responses.

`ScoreConcepts` holds all latents of a recording in memory; `score_latents` and `score_lags` divide them among tasks,
each of which streams the shards and keeps its own columns, for recordings and dictionaries that do not fit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cluster import dictionaries, policies, recordings
from cluster.recordings import Manifest
from cluster.results import Question
from cluster.staging import Part, Split
from cluster.store import Store
from cluster.studio import Studio, Task
from interp.concepts.blocks import (
    BlockScores,
    RankScores,
    blocks_of,
    known_auroc,
    merge,
    score_blocks,
)
from interp.concepts.catalogue import (
    CONCEPT_SCHEMA,
    Representation,
    ScoringConfig,
    score_concepts,
)
from interp.concepts.lag_table import best_pairs, lag_table
from interp.concepts.lags import Targets, lagged, within
from interp.concepts.scoring import BLOCK_FEATURES, AurocInterval, auroc, auroc_interval
from interp.concepts.tracks import Tracks
from interp.concepts.windows import Peak, cut_window, peaks, window_to_json
from interp.dictionaries.dictionary import Dictionary
from interp.records import LABEL_PREFIX, SITE_PREFIX
from interp.rollout import Capture, Trial, roll
from interp.stats.permutation import Draws
from interp.steering.arms import SteeredLatent
from interp.worlds.expressions import parse, parts_of
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
                "columns": CONCEPT_SCHEMA.names,
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
        mean=concept["mean"],
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
    check_scorable(manifest, site, labels)
    columns = _columns(site, labels)
    table = pa.concat_tables(recordings.shard_tables(store, manifest, columns))
    return Tracks.of(table, site=site, labels=labels, stride_steps=stride_steps)


def _columns(site: str, labels: Sequence[str]) -> list[str]:
    recorded = dict.fromkeys(part for label in labels for part in parts_of(parse(label)))
    return [
        "env_seed",
        "agent",
        "t",
        SITE_PREFIX + site,
        *(LABEL_PREFIX + part for part in recorded),
    ]


def check_scorable(manifest: Manifest, site: str, labels: Sequence[str]) -> None:
    """ValueError if the site or a part of a label was not recorded, or if the recording is a sample of its rows."""
    recordings.check_whole(manifest.plan, "scoring by episodes")
    for kind, name, known in (
        ("site", site, manifest.plan.config["site_widths"]),
        *(
            ("label", part, manifest.plan.config["labels"])
            for label in labels
            for part in parts_of(parse(label))
        ),
    ):
        if name not in known:
            raise ValueError(
                f"{kind} {name!r} is not in recording {manifest.plan.recording_id}; it has {', '.join(known)}"
            )


@dataclass(frozen=True, kw_only=True)
class ScoreLatents:
    """Task: a stretch of latents of a dictionary against all labels of a recording, by ranks.

    Its result is the same whatever the stretch, as long as it begins where a block does.
    """

    recording_id: str
    dict_id: str
    labels: tuple[str, ...]
    split: Split
    part: Part = "held_out"
    within_steps: int = 0
    """0: labels as they are at each step. Otherwise whether they hold within so many steps after it."""
    lags: tuple[int, ...] = (0,)
    """Steps after each at which the label is asked for; negative ones are before it. Columns are labels x lags."""
    stride_steps: int = 4
    """Every so manieth step is scored."""
    num_permutations: int = 1000
    """Episode permutations behind each p-value."""
    min_positive_episodes: int = 10
    """Episodes in which a label must hold, and fail to hold, to be tested."""
    seed: int
    first: int = 0
    """First latent."""
    stop: int | None = None
    """The latent after the last one; all others if None."""

    def __post_init__(self) -> None:
        if self.first % BLOCK_FEATURES or self.first < 0:
            raise ValueError(f"first is {self.first}: wanted a multiple of {BLOCK_FEATURES}")
        for name, least in (("within_steps", 0), ("stride_steps", 1), ("num_permutations", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: at least {least}")
        if not self.lags or len(set(self.lags)) != len(self.lags):
            raise ValueError(f"lags {list(self.lags)}: wanted at least one, each once")

    @property
    def key(self) -> str:
        part = "" if self.part == "held_out" else f" {self.part}"
        return f"latents {self.first} to {self.stop} of {self.dict_id} on {self.recording_id}{part}"

    @property
    def question(self) -> Question:
        """The table of all latents at all lags."""
        return Question(
            "scores",
            {
                "labels": list(self.labels),
                "lags": list(self.lags),
                "within_steps": self.within_steps,
                "split": asdict(self.split),
                "stride_steps": self.stride_steps,
                "num_permutations": self.num_permutations,
                "min_positive_episodes": self.min_positive_episodes,
                "seed": self.seed,
            },
            {"recording": self.recording_id, "dictionary": self.dict_id},
        )

    def divided(self, num_latents: int, latents_per_task: int) -> list["ScoreLatents"]:
        """Tasks of so many latents each, a multiple of a block, which together do what this one does."""
        if latents_per_task < 1 or latents_per_task % BLOCK_FEATURES:
            raise ValueError(
                f"latents_per_task is {latents_per_task}: wanted a multiple of {BLOCK_FEATURES}"
            )
        stop = num_latents if self.stop is None else min(self.stop, num_latents)
        return [
            replace(self, first=first, stop=min(first + latents_per_task, stop))
            for first in range(self.first, stop, latents_per_task)
        ]

    def run(self, studio: Studio) -> list[BlockScores]:
        latent_ESF, targets = self.read(studio.store)
        draws = Draws.make(len(latent_ESF), self.num_permutations, seed=self.seed)
        return score_blocks(
            latent_ESF, targets, draws, min_positive_episodes=self.min_positive_episodes
        )

    def read(self, store: Store, only: Sequence[int] | None = None) -> tuple[np.ndarray, Targets]:
        """[E, S, F] latents of the stretch and what is to be told from them, of the episodes of the part.

        `only` reads these latents instead of the stretch.

        One shard is in memory at a time, with all of its activations and latents; of those that went before, only
        what is returned. Latents are computed together and then cut, so that their last bits do not depend on the
        stretch.
        """
        dictionary = dictionaries.load(store, self.dict_id)
        manifest = recordings.open_manifest(store, self.recording_id)
        check_scorable(manifest, dictionary.site, self.labels)
        columns = _columns(dictionary.site, self.labels)
        kept = slice(self.first, self.stop) if only is None else list(only)
        latents, tracks = [], []
        for table in recordings.shard_tables(store, manifest, columns):
            dense = Tracks.of(table, site=dictionary.site, labels=self.labels)
            chosen_E = self.split.chosen(dense.env_seed_E, self.part)
            if not chosen_E.any():
                continue
            dense = dense.select(chosen_E)
            place_S = _strided(dense, self.stride_steps)
            x_ND = dense.activation_ESD[:, place_S].reshape(-1, dictionary.d_in)
            code_ESF = dictionary.encode_rows(x_ND)[:, kept].reshape(
                len(dense.env_seed_E), len(place_S), -1
            )
            code_ESF[~dense.mask_ES[:, place_S]] = 0
            latents.append(code_ESF)
            tracks.append(replace(dense, activation_ESD=dense.activation_ESD[..., :0]))
        if not tracks:
            raise ValueError(
                f"recording {self.recording_id} has no {self.part} episode; record more episodes"
            )
        whole = Tracks.joined(tracks)
        targets = whole.targets
        if self.within_steps:
            targets = within(targets, steps=self.within_steps, num_agents=whole.num_agents)
        if self.lags != (0,):
            targets = lagged(targets, lags=self.lags, num_agents=whole.num_agents)
        targets = targets.select(_strided(whole, self.stride_steps))
        latent_ESF = np.zeros((*targets.mask_ES.shape, latents[0].shape[2]), np.float32)
        start = 0
        for code_ESF in latents:
            latent_ESF[start : start + len(code_ESF), : code_ESF.shape[1]] = code_ESF
            start += len(code_ESF)
        return latent_ESF, targets


def _strided(tracks: Tracks, stride_steps: int) -> np.ndarray:
    """Places, in an episode's row, of all agents at every so manieth step."""
    t = np.arange(0, tracks.mask_ES.shape[1] // tracks.num_agents, stride_steps)
    return (t[:, None] * tracks.num_agents + np.arange(tracks.num_agents)).reshape(-1)


def score_latents(
    store: Store,
    whole: ScoreLatents,
    make: Callable[[Sequence[ScoreLatents]], Sequence[list[BlockScores]]],
    *,
    latents_per_task: int = 512,
) -> RankScores:
    """All latents against all labels, divided among the tasks that `make` does, for instance `Laboratory.make`.

    A task holds rows x latents_per_task x 4 bytes, and every task reads and encodes the whole recording: many latents a
    task save work, few save memory. The numbers are the same.
    """
    num_latents = dictionaries.load(store, whole.dict_id).d_sae
    tasks = whole.divided(num_latents, latents_per_task)
    return merge([block for blocks in make(tasks) for block in blocks])


@dataclass(frozen=True, kw_only=True)
class ScanLatents:
    """Task: AUROCs [F, C] alone, by which a lag and a latent are chosen."""

    of: ScoreLatents

    @property
    def key(self) -> str:
        return f"scan of {self.of.key}"

    def run(self, studio: Studio) -> np.ndarray:
        latent_ESF, targets = self.of.read(studio.store)
        blocks = blocks_of(latent_ESF.shape[2])
        return np.concatenate([known_auroc(latent_ESF[..., block], targets) for block in blocks])


class BestInterval(NamedTuple):
    """Of the latent and lag that were chosen for each label, [1, L]."""

    interval: AurocInterval
    n_episodes: int


@dataclass(frozen=True, kw_only=True)
class IntervalOfBest:
    """Task: intervals of what was chosen, one latent and column for each label."""

    of: ScoreLatents
    latents: tuple[int, ...]
    columns: tuple[int, ...]
    num_resamples: int = 1000

    @property
    def key(self) -> str:
        return f"intervals of {self.of.key}"

    def run(self, studio: Studio) -> BestInterval:
        latent_ESL, targets = self.of.read(studio.store, self.latents)
        lo_L, hi_L = np.full((2, 1, len(self.latents)), np.nan)
        for ell, column in enumerate(self.columns):
            known_ES = targets.known_ESC[..., column]
            if known_ES.any():
                table = auroc(latent_ESL[..., [ell]], targets.label_ESC[..., [column]], known_ES)
                found = auroc_interval(table, seed=self.of.seed, num_resamples=self.num_resamples)
                lo_L[:, ell], hi_L[:, ell] = found.lo[0, 0], found.hi[0, 0]
        return BestInterval(AurocInterval(lo_L, hi_L), len(latent_ESL))


def score_lags(
    store: Store,
    whole: ScoreLatents,
    make: Callable[[Sequence[Task[Any]]], Sequence[Any]],
    *,
    latents_per_task: int = 512,
) -> pa.Table:
    """All latents against all labels at all lags (`interp.concepts.lag_table`), divided as by `score_latents`.

    Found in the store if it was asked before.
    """
    if (table := whole.question.find(store)) is not None:
        return table
    parts = whole.divided(dictionaries.load(store, whole.dict_id).d_sae, latents_per_task)
    scans = [ScanLatents(of=replace(part, part="train")) for part in parts]
    answers = make([*scans, *parts])
    train_auroc_FC = np.concatenate(answers[: len(scans)])
    best = best_pairs(train_auroc_FC, len(whole.lags))
    column_L = np.arange(len(whole.labels)) * len(whole.lags) + best.lag_L
    (published,) = make(
        [
            IntervalOfBest(
                of=whole,
                latents=tuple(best.latent_L.tolist()),
                columns=tuple(column_L.tolist()),
            )
        ]
    )
    return whole.question.answer(
        store,
        lag_table(
            train_auroc_FC,
            merge([block for blocks in answers[len(scans) :] for block in blocks]),
            published.interval,
            labels=whole.labels,
            lags=whole.lags,
            n_episodes=published.n_episodes,
        ),
    )


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
        # where they were recorded: elsewhere the last bits, and so the actions, may be others
        recorded = recordings.open_manifest(store, self.recording_id).plan
        policy = studio.policy(self.policy_id, recorded.config.get("device", "cpu"))
        for episode in roll(policy, world, trials, capture):
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
