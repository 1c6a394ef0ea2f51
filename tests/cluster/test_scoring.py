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
    score_lags,
    score_latents,
    steered_latent,
)
from cluster.staging import Part, Split
from cluster.store import Store
from cluster.studio import Studio
from interp.concepts.blocks import known_auroc, score_all
from interp.concepts.catalogue import ScoringConfig
from interp.concepts.lags import Targets, lagged, within
from interp.dictionaries.dictionary import Dictionary
from interp.recording import episode_rows
from interp.records import Episode, VariableLabel
from interp.worlds.world import WorldFactory

SITE, LABELS = "lstm.h", ("high", "rare")
AGENTS, D, F = 2, 6, 150
ECHO = 3
"""Three blocks of latents, the last of them short."""
SEEDS = range(40)


def episode(env_seed: int) -> tuple[Episode, dict[str, np.ndarray]]:
    """20 to 31 steps; one label is what the first unit says, one is of another world, one is the first one, later."""
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
    high = x[..., 0] > 0.8
    echo = np.concatenate([np.zeros((ECHO, AGENTS), np.bool_), high[:-ECHO]])
    return one, {"high": high, "rare": generator.random(shape) < 0.1, "echo": echo}


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
    config = {"site_widths": {SITE: D}, "labels": [*LABELS, "echo"]}
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


LAGS = (-ECHO, 0, 1, ECHO)


@pytest.fixture
def lagging(whole: ScoreLatents) -> ScoreLatents:
    return replace(whole, labels=("high", "echo"), lags=LAGS)


def plainly(store: Store, asked: ScoreLatents, part: Part):
    """[E, S, F] latents and labels at lags of a part, from one table of everything."""
    dense = read_tracks(store, asked.recording_id, site=SITE, labels=asked.labels, stride_steps=1)
    dense = dense.select(asked.split.chosen(dense.env_seed_E, part))
    latent_ESF = (
        dictionaries.load(store, "d-0")
        .encode_rows(dense.activation_ESD.reshape(-1, D))
        .reshape(*dense.mask_ES.shape, F)
    )
    targets = lagged(Targets.known(dense.label_ESL, dense.mask_ES), lags=LAGS, num_agents=AGENTS)
    places = np.arange(dense.mask_ES.shape[1]).reshape(-1, AGENTS)[::2].reshape(-1)
    return latent_ESF[:, places], targets.select(places)


def test_a_latent_is_found_at_the_lag_at_which_its_label_follows(
    store: Store, lagging: ScoreLatents
) -> None:
    """`echo` holds three steps after the first unit was high: at lag 3 it is what `high` is at lag 0."""
    studio = Studio(store)
    table = score_lags(store, lagging, lambda tasks: [task.run(studio) for task in tasks])
    assert table.num_rows == F * 2 * len(LAGS)
    best = {row["label"]: row for row in table.to_pylist() if row["is_best"]}
    assert {label: row["lag"] for label, row in best.items()} == {"high": 0, "echo": ECHO}
    for row in best.values():
        assert abs(row["auroc"] - 0.5) > 0.3
        assert row["auroc_lo"] < row["auroc"] < row["auroc_hi"]
        assert row["family_p_value"] < 0.05
        assert row["null"] == "episode permutation"
        assert row["n_missing"] > 0
    at = {(row["label"], row["latent"], row["lag"]): row["auroc"] for row in table.to_pylist()}
    latent = best["echo"]["latent"]
    assert abs(at["echo", latent, 0] - 0.5) < 0.1, "at its own step nothing tells it"


def test_lags_are_chosen_on_training_episodes_and_published_of_held_out_ones(
    store: Store, lagging: ScoreLatents
) -> None:
    studio = Studio(store)
    table = score_lags(store, lagging, lambda tasks: [task.run(studio) for task in tasks])
    rows = table.to_pylist()
    order = [(label, f, lag) for label in lagging.labels for f in range(F) for lag in LAGS]
    assert [(row["label"], row["latent"], row["lag"]) for row in rows] == order
    column_of: dict[Part, str] = {"train": "train_auroc", "held_out": "auroc"}
    for part, column in column_of.items():
        latent_ESF, targets = plainly(store, lagging, part)
        expected_FLK = known_auroc(latent_ESF, targets).reshape(F, 2, len(LAGS))
        found = np.array([row[column] for row in rows]).reshape(2, F, len(LAGS))
        np.testing.assert_allclose(found.swapaxes(0, 1), expected_FLK, atol=1e-12)
        if part == "train":
            distance_FLK = np.abs(expected_FLK - 0.5)
            chosen = np.array([row["is_best_lag"] for row in rows]).reshape(2, F, len(LAGS))
            assert (chosen.sum(2) == 1).all()
            np.testing.assert_array_equal(chosen.argmax(2).T, distance_FLK.argmax(2))
            best = [row["latent"] for row in rows if row["is_best"]]
            np.testing.assert_array_equal(best, distance_FLK.max(2).argmax(0))
    num_held_out = lagging.split.held_out(np.array(SEEDS)).sum()
    assert {row["n_episodes"] for row in rows} == {num_held_out}
    assert sum(row["auroc_lo"] is not None for row in rows) == 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_tables_of_lags_are_the_same_by_actors_and_are_kept(
    store: Store, lagging: ScoreLatents, tmp_path
) -> None:
    studio = Studio(store)
    alone = score_lags(store, lagging, lambda tasks: [task.run(studio) for task in tasks])

    def forbidden(tasks):
        raise AssertionError(f"{len(tasks)} tasks done again")

    assert score_lags(store, lagging, forbidden).equals(alone)
    with pytest.raises(AssertionError, match=r"2 tasks done again"):
        score_lags(store, replace(lagging, lags=(0,)), forbidden)
    for key in [*store.list("scores")]:
        (tmp_path / "store" / key).unlink()

    def make(tasks):
        with Pool(Studio, args=(store,), size=2) as pool:
            value_of = {result.task.key: result.value for result in pool.run(tasks)}
        return [value_of[task.key] for task in tasks]

    assert score_lags(store, lagging, make, latents_per_task=64).equals(alone)


def test_lags_that_reach_over_an_episode_are_refused(store: Store, whole: ScoreLatents) -> None:
    with pytest.raises(ValueError, match=r"lags \[1, 1\]: wanted at least one, each once"):
        replace(whole, lags=(1, 1))
    with pytest.raises(ValueError, match=r"lags from -12 to 12 steps, but the shortest episode"):
        replace(whole, lags=(-12, 12)).run(Studio(store))


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
