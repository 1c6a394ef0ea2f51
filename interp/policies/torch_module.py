"""Policies that are a torch module of the user's own, built by a function that the command line names.

    def make() -> nn.Module: ...                 in package/module.py, called as --factory package.module:make

The module's `forward(observation)` gets one step of R rows, [R, *shape of an observation], uint8 in a world of tokens
and float32 in any other. It returns logits [R, num_actions], or a tuple of these, a value [R] or [R, 1], and whatever
else, which is not looked at. Every row is computed by itself. It runs on the CPU, in float32, in evaluation mode.

Its memory is that of its `nn.LSTM`, `nn.GRU`, `nn.LSTMCell` and `nn.GRUCell`, each called once a step, on one step of
the R rows. It is held here: a layer continues from it, whatever state the module passes, and it is zero when an episode
starts. Not supported are bidirectional layers, proj_size, nn.RNN, and layers that the module calls on a sequence.

PATH.c     the cell state of an LSTM at that path after the step  [R, hidden]  an edit persists, shows a step later
PATH.h     the hidden state after the step                        [R, hidden]  an edit reaches module and memory
PATH.y     the module's copy of h                                 [R, hidden]  an edit reaches the module only
PATH       what any other submodule gives out                     [R, D]       an edit reaches what reads it
logits     action logits                                          [R, num_actions]
value      value estimate, if the module gives one; else it is 0  [R, 1]

Of several layers, the plain names are the last one's; see `recurrent`. A submodule is a site if it is called once a
step and gives out float32 numbers of that shape; the paths `logits` and `value` are what `forward` returns. A module
that reads the cell state itself sees an edit of it at once.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeGuard, get_args

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from interp.policies import factories
from interp.policies.architecture import Architecture, Name, Names, Width
from interp.policies.policy import PolicyNetwork, State, Step
from interp.policies.policy_file import PolicyFile
from interp.policies.recurrent import RecurrentLayer, initial_memory, memory_sites, remember
from interp.policies.taps import RecordingTap, Tap, untapped
from interp.policies.tensors import check_tensors
from interp.worlds.world import WorldSpec

FAMILY = "torch-module"
TOLERANCE = 1e-5
"""Of two ways to compute the same, in units of the largest number in it, or of 1 if that is smaller."""
_FORWARD = {kind: kind.forward for kind in get_args(RecurrentLayer)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModuleArchitecture(Architecture):
    """Who builds the module, and for which world. The code is not kept: a name must stand for one network."""

    family: ClassVar[str] = FAMILY
    factory: Name
    """package.module:callable; it is called only in a process that allowed it, see `factories`."""
    observation_shape: Annotated[tuple[Width, ...], Field(max_length=8)]
    """Of one agent."""
    observation_dtype: Name
    action_names: Names

    def __post_init__(self) -> None:
        factories.check_name(self.factory)


def recognise(_file: PolicyFile) -> None:
    """Never: which code builds a network is not for a file to say. See `recognise_as`."""


def recognise_as(factory: str, file: PolicyFile, world: WorldSpec) -> TorchModuleArchitecture:
    """The architecture of a file whose tensors are those of the module that an allowed factory makes.

    Raises:
        ValueError: they are not; or the module does not do what the head of this file asks for in that world.
    """
    architecture = TorchModuleArchitecture(
        factory=factory,
        observation_shape=world.observation_shape,
        observation_dtype=world.observation_dtype,
        action_names=world.action_names,
    )
    policy = TorchModulePolicy(architecture)
    expected = policy.state_dict()
    check_tensors(
        file.tensors,
        expected,
        of=f"a module of factory {factory}",
        hint="the factory must make the module that was saved",
    )
    _check_ties(file.tensors, expected, factory)
    policy.load_state_dict(file.tensors)
    policy.requires_grad_(False)
    policy.refresh()
    _check_first_step(policy)
    return architecture


def _check_ties(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], factory: str) -> None:
    """Raises ValueError if names that stand for one tensor of the module hold different numbers in the file."""
    first_at: dict[tuple[object, ...], str] = {}
    for name, tensor in expected.items():
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride())
        first = first_at.setdefault(memory, name) if tensor.numel() else name
        if not torch.equal(found[first], found[name]):
            raise ValueError(
                f"tensors {first} and {name} are one in a module of factory {factory}, but differ in the file"
            )


def _check_first_step(policy: "TorchModulePolicy") -> None:
    """Raises ValueError unless a module that is left alone says the same of its first observations.

    It does not if it begins an episode with a memory that it learned; the memory that is held here begins at zero.
    """
    factory = policy.architecture.factory
    alone = factories.make(factory)
    observation_R = _probe(policy.architecture)
    with torch.inference_mode():
        ours = policy.step(observation_R, policy.initial_state(2), untapped)
    alone.load_state_dict(policy.state_dict())
    with torch.inference_mode():
        theirs = alone(_tensor(observation_R, torch.device("cpu")))
    logits_RN = theirs if isinstance(theirs, Tensor) else theirs[0]
    if not _close(logits_RN, ours.logits_RN):
        raise ValueError(
            f"factory {factory}: left alone, its module answers the first observation of an episode otherwise than "
            "with a memory of zeros; a learned initial memory is not supported"
        )


@dataclass(slots=True)
class _Pass:
    """One call of the module that is under way."""

    tap: Tap
    num_rows: int
    memory: dict[str, State]
    """Path of each recurrent layer -> its memory before the step."""
    new_memory: dict[str, State] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    """Paths of the submodules whose output was tapped."""


class TorchModulePolicy(PolicyNetwork):
    """See the head of this file for its sites and for what it asks of the module."""

    def __init__(self, architecture: TorchModuleArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.module = factories.make(architecture.factory)
        self._pass: _Pass | None = None
        self._layers: dict[str, RecurrentLayer] = {}
        self._watched: frozenset[str] | None = None
        """Paths of the submodules that are sites; None until they are discovered."""
        for path, submodule in self.module.named_modules():
            if isinstance(submodule, nn.RNNBase | nn.RNNCellBase):
                self._hold(path, submodule)
            elif path not in ("", "logits", "value"):
                submodule.register_forward_hook(self._output_hook(path))
        self._sites = self._discover()

    # --- tensors have the names that they have in the module and in the file

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 - as torch's own
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # noqa: ANN401 - torch's own named tuple
        return self.module.load_state_dict(state_dict, strict=strict, assign=assign)

    # --- what the rollout loop needs

    @property
    def sites(self) -> dict[str, int]:
        return self._sites

    @property
    def action_names(self) -> tuple[str, ...]:
        return self.architecture.action_names

    def initial_state(self, num_rows: int) -> State:
        """The memory of every recurrent layer, in the order in which the module names them."""
        return tuple(
            tensor for layer in self._layers.values() for tensor in initial_memory(layer, num_rows)
        )

    def step(self, observation_R: np.ndarray, state: State, tap: Tap) -> Step:
        wanted = self.architecture
        found = (observation_R.shape[1:], str(observation_R.dtype))
        if found != (wanted.observation_shape, wanted.observation_dtype):
            raise ValueError(
                f"the policy observes {list(wanted.observation_shape)} {wanted.observation_dtype}, but the world shows "
                f"{list(found[0])} {found[1]}; play it in the world that it was fetched with"
            )
        memory: dict[str, State] = {}
        for path, layer in self._layers.items():
            num_tensors = len(memory_sites(path, layer))
            memory[path], state = state[:num_tensors], state[num_tensors:]
        return self._run(_tensor(observation_R, self.device), memory, tap)

    def refresh(self) -> None:
        """Checks what the rollout loop relies on, which takes the weights to see.

        Raises:
            ValueError: a row's result depends on the rows beside it, or is not the same every time.
        """
        together = self._play_probe([0, 1])
        again = self._play_probe([0, 1])
        for site, x_RD in together.items():
            if not torch.allclose(x_RD, again[site], rtol=0, atol=0, equal_nan=True):
                raise ValueError(
                    f"{self._name}: at site {site} it gave two results for the same observations; it draws random "
                    "numbers, or remembers in something else than nn.LSTM, nn.GRU, nn.LSTMCell or nn.GRUCell"
                )
        for row in (0, 1):
            for site, x_RD in self._play_probe([row]).items():
                if not _close(x_RD, together[site][row : row + 1]):
                    raise ValueError(
                        f"{self._name}: at site {site} it mixes the rows of a batch: a row gives another result when "
                        "it is played beside another one; compute every row by itself"
                    )

    # --- one call of the module

    @property
    def _name(self) -> str:
        return f"the module of factory {self.architecture.factory}"

    def _run(self, observation_R: Tensor, memory: dict[str, State], tap: Tap) -> Step:
        num_rows = len(observation_R)
        now = self._pass = _Pass(tap=tap, num_rows=num_rows, memory=memory)
        try:
            logits_RN, value_R1 = self._check_output(self.module(observation_R), num_rows)
        except Exception as error:
            raise ValueError(
                f"{self._name}, given observations {list(observation_R.shape)} {observation_R.dtype}: "
                f"{'' if isinstance(error, _Refused) else f'{type(error).__name__}: '}{error}"
            ) from error
        finally:
            self._pass = None
        if self._watched is not None:
            self._check_calls(now, has_value=value_R1 is not None)
        logits_RN = tap("logits", logits_RN)
        value_R1 = logits_RN.new_zeros(num_rows, 1) if value_R1 is None else tap("value", value_R1)
        new_state = tuple(
            tensor for path in self._layers for tensor in now.new_memory.get(path, ())
        )
        return Step(logits_RN, value_R1.squeeze(1), new_state)

    def _check_output(self, output: object, num_rows: int) -> tuple[Tensor, Tensor | None]:
        logits_RN, *others = output if isinstance(output, tuple | list) else (output,)
        names = self.action_names
        if not _is_float(logits_RN, (num_rows, len(names))):
            raise _Refused(
                f"it returned logits {_form(logits_RN)}, wanted float32 [{num_rows}, {len(names)}]: one number per row "
                f"for each of the world's actions {', '.join(names)}"
            )
        value = others[0] if others else None
        if value is None:
            return logits_RN, None
        if not (_is_float(value, (num_rows,)) or _is_float(value, (num_rows, 1))):
            raise _Refused(
                f"it returned {_form(value)} after the logits, where a value float32 [{num_rows}] or [{num_rows}, 1] "
                "belongs; return the logits alone if there is none"
            )
        return logits_RN, value.reshape(num_rows, 1)

    def _check_calls(self, now: _Pass, *, has_value: bool) -> None:
        silent = [
            *(path for path in self._layers if path not in now.new_memory),
            *(path for path in self._watched or () if path not in now.outputs),
            *(["value"] if "value" in self._sites and not has_value else []),
        ]
        if silent:
            raise ValueError(
                f"{self._name}: site {min(silent)} was not computed in this step, though it was at first; what a "
                "module calls must not depend on what it sees"
            )

    def _hold(self, path: str, layer: nn.Module) -> None:
        """Makes a recurrent layer continue from the memory that is held here."""
        kind = type(layer).__name__
        if path == "":
            raise ValueError(
                f"{self._name} is itself a recurrent layer, {kind}; wanted one that ends in logits"
            )
        if not isinstance(layer, RecurrentLayer):
            raise ValueError(f"{self._name}: {path} is nn.{kind}; use {_names_of_layers()}")
        if not any(type(layer).forward is forward for forward in _FORWARD.values()):
            raise ValueError(
                f"{self._name}: {path} is a {kind} with a forward of its own; use {_names_of_layers()} as they are"
            )
        for setting in ("bidirectional", "proj_size"):
            if getattr(layer, setting, 0):
                raise ValueError(
                    f"{self._name}: {path} has {setting}={getattr(layer, setting)}, which is not supported"
                )
        self._layers[path] = layer

        def forward(input: Tensor, hx: object = None) -> Any:  # noqa: ANN401 - as torch's own
            return self._recur(path, layer, input)

        layer.forward = forward  # pyright: ignore[reportAttributeAccessIssue]

    def _recur(self, path: str, layer: RecurrentLayer, x: Tensor) -> Any:  # noqa: ANN401 - as torch's own
        """What the layer would return, from the memory that is held."""
        now = self._pass
        assert now is not None, "the module is only called by step"
        if path in now.new_memory:
            raise _Refused(f"recurrent layer {path} was called twice in one step")
        if path not in now.memory:
            raise _Refused(f"recurrent layer {path} was called, though it was not at first")
        wanted = [now.num_rows, layer.input_size]
        time_axis = 0
        if isinstance(layer, nn.RNNBase):
            time_axis = 1 if layer.batch_first else 0
            wanted.insert(time_axis, 1)
        if not _is_float(x, tuple(wanted)):
            raise _Refused(
                f"recurrent layer {path} was given {_form(x)}, wanted float32 {wanted}, one step of every row; its "
                f"batch_first is {getattr(layer, 'batch_first', 'not set')}"
            )
        x_RN = x.reshape(now.num_rows, layer.input_size)
        h_RD, memory = remember(path, layer, x_RN, now.memory[path], now.tap)
        now.new_memory[path] = memory
        # copies: what the module does to them in place must not reach the memory or the recording
        y_RD = now.tap(f"{path}.y", h_RD).clone()
        match layer:
            case nn.LSTMCell():
                return y_RD, memory[1].clone()
            case nn.GRUCell():
                return y_RD
            case nn.LSTM():
                state = (torch.stack([*memory[0:-2:2], y_RD]), torch.stack(memory[1::2]))
            case nn.GRU():
                state = torch.stack([*memory[:-1], y_RD])
        return y_RD.unsqueeze(time_axis), state

    def _output_hook(self, path: str) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, _arguments: object, output: object) -> Tensor | None:
            now = self._pass
            if now is None or (self._watched is not None and path not in self._watched):
                return None
            if not (isinstance(output, Tensor) and _is_site(output, now.num_rows)):
                if self._watched is None:
                    return None
                raise _Refused(f"submodule {path} gave {_form(output)}, though it did not at first")
            if path in now.outputs and self._watched is not None:
                raise _Refused(f"submodule {path} was called twice in one step, once at first")
            now.outputs.add(path)
            return now.tap(path, output).clone()  # a copy: see `_recur`

        return hook

    # --- what the module is like, seen from outside

    def _discover(self) -> dict[str, int]:
        """Sites, from two calls on zeros: what has as many rows as the batch by chance has them in one only."""
        found = []
        for num_rows in (3, 2):
            taps: list[tuple[str, int]] = []

            def tap(site: str, x_RD: Tensor, /, taps: list[tuple[str, int]] = taps) -> Tensor:
                taps.append((site, x_RD.shape[1]))
                return x_RD

            zeros_R = np.zeros(
                (num_rows, *self.architecture.observation_shape),
                self.architecture.observation_dtype,
            )
            memory = {path: initial_memory(layer, num_rows) for path, layer in self._layers.items()}
            with torch.inference_mode():
                self._run(_tensor(zeros_R, self.device), memory, tap)
            calls = Counter(site for site, _ in taps)
            found.append({site: width for site, width in taps if calls[site] == 1})
        sites = {site: width for site, width in found[0].items() if found[1].get(site) == width}
        called = {path: layer for path, layer in self._layers.items() if f"{path}.y" in sites}
        held = {f"{path}.y" for path in called}.union(
            *(memory_sites(path, layer) for path, layer in called.items())
        )
        self._layers = called
        self._watched = frozenset(sites.keys() - held - {"logits", "value"})
        return sites

    def _play_probe(self, rows: list[int]) -> dict[str, Tensor]:
        """Every site over two steps of some rows of the probe."""
        observation_R = _probe(self.architecture)[rows]
        state = self.initial_state(len(rows))
        seen: dict[str, Tensor] = {}
        with torch.inference_mode():
            for step in ("first", "second"):
                tap = RecordingTap(self.sites)
                state = self.step(observation_R, state, tap).state
                seen |= {f"{site} ({step} step)": x_RD for site, x_RD in tap.activations.items()}
        return seen


class _Refused(ValueError):
    """The module does what it must not; raised below its own forward."""


def _probe(architecture: TorchModuleArchitecture) -> np.ndarray:
    """Two different observations that every module can read: of tokens, bytes no larger than 1."""
    shape = architecture.observation_shape
    number = np.arange(int(np.prod(shape))).reshape(shape)
    other = number % 2 if architecture.observation_dtype == "uint8" else np.cos(number)
    return np.stack([np.zeros(shape), other]).astype(architecture.observation_dtype)


def _tensor(observation_R: np.ndarray, device: torch.device) -> Tensor:
    """A copy, for a module may change it in place, and the world's buffer is not its own."""
    dtype = torch.uint8 if observation_R.dtype == np.uint8 else torch.float32
    return torch.from_numpy(observation_R).to(device, dtype, copy=True)


def _close(x: Tensor, y: Tensor) -> bool:
    scale = max(1.0, *(float(one.nan_to_num(0, 0, 0).abs().max()) for one in (x, y)))
    return torch.allclose(x, y, rtol=0, atol=TOLERANCE * scale, equal_nan=True)


def _is_float(x: object, shape: tuple[int, ...]) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.dtype == torch.float32 and x.shape == shape


def _is_site(x: Tensor, num_rows: int) -> bool:
    return x.ndim == 2 and x.shape[1] > 0 and _is_float(x, (num_rows, x.shape[1]))


def _form(x: object) -> str:
    if isinstance(x, Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    return f"a {type(x).__name__}"


def _names_of_layers() -> str:
    return ", ".join(f"nn.{kind.__name__}" for kind in get_args(RecurrentLayer))
