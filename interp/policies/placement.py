"""Networks whose parameters are named as in somebody's file, however deep the names go."""

from torch import nn


def place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Makes `module` the submodule of that dotted path, with empty modules on the way to it."""
    *folders, name = path.split(".")
    parent = root
    for folder in folders:
        if folder not in parent._modules:
            parent.add_module(folder, nn.Module())
        parent = parent.get_submodule(folder)
    parent.add_module(name, module)
