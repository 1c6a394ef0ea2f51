"""Networks around one LSTM whose parameters are named as in somebody's file, however deep the names go."""

from torch import Tensor, nn

from interp.policies.policy import State
from interp.policies.recurrent import initial_memory, memory_sites
from interp.policies.translation import TokenNetwork


class PlacedNetwork(TokenNetwork):
    """Its parts lie under the names of the file and are reached by short ones. Sites are those of `mettagrid_box`."""

    def __init__(self, prefix: str) -> None:
        """`prefix` is what all names of the file begin with, without the dot that follows it."""
        super().__init__()
        self._prefix = prefix
        self._part: dict[str, nn.Module] = {}

    def _place(self, short: str, path: str, module: nn.Module) -> None:
        """Makes a module the part of that dotted path, with empty modules on the way to it."""
        *folders, name = f"{self._prefix}.{path}".split(".")
        parent: nn.Module = self
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        parent.add_module(name, module)
        self._part[short] = module

    def _place_lstm(self, path: str, lstm: nn.LSTM) -> None:
        """The network's memory, initialised as metta did it."""
        for name, parameter in lstm.named_parameters():
            nn.init.ones_(parameter) if "bias" in name else nn.init.orthogonal_(parameter)
        self._place("lstm", path, lstm)

    def _place_buffer(self, path: str, name: str, values: Tensor) -> None:
        if f"{self._prefix}.{path}" not in dict(self.named_modules()):
            self._place(path, path, nn.Module())
        self._at(path).register_buffer(name, values)

    def _at(self, path: str) -> nn.Module:
        return self.get_submodule(f"{self._prefix}.{path}")

    @property
    def _lstm(self) -> nn.LSTM:
        lstm = self._part["lstm"]
        assert isinstance(lstm, nn.LSTM)
        return lstm

    @property
    def sites(self) -> dict[str, int]:
        return {
            "encoder": self._lstm.input_size,
            **memory_sites("lstm", self._lstm),
            "lstm.y": self._lstm.hidden_size,
            "logits": self.language.num_actions,
            "value": 1,
        }

    def initial_state(self, num_rows: int) -> State:
        return initial_memory(self._lstm, num_rows)
