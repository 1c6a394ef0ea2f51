"""Which names and texts from an untrusted file may be shown to a person or become part of a path."""

import re
import unicodedata

from interp.policies.formats.limits import MAX_NAME_CHARS

# Controls but tab and line breaks, lone surrogates, and what makes a line read other than it is: marks, embeddings,
# overrides and isolates of direction.
_UNREADABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def checked_name(name: str, *, kind: str) -> str:
    """The name itself, if it is printable and at most MAX_NAME_CHARS long. `kind` says of what, in the error."""
    if len(name) > MAX_NAME_CHARS:
        raise ValueError(
            f"{kind} {name!r:.60}... has {len(name)} characters, wanted at most {MAX_NAME_CHARS}; rename it"
        )
    for character in name:
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            raise ValueError(
                f"{kind} {name!r:.120} holds the control character U+{ord(character):04X}, "
                "wanted printable text; rename it"
            )
    return name


def checked_text(text: str, *, kind: str) -> str:
    """The text itself, if it holds line breaks and tabs at most, but no other control or direction characters."""
    if found := _UNREADABLE.search(text):
        raise ValueError(
            f"{kind} holds the control character U+{ord(found[0]):04X}, wanted plain text; remove it"
        )
    return text


def checked_path(name: str, *, kind: str) -> str:
    """The name of a member, if it stays inside its folder as it stands: refused, never sanitised."""
    checked_name(name, kind=kind)
    parts = name.split("/")
    if (
        name.startswith("/")
        or "\\" in name
        or re.match(r"[A-Za-z]:(/|$)", name)
        or any(part in {"", ".", ".."} for part in parts)
    ):
        raise ValueError(
            f"{kind} {name!r:.120} leaves its folder or is not a plain relative path, "
            "wanted for instance 'run/weights.safetensors'; do not open this file, or pack it again"
        )
    return name


def refuse_colliding(names: list[str], *, kind: str) -> None:
    """No two names that a file system may take for one: equal, or equal but for case or Unicode form."""
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            raise ValueError(
                f"{kind} {seen[folded]!r:.120} and {name!r:.120} are one file on some systems, "
                "wanted distinct names; rename one"
            )
        seen[folded] = name
