"""What was saved -> tensors by dotted name, classes of modules by path, and metadata.

A state_dict is a dict of tensors; a checkpoint holds one under a name such as "model_state_dict", beside numbers; a
record holds a whole module, which knows its tensors as state_dict() would list them, classes and settings besides.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
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
    *("_is_full_backward_hook", "_version"),
}


def read_contents(file: TorchFile) -> Contents:
    """Tensors, modules and metadata of a torch file, whatever it holds.

    Raises:
        ValueError: no tensors in it, a name that is repeated or not printable, or too much of everything.
    """
    visits = Visits()
    modules = _root_modules(file.root, visits)
    if modules:
        return _module_contents(file, modules, visits)
    return _tensor_contents(file, visits)


def scalars(root: Any) -> dict[str, Any]:  # noqa: ANN401 - what was saved
    """The numbers, texts and flags of a saved dict, for instance epoch and agent_step of a trainer's state."""
    if not isinstance(root, dict):
        return {}
    single = {
        key: value for key, value in root.items() if isinstance(value, (bool, int, float, str))
    }
    return plain_fields(single, Visits())


def _tensor_contents(file: TorchFile, visits: Visits) -> Contents:
    """Of a state_dict, or of containers with tensors anywhere in them."""
    claims: dict[str, TensorClaim] = {}
    _collect_tensors(file.root, "", claims, visits, ())
    if not claims:
        raise ValueError(
            f"holds a {_kind(file.root)} without tensors, wanted a state_dict or a module; "
            "save policy.state_dict()"
        )
    if not isinstance(file.root, dict):
        return Contents(
            format="checkpoint",
            tensors=materialise(claims, file.storages),
            metadata=_record_metadata(file.root, visits),
        )
    # What holds tensors is no metadata, whatever numbers it has beside them.
    holding = Counter(name.partition(".")[0] for name in claims)
    metadata = _record_metadata(
        {key: value for key, value in file.root.items() if str(key) not in holding}, visits
    )
    nested = [
        key for key in STATE_DICT_KEYS if key in holding and isinstance(file.root.get(key), dict)
    ]
    if len(nested) > 1:
        raise ValueError(
            f"holds state dicts under {nested}, wanted one; save the policy's under 'model_state_dict' alone"
        )
    if nested:
        policy = f"{nested[0]}."
        others = {key: count for key, count in holding.items() if key != nested[0]}
        if others:
            metadata["left_out"] = others
        claims = {
            name.removeprefix(policy): claim
            for name, claim in claims.items()
            if name.startswith(policy)
        }
    return Contents(
        format="state-dict" if all(name in file.root for name in claims) else "checkpoint",
        tensors=materialise(claims, file.storages),
        metadata=metadata,
    )


def _module_contents(
    file: TorchFile, roots: Iterable[tuple[str, Stand]], visits: Visits
) -> Contents:
    """Of a module, or of a record or containers with modules in them."""
    tree = _ModuleTree(visits)
    match list(roots):
        case [(_, module)]:
            # Alone, a module is the policy, and its names are those of its own state_dict().
            tree.add(module, "", ())
        case several:
            for path, module in several:
                tree.add(module, path, ())
    if not tree.claims:
        raise ValueError(
            "holds modules without any tensor, wanted weights; save the module after it was built"
        )
    metadata = _record_metadata(file.root, visits)
    _add_missing(metadata, _lifted(tree.settings.pop("", {})))
    for found in tree.settings.values():
        _add_missing(metadata, {key: found[key] for key in _INTERFACE if key in found})
    if features := _features(metadata):
        metadata.setdefault("features", features)
    if isinstance(metadata.get("config"), dict) and "components" in metadata["config"]:
        metadata["architecture"] = metadata.pop("config")
    metadata["attributes"] = tree.settings
    known_as = _kind(file.root).rpartition(".")[2]
    return Contents(
        format=_RECORD_FORMATS.get(known_as, "module"),
        tensors=materialise(tree.claims, file.storages),
        modules=tree.classes,
        metadata=metadata,
    )


class _ModuleTree:
    """What the modules tell, by dotted path; a module that is used twice is there twice, as in a state_dict."""

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self.claims: dict[str, TensorClaim] = {}
        self.classes: dict[str, str] = {}
        self.settings: dict[str, dict[str, Any]] = {}

    def add(self, module: Stand, path: str, above: tuple[int, ...]) -> None:
        self._visits.spend()
        if id(module) in above or len(above) > MAX_DEPTH:
            raise ValueError(
                f"module {path[:80]!r} contains itself or is nested deeper than {MAX_DEPTH}; save a state_dict"
            )
        self.classes[path] = checked_name(str(module.of), kind="class")
        settings = {
            key: value
            for key, value in module.attributes.items()
            if isinstance(key, str) and key not in _BOOKKEEPING and not _is_hook(key)
        }
        if own := plain_fields(settings, self._visits):
            self.settings[path] = own
        for group in ("_parameters", "_buffers"):
            for key, value in self._held(module, group, path):
                if isinstance(value, TensorClaim):
                    _add_claim(self.claims, _join(path, key), value)
                elif value is not None:
                    raise ValueError(
                        f"module {path!r:.80}: {group} holds a {_kind(value)} where a tensor is wanted; "
                        "save a state_dict"
                    )
        for key, value in self._held(module, "_modules", path):
            if is_module(value):
                self.add(value, _join(path, key), (*above, id(module)))
            elif value is not None:
                raise ValueError(
                    f"module {path!r:.80}: _modules holds a {_kind(value)} where a module is wanted; "
                    "save a state_dict"
                )

    def _held(self, module: Stand, group: str, path: str) -> list[tuple[Any, Any]]:
        held = module.attributes.get(group)
        if held is None:
            return []
        if not isinstance(held, dict):
            raise ValueError(
                f"module {path!r:.80}: {group} is a {_kind(held)}, wanted a dict; save a state_dict"
            )
        self._visits.spend(len(held))
        return list(held.items())


def _root_modules(root: Any, visits: Visits) -> list[tuple[str, Stand]]:  # noqa: ANN401
    """The modules that are not within others, by dotted path, each once."""
    found: list[tuple[str, Stand]] = []
    seen: set[int] = set()
    pending: deque[tuple[str, Any, int]] = deque([("", root, 0)])
    while pending:
        path, value, depth = pending.popleft()
        if id(value) in seen or not isinstance(value, (Stand, dict, list, tuple)):
            continue
        seen.add(id(value))
        if depth > MAX_DEPTH:
            raise ValueError(f"{path[:80]!r}...: nested deeper than {MAX_DEPTH}; save a state_dict")
        if isinstance(value, Stand) and is_module(value):
            found.append((path, value))
        else:
            pending += [(_join(path, key), one, depth + 1) for key, one in _members(value, visits)]
    return found


def _collect_tensors(
    value: Any,  # noqa: ANN401 - any inert value
    path: str,
    claims: dict[str, TensorClaim],
    visits: Visits,
    above: tuple[int, ...],
) -> None:
    if isinstance(value, TensorClaim):
        _add_claim(claims, path, value)
    elif isinstance(value, (Stand, dict, list, tuple)) and id(value) not in above:
        if len(above) > MAX_DEPTH:
            raise ValueError(
                f"{path[:80]!r}...: nested deeper than {MAX_DEPTH}; save a flat state_dict"
            )
        for key, one in _members(value, visits):
            _collect_tensors(one, _join(path, key), claims, visits, (*above, id(value)))


def _members(
    value: Stand | dict[Any, Any] | list[Any] | tuple[Any, ...], visits: Visits
) -> list[tuple[Any, Any]]:
    match value:
        case Stand(of=of) if of.module.startswith("omegaconf."):
            # Settings, each of which knows its parents.
            members = []
        case Stand():
            members = [*value.attributes.items(), *value.entries.items(), *enumerate(value.items)]
        case dict():
            members = list(value.items())
        case _:
            members = list(enumerate(value))
    visits.spend(1 + len(members))
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


def _lifted(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields without a leading underscore; those of metadata and agent_attributes become fields of the whole."""
    whole = {key.lstrip("_") or key: value for key, value in fields.items()}
    for holder in _HOLDERS:
        if isinstance(held := whole.get(holder), dict):
            del whole[holder]
            _add_missing(whole, held)
    return whole


def _add_missing(fields: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        fields.setdefault(key, value)


def _features(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> id and normalisation of the observation features, by id, from whichever maps the record has."""
    match metadata.get("original_feature_mapping"), metadata.get("feature_id_to_name"):
        case dict() as by_name, _:
            ids = {name: key for name, key in by_name.items() if isinstance(key, int)}
        case _, dict() as by_id:
            ids = {
                name: int(key)
                for key, name in by_id.items()
                if isinstance(name, str) and key.isascii() and key.isdecimal()
            }
        case _:
            return {}
    scales = metadata.get("feature_normalizations")
    return {
        name: {
            "id": ids[name],
            "normalization": scales.get(str(ids[name])) if isinstance(scales, dict) else None,
        }
        for name in sorted(ids, key=lambda name: (ids[name], name))
    }


def _join(path: str, key: Any) -> str:  # noqa: ANN401 - a key of a dict, or an index
    name = str(key) if isinstance(key, (str, int)) else f"<{_kind(key)}>"
    return f"{path}.{name}" if path else name


def _is_hook(key: str) -> bool:
    return key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))


def _kind(value: object) -> str:
    return str(value.of) if isinstance(value, Stand) else type(value).__name__
