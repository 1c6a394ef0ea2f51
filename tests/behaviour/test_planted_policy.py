"""A policy whose memory we wrote by hand: its units are found, the one that acts steers, and chance yields nothing.

The network reads two facts of its surroundings, each in a unit of its own, and in every other unit whether some kind of
object stands in one of eight random cells. Its gates are held open and its recurrent weights are zero, so
h_t = tanh(tanh(3 x_t)): no memory but what the observations carry. One unit moves the head, towards standing still or
towards walking; no weight of the head is on any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from interp.concepts.catalogue import Representation, ScoringConfig, score_concepts
from interp.concepts.tracks import Tracks
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.training import SaeConfig, fit
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.recording import episode_rows
from interp.records import Episode
from interp.rollout import Capture, Trial, roll
from interp.stats.episodes import episode_split
from interp.steering.arms import Arm, SteeredLatent, SteeringConfig, arms
from interp.steering.effects import ConceptTrials, effects_table
from interp.steering.trials import outcome_names, play_arms
from interp.worlds.labels import compute_labels
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.presets import forage

pytestmark = [pytest.mark.mettagrid, pytest.mark.slow]

SITE = "lstm.h"
HIDDEN = 16
NEAR, ORE = 0, 1
"""The planted units: a generator close by, which the head reads, and carried ore, which it does not."""
RANDOM_UNITS = slice(2, HIDDEN)
PLANTED = {"battery_proximity": NEAR, "carrying_ore": ORE}
LABELS = (*PLANTED, "open_area", "landmark", "exploration", "wall_proximity")
"""All of them vary between episodes, so that their tracks can be exchanged."""
HEAD_WEIGHT = 3.0
NOOP_BIAS = {+1: 1.4, -1: 2.5}
"""By the sign of the head's weight, so that exploration can rise as far as it can fall: the percentile among random
directions compares magnitudes, and the downhill half of them would win against an effect that meets a ceiling."""
SCORING = ScoringConfig(stride_steps=2)
STEERING = SteeringConfig(num_episodes=10)
SAE = SaeConfig(family=BatchTopK(k=4), d_sae=32, samples=300_000, batch_rows=1024, reports=1)


def short_forage() -> MettagridFactory:
    config = forage()
    config.game.max_steps = 64
    return MettagridFactory(name="short-forage", config_json=config.model_dump_json())


FACTORY = short_forage()


def embedding_rows(policy: TokenLstmPolicy, *tokens: tuple[int, int, int]) -> torch.Tensor:
    """Which rows of the embedding the tokens (location, feature, value) are looked up in."""
    index, _ = policy.encoder.index(np.array([tokens], np.uint8))
    return index[0].long()


def planted_policy(head_sign: int) -> TokenLstmPolicy:
    """See the head of this file; a positive sign makes the generator's unit vote for standing still."""
    torch.manual_seed(0)
    architecture = replace(architecture_for(FACTORY, hidden=HIDDEN), embedding=HIDDEN)
    policy = TokenLstmPolicy(architecture)
    features, tags = FACTORY.vocabulary.features, FACTORY.vocabulary.tags
    centre = (architecture.window_rows // 2) << 4 | architecture.window_cols // 2
    generators = [
        (centre + 16 * rows + cols, features["tag"], tags.index("type:generator"))
        for rows in range(-2, 3)
        for cols in range(-2, 3)
        if abs(rows) + abs(cols) <= 2
    ]
    with torch.no_grad():
        table = policy.encoder.embeddings.weight
        table.zero_()
        table[embedding_rows(policy, *generators), NEAR] = 1
        table[embedding_rows(policy, (centre, features["inv:ore"], 1)), ORE] = 2  # weight log2(2)/2
        generator = np.random.default_rng(0)
        for number in range(HIDDEN)[RANDOM_UNITS]:
            thing = tags.index(generator.choice(["type:agent", "type:altar", "type:mine"]))
            cells = generator.integers(0, architecture.window_rows, (8, 2))
            seen = [(row << 4 | col, features["tag"], thing) for row, col in cells.tolist()]
            table[embedding_rows(policy, *seen), number] = 1
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
        gate_o.fill_(30)
        weight["weight_ih_l0"].view(4, HIDDEN, HIDDEN)[2].fill_diagonal_(3)

        policy.actor.weight.zero_()
        policy.actor.bias.zero_()
        noop = policy.action_names.index("noop")
        policy.actor.weight[noop, NEAR] = HEAD_WEIGHT * head_sign
        policy.actor.bias[noop] = NOOP_BIAS[head_sign]
    policy.requires_grad_(False)
    policy.refresh()
    return policy


def record(policy: TokenLstmPolicy, trials: list[Trial]) -> tuple[list[Episode], pa.Table]:
    """The episodes and the rows of their recording, in the order of the trials."""
    capture = Capture(sites=(SITE,), facts=True)
    episodes = sorted(roll(policy, FACTORY(16), trials, capture), key=lambda e: e.index)
    tables = []
    for episode in episodes:
        assert episode.facts is not None
        tables.append(
            episode_rows(
                episode,
                compute_labels(episode.facts, LABELS),
                policy_id="p",
                step=0,
                world=FACTORY.name,
                episode_number=episode.index,
                site_widths={SITE: HIDDEN},
            )
        )
    return episodes, pa.concat_tables(tables)


def represent(table: pa.Table) -> Representation:
    """Tracks of both splits and a dictionary trained on the training episodes."""
    dense = Tracks.of(table, site=SITE, labels=LABELS)
    sparse = Tracks.of(table, site=SITE, labels=LABELS, stride_steps=SCORING.stride_steps)
    held_out_E = episode_split(dense.env_seed_E, held_out_fraction=0.5, salt="planted")
    train_ND, held_out_ND = (
        dense.activation_ESD[side_E].reshape(-1, HIDDEN) for side_E in (~held_out_E, held_out_E)
    )
    return Representation(
        train=sparse.select(~held_out_E),
        held_out=sparse.select(held_out_E),
        dictionary=trained(train_ND, held_out_ND),
    )


def trained(train_ND: np.ndarray, held_out_ND: np.ndarray) -> Dictionary:
    run = fit(SAE, train_ND, held_out_ND, site=SITE, seed=0)
    while True:
        try:
            next(run)
        except StopIteration as stop:
            return stop.value


@dataclass(frozen=True)
class Found:
    policy: TokenLstmPolicy
    representation: Representation
    random_init: Representation
    table: pa.Table


def scores(policy: Representation, random_init: Representation, seed: int = 0) -> pa.Table:
    identity = {"policy_id": "p", "policy_name": "planted", "dict_id": "d", "site": SITE}
    return score_concepts(policy, random_init, SCORING, seed=seed, identity=identity)


@pytest.fixture(scope="module")
def found() -> Found:
    """The pipeline up to its table of concepts, on 48 episodes of the planted policy."""
    policy = planted_policy(+1)
    trials = [Trial(env_seed=seed) for seed in range(48)]
    episodes, table = record(policy, trials)
    torch.manual_seed(1)
    untrained = TokenLstmPolicy(policy.architecture).requires_grad_(False)
    _, untrained_table = record(
        untrained,
        [Trial(env_seed=e.env_seed, action_TA=e.action_TA) for e in episodes],
    )
    representation, random_init = represent(table), represent(untrained_table)
    return Found(policy, representation, random_init, scores(representation, random_init))


def representative(table: pa.Table, label: str) -> dict:
    (row,) = (r for r in table.to_pylist() if r["label"] == label and r["concept"])
    return row


def steered(found: Found, label: str) -> SteeredLatent:
    """The latent that stands for a label, as a run of steering takes it from the table and the dictionary."""
    row = representative(found.table, label)
    dictionary = found.representation.dictionary
    assert isinstance(dictionary, Dictionary)
    direction = dictionary.direction(row["latent"])
    return SteeredLatent(
        concept=row["concept"],
        label=label,
        latent=row["latent"],
        site=SITE,
        scale=row["scale"],
        write_D=direction.write_D.numpy(),
        read_D=direction.read_D.numpy(),
        read_bias=direction.read_bias,
        threshold=direction.threshold,
    )


def unit(number: int, *, site: str = SITE) -> SteeredLatent:
    """A unit itself, as if it were a latent."""
    axis_D = np.eye(HIDDEN, dtype=np.float32)[number]
    return SteeredLatent(
        concept=f"unit:{number}",
        label="none",
        latent=number,
        site=site,
        scale=1.0,
        write_D=axis_D,
        read_D=axis_D,
        read_bias=0.0,
        threshold=0.0,
    )


def effects(policy: TokenLstmPolicy, tried: Sequence[Arm], latent: SteeredLatent, *labels: str):
    """The rows of the table of effects of one latent."""
    outcome = play_arms(policy, FACTORY(16), tried, STEERING.env_seeds, labels=labels)
    trials = ConceptTrials(
        latent=latent, arms=tuple(tried), outcome_names=outcome_names(labels), outcome_XEO=outcome
    )
    return effects_table([trials], policy_id="p", policy_name="planted", seed=0).to_pylist()


def test_the_planted_units_are_as_planted(found) -> None:
    """Only so do the other tests mean anything: each unit is high exactly where its label holds."""
    tracks = found.representation.held_out
    for label, number in PLANTED.items():
        label_ES, unit_ES = tracks.label(label), tracks.activation_ESD[..., number]
        assert 0.02 < label_ES.mean() < 0.98
        assert (unit_ES[label_ES] > 0.7).all()
        assert (unit_ES[~label_ES] == 0).all()
    assert (tracks.activation_ESD[..., RANDOM_UNITS].std((0, 1)) > 0.05).all()


@pytest.mark.parametrize("label", PLANTED)
def test_the_planted_concept_is_found(found, label) -> None:
    row = representative(found.table, label)
    assert row["auroc"] > 0.95
    assert row["auroc_lo"] > 0.9
    assert row["q_value"] < 0.05
    assert row["auroc"] > row["random_init_auroc"] + 0.05
    assert row["family_p_value"] < 0.05
    assert row["selectivity"] > 0.35
    assert row["average_precision"] > row["base_rate"] + 0.3
    assert row["phi"] > 0.7
    assert row["event_coverage"] > 0.9
    assert row["generality"] == "general"
    write_D = found.representation.dictionary.direction(row["latent"]).write_D.numpy()
    assert write_D[PLANTED[label]] / np.linalg.norm(write_D) > 0.9


@pytest.mark.parametrize("head_sign", [+1, -1])
def test_steering_moves_the_outcome_as_the_head_says(found, head_sign) -> None:
    """The more of the generator's unit, the less (sign +1) or the more (sign -1) the agents walk into new cells."""
    latent = steered(found, "battery_proximity")
    tried = arms(latent, replace(STEERING, clamp_doses=(), ablate_doses=()), seed=0)
    rows = effects(planted_policy(head_sign), tried, latent, "exploration")
    added = sorted(
        (r for r in rows if r["mode"] == "add" and r["outcome"] == "exploration"),
        key=lambda r: r["dose"],
    )
    difference = np.array([r["difference"] for r in added])
    assert [r["dose"] for r in added] == [-2, -1, 0, 1, 2]
    assert (np.diff(difference) * -head_sign > 0).all()
    for row in added:
        if row["dose"] == 0:
            assert (row["difference"], row["lo"], row["hi"], row["p_value"]) == (0, 0, 0, 1)
        else:
            assert row["q_value"] < 0.05
            assert row["lo"] * row["hi"] > 0  # the interval is on one side of zero
            assert row["random_direction_percentile"] >= 90


@pytest.mark.parametrize("site", ["lstm.h", "lstm.y", "lstm.c"])
def test_a_unit_that_no_head_reads_has_exactly_no_effect(found, site) -> None:
    """It is a concept, and was found; but nothing in the policy depends on it."""
    latent = unit(ORE, site=site)
    tried = [arm for arm in arms(latent, STEERING, seed=0) if arm.rival is None]
    rows = effects(found.policy, tried, latent, "exploration", "carrying_ore")
    assert {(row["mode"], row["dose"]) for row in rows} >= {("add", 2), ("clamp", 1), ("ablate", 1)}
    for row in rows:
        assert (row["difference"], row["lo"], row["hi"]) == (0, 0, 0), row
        assert row["p_value"] == row["q_value"] == 1


def test_labels_of_other_episodes_yield_no_discovery(found) -> None:
    """Whole label tracks go to other episodes, in both splits: all marginals stay, the truth does not."""
    smallest_q = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        policy = found.representation
        shuffled = replace(
            policy,
            **{
                side: replace(tracks, label_ESL=generator.permutation(tracks.label_ESL))
                for side, tracks in (("train", policy.train), ("held_out", policy.held_out))
            },
        )
        table = scores(shuffled, found.random_init)
        q_value = table.column("q_value").to_numpy()
        assert np.isfinite(q_value).mean() > 0.8  # tested, and found wanting
        assert table.column("concept").null_count == table.num_rows
        smallest_q.append(np.nanmin(q_value))
    assert smallest_q[0] > 0.05
    # Benjamini-Hochberg promises a discovery in at most 5 % of such tables (2 of 60 had one); more than 3 of 20 would
    # have a chance of 1.6 %.
    assert (np.array(smallest_q) < 0.05).sum() <= 3
