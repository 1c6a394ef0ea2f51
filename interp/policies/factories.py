"""Which functions of the user's may build networks in this process.

A network of one's own is code. It is named on the command line and nowhere else: a policy file never names it, and a
policy of the store that does is refused unless the name was allowed here first. Allowing imports; nothing else does.
"""

import importlib
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

FORM = "package.module:callable"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_allowed: dict[str, Callable[[], Any]] = {}


def allow(*names: str) -> None:
    """Imports factories and lets this process build networks with them.

    Raises:
        ValueError: a name that is not of the form `package.module:callable`, or that cannot be imported or called.
    """
    for name in names:
        check_name(name)
        module_name, attributes = name.split(":")
        try:
            found = importlib.import_module(module_name)
        except Exception as error:
            raise ValueError(
                f"factory {name}: module {module_name} cannot be imported: {type(error).__name__}: {error}; "
                "install it, or run where it lies"
            ) from error
        for attribute in attributes.split("."):
            if not hasattr(found, attribute):
                raise ValueError(f"factory {name}: module {module_name} has no {attributes}")
            found = getattr(found, attribute)
        if not callable(found):
            raise ValueError(
                f"factory {name}: a {type(found).__name__}, wanted a function without arguments that returns the module"
            )
        _allowed[name] = found


def check_name(name: object) -> None:
    """Raises ValueError unless it has the form of a factory's name; whether there is one is not looked up."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"factory {name!r:.80}: wanted {FORM}")


def make(name: str) -> nn.Module:
    """A new module from an allowed factory, on the CPU in float32, in evaluation mode.

    Raises:
        ValueError: not allowed in this process, or it fails or returns no module.
    """
    if name not in _allowed:
        raise ValueError(f"it is built by {name}, which is code: allow it with --factory {name}")
    try:
        with torch.random.fork_rng(devices=[]):  # what it draws is nobody else's concern
            module = _allowed[name]()
    except Exception as error:
        raise ValueError(
            f"factory {name}: called without arguments it fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"factory {name}: it returned a {type(module).__name__}, wanted a torch.nn.Module"
        )
    if any("forward" in vars(part) for part in module.modules()):
        raise ValueError(
            f"factory {name}: a part of its module has a `forward` of its own, as if the module had been handed out "
            "before; make a new module at every call"
        )
    return module.float().cpu().eval()
