"""What is lost with a dictionary in the loop: nothing with a perfect one, everything with an empty one, by hand.

The policy balances a pole: its choice is the sign of a sum of what it sees, which passes one site on the way.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from interp.dictionaries.control import random_dictionary
from interp.dictionaries.dictionary import Dictionary
from interp.policies.policy import State, Step
from interp.policies.taps import Splice, Tap
from interp.rollout import Capture, Trial, roll
from interp.steering.splicing import (
    DICTIONARY,
    MEAN,
    RANDOM,
    UNTOUCHED,
    ZERO,
    Held,
    Reconstruction,
    play_spliced,
    splice_table,
    splices_of,
)
from interp.worlds.gymnasium import GymnasiumFactory

SITE, WIDTH = "state", 4
FACTORY = GymnasiumFactory.load("gym:CartPole-v1?max_steps=60")
SEEDS = range(24)
IDENTITY = {"policy_name": "balancer", "dict_id": "d-0", "site": SITE}
BALANCE_D = torch.tensor([0.2, 0.5, 5.0, 2.0])
"""Pushes towards where the pole falls."""


class Balancer:
    """Logits are ±z and the value is z², where z is what the site says along `BALANCE_D`."""

    sites: Mapping[str, int] = {SITE: WIDTH, "logits": 2, "value": 1}
    action_names = FACTORY.spec.action_names
    device = torch.device("cpu")

    def initial_state(self, num_rows: int) -> State:
        return (torch.zeros(num_rows, 1),)

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
        x_RD = tap(SITE, torch.from_numpy(observation_R.astype(np.float32)))
        z_R1 = (x_RD * BALANCE_D).sum(1, keepdim=True)
        value_R1 = tap("value", z_R1.square())
        return Step(tap("logits", torch.cat([-4 * z_R1, 4 * z_R1], 1)), value_R1[:, 0], state)


def dictionary(*, kept: float = 1.0) -> Dictionary:
    """Both signs of each coordinate; what it writes is `kept` of what it reads."""
    both_FD = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    return Dictionary(
        W_enc=both_FD.T.contiguous(),
        b_enc=torch.zeros(2 * WIDTH),
        W_dec=kept * both_FD,
        b_dec=torch.zeros(WIDTH),
        threshold=torch.tensor(0.0),
        mean=torch.zeros(WIDTH),
        scale=1.0,
        family="relu_l1",
        site=SITE,
        l0=4.0,
    )


def control() -> Dictionary:
    rows = np.random.default_rng(0).standard_normal((500, WIDTH)).astype(np.float32)
    return random_dictionary(replace(dictionary(), l0=1.0), rows, seed=0)


@cache
def figures(kept: float) -> dict[tuple[str, str], tuple[float, float, float]]:
    ways = play_spliced(
        Balancer(), FACTORY(len(SEEDS)), splices_of(dictionary(kept=kept), control()), list(SEEDS)
    )
    table = splice_table(ways, identity=IDENTITY, seed=0).to_pylist()
    assert {row["n_episodes"] for row in table} == {len(SEEDS)}
    return {(r["replaced_by"], r["metric"]): (r["value"], r["lo"], r["hi"]) for r in table}


def test_a_dictionary_that_says_all_loses_nothing() -> None:
    found = figures(1.0)
    assert found[DICTIONARY, "return"] == found[UNTOUCHED, "return"]
    for metric, value in {
        "return recovered": 1.0,
        "KL recovered": 1.0,
        "KL (nats)": 0.0,
        "agreement": 1.0,
        "value error": 0.0,
        "never diverges": 1.0,
    }.items():
        assert found[DICTIONARY, metric] == (value, value, value), metric


def test_a_dictionary_that_says_nothing_is_the_mean_row() -> None:
    found = figures(0.0)
    for metric in ("return recovered", "KL recovered"):
        assert found[DICTIONARY, metric][0] == 0
    assert found[MEAN, "return"] == found[ZERO, "return"]  # the mean of this one is 0
    assert found[DICTIONARY, "agreement"][0] < 0.8
    assert found[DICTIONARY, "value error"][0] > 0.5
    assert found[DICTIONARY, "never diverges"][0] < 0.5


def test_what_keeps_some_of_it_lies_between() -> None:
    found = figures(0.3)
    value, lo, hi = found[DICTIONARY, "return recovered"]
    assert 0.3 < lo <= value <= hi
    assert 0 < found[DICTIONARY, "KL recovered"][0] < 0.99
    # the sign is kept, and with it the preferred action
    assert found[DICTIONARY, "agreement"][0] == 1
    assert found[DICTIONARY, "KL (nats)"][0] > 0


def test_random_directions_of_equal_sparsity_do_worse_than_the_truth() -> None:
    found = figures(1.0)
    assert 0 < found[RANDOM, "KL recovered"][2] < found[DICTIONARY, "KL recovered"][1]
    assert found[RANDOM, "agreement"][2] < found[DICTIONARY, "agreement"][1]


def test_the_control_is_as_sparse_and_at_its_best() -> None:
    rows_ND = np.random.default_rng(1).standard_normal((400, WIDTH)).astype(np.float32)
    known = random_dictionary(replace(dictionary(), l0=2.2), rows_ND, seed=0)
    x_ND = torch.from_numpy(rows_ND)
    assert (known.encode(x_ND) > 0).sum(1).max() == 2

    def error(gain: float) -> float:
        changed = replace(known, W_dec=gain * known.W_dec)
        return float((x_ND - changed.decode(changed.encode(x_ND))).square().sum())

    assert error(1.0) < min(error(0.8), error(1.2), error(0.0))


def test_nothing_is_recovered_of_a_return_that_was_never_there() -> None:
    """A policy that plays as badly as the mean row has no share to tell."""

    class Careless(Balancer):
        def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
            return super().step(np.zeros_like(observation_R), state, tap)

    ways = play_spliced(
        Careless(), FACTORY(24), splices_of(dictionary(kept=0.5), control()), list(SEEDS)
    )
    (row,) = (
        r
        for r in splice_table(ways, identity=IDENTITY, seed=0).to_pylist()
        if (r["replaced_by"], r["metric"]) == (DICTIONARY, "return recovered")
    )
    assert np.isnan([row["value"], row["lo"], row["hi"]]).all()


def test_what_runs_away_is_said_to_and_has_no_figures() -> None:
    ways = play_spliced(
        Balancer(), FACTORY(24), splices_of(dictionary(kept=1e38), control()), list(SEEDS)
    )
    table = splice_table(ways, identity=IDENTITY, seed=0).to_pylist()
    found = {(r["replaced_by"], r["metric"]): r["value"] for r in table}
    assert found[DICTIONARY, "stays finite"] < 1
    assert np.isnan([found[DICTIONARY, "KL recovered"], found[DICTIONARY, "value error"]]).all()
    assert found[RANDOM, "stays finite"] == 1
    assert np.isfinite(found[RANDOM, "KL recovered"])


def test_a_row_without_a_splice_is_untouched_beside_one_with() -> None:
    capture = Capture(sites=(SITE, "logits"))
    splice = Splice(SITE, Held(np.full(WIDTH, 7, np.float32)))
    trials = [Trial(env_seed=seed, edits=edits) for seed in range(5) for edits in ((), (splice,))]
    mixed = sorted(roll(Balancer(), FACTORY(10), trials, capture), key=lambda e: e.index)
    alone = sorted(
        roll(Balancer(), FACTORY(3), [trials[i] for i in range(0, 10, 2)], capture),
        key=lambda e: e.index,
    )
    for one, other in zip(alone, mixed[::2], strict=True):
        np.testing.assert_array_equal(one.action_TA, other.action_TA)
        for site, x in one.activations.items():
            np.testing.assert_array_equal(x, other.activations[site])
    assert all((one.activations[SITE] == 7).all() for one in mixed[1::2])


def test_a_reconstruction_is_the_same_to_the_last_bit_whatever_is_beside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    known = replace(dictionary(), W_enc=torch.randn(4, 8, generator=generator))
    x_RD = torch.randn(256, WIDTH, generator=generator)
    whole = Reconstruction(known)(x_RD)
    for rows in (1, 64, 100):
        torch.testing.assert_close(Reconstruction(known)(x_RD[:rows]), whole[:rows], rtol=0, atol=0)


def test_what_cannot_be_put_in_the_place_of_a_site_is_refused() -> None:
    elsewhere = replace(
        dictionary(), target_site="other", out_mean=torch.zeros(WIDTH), out_scale=1.0
    )
    with pytest.raises(ValueError, match=r"predicts other from state"):
        Reconstruction(elsewhere)
    with pytest.raises(ValueError, match=r"L0 was never measured"):
        random_dictionary(
            replace(dictionary(), l0=float("nan")), np.zeros((4, 4), np.float32), seed=0
        )
    wide = Splice(SITE, Held(np.zeros(5, np.float32)))
    with pytest.raises(ValueError, match=r"edit of state has width 5, but the site has 4"):
        list(roll(Balancer(), FACTORY(1), [Trial(env_seed=0, edits=(wide,))]))
