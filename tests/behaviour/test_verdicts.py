"""Policies whose use of a concept we wrote by hand get the verdict that is true of them, from first try to last word.

The network sees a generator close by, a mine, itself, carried ore, and odds and ends. Its gates are open and
its recurrent weights zero, so h is nearly `MIXING @ x`: each concept lies along a direction of its own, none of which
is an axis and two of which overlap. Ore alone has a unit to itself, which never forgets. The dictionary is the inverse
of that matrix; the head is written by each test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from cluster import arms, dictionaries, policies, recordings
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
from interp.steering.arms import SteeringConfig
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.presets import forage

pytestmark = [pytest.mark.mettagrid, pytest.mark.slow]

SITE = "lstm.h"
HIDDEN = 32
GENERATOR, MINE, ITSELF, NEARBY, ORE = 0, 1, 2, 3, HIDDEN - 1
LABELS = {
    GENERATOR: "battery_proximity",
    MINE: "landmark",
    ITSELF: "landmark",  # of no meaning: it always holds
    ORE: "carrying_ore",
}
GAIN = 0.4
"""Small, so that the two hyperbolic tangents between x and h are nearly straight lines."""
CONFIG = SteeringConfig(
    add_doses=(-1.0, 0.0, 1.0),
    clamp_doses=(),
    selection_episodes=8,
    num_episodes=16,
    num_random_latents=8,
)
SPLIT = Split()


def short_forage() -> MettagridFactory:
    config = forage()
    config.game.max_steps = 48
    return MettagridFactory(name="short-forage", config_json=config.model_dump_json())


FACTORY = short_forage()


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
        for number in range(NEARBY + 1, ORE):
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


def experiment(
    store: Store, head: Head, concepts: tuple[int, ...], config: SteeringConfig = CONFIG
) -> Experiment:
    """All that comes before steering: policies, a recording, its dictionary, the concepts."""
    studio = Studio(store)
    policy_id = kept(store, planted(head), "planted")
    torch.manual_seed(1)
    untrained = TokenLstmPolicy(planted(head).architecture).requires_grad_(False)
    plan = plan_recording(
        store,
        policy_id,
        FACTORY,
        RecordingConfig(num_episodes=16, sites=(SITE,), labels=tuple(LABELS.values())),
    )
    recordings.begin(store, plan)
    for shard in recordings.missing_shards(store, plan):
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY))
    recordings.commit(store, plan)
    entry = dictionaries.save(store, "d-" + "0" * 16, dictionary(), {})
    tracks = read_tracks(store, plan.recording_id, site=SITE, labels=(), stride_steps=1)
    rows = tracks.activation_ESD[tracks.mask_ES]
    known = latents(dictionary(), rows)
    return Experiment(
        policy_id=policy_id,
        policy_name="planted",
        untrained_id=kept(store, untrained, "untrained"),
        factory=FACTORY,
        concepts_id="c-planted",
        recording_id=plan.recording_id,
        dict_id=entry.dict_id,
        split=SPLIT,
        latents=tuple(known.steered(concept, label=LABELS[concept]) for concept in concepts),
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


def row_of(found: Findings, label: str, claim: str) -> dict:
    (row,) = (
        row for row in found.verdicts.to_pylist() if (row["label"], row["claim"]) == (label, claim)
    )
    return row


STANDS_STILL = Head({("noop", GENERATOR): 4.0}, {"noop": 0.5})
"""Near a generator it stays, otherwise it mostly walks."""


def test_a_concept_that_the_head_reads_is_causal_and_one_that_is_only_remembered_is_not(
    store: Store,
) -> None:
    found = findings(store, experiment(store, STANDS_STILL, (GENERATOR, ORE)))
    assert verdicts(found) == {"battery_proximity": "causal", "carrying_ore": "no effect"}
    more = row_of(found, "battery_proximity", "sufficient")
    less = row_of(found, "battery_proximity", "necessary")
    assert (more["outcome"], more["sign"], less["sign"]) == ("exploration", -1, 1)
    assert more["random_direction_percentile"] == less["random_direction_percentile"] == 100
    assert more["monotonicity"] == -1
    assert more["kl_replay"] > 0.1
    assert more["entropy_difference_hi"] < 0 < less["entropy_difference_lo"]
    assert more["divergence_step"] < less["divergence_step"] < FACTORY.spec.max_steps
    assert abs(more["untrained_difference"]) < 0.1 * abs(more["difference"])
    for claim in ("sufficient", "necessary"):
        idle = row_of(found, "carrying_ore", claim)
        assert idle["difference"] == idle["lo"] == idle["hi"] == 0
        assert idle["divergence_step"] == FACTORY.spec.max_steps
        assert idle["kl_replay"] < 1e-9


def test_two_concepts_in_superposition_are_both_causal(store: Store) -> None:
    """Their directions have a cosine of one half; what the head reads of each is free of the other."""
    head = Head({("noop", GENERATOR): 4.0, ("move_west", MINE): 4.0}, {"noop": 0.5})
    asked = experiment(store, head, (GENERATOR, MINE))
    first, second = (latent.write_D for latent in asked.latents)
    assert first @ second / (np.linalg.norm(first) * np.linalg.norm(second)) > 0.45
    assert verdicts(findings(store, asked)) == {"battery_proximity": "causal", "landmark": "causal"}


def test_what_is_saturated_where_it_occurs_is_necessary_only(store: Store) -> None:
    """Near a generator it walks as surely as it can; more of that changes nothing, less does."""
    head = Head({("noop", GENERATOR): -8.0}, {"noop": 3.0})
    config = replace(CONFIG, add_doses=(), gated_add_doses=(0.0, 1.0))
    found = findings(store, experiment(store, head, (GENERATOR,), config))
    assert verdicts(found) == {"battery_proximity": "necessary only"}


def test_what_something_else_says_as_well_is_sufficient_only(store: Store) -> None:
    """Within two steps of a generator is within three: without the one concept the other still makes it stay."""
    head = Head({("noop", GENERATOR): 8.0, ("noop", NEARBY): 8.0}, {})
    found = findings(store, experiment(store, head, (GENERATOR,)))
    assert verdicts(found) == {"battery_proximity": "sufficient only"}


def test_taking_away_what_was_never_absent_is_off_the_manifold(store: Store) -> None:
    """It sees itself at every step, and so walks; an activation without that has never been."""
    head = Head({("noop", ITSELF): -6.0}, {"noop": 3.0})
    found = findings(store, experiment(store, head, (ITSELF,)))
    assert verdicts(found) == {"landmark": "off-manifold"}
    taken = row_of(found, "landmark", "necessary")
    assert taken["confirmed"]
    assert taken["off_manifold"] > 0.9


def test_how_the_arms_are_divided_changes_nothing(store: Store, tmp_path, monkeypatch) -> None:
    """Nor does a kill: what was played before it is found, what was not is played."""
    config = replace(CONFIG, add_doses=(0.0, 1.0), num_episodes=10)
    asked = experiment(store, STANDS_STILL, (GENERATOR,), config)
    whole = findings(store, asked)
    monkeypatch.setattr(arms, "ARMS_PER_TASK", 50)
    monkeypatch.setattr(arms, "TRIALS_PER_TASK", 90)
    again = Store.open(str(tmp_path / "again"))
    assert experiment(again, STANDS_STILL, (GENERATOR,), config).selection == asked.selection
    studio, done = Studio(again), 0

    def make(tasks):
        nonlocal done
        answers = []
        for task in reversed(tasks):
            done += 1
            if done in (4, 7):
                raise KeyboardInterrupt
            answers.append(studio.run(task))
        return answers[::-1]

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            conduct(again, [asked], make)
    conduct(again, [asked], make)
    for key in (
        f"selections/{whole.selection_id}.parquet",
        f"registrations/{whole.registration_id}.json",
        f"effects/{whole.effects_id}.parquet",
        f"verdicts/{whole.verdicts_id}.parquet",
    ):
        assert again.get(key) == store.get(key)
    (found,) = conduct(again, [asked], lambda tasks: pytest.fail("played again"))
    assert found.verdicts_id == whole.verdicts_id
