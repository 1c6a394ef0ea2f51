"""Named sites of a policy, where its activations are read and edited.

A policy calls `tap(site, x)` wherever it computes a named activation and goes on with what comes back. The same call
therefore records and steers, and a policy needs to know of neither.

Every edit is per row and has one form. Let f be the value of a latent at x, read by
f = J(x . read + read_bias), J(z) = z if z > threshold else 0. Then

    x' = x + (a + b f) write,    with f' - f = a + b f.

It is applied as a difference, so an edit with a = b = 0 leaves x as it is, and whatever part of x the dictionary does
not explain stays untouched.

A splice is another thing: it puts a function of x in the place of x, for instance what a dictionary makes of it. Where
a row has both, edits come after.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

Mode = Literal["add", "gated_add", "clamp", "scale", "ablate", "mean_ablate"]
SHARES = ("ablate", "mean_ablate")
"""Modes whose dose is the share of the latent that is taken away, from 0 to 1."""


@runtime_checkable
class Tap(Protocol):
    """What a policy calls at each of its sites."""

    def __call__(self, site: str, x_RD: Float[Tensor, "R D"], /) -> Float[Tensor, "R D"]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One change of one site, the same at every step of an episode."""

    site: str
    mode: Mode
    dose: float
    """Strength in units of `scale`; 0 is no edit in every mode."""
    scale: float
    """The latent's own size: its 99th percentile over the training rows where it fires."""
    mean: float = 0.0
    """Of the latent over all training rows, where `mean_ablate` moves it."""
    write_D: Float32[np.ndarray, " D"]
    """Direction of the change, in activation units per unit of the latent."""
    read_D: Float32[np.ndarray, " D"]
    read_bias: float
    threshold: float

    def __post_init__(self) -> None:
        if self.mode in SHARES and not 0 <= self.dose <= 1:
            raise ValueError(
                f"dose {self.dose} of an ablation: it is the share of the latent that is removed, from 0 to 1"
            )
        if not np.isfinite([self.dose, self.scale, self.mean, self.read_bias]).all() or not (
            self.threshold < np.inf
        ):
            raise ValueError(
                f"edit of {self.site}: dose, scale, mean and bias must be finite, and the threshold finite or -inf"
            )

    @property
    def width(self) -> int:
        """Of the activation that it fits."""
        return len(self.write_D)

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """(a, b, g) of f' - f = a + b f + g [f ≠ 0].

        add: f' = f + dose scale. gated_add: the same where it fires. clamp: f' = dose scale. scale: f' = (1 + dose) f.
        ablate: f' = (1 - dose) f. mean_ablate: f' = (1 - dose) f + dose mean.
        """
        if self.dose == 0:
            return 0.0, 0.0, 0.0
        match self.mode:
            case "add":
                return self.dose * self.scale, 0.0, 0.0
            case "gated_add":
                return 0.0, 0.0, self.dose * self.scale
            case "clamp":
                return self.dose * self.scale, -1.0, 0.0
            case "scale":
                return 0.0, self.dose, 0.0
            case "ablate":
                return 0.0, -self.dose, 0.0
            case "mean_ablate":
                return self.dose * self.mean, -self.dose, 0.0


@runtime_checkable
class Replacement(Protocol):
    """What is put in the place of an activation: a function of each row, to the last bit whatever is beside it."""

    @property
    def width(self) -> int:
        """Of the activation that it fits."""
        ...

    def __call__(self, x_RD: Float[Tensor, "R D"], /) -> Float[Tensor, "R D"]: ...


@dataclass(frozen=True, slots=True)
class Splice:
    """A site replaced whole, at every step of an episode."""

    site: str
    replacement: Replacement

    @property
    def width(self) -> int:
        return self.replacement.width


@dataclass(frozen=True, slots=True)
class _SiteEdits:
    """The edits of one site for a whole batch; rows without an edit have a = b = g = 0."""

    a_R: Float[Tensor, "R 1"]
    b_R: Float[Tensor, "R 1"]
    g_R: Float[Tensor, "R 1"]
    read_RD: Float[Tensor, "R D"]
    bias_R: Float[Tensor, "R 1"]
    threshold_R: Float[Tensor, "R 1"]
    write_RD: Float[Tensor, "R D"]
    spliced: dict[Replacement, Bool[Tensor, "R 1"]]
    """What is put in the place of which rows."""

    def __call__(self, x_RD: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        for replacement, is_spliced_R in self.spliced.items():
            if is_spliced_R.any():
                x_RD = torch.where(is_spliced_R, replacement(x_RD), x_RD)
        pre_R = (x_RD * self.read_RD).sum(1, keepdim=True) + self.bias_R
        fires_R = pre_R > self.threshold_R
        change_R = self.a_R + fires_R * (self.b_R * pre_R + self.g_R)
        return x_RD + change_R * self.write_RD

    def rows(self, start: int, stop: int) -> "_SiteEdits":
        return _SiteEdits(
            self.a_R[start:stop],
            self.b_R[start:stop],
            self.g_R[start:stop],
            self.read_RD[start:stop],
            self.bias_R[start:stop],
            self.threshold_R[start:stop],
            self.write_RD[start:stop],
            {replacement: is_R[start:stop] for replacement, is_R in self.spliced.items()},
        )


class RowEdits:
    """Edits of a batch, row by row: hundreds of arms in one forward pass.

    `set_row` changes one row between steps; `tile` gives the part that belongs to a range of rows.
    """

    def __init__(
        self,
        num_rows: int,
        site_widths: dict[str, int],
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> None:
        """`device` is where the policy's activations are."""

        def zeros(width: int) -> Tensor:
            return torch.zeros(num_rows, width, device=device)

        self._sites = {
            site: _SiteEdits(
                a_R=zeros(1),
                b_R=zeros(1),
                g_R=zeros(1),
                read_RD=zeros(width),
                bias_R=zeros(1),
                threshold_R=zeros(1),
                write_RD=zeros(width),
                spliced={},
            )
            for site, width in site_widths.items()
        }

    def set_row(self, row: int, edits: Sequence[Edit | Splice]) -> None:
        """Replaces whatever edits the row had."""
        for site in self._sites.values():
            for column in (
                site.a_R,
                site.b_R,
                site.g_R,
                site.read_RD,
                site.bias_R,
                site.threshold_R,
                site.write_RD,
                *site.spliced.values(),
            ):
                column[row] = 0
        for edit in edits:
            site = self._sites[edit.site]
            if isinstance(edit, Splice):
                if edit.replacement not in site.spliced:
                    site.spliced[edit.replacement] = torch.zeros_like(site.a_R, dtype=torch.bool)
                site.spliced[edit.replacement][row] = True
                continue
            site.a_R[row], site.b_R[row], site.g_R[row] = edit.coefficients
            site.read_RD[row] = torch.from_numpy(edit.read_D)
            site.bias_R[row] = edit.read_bias
            site.threshold_R[row] = edit.threshold
            site.write_RD[row] = torch.from_numpy(edit.write_D)

    def tile(self, start: int, stop: int) -> dict[str, _SiteEdits]:
        return {site: edits.rows(start, stop) for site, edits in self._sites.items()}


class RecordingTap:
    """Applies the edits of its rows and keeps what it was asked to capture, edits included."""

    def __init__(
        self, captured: Collection[str] = (), edits: dict[str, _SiteEdits] | None = None
    ) -> None:
        self._captured = frozenset(captured)
        self._edits = edits or {}
        self.activations: dict[str, Tensor] = {}

    def __call__(self, site: str, x_RD: Float[Tensor, "R D"], /) -> Float[Tensor, "R D"]:
        edit = self._edits.get(site)
        if edit is not None:
            x_RD = edit(x_RD)
        if site in self._captured:
            self.activations[site] = x_RD
        return x_RD


def untapped(_site: str, x_RD: Float[Tensor, "R D"], /) -> Float[Tensor, "R D"]:
    """The tap of a policy that is only played."""
    return x_RD
