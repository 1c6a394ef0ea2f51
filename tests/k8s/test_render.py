"""The renderer does what kustomize does, and says what it does not do."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.check import OVERLAYS
from tests.k8s.render import RenderError, render

HEADER = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: b}\n"


def write(folder: Path, kustomization: str, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(HEADER + kustomization)
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)
    return folder


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_is_rendered_as_kubectl_renders_it(overlay) -> None:
    printed = subprocess.run(
        ["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, timeout=60
    )
    assert printed.returncode == 0, printed.stderr

    def by_name(objects):
        return {(one["kind"], one["metadata"]["name"]): one for one in objects}

    assert by_name(render(overlay)) == by_name(yaml.safe_load_all(printed.stdout))


def test_patches_add_replace_remove_and_merge(tmp_path) -> None:
    folder = write(
        tmp_path / "o",
        """resources: [m.yaml]
patches:
  - target: {version: v1, kind: ConfigMap}
    patch: |-
      - {op: add, path: /data/c~1d, value: e}
      - {op: replace, path: /data/a, value: f}
  - target: {kind: ConfigMap, name: m}
    patch: |-
      data: {g: h, a: null}
""",
        m=MAP,
    )
    (rendered,) = render(folder)
    assert rendered["data"] == {"c/d": "e", "g": "h"}


def test_an_image_is_set_in_every_container(tmp_path) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {
            "containers": [{"image": "ours"}, {"image": "theirs:1"}],
            "initContainers": [{"image": "ours:0"}],
        },
    }
    folder = write(
        tmp_path / "o",
        "resources: [p.yaml]\nimages: [{name: ours, newName: registry/ours, digest: 'sha256:12'}]\n",
        p=json.dumps(pod),
    )
    (rendered,) = render(folder)
    images = [
        one["image"] for one in rendered["spec"]["containers"] + rendered["spec"]["initContainers"]
    ]
    assert images == ["registry/ours@sha256:12", "theirs:1", "registry/ours@sha256:12"]


@pytest.mark.parametrize(
    ("kustomization", "message"),
    [
        ("resources: [m.yaml]\nnamePrefix: x-\n", r"namePrefix: not covered"),
        ("resources: [m.yaml]\nreplacements: []\n", r"replacements: not covered"),
        ("resources: [https://x/y]\n", r"is of the network"),
        ("resources: [m.yaml, m.yaml]\n", r"ConfigMap/m is there twice"),
        ("resources: [../outside.yaml]\n", r"lies outside"),
        ("resources: [absent.yaml]\n", r"absent\.yaml"),
        ("components: [absent]\n", r"absent is no folder"),
        ("resources: [m.yaml]\nresources: []\n", r"'resources' stands twice"),
        ("resources: [m.yaml]\nimages: [{name: nobody, newTag: '1'}]\n", r"no container has it"),
        ("configMapGenerator: [{name: c, literals: [a=b]}]\n", r"hashed names are not covered"),
        ("configMapGenerator: [{name: c, envs: [f]}]\n", r"envs: not covered"),
        (
            "resources: [m.yaml]\npatches: [{target: {kind: Secret}, patch: '{a: 1}'}]\n",
            r"matches nothing",
        ),
        (
            "resources: [m.yaml]\npatches: [{target: {kind: ConfigMap}, patch: '{data: {l: [1]}}'}]\n",
            r"l is a list",
        ),
        (
            "resources: [m.yaml]\npatches: [{target: {kind: ConfigMap}, patch: '[{op: replace, path: /data/z}]'}]\n",
            r"there is no 'z'",
        ),
        (
            "resources: [m.yaml]\npatches: [{target: {kind: ConfigMap}, patch: '[{op: move, path: /data/a}]'}]\n",
            r"'move' is not covered",
        ),
        (
            "resources: [m.yaml]\npatches: [{target: {labelSelector: a}, patch: '{a: 1}'}]\n",
            r"labelSelector: not covered",
        ),
    ],
)
def test_what_is_not_covered_is_refused_by_name(tmp_path, kustomization, message) -> None:
    (tmp_path / "outside.yaml").write_text(MAP)
    with pytest.raises(RenderError, match=message):
        render(write(tmp_path / "o", kustomization, m=MAP))
