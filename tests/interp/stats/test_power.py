"""Power is what the calculator says: planted effects are found as often as it promises."""

import numpy as np
import pytest

from interp.concepts.scoring import auroc, episode_permutation_p
from interp.stats.hierarchy import bootstrap_policies
from interp.stats.power import (
    auroc_effect_size,
    episodes_needed,
    paired_effect_size,
    permutations_needed,
    policies_needed,
    power_of_episodes,
    power_of_policies,
)
from interp.stats.sign_flip import paired_sign_flip


def test_known_values() -> None:
    """G*Power 3.1 (Faul et al. 2007): d = .5, two-sided 5 %, power .8 needs 34 pairs; d = .2 needs 199."""
    assert episodes_needed(0.5) == 34
    assert episodes_needed(0.2) == 199
    assert episodes_needed(0.3, power=0.95) == 147


@pytest.mark.parametrize(("d", "num_episodes"), [(0.5, 20), (0.5, 34), (0.25, 60), (0.0, 30)])
def test_sign_flips_find_paired_effects_as_often_as_promised(d, num_episodes) -> None:
    """Of 2,000 experiments; 4 standard errors are 4.5 %."""
    difference = d + np.random.default_rng(num_episodes).standard_normal((num_episodes, 2000))
    p = paired_sign_flip(difference, seed=0, num_flips=1500)
    promised = power_of_episodes(d, num_episodes)
    assert (p <= 0.05).mean() == pytest.approx(promised, abs=0.045)
    assert np.median(paired_effect_size(difference)) == pytest.approx(d, abs=0.02)


def planted(num_episodes: int, strength: float, *, seed: int):
    """300 features that know a label with inertia a little, each in its own noise with inertia."""
    generator = np.random.default_rng(seed)
    steps = 30

    def ar1(num: int) -> np.ndarray:
        x = generator.standard_normal((steps, num_episodes, num))
        for t in range(1, steps):
            x[t] = 0.8 * x[t - 1] + 0.6 * x[t]
        return x.swapaxes(0, 1)

    label = ar1(1) > 0
    feature = (strength * label + ar1(300)).astype(np.float32)
    return feature, label, np.ones(label.shape[:2], np.bool_)


def test_concepts_are_found_as_often_as_promised() -> None:
    """The effect size is read off a large pilot, as a user would; the test is of ranks and episodes exchanged.

    Experiments that share a label are not independent, hence several labels and a wide tolerance.
    """
    pilot = planted(400, 0.25, seed=0)
    table = auroc(*pilot)
    d = float(np.median(auroc_effect_size(table.auroc_FC[:, 0], table.influence_EFC[..., 0])))
    for num_episodes in (15, 40):
        found = [
            (
                episode_permutation_p(
                    *planted(num_episodes, 0.25, seed=seed), seed=0, num_permutations=400
                ).p_FC
                <= 0.05
            ).mean()
            for seed in range(1, 7)
        ]
        promised = power_of_episodes(d, num_episodes)
        assert 0.2 < promised < 0.95  # the tolerance means something
        assert np.mean(found) == pytest.approx(promised, abs=0.1)


@pytest.mark.parametrize(("num_policies", "sd_policy", "effect"), [(8, 0.5, 0.4), (16, 0.2, 0.2)])
def test_training_effects_are_found_as_often_as_promised(num_policies, sd_policy, effect) -> None:
    generator = np.random.default_rng(num_policies)
    values = [
        effect + sd_policy * generator.standard_normal(1500) + generator.standard_normal((15, 1500))
        for _ in range(num_policies)
    ]
    interval = bootstrap_policies(values, seed=0, num_resamples=3000)
    promised = power_of_policies(
        effect, sd_policy=sd_policy, sd_episode=1.0, num_policies=num_policies, num_episodes=15
    )
    assert 0.3 < promised < 0.99
    # the interval of few policies is a little short, so it finds a little more
    assert (interval.lo > 0).mean() == pytest.approx(promised, abs=0.06)


def test_more_episodes_of_the_same_policies_stop_helping() -> None:
    few, many = (
        power_of_policies(
            0.5, sd_policy=1.0, sd_episode=1.0, num_policies=10, num_episodes=num, groups=2
        )
        for num in (100, 10_000)
    )
    assert many - few < 0.01
    design = {"sd_policy": 1.0, "sd_episode": 1.0, "num_episodes": 100, "groups": 2}
    needed = policies_needed(0.5, **design)
    assert needed == pytest.approx(2 * (1.96 + 0.84) ** 2 / 0.5**2, rel=0.05)
    assert power_of_policies(0.5, num_policies=needed, **design) >= 0.8
    assert power_of_policies(0.5, num_policies=needed - 1, **design) < 0.8


def test_permutations_for_a_discovery_among_many_tests() -> None:
    assert permutations_needed(1) == 19
    assert permutations_needed(512 * 20) == 204_799
    assert permutations_needed(512 * 20, num_discoveries=205) == 999


def test_effects_that_no_design_finds_and_designs_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"effect of 0\.0 .* larger effect"):
        episodes_needed(0.0)
    with pytest.raises(ValueError, match=r"9 episodes are too few"):
        power_of_episodes(0.5, 9)
    with pytest.raises(ValueError, match=r"level 80"):
        episodes_needed(0.5, power=80.0)
    with pytest.raises(ValueError, match=r"groups is 3"):
        power_of_policies(
            1.0, sd_policy=1.0, sd_episode=1.0, num_policies=8, num_episodes=9, groups=3
        )
