"""Rows whose dictionary is known, and whether one that was trained has found it.

    x = sum_i a_i f_i + bias + noise        f_i unit features, a_i > 0 on some rows

Shapes: N rows · G features · D width · F latents.

A low error is no evidence of recovery, and directions near the features are not either: many latents in few dimensions
have neighbours everywhere. A feature counts as recovered when its latent writes its direction *and* fires with it. Two
kinds of rows that fool the eye are here as well: sparse codes reconstruct either better than honest rows, though
no method could tell its features from rotations of them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.matching import chance_mcc, match

Kind = Literal["independent", "rotated", "together"]

# Streams of a seed: the truth, the rows drawn from it, and training share no random numbers.
_TRUTH, _ROWS = 7001, 7002
_GROUP = 4

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
    the same, with normally distributed amounts of either sign."""
    seed: int = 0
    """Of the features; rows have seeds of their own."""


class Planted:
    """The truth, and rows of it."""

    def __init__(self, config: PlantedConfig) -> None:
        self.config = config
        generator = np.random.default_rng([config.seed, _TRUTH])
        features_GD = generator.normal(size=(config.num_features, config.d_in))
        features_GD /= np.linalg.norm(features_GD, axis=1, keepdims=True)
        self.features_GD: Float32[np.ndarray, "G D"] = features_GD.astype(np.float32)
        units = config.num_features // (1 if config.kind == "independent" else _GROUP)
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
        generator = np.random.default_rng([self.config.seed, _ROWS, seed])
        parts = [
            self._some_rows(min(20_000, num_rows - start), generator)
            for start in range(0, num_rows, 20_000)
        ]
        x_parts, on_parts = zip(*parts, strict=True)
        return np.concatenate(x_parts), np.concatenate(on_parts)

    def _some_rows(
        self, num_rows: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        on_NU = generator.random((num_rows, len(self._share_U)), dtype=np.float32) < self._share_U
        on_NG = on_NU.repeat(config.num_features // len(self._share_U), axis=1)
        shape = on_NG.shape
        amount_NG = (
            generator.standard_normal(shape, dtype=np.float32)
            if config.kind == "rotated"
            else generator.random(shape, dtype=np.float32) + np.float32(0.5)
        )
        noise = generator.standard_normal((num_rows, config.d_in), dtype=np.float32)
        x_ND = (on_NG * amount_NG) @ self.features_GD
        return x_ND + self.bias_D + np.float32(config.noise) * noise, on_NG

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
            chance_mcc=chance_mcc(
                len(features_GD), len(W_dec_FD), features_GD.shape[1], seed=1, signed=False
            ),
            f1=float(f1_M.mean()),
            recovered_share=float(is_recovered_M.sum()) / len(features_GD),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    mcc: float
    """Mean absolute cosine of features with their latents, matched one to one."""
    chance_mcc: float
    """The same of random latents."""
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
