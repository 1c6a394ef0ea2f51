"""One training run of a sparse autoencoder, in numbers; the same ones in JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import ceil, isfinite
from typing import Any, get_args

from interp.dictionaries.autoencoder import DecoderNorm, EncoderPrecision
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.family import Family, check_finite, check_share
from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpRelu
from interp.dictionaries.matryoshka import Matryoshka
from interp.dictionaries.relu_l1 import ReluL1
from interp.dictionaries.temporal import Temporal
from interp.dictionaries.topk import TopK

AnyFamily = BatchTopK | TopK | Matryoshka | Temporal | JumpRelu | Gated | ReluL1
FAMILIES: dict[str, type[Family]] = {family.name: family for family in get_args(AnyFamily)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeConfig:
    """One training run of a sparse autoencoder."""

    family: AnyFamily = field(default_factory=BatchTopK)
    """How latents are chosen, each with its own settings."""
    d_sae: int = 512
    """Number of latents."""
    samples: int = 1_000_000
    """Budget: rows seen, counting repeats; rounded up to whole batches."""
    batch_rows: int = 1024
    """Rows per gradient step."""
    lr: float = 3e-3
    """Peak learning rate of Adam."""
    warm_up: float = 0.05
    """Share of the budget over which the learning rate rises from 0."""
    decay: float = 0.2
    """Share of the budget, at its end, over which the learning rate falls to 0."""
    # Early gradients are 100 times larger and would fill Adam's second moment for a thousand steps: without the limit,
    # recovery of a planted dictionary fell from .997 to .950.
    max_grad_norm: float = 1.0
    """A gradient of larger norm is scaled down to it."""
    normalise: bool = True
    """Whether rows are centred and scaled before they are decomposed; the finished dictionary undoes both."""
    tied_init: bool = True
    """Whether the encoder starts as the decoder's transpose."""
    decoder_norm: DecoderNorm = "unit"
    """Keep decoder rows at norm 1 ("unit"), or leave them and count latents by what they add ("free")."""
    encoder_precision: EncoderPrecision = "float32"
    """Precision of matrix products in training. float32_fast: by the backend that is faster on some processors, if a
    check at the start finds it exact there; the last bits then depend on the processor. bfloat16: of the encoder's
    product alone, which is faster where the processor multiplies it itself."""
    ema: float = 0.0
    """Decay, per step, of a running average of the weights that becomes the dictionary; 0 takes the last weights."""
    resample_at: tuple[float, ...] = ()
    """Shares of the budget at which latents that are silent start again, from rows that are ill explained."""
    resample_window: float = 0.1
    """A latent is silent when it has not fired for this share of the budget."""
    reports: int = 10
    """How often held-out metrics are reported over the run."""
    report_rows: int = 8192
    """Held-out rows behind each report, evenly spaced; the last report uses all."""

    def __post_init__(self) -> None:
        for name in ("d_sae", "samples", "batch_rows", "reports", "report_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted at least 1")
        for name in ("lr", "max_grad_norm"):
            if not (getattr(self, name) > 0 and isfinite(getattr(self, name))):
                raise ValueError(f"{name} is {getattr(self, name)}, wanted a finite number above 0")
        if self.warm_up < 0 or self.decay < 0 or self.warm_up + self.decay > 1:
            raise ValueError(
                f"warm_up is {self.warm_up} and decay {self.decay}; wanted shares of the budget that sum to at most 1"
            )
        for name, kind in (
            ("decoder_norm", DecoderNorm),
            ("encoder_precision", EncoderPrecision),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, wanted one of {get_args(kind)}"
                )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, wanted from 0 to below 1")
        for share in (*self.resample_at, self.resample_window):
            check_share("resample_at, resample_window", share)
        check_finite(self.family)
        self.family.check(self.d_sae)

    @property
    def num_steps(self) -> int:
        return ceil(self.samples / self.batch_rows)

    @property
    def report_steps(self) -> int:
        """Steps from one report to the next."""
        return ceil(self.num_steps / self.reports)

    @property
    def resample_steps(self) -> frozenset[int]:
        """Steps before which dead latents are resampled."""
        return frozenset(round(share * self.num_steps) for share in self.resample_at) - {0}

    def lr_at(self, step: int) -> float:
        """Warm-up, plateau, decay; `step` counts from 0."""
        rise = (step + 1) / (self.num_steps * self.warm_up) if self.warm_up else 1.0
        fall = (self.num_steps - step) / (self.num_steps * self.decay) if self.decay else 1.0
        return self.lr * min(1.0, rise, fall)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the family carries its name."""
        content = {**asdict(self), "family": {"name": self.family.name, **asdict(self.family)}}
        return _with_lists(content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SaeConfig":
        """The inverse of `to_dict`; ValueError on an unknown family or field."""
        family = dict(content["family"])
        if (name := family.pop("name", None)) not in FAMILIES:
            raise ValueError(f"family {name!r} is not known; there are {sorted(FAMILIES)}")
        kind: Any = FAMILIES[name]
        for found, owner in ((content, cls), (family, kind)):
            if unknown := found.keys() - {known.name for known in fields(owner)}:
                raise ValueError(
                    f"{owner.__name__} has no {sorted(unknown)}; was it written by another version?"
                )
        return cls(**{**_with_tuples(content), "family": kind(**_with_tuples(family))})


def _with_lists(content: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that a config and one that was read are told by equal dicts."""
    return {
        name: _with_lists(value)
        if isinstance(value, dict)
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in content.items()
    }


def _with_tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
