"""Counter-based sampling noise: what an agent draws at a step is a function of (env_seed, t, agent) alone.

Actions are sampled by the Gumbel-max trick, argmax(logits + G) with G = -log E, E ~ Exp(1), which draws from
softmax(logits) (Gumbel 1954; Maddison et al. 2014, eq. 1). Because G is looked up by counter and not drawn from a
shared generator, a row's trajectory does not depend on its batch, its actor, a retry or an edit of another row, and
a base rollout and an edited one use the same noise: they are exactly paired.
"""

import numpy as np
from jaxtyping import Float32

BLOCK_STEPS = 64
"""Steps drawn at once: the counter of the Philox generator is the block's number."""
_STREAM = 0x5370617273696768
"""Second half of the Philox key, so that no other user of the same seed shares the stream."""


def gumbel_block(
    env_seed: int, block: int, num_agents: int, num_actions: int
) -> Float32[np.ndarray, "block_steps A N"]:
    """Noise of steps block * BLOCK_STEPS up to the next block."""
    generator = np.random.Generator(
        np.random.Philox(key=[env_seed & 0xFFFFFFFFFFFFFFFF, _STREAM], counter=[0, 0, 0, block])
    )
    exponential = generator.standard_exponential(
        (BLOCK_STEPS, num_agents, num_actions), dtype=np.float32
    )
    return -np.log(np.maximum(exponential, np.finfo(np.float32).tiny))
