"""Plans and memories as a table: every latent, label and lag, and for each label the latent and lag that tell it best.

Which lag, and which latent, is chosen on training episodes; what is published of them is of held-out ones. p, q and the
family-wise p are over all pairs and all lags together, so that scanning many lags is paid for.

F latents · L labels · K lags · C = L x K columns, the lags of a label beside each other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from interp.concepts.blocks import RankScores
from interp.concepts.lags import best_lag
from interp.concepts.scoring import AurocInterval

LAG_SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("latent", pa.int32()),
        ("lag", pa.int32()),
        ("train_auroc", pa.float64()),
        ("auroc", pa.float64()),
        ("auroc_lo", pa.float64()),
        ("auroc_hi", pa.float64()),
        ("p_value", pa.float64()),
        ("q_value", pa.float64()),
        ("family_p_value", pa.float64()),
        ("selectivity", pa.float64()),
        ("null", pa.string()),
        ("is_best_lag", pa.bool_()),
        ("is_best", pa.bool_()),
        ("n_missing", pa.int64()),
        ("n_episodes", pa.int32()),
    ]
)
"""One row per label, latent and lag (in steps; positive looks ahead, negative back), in this order. `is_best_lag`: of
this latent and label, the lag whose AUROC is farthest from chance on training episodes; `is_best`: of this label, the
latent and lag for which it is. All else but `train_auroc` is of held-out episodes; the interval is of the best alone.
`n_missing` samples are left out: what is asked at one of the lags lies beyond the episode there."""


class BestPairs(NamedTuple):
    """What training episodes choose."""

    lag_FL: Int64[np.ndarray, "F L"]
    """Place of the lag of every pair."""
    latent_L: Int64[np.ndarray, " L"]
    """Of every label."""

    @property
    def lag_L(self) -> Int64[np.ndarray, " L"]:
        """Place of the lag of each label's latent."""
        return self.lag_FL[self.latent_L, np.arange(len(self.latent_L))]


def best_pairs(train_auroc_FC: Float[np.ndarray, "F C"], num_lags: int) -> BestPairs:
    """For every pair its lag, and for every label its latent: those farthest from chance, either way."""
    auroc_FLK = train_auroc_FC.reshape(len(train_auroc_FC), -1, num_lags)
    distance_FLK = np.abs(np.nan_to_num(auroc_FLK, nan=0.5) - 0.5)
    return BestPairs(best_lag(auroc_FLK), distance_FLK.max(2).argmax(0))


def lag_table(
    train_auroc_FC: Float[np.ndarray, "F C"],
    scores: RankScores,
    interval: AurocInterval,
    *,
    labels: Sequence[str],
    lags: Sequence[int],
    n_episodes: int,
) -> pa.Table:
    """The table; `interval` is of the best latent of each label at its lag, one column each, [1, L]."""
    num_latents, num_labels, num_lags = len(train_auroc_FC), len(labels), len(lags)
    shape = (num_labels, num_latents, num_lags)
    best = best_pairs(train_auroc_FC, num_lags)
    label_LFK, latent_LFK, lag_LFK = np.indices(shape)
    is_best_lag_LFK = lag_LFK == best.lag_FL.T[..., None]
    is_best_LFK = is_best_lag_LFK & (latent_LFK == best.latent_L[:, None, None])

    def of_pairs(value_FC: Float[np.ndarray, "F C"]) -> pa.Array:
        value_LFK = value_FC.reshape(num_latents, num_labels, num_lags).swapaxes(0, 1)
        return pa.array(value_LFK.reshape(-1))

    def of_columns(value_C: Sequence[object]) -> list[object]:
        return [value_C[c] for c in (label_LFK * num_lags + lag_LFK).reshape(-1).tolist()]

    def of_best(value_L: Float[np.ndarray, " L"]) -> pa.Array:
        return pa.array(value_L[label_LFK.reshape(-1)], mask=~is_best_LFK.reshape(-1))

    columns = {
        "label": [labels[ell] for ell in label_LFK.reshape(-1).tolist()],
        "latent": latent_LFK.reshape(-1),
        "lag": np.array(lags)[lag_LFK].reshape(-1),
        "train_auroc": of_pairs(train_auroc_FC),
        "auroc": of_pairs(scores.auroc_FC),
        "auroc_lo": of_best(interval.lo[0]),
        "auroc_hi": of_best(interval.hi[0]),
        "p_value": of_pairs(scores.p_FC),
        "q_value": of_pairs(scores.q_FC),
        "family_p_value": of_pairs(scores.family_p_FC),
        "selectivity": of_pairs(scores.selectivity_FC),
        "null": of_columns(scores.null_C),
        "is_best_lag": is_best_lag_LFK.reshape(-1),
        "is_best": is_best_LFK.reshape(-1),
        "n_missing": of_columns(scores.num_missing_C.tolist()),
        "n_episodes": np.full(label_LFK.size, n_episodes),
    }
    return pa.table(
        {
            name: pa.array(column).cast(LAG_SCHEMA.field(name).type)
            for name, column in columns.items()
        },
        schema=LAG_SCHEMA,
    )
