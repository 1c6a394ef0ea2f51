"""A file that is all weights: safetensors, or what torch.save wrote. Told by content; a suffix only promises."""

from pathlib import PurePosixPath

from interp.policies.formats.archive import ZipArchive, listing
from interp.policies.formats.contents import Contents
from interp.policies.formats.module_tree import read_contents
from interp.policies.formats.safetensors_file import looks_like_safetensors, read_safetensors
from interp.policies.formats.torch_file import (
    LEGACY_START,
    TorchFile,
    pickle_member,
    read_torch_stream,
    read_torch_zip,
)

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
WANTED = (
    "safetensors, a file of torch.save, an .mpt, a stable-baselines3 zip, "
    "or a folder or zip with policy_spec.json, cogames.toml, architecture.json or module_state.pkl"
)


def read_weights(content: bytes, name: str) -> Contents:
    """Tensors, modules and metadata of a safetensors or torch file called `name`.

    Raises:
        ValueError: empty, neither of the two, not what the suffix promises, or refused by its reader.
    """
    refuse_false_suffix(content, name)
    if _is_safetensors(content):
        return read_safetensors(content)
    return read_contents(open_torch(content))


def open_torch(content: bytes) -> TorchFile:
    """What torch.save wrote, in either of its containers.

    Raises:
        ValueError: anything else.
    """
    if content.startswith(LEGACY_START):
        return read_torch_stream(content)
    if content.startswith(ZIP_STARTS):
        archive = ZipArchive(content)
        if pickle_member(archive) is not None:
            return read_torch_zip(archive)
        raise ValueError(
            f"a zip that is no file of torch.save, wanted weights: {listing(archive)}; "
            "unpack it and name the policy in it"
        )
    raise ValueError(f"{described(content)}, wanted {WANTED}; save the weights in one of these")


def refuse_false_suffix(content: bytes, name: str) -> None:
    """A file called .safetensors is one, because that is why a person trusts it."""
    if not content:
        raise ValueError("an empty file; fetch it again")
    if PurePosixPath(name).suffix == ".safetensors" and not _is_safetensors(content):
        raise ValueError(
            f"called .safetensors but it is {described(content)}; "
            "do not trust it, or convert it with safetensors.torch.save_file"
        )


def _is_safetensors(content: bytes) -> bool:
    # A zip is one wherever its first brace may be: its readers start at its end.
    return looks_like_safetensors(content) and not content.startswith(ZIP_STARTS)


def described(content: bytes) -> str:
    """What a file seems to be by its first bytes."""
    for start, kind in _KINDS.items():
        if content.startswith(start):
            return kind
    if content[257:262] == b"ustar":
        return "a tar (torch before 0.1.10 wrote such)"
    return f"an unknown format that begins with {content[:8].hex(' ')}"


_KINDS = {
    **dict.fromkeys(ZIP_STARTS, "a zip"),
    LEGACY_START: "a pickle of torch.save",
    **{bytes([0x80, protocol]): "a bare pickle, not of torch.save" for protocol in range(2, 6)},
    b"version https://git-lfs": "a git LFS pointer: the file itself was not fetched (git lfs pull)",
    b"\x1f\x8b": "gzip",
    b"\x93NUMPY": "a numpy array",
    b"\x89HDF": "HDF5",
    b"<": "HTML or XML, perhaps an error page saved in place of the file",
    b"{": "JSON",
}
