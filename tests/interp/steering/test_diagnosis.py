"""KL, entropy, agreement and divergence against numbers that were worked out by hand."""

import numpy as np
import pytest
from scipy.special import softmax

from interp.policies.taps import Edit
from interp.records import Episode
from interp.rollout import Capture, Trial, roll
from interp.steering.arms import Arm
from interp.steering.diagnosis import (
    MEASURE_FIELDS,
    MEASURES,
    Diagnosis,
    diagnose,
    divergence_step,
    mean_entropy,
    mean_kl,
    measures,
)
from interp.steering.manifold import Manifold
from tests.fakes.planted_policy import FACTORY, GAIN, GENERATOR, MIXING, SITE, Head, planted


def log_p(*rows: tuple[float, ...]) -> np.ndarray:
    """[T, 1, N] log probabilities of one agent."""
    return np.log(np.array(rows))[:, None]


def test_kl_is_the_mean_over_steps_in_nats_and_not_symmetric() -> None:
    """½ ln(½/⁹⁄₁₀) + ½ ln(½/¹⁄₁₀) = 0.5108, the other way 0.3681; the second step agrees."""
    half, skewed = log_p((0.5, 0.5), (0.2, 0.8)), log_p((0.9, 0.1), (0.2, 0.8))
    assert mean_kl(half, skewed) == pytest.approx(0.510826 / 2, rel=1e-5)
    assert mean_kl(skewed, half) == pytest.approx(0.368064 / 2, rel=1e-5)
    assert mean_kl(half, half) == 0


def test_entropy_is_the_mean_over_steps_in_nats() -> None:
    uniform, certain = (0.25,) * 4, (1 - 3e-12, 1e-12, 1e-12, 1e-12)
    assert mean_entropy(log_p(uniform)) == pytest.approx(np.log(4))
    assert mean_entropy(log_p(uniform, certain)) == pytest.approx(np.log(4) / 2)


def acted(*steps: tuple[int, int]) -> Episode:
    action_TA = np.array(steps, np.int32)
    return Episode(
        env_seed=0,
        index=0,
        action_TA=action_TA,
        reward_TA=np.zeros(action_TA.shape, np.float32),
        done_TA=np.zeros(action_TA.shape, np.bool_),
        captured_t=np.arange(len(action_TA), dtype=np.int32),
        activations={},
        facts=None,
    )


def test_two_rollouts_part_at_the_first_step_on_which_any_agent_does_something_else() -> None:
    base = acted((0, 1), (2, 1), (0, 0))
    assert divergence_step(base, acted((0, 1), (2, 3), (0, 0))) == 1
    assert divergence_step(base, acted((1, 1), (2, 3), (0, 0))) == 0
    assert divergence_step(base, base) == 3
    assert divergence_step(base, acted((0, 1), (2, 1))) == 2, "of what both have played"


def test_columns_are_means_over_episodes_with_intervals() -> None:
    columns = {name: np.arange(10.0) for name in Diagnosis.__slots__}
    row = measures(Diagnosis(**columns), seed=0)
    assert set(row) == {name for name, _ in MEASURE_FIELDS}
    for name in MEASURES:
        assert row[name] == 4.5
        assert 2 < row[f"{name}_lo"] < 4.5 < row[f"{name}_hi"] < 7
    assert row["n_diagnosed"] == 10


@pytest.mark.mettagrid
def test_an_edit_whose_effect_on_the_logits_is_known_has_the_kl_that_follows() -> None:
    """The head reads 2 logits of noop per unit of the generator: 1.5 units added are 3 logits, in every state."""
    policy = planted(Head({("noop", GENERATOR): 2.0}, {"noop": 0.5}))
    noop = policy.action_names.index("noop")
    write_D = (GAIN * MIXING[:, GENERATOR]).astype(np.float32)
    edit = Edit(
        site=SITE,
        mode="add",
        dose=1.5,
        scale=1.0,
        write_D=write_D,
        read_D=write_D,
        read_bias=0.0,
        threshold=0.0,
    )
    seeds = (3, 4)
    episodes = sorted(
        roll(
            policy,
            FACTORY(2),
            [Trial(env_seed=seed) for seed in seeds],
            Capture(sites=("logits", SITE)),
        ),
        key=lambda episode: episode.index,
    )
    rows_ND = np.concatenate([e.activations[SITE].reshape(-1, len(write_D)) for e in episodes])
    (found,) = diagnose(
        policy,
        FACTORY(4),
        [Arm(mode="add", dose=1.5, edit=edit)],
        seeds,
        {SITE: Manifold.of(rows_ND)},
    )
    for number, episode in enumerate(episodes):
        logits_TAN = episode.activations["logits"].astype(np.float64)
        moved_TAN = logits_TAN.copy()
        moved_TAN[..., noop] += 3
        p, q = softmax(logits_TAN, -1), softmax(moved_TAN, -1)
        assert found.kl_replay_E[number] == pytest.approx(
            (p * np.log(p / q)).sum(-1).mean(), rel=1e-4
        )
        assert found.agreement_E[number] == pytest.approx(
            (p.argmax(-1) == q.argmax(-1)).mean(), abs=1e-9
        )
    assert (found.off_manifold_E > 0).all()
    assert (found.num_steps_E == FACTORY.spec.max_steps).all()
