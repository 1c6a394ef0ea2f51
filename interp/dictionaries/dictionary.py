"""What is a dictionary once training is over? Frozen weights that turn an activation into sparse latents and back.

    z = ((x - mean) / scale) W_enc + b_enc
    f = z where z > threshold, else 0          (of one family: and among the k largest of its row)
    x̂ = scale (f W_dec + b_dec) + mean         (of a transcoder: with the scale and mean of the site that it predicts)

Shapes: B rows · D activation width · O output width, D but for a transcoder · F latents. The code of a row never
depends on the rows around it: families that choose their latents by batch (BatchTopK) are frozen to a threshold first,
and the products run on blocks of one fixed size, so that not even the last bit changes with the number of rows.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from interp.dictionaries.metrics import check_finite_rows

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
FORMAT = "sparsight-dictionary/1"

# MKL takes another kernel for one row than for many (rows then differ by 1e-7) and promises nothing between other
# sizes. One size, zero-padded, has one kernel; it is also faster than one large product, whose result is too large
# for malloc to reuse (8.8 ms against 21 ms for 4096 rows of 128 into 512 latents, one thread).
_BLOCK_ROWS = 128

_TENSORS = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_out"),
    "b_dec": ("d_out",),
    "threshold": ("d_sae",),
    "mean": ("d_in",),
}
_OUT_MEAN = "out_mean"
# in the config file of those dictionaries that have them
_OPTIONAL: dict[str, type] = {"k": int, "target_site": str, "out_scale": float}


class LatentDirection(NamedTuple):
    """One latent in the units of the recorded activation x: read it, write it.

    z = x · read_D + read_bias; f = z if z > threshold else 0. Raising f by one adds write_D to the reconstruction.
    """

    read_D: Float[Tensor, " D"]
    read_bias: float
    threshold: float
    write_D: Float[Tensor, " D"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dictionary:
    """A sparse autoencoder for inference, with the input normalisation that it was trained under."""

    W_enc: Float[Tensor, "D F"]
    b_enc: Float[Tensor, " F"]
    """The decoder bias is already folded in: b_enc here is b_enc - b_dec W_enc of training."""
    W_dec: Float[Tensor, "F O"]
    b_dec: Float[Tensor, " O"]
    threshold: Float[Tensor, "*F"]
    """At least 0; one for all latents (no axis) or one per latent."""
    mean: Float[Tensor, " D"]
    """Mean of the training rows."""
    scale: float
    """Root mean square of a centred training coordinate."""
    family: str
    """How it was trained: "relu_l1", "batch_topk"."""
    site: str
    """Where in the policy the activations come from, for instance "lstm.h"."""
    fvu: float = math.nan
    """Fraction of variance unexplained to expect on held-out rows; nan if never measured."""
    l0: float = math.nan
    """Latents active per held-out row."""
    dead_fraction: float = math.nan
    """Share of latents silent on every held-out row."""
    k: int | None = None
    """If given, at most so many latents of a row are active, the largest."""
    target_site: str | None = None
    """Of a transcoder: the site that it predicts. Its `out_mean` and `out_scale` are that site's `mean` and `scale`."""
    out_mean: Float[Tensor, " O"] | None = None
    out_scale: float | None = None

    def __post_init__(self) -> None:
        _check_tensors(self._tensors)
        for name, scale in (("scale", self.scale), ("out_scale", self.out_scale)):
            if scale is not None and not (math.isfinite(scale) and scale > 0):
                raise ValueError(f"{name} is {scale}, wanted a finite number above 0")
        given = [self.target_site is None, self.out_mean is None, self.out_scale is None]
        if len(set(given)) > 1:
            raise ValueError(
                "a transcoder has target_site, out_mean and out_scale, another dictionary none of them; got some"
            )
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k is {self.k}, wanted from 1 to d_sae, {self.d_sae}")

    @property
    def _tensors(self) -> dict[str, Tensor]:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return tensors if self.out_mean is None else {**tensors, _OUT_MEAN: self.out_mean}

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def is_transcoder(self) -> bool:
        return self.target_site is not None

    @torch.no_grad()
    def encode(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """Latents of each row, all at least 0; a pure function of that row.

        ValueError for rows that are not finite, whose latents would be. (`reconstruct`, for the middle of a forward
        pass, does not look: a policy that runs away there is reported by its logits.)
        """
        if x_BD.ndim != 2 or x_BD.shape[1] != self.d_in:
            raise ValueError(
                f"activations have shape {tuple(x_BD.shape)} but this dictionary of {self.site!r} reads "
                f"[rows, {self.d_in}]; give it rows of that site"
            )
        check_finite_rows(x_BD)
        return _by_block(self._encode_block, x_BD, self.d_sae)

    @torch.no_grad()
    def decode(self, latents_BF: Float[Tensor, "B F"]) -> Float[Tensor, "B O"]:
        """Reconstruction of each row in the units of the recorded activation (a transcoder's: of its target site)."""
        if latents_BF.ndim != 2 or latents_BF.shape[1] != self.d_sae:
            raise ValueError(
                f"latents have shape {tuple(latents_BF.shape)}, wanted [rows, {self.d_sae}]"
            )
        return _by_block(self._decode_block, latents_BF, self.d_out)

    def encode_rows(self, x_ND: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N F"]:
        """`encode` for numpy."""
        return self.encode(torch.from_numpy(np.ascontiguousarray(x_ND))).numpy()

    def on(self, device: torch.device) -> "Dictionary":
        """Itself with its tensors on a device, for `reconstruct`."""
        moved = {name: tensor.to(device) for name, tensor in self._tensors.items()}
        return replace(self, **moved)

    @torch.no_grad()
    def reconstruct(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B O"]:
        """`decode(encode(x))` in one block and on the device of `x_BD`, for the middle of a forward pass.

        How many rows there are may change the last bit of each; `encode` and `decode` take care that it does not.
        """
        return self._decode_block(self._encode_block(x_BD))

    def _encode_block(self, x_BD: Tensor) -> Tensor:
        z_BF = torch.addmm(self.b_enc, (x_BD - self.mean) / self.scale, self.W_enc)
        z_BF.mul_(z_BF > self.threshold)
        if self.k is not None and self.k < self.d_sae:
            # what ties with the next one is left out, as in training
            next_B = z_BF.topk(self.k + 1, dim=1).values[:, -1:]
            z_BF.mul_(z_BF > next_B)
        return z_BF

    def _decode_block(self, latents_BF: Tensor) -> Tensor:
        scale = self.scale if self.out_scale is None else self.out_scale
        mean = self.mean if self.out_mean is None else self.out_mean
        return torch.addmm(self.b_dec, latents_BF, self.W_dec).mul_(scale).add_(mean)

    def direction(self, latent: int) -> LatentDirection:
        """Read and write vectors of one latent with the input normalisation folded in.

        ValueError where a latent cannot be read by itself, as it competes for k places in its row, or writes at another
        site.
        """
        if self.k is not None:
            raise ValueError(
                f"latents of this dictionary compete for {self.k} places in each row, so none can be read by itself; "
                'train the family with inference="threshold"'
            )
        if self.is_transcoder:
            raise ValueError(
                f"this is a transcoder: its latents read {self.site!r} but write {self.target_site!r}"
            )
        if not 0 <= latent < self.d_sae:
            raise ValueError(
                f"latent {latent} not in this dictionary; it has 0 to {self.d_sae - 1}"
            )
        read_D = self.W_enc[:, latent] / self.scale
        return LatentDirection(
            read_D=read_D,
            read_bias=float(self.b_enc[latent].double() - self.mean.double() @ read_D.double()),
            threshold=float(self.threshold.expand(self.d_sae)[latent]),
            write_D=self.scale * self.W_dec[latent],
        )

    def to_bytes(self) -> dict[str, bytes]:
        """File name -> content: tensors as safetensors, the rest as JSON. Same dictionary, same bytes."""
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors.items()}
        config = {
            "format": FORMAT,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "family": self.family,
            "site": self.site,
            "scale": self.scale,
            "held_out": {
                name: None if math.isnan(getattr(self, name)) else getattr(self, name)
                for name in ("fvu", "l0", "dead_fraction")
            },
            **{name: value for name in _OPTIONAL if (value := getattr(self, name)) is not None},
        }
        text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
        return {WEIGHTS_FILE: save(tensors), CONFIG_FILE: text.encode()}

    @classmethod
    def from_bytes(cls, files: Mapping[str, bytes]) -> "Dictionary":
        """The inverse of `to_bytes`, bit for bit. ValueError names the file and the field that is wrong."""
        if absent := {WEIGHTS_FILE, CONFIG_FILE} - files.keys():
            raise ValueError(
                f"dictionary without {sorted(absent)}; it needs {WEIGHTS_FILE} and {CONFIG_FILE}"
            )
        config = _read_config(files[CONFIG_FILE])
        try:
            tensors = load(bytes(files[WEIGHTS_FILE]))
        except SafetensorError as error:
            raise ValueError(f"{WEIGHTS_FILE} is not a safetensors file: {error}") from error
        wanted = _TENSORS.keys() | ({_OUT_MEAN} if "target_site" in config else set())
        if tensors.keys() != wanted:
            raise ValueError(
                f"{WEIGHTS_FILE} lacks {sorted(wanted - tensors.keys())} and has unknown "
                f"{sorted(tensors.keys() - wanted)}; wanted exactly {sorted(wanted)}"
            )
        try:
            _check_tensors(tensors)
        except ValueError as error:
            raise ValueError(f"{WEIGHTS_FILE}: {error}") from error
        held_out = {
            name: math.nan if value is None else float(value)
            for name, value in config["held_out"].items()
        }
        dictionary = cls(
            W_enc=tensors["W_enc"],
            b_enc=tensors["b_enc"],
            W_dec=tensors["W_dec"],
            b_dec=tensors["b_dec"],
            threshold=tensors["threshold"],
            mean=tensors["mean"],
            scale=float(config["scale"]),
            family=str(config["family"]),
            site=str(config["site"]),
            out_mean=tensors.get(_OUT_MEAN),
            k=config.get("k"),
            target_site=config.get("target_site"),
            out_scale=config.get("out_scale"),
            **held_out,
        )
        if (config["d_in"], config["d_sae"]) != (dictionary.d_in, dictionary.d_sae):
            raise ValueError(
                f"{CONFIG_FILE} says d_in {config['d_in']}, d_sae {config['d_sae']} but {WEIGHTS_FILE} has "
                f"{dictionary.d_in}, {dictionary.d_sae}; they are of two dictionaries"
            )
        return dictionary


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Shapes that fit together, float32, finite, no threshold below 0."""
    for name, axes in (("W_enc", "[d_in, d_sae]"), ("W_dec", "[d_sae, d_out]")):
        if tensors[name].ndim != 2:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, wanted {axes}")
    sizes = dict(zip(_TENSORS["W_enc"], tensors["W_enc"].shape, strict=True))
    is_transcoder = _OUT_MEAN in tensors
    sizes["d_out"] = tensors["W_dec"].shape[1] if is_transcoder else sizes["d_in"]
    all_axes = {**_TENSORS, _OUT_MEAN: ("d_out",)}
    for name, tensor in tensors.items():
        axes = all_axes[name]
        wanted = tuple(sizes[axis] for axis in axes)
        if tuple(tensor.shape) != wanted and not (name == "threshold" and tensor.ndim == 0):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, wanted {wanted} = [{', '.join(axes)}] "
                f"to go with W_enc {tuple(tensors['W_enc'].shape)}"
            )
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}, wanted torch.float32; convert it first")
        if num_bad := int((~tensor.isfinite()).sum()):
            raise ValueError(f"{name} has {num_bad} non-finite values; train again")
    if (tensors["threshold"] < 0).any():
        raise ValueError(
            f"threshold goes down to {float(tensors['threshold'].min())}, wanted at least 0"
        )


def _read_config(content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{CONFIG_FILE} has format {found!r}, wanted {FORMAT!r}")
    fields = {"format", "d_in", "d_sae", "family", "site", "scale", "held_out"}
    if config.keys() - _OPTIONAL.keys() != fields:
        raise ValueError(
            f"{CONFIG_FILE} lacks {sorted(fields - config.keys())} and has unknown "
            f"{sorted(config.keys() - fields - _OPTIONAL.keys())}"
        )
    for name, kind in _OPTIONAL.items():
        if name in config and not (
            isinstance(config[name], kind) and not isinstance(config[name], bool)
        ):
            raise ValueError(f"{CONFIG_FILE}: {name} is {config[name]!r}, wanted {kind.__name__}")
    numbers = {"fvu", "l0", "dead_fraction"}
    if not isinstance(config["held_out"], dict) or config["held_out"].keys() != numbers:
        raise ValueError(
            f"{CONFIG_FILE}: held_out is {config['held_out']!r}, wanted the fields {sorted(numbers)}"
        )
    for name, value in {"scale": config["scale"], **config["held_out"]}.items():
        if not (isinstance(value, int | float) or (value is None and name in numbers)):
            raise ValueError(f"{CONFIG_FILE}: {name} is {value!r}, wanted a number")
    if not (math.isfinite(config["scale"]) and config["scale"] > 0):
        raise ValueError(
            f"{CONFIG_FILE}: scale is {config['scale']}, wanted a finite number above 0"
        )
    return config


def _by_block(product: Callable[[Tensor], Tensor], rows_BX: Tensor, width: int) -> Tensor:
    """`product` of every row, computed in blocks of `_BLOCK_ROWS` of which the last is padded with zeros."""
    out = torch.empty(rows_BX.shape[0], width)
    for start in range(0, rows_BX.shape[0], _BLOCK_ROWS):
        block = rows_BX[start : start + _BLOCK_ROWS].float()
        if (count := block.shape[0]) < _BLOCK_ROWS:
            padded = torch.zeros(_BLOCK_ROWS, block.shape[1])
            padded[:count] = block
            block = padded
        out[start : start + count] = product(block)[:count]
    return out
