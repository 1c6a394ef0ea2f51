"""Planted: of two policies that are shown one bank both write some features, and each writes one of its own."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from cluster import crosscoders, recordings
from cluster.crosscoders import read_presence
from cluster.features import features_of, site_of
from cluster.recordings import Plan, ShardPlan
from cluster.staging import Split, stage
from cluster.store import Store
from cluster.studio import Studio
from interp.recording import episode_rows
from interp.records import Episode
from jobs.dictionaries import Crosscode, presence_views

SITE, STEPS, AGENTS = "lstm.h", 40, 2
WIDTHS = {"p-wide": 20, "p-narrow": 12}
OWN = {"p-wide": 6, "p-narrow": 7}
"""The feature that only it writes; 0 to 5 are of both."""
NUM_FEATURES = 8
SPLIT = Split(held_out_fraction=0.4)
TASK = Crosscode(replay=(), site=SITE, k=1, d_sae=16, samples=120_000, lr=1e-2).task()


def on_of(env_seed: int) -> np.ndarray:
    """Which features are on: the same steps for whoever is shown them."""
    generator = np.random.default_rng([1, env_seed])
    return generator.random((STEPS, AGENTS, NUM_FEATURES)) < 0.12


def activations_of(policy: str, env_seed: int) -> np.ndarray:
    direction_GD = np.random.default_rng(WIDTHS[policy]).normal(size=(NUM_FEATURES, WIDTHS[policy]))
    direction_GD /= np.linalg.norm(direction_GD, axis=1, keepdims=True)
    for other, feature in OWN.items():
        if other != policy:
            direction_GD[feature] = 0
    noise = np.random.default_rng([2, env_seed]).normal(size=(STEPS, AGENTS, WIDTHS[policy]))
    scale = 5.0 if policy == "p-wide" else 0.5
    return (scale * (2 * on_of(env_seed) @ direction_GD + 0.03 * noise + 1)).astype(np.float32)


def add_replay(store: Store, policy: str, bank: str = "r-bank", num_episodes: int = 24) -> str:
    shards = (ShardPlan(shard="s0", env_seeds=tuple(range(num_episodes))),)
    widths = {SITE: WIDTHS[policy]}
    config = {"site_widths": widths, "labels": ["shared", "own"], "num_episodes": num_episodes}
    plan = Plan(config=config, inputs={"policy": policy, "bank": bank}, shards=shards)
    recordings.begin(store, plan)
    tables = []
    for seed in shards[0].env_seeds:
        episode = Episode(
            env_seed=seed,
            index=0,
            action_TA=np.zeros((STEPS, AGENTS), np.int32),
            reward_TA=np.zeros((STEPS, AGENTS), np.float32),
            done_TA=np.zeros((STEPS, AGENTS), np.bool_),
            captured_t=np.arange(STEPS, dtype=np.int32),
            activations={SITE: activations_of(policy, seed)},
        )
        labels = {"shared": on_of(seed)[..., 0], "own": on_of(seed)[..., OWN[policy]]}
        told = {"policy_id": policy, "step": 0, "world": "w", "episode_number": seed}
        tables.append(episode_rows(episode, labels, **told, site_widths=widths))
    recordings.write_shard(store, plan, "s0", pa.concat_tables(tables))
    recordings.commit(store, plan)
    return plan.recording_id


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store.open(tmp_path_factory.mktemp("crosscoders") / "store")


@pytest.fixture(scope="module")
def replays(store) -> dict[str, str]:
    return {policy: add_replay(store, policy) for policy in WIDTHS}


@pytest.fixture(scope="module")
def trained(store, replays):
    task = replace(TASK, replay_ids=tuple(replays.values()))
    return task, task.run(Studio(store))


def latents_of_features(store, replays, entry, policy):
    """For each planted feature the latent that this policy alone shows it by best, and how well (correlation)."""
    known = features_of(
        store,
        replays[policy],
        "crosscoder",
        site=SITE,
        dict_id=entry.crosscoder_id,
        labels=(),
        split=SPLIT,
        seed=0,
    )
    rows = np.load(stage(store, replays[policy], SITE, SPLIT).held_out_path).astype(np.float32)
    seeds = np.arange(24)
    on = np.concatenate([on_of(s).reshape(-1, NUM_FEATURES) for s in seeds[SPLIT.held_out(seeds)]])
    value = known.values(rows)
    value = (value - value.mean(0)) / (value.std(0) + 1e-9)
    alike = ((on - on.mean(0)) / on.std(0)).T @ value / len(on)
    # a latent that never fires for both together may do so for one alone, and is none of both
    whose = read_presence(store, entry.crosscoder_id).column("whose").to_pylist()
    alike[:, np.array(whose) == "silent"] = 0
    return known, alike.argmax(1), alike.max(1)


def test_latents_are_features_of_each_policy_that_can_be_steered(store, replays, trained):
    _, entry = trained
    assert site_of(store, entry.crosscoder_id) == SITE
    for policy, width in WIDTHS.items():
        known, latent, _ = latents_of_features(store, replays, entry, policy)
        assert (known.kind, known.site, known.width) == ("crosscoder", SITE, width)
        truth = activations_of(policy, 0)[on_of(0)[..., 0]].mean(0)
        truth -= activations_of(policy, 0)[~on_of(0)[..., 0]].mean(0)
        written = known.steered(int(latent[0]), label="shared").write_D
        cosine = written @ truth / np.linalg.norm(written) / np.linalg.norm(truth)
        assert cosine > 0.9


def test_trained_again_it_is_the_same_and_found(store, trained):
    task, entry = trained
    assert crosscoders.find(store, task.crosscoder_id) == entry
    before = {key: store.get(key) for key in store.list("crosscoders")}
    assert task.run(Studio(store)) == entry
    assert {key: store.get(key) for key in store.list("crosscoders")} == before


def test_shared_and_own_features_are_told_apart_in_what_is_printed(store, trained):
    _, entry = trained
    counts, shown = presence_views(
        read_presence(store, entry.crosscoder_id), entry.policies, ("wide", "narrow"), show=3
    )
    kinds, numbers = ([str(cell) for cell in column.cells] for column in counts.columns)
    assert kinds == ["all", "wide alone", "narrow alone", "some, or in part", "silent"]
    counted = [int(str(number)) for number in numbers]
    assert sum(counted) == entry.d_sae
    assert counted[0] >= 6
    assert min(counted[1:3]) >= 1
    assert list(shown.columns[0].cells).count("all") == 3


def test_what_cannot_be_compared_is_refused_by_name(store, replays, trained):
    task, _ = trained
    wide, narrow = replays.values()
    shards = (ShardPlan(shard="s0", env_seeds=(1,)),)
    plain = Plan(config={"site_widths": {}}, inputs={"policy": "p-wide"}, shards=shards)
    recordings.begin(store, plain)
    recordings.write_shard(store, plain, "s0", pa.table({"env_seed": [1]}))
    recordings.commit(store, plain)
    fewer = add_replay(store, "p-narrow", num_episodes=23)
    for changed, message in (
        ({"replay_ids": (wide,)}, "1 replays; a crosscoder is of two or more"),
        ({"replay_ids": (wide, wide)}, "wanted each once"),
        ({"replay_ids": (wide, plain.recording_id)}, "is no replay: .* sequences replay"),
        ({"replay_ids": (wide, add_replay(store, "p-narrow", bank="r-b"))}, "different banks"),
        ({"replay_ids": (wide, fewer)}, "different steps of their bank"),
        ({"site": "lstm.c"}, "has no site 'lstm.c'; it has lstm.h"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(task, **changed).check(store)
    asked = {"site": SITE, "labels": (), "split": SPLIT, "seed": 0}
    with pytest.raises(ValueError, match="name it with --dictionary"):
        features_of(store, narrow, "crosscoder", dict_id=None, **asked)
    with pytest.raises(FileNotFoundError, match="dictionaries crosscode` trains one"):
        features_of(store, narrow, "crosscoder", dict_id="x-0", **asked)
