"""One step of torch's recurrent layers, with the memory outside of them and its parts at named sites.

NAME.c     the cell state after the step, of an LSTM   [R, hidden]  an edit persists and first shows a step later
NAME.h     the hidden state after the step             [R, hidden]  an edit reaches what reads it, and the memory

Of several layers, `NAME.c` and `NAME.h` are the last one's; those below it are `NAME.0.c`, `NAME.0.h` and so on. The
memory of a layer is its h, and after it its c if it is an LSTM.
"""

from jaxtyping import Float
from torch import Tensor, gru_cell, lstm_cell, nn, zeros

from interp.policies.policy import State
from interp.policies.taps import Tap

RecurrentLayer = nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell


def memory_sites(name: str, module: RecurrentLayer) -> dict[str, int]:
    """Site -> width of everything that the layers remember, in the order of computation."""
    return {
        f"{site}.{part}": module.hidden_size
        for site in _layer_names(name, module)
        for part in (("c", "h") if _has_cell_state(module) else ("h",))
    }


def initial_memory(module: RecurrentLayer, num_rows: int) -> State:
    """Zeros."""
    num_tensors = (2 if _has_cell_state(module) else 1) * _num_layers(module)
    device = next(module.parameters()).device
    return tuple(zeros(num_rows, module.hidden_size, device=device) for _ in range(num_tensors))


def remember(
    name: str, module: RecurrentLayer, x_RN: Float[Tensor, "R N"], memory: State, tap: Tap
) -> tuple[Float[Tensor, "R D"], State]:
    """One step of all layers: what the last one gives out, and the new memory of all."""
    new_memory: list[Tensor] = []
    below_R = x_RN
    for layer, site in enumerate(_layer_names(name, module)):
        weights = _weights(module, layer)
        if _has_cell_state(module):
            h_RD, c_RD = lstm_cell(below_R, memory[2 * layer : 2 * layer + 2], *weights)
            c_RD = tap(f"{site}.c", c_RD)
            h_RD = tap(f"{site}.h", h_RD)
            new_memory += [h_RD, c_RD]
        else:
            h_RD = tap(f"{site}.h", gru_cell(below_R, memory[layer], *weights))
            new_memory += [h_RD]
        below_R = h_RD
    return below_R, tuple(new_memory)


def _has_cell_state(module: RecurrentLayer) -> bool:
    return isinstance(module, nn.LSTM | nn.LSTMCell)


def _num_layers(module: RecurrentLayer) -> int:
    return module.num_layers if isinstance(module, nn.RNNBase) else 1


def _layer_names(name: str, module: RecurrentLayer) -> list[str]:
    num_layers = _num_layers(module)
    return [*(f"{name}.{layer}" for layer in range(num_layers - 1)), name]


def _weights(
    module: RecurrentLayer, layer: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Input and recurrent weights, and the biases of both if it has any; read anew, for they may be parametrised."""
    suffix = f"_l{layer}" if isinstance(module, nn.RNNBase) else ""
    return (
        getattr(module, f"weight_ih{suffix}"),
        getattr(module, f"weight_hh{suffix}"),
        getattr(module, f"bias_ih{suffix}", None),
        getattr(module, f"bias_hh{suffix}", None),
    )
