"""Every kind of network that a policy can be kept as. A new one is a module of its own and a line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.policies import (
    mettagrid_box,
    mettagrid_flat,
    mettagrid_perceiver,
    rllib_lstm,
    sb3_recurrent,
    token_lstm,
    torch_module,
)
from interp.policies.architecture import Architecture
from interp.policies.mettagrid_box import BoxArchitecture, BoxNetwork
from interp.policies.mettagrid_flat import FlatArchitecture, FlatNetwork
from interp.policies.mettagrid_perceiver import PerceiverArchitecture, PerceiverNetwork
from interp.policies.policy import PolicyNetwork
from interp.policies.policy_file import PolicyFile
from interp.policies.rllib_lstm import RllibLstmArchitecture, RllibLstmPolicy
from interp.policies.sb3_recurrent import Sb3RecurrentArchitecture, Sb3RecurrentPolicy
from interp.policies.tensors import check_tensors
from interp.policies.token_lstm import TokenLstmArchitecture, TokenLstmPolicy
from interp.policies.torch_module import TorchModuleArchitecture, TorchModulePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of network: how it is built, and how it is told from others by a policy file."""

    name: str
    about: str
    """For people: what its files are."""
    network: Callable[[Mapping[str, Any]], PolicyNetwork]
    """The network, with weights yet to be loaded, from what `Architecture.to_json` gave.

    Raises ValueError if a field is missing, unknown or out of range."""
    recognise: Callable[[PolicyFile], Architecture | None]
    """The architecture that the tensors of a file have; None if they are of another family.

    Raises ValueError if they are of this one, but cannot be run; the message says why."""
    is_ours: bool = True
    """Whether the network is made by code of ours alone, so that it can be laid out without memory."""


FAMILIES = (
    Family(
        name=token_lstm.FAMILY,
        about="our own",
        network=lambda content: TokenLstmPolicy(TokenLstmArchitecture.from_json(content)),
        recognise=token_lstm.recognise,
    ),
    Family(
        name=mettagrid_box.FAMILY,
        about="mettagrid's convolutional network with an LSTM, of 2025-07 and 2025-08",
        network=lambda content: BoxNetwork(BoxArchitecture.from_json(content)),
        recognise=mettagrid_box.recognise,
    ),
    Family(
        name=mettagrid_perceiver.FAMILY,
        about="mettagrid's perceiver with an LSTM, of 2025-10 to 2025-12",
        network=lambda content: PerceiverNetwork(PerceiverArchitecture.from_json(content)),
        recognise=mettagrid_perceiver.recognise,
    ),
    Family(
        name=mettagrid_flat.FAMILY,
        about="mettagrid's stock networks, with an LSTM and without, of 2025-09 to 2026-01",
        network=lambda content: FlatNetwork(FlatArchitecture.from_json(content)),
        recognise=mettagrid_flat.recognise,
    ),
    Family(
        name=sb3_recurrent.FAMILY,
        about="RecurrentPPO of sb3-contrib",
        network=lambda content: Sb3RecurrentPolicy(Sb3RecurrentArchitecture.from_json(content)),
        recognise=sb3_recurrent.recognise,
    ),
    Family(
        name=rllib_lstm.FAMILY,
        about="PPO of RLlib with an LSTM",
        network=lambda content: RllibLstmPolicy(RllibLstmArchitecture.from_json(content)),
        recognise=rllib_lstm.recognise,
    ),
    Family(
        name=torch_module.FAMILY,
        about="any torch module of yours, by --factory package.module:callable",
        network=lambda content: TorchModulePolicy(TorchModuleArchitecture.from_json(content)),
        recognise=torch_module.recognise,
        is_ours=False,
    ),
)


def build(architecture: Mapping[str, Any], weights: Mapping[str, Tensor]) -> PolicyNetwork:
    """The network that an architecture describes, for weights that are yet to be loaded.

    Memory is taken for it only if the weights have its names and shapes: an architecture is a claim that costs nothing.

    Raises:
        ValueError: no such family, one of its fields is wrong, or the weights are another network's.
    """
    name = architecture.get("family")
    family = next((one for one in FAMILIES if one.name == name), None)
    if family is None:
        raise ValueError(
            f"architecture family {name!r:.80}; known: {', '.join(repr(one.name) for one in FAMILIES)}"
        )
    if family.is_ours:
        try:
            with torch.device("meta"):
                expected = family.network(architecture).state_dict()
        except (RuntimeError, OverflowError) as error:
            raise ValueError(f"architecture of family {name}: no such network: {error}") from error
        check_tensors(weights, expected, of=f"family {name}", hint="its weights are not its own")
    return family.network(architecture)
