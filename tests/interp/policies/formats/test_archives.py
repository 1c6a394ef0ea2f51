"""A zip or a folder is listed and bounded before a member is read, and a member never leaves it."""

import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from interp.policies.formats.reading import read_policy_file

SPEC = b'{"class_path": "net.Net", "data_path": "weights.safetensors"}'
WEIGHTS = save({"w": torch.ones(4)})


def packed(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def honest(**more: bytes) -> dict[str, bytes]:
    return {"policy_spec.json": SPEC, "weights.safetensors": WEIGHTS, **more}


def test_an_honest_zip_is_read(tmp_path) -> None:
    path = packed(
        tmp_path / "policy.zip", honest(**{"src/net.py": b"raise SystemExit"}), zipfile.ZIP_DEFLATED
    )
    assert read_policy_file(path).tensors["w"].tolist() == [1.0] * 4


NAMES = {
    "parent": "../evil.py",
    "parent within": "src/../../evil.py",
    "absolute": "/etc/evil.py",
    "drive": "C:/evil.py",
    "backslash": "..\\evil.py",
    "empty part": "src//evil.py",
    "dot": "./evil.py",
    "right to left": "src/\u202eyp.live",
    "terminal control": "src/\x1b[2J.py",
    "10 kB": "e" * 10_000,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_member_with_a_name_that_leaves_or_misleads_is_refused_by_name(
    tmp_path, refusal, name
) -> None:
    said = refusal(packed(tmp_path / "policy.zip", honest(**{name: b"x"})))
    assert "zip member" in said and repr(name)[1:15].split("\\x")[0] in said
    assert {path.name for path in tmp_path.iterdir()} == {"policy.zip"}


def test_a_name_with_a_nul_is_refused_though_zipfile_would_cut_it(tmp_path, refusal) -> None:
    path = packed(tmp_path / "policy.zip", honest(**{"weights.exe-txt": b"x"}))
    path.write_bytes(path.read_bytes().replace(b"weights.exe-txt", b"weights.exe\0txt"))
    assert "U+0000" in refusal(path)


@pytest.mark.parametrize("name", ["Weights.safetensors", "WEIGHTS.SAFETENSORS"])
def test_names_that_differ_by_case_alone_are_refused(tmp_path, refusal, name) -> None:
    assert "one file on some systems" in refusal(
        packed(tmp_path / "policy.zip", honest(**{name: b"x"}))
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path, refusal) -> None:
    path = packed(tmp_path / "policy.zip", honest())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("weights.safetensors", b"other")
    assert "'weights.safetensors' and 'weights.safetensors'" in refusal(path)


def test_a_link_in_a_zip_is_refused(tmp_path, refusal) -> None:
    path = packed(tmp_path / "policy.zip", honest())
    link = zipfile.ZipInfo("shadow")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/shadow")
    assert "'shadow' is a link" in refusal(path)


def test_a_zip_bomb_is_refused_by_what_it_declares(tmp_path, refusal) -> None:
    path = packed(tmp_path / "policy.zip", honest(zeros=bytes(48 << 20)), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "bytes of content, wanted at most" in refusal(path)


def test_a_zip_bomb_that_lies_is_refused_by_what_is_counted(tmp_path, refusal) -> None:
    members = {"policy_spec.json": SPEC, "weights.safetensors": bytes(48 << 20)}
    path = packed(tmp_path / "policy.zip", members, zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    # The size after unpacking, in the local header and in the directory.
    path.write_bytes(content.replace(struct.pack("<I", 48 << 20), struct.pack("<I", 100)))
    assert "member 'weights.safetensors'" in refusal(path)


def test_a_zip_of_a_million_members_is_refused_by_count(tmp_path, refusal) -> None:
    path = tmp_path / "policy.zip"
    name = b"member"
    entry = (
        struct.pack(
            "<4s4B4HL2L5H2L",
            b"PK\x01\x02",
            *([0] * 4),
            *([0] * 4),
            0,
            0,
            0,
            len(name),
            *([0] * 4),
            0,
            0,
        )
        + name
    )
    directory = entry * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    path.write_bytes(b"PK\x03\x04" + directory + end)
    assert "a zip of 1000000 members, wanted at most" in refusal(path)


def test_an_encrypted_member_and_an_odd_compression_are_refused(tmp_path, refusal) -> None:
    path = packed(tmp_path / "lzma.zip", honest(), zipfile.ZIP_LZMA)
    assert "compressed by method 14" in refusal(path)
    path = packed(tmp_path / "secret.zip", honest())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "'policy_spec.json' is encrypted" in refusal(path)


def test_a_zip_within_a_zip_is_refused(tmp_path, refusal) -> None:
    inner = packed(tmp_path / "inner.zip", honest()).read_bytes()
    spec = SPEC.replace(b"weights.safetensors", b"inner.zip")
    path = packed(tmp_path / "policy.zip", {"policy_spec.json": spec, "inner.zip": inner})
    said = refusal(path)
    assert "inner.zip: a zip that is no file of torch.save" in said and "unpack it" in said


def test_a_torch_file_within_a_zip_is_read(tmp_path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pt")
    spec = SPEC.replace(b"weights.safetensors", b"model.pt")
    members = {"policy_spec.json": spec, "model.pt": (tmp_path / "model.pt").read_bytes()}
    assert read_policy_file(packed(tmp_path / "policy.zip", members)).tensors["w"].tolist() == [
        1.0,
        1.0,
    ]


@pytest.mark.parametrize("cut", [10, 60, 200])
def test_a_zip_that_is_cut_off_is_refused(tmp_path, refusal, cut) -> None:
    path = packed(tmp_path / "policy.zip", honest())
    path.write_bytes(path.read_bytes()[:-cut])
    assert "damaged or cut off" in refusal(path)


def test_a_flipped_bit_in_a_member_is_found(tmp_path, refusal) -> None:
    path = packed(tmp_path / "policy.zip", honest())
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<4f", 1, 1, 1, 1))] ^= 1
    path.write_bytes(content)
    assert "member 'weights.safetensors' is damaged" in refusal(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    for name, content in honest().items():
        (folder / name).write_bytes(content)
    return folder


def test_a_link_or_a_pipe_in_a_folder_is_refused(folder, refusal) -> None:
    (folder / "shadow").symlink_to("/etc/hostname")
    assert "'shadow' is a link" in refusal(folder)
    (folder / "shadow").unlink()
    os.mkfifo(folder / "pipe")
    assert "'pipe' is a link or a device" in refusal(folder)


def test_a_pipe_is_no_policy(tmp_path, refusal) -> None:
    os.mkfifo(tmp_path / "model.pt")
    assert "a device or a pipe" in refusal(tmp_path / "model.pt")


def test_a_name_that_misleads_in_a_folder_is_refused(folder, refusal) -> None:
    (folder / "src\u202eyp.txt").write_text("")
    assert "U+202E" in refusal(folder)


def test_folders_without_end_are_refused(folder, refusal) -> None:
    folder.joinpath(*["d"] * 30).mkdir(parents=True)
    assert "nested deeper" in refusal(folder)


def test_the_hash_of_a_folder_is_of_its_names_and_contents(folder) -> None:
    first = read_policy_file(folder).sha256
    assert read_policy_file(folder).sha256 == first
    (folder / "notes.txt").write_text("one")
    second = read_policy_file(folder).sha256
    (folder / "notes.txt").rename(folder / "other.txt")
    third = read_policy_file(folder).sha256
    (folder / "other.txt").write_text("two")
    fourth = read_policy_file(folder).sha256
    assert len({first, second, third, fourth}) == 4
