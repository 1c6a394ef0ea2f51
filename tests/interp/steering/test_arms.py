"""Which arms a concept gets, and that a random direction differs from the latent's own in nothing but its direction."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from interp.steering.arms import (
    BASELINES,
    Arm,
    SteeredLatent,
    SteeringConfig,
    arms,
    baseline_arms,
    random_directions,
)

D = 8
CONFIG = SteeringConfig(add_doses=(-2.0, -0.5, 0.0, 2.0), num_random_directions=20)
LATENT = SteeredLatent(
    concept="altar_soon:3",
    label="altar_soon",
    latent=3,
    site="lstm.h",
    scale=1.7,
    write_D=np.linspace(-1, 2, D).astype(np.float32),
    read_D=np.ones(D, np.float32),
    read_bias=-0.2,
    threshold=0.1,
)


def own(tried: list[Arm]) -> list[Arm]:
    return [arm for arm in tried if arm.rival is None]


def test_every_mode_and_dose_is_tried_along_the_latent() -> None:
    tried = own(arms(LATENT, CONFIG, seed=0))
    assert [(arm.mode, arm.dose) for arm in tried] == [
        *(("add", dose) for dose in CONFIG.add_doses),
        *(("clamp", dose) for dose in CONFIG.clamp_doses),
        *(("ablate", dose) for dose in CONFIG.ablate_doses),
    ]
    for arm in tried:
        assert (arm.edit.mode, arm.edit.dose, arm.edit.site) == (arm.mode, arm.dose, "lstm.h")
        np.testing.assert_array_equal(arm.edit.write_D, LATENT.write_D)


def test_every_size_of_every_mode_has_its_random_directions_and_dose_zero_has_none() -> None:
    controls = [arm for arm in arms(LATENT, CONFIG, seed=0) if arm.rival is not None]
    sizes = [("add", 2.0), ("add", 0.5), ("clamp", 1.0), ("ablate", 1.0)]
    assert [(a.mode, a.dose, a.number) for a in controls] == [
        (*size, number) for size in sizes for number in range(20)
    ]


def test_a_random_arm_reads_the_latent_and_writes_elsewhere_with_equal_norm() -> None:
    tried = arms(LATENT, CONFIG, seed=0)
    twin = {(arm.mode, arm.dose): arm.edit for arm in own(tried)}
    norm = np.linalg.norm(LATENT.write_D)
    for arm in tried:
        if arm.rival is None:
            continue
        mine = twin[arm.mode, arm.dose if (arm.mode, arm.dose) in twin else -arm.dose]
        for name in ("site", "mode", "scale", "read_bias", "threshold"):
            assert getattr(arm.edit, name) == getattr(mine, name)
        np.testing.assert_array_equal(arm.edit.read_D, mine.read_D)
        assert np.abs(arm.edit.coefficients) == pytest.approx(np.abs(mine.coefficients))
        assert np.linalg.norm(arm.edit.write_D) == pytest.approx(norm, rel=1e-5)
        cosine = arm.edit.write_D @ LATENT.write_D / norm**2
        assert abs(cosine) < 0.99


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_random_directions_lie_on_the_sphere_of_the_latent_s_norm(seed, scale) -> None:
    write_D = (LATENT.write_D * scale).astype(np.float32)
    drawn = np.stack(random_directions(write_D, 20, seed=seed))
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), np.linalg.norm(write_D), rtol=1e-5)
    assert len(np.unique(drawn, axis=0)) == 20


def test_random_directions_prefer_none() -> None:
    drawn = np.stack(random_directions(np.eye(D, dtype=np.float32)[0], 20_000, seed=0))
    np.testing.assert_allclose(drawn.mean(0), 0, atol=4 / np.sqrt(D * 20_000))
    np.testing.assert_allclose(drawn.T @ drawn / 20_000, np.eye(D) / D, atol=0.01)


def test_directions_are_a_function_of_the_seed_and_the_latent() -> None:
    def directions(latent: SteeredLatent, seed: int) -> np.ndarray:
        return np.stack([arm.edit.write_D for arm in arms(latent, CONFIG, seed=seed)])

    one = directions(LATENT, 0)
    np.testing.assert_array_equal(one, directions(LATENT, 0))
    for other in (directions(LATENT, 1), directions(replace(LATENT, latent=4), 0)):
        assert (one != other).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_doses": (-1.0, 1.0)}, r"add_doses \(-1.0, 1.0\) lacks dose 0.*add it"),
        ({"clamp_doses": (2.0,)}, r"clamp_doses \(2.0,\) lacks dose 0"),
        ({"ablate_doses": (0.5,)}, r"ablate_doses \(0.5,\) lacks dose 0"),
        ({"num_random_directions": 19}, r"num_random_directions 19: at least 20"),
        ({"num_episodes": 9}, r"num_episodes 9: at least 10"),
    ],
)
def test_a_config_that_proves_nothing_is_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_a_mode_may_be_left_out() -> None:
    tried = arms(LATENT, replace(CONFIG, clamp_doses=(), ablate_doses=()), seed=0)
    assert {arm.mode for arm in tried} == {"add"}


@pytest.mark.parametrize("dose", [-0.1, 1.1])
def test_more_or_less_than_the_whole_latent_cannot_be_ablated(dose) -> None:
    with pytest.raises(ValueError, match=r"share of the latent that is removed, from 0 to 1"):
        arms(LATENT, replace(CONFIG, ablate_doses=(0.0, dose)), seed=0)


def test_env_seeds_are_consecutive() -> None:
    assert list(SteeringConfig(first_env_seed=50, num_episodes=10).env_seeds) == list(range(50, 60))


def test_a_baseline_is_a_feature_of_its_own_that_adds_as_much_as_the_arm() -> None:
    unit = replace(
        LATENT,
        kind="neuron",
        scale=9.0,
        write_D=np.eye(D, dtype=np.float32)[2],
        read_D=np.eye(D, dtype=np.float32)[2],
    )
    for mode in ("add", "clamp"):
        beside = next(arm for arm in arms(LATENT, CONFIG, seed=0) if arm.mode == mode and arm.dose)
        (rival,) = baseline_arms({"probe": unit}, beside)
        assert (rival.rival, BASELINES[rival.number]) == ("baseline", "probe")
        assert (rival.mode, rival.dose, rival.site) == (mode, beside.dose, beside.site)
        np.testing.assert_array_equal(rival.edit.read_D, unit.read_D)
        length, wanted = (
            arm.edit.coefficients[0] * np.linalg.norm(arm.edit.write_D) for arm in (rival, beside)
        )
        assert length == pytest.approx(wanted)
    ablated = next(arm for arm in arms(LATENT, CONFIG, seed=0) if arm.mode == "ablate" and arm.dose)
    (rival,) = baseline_arms({"neuron": unit}, ablated)
    assert rival.edit.coefficients == ablated.edit.coefficients == (0.0, -1.0, 0.0)
