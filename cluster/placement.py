"""Who computes on a GPU: what some node must be able to give, and how a process uses the part that it was given.

Ray hands out GPUs by number and tells a process which it has in CUDA_VISIBLE_DEVICES; that several processes on one GPU
keep within their parts of its memory is for them to see to.
"""

import math
import os
from collections.abc import Iterator
from typing import Any, Literal

import ray
import torch

Device = Literal["cpu", "cuda"]


def device_of(gpus: float) -> Device:
    """Where a process computes that has so many GPUs."""
    return "cuda" if gpus else "cpu"


def in_identity(device: Device) -> dict[str, str]:
    """What the device adds to the identity of what is computed there, for its last bits may differ; nothing for
    processors.
    """
    return {} if device == "cpu" else {"device": device}


def check_placement(*, name: str, gpus: float, cpus: float = 1.0, processes: int = 1) -> None:
    """Refuse by name a request that no node, or not so many processes at once, would ever get: it would wait for ever.

    Ray must be running. A request without GPUs is not looked at; see `runtime.check_cpus`.

    Args:
        name: What the user calls the request, for messages.
        gpus: GPUs of each process: 0, a part of one, or several whole ones.
        cpus: Logical CPUs that each needs beside them, on the same node.
        processes: How many run at once.

    Raises:
        ValueError: not a number of GPUs, or more than the nodes have.
    """
    check_gpus(name, gpus)
    if not gpus:
        return
    nodes = list(_nodes())
    places = sum(_places(node, cpus, gpus) for node in nodes)
    if places >= processes:
        return
    total = sum(node.get("GPU", 0.0) for node in nodes)
    if not total:
        raise ValueError(
            f"{name} is {gpus:g} but this Ray has 0 GPUs; take 0 to compute on processors"
        )
    has = ", ".join(
        f"{node.get('GPU', 0.0):g} GPUs with {node.get('CPU', 0.0):g} CPUs"
        for node in sorted(nodes, key=lambda node: -node.get("GPU", 0.0))
    )
    if not places:
        raise ValueError(
            f"{name} is {gpus:g}, but no node of this Ray has that many beside {cpus:g} CPUs; they have {has}; "
            "ask for less, or 0 to compute on processors"
        )
    raise ValueError(
        f"{processes} processes with {name} {gpus:g} and {cpus:g} CPUs each are asked for, but the nodes hold "
        f"{places}: {has}; use fewer actors or a smaller part of a GPU"
    )


def check_gpus(name: str, gpus: float) -> None:
    """ValueError if Ray hands out no such number of GPUs."""
    if not math.isfinite(gpus) or gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise ValueError(
            f"{name} is {gpus:g}, wanted 0, a part of one GPU such as 0.25, or several whole ones"
        )


def _nodes() -> Iterator[dict[str, float]]:
    for node in ray.nodes():
        if node["Alive"]:
            resources: dict[str, Any] = node["Resources"]
            yield resources


def _places(node: dict[str, float], cpus: float, gpus: float) -> int:
    """Processes that a node holds at once. A part of a GPU is of one GPU: two halves of two are no whole one."""
    of_gpus = (
        int(node.get("GPU", 0.0)) * int(1 / gpus + 1e-9)
        if gpus <= 1
        else int(node.get("GPU", 0.0) / gpus)
    )
    return min(of_gpus, int(node.get("CPU", 0.0) / cpus)) if cpus else of_gpus


def take_device(device: str, gpus: float) -> torch.device:
    """Where this process computes, within its part of the GPU's memory.

    With a part of a GPU PyTorch's allocator refuses what goes beyond that part of the memory, so that a neighbour is
    not the one who runs out of it (`torch.cuda.set_per_process_memory_fraction`). The CUDA context itself, some hundred
    MB a process, is not counted by it.

    Args:
        device: cpu, or cuda.
        gpus: What Ray gave this process.

    Raises:
        ValueError: cuda is asked for and PyTorch finds none.
    """
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            f"Ray gave this process {gpus:g} GPUs (CUDA_VISIBLE_DEVICES is "
            f"{os.environ.get('CUDA_VISIBLE_DEVICES')!r}), but PyTorch {torch.__version__} finds no CUDA on node "
            f"{os.uname().nodename}; install a build with CUDA there, or take 0 GPUs"
        )
    if 0 < gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)
    return torch.device(device)
