"""Does a file hold the tensors that a network has? By name and shape."""

from collections.abc import Collection, Mapping

from torch import Tensor


def check_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, of: str, hint: str
) -> None:
    """Raises ValueError if one is missing, unknown or of another shape; `of` says whose they are, `hint` what to do."""
    if expected.keys() != found.keys():
        raise ValueError(
            f"tensors of {of}: missing {some(expected.keys() - found.keys())}, "
            f"unknown {some(found.keys() - expected.keys())}; {hint}"
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"tensor {name} of {of} has shape {list(tensor.shape)}, wanted {list(expected[name].shape)}"
            )


def some(names: Collection[str]) -> str:
    """The first few, sorted."""
    shown = sorted(names)[:6]
    return ", ".join(shown) + (", ..." if len(names) > 6 else "") if shown else "none"
