"""Planted truth: a split label, an absorbed one, latents of their own and mixed ones; and labels that are not there.

Every unit is a direction of the truth. Labels come in stretches, as in an episode.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from interp.concepts.appraisal import (
    APPRAISAL_SCHEMA,
    LATENTS,
    NEURONS,
    RANDOM,
    SHUFFLED,
    Appraisal,
    AppraisalConfig,
    appraisal_table,
)
from interp.concepts.tracks import Tracks
from interp.dictionaries.dictionary import Dictionary

E, S, D = 24, 48, 8
CONFIG = AppraisalConfig(k=(1, 2, 5), max_pairs=400, num_permutations=199, num_resamples=200)
NAMES = ("parent", "other", "absent")


@cache
def truth() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [E, S, 3], which child of the parent is there (0 none, 1 to 3) and its amounts [E, S, D]."""
    generator = np.random.default_rng(5)
    stretches = generator.random((E, S // 4, 3)).repeat(4, axis=1)
    label_ESL = stretches < (0.5, 0.4, 0.3)
    child_ES = generator.choice(4, (E, S // 4), p=(0.91, 0.03, 0.03, 0.03)).repeat(4, axis=1)
    child_ES = child_ES * label_ESL[..., 0]
    amount_ESD = 1 + 0.2 * generator.random((E, S, D))
    return label_ESL, child_ES, amount_ESD


def tracks(on_ESD: np.ndarray) -> Tracks:
    label_ESL, _, amount_ESD = truth()
    noise_ESD = 0.02 * np.random.default_rng(6).standard_normal(on_ESD.shape)
    return Tracks(
        env_seed_E=np.arange(E),
        activation_ESD=(on_ESD * amount_ESD + noise_ESD).astype(np.float32),
        label_ESL=label_ESL,
        mask_ES=np.ones((E, S), np.bool_),
        label_names=NAMES,
        num_agents=1,
    )


def simple() -> np.ndarray:
    """Units 0 and 1 are the labels, units 2 to 4 the children of the first."""
    label_ESL, child_ES, _ = truth()
    on_ESD = np.zeros((E, S, D))
    on_ESD[..., :2] = label_ESL[..., :2]
    for child in (1, 2, 3):
        on_ESD[..., 1 + child] = child_ES == child
    return on_ESD


def dictionary(read_FD: np.ndarray, write_FD: np.ndarray, bias: float = -0.3) -> Dictionary:
    return Dictionary(
        W_enc=torch.tensor(read_FD.T, dtype=torch.float32).contiguous(),
        b_enc=torch.full((len(read_FD),), bias),
        W_dec=torch.tensor(write_FD, dtype=torch.float32),
        b_dec=torch.zeros(D),
        threshold=torch.tensor(0.0),
        mean=torch.zeros(D),
        scale=1.0,
        family="relu_l1",
        site="lstm.h",
    )


def own_latents() -> Dictionary:
    return dictionary(np.eye(D), np.eye(D))


def absorbing() -> Dictionary:
    """As `own_latents`, but a child switches the parent's latent off and writes it itself."""
    read_FD, write_FD = np.eye(D), np.eye(D)
    read_FD[0, 2:5] = -4
    write_FD[2:5, 0] = 1
    return dictionary(read_FD, write_FD)


def mixed() -> Dictionary:
    """As `own_latents`, but the two labels share two latents, their sum and their difference, and its negative."""
    half = np.sqrt(0.5)
    rotated_FD = np.eye(D)
    rotated_FD[:2, :2] = [[half, half], [half, -half]]
    both_FD = np.concatenate([rotated_FD, -rotated_FD[1:2]])
    return dictionary(both_FD, both_FD, bias=-0.05)


@cache
def found(make, on=simple, seed: int = 0) -> dict:
    whole = tracks(on())
    held_out_E = np.arange(E) % 2 == 0
    appraisal = Appraisal(
        whole.select(~held_out_E), whole.select(held_out_E), make(), CONFIG, seed=seed
    )
    parts = list(appraisal.run())
    assert len(parts) == appraisal.num_parts
    identity = {"policy_name": "p", "dict_id": "d-0", "site": "lstm.h"}
    table = appraisal_table(parts, identity=identity)
    assert table.schema == APPRAISAL_SCHEMA
    return {(row["figure"], row["label"], row["reads"], row["k"]): row for row in table.to_pylist()}


def value(
    figures: dict, figure: str, label: str | None, reads: str = LATENTS, k: int | None = None
):
    return figures[figure, label, reads, k]["value"]


def test_a_label_with_a_latent_is_read_from_one_and_one_without_from_none():
    figures = found(own_latents)
    assert value(figures, "AUROC", "parent", k=1) > 0.99
    assert value(figures, "F1", "other", k=1) > 0.99
    row = figures["AUROC", "absent", LATENTS, 5]
    assert row["lo"] < 0.5 < row["hi"]
    assert row["q_value"] > 0.05
    assert figures["AUROC", "parent", LATENTS, 1]["q_value"] < 0.05
    assert figures["AUROC", "parent", LATENTS, 1]["latents"] == [0]


def test_labels_of_other_episodes_are_read_from_nothing():
    for label in NAMES:
        for k in CONFIG.k:
            row = found(own_latents)["AUROC", label, SHUFFLED, k]
            assert row["p_value"] > 0.01
            assert abs(row["value"] - 0.5) < 0.15


def test_random_directions_take_more_latents_than_those_of_the_truth():
    figures = found(own_latents)
    for label in ("parent", "other"):
        assert value(figures, "AUROC", label, RANDOM, 1) < value(figures, "AUROC", label, k=1)
    assert value(figures, "FVU", None, RANDOM) > 5 * value(figures, "FVU", None)


def split_over_two() -> np.ndarray:
    """Units 0 and 6 take turns for the parent."""
    on_ESD = simple()
    turn_ES = (np.arange(S) // 4 % 2 == 0)[None]
    on_ESD[..., 6] = on_ESD[..., 0] * turn_ES
    on_ESD[..., 0] *= ~turn_ES
    return on_ESD


def test_a_label_over_two_latents_is_called_split_and_others_are_not():
    split, whole = found(own_latents, split_over_two), found(own_latents)
    assert value(split, "splitting", "parent") == 2
    assert sorted(split["splitting", "parent", LATENTS, None]["latents"]) == [0, 6]
    assert split["splitting gain", "parent", LATENTS, None]["lo"] > 0.1
    assert value(split, "splitting", "other") == 1
    assert value(whole, "splitting", "parent") == 1
    assert value(whole, "splitting gain", "parent") == 0
    assert value(whole, "splitting", "absent") == 0


def test_an_absorbed_label_is_told_from_one_with_children_of_their_own():
    _, child_ES, _ = truth()
    held_out = child_ES[::2][truth()[0][::2, :, 0]]
    absorbed, whole = found(absorbing), found(own_latents)
    assert value(absorbed, "absorption", "parent") == pytest.approx((held_out > 0).mean(), abs=0.02)
    assert sorted(absorbed["absorption", "parent", LATENTS, None]["latents"]) == [2, 3, 4]
    assert value(absorbed, "partly absorbed", "parent") == pytest.approx(
        (held_out > 0).mean(), abs=0.02
    )
    for label in ("parent", "other"):
        assert value(whole, "absorption", label) == 0
        assert value(whole, "partly absorbed", label) == 0
    assert value(absorbed, "absorption", "other") == 0
    assert np.isnan(value(whole, "absorption", "absent"))  # no latent stands for it
    # what a reader of the latent alone would see: a detector with holes
    assert value(absorbed, "F1", "parent", k=1) < value(whole, "F1", "parent", k=1)


def test_latents_of_their_own_change_a_label_alone_and_mixed_ones_change_both():
    own, both = found(own_latents), found(mixed)
    for label in ("parent", "other"):
        assert value(own, "cause", label) > 0.95
        assert value(own, "isolation", label) > 0.95
        assert own["disentanglement", label, LATENTS, None]["lo"] > 0.9
        assert both["disentanglement", label, LATENTS, None]["hi"] < 0.85
        assert value(own, "disentanglement", label, NEURONS) > 0.95  # here, units are the truth
    assert np.isnan(value(own, "cause", "absent"))  # no probe tells it, so none judges


def test_the_same_seed_gives_the_same_figures_and_another_dictionary_of_random_directions():
    again = found.__wrapped__(own_latents)
    np.testing.assert_equal(again, found(own_latents))
    other = found(own_latents, seed=1)
    assert value(other, "FVU", None) == value(again, "FVU", None)
    assert value(other, "FVU", None, RANDOM) != value(again, "FVU", None, RANDOM)


def test_a_label_in_too_few_episodes_is_counted_and_not_tested():
    whole = tracks(simple())
    rare_ESL = whole.label_ESL.copy()
    rare_ESL[4:, :, 1] = False
    whole = replace(whole, label_ESL=rare_ESL)
    held_out_E = np.arange(E) % 2 == 0
    sides = whole.select(~held_out_E), whole.select(held_out_E)
    rows = [row for p in Appraisal(*sides, own_latents(), CONFIG, seed=0).run() for row in p.rows]
    (row,) = [row for row in rows if row.label == "other"]
    assert (row.figure, row.value) == ("not tested", 2)


def test_a_label_that_is_known_at_some_samples_is_judged_on_those():
    whole = tracks(simple())
    known_ESL = np.ones_like(whole.label_ESL)
    known_ESL[:, 32:, 0] = False
    whole = replace(whole, known_ESL=known_ESL, label_ESL=whole.label_ESL & known_ESL)
    held_out_E = np.arange(E) % 2 == 0
    sides = whole.select(~held_out_E), whole.select(held_out_E)
    rows = [row for p in Appraisal(*sides, own_latents(), CONFIG, seed=0).run() for row in p.rows]
    probed = {(r.figure, r.label, r.k): r for r in rows if r.reads == LATENTS}
    assert probed["AUROC", "parent", 1].n_samples == E // 2 * 32
    assert probed["AUROC", "parent", 1].value > 0.99
    assert probed["AUROC", "other", 1].n_samples == E // 2 * S


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": ()}, "k is"),
        ({"k": (1, 1)}, "each once"),
        ({"min_gain": 1.0}, "min_gain is"),
        ({"stride_steps": 0}, "stride_steps is 0"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        AppraisalConfig(**change)


def test_an_edit_is_not_judged_by_one_probe_alone_and_the_diagnostic_is_there():
    figures = found(own_latents)
    # all eight latents are among the ten that are taken away, so that both probes are blinded alike
    assert value(figures, "TPP (diagnostic)", "parent") == pytest.approx(0, abs=0.05)
    assert ("TPP (diagnostic)", "absent", LATENTS, None) not in figures


def test_what_cannot_be_appraised_is_refused():
    whole = tracks(simple())
    few = whole.select(np.arange(E) < 9)
    with pytest.raises(ValueError, match="9 episodes are too few"):
        Appraisal(whole, few, own_latents(), CONFIG, seed=0)
    transcoder = replace(
        own_latents(), target_site="lstm.c", out_mean=torch.zeros(D), out_scale=1.0
    )
    with pytest.raises(ValueError, match="writes where it does not read"):
        Appraisal(whole, whole, transcoder, CONFIG, seed=0)
    broken = replace(whole, activation_ESD=whole.activation_ESD.copy())
    broken.activation_ESD[3, 4, 5] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Appraisal(whole, broken, own_latents(), CONFIG, seed=0)
