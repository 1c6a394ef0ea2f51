"""A policy of RLlib is rebuilt from its checkpoint: no class of the files is imported; the numbers are its own."""

import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from interp.policies.bundle import PolicyBundle
from interp.policies.formats.reading import read_policy_file
from interp.policies.policy import Policy
from interp.policies.recognition import recognise
from interp.policies.rllib_lstm import RllibLstmArchitecture, RllibLstmPolicy
from interp.policies.taps import Edit, RecordingTap, RowEdits, untapped

OBSERVATIONS, ACTIONS, HIDDEN, ROWS, STEPS = 4, 3, 8, 4, 6
MODULE = "ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module"
DEFAULTS: dict[str, Any] = {
    "fcnet_hiddens": [7, 6],
    "fcnet_activation": "tanh",
    "fcnet_use_layernorm": False,
    "head_fcnet_hiddens": [],
    "head_fcnet_activation": "relu",
    "head_fcnet_use_layernorm": False,
    "vf_share_layers": True,
    "use_lstm": True,
    "lstm_cell_size": HIDDEN,
    "lstm_use_prev_action": False,
    "lstm_use_prev_reward": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "own critic": {"vf_share_layers": False},
    "own critic, heads": {
        "vf_share_layers": False,
        "fcnet_activation": "ReLU",
        "head_fcnet_hiddens": [5, 9],
        "head_fcnet_activation": "swish",
    },
    "linear": {"fcnet_activation": "linear", "head_fcnet_hiddens": [5]},
    "no activations": {
        "fcnet_activation": None,
        "head_fcnet_hiddens": [5],
        "head_fcnet_activation": "linear",
    },
}
KINDS = {"tanh": nn.Tanh, "relu": nn.ReLU, "swish": nn.SiLU, "linear": None, None: None}
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


class Reference(nn.Module):
    """The network as RLlib builds it, spelled out; its state_dict has RLlib's names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        shared = config["vf_share_layers"]
        names = ["encoder"] if shared else ["actor_encoder", "critic_encoder"]
        self.encoder = nn.ModuleDict({name: self._encoder() for name in names})
        self.pi, self.vf = self._head(ACTIONS), self._head(1)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for parameter in self.parameters():
                parameter.normal_(std=0.5, generator=generator)
        self.requires_grad_(False)

    def _encoder(self) -> nn.ModuleDict:
        layers = [OBSERVATIONS, *self.config["fcnet_hiddens"]]
        mlp = _layers(layers, self.config["fcnet_activation"])
        net = nn.ModuleDict({"mlp": nn.Sequential(*mlp)})
        return nn.ModuleDict(
            {
                "tokenizer": nn.ModuleDict({"net": net}),
                "lstm": nn.LSTM(layers[-1], self.config["lstm_cell_size"], batch_first=True),
            }
        )

    def _head(self, width: int) -> nn.ModuleDict:
        layers = [self.config["lstm_cell_size"], *self.config["head_fcnet_hiddens"]]
        mlp = _layers(layers, self.config["head_fcnet_activation"])
        mlp.append(nn.Linear(layers[-1], width))
        head = nn.ModuleDict({"net": nn.ModuleDict({"mlp": nn.Sequential(*mlp)})})
        head.register_buffer("log_std_clip_param_const", torch.tensor([20.0]))
        return head

    def play(self, observation_RTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [R, T, N] and values [R, T] over whole sequences."""
        parts: list[Any] = [
            one["lstm"](one["tokenizer"]["net"]["mlp"](observation_RTD))[0]  # pyright: ignore[reportIndexIssue]
            for one in self.encoder.values()
        ]
        logits = self.pi["net"]["mlp"](parts[0])  # pyright: ignore[reportIndexIssue]
        return logits, self.vf["net"]["mlp"](parts[-1]).squeeze(-1)  # pyright: ignore[reportIndexIssue]


def _layers(widths: list[int], activation: str | None) -> list[nn.Module]:
    kind = KINDS[activation.lower() if activation else None]
    modules: list[nn.Module] = []
    for below, width in pairwise(widths):
        modules += [nn.Linear(below, width), *([kind()] if kind else [])]
    return modules


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A checkpoint laid out as by RLlib, whose class is one that cannot be imported afterwards."""

    def save(
        changes: dict[str, Any] | None = None,
        *,
        state: dict[str, Any] | None = None,
        folder: str = "module",
        name: str = "DefaultPPOTorchRLModule",
        protocol: int = 5,
        **arguments: Any,
    ) -> Path:
        config = {**DEFAULTS, **(changes or {})}
        tensors = Reference(config).state_dict()
        if state is None:
            state = OrderedDict((key, tensor.numpy()) for key, tensor in tensors.items())
        keywords = {
            "observation_space": spaces.Box(-1, 1, (OBSERVATIONS,), np.float32),
            "action_space": spaces.Discrete(ACTIONS),
            "inference_only": False,
            "model_config": config,
            **arguments,
        }
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / "module_state.pkl").write_bytes(pickle.dumps(state, protocol))
        made_with = {"class": None, "ctor_args_and_kwargs": ((), keywords)}
        with monkeypatch.context() as patch:
            module = ModuleType(MODULE)
            made_with["class"] = type(name, (), {"__module__": MODULE})
            setattr(module, name, made_with["class"])
            patch.setitem(sys.modules, MODULE, module)
            content = pickle.dumps(made_with, protocol)
        (path / "class_and_ctor_args.pkl").write_bytes(content)
        (path / "metadata.json").write_text('{"ray_version": "2.60.0"}')
        return path

    return save


def observations() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(STEPS, ROWS, OBSERVATIONS)).astype(np.float32)


def opened(path: Path) -> RllibLstmPolicy:
    return recognise(read_policy_file(path)).open()  # pyright: ignore[reportReturnType]


def played(policy: RllibLstmPolicy) -> tuple[np.ndarray, np.ndarray]:
    """Logits [R, T, N] and values [R, T], step by step."""
    state = policy.initial_state(ROWS)
    logits, values = [], []
    for observation_RD in observations():
        step = policy.step(observation_RD, state, untapped)
        logits.append(step.logits_RN.numpy())
        values.append(step.value_R.numpy())
        state = step.state
    return np.stack(logits, 1), np.stack(values, 1)


@pytest.mark.parametrize("protocol", [2, 5])
@EVERY_VARIANT
def test_logits_and_values_are_those_of_the_network_over_whole_sequences(
    variant: str, protocol: int, save: Callable[..., Path]
) -> None:
    config = VARIANTS[variant]
    policy = opened(save(config, protocol=protocol))
    assert isinstance(policy, Policy)
    logits, values = played(policy)
    expected = Reference({**DEFAULTS, **config}).play(
        torch.from_numpy(observations()).transpose(0, 1)
    )
    np.testing.assert_allclose(logits, expected[0], atol=1e-5)
    np.testing.assert_allclose(values, expected[1], atol=1e-5)


@EVERY_VARIANT
def test_every_site_is_tapped_once_with_its_width(variant: str, save: Callable[..., Path]) -> None:
    policy = opened(save(VARIANTS[variant]))
    seen = []

    def tap(site: str, x_RD: torch.Tensor, /) -> torch.Tensor:
        seen.append((site, x_RD.shape[1]))
        return x_RD

    policy.step(observations()[0], policy.initial_state(ROWS), tap)
    assert seen == list(policy.sites.items())
    assert ("critic.h" in policy.sites) == ("critic" in variant)


@pytest.mark.parametrize(
    ("site", "now", "later"),
    [("lstm.h", True, True), ("lstm.y", True, False), ("lstm.c", False, True)],
)
def test_where_an_edit_reaches(site: str, now: bool, later: bool, save) -> None:
    policy = opened(save())
    direction_D = np.ones(HIDDEN, np.float32)
    edits = RowEdits(ROWS, {site: HIDDEN})
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
    state = edited_state = policy.initial_state(ROWS)
    for t, reached in ((0, now), (1, later)):
        tap = RecordingTap((), edits.tile(0, ROWS)) if t == 0 else untapped
        plain = policy.step(observations()[t], state, untapped)
        edited = policy.step(observations()[t], edited_state, tap)
        state, edited_state = plain.state, edited.state
        changed_R = (plain.logits_RN != edited.logits_RN).any(1)
        assert changed_R.tolist() == [False, False, reached, False]


def test_an_architecture_survives_json_and_refuses_nonsense(save: Callable[..., Path]) -> None:
    architecture = opened(save(VARIANTS["own critic, heads"])).architecture
    content = architecture.to_json()
    assert RllibLstmArchitecture.from_json(content) == architecture
    for change, wanted in (
        ({"hidden": 0}, "hidden: .*or equal to 1"),
        ({"head_activation": "cube"}, "head_activation: .*tanh"),
        ({"shares": True}, "shares"),
        ({"family": "other"}, "family 'other'"),
    ):
        with pytest.raises(ValueError, match=wanted):
            RllibLstmArchitecture.from_json({**content, **change})


# --- files


def test_the_module_is_found_in_a_checkpoint_of_the_algorithm(save: Callable[..., Path]) -> None:
    algorithm = save(folder="checkpoint_000012/learner_group/learner/rl_module/default_policy")
    for _ in range(3):
        algorithm = algorithm.parent
    (algorithm / "learner/rl_module/module_state.pkl").write_bytes(pickle.dumps({}))
    (algorithm.parent / "rllib_checkpoint.json").write_text("{}")
    expected = opened(algorithm / "learner/rl_module/default_policy").state_dict()
    for path in (algorithm.parent, algorithm / "learner/rl_module"):
        found = opened(path).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


class _Attack:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


@pytest.mark.parametrize("member", ["module_state.pkl", "class_and_ctor_args.pkl"])
def test_a_checkpoint_that_would_run_code_is_refused(
    member: str, save: Callable[..., Path], tmp_path: Path
) -> None:
    path, canary = save(), tmp_path / "canary"
    (path / member).write_bytes(pickle.dumps({"class": _Attack(canary)}))
    with pytest.raises(ValueError, match=rf"{member}.* asks to call posix.mkdir"):
        read_policy_file(path)
    assert not canary.exists()


def test_one_array_under_many_names_is_refused(save: Callable[..., Path]) -> None:
    array = np.zeros(10_000, np.float32)
    path = save(state={f"tensor_{number}": array for number in range(50)})
    with pytest.raises(ValueError, match=r"arrays of more than 4 times the file's"):
        read_policy_file(path)


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ({}, r"no table of arrays; name the folder of one module, such as default_policy"),
        ({"a": 3}, r"tensor a is no dense array"),
        ({3: np.zeros(2)}, r"a int where the name of a tensor is wanted"),
        ({"a": np.array([1 + 2j])}, r"tensor a is of a kind that torch lacks"),
        ({"a": np.array([np.nan])}, r"'a' holds 1 NaN or infinite values"),
    ],
)
def test_what_is_no_table_of_arrays_is_refused(state, wanted, save: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=rf"module_state.pkl: {wanted}|{wanted}"):
        read_policy_file(save(state=state))


def test_an_array_that_claims_more_than_it_holds_is_refused(save: Callable[..., Path]) -> None:
    path = save(state={"a": np.arange(4, dtype=np.float32)})
    content = (path / "module_state.pkl").read_bytes()
    assert content.count(b"K\x04\x85") == 1  # the shape (4,)
    (path / "module_state.pkl").write_bytes(content.replace(b"K\x04\x85", b"K\x09\x85"))
    with pytest.raises(ValueError, match=r"tensor a of shape \[9\] has 16 bytes, wanted 36"):
        read_policy_file(path)


@pytest.mark.parametrize(
    ("changes", "arguments", "wanted"),
    [
        ({"lstm_use_prev_action": True}, {}, "lstm_use_prev_action, which is not supported"),
        ({"fcnet_use_layernorm": True}, {}, "fcnet_use_layernorm, which is not supported"),
        ({"fcnet_activation": "tanh"}, {"model_config": {}}, "does not say its fcnet_activation"),
        ({}, {"model_config": None}, "does not say its model_config"),
        ({}, {"model_config": {**DEFAULTS, "fcnet_activation": "cube"}}, "'cube'; known: tanh"),
        ({}, {"inference_only": True}, "for inference only, without its value"),
        ({}, {"name": "MyModule"}, "of class MyModule; .* any other wants --factory"),
        ({}, {"action_space": spaces.Box(-1, 1, (3,))}, "action_space gymnasium.spaces.box.Box"),
        ({}, {"action_space": None}, "action_space None; only Discrete"),
        ({}, {"observation_space": spaces.Discrete(4)}, "observation_space .*; only Box"),
    ],
)
def test_what_is_not_rebuilt_is_refused_by_name(changes, arguments, wanted, save) -> None:
    with pytest.raises(ValueError, match=wanted):
        recognise(read_policy_file(save(changes, **arguments)))


def test_tensors_must_be_those_of_the_network(save: Callable[..., Path]) -> None:
    tensors = {name: one.numpy() for name, one in Reference(DEFAULTS).state_dict().items()}
    for number, (change, wanted) in enumerate(
        (
            ({"pi.net.mlp.0.bias": None}, "missing pi.net.mlp.0.bias, unknown none"),
            ({"extra": np.zeros(3)}, "unknown extra"),
            ({"vf.net.mlp.0.bias": np.zeros(3)}, r"vf.net.mlp.0.bias .* \[3\], wanted \[1\]"),
            ({"pi.net.mlp.0.weight": None}, "without a tokenizer or a head of linear layers"),
        )
    ):
        state = {name: one for name, one in {**tensors, **change}.items() if one is not None}
        with pytest.raises(ValueError, match=wanted):
            recognise(read_policy_file(save(state=state, folder=str(number))))


# --- the original, where it is installed


@EVERY_VARIANT
def test_logits_and_values_are_those_of_rllib(variant: str, tmp_path: Path) -> None:
    pytest.importorskip("ray.rllib", reason="needs the extra rllib", exc_type=ImportError)
    from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
    from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    module: Any = DefaultPPOTorchRLModule(
        observation_space=spaces.Box(-1, 1, (OBSERVATIONS,), np.float32),
        action_space=spaces.Discrete(ACTIONS),
        model_config=DefaultModelConfig(**{**DEFAULTS, **VARIANTS[variant]}),
        catalog_class=PPOCatalog,
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    module.save_to_path(str(tmp_path / "module"))
    zeros = {name: torch.zeros(ROWS, 1, HIDDEN) for name in ("h", "c")}
    shared = {**DEFAULTS, **VARIANTS[variant]}["vf_share_layers"]
    batch = {
        "obs": torch.from_numpy(observations()).transpose(0, 1),
        "state_in": zeros if shared else {"actor": zeros, "critic": zeros},
    }
    with torch.no_grad():
        expected = module.forward_inference(batch)["action_dist_inputs"]
        expected_values = module.compute_values(batch)
    bundle = recognise(read_policy_file(tmp_path / "module"))
    assert isinstance(bundle, PolicyBundle)
    logits, values = played(bundle.open())  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(values, expected_values, atol=1e-5)
