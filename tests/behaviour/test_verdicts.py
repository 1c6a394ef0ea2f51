"""Policies whose use of a concept we wrote by hand get the verdict that is true of them, from first try to last word.

What they see, and where their concepts lie, is in tests/fakes/planted_policy.py; here are their heads.
"""

from dataclasses import replace

import numpy as np
import pytest

from cluster import arms
from cluster.arms import values_of
from cluster.scoring import read_tracks
from cluster.steering import conduct
from cluster.store import Store
from cluster.studio import Studio
from interp.features.sources import neurons
from tests.fakes.planted_policy import (
    CONFIG,
    FACTORY,
    GENERATOR,
    ITSELF,
    LABELS,
    MINE,
    NEARBY,
    ORE,
    SHADOW,
    SITE,
    STANDS_STILL,
    Head,
    asked_about,
    experiment,
    findings,
    prepared,
    row_of,
    verdict_of,
    verdicts,
)

pytestmark = [pytest.mark.mettagrid, pytest.mark.slow]
SMALL = replace(
    CONFIG, add_doses=(0.0, 1.0), selection_episodes=4, num_episodes=10, num_random_latents=2
)


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
    head = Head({("noop", GENERATOR): 4.0, ("noop", MINE): 4.0}, {})
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


@pytest.mark.parametrize(("read", "shown"), [(GENERATOR, SHADOW), (SHADOW, GENERATOR)])
def test_what_only_goes_with_a_used_concept_has_no_effect(
    store: Store, read: int, shown: int
) -> None:
    """Generator and shadow are there at the same steps, and a score cannot tell them apart; steering can, whichever of
    them the head reads. As neither was ever there without the other, what it shows is off the manifold."""
    head = Head({("noop", read): 4.0}, {"noop": 0.5}, with_shadow=True)
    asked = experiment(store, head, (read, shown), SMALL)
    tracks = read_tracks(
        store, asked.recording_id, site=SITE, labels=("battery_proximity",), stride_steps=1
    )
    seen_N = tracks.label("battery_proximity")[tracks.mask_ES]
    for latent in asked.latents:
        value_N = values_of(latent, tracks.activation_ESD[tracks.mask_ES])
        np.testing.assert_array_equal(value_N > 0, seen_N)
    found = findings(store, asked)
    used, idle = (latent.concept for latent in asked.latents)
    assert (verdict_of(found, used), verdict_of(found, idle)) == ("off-manifold", "no effect")


def test_a_unit_of_its_own_that_the_head_reads_is_causal_and_no_latent_beats_it(
    store: Store,
) -> None:
    """Ore lies along an axis: the unit, as a feature, and the latent are the same edit."""
    head = Head({("noop", ORE): 3.0}, {"noop": -0.5})
    made = prepared(store, head)
    tracks = read_tracks(store, made.recording_id, site=SITE, labels=(), stride_steps=1)
    unit = neurons(SITE, tracks.activation_ESD[tracks.mask_ES]).steered(ORE, label=LABELS[ORE])
    found = findings(store, asked_about(made, (unit,), SMALL))
    assert verdicts(found) == {"carrying_ore": "causal"}
    assert {row["features"] for row in found.verdicts.to_pylist()} == {"neuron"}
    for row in found.verdicts.to_pylist():
        assert "neuron" not in row["beats"].split(", ")


def test_how_the_arms_are_divided_changes_nothing(store: Store, tmp_path, monkeypatch) -> None:
    """Nor does a kill: what was played before it is found, what was not is played."""
    config = replace(CONFIG, add_doses=(0.0, 1.0), ablate_doses=(), num_episodes=10)
    asked = experiment(store, STANDS_STILL, (GENERATOR,), config)
    whole = findings(store, asked)
    monkeypatch.setattr(arms, "ARMS_PER_TASK", 20)
    monkeypatch.setattr(arms, "TRIALS_PER_TASK", 60)
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
