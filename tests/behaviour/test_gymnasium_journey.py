"""Nothing is tied to mettagrid: a policy that sb3-contrib trained on a gymnasium task goes the whole way.

CartPole without its velocities: the policy must remember where the pole was to know which way it turns.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv

from cluster import policies, recordings
from cluster.arms import Subject, divided
from cluster.dictionaries import TrainDictionary, load as load_dictionary
from cluster.evaluation import UNIFORM, Evaluate, EvaluationConfig, ReturnEstimate
from cluster.laboratory import Laboratory
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.recordings import Plan
from cluster.scoring import ScoreConcepts, ShowConcepts, steered_latent
from cluster.staging import Split
from cluster.steering import Experiment, Findings
from cluster.store import Store
from cluster.studio import Studio
from interp.concepts.catalogue import ScoringConfig
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.training import SaeConfig
from interp.policies.bundle import PolicyBundle, PolicyCard
from interp.policies.policy_file import PolicyFile
from interp.policies.sb3_recurrent import Sb3RecurrentPolicy, architecture_of
from interp.steering.arms import SteeredLatent, SteeringConfig, own_arms
from interp.steering.verdicts import Verdict
from interp.worlds.catalogue import load_world
from interp.worlds.gymnasium import GymnasiumFactory

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FACTORY = GymnasiumFactory.load("gym:CartPole-v1?mask=1,3&max_steps=100")
TRAINING_STEPS = 10_240
SITE = "lstm.h"
RECORDING = RecordingConfig(num_episodes=64, sites=(SITE, "lstm.c"))
SPLIT = Split(held_out_fraction=0.4)
SAE = SaeConfig(family=BatchTopK(k=6), d_sae=48, samples=30_000, batch_rows=256, reports=2)
TRIALS = [SAE, replace(SAE, family=ReluL1(l1=0.5))]
SCORING = ScoringConfig(stride_steps=1, num_permutations=500, num_resamples=200)
STEERING = SteeringConfig(
    num_episodes=10, add_doses=(0.0, 2.0), clamp_doses=(0.0,), ablate_doses=(0.0, 1.0)
)
HIDDEN_STATE = ("cart_moves_right", "pole_turns_right")
"""What the mask hides."""
CONSTANT = ("rewarded",)
"""CartPole pays for every step."""


def trained() -> RecurrentPPO:
    """About 5 s on one core; the same policy every time on one kind of machine."""
    model = RecurrentPPO(
        "MlpLstmPolicy",
        DummyVecEnv([FACTORY.make] * 8),
        policy_kwargs={"lstm_hidden_size": 32, "net_arch": [32]},
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        learning_rate=1e-2,
        gamma=0.98,
        seed=0,
        device="cpu",
    )
    return model.learn(TRAINING_STEPS)


def opened(path: Path) -> PolicyFile:
    """The inert parts of sb3's zip: tensors, and the JSON beside them."""
    with zipfile.ZipFile(path) as archive:
        tensors = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
        metadata = json.loads(archive.read("data"))
    return PolicyFile(
        format="sb3",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        tensors=tensors,
        metadata=metadata,
    )


@dataclass(frozen=True)
class Journey:
    store: Store
    trained: PolicyCard
    returns: dict[str, ReturnEstimate]
    plan: Plan
    scoring: ScoreConcepts
    concepts: pa.Table
    latent: SteeredLatent
    found: Findings


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Journey:
    folder = tmp_path_factory.mktemp("journey")
    store = Store.open(folder / "store")
    trained().save(folder / "policy.zip")
    file = opened(folder / "policy.zip")
    architecture = architecture_of(file)
    untrained = Sb3RecurrentPolicy.fresh(architecture, seed=0)
    card, fresh = (
        policies.save(
            store,
            PolicyBundle.of(architecture, tensors),
            name=name,
            run="sb3",
            step=step,
            world=FACTORY.name,
        )
        for name, tensors, step in (
            ("trained", file.tensors, file.metadata["num_timesteps"]),
            ("untrained", untrained.state_dict(), 0),
        )
    )
    laboratory = Laboratory(store, num_actors=2)
    with laboratory:
        returns = laboratory.evaluate(
            [
                Evaluate(
                    policy_id=player, factory=FACTORY, config=EvaluationConfig(num_episodes=64)
                )
                for player in (card.policy_id, UNIFORM)
            ]
        )
        plan = plan_recording(store, card.policy_id, FACTORY, RECORDING)
        (played,) = laboratory.record([(plan, FACTORY)])
        replay = plan_recording(
            store,
            fresh.policy_id,
            FACTORY,
            replace(RECORDING, sites=(SITE,)),
            replay_of=plan.recording_id,
        )
        (shown,) = laboratory.record([(replay, FACTORY)])
        assert played.rows == shown.rows
        sweep = laboratory.sweep(
            plan.recording_id, SITE, TRIALS, split=SPLIT, seed=0, target_l0=None
        )
        (control,) = laboratory.train_dictionaries(
            [
                TrainDictionary(
                    recording_id=replay.recording_id,
                    site=SITE,
                    config=sweep.chosen_config,
                    split=SPLIT,
                    seed=0,
                )
            ]
        )
        scoring = ScoreConcepts(
            policy_name=card.name,
            recording_id=plan.recording_id,
            dict_id=sweep.chosen.dict_id,
            random_init_recording_id=replay.recording_id,
            random_init_dict_id=control.dict_id,
            factory=FACTORY,
            labels=tuple(FACTORY.labels),
            split=SPLIT,
            config=SCORING,
            seed=0,
        )
        (concepts,) = laboratory.answer([scoring])
        row = max(
            (row for row in concepts.to_pylist() if row["concept"] is not None),
            key=lambda row: row["auroc"],
        )
        latent = steered_latent(load_dictionary(store, sweep.chosen.dict_id), row)
        experiment = Experiment(
            policy_id=card.policy_id,
            policy_name=card.name,
            untrained_id=fresh.policy_id,
            factory=FACTORY,
            concepts_id=scoring.question.id,
            recording_id=plan.recording_id,
            dict_id=sweep.chosen.dict_id,
            split=SPLIT,
            latents=(latent,),
            config=STEERING,
            labels=("pushes_right", "switches_action"),
            seed=0,
        )
        (found,) = laboratory.steer([experiment])
    return Journey(store, card, returns, plan, scoring, concepts, latent, found)


def test_the_policy_learned_something(journey: Journey) -> None:
    """Otherwise the rest would be about noise."""
    learned, uniform = journey.returns[journey.trained.policy_id], journey.returns[UNIFORM]
    assert learned.mean - 3 * learned.se > uniform.mean
    assert journey.trained.step == TRAINING_STEPS


def test_the_card_leads_back_to_the_world(journey: Journey) -> None:
    assert load_world(journey.trained.world) == FACTORY


def test_rows_are_of_episodes_of_different_lengths(journey: Journey) -> None:
    manifest = recordings.open_manifest(journey.store, journey.plan.recording_id)
    table = pa.concat_tables(recordings.shard_tables(journey.store, manifest))
    seeds, lengths = np.unique(table.column("env_seed").to_numpy(), return_counts=True)
    np.testing.assert_array_equal(seeds, RECORDING.env_seeds)
    assert len(set(lengths.tolist())) > 5
    assert set(table.column("agent").to_pylist()) == {0}
    ends = np.cumsum(lengths) - 1
    np.testing.assert_array_equal(np.flatnonzero(table.column("done").to_numpy()), ends)
    assert table.column("label.rewarded").to_numpy().all()


def test_every_label_of_the_world_is_scored(journey: Journey) -> None:
    table = journey.concepts.to_pandas()
    assert set(table["label"]) == set(FACTORY.labels)
    assert {kind for kind in table["kind"]} == {label.kind for label in FACTORY.labels.values()}
    varied = table[table["base_rate"].between(0, 1, inclusive="neither")]
    assert set(varied["label"]) >= {*HIDDEN_STATE, "pushes_right", "pole_falls", "episode_start"}
    assert varied["auroc"].between(0, 1).all()
    assert (varied["auroc_lo"] <= varied["auroc_hi"]).all()


def test_a_constant_label_has_no_score_and_is_no_concept(journey: Journey) -> None:
    table = journey.concepts.to_pandas()
    constant = table[table["label"].isin(CONSTANT)]
    assert len(constant) > 0
    assert (constant["base_rate"] == 1).all()
    assert constant[["auroc", "p_value", "q_value"]].isna().all(axis=None)
    assert constant["concept"].isna().all()


def test_memory_holds_what_the_mask_hides(journey: Journey) -> None:
    """The velocities are nowhere in an observation; some latent tells them from earlier ones."""
    table = journey.concepts.to_pandas()
    for label in HIDDEN_STATE:
        found = table[(table["label"] == label) & table["concept"].notna()]
        assert len(found) == 1, label
        assert found["auroc"].item() > 0.6, label
        assert found["q_value"].item() < 0.05, label


def test_steering_has_an_exact_zero_and_finite_effects(journey: Journey) -> None:
    rows = journey.found.effects.to_pylist()
    assert {row["outcome"] for row in rows} >= {"return", "pushes_right", "switches_action"}
    none = [row for row in rows if row["dose"] == 0]
    some = [row for row in rows if row["dose"] != 0]
    assert {row["mode"] for row in none} == {"add", "clamp", "ablate"}
    assert all((row["difference"], row["lo"], row["hi"]) == (0, 0, 0) for row in none)
    values = [[row[name] for name in ("base", "edited", "difference", "lo", "hi")] for row in some]
    assert np.isfinite(values).all()
    assert any(row["difference"] != 0 for row in some)
    assert all(0 < row["p_value"] <= 1 for row in some)


def test_the_same_seeds_give_the_same_numbers(journey: Journey, tmp_path: Path) -> None:
    """In another store, without a pool and with another batch."""
    other = Store.open(tmp_path / "store")
    for key in journey.store.list("policies"):
        other.create(key, journey.store.get(key))
    studio = Studio(other)
    plan = plan_recording(other, journey.trained.policy_id, FACTORY, RECORDING)
    assert plan == journey.plan
    shard = plan.shards[1]
    receipt = studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY, num_worlds=5))
    manifest = recordings.open_manifest(journey.store, plan.recording_id)
    assert receipt == manifest.receipts[1]
    subject = Subject(policy_id=journey.trained.policy_id, factory=FACTORY, labels=("pole_falls",))
    task, *_ = divided(subject, own_arms(journey.latent, STEERING), STEERING.env_seeds)
    here = replace(task, num_worlds=7).run(Studio(other))
    np.testing.assert_array_equal(here, task.run(Studio(journey.store)))


def test_every_claim_has_its_evidence(journey: Journey) -> None:
    rows = journey.found.verdicts.to_pylist()
    assert [row["claim"] for row in rows] == ["sufficient", "necessary"]
    for row in rows:
        assert row["verdict"] in get_args(Verdict)
        assert row["n_diagnosed"] == 10
        for name in ("kl_replay", "kl_on_policy", "off_manifold", "divergence_step"):
            assert row[f"{name}_lo"] <= row[name] <= row[f"{name}_hi"]
        assert 0 <= row["agreement"] <= 1
        assert np.isfinite(row["untrained_difference"])


def test_a_world_without_a_map_has_no_windows(journey: Journey) -> None:
    with pytest.raises(ValueError, match=r"gym:CartPole-v1\?mask=1,3&max_steps=100 has no map"):
        ShowConcepts(
            policy_id=journey.trained.policy_id,
            factory=FACTORY,
            recording_id=journey.plan.recording_id,
            dict_id=journey.scoring.dict_id,
            latents=(journey.latent,),
            split=SPLIT,
        )
