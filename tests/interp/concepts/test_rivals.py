"""A latent is ahead of what it beats, level with what does as well, and is compared on the same episodes only."""

import math
from dataclasses import replace

import numpy as np
import pytest

from interp.concepts.rivals import (
    BEATS_ALL,
    CONTROLS,
    Rival,
    best_of,
    compare,
    feature_sets,
    standings,
    steered_rivals,
    values,
    verdict,
)
from interp.concepts.scoring import auroc
from interp.concepts.tracks import Tracks
from interp.steering.arms import BASELINES

E, S, D = 30, 40, 8


def tracks(seed: int) -> Tracks:
    """A label along a direction that no unit has to itself, which loud noise in another hides from plain means."""
    generator = np.random.default_rng(seed)
    label_ESL = generator.random((E, S, 1)) < 0.3
    direction_D = np.array([1, -1, 1, -1, 0, 0, 0, 0]) / 2
    x_ESD = 0.4 * generator.standard_normal((E, S, D)) + 1.5 * label_ESL * direction_D
    x_ESD[..., 0] += 3 * generator.standard_normal((E, S))
    return Tracks(
        env_seed_E=np.arange(E),
        activation_ESD=x_ESD.astype(np.float32),
        label_ESL=label_ESL,
        mask_ES=np.ones((E, S), bool),
        label_names=("planted",),
        num_agents=1,
    )


@pytest.fixture(scope="module")
def rivals() -> tuple[dict[str, Rival], Tracks]:
    train, held_out = tracks(0), tracks(1)
    known = feature_sets(train, site="lstm.h", num_pca=2, sparse_units=2, num_random=8, seed=0)
    return {
        name: best_of(values(one, train), values(one, held_out), train, held_out)
        for name, one in known.items()
    }, held_out


def scored(feature_ES: np.ndarray, held_out: Tracks) -> tuple[np.ndarray, np.ndarray]:
    table = auroc(feature_ES[..., None].astype(np.float32), held_out.label_ESL, held_out.mask_ES)
    return table.auroc_FC[0], table.influence_EFC[:, 0]


def test_each_rival_does_as_well_as_it_can(rivals) -> None:
    found, _ = rivals
    at = {name: float(rival.auroc_L[0]) for name, rival in found.items()}
    assert at["probe"] > 0.97
    assert at["probe"] > at["sparse_probe"] > at["neuron"]
    assert at["probe"] > at["diff_in_means"] + 0.05
    assert max(at, key=lambda name: at[name]) == "probe"


def test_a_latent_that_reads_the_concept_beats_all_but_the_probe(rivals) -> None:
    found, held_out = rivals
    reads = held_out.activation_ESD[..., 1:4] @ np.array([-1, 1, -1], np.float32)
    auroc_L, influence_EL = scored(reads, held_out)
    (lead,) = compare(auroc_L, influence_EL, found, seed=0)
    assert lead is not None
    assert lead.rival == "probe"
    assert lead.lo <= lead.lead <= lead.hi
    assert abs(lead.lead) < 0.02
    assert {"neuron", "pca", "random_direction", "diff_in_means"} <= set(lead.beaten)
    assert "probe" not in lead.beaten


def test_a_latent_that_says_nothing_beats_nothing(rivals) -> None:
    found, held_out = rivals
    noise = np.random.default_rng(5).standard_normal((E, S))
    (lead,) = compare(*scored(noise, held_out), found, seed=0)
    assert lead is not None
    assert lead.hi < 0
    assert "neuron" not in lead.beaten
    assert {"neuron", "probe"} <= set(lead.better)


def test_the_verdict_is_in_words_what_was_computed() -> None:
    row = {f"{name}_auroc": 0.7 for name in CONTROLS} | {"beats": None, "better": None}
    everyone = ", ".join(CONTROLS)
    assert verdict({**row, "beats": everyone}) == BEATS_ALL
    assert set(standings(row).values()) == {"level"}
    mixed = {**row, "beats": "neuron, pca, random_direction, diff_in_means, random_init"}
    assert verdict({**mixed, "better": "probe"}) == "linear probe better; sparse probe level"
    unknown = {**row, "beats": everyone, "random_init_auroc": math.nan, "pca_auroc": None}
    assert verdict(unknown) == "no best principal direction and best untrained latent"


def test_a_rival_of_the_other_sign_is_turned_round() -> None:
    train, held_out = tracks(0), tracks(1)
    one = best_of(
        train.activation_ESD[..., [1]], held_out.activation_ESD[..., [1]], train, held_out
    )
    turned = best_of(
        -train.activation_ESD[..., [1]], -held_out.activation_ESD[..., [1]], train, held_out
    )
    np.testing.assert_allclose(one.auroc_L, turned.auroc_L)
    np.testing.assert_allclose(one.influence_EL, turned.influence_EL, atol=1e-6)
    assert one.auroc_L[0] > 0.8


def test_rivals_of_other_episodes_are_refused(rivals) -> None:
    found, held_out = rivals
    auroc_L, influence_EL = scored(held_out.activation_ESD[..., 1], held_out)
    with pytest.raises(ValueError, match=r"neuron was scored on 30 episodes and the latents on 29"):
        compare(auroc_L, influence_EL[:-1], found, seed=0)


def test_rivals_to_steer_against_are_turned_towards_the_label() -> None:
    """Units 1 and 3 fall where the label holds: more of the best unit is less of that unit."""
    train = tracks(0)
    found = steered_rivals(train, site="lstm.h", num_pca=4, sparse_units=2)["planted"]
    assert tuple(found) == BASELINES
    label_ES = train.label_ESL[..., 0]
    for kind, one in found.items():
        value_ES = train.activation_ESD @ one.read_D + one.read_bias
        assert value_ES[label_ES].mean() > value_ES[~label_ES].mean(), kind
        assert value_ES.mean() == pytest.approx(0, abs=1e-3)
        np.testing.assert_array_equal(one.write_D, one.read_D)
    assert found["neuron"].latent in (1, 2, 3)
    planted_D = np.array([1, -1, 1, -1, 0, 0, 0, 0]) / 2
    assert found["probe"].write_D @ planted_D > 0.8


def test_a_label_that_never_varies_has_nothing_to_steer_against() -> None:
    train = tracks(0)
    always = replace(train, label_ESL=np.ones_like(train.label_ESL))
    assert steered_rivals(always, site="lstm.h", num_pca=2, sparse_units=2) == {"planted": {}}
    assert (
        steered_rivals(
            replace(train, label_ESL=train.label_ESL[..., :0], label_names=()),
            site="lstm.h",
            num_pca=2,
            sparse_units=2,
        )
        == {}
    )
