"""Planted latents of every kind are called what they are."""

import numpy as np
import pytest

from interp.concepts.generality import generality, moments

EPISODES, STEPS, AGENTS = 60, 50, 2
MASK = np.ones((EPISODES, STEPS * AGENTS), np.bool_)
KINDS = {
    "general": "general",
    "general, in one map of five": "general",
    "general, often": "general",
    "in two episodes": "memorised",
    "in two episodes, and a stray firing in each of four others": "memorised",
    "at the start of every episode": "positional",
    "four times in all": "rare",
    "never": "silent",
}


def planted(seed: int = 0) -> np.ndarray:
    """[E, S, F] latents in the order of `KINDS`."""
    generator = np.random.default_rng(seed)
    fires = {name: np.zeros((EPISODES, STEPS, AGENTS), np.bool_) for name in KINDS}
    shape = (EPISODES, STEPS, AGENTS)
    fires["general"] = generator.random(shape) < 0.02
    fires["general, in one map of five"][::5] = generator.random((12, STEPS, AGENTS)) < 0.1
    fires["general, often"] = generator.random(shape) < 0.6
    for name in list(KINDS)[3:5]:
        fires[name][[11, 47]] = generator.random((2, STEPS, AGENTS)) < 0.2
    fires["in two episodes, and a stray firing in each of four others"][[1, 2, 3, 4], 20, 0] = True
    fires["at the start of every episode"][:, :2] = True
    fires["four times in all"][[5, 15, 25, 35], 30, 1] = True
    stacked = np.stack(list(fires.values()), -1).reshape(EPISODES, STEPS * AGENTS, -1)
    return stacked * (1 + generator.random(stacked.shape)).astype(np.float32)


def judged(latent: np.ndarray, mask: np.ndarray = MASK, **choices):
    where = moments(mask, num_agents=AGENTS)
    return generality(latent.astype(np.float32), where, mask, num_agents=AGENTS, **choices)


@pytest.mark.parametrize("seed", range(3))
def test_every_kind_is_called_what_it_is(seed) -> None:
    assert judged(planted(seed)).kind_F == list(KINDS.values())


def test_strays_do_not_make_a_memorised_latent_general() -> None:
    """It fires in six episodes, but its onsets are in little more than two."""
    found = judged(planted())
    stray = list(KINDS).index("in two episodes, and a stray firing in each of four others")
    assert found.episode_share_F[stray] == 6 / 60
    assert 2 < found.effective_episodes_F[stray] < 3
    assert found.expected_episodes_F[stray] > 15


def test_the_same_firings_elsewhere_are_general() -> None:
    """The verdict is of where a latent fires and not of how often."""
    latent = planted()[..., [3]]
    where = np.random.default_rng(1).permutation(latent.size)
    assert judged(latent).kind_F == ["memorised"]
    assert judged(latent.reshape(-1)[where].reshape(latent.shape)).kind_F == ["general"]


def test_numbers_are_as_defined() -> None:
    """Agent 0 of episode 0 fires at steps 3 to 6 and 9, agent 1 at step 3; episode 1 has one firing."""
    latent = np.zeros((EPISODES, STEPS, AGENTS, 1), np.float32)
    latent[0, [3, 4, 5, 6, 9], 0] = 2.0
    latent[0, 3, 1] = 4.0
    latent[1, 9, 1] = 4.0
    found = judged(latent.reshape(EPISODES, -1, 1))
    assert found.onsets_F.tolist() == [4]
    assert found.effective_episodes_F[0] == pytest.approx(16 / 10)
    assert found.expected_episodes_F[0] == pytest.approx(4 * 60 / 63)
    # steps 3 and 9 of 50 are in the stretches 1 and 3 of 20
    assert found.effective_positions_F[0] == pytest.approx(16 / 8)
    assert found.run_share_F[0] == pytest.approx(7 / 4 / 50)
    assert found.mean_activation_F[0] == pytest.approx(18 / 7)


def test_chance_is_as_expected() -> None:
    """Simpson's number of onsets that fall at random into episodes of several lengths."""
    generator = np.random.default_rng(2)
    mask = MASK.copy()
    mask[::2, 20:] = False
    latent = (generator.random((EPISODES, STEPS * AGENTS, 200)) < 0.01) & mask[..., None]
    found = judged(latent, mask)
    np.testing.assert_allclose(
        found.effective_episodes_F.mean(), found.expected_episodes_F.mean(), rtol=0.03
    )
    assert set(found.kind_F) == {"general"}


def test_nonsense_in_the_padding_fires_nothing() -> None:
    mask = MASK.copy()
    mask[::3, 60:] = False
    latent = planted()
    clean = judged(np.where(mask[..., None], latent, 0), mask)
    dirty = judged(np.where(mask[..., None], latent, 7), mask)
    assert clean.kind_F == dirty.kind_F
    np.testing.assert_array_equal(clean.onsets_F, dirty.onsets_F)


def test_too_few_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"9 episodes are too few"):
        judged(planted()[:9], MASK[:9])
    with pytest.raises(ValueError, match=r"min_spread is 60\.0, of 60 episodes"):
        judged(planted(), min_spread=60.0)
