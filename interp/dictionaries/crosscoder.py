"""Crosscoder: one set of latents for what several policies, or checkpoints, compute at the same steps.

    z = sum_s W_enc^s x^s + b_enc        h = the k B largest of z sum_s |W_dec^s|        x̂^s = h W_dec^s + b_dec^s
    loss = sum_s |x^s - x̂^s|²

Sources: Lindsey et al. 2024, "Sparse Crosscoders" (transformer-circuits.pub); BatchTopK and latent scaling from Minder
et al. 2025 (arXiv:2504.02922). Policies may differ in width. Each is centred, and scaled so that all weigh alike: the
mean squared norm of its rows is D / S, with D the width of all S of them.

**Is a latent of one policy alone?** Its decoder row in another may be small because other latents took over its work
there, which is no evidence (Minder: shrinkage and decoupling). So the row that would fit best is computed, the other
latents held fixed, on rows that were not trained on:

    y^s = e^s + h_f W_dec_f^s        fitted_f^s = sum_b h_bf y_b^s / sum_b h_bf²
    presence_f^s = |fitted_f^s| / the largest over s

Minder et al. fit a length along the row of the other policy, which two with one basis have in common; here the
direction is free as well. A free direction also fits noise: |fitted|² is less by
sum_b h² |y - h fitted|² / (sum_b h²)², what independent rows would add to it.

Shapes: N rows · S sources · F latents · D width of all sources.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from interp.dictionaries.config import SaeConfig
from interp.dictionaries.dictionary import CONFIG_FILE, WEIGHTS_FILE, Dictionary, LatentDirection
from interp.dictionaries.metrics import BLOCK_ROWS, Rows
from interp.dictionaries.topk import Counting
from interp.dictionaries.training import Normalisation, Trainer, check_rows, normalisation

SOURCES_FILE = "sources.json"
MEANS_FILE = "sources.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE, SOURCES_FILE, MEANS_FILE)
FORMAT = "sparsight-crosscoder/1"
ABSENT, PRESENT = 0.2, 0.5
"""Presence below which a source lacks a latent, and from which it has it."""

Index = slice | np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One policy's, or one checkpoint's, part of each row, and how it is normalised."""

    name: str
    """For instance the id of the policy."""
    normal: Normalisation

    @property
    def width(self) -> int:
        return len(self.normal.mean_D)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairedRows:
    """Rows of several sources side by side, normalised when they are read; row n is the same step in each."""

    sources: tuple[Source, ...]
    parts: tuple[Rows, ...]

    def __post_init__(self) -> None:
        counts = {
            source.name: len(part) for source, part in zip(self.sources, self.parts, strict=True)
        }
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"sources have {counts} rows; give the same steps of each, for instance replays of one bank"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.parts[0]), sum(source.width for source in self.sources)

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Index) -> Float32[np.ndarray, "N D"]:
        share = np.sqrt(self.shape[1] / len(self.sources))
        return np.concatenate(
            [
                (part[rows].astype(np.float32) - source.normal.mean_D.numpy())
                * np.float32(share / np.sqrt(source.width) / source.normal.scale)
                for source, part in zip(self.sources, self.parts, strict=True)
            ],
            axis=1,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crosscoder:
    """A finished crosscoder: a dictionary of rows that lie side by side, and which part is whose."""

    dictionary: Dictionary
    """Of normalised rows."""
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if len({source.name for source in self.sources}) != len(self.sources):
            raise ValueError(f"sources {[s.name for s in self.sources]}: wanted different names")
        width = sum(source.width for source in self.sources)
        if width != self.dictionary.d_in:
            raise ValueError(
                f"sources have {width} activations together, but the crosscoder reads {self.dictionary.d_in}"
            )

    def index(self, name: str) -> int:
        """Which source has that name; ValueError if none has."""
        names = [source.name for source in self.sources]
        if name not in names:
            raise ValueError(f"{name} is not a source of this crosscoder; it is of {names}")
        return names.index(name)

    def to_bytes(self) -> dict[str, bytes]:
        """File name -> content: the dictionary's files, and what its parts are. Same crosscoder, same bytes."""
        content = {
            "format": FORMAT,
            "sources": [
                {"name": source.name, "width": source.width, "scale": source.normal.scale}
                for source in self.sources
            ],
        }
        means = {str(n): s.normal.mean_D.contiguous() for n, s in enumerate(self.sources)}
        return {
            **self.dictionary.to_bytes(),
            SOURCES_FILE: (json.dumps(content, indent=2, allow_nan=False) + "\n").encode(),
            MEANS_FILE: save(means),
        }

    @classmethod
    def from_bytes(cls, files: Mapping[str, bytes]) -> "Crosscoder":
        """The inverse of `to_bytes`, bit for bit. ValueError names the file and what is wrong with it."""
        if absent := set(FILES) - files.keys():
            raise ValueError(f"crosscoder without {sorted(absent)}; it needs {sorted(FILES)}")
        listed = _read_sources(files[SOURCES_FILE])
        try:
            means = load(bytes(files[MEANS_FILE]))
        except SafetensorError as error:
            raise ValueError(f"{MEANS_FILE} is not a safetensors file: {error}") from error
        for number, source in enumerate(listed):
            mean = means.get(str(number))
            if (
                mean is None
                or mean.dtype != torch.float32
                or tuple(mean.shape) != (source["width"],)
                or not mean.isfinite().all()
            ):
                raise ValueError(
                    f"{MEANS_FILE} has no {source['width']} finite float32 means of source {number}, {source['name']}"
                )
        return cls(
            dictionary=Dictionary.from_bytes({n: files[n] for n in (CONFIG_FILE, WEIGHTS_FILE)}),
            sources=tuple(
                Source(
                    name=source["name"],
                    normal=Normalisation(means[str(number)], float(source["scale"])),
                )
                for number, source in enumerate(listed)
            ),
        )

    def paired(self, rows: Mapping[str, Rows]) -> PairedRows:
        """Rows by the name of their source. ValueError if one is missing, unknown, or of another width."""
        names = [source.name for source in self.sources]
        if set(rows) != set(names):
            raise ValueError(f"rows of {sorted(rows)} but this crosscoder is of {sorted(names)}")
        for source in self.sources:
            if rows[source.name].shape[1] != source.width:
                raise ValueError(
                    f"rows of {source.name} are {rows[source.name].shape[1]} wide, wanted {source.width}"
                )
        return PairedRows(sources=self.sources, parts=tuple(rows[name] for name in names))

    def encode(self, rows: Mapping[str, Rows]) -> Float[Tensor, "N F"]:
        """Latents of each step, which all sources share."""
        return self.dictionary.encode(torch.from_numpy(self.paired(rows)[:]))

    def decoder(self, source: int) -> Float[Tensor, "F D"]:
        """What each latent adds to one source, in its normalised units."""
        ends = list(accumulate(source.width for source in self.sources))
        return self.dictionary.W_dec[:, ends[source] - self.sources[source].width : ends[source]]

    def direction(self, latent: int, source: int, *, alone: bool = False) -> LatentDirection:
        """One latent as one source reads and writes it, in the units of its activation.

        The other sources are taken at their means, which are 0 after normalisation: its part of the sum. With `alone`
        they are taken to hold as much of the latent as this one does: of an amount a each source contributes
        a W_enc^s . W_dec^s to z, so its part is divided by its share of that. A source that lacks the latent, with a
        share below .2 / S, tells nothing of the others.
        """
        whole, normal = self.dictionary.direction(latent), self.sources[source].normal
        start = sum(s.width for s in self.sources[:source])
        part = slice(start, start + self.sources[source].width)
        share = 1.0
        if alone:
            held_D = self.dictionary.W_enc[:, latent] * self.dictionary.W_dec[latent]
            share = float(held_D[part].sum() / held_D.sum())
            share = share if share >= ABSENT / len(self.sources) else 1.0
        read_D = whole.read_D[part] / normal.scale / share
        return LatentDirection(
            read_D=read_D,
            read_bias=whole.read_bias - float(normal.mean_D.double() @ read_D.double()),
            threshold=whole.threshold,
            write_D=whole.write_D[part] * normal.scale,
        )

    @property
    def norms_FS(self) -> Float[Tensor, "F S"]:
        """|W_dec_f^s|; their sum over sources is 1."""
        return torch.stack([self.decoder(s).norm(dim=1) for s in range(len(self.sources))], 1)

    def presence(self, rows: Mapping[str, Rows]) -> Float[Tensor, "F S"]:
        """How much of each latent is in each source, 0 to 1, 1 where it is strongest; nan for one that never fires.

        `rows` should be held-out ones, of whole episodes.
        """
        paired = self.paired(rows)
        num_sources, ends = len(self.sources), list(accumulate(s.width for s in self.sources))
        slices = [slice(end - s.width, end) for s, end in zip(self.sources, ends, strict=True)]
        code_error_FD = torch.zeros(self.dictionary.d_sae, ends[-1], dtype=torch.float64)
        square_F = torch.zeros(self.dictionary.d_sae, dtype=torch.float64)
        noise_FS = torch.zeros(self.dictionary.d_sae, num_sources, dtype=torch.float64)
        fitted_FD: Tensor | None = None
        for is_second in (False, True):
            if is_second:
                W_dec_FD = self.dictionary.W_dec.double()
                fitted_FD = W_dec_FD + code_error_FD / square_F.clamp_min(1e-300)[:, None]
            for start in range(0, len(paired), BLOCK_ROWS):
                x_ND = torch.from_numpy(paired[start : start + BLOCK_ROWS])
                h_NF = self.dictionary.encode(x_ND)
                error_ND = (x_ND - self.dictionary.decode(h_NF)).double()
                h_NF = h_NF.double()
                if fitted_FD is None:
                    code_error_FD += h_NF.T @ error_ND
                    square_F += h_NF.square().sum(0)
                    continue
                # |y - h fitted|² = |e - h step|², step = fitted - W_dec, summed with weights h²
                step_FD = fitted_FD - self.dictionary.W_dec.double()
                for s, part in enumerate(slices):
                    along_NF = error_ND[:, part] @ step_FD[:, part].T
                    noise_FS[:, s] += (
                        h_NF.square() * error_ND[:, part].square().sum(1, keepdim=True)
                        - 2 * h_NF.pow(3) * along_NF
                        + h_NF.pow(4) * step_FD[:, part].square().sum(1)
                    ).sum(0)
        assert fitted_FD is not None
        square = torch.stack([fitted_FD[:, part].square().sum(1) for part in slices], 1)
        square = (square - noise_FS / square_F.square().clamp_min(1e-300)[:, None]).clamp_min(0)
        strength_FS = square.sqrt()
        presence_FS = strength_FS / strength_FS.max(1, keepdim=True).values
        presence_FS[square_F == 0] = torch.nan
        return presence_FS.float()


class CrosscoderTrainer:
    """A `Trainer` over paired rows; `trainer` steps, stops and resumes it."""

    def __init__(
        self,
        config: SaeConfig,
        train: Mapping[str, Rows],
        held_out: Mapping[str, Rows],
        *,
        site: str,
        seed: int,
        known: Mapping[str, Normalisation] | None = None,
    ) -> None:
        """Rows by source, row n being the same step in all of them.

        Raises ValueError on sources that do not fit together, or on a config that is not of a crosscoder.
        """
        _check_config(config)
        if len(train) < 2 or train.keys() != held_out.keys():
            raise ValueError(
                f"train rows of {sorted(train)} and held-out rows of {sorted(held_out)}; wanted the same sources, at "
                "least two"
            )
        for name in train:
            check_rows(train[name], held_out[name])
        self.sources = tuple(
            Source(name=name, normal=(known or {}).get(name) or normalisation(rows))
            for name, rows in train.items()
        )
        paired = [
            PairedRows(sources=self.sources, parts=tuple(rows[name] for name in train))
            for rows in (train, held_out)
        ]
        width = paired[0].shape[1]
        self.trainer = Trainer(
            config,
            *paired,
            site=site,
            seed=seed,
            known=Normalisation(torch.zeros(width), 1.0),
            blocks=[source.width for source in self.sources],
        )

    def crosscoder(self) -> Crosscoder:
        """As it stands."""
        return Crosscoder(dictionary=self.trainer.dictionary(), sources=self.sources)


def _read_sources(content: bytes) -> list[dict[str, Any]]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{SOURCES_FILE} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{SOURCES_FILE}: wanted format {FORMAT!r}")
    listed = found.get("sources")
    if not isinstance(listed, list) or len(listed) < 2:
        raise ValueError(
            f"{SOURCES_FILE}: sources are {listed!r:.80}, wanted a list of two or more"
        )
    for source in listed:
        if not (
            isinstance(source, dict)
            and source.keys() == {"name", "width", "scale"}
            and isinstance(source["name"], str)
            and isinstance(source["width"], int)
            and isinstance(source["scale"], int | float)
            and math.isfinite(source["scale"])
            and source["scale"] > 0
        ):
            raise ValueError(
                f"{SOURCES_FILE}: source {source!r:.120}, wanted a name, a width and a scale above 0"
            )
    return listed


def whose(presence_FS: Float32[np.ndarray, "F S"]) -> list[str]:
    """Of each latent: "all" sources have it, "one" alone does, "some" or some in part, or it is "silent"."""
    found = []
    for presence_S in presence_FS:
        if np.isnan(presence_S).any():
            found.append("silent")
        elif presence_S.min() >= PRESENT:
            found.append("all")
        elif np.sort(presence_S)[-2] < ABSENT:
            found.append("one")
        else:
            found.append("some")
    return found


def _check_config(config: SaeConfig) -> None:
    if not isinstance(config.family, Counting) or config.decoder_norm != "free":
        raise ValueError(
            f"family {config.family.name} with decoder_norm {config.decoder_norm!r}: a crosscoder counts latents by "
            'what they add to all sources; take batch_topk and decoder_norm "free"'
        )
