"""A policy whose use of its concepts we wrote by hand, and all that an experiment of steering wants beside it.

The network sees a generator close by, a mine, itself, carried ore, and odds and ends. Its gates are open and
its recurrent weights zero, so h is nearly `MIXING @ x`: each concept lies along a direction of its own, none of which
is an axis and two of which overlap. Ore alone has a unit to itself, which never forgets. A shadow, where a test wants
one, is there whenever a generator is, along a direction that is not the generator's. The dictionary is the inverse of
that matrix; the head is written by each test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cluster import dictionaries, policies, recordings
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.scoring import read_tracks
from cluster.staging import Split
from cluster.steering import Experiment, Findings, conduct
from cluster.store import Store
from cluster.studio import Studio
from interp.dictionaries.dictionary import Dictionary
from interp.features.sources import latents
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.steering.arms import SteeredLatent, SteeringConfig
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.presets import forage

SITE = "lstm.h"
HIDDEN = 32
GENERATOR, MINE, ITSELF, NEARBY, SHADOW, ORE = 0, 1, 2, 3, HIDDEN - 2, HIDDEN - 1
LABELS = {
    GENERATOR: "battery_proximity",
    MINE: "landmark",
    ITSELF: "landmark",  # of no meaning: it always holds
    ORE: "carrying_ore",
    SHADOW: "battery_proximity",
}
GAIN = 0.4
"""Small, so that the two hyperbolic tangents between x and h are nearly straight lines."""
CONFIG = SteeringConfig(
    add_doses=(-1.0, 0.0, 1.0),
    clamp_doses=(),
    selection_episodes=8,
    num_episodes=12,
    num_random_latents=4,
)


def short_forage() -> MettagridFactory:
    config = forage()
    config.game.max_steps = 40
    return MettagridFactory(name="short-forage", config_json=config.model_dump_json())


FACTORY = short_forage()


def world_file(folder: Path) -> Path:
    """The world as a file, for command lines."""
    path = folder / f"{FACTORY.name}.json"
    path.write_text(FACTORY.config_json)
    return path


def mixing() -> np.ndarray:
    """[H, concepts] directions of unit norm; the generator's and the mine's have a cosine of one half."""
    basis = np.eye(HIDDEN)
    basis[:ORE, :ORE], _ = np.linalg.qr(np.random.default_rng(3).standard_normal((ORE, ORE)))
    basis[:, MINE] = 0.5 * basis[:, GENERATOR] + np.sqrt(0.75) * basis[:, MINE]
    return basis


MIXING = mixing()


@dataclass(frozen=True)
class Head:
    """What the head makes of concepts: logits per unit of each, by action, and what it prefers without any."""

    weights: Mapping[tuple[str, int], float]
    bias: Mapping[str, float]
    with_shadow: bool = False
    """Does a generator cast its shadow? Then the two are never apart, and whoever moves one leaves the manifold."""


STANDS_STILL = Head({("noop", GENERATOR): 4.0}, {"noop": 0.5})
"""Near a generator it stays, otherwise it mostly walks."""


def planted(head: Head) -> TokenLstmPolicy:
    torch.manual_seed(0)
    architecture = replace(architecture_for(FACTORY, hidden=HIDDEN), embedding=HIDDEN)
    policy = TokenLstmPolicy(architecture)
    features, tags = FACTORY.vocabulary.features, FACTORY.vocabulary.tags
    centre = (architecture.window_rows // 2) << 4 | architecture.window_cols // 2

    def rows(*tokens: tuple[int, int, int]) -> torch.Tensor:
        index, _ = policy.encoder.index(np.array([tokens], np.uint8))
        return index[0].long()

    def things(kind: str, radius: int) -> list[tuple[int, int, int]]:
        return [
            (centre + 16 * r + c, features["tag"], tags.index(f"type:{kind}"))
            for r in range(-radius, radius + 1)
            for c in range(-radius, radius + 1)
            if 0 < abs(r) + abs(c) <= radius
        ]

    with torch.no_grad():
        table = policy.encoder.embeddings.weight
        table.zero_()
        table[rows(*things("generator", 2)), GENERATOR] = 1
        table[rows(*things("mine", 2)), MINE] = 1
        table[rows((centre, features["inv:ore"], 1)), ORE] = 2  # weight log2(2)/2
        generator = np.random.default_rng(0)
        table[rows((centre, features["tag"], tags.index("type:agent"))), ITSELF] = 1
        table[rows(*things("generator", 3)), NEARBY] = 1
        if head.with_shadow:
            table[rows(*things("generator", 2)), SHADOW] = 1
        for number in range(NEARBY + 1, SHADOW if head.with_shadow else ORE):
            thing = tags.index(generator.choice(["type:agent", "type:altar", "type:mine"]))
            cells = generator.integers(0, architecture.window_rows, (8, 2))
            seen = [(row << 4 | col, features["tag"], thing) for row, col in cells.tolist()]
            table[rows(*seen), number] = 1
        policy.encoder.bias.zero_()
        policy.fc.weight.zero_()
        policy.fc.weight.fill_diagonal_(1)
        policy.fc.bias.zero_()
        for parameter in policy.lstm.parameters():
            parameter.zero_()
        weight = dict(policy.lstm.named_parameters())
        gate_i, gate_f, _, gate_o = weight["bias_ih_l0"].view(4, HIDDEN)
        gate_i.fill_(30)
        gate_f.fill_(-30)
        gate_f[ORE] = 30
        gate_o.fill_(30)
        mixed = torch.from_numpy(GAIN * MIXING).float()
        weight["weight_ih_l0"].view(4, HIDDEN, HIDDEN)[2].copy_(mixed)
        policy.actor.weight.zero_()
        policy.actor.bias.zero_()
        readers = torch.from_numpy(np.linalg.inv(GAIN * MIXING)).float()
        for (action, concept), size in head.weights.items():
            policy.actor.weight[policy.action_names.index(action)] += size * readers[concept]
        for action, size in head.bias.items():
            policy.actor.bias[policy.action_names.index(action)] = size
    policy.requires_grad_(False)
    policy.refresh()
    return policy


def dictionary() -> Dictionary:
    return Dictionary(
        W_enc=torch.from_numpy(np.linalg.inv(GAIN * MIXING).T.copy()).float(),
        b_enc=torch.zeros(HIDDEN),
        W_dec=torch.from_numpy(GAIN * MIXING.T.copy()).float(),
        b_dec=torch.zeros(HIDDEN),
        threshold=torch.tensor(0.2),
        mean=torch.zeros(HIDDEN),
        scale=1.0,
        family="planted",
        site=SITE,
        fvu=0.0,
        l0=4.0,
        dead_fraction=0.0,
    )


def kept(store: Store, policy: TokenLstmPolicy, name: str) -> str:
    bundle = PolicyBundle.of(policy.architecture, policy.state_dict())
    return policies.save(store, bundle, name=name, run="t-0", step=0, world=FACTORY.name).policy_id


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a store has before anything is steered."""

    policy_id: str
    untrained_id: str
    recording_id: str
    dict_id: str


def prepared(store: Store, head: Head) -> Prepared:
    """The policy, a fresh one, a recording and its dictionary."""
    studio = Studio(store)
    policy = planted(head)
    policy_id = kept(store, policy, "planted")
    torch.manual_seed(1)
    untrained = TokenLstmPolicy(policy.architecture).requires_grad_(False)
    labels = (*dict.fromkeys(LABELS.values()), "exploration")
    plan = plan_recording(
        store,
        policy_id,
        FACTORY,
        RecordingConfig(num_episodes=16, sites=(SITE,), labels=labels),
    )
    recordings.begin(store, plan)
    for shard in recordings.missing_shards(store, plan):
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY))
    recordings.commit(store, plan)
    return Prepared(
        policy_id=policy_id,
        untrained_id=kept(store, untrained, "untrained"),
        recording_id=plan.recording_id,
        dict_id=dictionaries.save(store, "d-" + "0" * 16, dictionary(), {}).dict_id,
    )


def experiment(
    store: Store,
    head: Head,
    concepts: tuple[int, ...],
    config: SteeringConfig = CONFIG,
) -> Experiment:
    """What is asked about some of its concepts."""
    made = prepared(store, head)
    tracks = read_tracks(store, made.recording_id, site=SITE, labels=(), stride_steps=1)
    known = latents(dictionary(), tracks.activation_ESD[tracks.mask_ES])
    return asked_about(
        made,
        tuple(known.steered(concept, label=LABELS[concept]) for concept in concepts),
        config,
    )


def asked_about(
    made: Prepared, features: tuple[SteeredLatent, ...], config: SteeringConfig = CONFIG
) -> Experiment:
    """An experiment on features of any kind."""
    return Experiment(
        policy_id=made.policy_id,
        policy_name="planted",
        untrained_id=made.untrained_id,
        factory=FACTORY,
        concepts_id="c-planted",
        recording_id=made.recording_id,
        dict_id=made.dict_id,
        split=Split(),
        latents=features,
        config=config,
        labels=("exploration",),
        seed=0,
    )


def findings(store: Store, asked: Experiment) -> Findings:
    studio = Studio(store)
    (found,) = conduct(store, [asked], lambda tasks: [studio.run(task) for task in tasks])
    return found


def verdicts(found: Findings) -> dict[str, str]:
    return {row["label"]: row["verdict"] for row in found.verdicts.to_pylist()}


def verdict_of(found: Findings, concept: str) -> str:
    """Where two concepts have one label."""
    (word,) = {row["verdict"] for row in found.verdicts.to_pylist() if row["concept"] == concept}
    return word


def row_of(found: Findings, label: str, claim: str) -> dict:
    (row,) = (
        row for row in found.verdicts.to_pylist() if (row["label"], row["claim"]) == (label, claim)
    )
    return row
