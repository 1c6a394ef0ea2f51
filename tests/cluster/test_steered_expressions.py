"""A concept whose label is made of others is steered with all the evidence that one with a plain label has."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.arms import Survey
from cluster.clips import ShowEdits
from cluster.scoring import read_tracks
from cluster.steering import Experiment
from cluster.store import Store
from cluster.studio import Studio
from interp.concepts.windows import window_from_json
from interp.rollout import Capture, Trial, roll
from interp.steering.arms import Arm
from interp.steering.trials import outcome_names, outcome_of
from interp.worlds.expressions import made_of
from interp.worlds.labels import compute_labels
from tests.fakes.planted_policy import FACTORY, GENERATOR, SITE, STANDS_STILL, experiment

pytestmark = pytest.mark.mettagrid

HORIZON = 4
SOON, ONLY = f"battery_proximity@within{HORIZON}", "battery_proximity&!carrying_ore"
SEEDS = (20_001, 20_002, 20_006, 20_007)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("expressions") / "store")


@pytest.fixture(scope="module")
def asked(store: Store) -> Experiment:
    """The planted concept under two made labels, and a third whose name is about no label."""
    plain = experiment(store, STANDS_STILL, (GENERATOR,))
    (latent,) = plain.latents
    named = [
        replace(latent, concept=f"{label}:{GENERATOR}", label=label) for label in (SOON, ONLY, "0")
    ]
    return replace(plain, latents=tuple(named))


def test_what_is_made_of_the_worlds_labels_is_told_from_what_is_not() -> None:
    assert made_of(SOON, FACTORY.labels)
    assert made_of(ONLY, FACTORY.labels)
    assert made_of("odd name", ["odd name"])
    for other in ("0", "neuron 3", "battery_proximity&no_such_label", "battery_proximity@within0"):
        assert not made_of(other, FACTORY.labels), other


def test_its_rate_is_an_outcome_of_every_arm(asked: Experiment) -> None:
    assert asked.subject.labels == ("exploration", SOON, ONLY)
    assert outcome_names(asked.subject.labels) == ("return", "exploration", SOON, ONLY)


def test_its_rate_is_of_the_steps_where_it_is_known(store: Store, asked: Experiment) -> None:
    """Where the windows pass the end of the episode nothing is known, which is not the same as no."""
    (episode,) = roll(
        Studio(store).policy(asked.policy_id),
        FACTORY(1),
        [Trial(env_seed=SEEDS[0])],
        Capture(facts=True),
    )
    assert episode.facts is not None
    truth = compute_labels(episode.facts, ["battery_proximity", "carrying_ore"])
    near_TA, ore_TA = truth.values()
    soon = [near_TA[t + 1 : t + 1 + HORIZON].any(0) for t in range(len(near_TA) - HORIZON)]
    of_all = np.sum(soon) / near_TA.size
    _, soon_rate, only_rate, plain_rate = outcome_of(episode, [SOON, ONLY, "battery_proximity"])
    assert soon_rate == pytest.approx(np.mean(soon))
    assert soon_rate > of_all > 0
    assert only_rate == (near_TA & ~ore_TA).mean()
    assert plain_rate == near_TA.mean()


def test_its_difference_of_means_is_a_rival(store: Store, asked: Experiment) -> None:
    around = Survey(
        recording_id=asked.recording_id,
        dict_id=asked.dict_id,
        concepts=asked.latents,
        sites=(SITE,),
        num_others=2,
        split=asked.split,
    ).run(Studio(store))
    tracks = read_tracks(store, asked.recording_id, site=SITE, labels=(SOON, ONLY), stride_steps=4)
    train = tracks.select(~asked.split.held_out(tracks.env_seed_E))
    for column, latent in enumerate(asked.latents[:2]):
        known_ES = train.targets.known_ESC[..., column]
        x_ND, label_N = train.activation_ESD[known_ES], train.label_ESL[..., column][known_ES]
        gap_D = x_ND[label_N].mean(0) - x_ND[~label_N].mean(0)
        np.testing.assert_allclose(
            around.mean_difference[latent.concept], gap_D / np.linalg.norm(gap_D), atol=1e-5
        )
    assert not around.mean_difference[asked.latents[2].concept].any()


def test_its_clip_shows_where_it_holds(store: Store, asked: Experiment) -> None:
    claimed = tuple(
        (latent, Arm(mode="ablate", dose=1.0, edit=latent.edit("ablate", 1.0)))
        for latent in asked.latents
    )
    task = ShowEdits(subject=asked.subject, claimed=claimed, env_seeds=SEEDS, registration_id="g-0")
    soon, only, nameless = task.run(Studio(store)).to_pylist()
    (episode,) = roll(
        Studio(store).policy(asked.policy_id),
        FACTORY(1),
        [Trial(env_seed=soon["env_seed"])],
        Capture(facts=True),
    )
    assert episode.facts is not None
    truth = compute_labels(episode.facts, [SOON, ONLY])
    for row, label in ((soon, SOON), (only, ONLY)):
        window = window_from_json(row["before"])
        assert window.label == label
        assert window.label_T.any()
        np.testing.assert_array_equal(window.label_T, truth[label][window.t, window.agent])
    assert not window_from_json(nameless["before"]).label_T.any()
