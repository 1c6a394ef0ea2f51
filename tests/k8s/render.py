"""What `kubectl kustomize` would print, for the part of kustomize that k8s/ uses; everything else is refused by name.

Covered: resources and components (files and folders), configMapGenerator without hashed names, images, patches of
JSON 6902, and merge patches without lists. Stricter than kustomize where kustomize is silent: a patch that matches
nothing, an image that nobody uses, an object defined twice and a key written twice are errors.
"""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
"""One Kubernetes object."""


class RenderError(ValueError):
    """A kustomization that cannot be rendered, or that uses what is not covered here."""


KEYS = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "configMapGenerator",
    "images",
    "patches",
}
API_OF = {
    "Kustomization": "kustomize.config.k8s.io/v1beta1",
    "Component": "kustomize.config.k8s.io/v1alpha1",
}


def render(folder: Path) -> list[Object]:
    """All objects of a kustomization, in the order of their first mention."""
    return _apply(folder, _read_kustomization(folder, kind="Kustomization"), [])


def read_documents(path: Path) -> list[Object]:
    """Objects of a YAML file; a key that is written twice is an error."""
    try:
        documents = list(yaml.load_all(path.read_text(), Loader=_StrictLoader))
    except (OSError, yaml.YAMLError) as error:
        raise RenderError(f"{path}: {error}") from error
    for document in documents:
        if not isinstance(document, dict) or not {"apiVersion", "kind"} <= set(document):
            raise RenderError(
                f"{path}: a document is no Kubernetes object: apiVersion and kind are wanted"
            )
    return documents


def group_and_version(thing: Object) -> tuple[str, str]:
    """Of an object's apiVersion; the group of core kinds is empty."""
    group, _, version = thing["apiVersion"].rpartition("/")
    return group, version


def label(thing: Object) -> str:
    """How messages call an object: kind/name."""
    return f"{thing['kind']}/{thing.get('metadata', {}).get('name', '?')}"


def _apply(folder: Path, kustomization: Object, objects: list[Object]) -> list[Object]:
    """A kustomization on top of objects, as kustomize orders it: resources, components, generators, patches, images."""
    objects = [*objects, *_resources(folder, kustomization)]
    for component in kustomization.get("components", []):
        path = _folder(folder, component)
        objects = _apply(path, _read_kustomization(path, kind="Component"), objects)
    objects += [
        _config_map(folder, generator) for generator in kustomization.get("configMapGenerator", [])
    ]
    seen: set[tuple[str, str, str | None, str]] = set()
    for one in objects:
        meta = one.get("metadata", {})
        key = (one["apiVersion"], one["kind"], meta.get("namespace"), meta.get("name", ""))
        if key in seen:
            raise RenderError(f"{folder}: {label(one)} is there twice")
        seen.add(key)
    for patch in kustomization.get("patches", []):
        _patch(folder, patch, objects)
    for image in kustomization.get("images", []):
        _set_image(folder, image, objects)
    return objects


def _read_kustomization(folder: Path, *, kind: str) -> Object:
    path = folder / "kustomization.yaml"
    (content,) = read_documents(path)
    if unknown := sorted(set(content) - KEYS):
        raise RenderError(
            f"{path}: {', '.join(unknown)}: not covered; only {', '.join(sorted(KEYS))} are"
        )
    if content["kind"] != kind or content["apiVersion"] != API_OF[kind]:
        raise RenderError(
            f"{path}: {content['apiVersion']} {content['kind']}; wanted {API_OF[kind]} {kind}"
        )
    return content


def _folder(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_dir():
        raise RenderError(f"{folder}: {name} is no folder")
    return path


def _resources(folder: Path, kustomization: Object) -> Iterator[Object]:
    for name in kustomization.get("resources", []):
        if "://" in name:
            raise RenderError(
                f"{folder}: resource {name} is of the network; only files and folders are read"
            )
        path = (folder / name).resolve()
        if path.is_dir():
            yield from render(path)
            continue
        if not path.is_relative_to(
            folder.resolve()
        ):  # kustomize's own rule, against reading secrets of others
            raise RenderError(
                f"{folder}: file {name} lies outside; name a folder with a kustomization"
            )
        yield from read_documents(path)


def _config_map(folder: Path, generator: Object) -> Object:
    _only(
        folder,
        "configMapGenerator",
        generator,
        {"name", "namespace", "literals", "files", "options"},
    )
    options = generator.get("options", {})
    _only(folder, "configMapGenerator.options", options, {"disableNameSuffixHash", "labels"})
    if options.get("disableNameSuffixHash") is not True:
        raise RenderError(
            f"{folder}: config map {generator['name']}: hashed names are not covered; set disableNameSuffixHash"
        )
    data = {}
    for literal in generator.get("literals", []):
        key, equals, value = literal.partition("=")
        if not equals:
            raise RenderError(f"{folder}: literal {literal!r} is not key=value")
        data[key] = value
    for name in generator.get("files", []):
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise RenderError(f"{folder}: {name} is no file of this folder")
        data[path.name] = path.read_text()
    metadata: Object = {"name": generator["name"]}
    if "namespace" in generator:
        metadata["namespace"] = generator["namespace"]
    if "labels" in options:
        metadata["labels"] = dict(options["labels"])
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _only(folder: Path, what: str, content: Object, known: set[str]) -> None:
    if unknown := sorted(set(content) - known):
        raise RenderError(
            f"{folder}: {what}: {', '.join(unknown)}: not covered; only {', '.join(sorted(known))} are"
        )


def _set_image(folder: Path, image: Object, objects: list[Object]) -> None:
    _only(folder, "images", image, {"name", "newName", "newTag", "digest"})
    if "newTag" in image and "digest" in image:
        raise RenderError(f"{folder}: image {image['name']}: newTag and digest; give one of them")
    reference = image.get("newName", image["name"])
    if "digest" in image:
        reference += f"@{image['digest']}"
    elif "newTag" in image:
        reference += f":{image['newTag']}"
    used = 0
    for one in objects:
        for container in _containers(one):
            if re.split(r"[:@]", container.get("image", ""))[0] == image["name"]:
                container["image"] = reference
                used += 1
    if not used:
        raise RenderError(f"{folder}: image {image['name']}: no container has it")


def _containers(node: object) -> Iterator[Object]:
    """Every member of a list called containers or initContainers, however deep, as kustomize looks for them."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("containers", "initContainers") and isinstance(value, list):
                yield from (member for member in value if isinstance(member, dict))
            else:
                yield from _containers(value)
    elif isinstance(node, list):
        for member in node:
            yield from _containers(member)


def _patch(folder: Path, patch: Object, objects: list[Object]) -> None:
    _only(folder, "patches", patch, {"target", "patch"})
    target = patch.get("target", {})
    _only(folder, "patches.target", target, {"group", "version", "kind", "name"})
    change = yaml.load(patch["patch"], Loader=_StrictLoader)
    hit = [one for one in objects if _matches(one, target)]
    if not hit:
        raise RenderError(f"{folder}: a patch of {target} matches nothing")
    for one in hit:
        where = f"{folder}: patch of {label(one)}"
        if isinstance(change, list):
            for operation in change:
                patch_object(one, operation, where=where)
        else:
            _merge(one, change, where=where)


def _matches(one: Object, target: Object) -> bool:
    group, version = group_and_version(one)
    found = {
        "group": group,
        "version": version,
        "kind": one["kind"],
        "name": one["metadata"]["name"],
    }
    return all(found[key] == wanted for key, wanted in target.items())


def patch_object(one: Object, operation: Object, *, where: str) -> None:
    """One operation of JSON 6902 (add, replace, remove), in place."""
    path = operation["path"]
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
    node: Any = one
    for part in parents:
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise RenderError(f"{where}: {path}: there is no {part!r}") from error
    value = copy.deepcopy(operation.get("value"))
    match operation["op"], node:
        case "add", list() if last == "-":
            node.append(value)
        case "add", list():
            node.insert(int(last), value)
        case "add", dict():
            node[last] = value
        case (("replace" | "remove"), (list() | dict())):
            key = int(last) if isinstance(node, list) else last
            if (key not in node) if isinstance(node, dict) else not 0 <= key < len(node):
                raise RenderError(f"{where}: {path}: there is no {last!r}")
            if operation["op"] == "remove":
                del node[key]
            else:
                node[key] = value
        case operation_name, _:
            raise RenderError(f"{where}: {path}: operation {operation_name!r} is not covered")


def _merge(one: Object, change: Object, *, where: str) -> None:
    for key, value in change.items():
        if isinstance(value, list):
            raise RenderError(
                f"{where}: {key} is a list: how lists merge depends on the kind; use JSON 6902"
            )
        if value is None:
            one.pop(key, None)
        elif isinstance(value, dict) and isinstance(one.get(key), dict):
            _merge(one[key], value, where=where)
        else:
            one[key] = copy.deepcopy(value)


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may stand once; YAML itself takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands twice", node.value[number][0].start_mark
                )
        return super().construct_mapping(node, deep=deep)
