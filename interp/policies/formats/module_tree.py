"""What was saved -> tensors by dotted name, classes of modules by path, and metadata.

A state_dict is a dict of tensors; a checkpoint holds one under a name such as "model_state_dict", beside numbers; a
record holds a whole module, which knows its tensors as state_dict() would list them, classes and settings besides.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

from interp.policies.formats.contents import Contents
from interp.policies.formats.limits import MAX_DEPTH, MAX_TENSORS
from interp.policies.formats.names import checked_name
from interp.policies.formats.pickle_machine import Stand
from interp.policies.formats.plain import Visits, is_module, plain_fields
from interp.policies.formats.torch_file import TorchFile
from interp.policies.formats.torch_storage import TensorClaim, materialise

STATE_DICT_KEYS = (
    *("model_state_dict", "policy_state_dict", "agent_state_dict", "state_dict", "weights"),
    *("model", "policy", "agent", "network", "net"),
)
"""Under one of these a checkpoint keeps the policy's tensors, beside the optimiser's and others."""

_RECORD_FORMATS = {"PolicyRecord": "policy-record", "PolicyAutoBuilder": "policy-auto-builder"}
_HOLDERS = ("metadata", "agent_attributes")
"""Fields of a record whose own fields are shown as the record's."""
_INTERFACE = (
    *("action_names", "action_max_params"),
    *("feature_id_to_name", "feature_normalizations", "original_feature_mapping"),
)
"""Settings of some module that say how the policy is connected to its world."""
_BOOKKEEPING = {
    *("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_is_full_backward_hook", "_version", "call_super_init", "dump_patches"),
}


def read_contents(file: TorchFile) -> Contents:
    """Tensors, modules and metadata of a torch file, whatever it holds.

    Raises:
        ValueError: no tensors in it, a name that is repeated or not printable, or too much of everything.
    """
    visits = Visits()
    modules = dict(_root_modules(file.root, visits))
    if modules:
        return _module_contents(file, modules, visits)
    return _state_dict_contents(file, visits)


def scalars(root: Any) -> dict[str, Any]:  # noqa: ANN401 - what was saved
    """The plain fields of a saved dict, for instance epoch and agent_step of a trainer's state."""
    return plain_fields(root, Visits()) if isinstance(root, dict) else {}


def _state_dict_contents(file: TorchFile, visits: Visits) -> Contents:
    claims: dict[str, TensorClaim] = {}
    _collect_claims(file.root, "", claims, visits, ())
    if not claims:
        raise ValueError(
            f"holds a {_kind(file.root)} without tensors, wanted a state_dict or a module; "
            "save policy.state_dict()"
        )
    if not isinstance(file.root, dict):
        metadata = _record_metadata(file.root, visits)
        return Contents(
            format="record", tensors=materialise(claims, file.storages), metadata=metadata
        )
    # What holds tensors is no metadata, whatever numbers it has beside them.
    holding = {name.partition(".")[0] for name in claims}
    metadata = _record_metadata(
        {key: value for key, value in file.root.items() if str(key) not in holding}, visits
    )
    nested = [
        key
        for key in STATE_DICT_KEYS
        if isinstance(file.root.get(key), dict)
        and any(name.startswith(f"{key}.") for name in claims)
    ]
    if not nested:
        format_name = "state-dict" if all(name in file.root for name in claims) else "checkpoint"
        return Contents(
            format=format_name, tensors=materialise(claims, file.storages), metadata=metadata
        )
    if len(nested) > 1:
        raise ValueError(
            f"state dicts under {nested}, wanted one; save the policy's alone under 'model_state_dict'"
        )
    policy = f"{nested[0]}."
    left_out: dict[str, int] = {}
    for name in claims:
        if not name.startswith(policy):
            top = name.partition(".")[0]
            left_out[top] = left_out.get(top, 0) + 1
    if left_out:
        metadata["left_out"] = left_out
    own = {
        name.removeprefix(policy): claim
        for name, claim in claims.items()
        if name.startswith(policy)
    }
    return Contents(format="checkpoint", tensors=materialise(own, file.storages), metadata=metadata)


def _module_contents(file: TorchFile, roots: Mapping[str, Stand], visits: Visits) -> Contents:
    claims: dict[str, TensorClaim] = {}
    classes: dict[str, str] = {}
    settings: dict[str, dict[str, Any]] = {}
    for path, module in roots.items():
        # Alone, a module is the policy, and its names are those of its own state_dict().
        start = "" if len(roots) == 1 else path
        _collect_module(module, start, claims, classes, settings, visits, ())
    if not claims:
        raise ValueError(
            f"holds the module {next(iter(roots.values())).of} without any tensor, wanted weights; "
            "save the module after it was built"
        )
    metadata = _record_metadata(file.root, visits)
    if len(roots) == 1:
        _add_missing(metadata, _lifted(settings.pop("", {})))
    for found in settings.values():
        _add_missing(metadata, {key: found[key] for key in _INTERFACE if key in found})
    if features := _features(metadata):
        metadata.setdefault("features", features)
    if isinstance(metadata.get("config"), dict) and "components" in metadata["config"]:
        metadata["architecture"] = metadata.pop("config")
    metadata["attributes"] = settings
    names = {str(stand.of) for stand in (file.root, *roots.values()) if isinstance(stand, Stand)}
    formats = [
        name
        for key, name in _RECORD_FORMATS.items()
        if any(key == one.rpartition(".")[2] for one in names)
    ]
    return Contents(
        format=formats[0] if formats else "module",
        tensors=materialise(claims, file.storages),
        modules=classes,
        metadata=metadata,
    )


def _root_modules(root: Any, visits: Visits) -> list[tuple[str, Stand]]:  # noqa: ANN401
    """The modules that are not within others, by dotted path, each once."""
    found: list[tuple[str, Stand]] = []
    seen: set[int] = set()
    pending: deque[tuple[str, Any, int]] = deque([("", root, 0)])
    while pending:
        path, value, depth = pending.popleft()
        if id(value) in seen or not isinstance(value, (Stand, dict, list, tuple)):
            continue
        visits.spend()
        seen.add(id(value))
        if depth > MAX_DEPTH:
            raise ValueError(f"{path[:80]!r}...: nested deeper than {MAX_DEPTH}; save a state_dict")
        if is_module(value):
            found.append((path, value))
        elif not (isinstance(value, Stand) and value.of.module.startswith("omegaconf.")):
            pending += [(_join(path, key), one, depth + 1) for key, one in _members(value, visits)]
    return found


def _collect_claims(
    value: Any,  # noqa: ANN401 - any inert value
    path: str,
    claims: dict[str, TensorClaim],
    visits: Visits,
    above: tuple[int, ...],
) -> None:
    visits.spend()
    if isinstance(value, TensorClaim):
        _add_claim(claims, path, value)
    elif isinstance(value, (Stand, dict, list, tuple)) and id(value) not in above:
        if len(above) > MAX_DEPTH:
            raise ValueError(
                f"{path[:80]!r}...: nested deeper than {MAX_DEPTH}; save a flat state_dict"
            )
        for key, one in _members(value, visits):
            _collect_claims(one, _join(path, key), claims, visits, (*above, id(value)))


def _collect_module(
    module: Stand,
    path: str,
    claims: dict[str, TensorClaim],
    classes: dict[str, str],
    settings: dict[str, dict[str, Any]],
    visits: Visits,
    above: tuple[int, ...],
) -> None:
    visits.spend()
    if id(module) in above or len(above) > MAX_DEPTH:
        raise ValueError(
            f"module {path[:80]!r} contains itself or is nested deeper than {MAX_DEPTH}; save a state_dict"
        )
    classes[path] = checked_name(str(module.of), kind="class")
    own = plain_fields(
        {
            key: value
            for key, value in module.attributes.items()
            if key not in _BOOKKEEPING and not (isinstance(key, str) and _is_hook(key))
        },
        visits,
    )
    if own:
        settings[path] = own
    for group in ("_parameters", "_buffers"):
        held = module.attributes.get(group) or {}
        if not isinstance(held, dict):
            raise ValueError(f"module {path!r:.80}: {group} is a {_kind(held)}, wanted a dict")
        for key, value in held.items():
            if isinstance(value, TensorClaim):
                _add_claim(claims, _join(path, key), value)
            elif value is not None:
                raise ValueError(
                    f"module {path!r:.80}: {group}[{str(key)!r:.40}] is a {_kind(value)}, wanted a tensor"
                )
    for key, value in module.attributes["_modules"].items():
        if is_module(value):
            _collect_module(
                value, _join(path, key), claims, classes, settings, visits, (*above, id(module))
            )
        elif value is not None:
            raise ValueError(
                f"module {path!r:.80}: its part {str(key)!r:.40} is a {_kind(value)}, wanted a module"
            )


def _record_metadata(root: Any, visits: Visits) -> dict[str, Any]:  # noqa: ANN401
    match root:
        case Stand() if is_module(root):
            return {"class": str(root.of)}
        case Stand():
            fields = {**plain_fields(root.attributes, visits), **plain_fields(root.entries, visits)}
            return {"class": str(root.of), **_lifted(fields)}
        case dict():
            return _lifted(plain_fields(root, visits))
    return {}


def _lifted(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields without a leading underscore; those of metadata and agent_attributes become fields of the whole."""
    whole = {key.lstrip("_") or key: value for key, value in fields.items()}
    for holder in _HOLDERS:
        held = whole.get(holder)
        if isinstance(held, dict):
            del whole[holder]
            _add_missing(whole, held)
    return whole


def _add_missing(fields: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        fields.setdefault(key, value)


def _features(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> id and normalisation of the observation features, from whichever maps the record has."""
    ids: dict[str, Any] = {}
    match metadata.get("original_feature_mapping"), metadata.get("feature_id_to_name"):
        case dict() as by_name, _:
            ids = by_name
        case _, dict() as by_id:
            ids = {str(name): int(key) for key, name in by_id.items() if key.isdecimal()}
    scales = metadata.get("feature_normalizations")
    scales = scales if isinstance(scales, dict) else {}
    return {
        name: {"id": key, "normalization": scales.get(str(key))}
        for name, key in sorted(ids.items(), key=lambda item: str(item[1]).zfill(6))
    }


def _members(
    value: Stand | dict[Any, Any] | list[Any] | tuple[Any, ...], visits: Visits
) -> list[tuple[Any, Any]]:
    match value:
        case Stand():
            members = [*value.attributes.items(), *value.entries.items(), *enumerate(value.items)]
        case dict():
            members = list(value.items())
        case _:
            members = list(enumerate(value))
    visits.spend(len(members))
    return members


def _add_claim(claims: dict[str, TensorClaim], name: str, claim: TensorClaim) -> None:
    checked_name(name, kind="tensor name")
    if not name:
        raise ValueError(
            "holds a single tensor without a name, wanted a state_dict; save policy.state_dict()"
        )
    if name in claims:
        raise ValueError(f"tensor {name!r:.120} is there twice; rename one")
    claims[name] = claim
    if len(claims) > MAX_TENSORS:
        raise ValueError(f"more than {MAX_TENSORS} tensors; save the policy alone")


def _join(path: str, key: Any) -> str:  # noqa: ANN401 - a key of a dict, or an index
    name = str(key) if isinstance(key, (str, int)) else f"<{_kind(key)}>"
    return f"{path}.{name}" if path else name


def _is_hook(key: str) -> bool:
    return key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))


def _kind(value: object) -> str:
    return str(value.of) if isinstance(value, Stand) else type(value).__name__
