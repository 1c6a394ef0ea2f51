"""A stored policy is the policy that was stored, and nothing else passes for one."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from interp.identity import canonical_json
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.rollout import Capture, Trial, roll
from interp.worlds.mettagrid import MettagridFactory

pytestmark = pytest.mark.mettagrid
FACTORY = MettagridFactory.load("forage")


@pytest.fixture(scope="module")
def policy() -> TokenLstmPolicy:
    torch.manual_seed(0)
    return TokenLstmPolicy(architecture_for(FACTORY))


@pytest.fixture(scope="module")
def bundle(policy: TokenLstmPolicy) -> PolicyBundle:
    return PolicyBundle.of(policy.architecture, policy.state_dict())


def through_storage(bundle: PolicyBundle) -> PolicyBundle:
    """What comes back after the architecture has been a JSON object with sorted keys."""
    return PolicyBundle(
        architecture=json.loads(canonical_json(bundle.architecture)), weights=bundle.weights
    )


def test_a_stored_policy_computes_what_the_original_did(policy, bundle) -> None:
    capture = Capture(sites=("encoder", "lstm.h", "logits"))
    with torch.no_grad():
        played = [
            next(roll(one, FACTORY(1), [Trial(env_seed=3)], capture))
            for one in (policy, through_storage(bundle).open())
        ]
    for site in capture.sites:
        np.testing.assert_array_equal(played[0].activations[site], played[1].activations[site])


def test_the_id_is_of_the_content(policy, bundle) -> None:
    assert through_storage(bundle).policy_id == bundle.policy_id
    with torch.no_grad():
        policy.critic.bias.add_(1)
    try:
        assert (
            PolicyBundle.of(policy.architecture, policy.state_dict()).policy_id != bundle.policy_id
        )
    finally:
        with torch.no_grad():
            policy.critic.bias.sub_(1)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.pop("fc.bias"), "fc.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra"),
        (lambda tensors: tensors.update({"fc.bias": torch.zeros(3)}), "fc.bias"),
        (lambda tensors: tensors["fc.bias"].fill_(float("nan")), "fc.bias holds NaN"),
    ],
)
def test_wrong_tensors_are_refused_by_name(bundle, damage, said: str) -> None:
    tensors = load(bundle.weights)
    damage(tensors)
    with pytest.raises(ValueError, match=said):
        PolicyBundle(architecture=bundle.architecture, weights=save(tensors)).open()


def test_a_truncated_file_is_refused(bundle) -> None:
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        PolicyBundle(architecture=bundle.architecture, weights=bundle.weights[:-10]).open()


def test_an_unknown_family_is_refused(bundle) -> None:
    with pytest.raises(ValueError, match="family 'transformer'; known: 'token-lstm'"):
        PolicyBundle(
            architecture={**bundle.architecture, "family": "transformer"}, weights=bundle.weights
        ).open()
