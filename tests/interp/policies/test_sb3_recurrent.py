"""A rebuilt policy computes what sb3-contrib's own does; what is no MlpLstmPolicy of discrete actions is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch import nn

from interp.policies.bundle import PolicyBundle
from interp.policies.policy import Policy
from interp.policies.policy_file import PolicyFile
from interp.policies.sb3_recurrent import (
    Sb3RecurrentArchitecture,
    Sb3RecurrentPolicy,
    architecture_of,
    matches,
)
from interp.policies.taps import Edit, RecordingTap, RowEdits, untapped

OBSERVATIONS, ACTIONS, HIDDEN, ROWS, STEPS = 5, 3, 8, 4, 6
VARIANTS = {
    "default": {},
    "two layers": {"n_lstm_layers": 2},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "linear critic": {"enable_critic_lstm": False},
    "two layers, shared": {
        "n_lstm_layers": 2,
        "shared_lstm": True,
        "enable_critic_lstm": False,
    },
    "relu, own widths": {"activation_fn": nn.ReLU, "net_arch": {"pi": [7], "vf": [6, 5, 4]}},
    "no hidden layers": {"net_arch": []},
    "no biases": {"lstm_kwargs": {"bias": False}},
}


def sb3_policy(
    observation_space: spaces.Space | None = None, **kwargs
) -> RecurrentActorCriticPolicy:
    """Random weights everywhere, biases and heads too, so that a swapped tensor shows."""
    torch.manual_seed(0)
    policy = RecurrentActorCriticPolicy(
        observation_space or spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32),
        kwargs.pop("action_space", spaces.Discrete(ACTIONS)),
        lambda _: 0.0,
        lstm_hidden_size=HIDDEN,
        **kwargs,
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(std=0.5)
    return policy.requires_grad_(False)


def file_of(policy: RecurrentActorCriticPolicy, **metadata) -> PolicyFile:
    return PolicyFile(
        format="sb3", sha256="0" * 64, tensors=dict(policy.state_dict()), metadata=metadata
    )


def said_of(policy: RecurrentActorCriticPolicy) -> dict:
    """What sb3's `data` says of an activation that is not its default."""
    return {"policy_kwargs": {"activation_fn": str(policy.activation_fn)}}


def rebuilt(policy: RecurrentActorCriticPolicy) -> Sb3RecurrentPolicy:
    file = file_of(policy, **said_of(policy))
    return PolicyBundle.of(architecture_of(file), file.tensors).open()  # pyright: ignore[reportReturnType]


def observations() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(STEPS, ROWS, OBSERVATIONS)).astype(np.float32)


def sb3_steps(policy: Any, start_TR: np.ndarray):
    """Logits, values and states of the original, which is told at which rows an episode starts."""
    layers = policy.lstm_actor.num_layers
    zero = torch.zeros(layers, ROWS, HIDDEN)
    states = RNNStates((zero, zero), (zero, zero))
    for observation_RD, start_R in zip(observations(), start_TR, strict=True):
        observation, starts = torch.from_numpy(observation_RD), torch.from_numpy(start_R)
        distribution, _ = policy.get_distribution(observation, states.pi, starts)
        _, value_R1, _, states = policy.forward(observation, states, starts, deterministic=True)
        yield distribution.distribution.logits, value_R1.squeeze(1), states


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_values_and_states_are_those_of_sb3_contrib(variant: str) -> None:
    original = sb3_policy(**VARIANTS[variant])
    policy = rebuilt(original)
    start_TR = np.zeros((STEPS, ROWS), np.float32)
    start_TR[0] = 1
    start_TR[3, 1:3] = 1  # two rows begin an episode while the others go on
    layers = policy.architecture.num_layers
    state = policy.initial_state(ROWS)
    for observation_RD, start_R, (logits_RN, value_R, states) in zip(
        observations(), start_TR, sb3_steps(original, start_TR), strict=True
    ):
        for memory in state:
            memory[start_R == 1] = 0  # as the rollout loop does
        step = policy.step(observation_RD, state, untapped)
        state = step.state
        # a Categorical normalises its logits
        np.testing.assert_allclose(step.logits_RN.log_softmax(1), logits_RN, atol=1e-5)
        np.testing.assert_allclose(step.value_R, value_R, atol=1e-5)
        expected = [states.pi, states.vf] if len(state) == 4 * layers else [states.pi]
        for number, (h_LRD, c_LRD) in enumerate(expected):
            for layer in range(layers):
                at = 2 * (number * layers + layer)
                np.testing.assert_allclose(state[at], h_LRD[layer], atol=1e-5)
                np.testing.assert_allclose(state[at + 1], c_LRD[layer], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_site_is_tapped_once_with_its_width(variant: str) -> None:
    policy = rebuilt(sb3_policy(**VARIANTS[variant]))
    assert isinstance(policy, Policy)
    seen = []

    def tap(site: str, x_RD: torch.Tensor, /) -> torch.Tensor:
        seen.append((site, x_RD.shape[1]))
        return x_RD

    policy.step(observations()[0], policy.initial_state(ROWS), tap)
    assert sorted(seen) == sorted(policy.sites.items())


def test_the_last_layer_has_the_plain_names() -> None:
    policy = rebuilt(sb3_policy(n_lstm_layers=2))
    tap = RecordingTap(policy.sites)
    state = policy.step(observations()[0], policy.initial_state(ROWS), tap).state
    for site, number in (("lstm.0.h", 0), ("lstm.0.c", 1), ("lstm.h", 2), ("lstm.c", 3)):
        assert torch.equal(tap.activations[site], state[number]), site
    assert torch.equal(tap.activations["critic.h"], state[6])


@pytest.mark.parametrize(
    ("site", "now", "later"),
    [("lstm.h", True, True), ("lstm.y", True, False), ("lstm.c", False, True)],
)
def test_where_an_edit_reaches(site: str, now: bool, later: bool) -> None:
    policy = rebuilt(sb3_policy())
    edits = RowEdits(ROWS, {site: HIDDEN})
    direction_D = np.ones(HIDDEN, np.float32)
    edit = Edit(
        site=site,
        mode="add",
        dose=1.0,
        scale=0.5,
        write_D=direction_D,
        read_D=direction_D,
        read_bias=0.0,
        threshold=0.0,
    )
    edits.set_row(2, [edit])
    plain = policy.step(observations()[0], policy.initial_state(ROWS), untapped)
    edited = policy.step(
        observations()[0], policy.initial_state(ROWS), RecordingTap((), edits.tile(0, ROWS))
    )
    changed_R = (plain.logits_RN != edited.logits_RN).any(1)
    assert changed_R.tolist() == [False, False, now, False]
    plain, edited = (
        policy.step(observations()[1], step.state, untapped) for step in (plain, edited)
    )
    changed_R = (plain.logits_RN != edited.logits_RN).any(1)
    assert changed_R.tolist() == [False, False, later, False]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_architecture_survives_json(variant: str) -> None:
    architecture = rebuilt(sb3_policy(**VARIANTS[variant])).architecture
    assert Sb3RecurrentArchitecture.from_json(architecture.to_json()) == architecture


def test_a_fresh_policy_is_drawn_as_sb3_draws_it() -> None:
    torch.manual_seed(0)
    original = RecurrentActorCriticPolicy(
        spaces.Box(-1, 1, (OBSERVATIONS,), np.float32),
        spaces.Discrete(ACTIONS),
        lambda _: 0.0,
        lstm_hidden_size=256,
    )
    architecture = architecture_of(file_of(original))
    fresh, again, other = (
        Sb3RecurrentPolicy.fresh(architecture, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    for name, tensor in original.state_dict().items():
        assert torch.equal(fresh[name], again[name])
        if tensor.numel() == 1:
            assert fresh[name].item() == tensor.item() == 0, name
            continue
        assert fresh[name].std().item() == pytest.approx(tensor.std().item(), rel=0.1, abs=1e-8), (
            name
        )
        assert fresh[name].abs().max().item() == pytest.approx(
            tensor.abs().max().item(), rel=0.5, abs=1e-8
        ), name
    assert not torch.equal(fresh["action_net.weight"], other["action_net.weight"])


def test_tensors_of_others_do_not_match() -> None:
    assert matches(sb3_policy().state_dict())
    assert not matches({"encoder.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"not a policy of sb3-contrib's RecurrentPPO.*fc\.weight"):
        architecture_of(
            PolicyFile(format="sb3", sha256="0" * 64, tensors={"fc.weight": torch.zeros(1)})
        )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.pop("value_net.bias"), r"missing value_net\.bias"),
        (
            lambda tensors: tensors.update({"extra.weight": torch.zeros(2)}),
            r"unknown extra\.weight",
        ),
        (
            lambda tensors: tensors.update({"value_net.bias": torch.zeros(3)}),
            r"value_net\.bias .* has shape \[3\], wanted \[1\]",
        ),
        (
            lambda tensors: tensors.update({"lstm_actor.weight_hh_l0": torch.zeros(8, 8)}),
            "four gates",
        ),
        (
            lambda tensors: tensors.update({"lstm_actor.weight_hh_l0": torch.zeros(8)}),
            r"lstm_actor\.weight_hh_l0 .* no matrix",
        ),
        (lambda tensors: tensors.update(log_std=torch.zeros(1)), "continuous actions"),
        (
            lambda tensors: tensors.update({"features_extractor.cnn.0.weight": torch.zeros(1)}),
            "no MlpLstmPolicy",
        ),
    ],
)
def test_other_tensors_are_refused_by_name(damage, said: str) -> None:
    tensors = dict(sb3_policy().state_dict())
    damage(tensors)
    with pytest.raises(ValueError, match=said):
        architecture_of(PolicyFile(format="sb3", sha256="0" * 64, tensors=tensors))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"policy_kwargs": {"activation_fn": "<class 'torch.nn.ELU'>"}}, "known: tanh, relu"),
        (
            {"action_space": {":type:": "<class 'gymnasium.spaces.multi_discrete.MultiDiscrete'>"}},
            "only Discrete is supported",
        ),
        ({"observation_space": {"_shape": [7, 7, 3]}}, r"boxes of shape \[7, 7, 3\]"),
    ],
)
def test_what_the_file_says_of_itself_may_rule_it_out(metadata: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        architecture_of(file_of(sb3_policy(), **metadata))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "token-lstm"}, "wants 'sb3-recurrent'"),
        ({"hidden": 0}, r"hidden: .*greater than or equal to 1 \(found 0\)"),
        ({"critic": "none"}, r"critic: .*'lstm', 'linear' or 'shared'"),
        ({"policy_layers": [64, -1]}, r"policy_layers\.1: .*\(found -1\)"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_bad_architecture_is_refused(change: dict, said: str) -> None:
    content = Sb3RecurrentArchitecture(num_observations=4, num_actions=2, hidden=8).to_json()
    with pytest.raises(ValueError, match=said):
        Sb3RecurrentArchitecture.from_json({**content, **change})


def test_a_world_of_another_shape_is_refused() -> None:
    policy = rebuilt(sb3_policy())
    with pytest.raises(ValueError, match=r"observes 5 numbers, but the world shows \[4\]"):
        policy.step(np.zeros((ROWS, 4), np.float32), policy.initial_state(ROWS), untapped)
