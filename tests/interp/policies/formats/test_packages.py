"""Weights with a description: what it says is kept as text; nothing that it names is imported, run or reached."""

import base64
import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from interp.identity import canonical_json
from interp.policies.formats.reading import read_policy_file

WEIGHTS = {"core.weight": torch.arange(4.0).reshape(2, 2)}
ARCHITECTURE = (
    "agents.vit.Config(parts=[{'class_path': 'agents.Lstm', 'hidden': 64, 'bias': True, 'scale': -1.5, 'none': None}, "
    "agents.Head(width=(2, 3), kind=agents.Kind.MEAN)])"
)
TREE = {
    "class_path": "agents.vit.Config",
    "parts": [
        {"class_path": "agents.Lstm", "hidden": 64, "bias": True, "scale": -1.5, "none": None},
        {"class_path": "agents.Head", "width": [2, 3], "kind": "agents.Kind.MEAN"},
    ],
}
KINDS = ["folder", "zip", "zip with a folder"]


class Call:
    def __init__(self, function, *args) -> None:
        self.called = (function, args)

    def __reduce__(self):
        return self.called


def torch_bytes(content) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def packed(tmp_path: Path, members: dict[str, bytes], kind: str = "zip") -> Path:
    if kind == "folder":
        path = tmp_path / "policy"
        for name, content in members.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path
    path = tmp_path / "policy.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"run:v12/{name}" if kind == "zip with a folder" else name, content)
    return path


def checkpoint(**changed) -> dict[str, bytes]:
    spec = {
        "class_path": "net_of_theirs.Policy",
        "data_path": "weights.safetensors",
        "init_kwargs": {"architecture_spec": ARCHITECTURE, "device": "cpu"},
        "setup_script": "setup_policy.py",
        **changed,
    }
    return {
        "policy_spec.json": json.dumps(spec).encode(),
        "weights.safetensors": save(WEIGHTS),
        "setup_policy.py": b"raise SystemExit('ran')",
        "net_of_theirs.py": b"raise SystemExit('imported')",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_package_is_read_and_its_class_is_text(tmp_path, kind) -> None:
    state = {"epoch": 12, "agent_step": 4096, "optimizer": {"exp_avg": torch.ones(2)}}
    members = {**checkpoint(), "trainer_state.pt": torch_bytes(state)}
    found = read_policy_file(packed(tmp_path, members, kind))
    assert found.format == "checkpoint-folder"
    torch.testing.assert_close(dict(found.tensors), WEIGHTS)
    assert found.metadata["class_path"] == "net_of_theirs.Policy"
    assert found.metadata["setup_script"] == "setup_policy.py"
    assert found.metadata["architecture"] == TREE
    assert found.metadata["epoch"] == 12 and found.metadata["agent_step"] == 4096
    assert "net_of_theirs" not in sys.modules


@pytest.mark.parametrize("kind", KINDS)
def test_a_submission_manifest_is_read(tmp_path, kind) -> None:
    manifest = b"""
        [policy]
        class_path = "net_of_theirs.Policy"
        data_path = "./data/model.pt"
        [policy.init_kwargs]
        hidden = 64
    """
    members = {"cogames.toml": manifest, "data/model.pt": torch_bytes(WEIGHTS)}
    found = read_policy_file(packed(tmp_path, members, kind))
    torch.testing.assert_close(dict(found.tensors), WEIGHTS)
    assert found.metadata["class_path"] == "net_of_theirs.Policy"
    assert found.metadata["init_kwargs"] == {"hidden": 64}


@pytest.mark.parametrize("kind", KINDS)
def test_an_mpt_is_read_into_a_tree(tmp_path, kind) -> None:
    members = {"modelarchitecture.txt": ARCHITECTURE.encode(), "weights.safetensors": save(WEIGHTS)}
    found = read_policy_file(packed(tmp_path, members, kind))
    assert found.format == "mpt"
    assert found.metadata["architecture"] == TREE
    torch.testing.assert_close(dict(found.tensors), WEIGHTS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_of_ours_is_read_with_its_card(tmp_path, kind) -> None:
    members = {
        "architecture.json": canonical_json({"family": "token-lstm", "hidden": 64}),
        "weights.safetensors": save(WEIGHTS),
        "card.json": canonical_json({"name": "forager", "run": "demo", "step": 4096}),
    }
    found = read_policy_file(packed(tmp_path, members, kind))
    assert found.format == "bundle"
    assert found.metadata["architecture"] == {"family": "token-lstm", "hidden": 64}
    assert (found.metadata["agent_step"], found.metadata["run_name"]) == (4096, "demo")
    assert read_policy_file(
        packed(tmp_path / "bare", {k: members[k] for k in list(members)[:2]}, "folder")
    ).tensors


def stable_baselines(data: object, weights: bytes) -> dict[str, bytes]:
    return {
        "data": data if isinstance(data, bytes) else json.dumps(data).encode(),
        "policy.pth": weights,
        "policy.optimizer.pth": b"not read",
        "pytorch_variables.pth": b"not read",
        "_stable_baselines3_version": b"2.9.2",
    }


def test_a_stable_baselines_zip_is_read_without_its_pickles(tmp_path, canary) -> None:
    payload = base64.b64encode(pickle.dumps(Call(os.system, f"touch {canary}"))).decode()
    data = {
        "policy_class": {
            ":type:": "<class 'abc.ABCMeta'>",
            ":serialized:": payload,
            "__module__": "sb3_contrib",
        },
        "n_envs": 8,
        "num_timesteps": 2048,
        "gamma": 0.99,
        "tensorboard_log": None,
    }
    found = read_policy_file(packed(tmp_path, stable_baselines(data, torch_bytes(WEIGHTS))))
    assert found.format == "sb3"
    torch.testing.assert_close(dict(found.tensors), WEIGHTS)
    assert found.metadata == {
        "policy_class": {":type:": "<class 'abc.ABCMeta'>", "__module__": "sb3_contrib"},
        "n_envs": 8,
        "num_timesteps": 2048,
        "agent_step": 2048,
        "gamma": 0.99,
        "tensorboard_log": None,
        "stable_baselines3_version": "2.9.2",
    }
    assert not canary.exists()


# --- what is refused

SPECS = {
    "class_path missing": ({"class_path": None}, "policy_spec.json: class_path is missing"),
    "class_path of another kind": (
        {"class_path": ["os.system"]},
        "policy_spec.json: class_path is missing or no text",
    ),
    "data_path leaves": (
        {"data_path": "../../etc/passwd"},
        "policy_spec.json: data_path '../../etc/passwd' leaves its folder",
    ),
    "data_path absolute": (
        {"data_path": "/etc/passwd"},
        "data_path '/etc/passwd' leaves its folder",
    ),
    "data_path elsewhere": ({"data_path": "s3://bucket/model.pt"}, "leaves its folder"),
    "data_path not there": (
        {"data_path": "model.pt"},
        "policy_spec.json: data_path 'model.pt' is not there",
    ),
    "data_path of another kind": ({"data_path": 3}, "policy_spec.json: data_path is a int"),
    "data_path to code": ({"data_path": "setup_policy.py"}, "setup_policy.py: an unknown format"),
    "init_kwargs of another kind": (
        {"init_kwargs": [1]},
        "policy_spec.json: init_kwargs is a list",
    ),
    "architecture to evaluate": (
        {"init_kwargs": {"architecture_spec": "__import__('os').system('true')"}},
        "policy_spec.json: init_kwargs.architecture_spec: line 1: a call by position",
    ),
    "control character": (
        {"class_path": "net\x1b[2J"},
        "policy_spec.json: text in the metadata holds the control character U+001B",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("changed", "said"), SPECS.values(), ids=SPECS.keys())
def test_a_specification_that_is_wrong_or_reaches_out_is_refused(
    tmp_path, refusal, changed, said, kind
) -> None:
    found = refusal(packed(tmp_path, checkpoint(**changed), kind))
    assert said in found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"class_path": "a", "class_path": "b"}', "'class_path' is repeated"),
        (b'{"class_path": NaN}', "NaN is not a JSON number"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not readable as JSON"),
        (b"[]", "found a JSON list"),
        (b"\xff\xfe\xff", "not readable as JSON"),
        (b"", "not readable as JSON"),
    ],
    ids=["repeated key", "NaN", "deep", "list", "not text", "empty"],
)
def test_a_specification_that_is_no_strict_json_is_refused(
    tmp_path, refusal, content, said
) -> None:
    found = refusal(packed(tmp_path, {**checkpoint(), "policy_spec.json": content}))
    assert "policy_spec.json" in found and said in found


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"[policy", "not readable as TOML"),
        (b"a = " + b"[" * 100_000, "not readable as TOML"),
        (b"[other]", "no table [policy]"),
        (b"\xff", "not UTF-8"),
        (b"[policy]\nclass_path = 'a'\ndata_path = '../x'", "leaves its folder"),
    ],
    ids=["broken", "deep", "no table", "not UTF-8", "reaches out"],
)
def test_a_manifest_that_is_wrong_is_refused(tmp_path, refusal, manifest, said) -> None:
    found = refusal(
        packed(tmp_path, {"cogames.toml": manifest, "weights.safetensors": save(WEIGHTS)})
    )
    assert "cogames.toml" in found and said in found


TEXTS = {
    "expression": "1 + 1",
    "call by position": "a.B('x')",
    "unpacked keywords": "a.B(**{'x': 1})",
    "computed": "a.B(x=2 ** 100_000_000)",
    "comprehension": "a.B(x=[i for i in range(3)])",
    "lambda": "a.B(x=lambda: 0)",
    "subscript": "a.B(x=().__class__.__mro__[1])",
    "formatted": "a.B(x=f'{open}')",
    "import": "__import__('os').system('touch canary')",
    "bytes": "a.B(x=b'1')",
    "repeated keyword": "a.B(x=1, x=2)",
    "repeated key": "a.B(x={'y': 1, 'y': 2})",
    "key of another kind": "a.B(x={1: 2})",
    "infinity": "a.B(x=1e999)",
    "huge number": "a.B(x=" + "9" * 5000 + ")",
    "statement": "import os",
    "unfinished": "a.B(x=[",
    "deep lists": "a.B(x=" + "[" * 150 + "]" * 150 + ")",
    "deeper lists": "a.B(x=" + "[" * 100_000 + "]" * 100_000 + ")",
    "deep signs": "a.B(x=" + "-" * 100_000 + "1)",
    "deep attributes": "a" + ".b" * 100_000 + "()",
    "too long": "a.B(x='" + "x" * 300_000 + "')",
    "NUL": "a.B(x='\0')",
    "empty": "",
}


@pytest.mark.parametrize("architecture", TEXTS.values(), ids=TEXTS.keys())
def test_an_architecture_that_would_have_to_be_computed_is_refused(
    tmp_path, refusal, architecture
) -> None:
    members = {"modelarchitecture.txt": architecture.encode(), "weights.safetensors": save(WEIGHTS)}
    assert "modelarchitecture.txt" in refusal(packed(tmp_path, members))


def test_hostile_weights_in_a_package_are_refused_with_the_members_name(
    tmp_path, refusal, canary
) -> None:
    hostile = torch_bytes({"w": torch.ones(1), "x": Call(os.system, f"touch {canary}")})
    assert "policy.pth: " in refusal(packed(tmp_path, stable_baselines({}, hostile)))
    members = {**checkpoint(data_path="model.pt"), "model.pt": hostile}
    assert "model.pt: " in refusal(packed(tmp_path, members))
    members = {**checkpoint(), "trainer_state.pt": hostile}
    said = refusal(packed(tmp_path, members))
    assert said.startswith("trainer_state.pt: ") and "asks to call posix.system" in said
    members = {**checkpoint(), "weights.safetensors": torch_bytes(WEIGHTS)}
    assert "weights.safetensors: called .safetensors but it is a zip" in refusal(
        packed(tmp_path, members)
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [(b'{"gamma": Infinity}', "Infinity is not"), (b"{", "not readable"), (b"[1]", "JSON list")],
    ids=["infinity", "broken", "list"],
)
def test_stable_baselines_data_that_is_no_strict_json_is_refused(
    tmp_path, refusal, data, said
) -> None:
    found = refusal(packed(tmp_path, stable_baselines(data, torch_bytes(WEIGHTS))))
    assert said in found and "data: " in found
