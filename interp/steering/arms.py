"""The arms of a steering experiment: one latent, several ways and strengths, and random directions beside each.

A random-direction arm reads the same latent with the same coefficients and writes along another direction of the same
norm, so it changes the activation by as much, at the same steps, to no purpose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from interp.policies.taps import Edit, Mode
from interp.worlds.world import check_env_seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringConfig:
    """What is tried on each concept."""

    add_doses: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    """Multiples of the latent's 99th percentile that are added to it."""
    clamp_doses: tuple[float, ...] = (0.0, 1.0)
    """Multiples of the latent's 99th percentile that it is held at; 0 is no edit (to hold it at zero, ablate)."""
    ablate_doses: tuple[float, ...] = (0.0, 1.0)
    """Shares of the latent that are removed."""
    num_random_directions: int = 20
    """Random directions of equal norm beside every dose."""
    first_env_seed: int = 20_000
    """Episodes use this environment seed and the ones after it; none of them should have been recorded."""
    num_episodes: int = 16
    """Environment seeds; every arm plays all of them."""

    def __post_init__(self) -> None:
        for name in ("add_doses", "clamp_doses", "ablate_doses"):
            doses = getattr(self, name)
            if doses and 0.0 not in doses:
                raise ValueError(
                    f"{name} {doses} lacks dose 0, the check that an edit of no strength changes nothing; add it"
                )
        if self.num_random_directions < 20:
            raise ValueError(
                f"num_random_directions {self.num_random_directions}: at least 20 for a percentile to mean anything"
            )
        if self.num_episodes < 10:
            raise ValueError(f"num_episodes {self.num_episodes}: at least 10 for an interval")
        check_env_seeds(self.first_env_seed, self.num_episodes)

    @property
    def env_seeds(self) -> range:
        return range(self.first_env_seed, self.first_env_seed + self.num_episodes)

    @property
    def doses(self) -> Mapping[Mode, tuple[float, ...]]:
        return {"add": self.add_doses, "clamp": self.clamp_doses, "ablate": self.ablate_doses}


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeredLatent:
    """A latent to steer: where it is read and written, and how large it is."""

    concept: str
    label: str
    latent: int
    site: str
    scale: float
    """99th percentile of the latent over the training rows where it fires."""
    write_D: Float32[np.ndarray, " D"]
    read_D: Float32[np.ndarray, " D"]
    read_bias: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One treatment; `random_direction` numbers the controls and is None for the latent's own direction."""

    mode: Mode
    dose: float
    random_direction: int | None
    edit: Edit


def arms(latent: SteeredLatent, config: SteeringConfig, *, seed: int) -> list[Arm]:
    """All arms of one concept: every mode and dose along the latent, then the random directions of every dose but 0.

    An added random direction serves both signs of a dose: d and -d are equally random, so a negative dose shares the
    directions of the positive one of equal size.
    """
    own = [
        Arm(mode=mode, dose=dose, random_direction=None, edit=_edit(latent, mode, dose))
        for mode, doses in config.doses.items()
        for dose in doses
    ]
    directions = random_directions(
        latent.write_D, config.num_random_directions, seed=[seed, latent.latent]
    )
    sizes: list[tuple[Mode, float]] = list(
        dict.fromkeys((arm.mode, abs(arm.dose)) for arm in own if arm.dose)
    )
    return own + [
        Arm(
            mode=mode,
            dose=size,
            random_direction=number,
            edit=replace(_edit(latent, mode, size), write_D=direction_D),
        )
        for mode, size in sizes
        for number, direction_D in enumerate(directions)
    ]


def _edit(latent: SteeredLatent, mode: Mode, dose: float) -> Edit:
    return Edit(
        site=latent.site,
        mode=mode,
        dose=dose,
        scale=latent.scale,
        write_D=latent.write_D,
        read_D=latent.read_D,
        read_bias=latent.read_bias,
        threshold=latent.threshold,
    )


def random_directions(
    write_D: Float32[np.ndarray, " D"], num: int, *, seed: int | Sequence[int]
) -> list[Float32[np.ndarray, " D"]]:
    """Directions uniform on the sphere whose radius is the norm of `write_D`."""
    generator = np.random.default_rng(seed)
    drawn = generator.standard_normal((num, len(write_D)))
    drawn *= np.linalg.norm(write_D) / np.linalg.norm(drawn, axis=1, keepdims=True)
    return list(drawn.astype(np.float32))
