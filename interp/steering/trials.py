"""Playing the arms of one concept: every arm on every environment seed, all of them rows of the same batches."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from interp.policies.policy import Policy
from interp.records import Episode
from interp.rollout import Capture, Trial, roll
from interp.steering.arms import Arm
from interp.worlds.labels import compute_labels
from interp.worlds.world import World

RETURN = "return"
"""The outcome besides the behaviour rates: undiscounted return, mean over agents."""


class NoOpViolationError(RuntimeError):
    """An edit of dose 0 changed a rollout: the pairing is broken, and no difference can be trusted."""


def outcome_of(episode: Episode, labels: Sequence[str]) -> Float64[np.ndarray, " O"]:
    """Return per agent, then the share of agent-steps on which each label holds."""
    assert episode.facts is not None
    held = compute_labels(episode.facts, labels)
    return np.array(
        [episode.return_A.mean(dtype=np.float64), *(held[label].mean() for label in labels)]
    )


def play_arms(
    policy: Policy,
    world: World,
    arms: Sequence[Arm],
    env_seeds: Sequence[int],
    *,
    labels: Sequence[str],
    agents: tuple[int, ...] | None = None,
) -> Float64[np.ndarray, "X E O"]:
    """Outcomes of the unedited rollout (first) and of every arm, on the same seeds and noise.

    Raises:
        NoOpViolationError: an arm of dose 0 differs from the unedited rollout in an action or a reward.
    """
    trials = [
        Trial(env_seed=seed, edits=edits, agents=agents)
        for seed in env_seeds  # seeds outside: the arms of a seed share a batch and can be compared early
        for edits in ((), *((arm.edit,) for arm in arms))
    ]
    num_arms = len(arms) + 1
    outcome = np.zeros((num_arms, len(env_seeds), 1 + len(labels)))
    unedited: dict[int, Episode] = {}
    no_op: list[tuple[int, Episode]] = []
    for episode in roll(policy, world, trials, Capture(facts=True)):
        seed, arm = divmod(episode.index, num_arms)
        outcome[arm, seed] = outcome_of(episode, labels)
        if arm == 0:
            unedited[seed] = episode
        elif arms[arm - 1].dose == 0:
            no_op.append((seed, episode))
    for seed, episode in no_op:
        _check_no_op(unedited[seed], episode, arms[episode.index % num_arms - 1])
    return outcome


def _check_no_op(base: Episode, edited: Episode, arm: Arm) -> None:
    for name in ("action_TA", "reward_TA"):
        before, after = getattr(base, name), getattr(edited, name)
        if not np.array_equal(before, after):
            raise NoOpViolationError(
                f"dose 0 of {arm.mode} on {arm.edit.site} changed {name} of the episode with env_seed {base.env_seed}: "
                "base and edited rollouts are not paired on this machine; no effect is reported"
            )
