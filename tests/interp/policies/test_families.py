"""An architecture is a claim that anybody may have written: nothing is built, or taken memory for, on its word."""

import resource
import time
from typing import Any

import pytest
import torch

from interp.policies.architecture import Architecture
from interp.policies.bundle import PolicyBundle
from interp.policies.families import FAMILIES
from interp.policies.policy import PolicyNetwork
from interp.policies.rllib_lstm import RllibLstmArchitecture, RllibLstmPolicy
from interp.policies.sb3_recurrent import Sb3RecurrentArchitecture, Sb3RecurrentPolicy
from interp.policies.token_lstm import TokenLstmArchitecture, TokenLstmPolicy
from tests.interp.policies.test_mettagrid_networks import NETWORKS

SMALL: dict[str, tuple[Architecture, PolicyNetwork]] = {}


def keep(architecture: Architecture, network: PolicyNetwork) -> None:
    SMALL[architecture.to_json()["family"]] = (architecture, network)


for _make in NETWORKS.values():
    _network = _make()
    keep(_network.architecture, _network)  # pyright: ignore[reportArgumentType]
_own = TokenLstmArchitecture(
    window_rows=3,
    window_cols=3,
    features={"tag": 1, "inv:ore": 2},
    tags=("type:wall",),
    action_names=("noop", "move"),
    embedding=4,
    hidden=4,
)
keep(_own, TokenLstmPolicy(_own))
_sb3 = Sb3RecurrentArchitecture(num_observations=3, num_actions=2, hidden=4)
keep(_sb3, Sb3RecurrentPolicy(_sb3))
_rllib = RllibLstmArchitecture(
    num_observations=3,
    num_actions=2,
    hidden=4,
    encoder_layers=(5,),
    encoder_activation="tanh",
    head_layers=(),
    head_activation="tanh",
    shared=True,
)
keep(_rllib, RllibLstmPolicy(_rllib))

WRONG: tuple[Any, ...] = (
    None,
    -1,
    0,
    1 << 19,
    1 << 40,
    1.5,
    True,
    "x" * 9,
    [],
    [1 << 19],
    {},
    {"a": 1 << 19},
)
CASES = [
    (family, field, value)
    for family, (architecture, _) in SMALL.items()
    for field in architecture.to_json()
    for value in WRONG
]


def test_every_family_of_ours_is_tried() -> None:
    assert SMALL.keys() == {family.name for family in FAMILIES if family.is_ours}


@pytest.mark.parametrize("family", SMALL)
def test_an_architecture_opens_with_its_own_weights_only(family: str) -> None:
    architecture, network = SMALL[family]
    bundle = PolicyBundle.of(architecture, network.state_dict())
    assert bundle.open().sites == network.sites
    for other, (_, strange) in SMALL.items():
        if other != family:
            with pytest.raises(ValueError, match=rf"family {family}: (missing|unknown)"):
                PolicyBundle.of(architecture, strange.state_dict()).open()


@pytest.mark.parametrize("family", SMALL)
def test_a_false_claim_is_refused_at_once_and_takes_no_memory(family: str) -> None:
    architecture, network = SMALL[family]
    weights = network.state_dict()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for name, field, value in CASES:
        if name != family:
            continue
        content = {**architecture.to_json(), field: value}
        if content == architecture.to_json():
            continue
        start = time.monotonic()
        bundle = PolicyBundle(
            architecture=content, weights=PolicyBundle.of(architecture, weights).weights
        )
        try:
            opened = bundle.open()
        except ValueError as error:
            refused += bundle.policy_id in str(error)
        else:  # a setting that no shape shows, such as an activation or a name
            assert opened.initial_state(1) is not None
        assert time.monotonic() - start < 5, (field, value)
    taken_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert taken_kib < 512 * 1024
    assert refused > len(architecture.to_json()) * 4


@pytest.mark.parametrize("family", SMALL)
def test_fields_are_all_there_and_no_others(family: str) -> None:
    architecture, network = SMALL[family]
    content = architecture.to_json()
    weights = PolicyBundle.of(architecture, network.state_dict()).weights
    with pytest.raises(ValueError, match=rf"family {family}: extra: Unexpected"):
        PolicyBundle(architecture={**content, "extra": 1}, weights=weights).open()
    first = next(name for name in content if name != "family")
    del content[first]
    with pytest.raises(ValueError, match=rf"family {family}: {first}: Field required"):
        PolicyBundle(architecture=content, weights=weights).open()
    with pytest.raises(ValueError, match="architecture family 'none'; known: 'token-lstm'"):
        PolicyBundle(architecture={"family": "none"}, weights=weights).open()


def test_a_row_of_a_table_that_is_not_there_is_refused() -> None:
    architecture, network = SMALL["mettagrid-box"]
    weights = PolicyBundle.of(architecture, network.state_dict()).weights
    for change in (
        {"action_rows": [3, 1, 99]},
        {"features": {"hp": 3}},
        {"norms": [1.0, 0.0, 1.0]},
    ):
        bundle = PolicyBundle(architecture={**architecture.to_json(), **change}, weights=weights)
        with pytest.raises(ValueError, match=r"none of the|norm of 0"):
            bundle.open()


def test_weights_that_are_not_finite_are_refused() -> None:
    architecture, network = SMALL["token-lstm"]
    tensors = {name: one.clone() for name, one in network.state_dict().items()}
    tensors["actor.bias"][0] = torch.nan
    with pytest.raises(ValueError, match=r"tensor actor\.bias holds NaN"):
        PolicyBundle.of(architecture, tensors).open()


@pytest.mark.parametrize(
    ("family", "table"),
    [
        ("mettagrid-box", "components._action_embeds_.active_indices"),
        ("mettagrid-box", "components.obs_normalizer.obs_norm"),
        ("mettagrid-perceiver", "_norm_factors"),
    ],
)
def test_tables_among_the_weights_are_those_that_were_checked(family: str, table: str) -> None:
    architecture, network = SMALL[family]
    tensors = {
        name: one * 0 + 77 if name.endswith(table) else one
        for name, one in network.state_dict().items()
    }
    with pytest.raises(ValueError, match="not those of the architecture"):
        PolicyBundle.of(architecture, tensors).open()
