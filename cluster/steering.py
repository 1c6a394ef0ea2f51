"""A steering experiment from the first try to a verdict.

    select     arms of all concepts play rounds of episodes; those that are settled stop
    register   per concept, what is claimed of which arm and outcome, written down with its hash
    confirm    all arms with their rivals, on episodes that were neither recorded nor selected on
    diagnose   the claimed arms step by step, and the same edits on the untrained policy

    selections/<id>.parquet       what every arm did while selecting
    registrations/<id>.json       the claims; its id is a hash of its content, written before the confirmation is played
    effects/<id>.parquet          every arm of the confirmation
    verdicts/<id>.parquet         the evidence for every claim, and one word for every concept

Every step finds what an earlier attempt left. Several experiments go side by side, each waiting for its own answers.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from cluster import policies
from cluster.arms import (
    DiagnoseArms,
    Subject,
    Surroundings,
    Survey,
    divided,
    identity_of,
    together,
)
from cluster.placement import Device
from cluster.results import CODE_VERSION, Question
from cluster.staging import Split
from cluster.store import Store
from cluster.studio import Task
from interp.identity import canonical_json, content_id
from interp.rollout import check_sites
from interp.steering.arms import (
    Arm,
    SteeredLatent,
    SteeringConfig,
    arms,
    baseline_arms,
    mean_difference_arm,
    own_arms,
    random_latent_arms,
)
from interp.steering.diagnosis import Diagnosis
from interp.steering.effects import ConceptTrials, effects_table
from interp.steering.selection import Hypothesis, Tried, hypotheses, spread, tried
from interp.steering.trials import steered_agents
from interp.steering.verdicts import find_arm, verdicts_table
from interp.worlds.expressions import made_of
from interp.worlds.labels import check_labels
from interp.worlds.world import WorldFactory

RULES = 1
"""Version of the rules by which claims are chosen and verdicts given; part of a registration."""
EVIDENCE = 2
"""Version of what tables of effects and verdicts hold beside each number: 2 has baselines and diagnoses of all arms."""
Value = TypeVar("Value")
Steps = Generator[Sequence[Task[Any]], Sequence[Any], Value]
"""Yields tasks, is sent their answers."""

SELECTION_SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("site", pa.string()),
        ("mode", pa.string()),
        ("dose", pa.float64()),
        ("outcome", pa.string()),
        ("effect_sd", pa.float64()),
        ("strength", pa.float64()),
        ("n_episodes", pa.int32()),
        ("settled", pa.string()),
    ]
)
"""One row per arm and outcome; `effect_sd` is the mean difference in standard deviations of unedited episodes,
`strength` as in `interp.steering.selection.Tried`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Tables of one experiment and where they are kept."""

    effects: pa.Table
    verdicts: pa.Table
    effects_id: str
    verdicts_id: str
    selection_id: str
    registration_id: str


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is asked about the concepts of one policy."""

    policy_id: str
    policy_name: str
    untrained_id: str
    """The policy before training, on which the same edits are tried."""
    factory: WorldFactory
    concepts_id: str | None = None
    """Table that the concepts are from, if they are from one."""
    recording_id: str
    """Whose training episodes tell what is usual."""
    dict_id: str | None
    """Among whose latents rivals are looked for; None goes without."""
    split: Split
    latents: tuple[SteeredLatent, ...]
    config: SteeringConfig
    labels: tuple[str, ...]
    """Outcomes besides the return; the concepts' own labels are outcomes in any case."""
    seed: int
    device: Device = "cpu"
    """Where policies compute."""

    def __post_init__(self) -> None:
        names = [latent.concept for latent in self.latents]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"concept {min(twice)!r} is given twice; steer each once")

    @cached_property
    def subject(self) -> Subject:
        own = (one.label for one in self.latents if made_of(one.label, self.factory.labels))
        return Subject(
            policy_id=self.policy_id,
            factory=self.factory,
            labels=tuple(dict.fromkeys((*self.labels, *own))),
            agents=steered_agents(self.factory.spec, self.config.agents),
            device=self.device,
        )

    @property
    def selection(self) -> Question:
        return Question("selections", self._asked, self._inputs)

    def claimed(self, verdicts: pa.Table) -> list[tuple[SteeredLatent, Arm]]:
        """The claims of a table of verdicts, of sufficiency and of necessity, as arms."""
        latent_of = {latent.concept: latent for latent in self.latents}
        found = [
            (latent_of[row["concept"]], row["mode"], row["dose"], row["site"])
            for row in verdicts.to_pylist()
        ]
        return [
            (latent, Arm(mode=mode, dose=dose, edit=latent.edit(mode, dose, site=site)))
            for latent, mode, dose, site in found
        ]

    def effects(self, registration_id: str) -> Question:
        return Question("effects", self._computed, self._about(registration_id))

    def verdicts(self, registration_id: str) -> Question:
        return Question("verdicts", self._computed, self._about(registration_id))

    @property
    def _computed(self) -> dict[str, Any]:
        return {"seed": self.seed, "evidence": EVIDENCE}

    @property
    def _asked(self) -> dict[str, Any]:
        return {
            "world": self.factory.config,
            "steering": asdict(self.config),
            "split": asdict(self.split),
            "concepts": [
                [latent.concept, identity_of(latent.edit("add", 1.0)), latent.mean]
                for latent in self.latents
            ],
            "labels": list(self.subject.labels),
            "seed": self.seed,
            **self.subject.device_config,
        }

    @property
    def _inputs(self) -> dict[str, str]:
        optional = {"concepts": self.concepts_id, "dictionary": self.dict_id}
        return {
            "policy": self.policy_id,
            "untrained": self.untrained_id,
            "recording": self.recording_id,
            **{role: name for role, name in optional.items() if name is not None},
        }

    def _about(self, registration_id: str) -> dict[str, str]:
        return {**self._inputs, "registration": registration_id}


def conduct(
    store: Store,
    experiments: Sequence[Experiment],
    make: Callable[[Sequence[Task[Any]]], Sequence[Any]],
) -> list[Findings]:
    """Findings of every experiment; `make` does tasks, for instance `Laboratory.make`.

    Raises:
        ValueError: a site that the policy lacks or whose width is not the feature's, an outcome that is no label of the
            world, an untrained policy of another shape; before anything is played.
        NoOpViolationError: an edit of dose 0 changed a rollout.
    """
    for experiment in experiments:
        _check(store, experiment)
    findings: dict[int, Findings] = {}
    running = {n: _steps(store, experiment) for n, experiment in enumerate(experiments)}
    asked: dict[int, Sequence[Task[Any]]] = {}

    def advance(n: int, answers: Sequence[Any] | None) -> None:
        try:
            asked[n] = next(running[n]) if answers is None else running[n].send(answers)
        except StopIteration as stop:
            findings[n] = stop.value
            asked.pop(n, None)

    for n in running:
        advance(n, None)
    while asked:
        tasks = [task for n in sorted(asked) for task in asked[n]]
        answers = iter(make(tasks))
        for n in sorted(asked):
            advance(n, [next(answers) for _ in asked[n]])
    return [findings[n] for n in running]


def _check(store: Store, experiment: Experiment) -> None:
    widths = policies.read_bundle(store, experiment.policy_id).open().sites
    check_labels(experiment.labels, experiment.factory.labels)
    untrained = policies.read_card(store, experiment.untrained_id)
    if dict(untrained.sites) != dict(widths):
        raise ValueError(
            f"untrained policy {experiment.untrained_id} has sites {dict(untrained.sites)}, but {experiment.policy_id} "
            f"has {dict(widths)}: edits of the one mean nothing in the other; leave it out for a fresh copy"
        )
    for latent in experiment.latents:
        for site in experiment.config.sites or (latent.site,):
            check_sites(widths, [site])
            if widths[site] != len(latent.write_D):
                raise ValueError(
                    f"{latent.concept} is {len(latent.write_D)} wide and site {site} {widths[site]}: "
                    "it can be steered where it was found only"
                )
            if site != latent.site and {site, latent.site} != {"lstm.h", "lstm.y"}:
                raise ValueError(
                    f"{latent.concept} was found at {latent.site}, whose values are not those of {site}; record "
                    f"{site} and train a dictionary there"
                )


def _steps(store: Store, experiment: Experiment) -> Steps[Findings]:
    """The whole experiment."""
    claimed = yield from _select(store, experiment)
    registration_id = _register(store, experiment, claimed)
    effects_question = experiment.effects(registration_id)
    verdicts_question = experiment.verdicts(registration_id)
    effects, verdicts = effects_question.find(store), verdicts_question.find(store)
    if effects is None or verdicts is None:
        named = {"policy_id": experiment.policy_id, "policy_name": experiment.policy_name}
        trials: list[ConceptTrials] = []
        diagnoses, untrained = {}, {}
        if experiment.latents:
            (around,) = yield [_survey(experiment)]
            trials = yield from _confirm(experiment, claimed, around)
            trials = yield from _diagnose(experiment, trials, around)
            diagnoses = _of_claims(trials, claimed)
            untrained = yield from _play_untrained(experiment, trials, claimed)
        effects = effects_question.answer(
            store, effects_table(trials, **named, seed=experiment.seed)
        )
        verdicts = verdicts_question.answer(
            store,
            verdicts_table(
                trials,
                claimed,
                diagnoses,
                untrained,
                **named,
                registration_id=registration_id,
                seed=experiment.seed,
            ),
        )
    return Findings(
        effects=effects,
        verdicts=verdicts,
        effects_id=effects_question.id,
        verdicts_id=verdicts_question.id,
        selection_id=experiment.selection.id,
        registration_id=registration_id,
    )


def _play(
    subject: Subject, played: Sequence[Arm], env_seeds: Sequence[int]
) -> Steps[Float64[np.ndarray, "X E O"]]:
    """Outcomes of arms on seeds, the unedited rollout first."""
    tasks = divided(subject, played, env_seeds)
    outcomes = yield tasks
    return together(played, env_seeds, list(zip(tasks, outcomes, strict=True)))


def _select(store: Store, experiment: Experiment) -> Steps[list[Hypothesis]]:
    """The claims to register."""
    question = experiment.selection
    table = question.find(store)
    if table is None:
        results = yield from _try(experiment)
        table = question.answer(store, _selection_table(experiment, results))
    return _claims(experiment, table)


def _try(experiment: Experiment) -> Steps[list[tuple[str, Tried]]]:
    """All arms on the first round of episodes, then those that are not settled on the next, and so on."""
    config, subject = experiment.config, experiment.subject
    owner = [
        (latent.concept, arm)
        for latent in experiment.latents
        for arm in own_arms(latent, config)
        if arm.dose
    ]
    results: dict[int, Tried] = {}
    seen: dict[int, list[Float64[np.ndarray, "E O"]]] = {n: [] for n in range(len(owner))}
    base: list[Float64[np.ndarray, "E O"]] = []
    seeds = list(config.selection_env_seeds)
    for start in range(0, len(seeds), config.round_episodes):
        unsettled = [n for n in seen if n not in results or results[n].settled == "open"]
        if not unsettled:
            break
        outcome_XEO = yield from _play(
            subject,
            [owner[n][1] for n in unsettled],
            seeds[start : start + config.round_episodes],
        )
        base.append(outcome_XEO[0])
        sd_O = spread(np.concatenate(base))
        for n, outcome_EO in zip(unsettled, outcome_XEO[1:], strict=True):
            seen[n].append(outcome_EO - outcome_XEO[0])
            results[n] = tried(owner[n][1], np.concatenate(seen[n]), sd_O, config)
    return [(concept, results[n]) for n, (concept, _) in enumerate(owner)]


def _selection_table(experiment: Experiment, results: Sequence[tuple[str, Tried]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "concept": concept,
                "site": result.arm.site,
                "mode": result.arm.mode,
                "dose": result.arm.dose,
                "outcome": outcome,
                "effect_sd": float(result.effect_O[o]),
                "strength": float(result.strength_O[o]),
                "n_episodes": result.n_episodes,
                "settled": result.settled,
            }
            for concept, result in results
            for o, outcome in enumerate(experiment.subject.outcome_names)
        ],
        schema=SELECTION_SCHEMA,
    )


def _claims(experiment: Experiment, table: pa.Table) -> list[Hypothesis]:
    names = experiment.subject.outcome_names
    rows = table.to_pylist()
    claimed: list[Hypothesis] = []
    for latent in experiment.latents:
        own = [row for row in rows if row["concept"] == latent.concept]
        results = [
            Tried(
                arm=Arm(
                    mode=first["mode"],
                    dose=first["dose"],
                    edit=latent.edit(first["mode"], first["dose"], site=first["site"]),
                ),
                n_episodes=first["n_episodes"],
                effect_O=_column(own[start : start + len(names)], "effect_sd"),
                strength_O=_column(own[start : start + len(names)], "strength"),
                settled=first["settled"],
            )
            for start in range(0, len(own), len(names))
            for first in (own[start],)
        ]
        claimed += hypotheses(latent.concept, results, names)
    return claimed


def _column(rows: Sequence[dict[str, Any]], name: str) -> Float64[np.ndarray, " O"]:
    return np.array([row[name] for row in rows], np.float64)


def _register(store: Store, experiment: Experiment, claimed: Sequence[Hypothesis]) -> str:
    """Writes down what is claimed before it is tested; the id is a hash of every word of it."""
    content = {
        "selection": experiment.selection.id,
        "hypotheses": [asdict(hypothesis) for hypothesis in claimed],
        "confirmation_env_seeds": list(experiment.config.env_seeds),
        "steering": asdict(experiment.config),
        "seed": experiment.seed,
        "rules": RULES,
        "code_version": CODE_VERSION,
    }
    registration_id = content_id("g", content)
    store.ensure(f"registrations/{registration_id}.json", canonical_json(content))
    return registration_id


def _survey(experiment: Experiment) -> Survey:
    return Survey(
        recording_id=experiment.recording_id,
        dict_id=experiment.dict_id,
        concepts=experiment.latents,
        sites=tuple(
            dict.fromkeys(experiment.config.sites or (one.site for one in experiment.latents))
        ),
        num_others=experiment.config.num_random_latents,
        split=experiment.split,
    )


def _confirm(
    experiment: Experiment, claimed: Sequence[Hypothesis], around: Surroundings
) -> Steps[list[ConceptTrials]]:
    """Trials of every concept on the episodes that were kept for it."""
    config = experiment.config
    arms_of: dict[str, list[Arm]] = {}
    for latent in experiment.latents:
        played = arms(latent, config, seed=experiment.seed)
        for arm in _claimed_arms(latent, claimed):
            played += random_latent_arms(around.others[latent.concept], arm)
            direction_D = around.mean_difference[latent.concept]
            if direction_D.any():
                played.append(mean_difference_arm(arm, direction_D))
            played += baseline_arms(around.baselines[latent.concept], arm)
        arms_of[latent.concept] = played
    every = [arm for played in arms_of.values() for arm in played]
    outcome_XEO = yield from _play(experiment.subject, every, config.env_seeds)
    trials, start = [], 1
    for latent in experiment.latents:
        played = arms_of[latent.concept]
        own_XEO = outcome_XEO[[0, *range(start, start + len(played))]]
        start += len(played)
        trials.append(
            ConceptTrials(
                latent=latent,
                arms=tuple(played),
                outcome_names=experiment.subject.outcome_names,
                outcome_XEO=own_XEO,
            )
        )
    return trials


def _claimed_arms(latent: SteeredLatent, claimed: Sequence[Hypothesis]) -> list[Arm]:
    return [
        Arm(mode=h.mode, dose=h.dose, edit=latent.edit(h.mode, h.dose, site=h.site))
        for h in claimed
        if h.concept == latent.concept
    ]


def _diagnose(
    experiment: Experiment, trials: Sequence[ConceptTrials], around: Surroundings
) -> Steps[list[ConceptTrials]]:
    """The trials with what each of the concepts' own arms does step by step; dose 0 does nothing."""
    config = experiment.config
    place = [
        (c, number)
        for c, concept in enumerate(trials)
        for number, arm in enumerate(concept.arms)
        if arm.rival is None and arm.dose
    ]
    tasks = [
        DiagnoseArms(
            subject=experiment.subject,
            arms=tuple(trials[c].arms[number] for c, number in place[start : start + 16]),
            env_seeds=tuple(config.env_seeds[: config.diagnosed_episodes]),
            manifold=around.manifold,
        )
        for start in range(0, len(place), 16)
    ]
    answers = (yield tasks) if tasks else []
    diagnoses = dict(zip(place, (one for answer in answers for one in answer), strict=True))
    return [
        replace(
            concept,
            diagnoses={number: one for (of, number), one in diagnoses.items() if of == c},
        )
        for c, concept in enumerate(trials)
    ]


def _of_claims(
    trials: Sequence[ConceptTrials], claimed: Sequence[Hypothesis]
) -> dict[Hypothesis, Diagnosis]:
    by_concept = {concept.latent.concept: concept for concept in trials}
    return {h: by_concept[h.concept].diagnoses[find_arm(by_concept[h.concept], h)] for h in claimed}


def _play_untrained(
    experiment: Experiment, trials: Sequence[ConceptTrials], claimed: Sequence[Hypothesis]
) -> Steps[dict[Hypothesis, Float64[np.ndarray, "E O"]]]:
    """What the edit of every claimed arm does to the untrained policy."""
    if not claimed:
        return {}
    by_concept = {concept.latent.concept: concept for concept in trials}
    claimed_arms = [by_concept[h.concept].arms[find_arm(by_concept[h.concept], h)] for h in claimed]
    untrained = replace(experiment.subject, policy_id=experiment.untrained_id)
    outcome_XEO = yield from _play(untrained, claimed_arms, experiment.config.env_seeds)
    return {
        h: outcome_EO - outcome_XEO[0]
        for h, outcome_EO in zip(claimed, outcome_XEO[1:], strict=True)
    }
