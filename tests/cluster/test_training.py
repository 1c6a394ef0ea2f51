"""Training runs in the store: found when finished, resumed when not."""

import itertools
from pathlib import Path

import pytest

from cluster import policies, training
from cluster.backends import Corrupt
from cluster.store import Store
from interp.policies.ppo import PpoConfig
from interp.worlds.mettagrid import MettagridFactory

pytestmark = pytest.mark.mettagrid
FACTORY = MettagridFactory.load("forage")
UPDATES = 20
CONFIG = PpoConfig(num_worlds=8, budget_agent_steps=UPDATES * 8 * 4 * 32, num_checkpoints=4)


def finish(store: Store) -> training.TrainedRun:
    for _ in training.train(store, CONFIG):
        pass
    run = training.find_run(store, CONFIG, FACTORY)
    assert run is not None
    return run


def test_an_interrupted_run_ends_with_the_same_policies(tmp_path: Path) -> None:
    whole = finish(Store.open(tmp_path / "whole"))
    store = Store.open(tmp_path / "cut")
    for _ in itertools.islice(training.train(store, CONFIG), UPDATES // 2):
        pass  # stopped half-way, as by Ctrl-C
    assert training.find_run(store, CONFIG, FACTORY) is None
    first = next(training.train(store, CONFIG))
    assert first.step > 0  # it goes on, it does not begin again
    assert finish(store) == whole


def test_checkpoints_are_ordered_and_begin_untrained(store: Store) -> None:
    run = finish(store)
    steps = [card.step for card in run.checkpoints]
    assert steps == sorted(steps)
    assert steps[0] == 0
    assert steps[-1] == CONFIG.budget_agent_steps
    assert {card.run for card in run.checkpoints} == {run.run_id}


def test_a_policy_whose_weights_were_swapped_is_refused(store: Store) -> None:
    run = finish(store)
    first, last = run.checkpoints[0].policy_id, run.checkpoints[-1].policy_id
    swapped = store.local_path(f"policies/{last}/weights.safetensors")
    swapped.write_bytes(store.get(f"policies/{first}/weights.safetensors"))
    with pytest.raises(Corrupt, match=rf"policies/{last}/weights\.safetensors"):
        policies.load(store, last)
