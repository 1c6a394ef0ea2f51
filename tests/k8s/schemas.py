"""Objects against the schemas of the API: unknown fields, wrong types, missing fields.

Core kinds by the schemas of kubernetes-validate; kinds of others by schemas/*.json, which were made from the
definitions of KubeRay 1.7.0, Kueue 0.19.2 and the operator of Prometheus 0.93.0: descriptions and status left out,
fields that are not defined refused, required fields with a default not required.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

from tests.k8s.render import Object, group_and_version

KUBERNETES = "1.37"
"""Of the schemas of core kinds."""
SCHEMAS = Path(__file__).parent / "schemas"
CORE_GROUPS = {"", "batch", "networking.k8s.io"}
METADATA = {"name", "namespace", "labels", "annotations"}


def problems(thing: Object) -> Iterator[str]:
    """What the schema of its kind says against an object."""
    if unknown := sorted(set(thing.get("metadata", {})) - METADATA):
        yield f"metadata: {', '.join(unknown)}: unknown; wanted are {', '.join(sorted(METADATA))}"
    group, version = group_and_version(thing)
    if group in CORE_GROUPS:
        yield from _core(thing)
        return
    validator = _validators().get((group, version, thing["kind"]))
    if validator is None:
        yield f"{thing['apiVersion']} {thing['kind']}: no schema here; add its definition to {SCHEMAS.name}/"
        return
    for error in validator.iter_errors(thing):
        yield f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message:.300}"


def pod_problems(template: Object) -> Iterator[str]:
    """The same for the template of a pod that stands inside of an object of another kind."""
    metadata = {"name": "pod", **template.get("metadata", {})}
    yield from _core({"apiVersion": "v1", "kind": "Pod", **template, "metadata": metadata})


def _core(thing: Object) -> tuple[str, ...]:
    return _core_problems(json.dumps(thing, sort_keys=True))


@cache
def _core_problems(content: str) -> tuple[str, ...]:
    """By content, for the library reads its schemas, 2 MB, every time."""
    thing = json.loads(content)
    try:
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{'.'.join(str(part) for part in error.path)}: {error.message:.300}",)
    except (
        kubernetes_validate.SchemaNotFoundError,
        kubernetes_validate.InvalidSchemaError,
    ) as error:
        return (f"{thing['apiVersion']} {thing['kind']}: {error.message}",)
    return ()


@cache
def _validators() -> dict[tuple[str, str, str], Validator]:
    """By group, version and kind."""
    found: dict[tuple[str, str, str], Validator] = {}
    for path in sorted(SCHEMAS.glob("*.json")):
        content = json.loads(path.read_text())
        kinds = [name for name in content.get("$defs", {}) if name.startswith("Ray")] or [None]
        for kind in kinds:
            schema: dict[str, Any] = content if kind is None else content["$defs"][kind]
            properties = schema["properties"]
            group, _, version = properties["apiVersion"]["const"].rpartition("/")
            whole = content if kind is None else {**content, "$ref": f"#/$defs/{kind}"}
            found[group, version, properties["kind"]["const"]] = validator_for(whole)(whole)
    return found
