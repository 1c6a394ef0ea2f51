"""A dictionary in the loop of a recorded policy: figures that are kept, and what is refused."""

import numpy as np
import pytest
import torch

from cluster import dictionaries, policies, recordings
from cluster.evaluation import EvaluationConfig
from cluster.recorder import RecordingConfig, RecordShard, plan_recording
from cluster.splicing import plan_splice
from cluster.staging import Split
from cluster.store import Store
from cluster.studio import Studio
from interp.dictionaries.dictionary import Dictionary
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.presets import forage
from jobs.main import main

pytestmark = pytest.mark.mettagrid
HIDDEN = 16
EPISODES = EvaluationConfig(num_episodes=10)
DICT_ID = "d-" + "0" * 16


def short_forage() -> MettagridFactory:
    config = forage()
    config.game.max_steps = 12
    return MettagridFactory(name="short-forage", config_json=config.model_dump_json())


FACTORY = short_forage()


def dictionary(width: int = HIDDEN, site: str = "lstm.h") -> Dictionary:
    """Exact: both signs of each unit."""
    both_FD = torch.cat([torch.eye(width), -torch.eye(width)])
    return Dictionary(
        W_enc=both_FD.T.contiguous(),
        b_enc=torch.zeros(2 * width),
        W_dec=both_FD,
        b_dec=torch.zeros(width),
        threshold=torch.tensor(0.0),
        mean=torch.zeros(width),
        scale=1.0,
        family="relu_l1",
        site=site,
        fvu=0.0,
        l0=float(width),
        dead_fraction=0.0,
    )


@pytest.fixture
def recorded(store: Store) -> Store:
    """A policy, its recording, and a dictionary that says all."""
    torch.manual_seed(0)
    policy = TokenLstmPolicy(architecture_for(FACTORY, hidden=HIDDEN))
    with torch.no_grad():
        policy.actor.weight.mul_(100)
    bundle = PolicyBundle.of(policy.architecture, policy.state_dict())
    card = policies.save(store, bundle, name="fresh", run="t-0", step=0, world=FACTORY.name)
    plan = plan_recording(
        store,
        card.policy_id,
        FACTORY,
        RecordingConfig(num_episodes=8, sites=("lstm.h",), labels=("landmark",)),
    )
    recordings.begin(store, plan)
    studio = Studio(store)
    for shard in plan.shards:
        studio.run(RecordShard(plan=plan, shard=shard, factory=FACTORY))
    recordings.commit(store, plan)
    dictionaries.save(store, DICT_ID, dictionary(), {"recording": plan.recording_id})
    return store


def test_what_a_dictionary_keeps_of_the_play_is_computed_once_and_kept(recorded: Store) -> None:
    task = plan_splice(recorded, DICT_ID, config=EPISODES, split=Split(), seed=0)
    assert task.question.find(recorded) is None
    figures = task.run(Studio(recorded))
    found = {(r["replaced_by"], r["metric"]): r["value"] for r in figures.to_pylist()}
    assert found["dictionary", "agreement"] == 1
    assert found["dictionary", "KL recovered"] == 1
    assert found["dictionary", "never diverges"] == 1
    assert found["random dictionary", "KL recovered"] < 1
    assert found["zero", "never diverges"] < 1
    again = plan_splice(recorded, DICT_ID, config=EPISODES, split=Split(), seed=0)
    kept = again.question.find(recorded)
    assert kept is not None
    np.testing.assert_equal(kept.to_pylist(), figures.to_pylist())


def test_the_command_prints_what_the_store_has(recorded: Store, capsys) -> None:
    task = plan_splice(recorded, DICT_ID, config=EPISODES, split=Split(), seed=0)
    task.run(Studio(recorded))
    main(
        [
            "dictionaries",
            "splice",
            DICT_ID,
            "--episodes.num-episodes",
            "10",
            "--store",
            recorded.url,
        ]
    )
    said = capsys.readouterr()
    assert said.out.strip().endswith(task.question.id)
    assert "KL recovered" in said.out + said.err
    assert "undefined" in said.out + said.err  # 12 steps give nobody a return


@pytest.mark.parametrize(
    ("known", "origin", "message"),
    [
        (dictionary(), {}, r"does not tell which recording .* --recording"),
        (dictionary(), {"recording": "r-" + "9" * 16}, r"r-9999999999999999"),
    ],
)
def test_a_dictionary_without_a_recording_is_refused(
    recorded: Store, known: Dictionary, origin, message
) -> None:
    dictionaries.save(recorded, "d-" + "1" * 16, known, origin)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plan_splice(recorded, "d-" + "1" * 16, config=EPISODES, split=Split(), seed=0)


@pytest.mark.parametrize("known", [dictionary(width=8), dictionary(site="encoder")])
def test_a_dictionary_of_another_site_is_refused_before_anything_is_played(
    recorded: Store, known: Dictionary
) -> None:
    recording_id = plan_splice(
        recorded, DICT_ID, config=EPISODES, split=Split(), seed=0
    ).recording_id
    dictionaries.save(recorded, "d-" + "2" * 16, known, {"recording": recording_id})
    with pytest.raises(ValueError, match=r"both must be the same site"):
        plan_splice(recorded, "d-" + "2" * 16, config=EPISODES, split=Split(), seed=0)
