"""How does an edit work? Step by step: what it does to the choices, and how far it pushes the activations.

Of every pair of an unedited and an edited rollout two more are played open-loop: the edited policy is shown the states
of the unedited one, and the unedited policy those of the edited one. So the two can be compared on the same states, on
both kinds of them.

T steps · A steered agents · N actions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float64
from scipy.special import log_softmax

from interp.policies.policy import Policy
from interp.records import Episode
from interp.rollout import Capture, Trial, roll
from interp.stats.bootstrap import bootstrap_mean
from interp.steering.arms import Arm
from interp.steering.manifold import Manifold
from interp.worlds.world import World

LOGITS = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Of one arm, one value per episode."""

    kl_replay_E: Float64[np.ndarray, " E"]
    """Mean over steps of KL(π ‖ π') in nats on the states of the unedited rollout, with no feedback."""
    kl_on_policy_E: Float64[np.ndarray, " E"]
    """The same on the states that the edited policy gets into."""
    agreement_E: Float64[np.ndarray, " E"]
    """Share of the unedited rollout's steps on which both prefer the same action."""
    entropy_E: Float64[np.ndarray, " E"]
    """Mean entropy of the edited policy in its own rollout, in nats, minus the unedited one's in its own."""
    off_manifold_E: Float64[np.ndarray, " E"]
    """Share of the edited rollout's activations beyond 99.9 % of the training rows, minus the unedited one's share."""
    out_of_range_E: Float64[np.ndarray, " E"]
    """Share of its units beyond every training value."""
    divergence_step_E: Float64[np.ndarray, " E"]
    """First step whose actions differ under the same noise; the number of steps if none does."""
    num_steps_E: Float64[np.ndarray, " E"]


MEASURES = {
    "kl_replay": "kl_replay_E",
    "kl_on_policy": "kl_on_policy_E",
    "agreement": "agreement_E",
    "entropy_difference": "entropy_E",
    "off_manifold": "off_manifold_E",
    "out_of_range": "out_of_range_E",
    "divergence_step": "divergence_step_E",
}
"""Column of a table -> what it is the mean over episodes of."""
MEASURE_FIELDS = (
    *((f"{name}{end}", pa.float64()) for name in MEASURES for end in ("", "_lo", "_hi")),
    ("n_diagnosed", pa.int32()),
)
"""Columns of a diagnosis: KL and entropy in nats, `divergence_step` in steps, shares from 0 to 1, intervals at 95 %."""


def measures(diagnosis: Diagnosis, *, seed: int) -> dict[str, float | int]:
    """The columns of a diagnosis: means with percentile bootstrap intervals over episodes."""
    value_EM = np.stack([getattr(diagnosis, name) for name in MEASURES.values()], axis=1)
    interval = bootstrap_mean(value_EM, seed=seed)
    row: dict[str, float | int] = {"n_diagnosed": interval.n_episodes}
    for m, name in enumerate(MEASURES):
        for end, value_M in zip(("", "_lo", "_hi"), interval[:3], strict=True):
            row[name + end] = float(value_M[m])
    return row


def diagnose(
    policy: Policy,
    world: World,
    arms: Sequence[Arm],
    env_seeds: Sequence[int],
    manifolds: Mapping[str, Manifold],
    *,
    agents: tuple[int, ...] | None = None,
) -> list[Diagnosis]:
    """What each arm does, on the same seeds; `manifolds` by site."""
    capture = Capture(sites=(LOGITS, *sorted({arm.site for arm in arms})))
    base, *edited = _play(
        policy,
        world,
        [((), None)] + [((arm.edit,), None) for arm in arms],
        env_seeds,
        capture,
        agents,
    )
    shown = _play(
        policy,
        world,
        [
            pair
            for arm, episodes in zip(arms, edited, strict=True)
            for pair in (((arm.edit,), base), ((), episodes))
        ],
        env_seeds,
        Capture(sites=(LOGITS,)),
        agents,
    )
    return [
        _compare(
            base, episodes, shown[2 * i], shown[2 * i + 1], manifolds[arm.site], arm.site, agents
        )
        for i, (arm, episodes) in enumerate(zip(arms, edited, strict=True))
    ]


def _play(
    policy: Policy,
    world: World,
    ways: Sequence[tuple[tuple, list[Episode] | None]],
    env_seeds: Sequence[int],
    capture: Capture,
    agents: tuple[int, ...] | None,
) -> list[list[Episode]]:
    """Episodes of every way (edits, and whose actions are forced upon it) on every seed."""
    trials = [
        Trial(
            env_seed=seed,
            edits=edits,
            agents=agents,
            action_TA=None if followed is None else followed[e].action_TA,
        )
        for e, seed in enumerate(env_seeds)
        for edits, followed in ways
    ]
    played: list[list[Episode]] = [[] for _ in ways]
    for episode in sorted(roll(policy, world, trials, capture), key=lambda e: e.index):
        played[episode.index % len(ways)].append(episode)
    return played


def _compare(
    base: list[Episode],
    edited: list[Episode],
    on_base: list[Episode],
    on_edited: list[Episode],
    manifold: Manifold,
    site: str,
    agents: tuple[int, ...] | None,
) -> Diagnosis:
    own = slice(None) if agents is None else list(agents)

    def log_p(episode: Episode) -> Float64[np.ndarray, "T A N"]:
        return log_softmax(episode.activations[LOGITS][:, own].astype(np.float64), axis=-1)

    def rows(episode: Episode) -> np.ndarray:
        activation_TAD = episode.activations[site][:, own]
        return activation_TAD.reshape(-1, activation_TAD.shape[-1])

    columns: dict[str, list[float]] = {name: [] for name in Diagnosis.__slots__}
    for before, after, replayed, unedited in zip(base, edited, on_base, on_edited, strict=True):
        p_base, p_edited = log_p(before), log_p(after)
        p_replayed, p_unedited = log_p(replayed), log_p(unedited)
        one = {
            "kl_replay_E": mean_kl(p_base, p_replayed),
            "kl_on_policy_E": mean_kl(p_unedited, p_edited),
            "agreement_E": float((p_base.argmax(-1) == p_replayed.argmax(-1)).mean()),
            "entropy_E": mean_entropy(p_edited) - mean_entropy(p_base),
            "off_manifold_E": float(
                manifold.is_off(rows(after)).mean() - manifold.is_off(rows(before)).mean()
            ),
            "out_of_range_E": float(manifold.out_of_range(rows(after)).mean()),
            "divergence_step_E": float(divergence_step(before, after)),
            "num_steps_E": float(before.num_steps),
        }
        for name, value in one.items():
            columns[name].append(value)
    return Diagnosis(**{name: np.array(values) for name, values in columns.items()})


def divergence_step(before: Episode, after: Episode) -> int:
    """First step at which an action differs; the number of steps of the shorter episode if none does."""
    num = min(before.num_steps, after.num_steps)
    differs_T = (before.action_TA[:num] != after.action_TA[:num]).any(1)
    return int(differs_T.argmax()) if differs_T.any() else num


def mean_kl(p: Float[np.ndarray, "T A N"], q: Float[np.ndarray, "T A N"]) -> float:
    """Mean of KL(p ‖ q) from log probabilities."""
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def mean_entropy(p: Float[np.ndarray, "T A N"]) -> float:
    """Mean entropy in nats, from log probabilities."""
    return float(-(np.exp(p) * p).sum(-1).mean())
