"""The loop's three promises: independence of the batch, exact pairing, and no effect of dose 0."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from interp.noise import BLOCK_STEPS, gumbel_block
from interp.policies.ppo import architecture_for
from interp.policies.taps import Edit, Mode
from interp.policies.token_lstm import TokenLstmPolicy
from interp.policies.uniform import UniformPolicy
from interp.records import Episode
from interp.rollout import Capture, EveryStep, SequenceEnd, Stride, Trial, fitting_worlds, roll
from interp.worlds.mettagrid import MettagridFactory

pytestmark = pytest.mark.mettagrid
FACTORY = MettagridFactory.load("forage")
SITES = ("encoder", "lstm.c", "lstm.h", "logits", "value")


@pytest.fixture(scope="module")
def policy() -> TokenLstmPolicy:
    torch.manual_seed(0)
    policy = TokenLstmPolicy(architecture_for(FACTORY))
    with torch.no_grad():
        policy.actor.weight.mul_(100)  # an untrained head is nearly uniform: nothing would move it
    policy.requires_grad_(False)
    return policy


def play(
    policy: TokenLstmPolicy | UniformPolicy,
    trials: Sequence[Trial],
    num_worlds: int,
    capture: Capture = Capture(),  # noqa: B008
) -> list[Episode]:
    episodes = {e.index: e for e in roll(policy, FACTORY(num_worlds), trials, capture)}
    return [episodes[index] for index in range(len(trials))]


def edit(mode: Mode = "add", dose: float = 1.0, *, site: str = "lstm.h", write=None) -> Edit:
    generator = np.random.default_rng(1)
    write_D = generator.standard_normal(128).astype(np.float32) if write is None else write
    return Edit(
        site=site,
        mode=mode,
        dose=dose,
        scale=1.0,
        write_D=write_D,
        read_D=write_D / 128,
        read_bias=0.1,
        threshold=0.0,
    )


def assert_same(left: Episode, right: Episode) -> None:
    assert left.env_seed == right.env_seed
    np.testing.assert_array_equal(left.action_TA, right.action_TA)
    np.testing.assert_array_equal(left.reward_TA, right.reward_TA)
    for site, x in left.activations.items():
        np.testing.assert_array_equal(x, right.activations[site], err_msg=site)


@pytest.mark.parametrize("num_worlds", [1, 3, 23])
def test_an_episode_does_not_depend_on_the_batch_that_it_is_played_in(policy, num_worlds) -> None:
    trials = [Trial(env_seed=seed) for seed in (7, 8, 9)]
    capture = Capture(sites=SITES, facts=True)
    alone = play(policy, trials, num_worlds, capture)
    crowd = [Trial(env_seed=100 + seed, edits=(edit(),)) for seed in range(9)]
    mixed = play(policy, [*crowd, *reversed(trials)], 16, capture)[len(crowd) :]
    for one, other in zip(alone, reversed(mixed), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("hidden", [128, 512])
def test_an_episode_does_not_depend_on_the_rows_of_a_pass(hidden: int) -> None:
    torch.manual_seed(0)
    wide = TokenLstmPolicy(replace(architecture_for(FACTORY), hidden=hidden))
    wide.requires_grad_(False)
    trials = [Trial(env_seed=seed) for seed in range(60)]
    capture = Capture(sites=SITES)
    many = play(wide, trials, 60, capture)  # 240 rows: one pass of 256 where that is exact
    for index, seed in enumerate((3, 59)):
        assert_same(
            play(wide, [Trial(env_seed=3), Trial(env_seed=59)], 2, capture)[index], many[seed]
        )


def test_worlds_that_take_turns_play_what_they_would_play_together(policy) -> None:
    trials = [Trial(env_seed=seed) for seed in range(7)]
    capture = Capture(sites=SITES, facts=True)
    together = play(policy, trials, 4, capture)
    in_turns = {e.index: e for e in roll(policy, (FACTORY(2), FACTORY(3)), trials, capture)}
    assert sorted(in_turns) == list(range(7))
    for one in together:
        assert_same(one, in_turns[one.index])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_an_episode_does_not_depend_on_its_batch_either() -> None:
    torch.manual_seed(0)
    moved = TokenLstmPolicy(architecture_for(FACTORY))
    moved.requires_grad_(False)
    moved.move(torch.device("cuda"))
    trials = [Trial(env_seed=seed, edits=(edit(),)) for seed in range(40)]
    capture = Capture(sites=SITES, precision="float16")
    in_turns = {e.index: e for e in roll(moved, (FACTORY(16), FACTORY(16)), trials, capture)}
    for index in (0, 39):
        (alone,) = play(moved, [trials[index]], 1, capture)
        assert_same(alone, in_turns[index])


def test_float16_is_what_float32_rounds_to(policy) -> None:
    exact, half = (
        play(policy, [Trial(env_seed=5)], 1, Capture(sites=SITES, precision=precision))[0]
        for precision in ("float32", "float16")
    )
    for site in SITES:
        assert half.activations[site].dtype == np.float16
        np.testing.assert_array_equal(
            half.activations[site], exact.activations[site].astype(np.float16)
        )


def test_as_many_worlds_as_memory_trials_and_speed_allow() -> None:
    spec = FACTORY.spec
    sites = {"lstm.h": 128, "lstm.c": 128}
    assert fitting_worlds(spec, sites, 1000) == 64
    assert fitting_worlds(spec, {}, 1000) == 128  # nothing is captured: passes of 512 rows
    assert fitting_worlds(spec, sites, 7) == 7
    endless = replace(spec, max_steps=1_000_000)
    assert fitting_worlds(endless, sites, 1000) == 1
    assert fitting_worlds(replace(spec, max_steps=10_000), sites, 1000) == 25


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("site", ["encoder", "lstm.c", "lstm.h", "lstm.y"])
def test_dose_zero_changes_nothing(policy, mode: Mode, site: str) -> None:
    base, edited = play(
        policy,
        [Trial(env_seed=5), Trial(env_seed=5, edits=(edit(mode, 0.0, site=site),))],
        2,
        Capture(sites=SITES),
    )
    assert_same(base, edited)


def test_an_edit_moves_the_policy(policy) -> None:
    base, edited = play(policy, [Trial(env_seed=5), Trial(env_seed=5, edits=(edit(),))], 2)
    assert (base.action_TA != edited.action_TA).any()


def test_sites_persist_as_they_say(policy) -> None:
    """On the first step an edit of y or h moves the logits and one of c does not; only h and c reach the memory."""
    moved = {}
    for site in ("lstm.y", "lstm.h", "lstm.c"):
        base, edited = play(
            policy,
            [Trial(env_seed=5), Trial(env_seed=5, edits=(edit(site=site),))],
            2,
            Capture(sites=("logits", "lstm.h")),
        )
        moved[site] = (
            not np.array_equal(base.activations["logits"][0], edited.activations["logits"][0]),
            not np.array_equal(base.activations["lstm.h"][0], edited.activations["lstm.h"][0]),
        )
    assert moved == {"lstm.y": (True, False), "lstm.h": (True, True), "lstm.c": (False, False)}


def test_only_the_chosen_agents_are_edited(policy) -> None:
    base, edited = play(
        policy,
        [Trial(env_seed=5), Trial(env_seed=5, edits=(edit(),), agents=(2,))],
        2,
        Capture(sites=("lstm.h",)),
    )
    first = base.activations["lstm.h"][0] != edited.activations["lstm.h"][0]
    assert first.any(1).tolist() == [False, False, True, False]


def test_a_replay_of_its_own_actions_gives_the_same_activations(policy) -> None:
    capture = Capture(sites=("lstm.h",))
    (played,) = play(policy, [Trial(env_seed=5)], 1, capture)
    (replayed,) = play(policy, [Trial(env_seed=5, action_TA=played.action_TA)], 1, capture)
    assert_same(played, replayed)


def test_a_replay_plays_the_given_actions_whatever_the_policy_wants(policy) -> None:
    (random_play,) = play(UniformPolicy(FACTORY.spec.action_names), [Trial(env_seed=5)], 1)
    (replayed,) = play(policy, [Trial(env_seed=5, action_TA=random_play.action_TA)], 1)
    np.testing.assert_array_equal(replayed.reward_TA, random_play.reward_TA)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (EveryStep(), range(256)),
        (Stride(100), [0, 100, 200]),
        (SequenceEnd(), [255]),
    ],
)
def test_capture_keeps_the_steps_that_were_asked_for(policy, steps, expected) -> None:
    whole, sparse = (
        play(policy, [Trial(env_seed=5)], 1, Capture(sites=("lstm.h",), steps=kind))[0]
        for kind in (EveryStep(), steps)
    )
    assert sparse.captured_t.tolist() == list(expected)
    np.testing.assert_array_equal(
        sparse.activations["lstm.h"], whole.activations["lstm.h"][list(expected)]
    )


def test_step_agrees_with_torchs_lstm(policy) -> None:
    (episode,) = play(
        policy, [Trial(env_seed=5)], 1, Capture(sites=("encoder", "lstm.h", "logits", "value"))
    )
    h_TAD, _ = policy.lstm(torch.from_numpy(episode.activations["encoder"]))
    torch.testing.assert_close(
        h_TAD, torch.from_numpy(episode.activations["lstm.h"]), rtol=1e-4, atol=1e-5
    )


def test_noise_is_a_function_of_its_key_alone() -> None:
    np.testing.assert_array_equal(gumbel_block(3, 2, 4, 5), gumbel_block(3, 2, 4, 5))
    first = gumbel_block(3, 0, 4, 5)
    for other in (gumbel_block(4, 0, 4, 5), gumbel_block(3, 1, 4, 5)):
        assert not np.array_equal(first, other)


def test_sampling_follows_the_softmax_of_the_logits() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1]))
    noise = np.concatenate([gumbel_block(seed, 0, 8, 3).reshape(-1, 3) for seed in range(80)])
    share = np.bincount((logits + noise).argmax(1), minlength=3) / len(noise)
    np.testing.assert_allclose(share, [0.6, 0.3, 0.1], atol=4 * 0.5 / np.sqrt(80 * 8 * BLOCK_STEPS))


def test_an_unknown_site_is_refused_with_those_there_are(policy) -> None:
    with pytest.raises(ValueError, match=r"site 'lstm.out' not in policy; it has encoder"):
        roll(policy, FACTORY(1), [Trial(env_seed=0)], Capture(sites=("lstm.out",)))


def test_an_edit_of_the_wrong_width_is_refused(policy) -> None:
    trial = Trial(env_seed=0, edits=(edit(write=np.zeros(64, np.float32)),))
    with pytest.raises(ValueError, match=r"width 64, but the site has 128"):
        roll(policy, FACTORY(1), [trial])


def test_a_policy_of_other_actions_is_refused() -> None:
    with pytest.raises(ValueError, match="acts by"):
        roll(UniformPolicy(("noop", "jump")), FACTORY(1), [Trial(env_seed=0)])


def test_a_world_whose_tokens_mean_something_else_is_refused() -> None:
    """In hazard the tags from the turret on are others than in forage: walls would be turrets, without a word."""
    forage, hazard = (MettagridFactory.load(name) for name in ("forage", "hazard"))
    policy = TokenLstmPolicy(architecture_for(forage))
    with pytest.raises(ValueError, match=r"other tags than hazard has"):
        list(roll(policy, hazard(1), [Trial(env_seed=0)]))
