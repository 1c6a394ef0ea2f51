"""Concepts without labels, from a store to its tables: what was planted is found, and nothing else."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster import dictionaries, recordings
from cluster.discovery import Discover, FindingsConfig, check_discover, discover
from cluster.laboratory import Laboratory
from cluster.recordings import Plan, ShardPlan, parquet_bytes
from cluster.staging import Split
from cluster.store import Store
from interp.concepts.discovery import DiscoveryConfig, leading_kind
from interp.concepts.groups import GroupConfig
from interp.concepts.naming import NOTHING
from interp.recording import episode_rows
from interp.records import Episode
from interp.trajectories import witness
from interp.worlds.gymnasium import GymnasiumFactory
from interp.worlds.labels import compute_labels
from tests.fakes import planted_recording
from tests.fakes.planted_recording import (
    DICT_ID,
    END,
    HALVES,
    NUM_LATENTS,
    OWN,
    SITE,
    STILL,
    WALL,
)

pytestmark = pytest.mark.mettagrid
ASKED = Discover(
    policy_name="planted",
    recording_id="",
    dict_id=DICT_ID,
    split=Split(held_out_fraction=0.5),
    config=FindingsConfig(groups=GroupConfig(num_resamples=300)),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Discover]:
    """A store with the planted recording, and what is asked of it."""
    store = Store.open(tmp_path_factory.mktemp("discovery") / "store")
    return store, replace(ASKED, recording_id=planted_recording.record(store))


def kept(store: Store, asked: Discover) -> list[bytes]:
    """The bytes of both tables and their notes."""
    return [
        store.get(f"{question.kind}/{question.id}.{suffix}")
        for question in (asked.groups_question, asked.findings_question)
        for suffix in ("parquet", "json")
    ]


def test_two_latents_that_share_a_label_out_are_a_group_that_beats_both(shared) -> None:
    (group,) = discover(*shared).groups.to_pylist()
    assert (group["label"], sorted(group["latents"])) == ("battery_proximity", sorted(HALVES))
    assert group["union_f1"] == 1
    assert group["gain_lo"] > 0.2 and group["beats_best"]


def test_what_was_planted_is_clustered_named_and_typed(shared) -> None:
    rows = discover(*shared).findings.to_pylist()
    found = {tuple(row["latents"]): row for row in rows}
    halves = tuple(sorted(HALVES))
    assert found.keys() == {halves, (STILL,), (WALL,), (END,), (OWN,)}
    kinds = {
        halves: "object-based",
        (STILL,): "behavioural",
        (WALL,): "spatial",
        (END,): "temporal",
        (OWN,): "undecided",
    }
    assert {latents: row["type"] for latents, row in found.items()} == kinds
    for latents, kind in kinds.items():
        if kind != "undecided":
            assert found[latents][f"share_{kind}"] > 0.9
            assert found[latents][f"q_{kind}"] < 0.01
    assert found[halves]["name"] in ("battery_proximity", "generator in view")
    assert found[(WALL,)]["name"] in ("wall_proximity", "wall next to it")
    assert found[(END,)]["name"] == "episode_end"
    for latents in (halves, (WALL,), (END,)):
        assert found[latents]["strength"] > np.log(2)
        assert found[latents]["evidence"] > 0.95


def test_what_means_nothing_gets_no_name(shared) -> None:
    """One latent follows the action, which nobody sees before it; another follows nothing at all."""
    for row in discover(*shared).findings.to_pylist():
        if row["latents"] in ([STILL], [OWN]):
            assert row["name"] == NOTHING
            assert np.isnan(row["strength"]) and np.isnan(row["evidence"])
            assert row["num_items"] > 50


def test_a_label_made_of_labels_groups_and_names(shared) -> None:
    store, asked = shared
    asked = replace(asked, labels=("battery_proximity&!carrying_ore", "wall_proximity"))
    groups, findings = discover(store, asked)
    assert groups.column("label").to_pylist() == ["battery_proximity&!carrying_ore"]
    assert findings.num_rows == 5


def test_tables_are_found_again_and_tell_what_they_are_about(shared, monkeypatch) -> None:
    store, asked = shared
    first = discover(store, asked)
    monkeypatch.setattr("cluster.discovery.read_tracks", None)  # whoever works, fails
    again = discover(store, asked)
    for before, after in zip(first, again, strict=True):
        assert parquet_bytes(before) == parquet_bytes(after)
        assert after.column_names[:4] == ["policy_name", "recording_id", "dict_id", "site"]
        assert set(after.column("recording_id").to_pylist()) == {asked.recording_id}
        assert set(after.column("policy_name").to_pylist()) == {"planted"}


def test_work_that_was_cut_short_gives_the_same_bytes(shared, store: Store) -> None:
    whole, asked = shared
    planted_recording.record(store)

    def cut(done: float, total: float, what: str = "") -> None:
        if what == "concepts named":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        discover(store, asked, cut)
    assert asked.groups_question.find(store) is not None
    assert asked.find(store) is None
    discover(store, asked)
    discover(whole, asked)
    assert kept(store, asked) == kept(whole, asked)


def test_showing_fewer_clusters_changes_neither_groups_nor_names(shared) -> None:
    store, asked = shared
    few = replace(asked, config=replace(asked.config, discovery=DiscoveryConfig(max_clusters=2)))
    assert few.groups_question.id == asked.groups_question.id
    all_rows, rows = (discover(store, one).findings.to_pylist() for one in (asked, few))
    columns = ("cluster", "latents", "name", "stand_outs", "type", "run_steps", "share_temporal")
    assert len(rows) == 2 and len(all_rows) == 5
    for row, as_among_all in zip(rows, all_rows, strict=False):
        assert [row[c] for c in columns] == [as_among_all[c] for c in columns]


def test_progress_is_told_to_its_end(shared, store: Store) -> None:
    told = []
    planted_recording.record(store)
    discover(store, shared[1], lambda done, total, what="": told.append((done, total, what)))
    assert (60, 60, "episodes played again") in told
    assert told[-1] == (5, 5, "concepts named")


def test_a_dictionary_whose_latents_never_fire_finds_nothing_and_says_so(shared, store) -> None:
    planted_recording.record(store)
    silent = replace(planted_recording.dictionary(), threshold=torch.tensor(99.0))
    dictionaries.save(store, "d-silent", silent, {})
    groups, findings = discover(store, replace(shared[1], dict_id="d-silent"))
    assert groups.num_rows == findings.num_rows == 0
    assert "beats_best" in groups.column_names and "strength" in findings.column_names


def refused(store: Store, asked: Discover, message: str) -> None:
    """Before work starts, whether it is only checked or done."""
    before = store.list("findings"), store.list("groups")
    for attempt in (check_discover, discover):
        with pytest.raises(ValueError, match=message):
            attempt(store, asked)
    assert (store.list("findings"), store.list("groups")) == before


def test_what_cannot_be_looked_at_is_refused_before_work(shared, monkeypatch) -> None:
    store, asked = shared
    monkeypatch.setattr("cluster.discovery.read_tracks", None)  # whoever works, fails
    refused(store, replace(asked, labels=("landmark",)), r"label 'landmark' is not in recording")
    refused(store, replace(asked, labels=("no_such",)), r"no_such")
    refused(
        store,
        replace(asked, split=Split(held_out_fraction=0.05)),
        r"has [0-9] held-out episodes, wanted at least 10; record more, or set split",
    )
    dictionaries.save(store, "d-other", planted_recording.dictionary("lstm.c"), {})
    refused(store, replace(asked, dict_id="d-other"), r"site 'lstm.c' is not in recording")
    unfit: tuple[tuple[str, object, str], ...] = (
        ("steps", {"kind": "SequenceEnd", "every": 1}, r"a replay needs every step"),
        ("sampling", {"rows": 5}, r"is a sample of at most 5 rows a shard"),
        ("world", {"kind": "chess", "name": "c"}, r"wanted one of kind mettagrid or gymnasium"),
    )
    for name, value, message in unfit:
        other = planted_recording.record(store, changed={name: value})
        refused(store, replace(asked, recording_id=other), message)


def test_what_is_not_in_the_store_is_named(shared) -> None:
    store, asked = shared
    for changed in ({"recording_id": "r-0"}, {"dict_id": "d-0"}):
        with pytest.raises(FileNotFoundError, match=next(iter(changed.values()))):
            check_discover(store, replace(asked, **changed))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stride_steps 0: at least 1"):
        FindingsConfig(stride_steps=0)
    with pytest.raises(ValueError, match=r"max_episodes 9: at least 10"):
        FindingsConfig(max_episodes=9)


def cart_pole(store: Store) -> str:
    """A recording of random play, of episodes of many lengths, without map and tokens.

    The first latent is the push, the second the lean, the third nothing.
    """
    factory = GymnasiumFactory.load("gym:CartPole-v1?max_steps=60")
    world = factory(1)
    names = ("pushes_right", "pole_leans_right", "cart_right")
    shard = ShardPlan(shard="s0", env_seeds=tuple(range(60)))
    plan = Plan(
        config={
            "world": factory.config,
            "site_widths": {SITE: NUM_LATENTS},
            "labels": {name: factory.labels[name].definition for name in names},
            "steps": {"kind": "EveryStep", "every": 1},
        },
        inputs={"policy": "p-0"},
        shards=(shard,),
    )
    recordings.begin(store, plan)
    tables = []
    for env_seed in shard.env_seeds:
        generator = np.random.default_rng(env_seed)
        world.reset(0, map_seed=env_seed, sim_seed=env_seed, collect_facts=False)
        actions = []
        while not (actions and world.done_R.all()):
            actions.append(generator.integers(0, 2, 1, dtype=np.int32))
            world.step(actions[-1])
        world.retire(0)
        seen = witness(world, env_seed, np.stack(actions))
        labels = compute_labels(seen.facts, names)
        x_TAD = np.zeros((len(actions), 1, NUM_LATENTS), np.float32)
        x_TAD[..., 0], x_TAD[..., 1] = labels["pushes_right"], labels["pole_leans_right"]
        x_TAD[..., 2] = generator.random((len(actions), 1)) < 0.3
        one = Episode(
            env_seed=env_seed,
            index=0,
            action_TA=np.stack(actions),
            reward_TA=seen.reward_TA,
            done_TA=seen.done_TA,
            captured_t=np.arange(len(actions), dtype=np.int32),
            activations={SITE: x_TAD},
        )
        keys = {"policy_id": "p-0", "step": 0, "world": factory.name, "episode_number": env_seed}
        tables.append(episode_rows(one, labels, **keys, site_widths={SITE: NUM_LATENTS}))
    recordings.write_shard(store, plan, shard.shard, pa.concat_tables(tables))
    recordings.commit(store, plan)
    dictionaries.save(store, DICT_ID, planted_recording.dictionary(), {})
    return plan.recording_id


def test_a_world_without_map_and_tokens_is_looked_at_by_its_labels(store: Store) -> None:
    asked = replace(ASKED, recording_id=cart_pole(store))
    asked = replace(asked, config=replace(asked.config, stride_steps=1))
    rows = {row["latents"][0]: row for row in discover(store, asked).findings.to_pylist()}
    assert rows.keys() == {0, 1, 2}
    assert (rows[0]["type"], rows[0]["name"]) == ("behavioural", "pushes_right")
    assert (rows[1]["type"], rows[1]["name"]) == ("spatial", "pole_leans_right")
    assert (rows[2]["type"], rows[2]["name"]) == ("undecided", NOTHING)
    assert np.isnan(rows[0]["share_object-based"])  # no label of that kind was recorded
    assert leading_kind(rows[1])[0] == "spatial" and leading_kind(rows[1])[1] > 0.9


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_actors_find_the_same_and_nothing_is_started_for_what_is_there(
    shared, store: Store, monkeypatch
) -> None:
    whole, asked = shared
    planted_recording.record(store)
    with Laboratory(store, num_actors=2) as laboratory:
        (made,) = laboratory.discover([asked])
    discover(whole, asked)
    assert kept(store, asked) == kept(whole, asked)
    monkeypatch.setattr(Laboratory, "start_ray", None)
    with Laboratory(store, num_actors=2) as laboratory:
        (again,) = laboratory.discover([asked])
    assert again.groups.equals(made.groups)
