"""What a reader of one format hands back; `reading` adds the hash of the source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """As in `PolicyFile`."""

    format: str
    tensors: Mapping[str, Tensor]
    modules: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
