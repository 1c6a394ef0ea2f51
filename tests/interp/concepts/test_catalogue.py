"""The table of concepts on made-up tracks: what it has of a memorised latent, and of a dictionary that is silent."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from interp.concepts.blocks import known_auroc
from interp.concepts.catalogue import (
    CONCEPT_SCHEMA,
    STATE_COLUMNS,
    STATE_OF,
    Representation,
    ScoringConfig,
    score_concepts,
)
from interp.concepts.scoring import episode_permutation_p
from interp.concepts.tracks import Tracks
from interp.dictionaries.dictionary import Dictionary
from interp.features.sources import neurons

EPISODES, STEPS, AGENTS, D = 30, 20, 2, 3
LABELS = ("battery_proximity", "carrying_ore")
CONFIG = ScoringConfig(num_permutations=199, num_resamples=99, num_pca=2, min_active_episodes=2)


def tracks(seed: int) -> Tracks:
    """Unit 0 is the first label; unit 1 fires in the first two episodes; unit 2 is noise, and so is the other label."""
    generator = np.random.default_rng(seed)
    shape = (EPISODES, STEPS * AGENTS)
    label_ESL = generator.random((*shape, 2)) < 0.3
    x_ESD = generator.random((*shape, D)).astype(np.float32)
    x_ESD[..., 0] *= label_ESL[..., 0]
    x_ESD[..., 1] *= generator.random(shape) < 0.4
    x_ESD[2:, :, 1] = 0
    x_ESD[..., 2] *= generator.random(shape) < 0.4
    return Tracks(
        env_seed_E=np.arange(EPISODES),
        activation_ESD=x_ESD,
        label_ESL=label_ESL,
        mask_ES=np.ones(shape, np.bool_),
        label_names=LABELS,
        num_agents=AGENTS,
    )


def units(threshold: float) -> Dictionary:
    """Every unit is a latent."""
    return Dictionary(
        W_enc=torch.eye(D),
        b_enc=torch.zeros(D),
        W_dec=torch.eye(D),
        b_dec=torch.zeros(D),
        threshold=torch.tensor(threshold),
        mean=torch.zeros(D),
        scale=1.0,
        family="relu_l1",
        site="lstm.h",
    )


def table(threshold: float) -> pa.Table:
    policy = Representation(train=tracks(0), held_out=tracks(1), dictionary=units(threshold))
    identity = {"policy_id": "p", "policy_name": "n", "dict_id": "d", "site": "lstm.h"}
    return score_concepts(policy, replace(policy), CONFIG, seed=0, identity=identity)


def test_every_score_is_in_the_row_of_its_latent_and_label() -> None:
    scored = table(0.0)
    assert scored.schema == CONCEPT_SCHEMA
    rows = {(row["latent"], row["label"]): row for row in scored.to_pylist()}
    assert len(rows) == 6
    known = rows[0, "battery_proximity"]
    assert known["concept"] == "battery_proximity:0"
    assert known["average_precision"] == known["auroc"] == known["event_coverage"] == 1
    assert known["phi"] == known["f1"] == 1
    assert known["family_p_value"] == known["p_value"] == 1 / 200
    assert known["selectivity"] == pytest.approx(0.5, abs=0.05)
    rate = known["base_rate"]
    entropy = -rate * np.log2(rate) - (1 - rate) * np.log2(1 - rate)
    assert known["mutual_information_bits"] == pytest.approx(entropy, abs=0.01)
    assert known["strength"] == known["auroc"] and known["evidence"] == 1 - known["q_value"] > 0.9
    noise = rows[2, "carrying_ore"]
    assert noise["strength"] == noise["auroc"] and noise["evidence"] == 1 - noise["q_value"] < 0.9
    assert noise["concept"] is None
    assert noise["average_precision"] == pytest.approx(noise["base_rate"], abs=0.05)
    assert abs(noise["phi"]) < 0.1 and abs(noise["selectivity"]) < 0.03
    assert [rows[latent, "carrying_ore"]["generality"] for latent in range(3)] == [
        "general",
        "memorised",
        "general",
    ]
    assert rows[1, "carrying_ore"]["effective_episodes"] == pytest.approx(2, abs=0.2)


def test_the_state_that_latents_tell_together_stands_beside_units_and_the_untrained() -> None:
    """One of the two labels is told by a latent, the other by none; a silent dictionary tells nothing."""
    policy = Representation(train=tracks(0), held_out=tracks(1), dictionary=units(0.0))
    untrained = replace(policy, dictionary=units(2.0))
    identity = {"policy_id": "p", "policy_name": "n", "dict_id": "d", "site": "lstm.h"}
    scored = score_concepts(policy, untrained, CONFIG, seed=0, identity=identity).to_pylist()
    told, missed = (
        next(row for row in scored if row["label"] == label)
        for label in ("battery_proximity", "carrying_ore")
    )
    assert told["rule_latents"] == [0] and missed["rule_latents"] == []
    assert told["rule_f1"] == told["rule_precision"] == told["rule_recall"] == 1
    assert missed["rule_f1"] == 0 and math.isnan(missed["rule_precision"])
    near, ore = (tracks(1).label(label).sum() for label in ("battery_proximity", "carrying_ore"))
    assert told["state_f1"] == pytest.approx(2 * near / (2 * near + ore))
    assert told["state_lo"] < told["state_f1"] < told["state_hi"]
    assert told["board_lo"] < told["board_f1"] < told["board_hi"]
    best = [
        max(row["f1"] for row in scored if row["label"] == label)
        for label in ("battery_proximity", "carrying_ore")
    ]
    assert told["board_coverage"] == pytest.approx(np.mean(best), abs=0.1)
    assert 0 < told["neuron_state_f1"] < told["state_f1"]  # a unit is measured from its mean
    assert told["random_init_state_f1"] == told["random_init_board_coverage"] == 0
    for name in (who + column for who in STATE_OF for column in STATE_COLUMNS):
        assert len({row[name] for row in scored}) == 1, (
            "of the whole state, so the same in all rows"
        )


def test_units_are_scored_by_the_same_code() -> None:
    train, held_out = tracks(0), tracks(1)
    features = neurons("lstm.h", train.activation_ESD[train.mask_ES])
    policy = Representation(train=train, held_out=held_out, dictionary=features)
    identity = {"policy_id": "p", "policy_name": "n", "dict_id": "d", "site": "lstm.h"}
    scored = score_concepts(policy, replace(policy), CONFIG, seed=0, identity=identity)
    found = scored.column("auroc").to_numpy().reshape(2, -1).T
    expected = known_auroc(held_out.activation_ESD, held_out.targets)
    np.testing.assert_allclose(found, expected, atol=1e-3)  # centring may round two values into one


def test_p_is_that_of_single_tests() -> None:
    held_out = tracks(1)
    p_FC, null_C = episode_permutation_p(
        held_out.activation_ESD, held_out.label_ESL, held_out.mask_ES, seed=0,
        num_permutations=199, min_positive_episodes=2,
    )  # fmt: skip
    scored = table(0.0)
    found = scored.column("p_value").to_numpy().reshape(2, 3).T
    np.testing.assert_array_equal(found, p_FC)
    assert set(scored.column("null").to_pylist()) == set(null_C)


def test_a_dictionary_without_a_live_latent_has_an_empty_table() -> None:
    silent = table(2.0)
    assert silent.num_rows == 0
    assert silent.schema == CONCEPT_SCHEMA


def _rounded(value: object) -> object:
    return pytest.approx(value, rel=1e-12, nan_ok=True) if isinstance(value, float) else value


def test_a_label_that_is_not_known_near_the_end_is_scored_where_it_is_and_changes_no_other() -> (
    None
):
    """Unit 0 is then false exactly where the label is not known, so that only a fair score is perfect."""

    def cut(whole: Tracks, *, is_cut: bool) -> Tracks:
        known_ESL = np.ones_like(whole.label_ESL)
        known_ESL[:, -10:, 0] = False
        x_ESD = whole.activation_ESD.copy()
        x_ESD[:, -10:, 0] = 1
        return replace(
            whole,
            label_ESL=whole.label_ESL & known_ESL,
            known_ESL=known_ESL if is_cut else None,
            activation_ESD=x_ESD,
            label_names=("battery_proximity@within5", "carrying_ore"),
        )

    def scored(*, is_cut: bool) -> dict:
        policy = Representation(
            train=cut(tracks(0), is_cut=is_cut),
            held_out=cut(tracks(1), is_cut=is_cut),
            dictionary=units(0.0),
        )
        identity = {"policy_id": "p", "policy_name": "n", "dict_id": "d", "site": "lstm.h"}
        found = score_concepts(policy, replace(policy), CONFIG, seed=0, identity=identity)
        return {(row["latent"], row["label"]): row for row in found.to_pylist()}

    rows, before = scored(is_cut=True), scored(is_cut=False)
    soon = rows[0, "battery_proximity@within5"]
    assert soon["concept"] == "battery_proximity@within5:0" and soon["kind"] == "object-based"
    for figure in ("auroc", "average_precision", "f1", "precision", "neuron_auroc", "phi"):
        assert soon[figure] == 1, figure
    assert before[0, "battery_proximity@within5"]["auroc"] < 0.9
    for latent in range(3):
        now, then = rows[latent, "carrying_ore"], before[latent, "carrying_ore"]
        # sums over other numbers of columns may round otherwise
        changed = {name for name in now if now[name] not in (then[name], _rounded(then[name]))}
        of_all_pairs = {"q_value", "evidence", "family_p_value"}
        of_all_labels = {who + name for who in STATE_OF for name in STATE_COLUMNS}
        assert changed <= of_all_pairs | of_all_labels
