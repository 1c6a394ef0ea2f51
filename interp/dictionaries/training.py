"""How is a dictionary trained? One loop over shuffled rows; the family says which latents are active.

    for progress in fit(config, train_ND, held_out_ND, site="lstm.h", seed=0):
        show(progress)

Rows come as [rows, D] float16 or float32 arrays, perhaps read-only memory maps that many processes share; they are
gathered batch by batch and never copied whole. A run is a pure function of (config, rows, seed, machine): every
random number is a function of the seed and the position in the data, so a run that was stopped at any step and
resumed from `Trainer.state_dict` gives the same bits as one that was not. The matrix products run in full float32
on the caller's number of threads (another number may change the last bit).
"""

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from interp.dictionaries.autoencoder import Autoencoder
from interp.dictionaries.batch_topk import BatchTopK, add_auxk_gradient
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.metrics import DensitySummary, Measurement, Rows, blocks, measure
from interp.dictionaries.relu_l1 import ReluL1

Family = ReluL1 | BatchTopK
FAMILIES: dict[str, type[ReluL1] | type[BatchTopK]] = {
    family.name: family for family in (ReluL1, BatchTopK)
}

# Weight initialisation and row order draw from different streams of one seed. (Two streams seeded alike once gave a
# planted dictionary as its own initial weights, and a perfect score after no training.)
_WEIGHTS_STREAM, _ORDER_STREAM = 0, 1

# The inference threshold is a running average over this share of the budget.
_THRESHOLD_WINDOW = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeConfig:
    """One training run of a sparse autoencoder."""

    family: ReluL1 | BatchTopK = field(default_factory=BatchTopK)
    """How latents are chosen, each with its own settings."""
    d_sae: int = 512
    """Number of latents."""
    samples: int = 1_000_000
    """Budget: rows seen, counting repeats; rounded up to whole batches."""
    batch_rows: int = 2048
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
    reports: int = 10
    """How often held-out metrics are reported over the run."""
    report_rows: int = 8192
    """Held-out rows behind each report, evenly spaced; the last report uses all."""

    def __post_init__(self) -> None:
        for name in ("d_sae", "samples", "batch_rows", "reports", "report_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted at least 1")
        for name in ("lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted above 0")
        if self.warm_up < 0 or self.decay < 0 or self.warm_up + self.decay > 1:
            raise ValueError(
                f"warm_up is {self.warm_up} and decay {self.decay}; wanted shares of the budget that sum to at most 1"
            )
        if isinstance(self.family, BatchTopK) and self.family.k > self.d_sae:
            raise ValueError(
                f"family.k is {self.family.k} but d_sae is {self.d_sae}; wanted k at most d_sae"
            )

    @property
    def num_steps(self) -> int:
        return ceil(self.samples / self.batch_rows)

    @property
    def report_steps(self) -> int:
        """Steps from one report to the next."""
        return ceil(self.num_steps / self.reports)

    def lr_at(self, step: int) -> float:
        """Warm-up, plateau, decay; `step` counts from 0."""
        rise = (step + 1) / (self.num_steps * self.warm_up) if self.warm_up else 1.0
        fall = (self.num_steps - step) / (self.num_steps * self.decay) if self.decay else 1.0
        return self.lr * min(1.0, rise, fall)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the family carries its name."""
        return {**asdict(self), "family": {"name": self.family.name, **asdict(self.family)}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SaeConfig":
        """The inverse of `to_dict`; ValueError on an unknown family or field."""
        family = dict(content["family"])
        if (name := family.pop("name", None)) not in FAMILIES:
            raise ValueError(f"family {name!r} is not known; there are {sorted(FAMILIES)}")
        for found, kind in ((content, cls), (family, FAMILIES[name])):
            if unknown := found.keys() - {known.name for known in fields(kind)}:
                raise ValueError(
                    f"{kind.__name__} has no {sorted(unknown)}; was it written by another version?"
                )
        return cls(**{**content, "family": FAMILIES[name](**family)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands; the metrics are those of the frozen dictionary on held-out rows."""

    step: int
    num_steps: int
    samples: int
    """Rows seen so far."""
    loss: float
    """Of the last training batch, per row, where the mean row has squared norm D."""
    fvu: float
    l0: float
    dead_fraction: float
    density: DensitySummary
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What is kept of a report once training is over."""

    step: int
    samples: int
    loss: float
    fvu: float
    l0: float
    dead_fraction: float

    @classmethod
    def of(cls, progress: Progress) -> "CurvePoint":
        return cls(**{field.name: getattr(progress, field.name) for field in fields(cls)})


class Normalisation(NamedTuple):
    """What is subtracted from rows and what they are then divided by."""

    mean_D: Float32[Tensor, " D"]
    """Mean of each coordinate."""
    scale: float
    """Root mean square of a centred coordinate over all rows and coordinates."""


class Trainer:
    """A run that can be stepped, watched, stopped and resumed."""

    def __init__(
        self,
        config: SaeConfig,
        train_ND: Rows,
        held_out_ND: Rows,
        *,
        site: str,
        seed: int,
        known: Normalisation | None = None,
    ) -> None:
        """`known` is `normalisation(train_ND)` if that is known already: it takes a pass over all train rows."""
        check_rows(train_ND, held_out_ND)
        num_rows, d_in = train_ND.shape
        self.config = config
        self.site = site
        self.seed = seed
        self.step = 0
        self._train_ND = train_ND
        self._held_out_ND = held_out_ND
        self._mean_D, self._scale = known or normalisation(train_ND)
        self._order = Shuffle(num_rows, seed=seed)
        generator = torch.Generator().manual_seed(_stream(seed, _WEIGHTS_STREAM))
        self._sae = Autoencoder(d_in=d_in, d_sae=config.d_sae, generator=generator)
        self._adam = torch.optim.Adam(list(self._sae.weights.values()), lr=config.lr, fused=True)
        self._silent_F = torch.zeros(config.d_sae, dtype=torch.int64)
        """Rows since each latent last fired."""
        self._threshold = 0.0
        self._loss = float("nan")
        self._final: Measurement | None = None
        # Reused at every step: fresh ones of this size cost page faults.
        self._x_BD = torch.empty(config.batch_rows, d_in)
        self._error_BD = torch.empty(config.batch_rows, d_in)
        self._latents_BF = torch.empty(config.batch_rows, config.d_sae)
        self._scratch_BF = torch.empty(config.batch_rows, config.d_sae)

    @property
    def done(self) -> bool:
        return self.step >= self.config.num_steps

    def run(self) -> Iterator[Progress]:
        """Trains to the end from wherever the run stands."""
        while not self.done:
            yield self.report()

    def report(self) -> Progress:
        """Trains to the next report, which falls on the same step whether or not the run was resumed."""
        self.advance(self.config.report_steps - self.step % self.config.report_steps)
        return self.progress()

    def advance(self, num_steps: int) -> None:
        """Takes up to `num_steps` gradient steps, fewer if the budget ends."""
        for _ in range(min(num_steps, self.config.num_steps - self.step)):
            self._advance_once()

    @torch.no_grad()
    def _advance_once(self) -> None:
        config, sae, num_rows = self.config, self._sae, self.config.batch_rows
        share = self.step / config.num_steps
        self._load_batch()

        sae.preactivations(self._x_BD, out_BF=self._latents_BF)
        threshold = config.family.threshold(self._latents_BF, share)
        torch.threshold_(self._latents_BF, threshold, 0.0)
        sae.error(self._x_BD, self._latents_BF, out_BD=self._error_BD)
        l1 = config.family.l1_at(share)
        loss = float(self._error_BD.square().sum()) / num_rows
        if l1:
            loss += l1 * float(self._latents_BF.sum()) / num_rows
        sae.backward(self._x_BD, self._latents_BF, self._error_BD, l1=l1, out_BF=self._scratch_BF)

        self._silent_F += num_rows
        self._silent_F[self._latents_BF.amax(0) > 0] = 0
        match config.family:
            case BatchTopK(aux=aux, dead_window=window) if aux:
                dead_F = self._silent_F > window * config.num_steps * num_rows
                if dead_F.any():
                    loss += add_auxk_gradient(sae, self._x_BD, self._error_BD, dead_F, weight=aux)
            case _:
                pass

        sae.project_decoder_gradient()
        sae.clip_gradient(config.max_grad_norm)
        self._adam.param_groups[0]["lr"] = config.lr_at(self.step)
        self._adam.step()
        sae.normalise_decoder()

        keep = max(0.0, 1 - 1 / (_THRESHOLD_WINDOW * config.num_steps)) if self.step else 0.0
        self._threshold = keep * self._threshold + (1 - keep) * threshold
        self._loss = loss
        self.step += 1

    def _load_batch(self) -> None:
        rows = self._order.rows(self.step * self.config.batch_rows, self.config.batch_rows)
        self._x_BD.copy_(torch.from_numpy(self._train_ND[rows])).sub_(self._mean_D).div_(
            self._scale
        )

    def progress(self) -> Progress:
        """Measures the dictionary as it stands; on all held-out rows once the run is done, else on a sample."""
        measured = self._measure()
        return Progress(
            step=self.step,
            num_steps=self.config.num_steps,
            samples=self.step * self.config.batch_rows,
            loss=self._loss,
            fvu=measured.fvu,
            l0=measured.l0,
            dead_fraction=measured.dead_fraction,
            density=measured.density,
            done=self.done,
        )

    def dictionary(self) -> Dictionary:
        """The dictionary as it stands, frozen, with its held-out metrics."""
        measured = self._measure()
        return self._freeze(fvu=measured.fvu, l0=measured.l0, dead_fraction=measured.dead_fraction)

    def _measure(self) -> Measurement:
        if self._final is not None:
            return self._final
        if self.done:
            self._final = measure(self._freeze(), self._held_out_ND)
            return self._final
        stride = ceil(self._held_out_ND.shape[0] / self.config.report_rows)
        return measure(self._freeze(), self._held_out_ND[::stride])

    def _freeze(self, **held_out: float) -> Dictionary:
        return Dictionary(
            W_enc=self._sae.W_enc.clone(),
            b_enc=self._sae.bias_F,
            W_dec=self._sae.W_dec.clone(),
            b_dec=self._sae.b_dec.clone(),
            threshold=torch.tensor(self._threshold),
            mean=self._mean_D.clone(),
            scale=self._scale,
            family=self.config.family.name,
            site=self.site,
            **held_out,
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings (`torch.load(weights_only=True)` reads it); copies, so training may go on."""
        adam = self._adam.state_dict()
        return {
            "identity": self._identity(),
            "step": self.step,
            "threshold": self._threshold,
            "loss": self._loss,
            "silent_F": self._silent_F.clone(),
            "mean_D": self._mean_D.clone(),
            "weights": {name: weight.clone() for name, weight in self._sae.weights.items()},
            "adam": {
                index: {name: moment.clone() for name, moment in moments.items()}
                for index, moments in adam["state"].items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the run that `state` was taken from; ValueError if it was another config, seed or data."""
        if state["identity"] != self._identity():
            raise ValueError(
                f"checkpoint is of another run: it has {state['identity']}, this run {self._identity()}; "
                "start this one afresh"
            )
        if not torch.equal(state["mean_D"], self._mean_D):
            raise ValueError(
                "checkpoint is of other train rows (their mean differs); start this run afresh"
            )
        self.step = state["step"]
        self._threshold = state["threshold"]
        self._loss = state["loss"]
        self._silent_F.copy_(state["silent_F"])
        for name, weight in self._sae.weights.items():
            weight.copy_(state["weights"][name])
        adam = self._adam.state_dict()
        self._adam.load_state_dict(
            {**adam, "state": {index: dict(moments) for index, moments in state["adam"].items()}}
        )
        self._final = None

    def _identity(self) -> str:
        return json.dumps(
            {
                "config": self.config.to_dict(),
                "seed": self.seed,
                "site": self.site,
                "rows": list(self._train_ND.shape),
                "scale": self._scale,
            },
            sort_keys=True,
        )


def fit(
    config: SaeConfig, train_ND: Rows, held_out_ND: Rows, *, site: str, seed: int
) -> Generator[Progress, None, Dictionary]:
    """Trains one dictionary, yielding `config.reports` times; the generator returns the dictionary.

    A caller that wants to stop and resume holds a `Trainer` instead.
    """
    trainer = Trainer(config, train_ND, held_out_ND, site=site, seed=seed)
    yield from trainer.run()
    return trainer.dictionary()


class Shuffle:
    """Row numbers in an endless sequence of seeded epochs, each a permutation; a pure function of the position."""

    def __init__(self, num_rows: int, *, seed: int) -> None:
        self._num_rows = num_rows
        self._seed = seed
        self._epoch = -1
        self._permutation_N: Int64[np.ndarray, " N"] = np.empty(0, dtype=np.int64)

    def rows(self, start: int, count: int) -> Int64[np.ndarray, " B"]:
        """Rows of samples `start` to `start + count`, which may span epochs, in ascending order for the disk's sake."""
        parts = []
        while count:
            epoch, offset = divmod(start, self._num_rows)
            if epoch != self._epoch:
                self._permutation_N = np.random.default_rng(
                    [self._seed, _ORDER_STREAM, epoch]
                ).permutation(self._num_rows)
                self._epoch = epoch
            part = self._permutation_N[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.sort(np.concatenate(parts))


def normalisation(rows_ND: Rows) -> Normalisation:
    """Of all rows, block after block in float64: two passes over the first block, one over the others."""
    guess_D = next(blocks(rows_ND)).double().mean(0)
    sum_D = torch.zeros_like(guess_D)
    square = 0.0
    for x_BD in blocks(rows_ND):
        centred_BD = x_BD.double() - guess_D
        sum_D += centred_BD.sum(0)
        square += float(centred_BD.square().sum())
    num_rows, d_in = rows_ND.shape
    shift_D = sum_D / num_rows
    variance = square / (num_rows * d_in) - float(shift_D.square().mean())
    if not np.isfinite(variance):
        raise ValueError(
            "train rows hold non-finite values; record them again, as float32 if float16 overflowed"
        )
    if variance <= 0:
        raise ValueError(
            f"all {num_rows} train rows are equal: nothing to learn; record other episodes"
        )
    return Normalisation((guess_D + shift_D).float(), variance**0.5)


def check_rows(train_ND: Rows, held_out_ND: Rows) -> None:
    """ValueError if the two splits cannot be trained and measured on; reads no value of them."""
    for split, rows_ND in (("train", train_ND), ("held-out", held_out_ND)):
        if rows_ND.ndim != 2 or 0 in rows_ND.shape:
            raise ValueError(
                f"{split} rows have shape {rows_ND.shape}, wanted [rows, d_in] with at least one of each"
            )
        if rows_ND.dtype not in (np.float16, np.float32):
            raise ValueError(
                f"{split} rows are {rows_ND.dtype}, wanted float16 or float32; convert them when staging"
            )
    if held_out_ND.shape[1] != train_ND.shape[1]:
        raise ValueError(
            f"held-out rows are {held_out_ND.shape[1]} wide but train rows {train_ND.shape[1]}; give rows of one site"
        )


def _stream(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> 1)
