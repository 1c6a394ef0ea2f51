"""Latents are scored in many tasks as they are in one: the same bits, from shards of episodes of many lengths."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster import dictionaries, recordings
from cluster.features import features_of
from cluster.pool import Pool
from cluster.recordings import Plan, ShardPlan
from cluster.scoring import (
    ScoreConcepts,
    ScoreLatents,
    read_tracks,
    score_latents,
    steered_latent,
)
from cluster.staging import Split
from cluster.store import Store
from cluster.studio import Studio
from interp.concepts.blocks import score_all
from interp.concepts.catalogue import ScoringConfig
from interp.concepts.lags import Targets, within
from interp.dictionaries.dictionary import Dictionary
from interp.recording import episode_rows
from interp.records import Episode, VariableLabel
from interp.worlds.world import WorldFactory

SITE, LABELS = "lstm.h", ("high", "rare")
AGENTS, D, F = 2, 6, 150
"""Three blocks of latents, the last of them short."""
SEEDS = range(40)


def episode(env_seed: int) -> tuple[Episode, dict[str, np.ndarray]]:
    """20 to 31 steps; one label is what the first unit says, the other is of another world."""
    generator = np.random.default_rng(env_seed)
    steps = 20 + env_seed % 12
    x = generator.standard_normal((steps, AGENTS, D)).astype(np.float32)
    shape = (steps, AGENTS)
    one = Episode(
        env_seed=env_seed,
        index=0,
        action_TA=np.zeros(shape, np.int32),
        reward_TA=np.zeros(shape, np.float32),
        done_TA=np.zeros(shape, np.bool_),
        captured_t=np.arange(steps, dtype=np.int32),
        activations={SITE: x},
    )
    return one, {"high": x[..., 0] > 0.8, "rare": generator.random(shape) < 0.1}


def random_dictionary() -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    return Dictionary(
        W_enc=torch.randn(D, F, generator=generator),
        b_enc=torch.zeros(F),
        W_dec=torch.randn(F, D, generator=generator),
        b_dec=torch.zeros(D),
        threshold=torch.tensor(1.0),
        mean=torch.zeros(D),
        scale=1.0,
        family="batch_topk",
        fvu=0.1,
        l0=24.0,
        dead_fraction=0.0,
        site=SITE,
    )


@pytest.fixture
def whole(store: Store) -> ScoreLatents:
    """A committed recording in four shards, a dictionary for it, and the task of scoring all of it."""
    shards = tuple(
        ShardPlan(shard=f"s{start}", env_seeds=tuple(SEEDS[start : start + 10]))
        for start in range(0, 40, 10)
    )
    config = {"site_widths": {SITE: D}, "labels": list(LABELS)}
    plan = Plan(config=config, inputs={"policy": "p-0"}, shards=shards)
    recordings.begin(store, plan)
    for shard in shards:
        rows = [
            episode_rows(
                *episode(env_seed),
                policy_id="p-0",
                step=0,
                world="w",
                episode_number=env_seed,
                site_widths={SITE: D},
            )
            for env_seed in shard.env_seeds
        ]
        table = pa.concat_tables(rows)
        recordings.write_shard(store, plan, shard.shard, table)
    recordings.commit(store, plan)
    dictionaries.save(store, "d-0", random_dictionary(), {})
    return ScoreLatents(
        recording_id=plan.recording_id,
        dict_id="d-0",
        labels=LABELS,
        split=Split(held_out_fraction=0.5),
        stride_steps=2,
        num_permutations=99,
        seed=0,
    )


def in_memory(store: Store, whole: ScoreLatents):
    """The plain way: one table of everything, then every latent."""
    dictionary = dictionaries.load(store, "d-0")
    dense = read_tracks(store, whole.recording_id, site=SITE, labels=LABELS, stride_steps=1)
    dense = dense.select(whole.split.held_out(dense.env_seed_E))
    targets = Targets.known(dense.label_ESL, dense.mask_ES)
    if whole.within_steps:
        targets = within(targets, steps=whole.within_steps, num_agents=AGENTS)
    strided = read_tracks(store, whole.recording_id, site=SITE, labels=LABELS, stride_steps=2)
    strided = strided.select(whole.split.held_out(strided.env_seed_E))
    latent_ESF = dictionary.encode_rows(strided.activation_ESD.reshape(-1, D)).reshape(
        *strided.mask_ES.shape, F
    )
    t = np.arange(0, dense.mask_ES.shape[1] // AGENTS, 2)
    places = (t[:, None] * AGENTS + np.arange(AGENTS)).reshape(-1)
    return score_all(latent_ESF, targets.select(places), seed=0, num_permutations=99)


def equal(mine, theirs) -> None:
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("within_steps", [0, 3])
@pytest.mark.parametrize("latents_per_task", [64, 128, 512])
def test_stretches_of_latents_give_what_all_of_them_give(
    store: Store, whole: ScoreLatents, within_steps, latents_per_task
) -> None:
    whole = replace(whole, within_steps=within_steps)
    studio = Studio(store)
    scores = score_latents(
        store,
        whole,
        lambda tasks: [task.run(studio) for task in tasks],
        latents_per_task=latents_per_task,
    )
    assert scores.auroc_FC.shape == (F, 2)
    assert (scores.num_missing_C > 0).all() == bool(within_steps)
    if not within_steps:
        assert (scores.family_p_FC[:, 0] <= 0.05).any()
        assert (scores.family_p_FC[:, 1] > 0.05).all()
    equal(scores, in_memory(store, whole))


def test_what_the_pipeline_steers_has_the_mean_to_which_it_is_ablated(
    store: Store, whole: ScoreLatents
) -> None:
    """Of a row of the concept table, as `sparsight steer` measures it for itself."""
    known = SimpleNamespace(
        labels={
            name: VariableLabel(name=name, kind="spatial", definition=name, variable=name)
            for name in LABELS
        }
    )
    task = ScoreConcepts(
        policy_name="p",
        recording_id=whole.recording_id,
        dict_id="d-0",
        random_init_recording_id=whole.recording_id,
        random_init_dict_id="d-0",
        factory=cast("WorldFactory", known),
        labels=LABELS,
        split=whole.split,
        config=ScoringConfig(num_permutations=99, num_resamples=99, stride_steps=4),
        seed=0,
    )
    table = task.run(Studio(store)).to_pylist()
    row = max(table, key=lambda row: row["auroc"])
    steered = steered_latent(dictionaries.load(store, "d-0"), {**row, "concept": "high:0"})
    features = features_of(
        store,
        whole.recording_id,
        "sae",
        site=SITE,
        dict_id="d-0",
        labels=(),
        split=whole.split,
        seed=0,
    )
    same = features.steered(row["latent"])
    assert same.mean > 0.1
    assert steered.mean == pytest.approx(same.mean, rel=1e-4)
    assert steered.scale == pytest.approx(same.scale, rel=1e-4)
    mean_ablate = steered.edit("mean_ablate", 1.0).coefficients
    assert mean_ablate == pytest.approx(same.edit("mean_ablate", 1.0).coefficients, rel=1e-4)
    assert mean_ablate != steered.edit("ablate", 1.0).coefficients


def test_padding_is_silent(store: Store, whole: ScoreLatents) -> None:
    latent_ESF, targets = whole.read(store)
    assert (~targets.mask_ES).any()
    assert not latent_ESF[~targets.mask_ES].any()
    assert latent_ESF[targets.mask_ES].any(0).all()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_actors_give_the_same(store: Store, whole: ScoreLatents) -> None:
    def make(tasks):
        with Pool(Studio, args=(store,), size=2) as pool:
            value_of = {result.task.key: result.value for result in pool.run(tasks)}
        return [value_of[task.key] for task in tasks]

    equal(score_latents(store, whole, make, latents_per_task=64), in_memory(store, whole))


def test_stretches_that_cut_blocks_and_parts_without_episodes_are_refused(
    store: Store, whole: ScoreLatents
) -> None:
    with pytest.raises(ValueError, match=r"first is 10: wanted a multiple of 64"):
        replace(whole, first=10)
    with pytest.raises(ValueError, match=r"latents_per_task is 100: wanted a multiple of 64"):
        whole.divided(150, 100)
    with pytest.raises(ValueError, match=r"label 'high2' is not in recording"):
        replace(whole, labels=("high2",)).run(Studio(store))
    nobody = replace(whole, split=Split(held_out_fraction=1e-9))
    with pytest.raises(ValueError, match=r"has no held_out episode; record more"):
        nobody.run(Studio(store))
