"""Sequences of recordings in a store: cut once, found again, and their rows in the recording and in replays of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster import policies, recordings, sequences
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.recordings import Plan
from cluster.sequences import CutConfig
from cluster.store import Store
from cluster.studio import Studio
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.recording import activations
from interp.rollout import CaptureSteps, EveryStep, SequenceEnd
from interp.sequences import ByEvent, ByLength, ByStrategy, sequences_of
from interp.worlds.mettagrid import MettagridFactory

pytestmark = pytest.mark.mettagrid
EVERY_STEP = EveryStep()
FACTORY = MettagridFactory.load("forage")
CONFIG = RecordingConfig(
    first_env_seed=50,
    num_episodes=3,
    episodes_per_shard=2,
    sites=("lstm.h",),
    labels=("exploration", "landmark"),
)


def add_policy(store: Store, seed: int = 0) -> str:
    torch.manual_seed(seed)
    policy = TokenLstmPolicy(architecture_for(FACTORY))
    bundle = PolicyBundle.of(policy.architecture, policy.state_dict())
    return policies.save(
        store, bundle, name=f"fresh-{seed}", run="t-0", step=0, world="forage"
    ).policy_id


def record(store: Store, plan: Plan, steps: CaptureSteps = EVERY_STEP) -> str:
    studio = Studio(store)
    recordings.begin(store, plan)
    for shard in plan.shards:
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY, steps=steps))
    recordings.commit(store, plan)
    return plan.recording_id


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    store = Store.open(tmp_path_factory.mktemp("sequences"))
    return store, record(store, plan_recording(store, add_policy(store), FACTORY, CONFIG))


def test_every_step_of_every_episode_is_in_one_sequence_of_fixed_length(recorded) -> None:
    store, recording_id = recorded
    _, table = sequences.cut(store, recording_id, ByLength(min_steps=1, max_steps=50))
    per_track = -(-FACTORY.spec.max_steps // 50)
    assert table.num_rows == 3 * FACTORY.spec.num_agents * per_track
    assert sum(table.column("num_steps").to_pylist()) == 3 * FACTORY.spec.num_agents * 256


def test_rows_are_those_of_the_recording(recorded) -> None:
    store, recording_id = recorded
    sequences_id, table = sequences.cut(store, recording_id, ByEvent(label="landmark"))
    assert table.num_rows > 3
    rows = sequences.read_rows(store, sequences_id)
    whole = recordings.open_manifest(store, recording_id)
    whole = {
        (row["env_seed"], row["agent"], row["t"]): row
        for shard in recordings.shard_tables(store, whole)
        for row in shard.to_pylist()
    }
    for number, one in enumerate(sequences_of(table)):
        found = rows.filter(np.array(rows.column("sequence").to_numpy() == number)).to_pylist()
        wanted = [whole[one.env_seed, one.agent, t] for t in range(one.first_t, one.first_t + 21)]
        assert [{"sequence": number, **row} for row in wanted] == found
        assert found[10]["label.landmark"]
        assert not found[9]["label.landmark"]


def test_they_are_cut_once(recorded, monkeypatch) -> None:
    store, recording_id = recorded
    choice = ByStrategy(label="exploration", min_steps=5, max_steps=20, min_share=0.5)
    sequences_id, table = sequences.cut(store, recording_id, choice)
    monkeypatch.setattr(sequences, "extract", None)
    assert sequences.cut(store, recording_id, choice) == (sequences_id, table)
    assert sequences_id in sequences.known_ids(store)
    note = sequences.read_note(store, sequences_id)
    assert (note.recording_id, note.num_sequences) == (recording_id, table.num_rows)
    assert note.how == "ByStrategy label exploration, max_steps 20, min_share 0.5, min_steps 5"
    assert all(one.label_share >= 0.5 for one in sequences_of(table))


def test_of_too_many_an_even_sample_is_kept(recorded) -> None:
    store, recording_id = recorded
    choice = ByLength(min_steps=5, max_steps=10)
    all_id, everything = sequences.cut(store, recording_id, choice)
    some_id, some = sequences.cut(store, recording_id, choice, CutConfig(most=40))
    assert (some.num_rows, all_id != some_id) == (40, True)
    known, kept = sequences_of(everything), sequences_of(some)
    assert kept == [one for one in known if one in kept]
    assert len({one.env_seed for one in kept}) == 3
    _, others = sequences.cut(store, recording_id, choice, CutConfig(most=40, salt="other"))
    assert others != some


def test_another_policy_shown_the_episodes_has_the_same_sequences(recorded) -> None:
    store, recording_id = recorded
    sequences_id, table = sequences.cut(store, recording_id, ByEvent(label="landmark"))
    other = add_policy(store, seed=1)
    replay = record(store, plan_recording(store, other, FACTORY, CONFIG, replay_of=recording_id))
    own = sequences.read_rows(store, sequences_id)
    shown = sequences.read_rows(store, sequences_id, recording_id=replay)
    for column in ("sequence", "env_seed", "agent", "t", "action", "reward"):
        assert shown.column(column) == own.column(column)
    assert not np.array_equal(activations(own, "lstm.h"), activations(shown, "lstm.h"))
    ends = sequences.read_rows(store, sequences_id, recording_id=replay, ends_only=True)
    is_end = np.diff(shown.column("sequence").to_numpy(), append=-1) != 0
    assert ends == shown.filter(is_end).combine_chunks()
    assert ends.num_rows == table.num_rows


def test_what_cannot_be_cut_is_refused(recorded) -> None:
    store, recording_id = recorded
    with pytest.raises(ValueError, match=r"label 'combat' is not in recording .* exploration, lan"):
        sequences.cut(store, recording_id, ByEvent(label="combat"))
    with pytest.raises(ValueError, match=r"has no sequence of ByLength\(min_steps=300"):
        sequences.cut(store, recording_id, ByLength(min_steps=300, max_steps=300))
    policy = plan_recording(store, add_policy(store), FACTORY, CONFIG).inputs["policy"]
    plan = plan_recording(store, policy, FACTORY, CONFIG, steps=SequenceEnd())
    ends = record(store, plan, steps=SequenceEnd())
    with pytest.raises(ValueError, match=r"kept the steps .*; sequences are cut from every step"):
        sequences.cut(store, ends, ByLength())
    sequences_id, _ = sequences.cut(store, recording_id, ByLength())
    part = replace(CONFIG, num_episodes=2)
    part = plan_recording(store, policy, FACTORY, part, replay_of=recording_id)
    with pytest.raises(
        ValueError, match=r"no episode of env_seed 52, of which there are sequences"
    ):
        sequences.read_rows(store, sequences_id, recording_id=record(store, part))
    with pytest.raises(ValueError, match=r"is neither .*, from which .* were cut, nor a replay"):
        sequences.read_rows(store, sequences_id, recording_id=ends)
    with pytest.raises(FileNotFoundError, match=r"sequences s-0 are not in store"):
        sequences.read_rows(store, "s-0")
