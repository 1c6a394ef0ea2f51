"""One entry for every file: what it is not, it says; and nowhere in our code is a pickle opened otherwise."""

import ast
import pickle
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import interp
from interp.policies.formats.reading import read_policy_file

ROOT = Path(interp.__file__).parents[1]
# A worker's recipe travels from our own driver to our own actor; Ray itself pickles such things.
TRUSTED = {"cluster/crew.py": {"pickle.loads"}}
UNPICKLERS = {"load", "loads", "Unpickler"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "_pickle"}


def test_a_missing_path_is_not_found(tmp_path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"nothing\.pt: no such file or folder; wanted safetensors"
    ):
        read_policy_file(tmp_path / "nothing.pt")


def test_the_hash_of_a_file_is_of_its_bytes(tmp_path) -> None:
    content = save({"w": torch.ones(1)})
    (tmp_path / "w.safetensors").write_bytes(content)
    assert read_policy_file(tmp_path / "w.safetensors").sha256 == sha256(content).hexdigest()


OTHERS = {
    "empty": (b"", "an empty file"),
    "zeros": (bytes(1000), "an unknown format that begins with 00 00"),
    "text": (b"hello", "an unknown format"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "HTML or XML"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "gzip"),
    "numpy objects": (b"\x93NUMPY\x01\x00", "a numpy array"),
    "JSON": (b'{"w": 1}', "JSON"),
    "tar": (bytes(257) + b"ustar" + bytes(250), "a tar"),
    "bare pickle": (pickle.dumps({"w": 1}, 2), "a bare pickle"),
    "newer bare pickle": (pickle.dumps({"w": 1}, 5), "a bare pickle"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "a zip without a policy that we know"),
    "start of a zip": (b"PK\x03\x04", "damaged or cut off"),
}


@pytest.mark.parametrize(("content", "said"), OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_policy_file_is_told_by_its_content(tmp_path, refusal, content, said) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    assert said in refusal(tmp_path / "model.pt")


def test_a_pickle_renamed_safetensors_is_refused(tmp_path, refusal) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"w": 1}))
    assert "called .safetensors but it is a bare pickle" in refusal(path)
    torch.save({"w": torch.ones(1)}, path)
    assert "called .safetensors but it is a zip" in refusal(path)
    torch.save({"w": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    assert "called .safetensors but it is a pickle of torch.save" in refusal(path)


def test_a_zip_that_begins_like_safetensors_is_still_a_zip(tmp_path, refusal) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"w": torch.ones(1)}, path)
    content = bytearray(path.read_bytes())
    content[8] = ord("{")
    path.write_bytes(content)
    assert "called .safetensors but it is a zip" in refusal(path)


def test_a_folder_with_one_policy_file_is_that_file(tmp_path, refusal) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "README.md").write_text("about")
    assert "0 policy files" in refusal(folder)
    torch.save({"w": torch.ones(1)}, folder / "model.pt")
    assert read_policy_file(folder).format == "state-dict"
    torch.save({"w": torch.ones(1)}, folder / "model_2.pt")
    assert "2 policy files ['model.pt', 'model_2.pt']" in refusal(folder)
    (folder / "model_2.pt").unlink()
    (folder / "model.pt").write_bytes(b"")
    assert "model.pt: an empty file" in refusal(folder)


def unsafe_calls(source: str) -> list[str]:
    """Calls that would run code from a file: torch.load and numpy.load where they may, and the unpicklers."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if not isinstance(node.func.value, ast.Name):
            continue
        called = f"{node.func.value.id}.{node.func.attr}"
        literal = {
            keyword.arg: keyword.value.value
            for keyword in node.keywords
            if isinstance(keyword.value, ast.Constant)
        }
        if (
            (called == "torch.load" and literal.get("weights_only") is not True)
            or (called in {"np.load", "numpy.load"} and literal.get("allow_pickle", False))
            or (node.func.value.id in PICKLES and node.func.attr in UNPICKLERS)
        ):
            found.append(called)
    return found


def test_nothing_of_ours_opens_a_pickle_otherwise() -> None:
    files = [
        path
        for room in ("interp", "cluster", "jobs", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    ]
    assert len(files) > 50
    unsafe = {
        path.relative_to(ROOT).as_posix(): set(unsafe_calls(path.read_text())) for path in files
    }
    assert {
        name: calls - TRUSTED.get(name, set())
        for name, calls in unsafe.items()
        if calls - TRUSTED.get(name, set())
    } == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "pickle.loads(b)",
        "np.load(f, allow_pickle=True)",
        "dill.load(f)",
        "pickle.Unpickler(f)",
    ],
)
def test_the_search_finds_what_it_looks_for(source) -> None:
    assert unsafe_calls(source)


@pytest.mark.parametrize(
    "source", ["torch.load(f, weights_only=True)", "np.load(f, allow_pickle=False)", "json.load(f)"]
)
def test_the_search_passes_what_is_safe(source) -> None:
    assert not unsafe_calls(source)
