"""What torch.save wrote is read as torch would read it, and nothing that a pickle asks for is ever done."""

import importlib
import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn

from interp.identity import canonical_json
from interp.policies.formats import pickle_machine
from interp.policies.formats.reading import read_policy_file

LEGACY = {"_use_new_zipfile_serialization": False}
TRAINER = """
import torch
from pydantic import BaseModel
from torch import nn

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = nn.LSTM(3, 4, num_layers=2)
        self.head = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        self.register_buffer("scale", torch.ones(2))
        self.hidden_size = 4
        self.feature_id_to_name = {1: "hp", 0: "type_id"}
        self.feature_normalizations = {0: 1.0, 1: 30.0}
        self.action_names = ["noop", "move"]
        self.action_max_params = [0, 1]
        self.act = torch.relu

class PolicyMetadata(dict):
    pass

class PolicyRecord:
    def __init__(self, policy):
        self._policy_store = None
        self.run_name = "model_0050.pt"
        self._metadata = PolicyMetadata(epoch=50, agent_step=57600, score=0.5, generation=1)
        self._cached_policy = policy

class LstmConfig(BaseModel):
    hidden: int = 64

class PolicyConfig(BaseModel):
    components: list[LstmConfig] = [LstmConfig()]
"""


class Call:
    """Pickled as a call of `function`; unpickled by anything but a reader of ours, it is made."""

    def __init__(self, function, *args) -> None:
        self.called = (function, args)

    def __reduce__(self):
        return self.called


class Scalar(np.float64):
    """A numpy number that would run a command when read."""

    command = ""

    def __reduce__(self):
        return os.system, (self.command,)


# omegaconf is not installed here; its nodes keep a value or a content, and each knows its parent.
OMEGACONF = """
class AnyNode:
    def __init__(self, value):
        self._val = value

class DictConfig:
    def __init__(self, **content):
        self._content = content
        for node in content.values():
            node._parent = self
"""


@pytest.fixture
def trainer(tmp_path: Path):
    """A package of the trainer's, and a function that takes it out of this process."""
    folder = tmp_path / "trainer"
    (folder / "omegaconf").mkdir(parents=True)
    (folder / "omegaconf" / "nodes.py").write_text(OMEGACONF)
    (folder / "foreign_trainer.py").write_text(TRAINER)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    module = importlib.import_module("foreign_trainer")

    def forget() -> None:
        for name in ("foreign_trainer", "omegaconf", "omegaconf.nodes"):
            sys.modules.pop(name, None)
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        (folder / "foreign_trainer.py").unlink(missing_ok=True)

    yield module, forget
    forget()


def saved(path: Path, content, **how) -> Path:
    torch.save(content, path, **how)
    return path


def repickled(path: Path, program: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A zip of torch.save's layout with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", b"little")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content.encode())) + content.encode()


def tensor_program(
    numel: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], kind="FloatStorage"
) -> bytes:
    """The pickle of {"w": a view of storage "0"}, with any numbers in it."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(pickle.dumps(value, 2)[2:-1] for value in values) + b"t"

    return (
        b"\x80\x02}"
        + text("w")
        + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage")
        + f"ctorch\n{kind}\n".encode()
        + text("0")
        + text("cpu")
        + numbers((numel,))[1:-1]
        + b"tQ"
        + numbers((offset,))[1:-1]
        + numbers(shape)
        + numbers(strides)
        + b"\x89}tRs."
    )


def assert_same(found, expected) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].is_contiguous()
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=0)


# --- what is read


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "stream"])
def test_a_state_dict_is_read_as_torch_reads_it(tmp_path, how) -> None:
    table = torch.randn(6, 5)
    weights = OrderedDict(
        table=table,
        tied=table,
        transposed=torch.randn(4, 3).t(),
        column=torch.randn(7, 7)[:, 2:4],
        half=torch.randn(3).half(),
        brain=torch.randn(3).bfloat16(),
        count=torch.tensor(3),
        flags=torch.tensor([True, False]),
        none=torch.empty(0, 3),
        parameter=nn.Parameter(torch.randn(2)),
    )
    path = saved(tmp_path / "model.pt", weights, **how)
    found = read_policy_file(path)
    assert found.format == "state-dict"
    assert found.modules == {} and found.metadata == {}
    assert_same(found.tensors, torch.load(path, weights_only=True))
    assert found.tensors["tied"].data_ptr() != found.tensors["table"].data_ptr()


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "stream"])
def test_a_checkpoint_gives_the_policys_tensors_and_its_numbers(tmp_path, how) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model_state_dict": net.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "epoch": 7,
        "agent_step": np.int64(4096),
        "score": np.float64(0.25),
        "config": {"lr": 0.1, "layers": (64, 64), "loss": float("nan")},
    }
    found = read_policy_file(saved(tmp_path / "model.pt", checkpoint, **how))
    assert found.format == "checkpoint"
    assert_same(found.tensors, net.state_dict())
    assert found.metadata == {
        "epoch": 7,
        "agent_step": 4096,
        "score": 0.25,
        "config": {"lr": 0.1, "layers": [64, 64]},
        "left_out": {"optimizer_state_dict": 6},
    }


def test_containers_without_a_known_name_are_flattened(tmp_path) -> None:
    nested = {
        "actor": {"fc": [torch.ones(1), torch.zeros(2)]},
        "critic": {"w": torch.ones(3)},
        "n": 1,
    }
    found = read_policy_file(saved(tmp_path / "model.pt", nested))
    assert {name: tuple(tensor.shape) for name, tensor in found.tensors.items()} == {
        "actor.fc.0": (1,),
        "actor.fc.1": (2,),
        "critic.w": (3,),
    }
    assert found.metadata == {"n": 1}


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "stream"])
def test_a_module_of_a_foreign_class_is_read_without_the_class(tmp_path, trainer, how) -> None:
    module, forget = trainer
    policy = module.Recurrent()
    expected = policy.state_dict()
    path = saved(tmp_path / "model.pt", policy, **how)
    forget()
    found = read_policy_file(path)
    assert "foreign_trainer" not in sys.modules
    assert found.format == "module"
    assert set(found.tensors) == set(expected)
    assert_same({name: found.tensors[name] for name in expected}, expected)
    assert found.modules[""] == "foreign_trainer.Recurrent"
    assert found.modules["core"] == "torch.nn.modules.rnn.LSTM"
    assert found.metadata["hidden_size"] == 4
    assert found.metadata["attributes"]["core"]["num_layers"] == 2
    assert found.metadata["features"] == {
        "type_id": {"id": 0, "normalization": 1.0},
        "hp": {"id": 1, "normalization": 30.0},
    }


def test_a_policy_record_tells_its_training_and_its_actions(tmp_path, trainer) -> None:
    module, forget = trainer
    policy = module.Recurrent()
    path = saved(tmp_path / "model.pt", module.PolicyRecord(policy))
    expected = policy.state_dict()
    forget()
    found = read_policy_file(path)
    assert found.format == "policy-record"
    assert set(found.tensors) == set(expected)
    said = found.metadata
    assert (said["epoch"], said["agent_step"], said["score"], said["generation"]) == (
        50,
        57600,
        0.5,
        1,
    )
    assert said["run_name"] == "model_0050.pt"
    assert said["action_names"] == ["noop", "move"] and said["action_max_params"] == [0, 1]
    assert said["class"] == "foreign_trainer.PolicyRecord"


def test_settings_of_every_kind_become_plain_values(tmp_path, trainer) -> None:
    module, forget = trainer
    nodes = importlib.import_module("omegaconf.nodes")
    policy = module.Recurrent()
    policy.config = module.PolicyConfig()
    policy.core.options = nodes.DictConfig(kernel=nodes.AnyNode(5), name=nodes.AnyNode("conv"))
    policy.core.sizes = np.array([[1, 2], [3, 4]], dtype=np.int32)
    policy.core.rate = np.float32(0.5)
    policy.core.device = torch.device("cpu")
    policy.core.shape = torch.Size([2, 3])
    policy.core.kinds = {"a", "b"}
    policy.core.cache = {"h": torch.ones(3), "steps": 2}
    policy.core.endless = []
    policy.core.endless.append(policy.core.endless)
    path = saved(tmp_path / "model.pt", policy)
    forget()
    found = read_policy_file(path).metadata
    assert found["architecture"] == {
        "class_path": "foreign_trainer.PolicyConfig",
        "components": [{"class_path": "foreign_trainer.LstmConfig", "hidden": 64}],
    }
    core = found["attributes"]["core"]
    assert core["options"] == {"kernel": 5, "name": "conv"}
    assert core["sizes"] == [[1, 2], [3, 4]]
    assert (core["rate"], core["device"], core["shape"]) == (0.5, "cpu", [2, 3])
    assert core["cache"] == {"steps": 2}
    assert not {"kinds", "endless"} & set(core)
    assert canonical_json(found)


def test_two_modules_keep_their_names(tmp_path) -> None:
    found = read_policy_file(
        saved(
            tmp_path / "model.pt", {"actor": nn.Linear(1, 2), "critic": nn.Linear(1, 1), "epoch": 3}
        )
    )
    assert set(found.tensors) == {"actor.weight", "actor.bias", "critic.weight", "critic.bias"}
    assert found.modules == dict.fromkeys(["actor", "critic"], "torch.nn.modules.linear.Linear")
    assert found.metadata["epoch"] == 3


def test_a_module_used_twice_is_there_twice_as_in_its_state_dict(tmp_path) -> None:
    layer = nn.Linear(2, 2)
    stack = nn.Sequential(layer, nn.ReLU(), layer)
    found = read_policy_file(saved(tmp_path / "model.pt", stack))
    assert_same(found.tensors, stack.state_dict())


# --- what is refused: calls

CALLS = {
    "os.system": lambda canary: Call(os.system, f"touch {canary}"),
    "subprocess": lambda canary: Call(
        importlib.import_module("subprocess").check_output, ["touch", str(canary)]
    ),
    "import": lambda canary: Call(importlib.import_module, "antigravity"),
    "eval": lambda canary: Call(eval, f"open({str(canary)!r}, 'w')"),
    "exec": lambda canary: Call(exec, "import os; os.environ['SPARSIGHT_CANARY'] = '1'"),
    "environment": lambda canary: Call(os.putenv, "SPARSIGHT_CANARY", "1"),
    "getattr": lambda canary: Call(getattr, Call(importlib.import_module, "os"), "system"),
    "open": lambda canary: Call(io.open, str(canary), "w"),
    "numpy scalar": lambda canary: Scalar(1.0),
    "torch.load": lambda canary: Call(torch.load, str(canary)),
    "torch.hub": lambda canary: Call(torch.hub.load, "owner/name", "model"),
    "pickle": lambda canary: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {canary}"))),
    "numpy.load": lambda canary: Call(np.load, str(canary)),
}


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "stream"])
@pytest.mark.parametrize("payload", CALLS.values(), ids=CALLS.keys())
def test_a_call_is_refused_and_not_made(
    tmp_path, refusal, canary, payload, how, monkeypatch
) -> None:
    monkeypatch.setattr(Scalar, "command", f"touch {canary}")
    path = saved(tmp_path / "model.pt", {"w": torch.ones(1), "extra": payload(canary)}, **how)
    assert "asks to call" in refusal(path)


def test_the_canary_would_have_shown_it(tmp_path, canary) -> None:
    path = saved(tmp_path / "model.pt", {"extra": Call(os.system, f"touch {canary}")})
    torch.load(path, weights_only=False)
    assert canary.exists()


PROGRAMS = {
    # As dill writes functions; the package need not be installed to be named.
    "dill function": (
        b"\x80\x02cdill._dill\n_create_function\n)R.",
        "asks to call dill._dill._create_function",
    ),
    "cloudpickle": (
        b"\x80\x02ccloudpickle.cloudpickle\n_make_function\n)R.",
        "asks to call cloudpickle",
    ),
    "python 2 name": (
        b"\x80\x02c__builtin__\neval\n" + text("1") + b"\x85R.",
        "asks to call builtins.eval",
    ),
    "name with controls": (b"\x80\x02cos\nsys\x1b[2Jtem\n)R.", r"asks to call os.sys\x1b[2Jtem"),
    "INST": (b"(X\x04\x00\x00\x00trueios\nsystem\n.", "asks to call os.system"),
    "code object": (b"\x80\x02ctypes\nCodeType\n)R.", "asks to call types.CodeType"),
    "attribute of a module": (
        b"\x80\x02c__builtin__\ngetattr\nctorch\nos\n" + text("system") + b"\x86R)R.",
        "asks to call torch.os.system",
    ),
    "OBJ": (b"(cos\nsystem\n" + text("true") + b"o.", "asks to call os.system"),
    "NEWOBJ": (
        b"\x80\x02csubprocess\nPopen\n" + text("true") + b"\x85\x81.",
        "asks to call subprocess.Popen",
    ),
    "NEWOBJ_EX": (
        b"\x80\x04" + text("subprocess") + text("Popen") + b"\x93)}\x92.",
        "asks to call subprocess.Popen",
    ),
    "copyreg._reconstructor": (
        b"\x80\x02ccopyreg\n_reconstructor\n(csubprocess\nPopen\ncbuiltins\nobject\nNtR.",
        "asks to call subprocess.Popen",
    ),
    "copyreg extension": (b"\x80\x02\x82\x01)R.", "uses EXT1"),
    "state of a class": (
        b"\x80\x02ctorch\nTensor\n}" + text("__len__") + b"Nsb.",
        "sets the state of a name",
    ),
    "call of a call": (
        b"\x80\x02cfunctools\npartial\ncos\nsystem\n" + text("true") + b"\x86R)R.",
        "calls a call of functools.partial",
    ),
    "call of a number": (b"\x80\x02K\x01)R.", "calls a int"),
    "persistent id": (b"\x80\x02" + text("anything") + b"Q.", "outside the file"),
    "foreign storage": (
        b"\x80\x02(" + text("storage") + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x01tQ.",
        "no storage of torch",
    ),
    "sparse tensor": (
        b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n)R.",
        "a kind that is not read",
    ),
    "load within": (
        b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x00\x85R.",
        "asks to call torch.storage._load_from_bytes",
    ),
    "empty stack": (b"\x80\x02.", "not a readable pickle"),
    "no memo": (b"\x80\x02h\x05.", "not a readable pickle"),
    "no mark": (b"\x80\x02t.", "not a readable pickle"),
    "no end": (b"\x80\x02}", "not a readable pickle"),
    "no bytes": (b"", "not a readable pickle"),
    "unknown operation": (b"\x80\x02\xff.", "not a readable pickle"),
    "huge string": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.", "not a readable pickle"),
    "list as key": (b"\x80\x02}]Ns.", "list as a dict key"),
    "nothing": (b"\x80\x02N.", "without tensors"),
    "module with itself": (
        b"\x80\x02cnet\nNet\n)\x81q\x00}"
        + text("_modules")
        + b"}"
        + text("again")
        + b"h\x00sh\x00"
        + b"0sb.",
        "contains itself",
    ),
}


@pytest.mark.parametrize(("program", "said"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_hostile_or_broken_pickle_is_refused(tmp_path, refusal, program, said) -> None:
    assert said in refusal(repickled(tmp_path / "model.pt", program))


def nested(depth: int, *, twice: bool) -> bytes:
    """((..., ...), (..., ...)): 2^depth leaves in a few bytes a level."""
    return b"\x80\x02)" + (b"2\x86" if twice else b"\x85") * depth


ENDLESS = {
    "hash of a doubling tuple": (
        nested(60, twice=True) + b"}" + b"2K\x01K\x01s0" + b"Ns.",
        "sets items of a tuple",
    ),
    "doubling tuple as key": (
        b"\x80\x02}" + nested(60, twice=True)[2:] + b"Ns.",
        "tuple as a dict key",
    ),
    "doubling tuple as value": (
        b"\x80\x02}" + text("a") + nested(60, twice=True)[2:] + b"s.",
        "once for each reference",
    ),
    "deep tuple": (nested(100_000, twice=False) + b".", "nested deeper"),
    "far memo": (b"\x80\x02Nr\xff\xff\xff\x7f.", "without tensors"),
    "too many steps": (b"\x80\x02" + b"N0" * 600 + b"N.", "more than 1000 steps"),
    "a list copied often": (
        b"\x80\x02](" + b"K\x01" * 300 + b"eq\x00" + b"cbuiltins\nset\nh\x00\x85R0" * 3 + b"N.",
        "more than 1000 steps",
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("program", "said"), ENDLESS.values(), ids=ENDLESS.keys())
def test_a_small_pickle_cannot_ask_for_much_work(
    tmp_path, refusal, monkeypatch, program, said
) -> None:
    if "steps" in said:
        monkeypatch.setattr(pickle_machine, "MAX_PICKLE_WORK", 1000)
    found = refusal(repickled(tmp_path / "model.pt", program))
    assert said in found


# --- what is refused: tensors

CLAIMS = {
    "stride 0": (
        tensor_program(1, 0, (2**34,), (0,)),
        "claims 68719476736 bytes of a storage of 4",
    ),
    "stride 0 in two dimensions": (tensor_program(1, 0, (2**20, 2**20), (0, 0)), "claims"),
    "past the end": (tensor_program(1, 5, (1,), (1,)), "ends at number 5 of a storage of 1"),
    "negative offset": (tensor_program(1, -1, (1,), (1,)), "whole numbers from 0"),
    "negative stride": (tensor_program(1, 0, (1,), (-1,)), "whole numbers from 0"),
    "overflow": (tensor_program(1, 0, (2**62, 2**62), (1, 1)), "of a storage of 4"),
    "beyond 64 bits": (tensor_program(1, 0, (2**64,), (1,)), "whole numbers from 0"),
    "empty and huge": (tensor_program(1, 0, (0, 2**40, 2**40), (1, 1, 1)), "is empty with shape"),
    "too many dimensions": (tensor_program(1, 0, (1,) * 100, (1,) * 100), "dimensions"),
    "shape without strides": (tensor_program(1, 0, (1,), ()), "dimensions"),
    "storage larger than its member": (
        tensor_program(2**30, 0, (4,), (1,)),
        "has 4 bytes, wanted 4294967296",
    ),
    "storage beyond measure": (
        tensor_program(2**62, 0, (4,), (1,)),
        "a storage of 4611686018427387904 numbers",
    ),
    "storage of another kind": (
        tensor_program(1, 0, (1,), (1,), "DoubleStorage"),
        "has 4 bytes, wanted 8",
    ),
    "storage of unknown kind": (
        tensor_program(1, 0, (1,), (1,), "QInt8Storage"),
        "kind 'QInt8Storage'",
    ),
    "booleans": (tensor_program(4, 0, (4,), (1,), "BoolStorage"), "wanted 0 or 1"),
}


@pytest.mark.parametrize(("program", "said"), CLAIMS.values(), ids=CLAIMS.keys())
def test_a_claim_beyond_the_file_is_refused_by_name(tmp_path, refusal, program, said) -> None:
    path = repickled(tmp_path / "model.pt", program, {"0": struct.pack("<f", 1.0)})
    assert path.stat().st_size < 4096
    assert said in refusal(path)


def test_the_tensor_program_reads_when_it_is_true(tmp_path) -> None:
    path = repickled(
        tmp_path / "model.pt", tensor_program(2, 1, (1,), (1,)), {"0": struct.pack("<2f", 1, 2)}
    )
    assert read_policy_file(path).tensors["w"].tolist() == [2.0]


def test_many_views_of_one_storage_are_refused(tmp_path, refusal) -> None:
    one = torch.randn(1000)
    path = saved(tmp_path / "model.pt", {f"w{i}": one[: 1000 - i] for i in range(9)})
    assert "view the same 4000 bytes" in refusal(path)


def test_a_missing_storage_is_named(tmp_path, refusal) -> None:
    path = repickled(tmp_path / "model.pt", tensor_program(1, 0, (1,), (1,)))
    assert "storage '0' is not in the file" in refusal(path)


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "stream"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, refusal, value, how) -> None:
    weights = {"fine": torch.ones(3), "fc.bias": torch.tensor([1.0, value, 2.0])}
    said = refusal(saved(tmp_path / "model.pt", weights, **how))
    assert "tensor 'fc.bias' holds 1 NaN or infinite values of 3" in said


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "stream"])
def test_a_file_that_is_cut_off_is_refused_at_any_length(tmp_path, refusal, how) -> None:
    whole = saved(tmp_path / "whole.pt", {"w": torch.ones(50)}, **how).read_bytes()
    path = tmp_path / "model.pt"
    for length in (*range(1, len(whole), max(1, len(whole) // 25)), len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(path)


def test_a_flipped_bit_of_the_weights_is_found(tmp_path, refusal) -> None:
    path = saved(tmp_path / "model.pt", {"w": torch.full((64,), 1.5)})
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", 1.5)) + 1] ^= 1
    path.write_bytes(content)
    assert "member 'model/data/0' is damaged" in refusal(path)


def test_torchscript_and_another_byte_order_are_refused(tmp_path, refusal) -> None:
    path = repickled(tmp_path / "script.pt", b"\x80\x02N.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/code/__torch__.py", "")
    assert "TorchScript" in refusal(path)
    path = tmp_path / "big.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_program(1, 0, (1,), (1,)))
        archive.writestr("archive/byteorder", b"big")
    assert "byte order b'big'" in refusal(path)


def test_two_policies_in_one_checkpoint_are_refused(tmp_path, refusal) -> None:
    path = saved(
        tmp_path / "model.pt", {"policy": {"w": torch.ones(1)}, "model": {"w": torch.ones(1)}}
    )
    assert "state dicts under ['model', 'policy']" in refusal(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("w" * 10_000, "10000 characters"),
        ("w\u202etxt", "U+202E"),
        ("w\0", "U+0000"),
        ("w\ud800", "U+D800"),
    ],
    ids=["10 kB", "right to left", "NUL", "half a character"],
)
def test_a_name_that_a_person_cannot_read_is_refused(tmp_path, refusal, name, said) -> None:
    assert said in refusal(saved(tmp_path / "model.pt", {name: torch.ones(1)}))
    assert said in refusal(saved(tmp_path / "model.pt", {"w": torch.ones(1), "config": {name: 1}}))


def test_names_that_meet_after_flattening_are_refused(tmp_path, refusal) -> None:
    path = saved(tmp_path / "model.pt", {"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)})
    assert "'a.b' is there twice" in refusal(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_file_is_refused_or_read_as_it_was(tmp_path, data) -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4)}
    stream = io.BytesIO()
    torch.save(weights, stream)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    try:
        found = read_policy_file(path)
    except ValueError:
        return
    assert_same(found.tensors, weights)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_pickle_is_refused_or_read(tmp_path, canary, data) -> None:
    """With checksums that are right, as an attacker's would be: a mutated name or number may pass, nothing else."""
    program = bytearray(tensor_program(2, 0, (2,), (1,)))
    for _ in range(data.draw(st.integers(1, 4))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    path = repickled(tmp_path / "model.pt", bytes(program), {"0": struct.pack("<2f", 1, 2)})
    try:
        found = read_policy_file(path)
    except ValueError:
        return
    assert all(set(tensor.flatten().tolist()) <= {1.0, 2.0} for tensor in found.tensors.values())
