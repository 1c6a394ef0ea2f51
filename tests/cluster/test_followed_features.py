"""Concepts over checkpoints: beside latents the units, components and probes of the last one; labels with a horizon."""

from dataclasses import replace

import pytest

from cluster import policies, recordings
from cluster.evolution import (
    EvolutionConfig,
    FollowedConcept,
    ScoreCheckpoint,
    followed_beside,
    lineage_tasks,
)
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.store import Store
from cluster.studio import Studio
from cluster.training import TrainedRun
from interp.steering.arms import SteeredLatent
from tests.fakes.planted_policy import FACTORY, GENERATOR, STANDS_STILL, experiment

pytestmark = pytest.mark.mettagrid

LABEL = "battery_proximity"
SOON = f"{LABEL}@within2"
CONFIG = EvolutionConfig(episodes_per_player=10)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("evolution") / "store")


@pytest.fixture(scope="module")
def asked(store: Store):
    return experiment(store, STANDS_STILL, (GENERATOR,))


@pytest.fixture(scope="module")
def latent(asked) -> SteeredLatent:
    (latent,) = asked.latents
    return latent


def beside(store: Store, asked, kinds):
    return followed_beside(
        store, asked.recording_id, asked.latents, kinds, split=asked.split, seed=0
    )


def test_what_is_followed_beside_a_latent_is_what_tells_its_label_best(store, asked) -> None:
    units, probe = beside(store, asked, ("neuron", "probe"))
    (unit,) = units.concepts
    assert unit.concept == f"{LABEL}:neuron {unit.latent}" and unit.label == LABEL
    (by_label,) = probe.concepts
    assert (by_label.concept, by_label.latent) == (f"{LABEL}:probe", 0)
    assert probe.sign == (1,)
    assert beside(store, asked, ()) == ()


def test_latents_and_crosscoders_are_not_beside_themselves() -> None:
    with pytest.raises(ValueError, match=r"beside sae: latents are followed in any case"):
        EvolutionConfig(beside=("sae",))


def test_a_checkpoint_is_scored_by_all_that_is_followed_and_by_labels_that_look_ahead(
    store: Store, asked, latent: SteeredLatent
) -> None:
    """Probe and latent read what was planted; a unit, which the planted directions are spread over, reads less."""
    studio = Studio(store)
    played = RecordingConfig(
        first_env_seed=CONFIG.first_env_seed,
        num_episodes=3 * CONFIG.episodes_per_player,  # one player has the share of three
        sites=(),
    )
    plan = plan_recording(store, asked.policy_id, FACTORY, played)
    recordings.begin(store, plan)
    for shard in recordings.missing_shards(store, plan):
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY))
    recordings.commit(store, plan)
    card = policies.read_card(store, asked.policy_id)

    def scores(label: str, *, and_beside: bool):
        return ScoreCheckpoint(
            checkpoint=card,
            factory=FACTORY,
            bank=(plan.recording_id,),
            config=CONFIG,
            dict_id=asked.dict_id,
            concepts=(FollowedConcept(concept="x", label=label, latent=latent.latent),),
            seed=0,
            beside=beside(store, asked, ("neuron", "probe")) if and_beside else (),
        ).run(studio)

    by_latent, by_unit, by_probe = scores(LABEL, and_beside=True)
    assert by_latent.auroc > 0.95 and by_probe.auroc > 0.95
    assert 0.5 < by_unit.auroc < by_latent.auroc
    assert scores(LABEL, and_beside=False) == [by_latent]
    (soon,) = scores(SOON, and_beside=False)
    assert 0.6 < soon.auroc < by_latent.auroc


def test_a_table_without_others_keeps_its_id(store: Store, asked, latent: SteeredLatent) -> None:
    run = TrainedRun(
        run_id="t-0",
        name="planted",
        world=FACTORY.name,
        checkpoints=(policies.read_card(store, asked.policy_id),),
    )

    def question(config: EvolutionConfig, others=()):
        found, _, _ = lineage_tasks(
            run, FACTORY, ("r-0",), asked.dict_id, [latent], config, seed=0, beside=others
        )
        return found

    plain = question(CONFIG)
    assert set(plain.config["evolution"]) == {
        *("first_env_seed", "episodes_per_player", "stride_steps")
    }
    with_units = replace(CONFIG, beside=("neuron",))
    assert question(with_units, beside(store, asked, ("neuron",))).id != plain.id
