"""What describes a network as JSON that may be anybody's: every field is there, known, and as its type says."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, ClassVar, TypeVar

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
Self = TypeVar("Self", bound="Architecture")


class Architecture:
    """All that is needed, besides the weights, to run a policy: a base of frozen dataclasses with fields as above."""

    __slots__ = ()
    family: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Its fields, and under `family` the name of its family."""
        assert is_dataclass(self)
        return {"family": self.family, **asdict(self)}

    @classmethod
    def from_json(cls: type[Self], content: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`, for JSON that may be anybody's.

        Raises:
            ValueError: a field is missing, unknown, of another kind or out of range, or the record itself refuses it;
                or it is of another family.
        """
        if content.get("family") != cls.family:
            raise ValueError(
                f"architecture family {content.get('family')!r:.80}, but this reader wants {cls.family!r}"
            )
        own = {name: value for name, value in content.items() if name != "family"}
        try:
            return TypeAdapter(cls).validate_json(canonical_json(own), strict=True, extra="forbid")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at = ".".join(map(str, first["loc"])) or "it"
            found = "" if first["loc"] == () else f" (found {first['input']!r:.80})"
            raise ValueError(
                f"architecture of family {cls.family}: {at}: {first['msg']}{found}"
            ) from error
