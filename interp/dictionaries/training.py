"""How is a dictionary trained? One loop over shuffled rows; the family says which latents are active.

    for progress in fit(config, train_ND, held_out_ND, site="lstm.h", seed=0):
        show(progress)

Rows come as [rows, D] float16 or float32 arrays, perhaps read-only memory maps that many processes share; they are
gathered batch by batch and never copied whole. A run is a pure function of (config, rows, seed, machine): every
random number is a function of the seed and the position in the data, so a run that was stopped at any step and
resumed from `Trainer.state_dict` gives the same bits as one that was not. The matrix products run in full float32
on the caller's number of threads (another number may change the last bit), unless the config says otherwise.
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, fields
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from interp.dictionaries.adam import Adam
from interp.dictionaries.autoencoder import Autoencoder, Batch
from interp.dictionaries.auxk import add_auxk_gradient
from interp.dictionaries.config import FAMILIES, AnyFamily, SaeConfig
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.gradient import Step, gradient_of
from interp.dictionaries.loading import Loader, Normalisation, digest
from interp.dictionaries.metrics import DensitySummary, Measurement, Rows, blocks, measure
from interp.dictionaries.precision import fast_products
from interp.dictionaries.resampling import resample
from interp.dictionaries.temporal import Temporal
from interp.dictionaries.topk import Counting
from interp.identity import sha256

__all__ = [
    "FAMILIES",
    "AnyFamily",
    "CurvePoint",
    "Normalisation",
    "Progress",
    "SaeConfig",
    "Shuffle",
    "Targets",
    "Trainer",
    "check_rows",
    "fit",
    "normalisation",
]

# Weight initialisation, row order and resampling draw from different streams of one seed. (Two streams seeded alike
# once gave a planted dictionary as its own initial weights, and a perfect score after no training.)
_WEIGHTS_STREAM, _ORDER_STREAM, _RESAMPLING_STREAM = 0, 1, 2

# The inference threshold is a running average over this share of the budget.
_THRESHOLD_WINDOW = 0.05


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """What a transcoder reconstructs: the same rows of another site."""

    train_NO: Rows
    held_out_NO: Rows
    site: str
    known: Normalisation | None = None
    """`normalisation(train_NO)`, if that is known already."""


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
        targets: Targets | None = None,
        before_N: Int64[np.ndarray, " N"] | None = None,
        blocks: Sequence[int] | None = None,
        device: str = "cpu",
    ) -> None:
        """Raises ValueError on rows that do not fit together or cannot be learnt from.

        Args:
            known: `normalisation(train_ND)` if that is known already: it takes a pass over all train rows.
            targets: Makes it a transcoder.
            before_N: For each train row the number of the row one step earlier, of the same agent and episode, or -1;
                the temporal family needs it.
            blocks: Widths of the sources that make up a row, of a crosscoder; see `interp.dictionaries.crosscoder`.
            device: Where weights and batches are, for instance "cuda".
        """
        check_rows(train_ND, held_out_ND)
        if targets is not None:
            _check_targets(targets, train_ND, held_out_ND)
        if isinstance(config.family, Temporal):
            _check_before(before_N, len(train_ND))
        else:
            before_N = None
        num_rows, d_in = train_ND.shape
        self.config = config
        self.site = site
        self.seed = seed
        self.step = 0
        self._train_ND = train_ND
        self._held_out_ND = held_out_ND
        self._targets = targets
        self._before_N = before_N
        self._digests = _digests(train_ND, held_out_ND, targets, before_N)
        self._input = _normalisation_of(train_ND, known, config)
        self._output = self._input
        if targets is not None:
            self._output = _normalisation_of(targets.train_NO, targets.known, config)
        self._digests["normalisation"] = _digest_of(self._input, self._output)
        self._device = torch.device(device)
        self._inputs = Loader(train_ND, self._input, self._device)
        self._earlier = Loader(train_ND, self._input, self._device, like=self._inputs)
        self._outputs = None
        if targets is not None:
            self._outputs = Loader(targets.train_NO, self._output, self._device)
        self._order = Shuffle(num_rows, seed=seed)
        self._sae = Autoencoder(
            d_in=d_in,
            d_sae=config.d_sae,
            generator=torch.Generator().manual_seed(_stream(seed, _WEIGHTS_STREAM)),
            d_out=None if targets is None else targets.train_NO.shape[1],
            more=config.family.more_weights(config.d_sae),
            tied=config.tied_init,
            decoder_norm=config.decoder_norm,
            encoder_precision=config.encoder_precision,
            blocks=blocks,
            device=self._device,
        )
        self._adam = Adam(self._sae)
        self._gradient = gradient_of(config.family, self._sae)
        self._average = self._weights() if config.ema else {}
        self._silent_F = torch.zeros(config.d_sae, dtype=torch.int64, device=self._device)
        """Rows since each latent last fired."""
        self._threshold = 0.0
        self._loss = float("nan")
        self._final: Measurement | None = None

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
        is_fast = self.config.encoder_precision == "float32_fast"
        with fast_products() if is_fast else nullcontext():
            for _ in range(min(num_steps, self.config.num_steps - self.step)):
                self._advance_once()

    def _advance_once(self) -> None:
        config, num_rows = self.config, self.config.batch_rows
        share = self.step / config.num_steps
        batch = self._load_batch()
        if self.step in config.resample_steps:
            self._resample(batch, share)
        step = self._gradient(batch, share)
        self._silent_F += num_rows
        self._silent_F[step.fired_F] = 0
        loss = step.loss + self._revive(batch, step)
        self._adam.step(config.lr_at(self.step), max_norm=config.max_grad_norm)
        for name, average in self._average.items():
            average.lerp_(self._sae.weights[name].detach(), 1 - config.ema)
        keep = max(0.0, 1 - 1 / (_THRESHOLD_WINDOW * config.num_steps)) if self.step else 0.0
        self._threshold = keep * self._threshold + (1 - keep) * step.threshold
        self._loss = loss
        self.step += 1

    def _revive(self, batch: Batch, step: Step) -> float:
        """Adds the gradient of AuxK where the family wants it; its loss."""
        family = self.config.family
        if not (isinstance(family, Counting) and family.aux):
            return 0.0
        dead_F = self._is_dead(family.dead_window)
        if not dead_F.any():
            return 0.0
        return add_auxk_gradient(self._sae, batch.x_BD, step.error_BO, dead_F, weight=family.aux)

    def _resample(self, batch: Batch, share: float) -> None:
        dead_F = self._is_dead(self.config.resample_window)
        generator = np.random.default_rng([self.seed, _RESAMPLING_STREAM, self.step])
        resample(
            self._sae,
            self._adam,
            self.config.family,
            batch,
            dead_F,
            share=share,
            generator=generator,
        )
        self._silent_F[dead_F] = 0

    def _is_dead(self, window: float) -> Tensor:
        return self._silent_F > window * self.config.num_steps * self.config.batch_rows

    def _load_batch(self) -> Batch:
        rows_B = self._order.rows(self.step * self.config.batch_rows, self.config.batch_rows)
        x_BD = self._inputs.load(rows_B)
        y_BO = x_BD if self._outputs is None else self._outputs.load(rows_B)
        before_BD, has_before_B = None, None
        if self._before_N is not None:
            before_B = self._before_N[rows_B]
            has_before_B = torch.from_numpy(before_B >= 0).to(self._device)
            before_BD = self._earlier.load(before_B.clip(0))
        return Batch(x_BD=x_BD, y_BO=y_BO, before_BD=before_BD, has_before_B=has_before_B)

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
            self._final = measure(self._freeze(), self._held_out_ND, self._held_out_targets)
            return self._final
        stride = ceil(self._held_out_ND.shape[0] / self.config.report_rows)
        targets = self._held_out_targets
        return measure(
            self._freeze(),
            self._held_out_ND[::stride],
            None if targets is None else targets[::stride],
        )

    @property
    def _held_out_targets(self) -> Rows | None:
        return None if self._targets is None else self._targets.held_out_NO

    def _freeze(self, **held_out: float) -> Dictionary:
        frozen = self.config.family.freeze(self._averaged(), self._threshold)
        targets = self._targets
        return Dictionary(
            W_enc=frozen.W_enc_FD.T.contiguous().cpu(),
            b_enc=frozen.bias_F.cpu(),
            W_dec=frozen.W_dec_FO.cpu(),
            b_dec=self._averaged().b_dec.detach().clone().cpu(),
            threshold=frozen.threshold.cpu(),
            mean=self._input.mean_D.clone(),
            scale=self._input.scale,
            k=frozen.k,
            family=self.config.family.name,
            site=self.site,
            target_site=None if targets is None else targets.site,
            out_mean=None if targets is None else self._output.mean_D.clone(),
            out_scale=None if targets is None else self._output.scale,
            **held_out,
        )

    def _averaged(self) -> Autoencoder:
        """The weights that become the dictionary."""
        if not self._average:
            return self._sae
        averaged = copy(self._sae)
        averaged.weights = self._average
        # an average of rows of norm 1 is shorter than 1: what it lacks is put into its latent
        averaged.decoder_norm = "free"
        return averaged

    def _weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self._sae.weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings (`torch.load(weights_only=True)` reads it); copies, so training may go on."""
        return {
            "identity": self._identity(),
            "digests": dict(self._digests),
            "step": self.step,
            "threshold": self._threshold,
            "loss": self._loss,
            "silent_F": self._silent_F.clone(),
            "weights": self._weights(),
            "average": {name: weight.clone() for name, weight in self._average.items()},
            "adam": {
                "mean": {name: moment.clone() for name, moment in self._adam.mean.items()},
                "square": {name: moment.clone() for name, moment in self._adam.square.items()},
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the run that `state` was taken from; ValueError if it was another config, seed or data."""
        if state["identity"] != self._identity():
            raise ValueError(
                f"checkpoint is of another run: it has {state['identity']}, this run {self._identity()}; "
                "start this one afresh"
            )
        saved = state.get("digests", {})
        if differ := sorted(
            name
            for name in self._digests.keys() | saved.keys()
            if self._digests.get(name) != saved.get(name)
        ):
            raise ValueError(
                f"checkpoint is of other rows ({', '.join(differ)} differ); start this run afresh"
            )
        self.step = self._adam.step_number = state["step"]
        self._threshold = state["threshold"]
        self._loss = state["loss"]
        self._silent_F.copy_(state["silent_F"])
        for mine, saved in (
            (self._sae.weights, state["weights"]),
            (self._average, state["average"]),
            (self._adam.mean, state["adam"]["mean"]),
            (self._adam.square, state["adam"]["square"]),
        ):
            for name, tensor in mine.items():
                tensor.copy_(saved[name])
        self._final = None

    def _identity(self) -> str:
        return json.dumps(
            {
                "config": self.config.to_dict(),
                "seed": self.seed,
                "site": self.site,
                "target_site": None if self._targets is None else self._targets.site,
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


def _digests(
    train_ND: Rows, held_out_ND: Rows, targets: Targets | None, before_N: np.ndarray | None
) -> dict[str, str]:
    """Of all that a run reads, by name: a checkpoint is of these and no others. ValueError on non-finite values."""
    found = {"train": digest(train_ND, "train"), "held-out": digest(held_out_ND, "held-out")}
    if targets is not None:
        found["train targets"] = digest(targets.train_NO, f"train {targets.site}")
        found["held-out targets"] = digest(targets.held_out_NO, f"held-out {targets.site}")
    if before_N is not None:
        found["before_N"] = sha256(np.ascontiguousarray(before_N).tobytes())
    return found


def _digest_of(*normals: Normalisation) -> str:
    return sha256(b"".join(n.mean_D.numpy().tobytes() + repr(n.scale).encode() for n in normals))


def _normalisation_of(
    rows_ND: Rows, known: Normalisation | None, config: SaeConfig
) -> Normalisation:
    if not config.normalise:
        return Normalisation(torch.zeros(rows_ND.shape[1]), 1.0)
    return known or normalisation(rows_ND)


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


def _check_targets(targets: Targets, train_ND: Rows, held_out_ND: Rows) -> None:
    check_rows(targets.train_NO, targets.held_out_NO)
    for split, rows, outputs in (
        ("train", train_ND, targets.train_NO),
        ("held-out", held_out_ND, targets.held_out_NO),
    ):
        if len(rows) != len(outputs):
            raise ValueError(
                f"{len(rows)} {split} rows but {len(outputs)} of their targets at {targets.site}; "
                "give the same rows of both sites"
            )


def _check_before(before_N: np.ndarray | None, num_rows: int) -> None:
    if before_N is None:
        raise ValueError(
            "the temporal family compares neighbouring steps; give before_N, the row before each row"
        )
    if before_N.shape != (num_rows,) or before_N.min() < -1 or before_N.max() >= num_rows:
        raise ValueError(
            f"before_N has shape {before_N.shape} and goes from {before_N.min()} to {before_N.max()}, wanted "
            f"[{num_rows}] row numbers, or -1"
        )
    if (before_N < 0).all():
        raise ValueError(
            "no train row has the step before it among the train rows; record every step"
        )


def _stream(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> 1)
