"""The compiled loop of the token encoder: it looks at a token once, and at those that are there only.

It computes what `torch.nn.EmbeddingBag` does, to the last bit: one fused multiply-add after the other, in the order of
the tokens. A token of weight 0 adds nothing and is skipped.
"""

from typing import Any, no_type_check

import numpy as np
from numba import njit

PADDING = 0xFF
"""Location byte of an unused token; whatever comes after it is unused, too."""

# "contract" makes a fused multiply-add of the product and the sum, and reorders nothing.
_compiled: Any = njit(fastmath={"contract"}, nogil=True, cache=True, error_model="numpy")


@_compiled
@no_type_check
def embed(token_RN3, channel, weight, location_offset, embedding_MD, bias_D, out_RD):
    """relu(bias + sum over tokens of weight x embedding) of every row.

    `channel` and `weight` are of (feature byte, value byte), `location_offset` of the location byte; the embedding's
    number is the sum of channel and offset.
    """
    num_rows, num_tokens, _ = token_RN3.shape
    width = embedding_MD.shape[1]
    index_N = np.empty(num_tokens, np.int32)
    weight_N = np.empty(num_tokens, np.float32)
    for r in range(num_rows):
        count = 0
        for n in range(num_tokens):
            location = token_RN3[r, n, 0]
            if location == PADDING:
                break
            feature_value = np.int32(token_RN3[r, n, 1]) << 8 | np.int32(token_RN3[r, n, 2])
            if weight[feature_value] != 0:
                index_N[count] = channel[feature_value] + location_offset[location]
                weight_N[count] = weight[feature_value]
                count += 1
        sum_D = out_RD[r]
        for d in range(width):
            sum_D[d] = 0
        for n in range(count):
            embedding_D = embedding_MD[index_N[n]]
            share = weight_N[n]
            for d in range(width):
                sum_D[d] += share * embedding_D[d]
        for d in range(width):
            x = sum_D[d] + bias_D[d]
            sum_D[d] = np.float32(0) if x < 0 else x  # and a nan stays one
