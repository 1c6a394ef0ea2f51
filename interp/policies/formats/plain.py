"""Inert values -> plain JSON values: what a person may read of a record, bounded in size."""

import math
from typing import Any

import numpy as np

from interp.policies.formats.limits import MAX_DEPTH, MAX_TEXT_BYTES, MAX_VISITS
from interp.policies.formats.names import checked_name, checked_text
from interp.policies.formats.pickle_machine import Name, Stand

OMITTED = object()
"""In place of what has no plain form: tensors, modules, cycles, numbers and texts beyond measure."""

_CHARS_PER_VISIT = 64
_MAX_FIELD_VISITS = 20_000
_MAX_ARRAY_NUMBERS = 1024
_LARGEST_INT = 2**63


def is_module(value: object) -> bool:
    """A stand for a torch.nn.Module of any class."""
    return isinstance(value, Stand) and isinstance(value.attributes.get("_modules"), dict)


class Visits:
    """What is left of the work that one file may cause."""

    def __init__(self) -> None:
        self.spent = 0

    def spend(self, visits: int = 1) -> None:
        self.spent += visits
        if self.spent > MAX_VISITS:
            raise ValueError(
                f"more than {MAX_VISITS} objects, counted once for each reference to them; save a state_dict"
            )


def plain_value(value: Any, visits: Visits) -> Any:  # noqa: ANN401 - any inert value
    """The JSON value, or OMITTED. A member of a container that has no plain form is left out of it.

    Raises:
        ValueError: a key or a text that a person should not be shown, or too much of everything.
    """
    return _Field(visits).plain(value, ())


def plain_fields(values: dict[Any, Any], visits: Visits) -> dict[str, Any]:
    """The entries that have a plain form, under the names that they have there."""
    fields: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(key, str):
            found = plain_value(value, visits)
            if found is not OMITTED:
                fields[checked_name(key, kind="field")] = found
    return fields


class _TooLarge(Exception):
    pass


class _Field:
    """One field of a record, omitted as a whole if it is too large to be read by a person."""

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._spent = 0

    def plain(self, value: Any, above: tuple[int, ...]) -> Any:  # noqa: ANN401 - any inert value
        if above:
            return self._plain(value, above)
        try:
            return self._plain(value, above)
        except _TooLarge:
            return OMITTED

    def _spend(self, visits: int) -> None:
        self._visits.spend(visits)
        self._spent += visits
        if self._spent > _MAX_FIELD_VISITS:
            raise _TooLarge

    def _plain(self, value: Any, above: tuple[int, ...]) -> Any:  # noqa: ANN401 - any inert value
        self._spend(1)
        match value:
            case None | bool():
                return value
            case int():
                return value if abs(value) < _LARGEST_INT else OMITTED
            case float():
                return value if math.isfinite(value) else OMITTED
            case str():
                self._spend(len(value) // _CHARS_PER_VISIT)
                if len(value) > MAX_TEXT_BYTES:
                    return OMITTED
                return checked_text(value, kind="text in the metadata")
            case list() | tuple() | dict() | Stand() if (
                id(value) in above or len(above) >= MAX_DEPTH or is_module(value)
            ):
                return OMITTED
            case list() | tuple():
                return self._array(value, (*above, id(value)))
            case dict():
                return self._object(value, (*above, id(value)))
            case Stand():
                return self._stand(value, (*above, id(value)))
        return OMITTED

    def _array(self, values: list[Any] | tuple[Any, ...], above: tuple[int, ...]) -> Any:  # noqa: ANN401
        found = [self._plain(value, above) for value in values]
        # Without one of its elements a list means something else.
        return OMITTED if any(one is OMITTED for one in found) else found

    def _object(self, values: dict[Any, Any], above: tuple[int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(key, (str, int)):
                one = self._plain(value, above)
                if one is not OMITTED:
                    found[checked_name(_key(key), kind="field")] = one
        return found

    def _stand(self, stand: Stand, above: tuple[int, ...]) -> Any:  # noqa: ANN401 - any JSON value
        attributes = stand.attributes
        if stand.of.module.startswith("omegaconf."):
            node = attributes.get("_content", attributes.get("_val", OMITTED))
            return self._plain(node, above)
        if stand.of.module.startswith("numpy"):
            return _numpy_value(stand)
        if str(stand.of) == "torch.device":
            return self._plain(stand.args[0], above) if stand.args else OMITTED
        if stand.entries:
            return self._object(stand.entries, above)
        if "__pydantic_fields_set__" in attributes:
            attributes = attributes.get("__dict__")
        if isinstance(attributes, dict) and attributes:
            return {"class_path": str(stand.of), **self._object(attributes, above)}
        return OMITTED


def _key(key: str | int) -> str:
    # JSON has no other keys; bool is an int and would read "True".
    return str(key) if isinstance(key, (str, bool)) or abs(key) < _LARGEST_INT else "?"


def _numpy_value(stand: Stand) -> Any:  # noqa: ANN401 - a number or nested lists of numbers
    """Of `scalar(dtype, bytes)`, or of an array: `_reconstruct` and a state of version, shape, dtype, order, bytes."""
    match stand:
        case Stand(of=Name(name="scalar"), args=(Stand() as dtype, bytes() as content)):
            shape: tuple[Any, ...] = ()
        case Stand(
            of=Name(name="_reconstruct"),
            state=(int(), tuple() as shape, Stand() as dtype, False, bytes() as content),
        ):
            pass
        case _:
            return OMITTED
    numbers = numpy_dtype(dtype)
    if numbers is None or not all(isinstance(length, int) and length >= 0 for length in shape):
        return OMITTED
    count = math.prod(shape)
    if count > _MAX_ARRAY_NUMBERS or len(content) != count * numbers.itemsize:
        return OMITTED
    array = np.frombuffer(content, dtype=numbers).reshape(shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return OMITTED
    return array.tolist()


def numpy_dtype(stand: Stand) -> np.dtype[Any] | None:
    """Of `dtype(code)` and its state; None if it is not one of plain numbers or flags."""
    match stand:
        case Stand(of=Name(module="numpy", name="dtype"), args=(str() as code, *_)) if code in {
            *("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"),
        }:
            # The state is (version, byte order, ...).
            big = isinstance(stand.state, tuple) and stand.state[1:2] == (">",)
            return np.dtype(code).newbyteorder(">" if big else "<")
    return None
