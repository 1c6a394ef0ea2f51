"""Does another seed find the same latent? Dictionaries of one recipe and recording, matched latent by latent.

stabilities/<id>.parquet: one row per latent and other seed.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from cluster import dictionaries
from cluster.results import Question
from cluster.store import Store
from interp.steering.arms import random_directions

NUM_RANDOM = 200
STABILITY_SCHEMA = pa.schema(
    [
        ("policy_name", pa.string()),
        ("dict_id", pa.string()),
        ("latent", pa.int32()),
        ("other_dict_id", pa.string()),
        ("cosine", pa.float64()),
        ("random_cosine", pa.float64()),
    ]
)
"""`cosine` is the largest between the latent's write direction and any of the other dictionary's; `random_cosine` the
95th percentile of the same of random directions."""


def seed_stability(
    store: Store,
    dict_id: str,
    others: Sequence[str],
    latents: Sequence[int],
    *,
    policy_name: str,
    seed: int,
) -> tuple[str, pa.Table]:
    """The table and its id. Cosines compare directions of one policy's site only, which these dictionaries share."""
    question = Question(
        "stabilities",
        {"latents": list(latents), "seed": seed, "policy_name": policy_name},
        {"dictionary": dict_id, **{f"other{n}": other for n, other in enumerate(others)}},
    )
    table = question.find(store)
    if table is None:
        own_FD = _directions(store, dict_id)
        rows = []
        for other in others:
            other_FD = _directions(store, other)
            random_ND = np.stack(random_directions(own_FD[0].numpy(), NUM_RANDOM, seed=seed))
            by_chance_N = (_unit(torch.from_numpy(random_ND)) @ other_FD.T).max(1).values
            chance = float(np.quantile(by_chance_N.numpy(), 0.95))
            rows += [
                {
                    "policy_name": policy_name,
                    "dict_id": dict_id,
                    "latent": latent,
                    "other_dict_id": other,
                    "cosine": float((other_FD @ own_FD[latent]).max()),
                    "random_cosine": chance,
                }
                for latent in latents
            ]
        table = question.answer(store, pa.Table.from_pylist(rows, schema=STABILITY_SCHEMA))
    return question.id, table


def _directions(store: Store, dict_id: str) -> torch.Tensor:
    return _unit(dictionaries.load(store, dict_id).W_dec)


def _unit(rows_FD: torch.Tensor) -> torch.Tensor:
    return rows_FD / rows_FD.norm(dim=1, keepdim=True).clamp_min(1e-12)
