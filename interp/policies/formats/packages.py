"""Weights that travel with a description: .mpt, checkpoint and submission packages, stable-baselines3, our bundles.

A package names classes, scripts and paths. They are kept as text: nothing is imported, run or looked for outside it.
Each reader takes the archive and the folder of its marker file in it ("" or "run/").
"""

import tomllib
from collections.abc import Callable
from functools import partial
from typing import Any

from interp.identity import parse_json
from interp.policies.formats.archive import Archive, listing
from interp.policies.formats.call_text import parse_call_text
from interp.policies.formats.contents import Contents
from interp.policies.formats.limits import MAX_JSON_BYTES, MAX_TEXT_BYTES
from interp.policies.formats.module_tree import scalars
from interp.policies.formats.names import checked_path
from interp.policies.formats.plain import Visits, plain_fields
from interp.policies.formats.rl_module import DEFAULT_MODULE, MODULE_STATE, read_rl_module
from interp.policies.formats.weights import open_torch, read_weights

_WEIGHTS = "weights.safetensors"


def read_mpt(archive: Archive, folder: str) -> Contents:
    """`modelarchitecture.txt`, a Python call as text, and weights.safetensors."""
    text = _text(archive, f"{folder}modelarchitecture.txt")
    weights = _weights(archive, f"{folder}{_WEIGHTS}")
    return Contents(
        format="mpt",
        tensors=weights.tensors,
        metadata={
            **weights.metadata,
            "architecture": parse_call_text(text, source=f"{folder}modelarchitecture.txt"),
        },
    )


def read_policy_spec(archive: Archive, folder: str) -> Contents:
    """`policy_spec.json` of a checkpoint or submission: class_path, data_path, init_kwargs."""
    source = f"{folder}policy_spec.json"
    return _specified(archive, folder, _json(archive, source), source=source)


def read_manifest(archive: Archive, folder: str) -> Contents:
    """`cogames.toml`: the same fields in a table [policy]."""
    source = f"{folder}cogames.toml"
    try:
        manifest = tomllib.loads(_text(archive, source))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{source}: not readable as TOML: {error or 'nested too deep'}") from error
    policy = manifest.get("policy")
    if not isinstance(policy, dict):
        raise ValueError(f"{source}: no table [policy], wanted one with class_path and data_path")
    return _specified(archive, folder, policy, source=source)


def read_bundle(archive: Archive, folder: str) -> Contents:
    """`architecture.json`, weights.safetensors and perhaps card.json: a policy as it lies in our store."""
    metadata: dict[str, Any] = {}
    if f"{folder}card.json" in archive.sizes:
        source = f"{folder}card.json"
        card = _fields(_json(archive, source), source=source)
        metadata = {**card, "agent_step": card.get("step"), "run_name": card.get("run")}
    source = f"{folder}architecture.json"
    metadata["architecture"] = _fields(_json(archive, source), source=source)
    weights = _weights(archive, f"{folder}{_WEIGHTS}")
    return Contents(
        format="bundle", tensors=weights.tensors, metadata={**weights.metadata, **metadata}
    )


def read_stable_baselines(archive: Archive, folder: str) -> Contents:
    """`policy.pth`, a state_dict, and `data`, JSON in which an object is a base64 pickle beside its readable fields."""
    weights = _weights(archive, f"{folder}policy.pth")
    if f"{folder}data" not in archive.sizes:
        raise ValueError(
            f"no member 'data' beside policy.pth, wanted a zip of stable-baselines3: {listing(archive)}; "
            "save it with model.save()"
        )
    source = f"{folder}data"
    metadata = _fields(_without_pickles(_json(archive, source)), source=source)
    metadata.setdefault("agent_step", metadata.get("num_timesteps"))
    version = f"{folder}_stable_baselines3_version"
    if version in archive.sizes:
        metadata["stable_baselines3_version"] = _text(archive, version).strip()
    return Contents(format="sb3", tensors=weights.tensors, metadata=metadata)


_LEARNER = "learner_group/learner/rl_module/"
MARKERS: dict[str, Callable[[Archive, str], Contents]] = {
    "policy_spec.json": read_policy_spec,
    "cogames.toml": read_manifest,
    "modelarchitecture.txt": read_mpt,
    "architecture.json": read_bundle,
    "policy.pth": read_stable_baselines,
    # of an algorithm of RLlib, of all its modules, and of one module
    f"{_LEARNER}{DEFAULT_MODULE}/{MODULE_STATE}": partial(
        read_rl_module, inside=f"{_LEARNER}{DEFAULT_MODULE}/"
    ),
    f"{DEFAULT_MODULE}/{MODULE_STATE}": partial(read_rl_module, inside=f"{DEFAULT_MODULE}/"),
    MODULE_STATE: read_rl_module,
}
"""The file by which a package is known -> its reader, in this order."""


def _specified(archive: Archive, folder: str, spec: dict[str, Any], *, source: str) -> Contents:
    class_path = spec.get("class_path")
    if not isinstance(class_path, str) or not class_path:
        raise ValueError(
            f"{source}: class_path is missing or no text; name the policy's class there"
        )
    data_path = spec.get("data_path")
    if data_path is None:
        data_path = _WEIGHTS
    if not isinstance(data_path, str):
        raise ValueError(
            f"{source}: data_path is a {type(data_path).__name__}, wanted a relative path"
        )
    data_path = checked_path(data_path.removeprefix("./"), kind=f"{source}: data_path")
    if f"{folder}{data_path}" not in archive.sizes:
        raise ValueError(
            f"{source}: data_path {data_path!r:.120} is not there: {listing(archive)}; name the policy's weights"
        )
    init_kwargs = spec.get("init_kwargs") or {}
    if not isinstance(init_kwargs, dict):
        raise ValueError(f"{source}: init_kwargs is a {type(init_kwargs).__name__}, wanted a table")
    metadata = _fields(spec, source=source)
    weights = _weights(archive, f"{folder}{data_path}")
    metadata = {**weights.metadata, **metadata}
    architecture = init_kwargs.get("architecture_spec")
    if isinstance(architecture, str):
        metadata["architecture"] = parse_call_text(
            architecture, source=f"{source}: init_kwargs.architecture_spec"
        )
    state = f"{folder}trainer_state.pt"
    if state in archive.sizes:
        try:
            root = open_torch(archive.read(state)).root
        except ValueError as error:
            raise ValueError(f"{state}: {error}") from error
        metadata = {**scalars(root), **metadata}
    return Contents(
        format="checkpoint-folder",
        tensors=weights.tensors,
        modules=weights.modules,
        metadata=metadata,
    )


def _weights(archive: Archive, member: str) -> Contents:
    content = archive.read(member)
    try:
        return read_weights(content, member)
    except ValueError as error:
        raise ValueError(f"{member}: {error}") from error


def _json(archive: Archive, member: str) -> dict[str, Any]:
    return parse_json(_bounded(archive, member, MAX_JSON_BYTES), source=member)


def _text(archive: Archive, member: str) -> str:
    content = _bounded(archive, member, MAX_TEXT_BYTES)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{member}: not UTF-8 ({error}); save it as UTF-8") from error


def _bounded(archive: Archive, member: str, limit: int) -> bytes:
    size = archive.sizes.get(member, 0)
    if size > limit:
        raise ValueError(
            f"{member}: {size} bytes, wanted at most {limit}; keep the description only"
        )
    return archive.read(member)


def _fields(content: dict[str, Any], *, source: str) -> dict[str, Any]:
    try:
        return plain_fields(content, Visits())
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _without_pickles(data: dict[str, Any]) -> dict[str, Any]:
    """An object is written as {":type:": ..., ":serialized:": base64 of its pickle, and texts of its fields}."""
    return {
        key: {name: one for name, one in value.items() if name != ":serialized:"}
        if isinstance(value, dict)
        else value
        for key, value in data.items()
    }
