"""Tasks of a steering experiment: arms played on episodes, arms replayed step by step, and what arms are compared with.

One task holds as many arms as a batch takes, of one policy but of any of its concepts: all are rows of the same passes,
and the unedited episodes are played once for all of them. How arms are divided among tasks changes no number.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from cluster import dictionaries
from cluster.features import NUM_PCA, SPARSE_UNITS
from cluster.placement import Device, in_identity
from cluster.results import CODE_VERSION
from cluster.scoring import read_tracks
from cluster.staging import Split
from cluster.store import Store
from cluster.studio import Studio
from interp.concepts.rivals import steered_rivals
from interp.features.directions import diff_in_means
from interp.features.sources import latents
from interp.identity import content_id, sha256
from interp.policies.taps import Edit
from interp.rollout import fitting_worlds
from interp.steering.arms import Arm, SteeredLatent
from interp.steering.diagnosis import Diagnosis, diagnose
from interp.steering.manifold import Manifold
from interp.steering.trials import outcome_names, play_arms
from interp.worlds.expressions import made_of
from interp.worlds.world import WorldFactory

ARMS_PER_TASK = 128
TRIALS_PER_TASK = 512
"""Episodes of a task, about: enough for full batches, few enough for a kill to cost little."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A policy in a world, what is measured of it, and whose activations are edited."""

    policy_id: str
    factory: WorldFactory
    labels: tuple[str, ...]
    agents: tuple[int, ...] | None = None
    device: Device = "cpu"
    """Where the policy computes; another one may change the last bits of an activation, and so an action."""

    @property
    def device_config(self) -> dict[str, str]:
        """What the device adds to an identity."""
        return in_identity(self.device)

    @property
    def outcome_names(self) -> tuple[str, ...]:
        return outcome_names(self.labels, self.agents)


@dataclass(frozen=True, kw_only=True)
class PlayArms:
    """Task: outcomes [X, E, O] of some arms on some seeds, the unedited rollout first. Kept, so that it plays once."""

    subject: Subject
    arms: tuple[Arm, ...]
    env_seeds: tuple[int, ...]
    num_worlds: int | None = None
    """Worlds played at once, by default as many as are fast; changes speed and memory, never a number."""

    @property
    def key(self) -> str:
        seeds = f"{self.env_seeds[0]}-{self.env_seeds[-1]}"
        return f"{self.subject.policy_id} {len(self.arms)} arms seeds {seeds} {self.identity[2:10]}"

    @property
    def identity(self) -> str:
        """Of all that decides the outcomes."""
        return content_id(
            "b",
            {
                "policy": self.subject.policy_id,
                "world": self.subject.factory.config,
                "arms": [identity_of(arm.edit) for arm in self.arms],
                "agents": self.subject.agents,
                "env_seeds": self.env_seeds,
                "labels": self.subject.labels,
                "code_version": CODE_VERSION,
                **self.subject.device_config,
            },
        )

    def run(self, studio: Studio) -> Float64[np.ndarray, "X E O"]:
        kept = Kept(studio.store, self.identity)
        if (found := kept.find()) is not None:
            return found["outcome"]
        subject = self.subject
        fast = fitting_worlds(subject.factory.spec, {}, (1 + len(self.arms)) * len(self.env_seeds))
        outcome_XEO = play_arms(
            studio.policy(subject.policy_id, subject.device),
            studio.world(subject.factory, self.num_worlds or fast),
            self.arms,
            self.env_seeds,
            labels=subject.labels,
            agents=subject.agents,
        )
        kept.put({"outcome": outcome_XEO})
        return outcome_XEO


@dataclass(frozen=True)
class Kept:
    """Arrays that a task found, for an attempt after a kill; no record, and no part of a result."""

    store: Store
    identity: str

    @property
    def _key(self) -> str:
        return f"scratch/steering/{self.identity}.npz"

    def find(self) -> dict[str, np.ndarray] | None:
        if not self.store.exists(self._key):
            return None
        with np.load(io.BytesIO(self.store.get(self._key)), allow_pickle=False) as content:
            return dict(content)

    def put(self, arrays: Mapping[str, np.ndarray]) -> None:
        content = io.BytesIO()
        np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
        self.store.replace(self._key, content.getvalue())


def identity_of(edit: Edit) -> list[Any]:
    """What decides an edit, ready to be hashed."""
    return [
        edit.site,
        edit.coefficients,
        edit.read_bias,
        str(edit.threshold),  # -inf is not JSON
        sha256(edit.write_D.tobytes() + edit.read_D.tobytes()),
    ]


def divided(subject: Subject, arms: Sequence[Arm], env_seeds: Sequence[int]) -> list[PlayArms]:
    """Tasks that together play every arm on every seed."""
    tasks = []
    num_parts = -(-len(arms) // ARMS_PER_TASK)
    for part in range(num_parts):
        some = tuple(arms[part::num_parts])
        step = max(1, TRIALS_PER_TASK // (1 + len(some)))
        tasks += [
            PlayArms(subject=subject, arms=some, env_seeds=tuple(env_seeds[start : start + step]))
            for start in range(0, len(env_seeds), step)
        ]
    return tasks


def together(
    arms: Sequence[Arm],
    env_seeds: Sequence[int],
    played: Sequence[tuple[PlayArms, Float64[np.ndarray, "X E O"]]],
) -> Float64[np.ndarray, "X E O"]:
    """Outcomes of `divided` tasks put together: the unedited rollout, then every arm in order."""
    place = {id(arm): number + 1 for number, arm in enumerate(arms)}
    at = {seed: e for e, seed in enumerate(env_seeds)}
    num_outcomes = played[0][1].shape[2]
    outcome_XEO = np.full((1 + len(arms), len(env_seeds), num_outcomes), np.nan)
    for task, part_XEO in played:
        rows = [0, *(place[id(arm)] for arm in task.arms)]
        columns = [at[seed] for seed in task.env_seeds]
        outcome_XEO[np.ix_(rows, columns)] = part_XEO
    return outcome_XEO


class Surroundings(NamedTuple):
    """What the latents of a dictionary are compared with."""

    others: Mapping[str, tuple[SteeredLatent, ...]]
    """Concept -> latents alike in firing rate and size, the most alike first."""
    mean_difference: Mapping[str, Float32[np.ndarray, " D"]]
    """Concept -> the difference of means of its label, 0 if that never varies."""
    manifold: Mapping[str, Manifold]
    """Site -> the training rows."""
    baselines: Mapping[str, Mapping[str, SteeredLatent]]
    """Concept -> kind -> the best feature of the kind for its label; none if that was not recorded or never varies."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, to be kept."""
        latents = [
            *(one for others in self.others.values() for one in others),
            *(one for kinds in self.baselines.values() for one in kinds.values()),
        ]
        described = {
            "others": {concept: len(others) for concept, others in self.others.items()},
            "baselines": {concept: list(kinds) for concept, kinds in self.baselines.items()},
            "sites": list(self.manifold),
            "latents": [{name: getattr(one, name) for name in _SCALARS} for one in latents],
        }
        width = len(next(iter(self.mean_difference.values())))
        return {
            "described": np.array(json.dumps(described)),
            **{
                name: np.array([getattr(one, name) for one in latents]).reshape(-1, width)
                for name in ("write_D", "read_D")
            },
            **{f"mean {concept}": x_D for concept, x_D in self.mean_difference.items()},
            **{
                f"{field.name} {site}": np.asarray(getattr(manifold, field.name))
                for site, manifold in self.manifold.items()
                for field in fields(manifold)
            },
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Surroundings":
        """The inverse of `arrays`."""
        described = json.loads(str(arrays["described"]))
        latents = iter(
            SteeredLatent(**one, write_D=write_D, read_D=read_D)
            for one, write_D, read_D in zip(
                described["latents"], arrays["write_D"], arrays["read_D"], strict=True
            )
        )
        return cls(
            others={
                concept: tuple(next(latents) for _ in range(num))
                for concept, num in described["others"].items()
            },
            mean_difference={concept: arrays[f"mean {concept}"] for concept in described["others"]},
            manifold={
                site: Manifold(
                    limit=float(arrays[f"limit {site}"]),
                    **{
                        field.name: arrays[f"{field.name} {site}"]
                        for field in fields(Manifold)
                        if field.name != "limit"
                    },
                )
                for site in described["sites"]
            },
            baselines={
                concept: {kind: next(latents) for kind in kinds}
                for concept, kinds in described["baselines"].items()
            },
        )


_SCALARS = tuple(
    field.name for field in fields(SteeredLatent) if field.name not in ("write_D", "read_D")
)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Task: reads the training episodes of a recording for what its concepts are compared with."""

    recording_id: str
    dict_id: str | None
    """Among whose latents rivals are looked for."""
    concepts: tuple[SteeredLatent, ...]
    """All of one site."""
    sites: tuple[str, ...]
    """Where edits are applied: where the dictionary reads, or where the same values are."""
    num_others: int
    split: Split
    stride_steps: int = 4
    """Every so manieth step is read."""

    @property
    def key(self) -> str:
        return f"surroundings on {self.recording_id}"

    @property
    def identity(self) -> str:
        """Of all that decides what is found."""
        return content_id(
            "b",
            {
                "recording": self.recording_id,
                "dictionary": self.dict_id,
                "concepts": [
                    [one.concept, one.label, identity_of(one.edit("add", 1.0))]
                    for one in self.concepts
                ],
                "sites": self.sites,
                "num_others": self.num_others,
                "split": asdict(self.split),
                "stride_steps": self.stride_steps,
                "code_version": CODE_VERSION,
            },
        )

    def run(self, studio: Studio) -> Surroundings:
        kept = Kept(studio.store, self.identity)
        if (found := kept.find()) is not None:
            return Surroundings.of(found)
        around = self._look(studio)
        kept.put(around.arrays())
        return around

    def _look(self, studio: Studio) -> Surroundings:
        manifest = studio.manifest(self.recording_id)
        recorded = manifest.plan.config["labels"]
        labels = tuple(
            dict.fromkeys(one.label for one in self.concepts if made_of(one.label, recorded))
        )
        tracks = read_tracks(
            studio.store,
            self.recording_id,
            site=self.concepts[0].site,
            labels=labels,
            stride_steps=self.stride_steps,
        )
        train = tracks.select(~self.split.held_out(tracks.env_seed_E))
        x_ND, targets = train.activation_ESD[train.mask_ES], train.targets
        label_NL, known_NL = (x[train.mask_ES] for x in (targets.label_ESC, targets.known_ESC))
        direction = {
            label: diff_in_means(x_ND[known_N], label_N[known_N])
            for label, label_N, known_N in zip(labels, label_NL.T, known_NL.T, strict=True)
        }
        none_D = np.zeros(x_ND.shape[1], np.float32)
        rivals = steered_rivals(
            train, site=self.concepts[0].site, num_pca=NUM_PCA, sparse_units=SPARSE_UNITS
        )
        return Surroundings(
            others=self._others(studio, x_ND),
            mean_difference={
                one.concept: direction.get(one.label, none_D) for one in self.concepts
            },
            manifold=dict.fromkeys(self.sites, Manifold.of(x_ND)),
            baselines={one.concept: rivals.get(one.label, {}) for one in self.concepts},
        )

    def _others(
        self, studio: Studio, x_ND: Float32[np.ndarray, "N D"]
    ) -> dict[str, tuple[SteeredLatent, ...]]:
        """For every concept the latents nearest in log firing rate and log size, the concepts' own left out."""
        if self.dict_id is None:
            return {concept.concept: () for concept in self.concepts}
        known = latents(dictionaries.load(studio.store, self.dict_id), x_ND)
        own = {concept.latent for concept in self.concepts if concept.kind == "sae"}
        size_F = known.scale_F * np.linalg.norm(known.write_FD, axis=1)
        alive = [f for f in range(len(known)) if size_F[f] > 0 and f not in own]
        place_F2 = np.stack([_log(known.firing_F[alive]), _log(size_F[alive])], axis=1)
        others = {}
        for concept in self.concepts:
            firing = (values_of(concept, x_ND) > 0).mean()
            size = concept.scale * np.linalg.norm(concept.write_D)
            distance_F = np.square(place_F2 - [_log(firing), _log(size)]).sum(1)
            nearest = np.argsort(distance_F, kind="stable")[: self.num_others]
            others[concept.concept] = tuple(known.steered(alive[n]) for n in nearest)
        return others


def _log(value: Any) -> Any:  # noqa: ANN401 - of a number or an array
    return np.log(np.maximum(value, 1e-6))


def values_of(
    concept: SteeredLatent, x_ND: Float32[np.ndarray, "N D"]
) -> Float32[np.ndarray, " N"]:
    """Of a feature on every row."""
    pre_N = x_ND @ concept.read_D + concept.read_bias
    return np.where(pre_N > concept.threshold, pre_N, 0).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class DiagnoseArms:
    """Task: what some arms do, step by step."""

    subject: Subject
    arms: tuple[Arm, ...]
    env_seeds: tuple[int, ...]
    manifold: Mapping[str, Manifold]

    @property
    def key(self) -> str:
        return f"{self.subject.policy_id} diagnosis of {len(self.arms)} arms {self.identity[2:10]}"

    @property
    def identity(self) -> str:
        """Of all that decides what is found."""
        return content_id(
            "b",
            {
                "diagnosis_of": self.subject.policy_id,
                "world": self.subject.factory.config,
                "arms": [identity_of(arm.edit) for arm in self.arms],
                "agents": self.subject.agents,
                "env_seeds": self.env_seeds,
                "manifold": {
                    site: [sha256(one.whiten_DD.tobytes() + one.mean_D.tobytes()), one.limit]
                    for site, one in self.manifold.items()
                },
                "code_version": CODE_VERSION,
                **self.subject.device_config,
            },
        )

    def run(self, studio: Studio) -> list[Diagnosis]:
        kept = Kept(studio.store, self.identity)
        if (found := kept.find()) is None:
            diagnoses = self._play(studio)
            found = {
                field.name: np.array([getattr(one, field.name) for one in diagnoses])
                for field in fields(Diagnosis)
            }
            kept.put(found)
        return [
            Diagnosis(**{name: value_XE[number] for name, value_XE in found.items()})
            for number in range(len(self.arms))
        ]

    def _play(self, studio: Studio) -> list[Diagnosis]:
        factory = self.subject.factory
        policy = studio.policy(self.subject.policy_id, self.subject.device)
        widths = {site: policy.sites[site] for site in {arm.site for arm in self.arms}}
        trials = (1 + len(self.arms)) * len(self.env_seeds)
        return diagnose(
            policy,
            studio.world(factory, fitting_worlds(factory.spec, widths, trials)),
            self.arms,
            self.env_seeds,
            self.manifold,
            agents=self.subject.agents,
        )
