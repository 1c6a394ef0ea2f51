"""Who is who: the id of a thing is a hash of its content, or of its config and the ids of its inputs.

Asking for the same thing twice is therefore a no-op, and every figure can be traced to the policies behind it.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict, is_dataclass
from typing import Any

ID_DIGITS = 16


def canonical_json(payload: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """The one spelling of a JSON value: keys sorted, no spaces, ASCII; dataclasses become objects, tuples arrays."""
    try:
        text = json.dumps(
            payload, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"not JSON, so it has no id: {error}") from error
    return text.encode("ascii")


def parse_json(content: bytes, *, source: str) -> dict[str, Any]:
    """Read a JSON object strictly: no repeated key, no NaN or infinity. `source` is named in every error."""
    try:
        payload = json.loads(
            content, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not readable as JSON: {error}") from error
    if not isinstance(payload, dict):
        raise ValueError(f"{source}: found a JSON {type(payload).__name__}, wanted an object")
    return payload


def sha256(content: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def content_id(prefix: str, payload: Any) -> str:  # noqa: ANN401 - any JSON value
    """`<prefix>-<16 hex>`, for instance "p-0123456789abcdef": the hash of the canonical JSON of `payload`."""
    return f"{prefix}-{sha256(canonical_json(payload))[:ID_DIGITS]}"


def _plain(value: object) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} {value!r:.80} has no JSON form")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        (repeated, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {repeated!r:.120} is repeated")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def nulled(value: Any) -> Any:  # noqa: ANN401 - JSON
    """The value with None, which JSON calls null, for NaN and infinity, which JSON has no word for."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {name: nulled(inner) for name, inner in value.items()}
        case list():
            return [nulled(inner) for inner in value]
        case _:
            return value
