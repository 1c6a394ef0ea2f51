"""Rows whose dictionary is known, and whether one that was trained has found it.

    x = sum_i a_i f_i + bias + noise        f_i unit features, a_i > 0 on some rows

Shapes: N rows · G features · D width · F latents.

A low error is no evidence of recovery, and directions near the features are not either: many latents in few dimensions
have neighbours everywhere. A feature counts as recovered when its latent writes its direction *and* fires with it.
Kinds of rows that fool the eye are here as well: sparse codes reconstruct them well, some better than honest rows,
though no method could tell their features from rotations, or sums, of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.matching import match
from interp.dictionaries.metrics import fvu

Kind = Literal["independent", "together", "rotated", "merged", "dense"]

# Streams of a seed: the truth, the rows drawn from it, and training share no random numbers.
_TRUTH, _ROWS = 7001, 7002
_GROUP = 4
_DENSE_SHARE = 1 / 8

_GROUPED = ("together", "rotated", "merged")

# Random weights of 100 seeds lie within .02 of chance (64 dimensions, 96 features).
_START_MARGIN = 0.05

RECOVERED_COSINE, RECOVERED_F1, RECOVERED_SHARE = 0.9, 0.7, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedConfig:
    """A known dictionary, and how often its features are on."""

    d_in: int = 256
    """Width of the rows."""
    num_features: int = 512
    """Unit features, at random."""
    mean_active: float = 16.0
    """Features on a row, on average; their frequencies follow 1 / (rank + 10)."""
    noise: float = 0.02
    """Standard deviation of each coordinate; a feature's amount is from .5 to 1.5."""
    bias_norm: float = 2.0
    """Length of what is added to all rows."""
    kind: Kind = "independent"
    """independent: features come and go by themselves. together: in groups of four, with amounts of their own. rotated:
    the same, with normally distributed amounts of either sign. merged: in groups of four, with one amount. dense: all
    features are on at every row (`mean_active` does not count), with normally distributed amounts, and span an eighth
    of the dimensions."""
    seed: int = 0
    """Of the features; rows have seeds of their own."""

    def __post_init__(self) -> None:
        if self.d_in < 8 or self.num_features < 1:
            raise ValueError(
                f"d_in is {self.d_in} and num_features {self.num_features}, wanted at least 8 and 1"
            )
        if self.kind in _GROUPED and self.num_features % _GROUP:
            raise ValueError(
                f"num_features is {self.num_features}, wanted a multiple of {_GROUP} with kind {self.kind!r}"
            )
        if not 0 < self.mean_active <= self.num_features / 4:
            raise ValueError(
                f"mean_active is {self.mean_active}, wanted above 0 and up to a quarter of num_features, "
                f"{self.num_features}"
            )


class Planted:
    """The truth, and rows of it."""

    def __init__(self, config: PlantedConfig) -> None:
        self.config = config
        generator = np.random.default_rng([config.seed, _TRUTH])
        features_GD = generator.normal(size=(config.num_features, config.d_in))
        if config.kind == "dense":
            basis_RD = generator.normal(size=(round(_DENSE_SHARE * config.d_in), config.d_in))
            features_GD = features_GD[:, : len(basis_RD)] @ basis_RD
        features_GD /= np.linalg.norm(features_GD, axis=1, keepdims=True)
        self.features_GD: Float32[np.ndarray, "G D"] = features_GD.astype(np.float32)
        units = config.num_features // (_GROUP if config.kind in _GROUPED else 1)
        share_U = 1 / (np.arange(units) + 10)
        active_units = config.mean_active * units / config.num_features
        share_U = np.minimum(share_U * active_units / share_U.sum(), 0.5)
        self._share_U = share_U * active_units / share_U.sum()
        bias_D = generator.normal(size=config.d_in)
        self.bias_D = (bias_D * config.bias_norm / np.linalg.norm(bias_D)).astype(np.float32)

    def rows(
        self, num_rows: int, *, seed: int
    ) -> tuple[Float32[np.ndarray, "N D"], Bool[np.ndarray, "N G"]]:
        """Rows, and which features are on."""
        parts = list(self._parts(num_rows, seed))
        return np.concatenate([x for x, _ in parts]), np.concatenate([a != 0 for _, a in parts])

    def known_fvu(self, num_rows: int, *, seed: int, k: int | None = None) -> float:
        """Fraction of variance unexplained, in those rows, by the true features in their true amounts.

        Args:
            k: Only so many features a row, those of the largest amounts; by default all that are on.
        """
        parts = list(self._parts(num_rows, seed))
        x_ND, amount_NG = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if k is not None and k < amount_NG.shape[1]:
            least_N1 = np.partition(np.abs(amount_NG), -k, axis=1)[:, -k, None]
            amount_NG = amount_NG * (np.abs(amount_NG) >= least_N1)
        recon_ND = amount_NG @ self.features_GD + self.bias_D
        return fvu(torch.from_numpy(x_ND), torch.from_numpy(recon_ND))

    def _parts(
        self, num_rows: int, seed: int
    ) -> Iterator[tuple[Float32[np.ndarray, "N D"], Float32[np.ndarray, "N G"]]]:
        """Rows and amounts, some at a time."""
        generator = np.random.default_rng([self.config.seed, _ROWS, seed])
        for start in range(0, num_rows, 20_000):
            yield self._some_rows(min(20_000, num_rows - start), generator)

    def _some_rows(
        self, num_rows: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        on_NU = generator.random((num_rows, len(self._share_U)), dtype=np.float32) < self._share_U
        on_NG = on_NU.repeat(config.num_features // len(self._share_U), axis=1)
        match config.kind:
            case "rotated":
                amount_NG = on_NG * generator.standard_normal(on_NG.shape, dtype=np.float32)
            case "dense":
                amount_NG = generator.standard_normal(on_NG.shape, dtype=np.float32)
            case "merged":
                amount_NU = generator.random(on_NU.shape, dtype=np.float32) + np.float32(0.5)
                amount_NG = on_NG * amount_NU.repeat(_GROUP, axis=1)
            case _:
                amount_NG = generator.random(on_NG.shape, dtype=np.float32) + np.float32(0.5)
                amount_NG *= on_NG
        noise = generator.standard_normal((num_rows, config.d_in), dtype=np.float32)
        x_ND = amount_NG @ self.features_GD + self.bias_D + np.float32(config.noise) * noise
        return x_ND, amount_NG

    def chance_mcc(self, num_latents: int) -> float:
        """MCC of the features with as many random directions, which is what weights have before training."""
        generator = torch.Generator().manual_seed(1)
        random_FD = torch.randn(num_latents, self.config.d_in, generator=generator)
        return match(torch.from_numpy(self.features_GD), random_FD, signed=False).mcc

    def check_start(self, W_dec_FD: Float[Tensor, "F D"]) -> None:
        """ValueError if weights that are not trained yet know the features: a score would then prove nothing.

        It has happened: features and weights, drawn from generators of one seed, were the same numbers.
        """
        found = match(torch.from_numpy(self.features_GD), W_dec_FD, signed=False).mcc
        chance = self.chance_mcc(len(W_dec_FD))
        if found > chance + _START_MARGIN:
            raise ValueError(
                f"before training the weights have an MCC of {found:.3f} with the planted features, chance is "
                f"{chance:.3f}; draw them from other random numbers than the features"
            )

    def recovery(
        self,
        dictionary: Dictionary,
        x_ND: Float32[np.ndarray, "N D"],
        on_NG: Bool[np.ndarray, "N G"],
    ) -> "Recovery":
        """How much of the truth a dictionary has found, judged on rows that it was not trained on."""
        return self.recovery_of(dictionary.W_dec, dictionary.encode_rows(x_ND), on_NG)

    def recovery_of(
        self,
        W_dec_FD: Float[Tensor, "F D"],
        latents_NF: Float32[np.ndarray, "N F"],
        on_NG: Bool[np.ndarray, "N G"],
    ) -> "Recovery":
        """The same of any decoder and its latents, for instance another library's."""
        features_GD = torch.from_numpy(self.features_GD)
        matching = match(features_GD, W_dec_FD, signed=False)
        fires_NM = latents_NF[:, matching.second_M] > 1e-6
        on_NM = on_NG[:, matching.first_M]
        both_M = (fires_NM & on_NM).sum(0)
        f1_M = 2 * both_M / np.maximum(fires_NM.sum(0) + on_NM.sum(0), 1)
        is_recovered_M = (matching.similarity_M > RECOVERED_COSINE) & (f1_M > RECOVERED_F1)
        return Recovery(
            mcc=matching.mcc,
            recovered_cosine=matching.share_above(RECOVERED_COSINE) * len(f1_M) / len(features_GD),
            chance_mcc=self.chance_mcc(len(W_dec_FD)),
            f1=float(f1_M.sum()) / len(features_GD),
            recovered_share=float(is_recovered_M.sum()) / len(features_GD),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    mcc: float
    """Mean absolute cosine of features with their latents, matched one to one."""
    chance_mcc: float
    """The same of random latents."""
    recovered_cosine: float
    """Share of features with a cosine above .9, whenever their latents fire; "rec90" elsewhere."""
    f1: float
    """Mean over features of the F1 score of "its latent fires" for "it is on"."""
    recovered_share: float
    """Share of features with a cosine above .9 and an F1 above .7."""

    @property
    def verdict(self) -> Literal["recovered", "partly recovered", "not recovered"]:
        """Recovered from 90 % of the features on, not recovered up to 50 %."""
        if self.recovered_share >= RECOVERED_SHARE:
            return "recovered"
        return "partly recovered" if self.recovered_share > 0.5 else "not recovered"
