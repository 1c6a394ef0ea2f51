"""When a concept is born, and that a checkpoint's scores find what was planted and nothing where it was shuffled."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.comparison.evolution import FollowedConcept, emergence_index, score_checkpoint
from interp.concepts.tracks import Tracks
from interp.dictionaries.dictionary import Dictionary
from interp.features.sources import neurons, probes

EPISODES, STEPS, AGENTS, D = 60, 12, 2, 4
FITTED_E = np.arange(EPISODES) < EPISODES // 2
LATENT = 2
CONCEPT = FollowedConcept(concept="combat:2", label="combat", latent=LATENT)


def each_unit_a_latent() -> Dictionary:
    return Dictionary(
        W_enc=torch.eye(D),
        b_enc=torch.zeros(D),
        W_dec=torch.eye(D),
        b_dec=torch.zeros(D),
        threshold=torch.tensor(0.0),
        mean=torch.zeros(D),
        scale=1.0,
        family="relu_l1",
        site="lstm.h",
    )


def tracks(*, written_in: int | None, seed: int = 0) -> Tracks:
    """Noise in all units, and in one of them the label "combat", which lasts for half an episode."""
    generator = np.random.default_rng(seed)
    samples = STEPS * AGENTS
    x_ESD = generator.standard_normal((EPISODES, samples, D)).astype(np.float32)
    first_half_S = np.arange(samples) < samples // 2
    label_ES = first_half_S == (generator.random((EPISODES, 1)) < 0.5)
    if written_in is not None:
        x_ESD[..., written_in] += 4 * label_ES
    return Tracks(
        env_seed_E=np.arange(EPISODES),
        activation_ESD=x_ESD,
        label_ESL=np.stack([~label_ES, label_ES], -1),
        mask_ES=np.ones((EPISODES, samples), np.bool_),
        label_names=("other", "combat"),
        num_agents=AGENTS,
    )


def score(one: Tracks):
    (result,) = score_checkpoint(one, FITTED_E, each_unit_a_latent(), [CONCEPT], seed=0)
    return result


def test_a_planted_latent_is_read_by_the_dictionary_and_by_a_probe() -> None:
    found = score(tracks(written_in=LATENT))
    assert found.auroc > 0.95
    assert found.probe_auroc > 0.95
    assert found.auroc_lo > found.null_hi
    assert found.auroc_lo < found.auroc < found.auroc_hi
    assert found.n_episodes == EPISODES // 2
    assert found.firing_rate == pytest.approx(0.75, abs=0.03)


def test_any_features_are_followed_as_latents_are() -> None:
    """Units, and a probe fitted at the last checkpoint, at one where the concept is written in another unit."""
    last, earlier = tracks(written_in=LATENT), tracks(written_in=0, seed=1)
    x_ND, label_NL = last.activation_ESD[last.mask_ES], last.label_ESL[last.mask_ES]
    units = neurons("lstm.h", x_ND)
    (by_unit,) = score_checkpoint(last, FITTED_E, units, [CONCEPT], seed=0)
    by_latent = score(last)
    assert by_unit.auroc == pytest.approx(
        by_latent.auroc, abs=0.02
    )  # the latent is a rectified unit
    assert by_unit.probe_auroc == by_latent.probe_auroc
    (turned,) = score_checkpoint(last, FITTED_E, units, [CONCEPT], seed=0, sign=[-1])
    assert turned.auroc == pytest.approx(1 - by_unit.auroc)
    probe = probes("lstm.h", x_ND, label_NL, names=last.label_names)
    by_probe = FollowedConcept(concept="combat:probe", label="combat", latent=1)
    (there,) = score_checkpoint(last, FITTED_E, probe, [by_probe], seed=0)
    (before,) = score_checkpoint(earlier, FITTED_E, probe, [by_probe], seed=0)
    assert there.auroc > 0.95
    assert before.auroc == pytest.approx(0.5, abs=0.1)
    assert before.probe_auroc > 0.95


def test_samples_where_a_label_is_not_known_count_nowhere() -> None:
    planted = tracks(written_in=LATENT)
    known_ESL = np.broadcast_to(planted.mask_ES[..., None], planted.label_ESL.shape).copy()
    known_ESL[:, -AGENTS:] = False
    blind = replace(planted, known_ESL=known_ESL, label_ESL=planted.label_ESL & known_ESL)
    kept = slice(0, -AGENTS)
    cut = replace(
        planted,
        activation_ESD=planted.activation_ESD[:, kept],
        label_ESL=planted.label_ESL[:, kept],
        mask_ES=planted.mask_ES[:, kept],
    )
    assert score(blind).auroc == pytest.approx(score(cut).auroc, abs=1e-9)
    assert score(blind).probe_auroc == pytest.approx(score(cut).probe_auroc, abs=1e-6)


def test_a_concept_written_elsewhere_is_read_by_the_probe_only() -> None:
    found = score(tracks(written_in=0))
    assert found.probe_auroc > 0.95
    assert found.auroc < found.null_hi
    assert found.auroc == pytest.approx(0.5, abs=0.1)


def test_a_concept_that_is_nowhere_is_read_by_neither() -> None:
    found = score(tracks(written_in=None))
    assert found.auroc_lo < 0.5 < found.auroc_hi
    assert found.auroc < found.null_hi
    assert found.probe_auroc == pytest.approx(0.5, abs=0.1)


def test_labels_of_other_episodes_say_nothing() -> None:
    """The 95 % band is passed by about one shuffle in twenty; more than 5 of 40 would have a chance of 1.4 %."""
    planted = tracks(written_in=LATENT)
    passed = 0
    for seed in range(40):
        other_E = np.random.default_rng(seed).permutation(EPISODES)
        shuffled = Tracks(
            env_seed_E=planted.env_seed_E,
            activation_ESD=planted.activation_ESD,
            label_ESL=planted.label_ESL[other_E],
            mask_ES=planted.mask_ES,
            label_names=planted.label_names,
            num_agents=AGENTS,
        )
        found = score(shuffled)
        passed += found.auroc > found.null_hi
    assert passed <= 5


def test_probes_are_fitted_and_scored_on_different_episodes() -> None:
    """The label of every fitted episode is turned around: an honest probe is then exactly as wrong as it was right."""
    planted = tracks(written_in=0)
    label_ESL = planted.label_ESL.copy()
    label_ESL[FITTED_E] = ~label_ESL[FITTED_E]
    turned = Tracks(
        env_seed_E=planted.env_seed_E,
        activation_ESD=planted.activation_ESD,
        label_ESL=label_ESL,
        mask_ES=planted.mask_ES,
        label_names=planted.label_names,
        num_agents=AGENTS,
    )
    assert score(turned).probe_auroc == pytest.approx(1 - score(planted).probe_auroc, abs=1e-9)


@pytest.mark.parametrize(
    ("auroc_C", "expected"),
    [
        pytest.param([0.5, 0.5, 0.8, 0.9], 2, id="rises once"),
        pytest.param([0.9, 0.9, 0.9], 0, id="there from the start"),
        pytest.param([0.5, 0.5, 0.55], None, id="never above the band"),
        pytest.param([0.5, 0.9, 0.5, 0.9, 0.9], 3, id="a single peak does not count"),
        pytest.param([0.5, 0.5, 0.9], 2, id="born at the last checkpoint"),
        pytest.param([0.5, 0.65, 0.65, 0.9, 0.9], 3, id="above the band, below half its excess"),
        pytest.param([0.5, 0.75, 0.75, 1.0, 1.0], 1, id="half its excess is enough"),
        pytest.param([0.5, 0.9, 0.9, 0.5], 1, id="born and lost again"),
        pytest.param([0.5], None, id="one checkpoint"),
    ],
)
def test_emergence_is_the_first_checkpoint_that_lasts(auroc_C, expected) -> None:
    null_hi_C = np.full(len(auroc_C), 0.6)
    assert emergence_index(np.array(auroc_C), null_hi_C) == expected


def test_each_checkpoint_has_its_own_band() -> None:
    assert emergence_index(np.array([0.7, 0.7, 0.7]), np.array([0.75, 0.6, 0.6])) == 1


def test_persistence_can_be_longer() -> None:
    auroc_C, null_hi_C = np.array([0.9, 0.9, 0.5, 0.9, 0.9, 0.9]), np.full(6, 0.6)
    assert emergence_index(auroc_C, null_hi_C, persistence=2) == 0
    assert emergence_index(auroc_C, null_hi_C, persistence=3) == 3
