"""An architecture written as a Python call, `package.Class(width=64, parts=[{...}])`, as a JSON tree.

Parsed, never evaluated: only calls by keyword, dicts, lists, numbers, texts and names exist in it.
"""

import ast
import math
from typing import Any

from interp.policies.formats.limits import MAX_DEPTH, MAX_TEXT_BYTES
from interp.policies.formats.names import checked_name, checked_text

_REMEDY = "save the architecture's own text, without expressions"


def parse_call_text(text: str, *, source: str) -> dict[str, Any]:
    """{"class_path": the name that is called, **keywords}; a name that is not called becomes its text.

    Raises:
        ValueError: not a call, too long or too deep, or anything in it that would have to be computed.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(
            f"{source}: {len(text)} characters, wanted at most {MAX_TEXT_BYTES}; {_REMEDY}"
        )
    checked_text(text, kind=source)
    try:
        expression = ast.parse(text.strip(), mode="eval").body
        match expression:
            case ast.Call():
                return _call(expression, depth=0)
            case _:
                raise ValueError(
                    f"found {_kind(expression)}, wanted a call such as package.Class(width=64)"
                )
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        # Python's parser reports too deep a nesting as either of the last two.
        raise ValueError(f"{source}: {error or 'nested too deep'}; {_REMEDY}") from error


def _call(call: ast.Call, *, depth: int) -> dict[str, Any]:
    if call.args:
        raise ValueError(f"line {call.lineno}: a call by position, wanted keywords only")
    content: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in content:
            raise ValueError(f"line {call.lineno}: a keyword that is repeated or unpacked")
        name = checked_name(keyword.arg, kind="keyword")
        content[name] = _value(keyword.value, depth=depth + 1)
    return {"class_path": _dotted(call.func), **content}


def _value(expression: ast.expr, *, depth: int) -> Any:  # noqa: ANN401 - any JSON value
    if depth > MAX_DEPTH:
        raise ValueError(f"line {expression.lineno}: nested deeper than {MAX_DEPTH}")
    match expression:
        case ast.Constant(value=None | bool() | str() as value):
            return value
        case ast.Constant(value=int() | float() as number):
            return _number(number)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -_number(number)
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element, depth=depth + 1) for element in elements]
        case ast.Dict(keys=keys, values=values):
            content: dict[str, Any] = {}
            for key, value in zip(keys, values, strict=True):
                match key:
                    case ast.Constant(value=str() as name) if name not in content:
                        content[checked_name(name, kind="key")] = _value(value, depth=depth + 1)
                    case _:
                        raise ValueError(
                            f"line {expression.lineno}: a key that is repeated or no text"
                        )
            return content
        case ast.Call():
            return _call(expression, depth=depth)
        case ast.Name() | ast.Attribute():
            return _dotted(expression)
    raise ValueError(f"line {expression.lineno}: found {_kind(expression)}, wanted a plain value")


def _number(number: int | float) -> int | float:
    if abs(number) >= 2**63 or not math.isfinite(
        number
    ):  # in this order: whole numbers may exceed any float
        raise ValueError("a number beyond measure, wanted a finite one below 2^63")
    return number


def _dotted(expression: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(expression, ast.Attribute):
        parts.append(expression.attr)
        expression = expression.value
    if not isinstance(expression, ast.Name):
        raise ValueError(f"line {expression.lineno}: {_kind(expression)} in place of a dotted name")
    return checked_name(".".join([expression.id, *parts[::-1]]), kind="name")


def _kind(expression: ast.expr) -> str:
    return f"a {type(expression).__name__}"
