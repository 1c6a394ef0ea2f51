"""Arms to be timed: of latents that mean nothing, for what they cost does not depend on it."""

import numpy as np

from interp.steering.arms import Arm, SteeredLatent, SteeringConfig, arms

LABELS = ("exploration", "resource_collection", "combat", "avoidance", "goal_seeking")
LATENT_SEED = 0


def random_arms(hidden: int, num: int) -> list[Arm]:
    """Arms of latents with random directions, every mode and dose among them, without those of dose 0."""
    generator = np.random.default_rng(LATENT_SEED)
    found: list[Arm] = []
    number = 0
    while len(found) < num:
        direction = generator.standard_normal((2, hidden)).astype(np.float32) / hidden**0.5
        latent = SteeredLatent(
            concept=f"random:{number}",
            label="exploration",
            latent=number,
            site="lstm.h",
            scale=1.0,
            write_D=direction[0],
            read_D=direction[1],
            read_bias=0.0,
            threshold=0.0,
        )
        found += [arm for arm in arms(latent, SteeringConfig(), seed=0) if arm.dose]
        number += 1
    return found[:num]
