"""Playing arms: every arm on every environment seed, all of them rows of the same batches."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from interp.policies.policy import Policy
from interp.records import Episode
from interp.rollout import Capture, Trial, roll
from interp.steering.arms import Arm, Steered
from interp.worlds.labels import judge_labels
from interp.worlds.world import World, WorldSpec

RETURN = "return"
"""The outcome besides the behaviour rates: undiscounted return, mean over the steered agents."""
OTHERS_RETURN = "return of others"
"""The same of the agents that are not steered, if there are any."""


class NoOpViolationError(RuntimeError):
    """An edit of dose 0 changed a rollout: the pairing is broken, and no difference can be trusted."""


def steered_agents(spec: WorldSpec, steered: Steered) -> tuple[int, ...] | None:
    """Numbers of the agents whose activations are edited; None for all.

    ValueError if a team is asked for in a world that has but one.
    """
    if steered == "all":
        return None
    if steered == "one":
        return (0,) if spec.num_agents > 1 else None
    team = tuple(agent for agent, of in enumerate(spec.teams) if of == spec.teams[0])
    if len(team) in (0, spec.num_agents):
        raise ValueError(f'agents "team": world {spec.name} has one team only; take "all" or "one"')
    return team


def outcome_names(labels: Sequence[str], agents: tuple[int, ...] | None = None) -> tuple[str, ...]:
    """What is measured of every episode: the return and the rate of every label of the steered agents."""
    return (RETURN, *labels, *(() if agents is None else (OTHERS_RETURN,)))


def outcome_of(
    episode: Episode, labels: Sequence[str], agents: tuple[int, ...] | None = None
) -> Float64[np.ndarray, " O"]:
    """Return per agent, then the share of agent-steps on which each label holds, then the others' return.

    A label with a horizon is not known near the end of an episode: its share is of the steps where it is, and 0 of an
    episode that is too short to have one.
    """
    assert episode.facts is not None
    judged = judge_labels(episode.facts, labels)
    own = slice(None) if agents is None else list(agents)
    others = [] if agents is None else sorted({*range(len(episode.return_A))} - {*agents})
    return np.array(
        [
            episode.return_A[own].mean(dtype=np.float64),
            *(
                judged[label].true_TA[:, own].sum() / max(1, judged[label].known_TA[:, own].sum())
                for label in labels
            ),
            *([episode.return_A[others].mean(dtype=np.float64)] if others else []),
        ]
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
    outcome = np.zeros((num_arms, len(env_seeds), len(outcome_names(labels, agents))))
    unedited: dict[int, Episode] = {}
    no_op: list[tuple[int, Episode]] = []
    for episode in roll(policy, world, trials, Capture(facts=True)):
        seed, arm = divmod(episode.index, num_arms)
        outcome[arm, seed] = outcome_of(episode, labels, agents)
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
