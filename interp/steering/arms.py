"""The arms of a steering experiment: one latent, several ways and strengths, and rivals beside it.

A rival of an arm does what it does, elsewhere. A *random direction* (and a difference of means) reads the same latent
with the same coefficients and writes along another direction of the same norm, so it changes the activation by as much,
at the same steps, to no purpose (or to the purpose of a plain baseline). A *random latent* is another latent of the
dictionary, alike in how often it fires and how much it writes, given the same dose of its own size. A *baseline* is the
best unit, component, difference of means or probe for the label: a feature in its own right, read and written where it
is, which adds or holds as much as the arm does (equal norm), or takes away the same share of itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float32

from interp.policies.taps import Edit, Mode
from interp.worlds.world import check_env_seeds

Steered = Literal["all", "one", "team"]
Rival = Literal["random_direction", "random_latent", "diff_in_means", "baseline"]
BASELINES = ("neuron", "pca", "diff_in_means", "probe", "sparse_probe")
"""Kinds of features that a latent has to beat; a rival "baseline" is numbered by its place here."""
LEAST_RIVALS = 20
"""Random directions or latents from which on "beyond all of them" means at most 1 in 21 by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringConfig:
    """What is tried on each concept, on which episodes, and what counts as nothing."""

    add_doses: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    """Multiples of the latent's 99th percentile that are added to it."""
    gated_add_doses: tuple[float, ...] = ()
    """The same, added only where it fires."""
    clamp_doses: tuple[float, ...] = (0.0, 1.0)
    """Multiples of the latent's 99th percentile that it is held at; 0 is no edit (to hold it at zero, ablate)."""
    scale_doses: tuple[float, ...] = ()
    """Multiples of itself that are added to the latent: 1 doubles it, -1 removes it."""
    ablate_doses: tuple[float, ...] = (0.0, 1.0)
    """Shares of the latent that are removed."""
    mean_ablate_doses: tuple[float, ...] = ()
    """Shares of the latent that are replaced by its mean over training rows."""
    sites: tuple[str, ...] = ()
    """Where edits are applied; by default where the feature was found. Only lstm.h and lstm.y hold the same values."""
    agents: Steered = "all"
    """Whose activations are edited: of every agent, of the first one, or of all in the first one's team."""
    num_random_directions: int = 20
    """Random directions of equal norm beside an arm."""
    num_random_latents: int = 20
    """Latents alike in firing rate and size beside an arm to be confirmed; fewer if the dictionary has fewer."""
    first_selection_seed: int = 25_000
    """Arms are tried, and the strongest selected, on this environment seed and the ones after it."""
    selection_episodes: int = 12
    """Environment seeds of the selection at most; arms that are settled earlier play no further."""
    round_episodes: int = 4
    """Environment seeds after which arms are looked at."""
    negligible_sd: float = 0.1
    """An effect is settled as none if its interval lies within so many standard deviations of the unedited episodes."""
    first_env_seed: int = 20_000
    """Confirmation uses this environment seed and the ones after it; none of them is recorded or selected on."""
    num_episodes: int = 16
    """Environment seeds of the confirmation; every arm plays all of them."""
    diagnosed_episodes: int = 10
    """Of these, so many are replayed step by step for KL, entropy and distance from the manifold."""

    def __post_init__(self) -> None:
        for mode, doses in self.doses.items():
            if doses and 0.0 not in doses:
                raise ValueError(
                    f"{mode}_doses {doses} lacks dose 0, the check that an edit of no strength changes nothing; add it"
                )
        for name, least, why in (
            ("num_random_directions", LEAST_RIVALS, "for a percentile to mean anything"),
            ("num_episodes", 10, "for an interval"),
            ("selection_episodes", 4, "to tell arms apart"),
            ("round_episodes", 2, "for a standard deviation"),
            ("diagnosed_episodes", 10, "for an interval"),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: at least {least} {why}")
        if not self.negligible_sd > 0:
            raise ValueError(f"negligible_sd {self.negligible_sd}: above 0")
        if self.diagnosed_episodes > self.num_episodes:
            raise ValueError(
                f"diagnosed_episodes {self.diagnosed_episodes}: at most num_episodes, {self.num_episodes}"
            )
        check_env_seeds(self.first_env_seed, self.num_episodes)
        check_env_seeds(self.first_selection_seed, self.selection_episodes)
        if set(self.env_seeds) & set(self.selection_env_seeds):
            raise ValueError(
                f"selection (env_seeds {self.selection_env_seeds}) and confirmation ({self.env_seeds}) share episodes; "
                "what was selected on them would seem confirmed"
            )

    @property
    def env_seeds(self) -> range:
        return range(self.first_env_seed, self.first_env_seed + self.num_episodes)

    @property
    def selection_env_seeds(self) -> range:
        return range(self.first_selection_seed, self.first_selection_seed + self.selection_episodes)

    @property
    def doses(self) -> Mapping[Mode, tuple[float, ...]]:
        return {
            "add": self.add_doses,
            "gated_add": self.gated_add_doses,
            "clamp": self.clamp_doses,
            "scale": self.scale_doses,
            "ablate": self.ablate_doses,
            "mean_ablate": self.mean_ablate_doses,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeredLatent:
    """A latent, or another feature, to steer: where it is read and written, and how large it is."""

    concept: str
    label: str
    kind: str = "sae"
    """Of the set of features that it is from."""
    latent: int
    """Its number in that set."""
    site: str
    scale: float
    """99th percentile of the latent over the training rows where it fires."""
    mean: float = 0.0
    """Of the latent over all training rows."""
    write_D: Float32[np.ndarray, " D"]
    read_D: Float32[np.ndarray, " D"]
    read_bias: float
    threshold: float

    def edit(self, mode: Mode, dose: float, *, site: str | None = None) -> Edit:
        """The latent itself, changed."""
        return Edit(
            site=site or self.site,
            mode=mode,
            dose=dose,
            scale=self.scale,
            mean=self.mean,
            write_D=self.write_D,
            read_D=self.read_D,
            read_bias=self.read_bias,
            threshold=self.threshold,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One treatment: of the latent itself, or of one of its numbered rivals."""

    mode: Mode
    dose: float
    edit: Edit
    rival: Rival | None = None
    number: int = 0

    @property
    def site(self) -> str:
        return self.edit.site


def own_arms(latent: SteeredLatent, config: SteeringConfig) -> list[Arm]:
    """Every mode and dose at every site, along the latent."""
    return [
        Arm(mode=mode, dose=dose, edit=latent.edit(mode, dose, site=site))
        for site in config.sites or (latent.site,)
        for mode, doses in config.doses.items()
        for dose in doses
    ]


def random_direction_arms(latent: SteeredLatent, beside: Arm, num: int, *, seed: int) -> list[Arm]:
    """Random directions beside an arm of the latent; the same ones for every arm of it.

    They serve both signs of an added dose: d and -d are equally random, so arms whose doses differ in sign only have
    the same rivals.
    """
    directions = random_directions(latent.write_D, num, seed=[seed, latent.latent])
    return [
        _elsewhere(beside, direction_D, rival="random_direction", number=number)
        for number, direction_D in enumerate(directions)
    ]


def mean_difference_arm(beside: Arm, direction_D: Float32[np.ndarray, " D"]) -> Arm:
    """The difference of means of the concept's label, at the norm of the latent."""
    norm = float(np.linalg.norm(direction_D))
    if norm == 0:
        raise ValueError(
            "the label never holds or always does: its difference of means has no direction"
        )
    size = float(np.linalg.norm(beside.edit.write_D))
    return _elsewhere(
        beside, (direction_D * (size / norm)).astype(np.float32), rival="diff_in_means", number=0
    )


def random_latent_arms(others: Sequence[SteeredLatent], beside: Arm) -> list[Arm]:
    """The same mode and dose of other latents, in units of their own sizes."""
    return [
        Arm(
            mode=beside.mode,
            dose=beside.dose,
            edit=other.edit(beside.mode, beside.dose, site=beside.site),
            rival="random_latent",
            number=number,
        )
        for number, other in enumerate(others)
    ]


def baseline_arms(baselines: Mapping[str, SteeredLatent], beside: Arm) -> list[Arm]:
    """The same mode and dose of the best feature of each kind; what is added or held is as long as the arm's."""
    length = beside.edit.scale * float(np.linalg.norm(beside.edit.write_D))
    return [
        Arm(
            mode=beside.mode,
            dose=beside.dose,
            edit=replace(one, scale=length / float(np.linalg.norm(one.write_D))).edit(
                beside.mode, beside.dose, site=beside.site
            ),
            rival="baseline",
            number=BASELINES.index(kind),
        )
        for kind, one in baselines.items()
    ]


def arms(latent: SteeredLatent, config: SteeringConfig, *, seed: int) -> list[Arm]:
    """Every mode and dose along the latent, then the random directions of every dose but 0."""
    own = own_arms(latent, config)
    sizes: dict[tuple[str, Mode, float], None] = dict.fromkeys(
        (arm.site, arm.mode, abs(arm.dose)) for arm in own if arm.dose
    )
    return own + [
        rival
        for site, mode, size in sizes
        for rival in random_direction_arms(
            latent,
            Arm(mode=mode, dose=size, edit=latent.edit(mode, size, site=site)),
            config.num_random_directions,
            seed=seed,
        )
    ]


def _elsewhere(
    beside: Arm, write_D: Float32[np.ndarray, " D"], *, rival: Rival, number: int
) -> Arm:
    return replace(beside, edit=replace(beside.edit, write_D=write_D), rival=rival, number=number)


def random_directions(
    write_D: Float32[np.ndarray, " D"], num: int, *, seed: int | Sequence[int]
) -> list[Float32[np.ndarray, " D"]]:
    """Directions uniform on the sphere whose radius is the norm of `write_D`."""
    generator = np.random.default_rng(seed)
    drawn = generator.standard_normal((num, len(write_D)))
    drawn *= np.linalg.norm(write_D) / np.linalg.norm(drawn, axis=1, keepdims=True)
    return list(drawn.astype(np.float32))
