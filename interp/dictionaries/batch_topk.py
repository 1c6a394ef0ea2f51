"""BatchTopK: the k B largest latents of a batch of B rows are active, so a row may use more or fewer than k.

    h = z where z is among the k B largest positive values of the batch, else 0        loss = |y - x̂|²

Source: Bussmann et al. 2024 (arXiv:2412.06410). For inference the choice is frozen to z > threshold, a running
average of the boundary between active and inactive values, so that a row's code does not depend on its batch.
"""

from dataclasses import dataclass
from typing import ClassVar

from interp.dictionaries.topk import Counting


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTopK(Counting):
    """The k B largest latents of a batch (Bussmann 2024), k falling from wide to target."""

    name: ClassVar[str] = "batch_topk"
