"""The compiled loop of the rollout: from logits and noise to actions."""

from typing import Any, no_type_check

from numba import njit

_compiled: Any = njit(nogil=True, cache=True)


@_compiled
@no_type_check
def choose(logits_RN, noise_ESAN, step_E, action_R):
    """argmax(logits + noise) of every row; the noise is that of step `step_E` in each world's block.

    As numpy's argmax, it takes the first of equal ones, and a nan before anything.
    """
    num_worlds, _, num_agents, num_actions = noise_ESAN.shape
    for e in range(num_worlds):
        noise_AN = noise_ESAN[e, step_E[e]]
        for a in range(num_agents):
            r = e * num_agents + a
            chosen, most = 0, logits_RN[r, 0] + noise_AN[a, 0]
            for n in range(1, num_actions):
                if most != most:
                    break
                value = logits_RN[r, n] + noise_AN[a, n]
                if value > most or value != value:
                    chosen, most = n, value
            action_R[r] = chosen
