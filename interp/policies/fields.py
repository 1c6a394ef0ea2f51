"""Architectures from JSON that may be anybody's: every field is there, known, and of the kind that its type says."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from interp.identity import canonical_json

Width = Annotated[int, Field(ge=1, le=1 << 20)]
"""Of a layer, of a table, of anything that is counted."""
Layers = Annotated[int, Field(ge=1, le=64)]
"""Recurrent layers: more would take for ever to build."""
Cells = Annotated[int, Field(ge=1, le=16)]
"""Rows or columns of an agent's window: a location is told by half a byte each."""
Tokens = Annotated[int, Field(ge=1, le=4096)]
Byte = Annotated[int, Field(ge=0, le=255)]
Index = Annotated[int, Field(ge=0, le=1 << 20)]
Name = Annotated[str, Field(max_length=200)]
Names = Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096)]
Widths = Annotated[tuple[Width, ...], Field(max_length=64)]
"""Of the layers of a perceptron."""
Record = TypeVar("Record")


def parse(kind: type[Record], content: Mapping[str, Any], *, family: str) -> Record:
    """A record of a family from the JSON that its `to_json` gave.

    Raises:
        ValueError: a field is missing, unknown, of another kind or out of range, or the record itself refuses it.
    """
    if content.get("family") != family:
        raise ValueError(
            f"architecture family {content.get('family')!r:.80}, but this reader wants {family!r}"
        )
    own = {name: value for name, value in content.items() if name != "family"}
    try:
        return TypeAdapter(kind).validate_json(canonical_json(own), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"])) or "it"
        found = "" if first["loc"] == () else f" (found {first['input']!r:.80})"
        raise ValueError(f"architecture of family {family}: {at}: {first['msg']}{found}") from error
