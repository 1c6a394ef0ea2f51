"""Steering as tasks: what was played is not played again, and what makes no sense is refused before anything is."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster import arms, policies
from cluster.arms import DiagnoseArms, PlayArms, Subject, Surroundings, divided, together
from cluster.staging import Split
from cluster.steering import Experiment, conduct
from cluster.store import Store
from cluster.studio import Studio
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.steering.arms import Arm, SteeredLatent, SteeringConfig, own_arms
from interp.steering.manifold import Manifold
from interp.steering.trials import OTHERS_RETURN, RETURN, outcome_names, steered_agents
from interp.worlds.mettagrid import MettagridFactory
from interp.worlds.presets import arena, forage

pytestmark = pytest.mark.mettagrid


def short(name: str, config) -> MettagridFactory:
    config.game.max_steps = 16
    return MettagridFactory(name=f"short-{name}", config_json=config.model_dump_json())


FORAGE, ARENA = short("forage", forage()), short("arena", arena())
CONFIG = SteeringConfig(add_doses=(0.0, 4.0), clamp_doses=(), num_episodes=10)
FOUR = np.ones(4, np.float32)
DIRECTION = np.ones(128, np.float32) / 16
LATENT = SteeredLatent(
    concept="landmark:0",
    label="landmark",
    latent=0,
    site="lstm.h",
    scale=1.0,
    write_D=DIRECTION,
    read_D=DIRECTION,
    read_bias=0.0,
    threshold=0.0,
)


def fresh(store: Store, factory: MettagridFactory = FORAGE) -> str:
    torch.manual_seed(0)
    policy = TokenLstmPolicy(architecture_for(factory))
    bundle = PolicyBundle.of(policy.architecture, policy.state_dict())
    return policies.save(
        store, bundle, name="fresh", run="t-0", step=0, world=factory.name
    ).policy_id


def played(store: Store, **changes) -> PlayArms:
    subject = Subject(policy_id=fresh(store), factory=FORAGE, labels=("landmark",))
    task = PlayArms(subject=subject, arms=tuple(own_arms(LATENT, CONFIG)), env_seeds=(1, 2))
    return replace(task, **changes)


def test_arms_that_were_played_are_not_played_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = played(store)
    outcome_XEO = task.run(Studio(store))
    assert outcome_XEO.shape == (1 + 4, 2, 2)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("played again")

    monkeypatch.setattr(arms, "play_arms", forbidden)
    np.testing.assert_array_equal(task.run(Studio(store)), outcome_XEO)
    stronger = [arm.edit for arm in own_arms(replace(LATENT, scale=2.0), CONFIG)]
    other = replace(
        task,
        arms=tuple(replace(arm, edit=edit) for arm, edit in zip(task.arms, stronger, strict=True)),
    )
    with pytest.raises(AssertionError, match=r"played again"):
        other.run(Studio(store))


def test_worlds_at_once_change_nothing(store: Store, tmp_path) -> None:
    one = played(store, num_worlds=3).run(Studio(store))
    other = Store.open(str(tmp_path / "other"))
    np.testing.assert_array_equal(played(other, num_worlds=10).run(Studio(other)), one)


def test_arms_are_put_together_in_their_order_however_they_were_divided(monkeypatch) -> None:
    monkeypatch.setattr(arms, "ARMS_PER_TASK", 3)
    monkeypatch.setattr(arms, "TRIALS_PER_TASK", 8)
    subject = Subject(policy_id="p-0", factory=FORAGE, labels=())
    tried = [Arm(mode="add", dose=float(n), edit=LATENT.edit("add", float(n))) for n in range(1, 8)]
    seeds = range(10, 15)
    tasks = divided(subject, tried, seeds)
    assert len(tasks) > 3

    def outcome(task: PlayArms) -> np.ndarray:
        dose = np.array([0.0, *(arm.dose for arm in task.arms)])
        return (100 * dose[:, None] + np.array(task.env_seeds))[..., None]

    whole = together(tried, seeds, [(task, outcome(task)) for task in reversed(tasks)])
    np.testing.assert_array_equal(whole[..., 0], 100 * np.arange(8)[:, None] + np.arange(10, 15))


def test_one_agent_or_a_team_may_be_steered_and_the_others_are_counted_apart(store: Store) -> None:
    assert steered_agents(ARENA.spec, "all") is None
    assert steered_agents(ARENA.spec, "one") == (0,)
    team = steered_agents(ARENA.spec, "team")
    assert team == tuple(a for a, of in enumerate(ARENA.spec.teams) if of == ARENA.spec.teams[0])
    assert team is not None
    assert 1 < len(team) < ARENA.spec.num_agents
    with pytest.raises(ValueError, match=r'has one team only; take "all" or "one"'):
        steered_agents(FORAGE.spec, "team")
    assert outcome_names(["landmark"], (0,)) == (RETURN, "landmark", OTHERS_RETURN)
    subject = Subject(policy_id=fresh(store), factory=FORAGE, labels=("landmark",), agents=(0,))
    outcome_XEO = played(store, subject=subject).run(Studio(store))
    assert outcome_XEO.shape == (5, 2, 3)


def manifold() -> Manifold:
    return Manifold.of(np.random.default_rng(0).standard_normal((300, 128)).astype(np.float32))


def test_a_diagnosis_that_was_made_is_not_made_again(store: Store, monkeypatch) -> None:
    task = DiagnoseArms(
        subject=Subject(policy_id=fresh(store), factory=FORAGE, labels=("landmark",)),
        arms=tuple(arm for arm in own_arms(LATENT, CONFIG) if arm.dose),
        env_seeds=(1, 2),
        manifold={"lstm.h": manifold()},
    )
    made = task.run(Studio(store))
    monkeypatch.setattr(arms, "diagnose", lambda *_, **__: pytest.fail("made again"))
    for one, other in zip(made, task.run(Studio(store)), strict=True):
        for name in one.__slots__:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(pytest.fail.Exception, match="made again"):
        replace(task, env_seeds=(1, 3)).run(Studio(store))


def test_what_concepts_are_compared_with_is_kept_to_the_last_bit() -> None:
    odd = replace(LATENT, scale=0.1 + 0.2, threshold=-np.inf, read_bias=1 / 3)
    around = Surroundings(
        others={"landmark:0": (LATENT, odd), "ore:1": ()},
        mean_difference={"landmark:0": DIRECTION, "ore:1": 0 * DIRECTION},
        manifold={"lstm.h": manifold()},
        baselines={"landmark:0": {"probe": odd}, "ore:1": {}},
    )
    again = Surroundings.of(around.arrays())

    def content(value: object) -> object:
        match value:
            case np.ndarray():
                return value.dtype.str, value.tolist()
            case dict():
                return {key: content(one) for key, one in value.items()}
            case tuple():
                return [content(one) for one in value]
            case SteeredLatent() | Manifold():
                return {name: content(getattr(value, name)) for name in value.__slots__}
        return value

    assert content(tuple(again)) == content(tuple(around))


class EnoughSeen(Exception):
    """The selection is over."""


def test_an_arm_that_is_settled_plays_no_further_round(store: Store) -> None:
    """One acts at once, one surely does nothing, one stays open until the episodes are used up."""
    policy_id = fresh(store)
    asked = Experiment(
        policy_id=policy_id,
        policy_name="fresh",
        untrained_id=policy_id,
        factory=FORAGE,
        recording_id="r-0",
        dict_id=None,
        split=Split(),
        latents=(LATENT,),
        config=replace(CONFIG, clamp_doses=(0.0, 1.0)),
        labels=(),
        seed=0,
    )
    rounds: list[tuple[tuple[str, ...], tuple[int, ...]]] = []

    def make(tasks):
        if not all(isinstance(task, PlayArms) for task in tasks):
            raise EnoughSeen
        (task,) = tasks
        rounds.append((tuple(arm.mode for arm in task.arms), task.env_seeds))
        generator = np.random.default_rng(task.env_seeds[0])
        base_EO = generator.standard_normal((len(task.env_seeds), 2))
        moved = {
            "add": 20 + 0.1 * generator.standard_normal(base_EO.shape),
            "clamp": np.zeros(base_EO.shape),
            "ablate": 0.3 * generator.standard_normal(base_EO.shape),
        }
        return [np.stack([base_EO, *(base_EO + moved[arm.mode] for arm in task.arms)])]

    with pytest.raises(EnoughSeen):
        conduct(store, [asked], make)
    assert [modes for modes, _ in rounds] == [("add", "clamp", "ablate"), ("ablate",), ("ablate",)]
    assert [seeds for _, seeds in rounds] == [
        tuple(range(start, start + 4)) for start in (25_000, 25_004, 25_008)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: replace(e, config=replace(CONFIG, sites=("lstm.z",))),
            r"lstm\.z.*not in policy",
        ),
        (
            lambda e: replace(e, config=replace(CONFIG, sites=("lstm.c",))),
            r"found at lstm\.h, whose values are not those of lstm\.c; record lstm\.c",
        ),
        (
            lambda e: replace(
                e,
                latents=(
                    replace(LATENT, write_D=np.ones(4, np.float32), read_D=np.ones(4, np.float32)),
                ),
            ),
            r"is 4 wide and site lstm\.h 128",
        ),
        (lambda e: replace(e, latents=(LATENT, LATENT)), r"concept 'landmark:0' is given twice"),
        (lambda e: replace(e, config=replace(CONFIG, agents="team")), r"has one team only"),
        (
            lambda e: replace(e, config=replace(CONFIG, first_selection_seed=20_005)),
            r"selection .* and confirmation .* share episodes",
        ),
        (
            lambda e: replace(e, config=replace(CONFIG, num_random_directions=5)),
            r"num_random_directions 5: at least 20",
        ),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused_before_anything_is_played(
    store: Store, change: Callable[[Experiment], Experiment], message: str
) -> None:
    policy_id = fresh(store)
    asked = Experiment(
        policy_id=policy_id,
        policy_name="fresh",
        untrained_id=policy_id,
        factory=FORAGE,
        concepts_id="c-0",
        recording_id="r-0",
        dict_id="d-0",
        split=Split(),
        latents=(LATENT,),
        config=CONFIG,
        labels=(),
        seed=0,
    )
    with pytest.raises(ValueError, match=message):
        conduct(store, [change(asked)], lambda tasks: pytest.fail("played"))
