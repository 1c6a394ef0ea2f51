"""Which word follows from which evidence; every word can be reached, and each condition alone can prevent it."""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import pytest

from interp.steering.arms import (
    BASELINES,
    SteeredLatent,
    SteeringConfig,
    arms,
    baseline_arms,
    mean_difference_arm,
    random_latent_arms,
)
from interp.steering.diagnosis import Diagnosis
from interp.steering.effects import ConceptTrials, specificity
from interp.steering.selection import Claim, Hypothesis, Tried, hypotheses, tried
from interp.steering.verdicts import (
    Tested as Evidence,
    find_arm,
    monotonicity,
    verdict,
    verdicts_table,
)

D, E = 8, 16
CONFIG = SteeringConfig(add_doses=(-1.0, 0.0, 1.0), clamp_doses=(), num_episodes=E)
LATENT = SteeredLatent(
    concept="combat:3",
    label="combat",
    latent=3,
    site="lstm.h",
    scale=1.0,
    write_D=np.ones(D, np.float32),
    read_D=np.ones(D, np.float32),
    read_bias=0.0,
    threshold=0.0,
)
OUTCOMES = ("return", "combat")


def claim(kind: Claim, sign: Literal[-1, 1]) -> Hypothesis:
    mode = "add" if kind == "sufficient" else "ablate"
    return Hypothesis(
        concept="combat:3",
        claim=kind,
        site="lstm.h",
        mode=mode,
        dose=1.0,
        outcome="combat",
        sign=sign,
    )


def evidence(kind: Claim, sign: Literal[-1, 1], **changes) -> Evidence:
    good = Evidence(
        hypothesis=claim(kind, sign),
        difference=0.5 * sign,
        lo=min(0.3 * sign, 0.7 * sign),
        hi=max(0.3 * sign, 0.7 * sign),
        p_value=0.001,
        q_value=0.002,
        beyond_random=True,
        off_manifold=0.0,
    )
    return replace(good, **changes)


MORE, LESS = evidence("sufficient", 1), evidence("necessary", -1)
UNCONFIRMED = [{"q_value": 0.06}, {"beyond_random": False}, {"lo": -0.1, "hi": 0.1}]


def test_raising_and_removing_in_opposite_directions_is_causal() -> None:
    assert verdict([MORE, LESS]) == "causal"
    assert verdict([evidence("sufficient", -1), evidence("necessary", 1)]) == "causal"


@pytest.mark.parametrize("missing", UNCONFIRMED)
def test_what_is_not_confirmed_does_not_count(missing: dict) -> None:
    assert verdict([replace(MORE, **missing), LESS]) == "necessary only"
    assert verdict([MORE, replace(LESS, **missing)]) == "sufficient only"
    assert verdict([replace(MORE, **missing), replace(LESS, **missing)]) == "no effect"
    assert verdict([]) == "no effect"


def test_an_effect_on_the_other_side_of_zero_than_registered_confirms_nothing() -> None:
    assert verdict([replace(MORE, lo=-0.7, hi=-0.3), LESS]) == "necessary only"


def test_if_more_and_less_do_the_same_more_of_it_is_not_the_reason() -> None:
    assert verdict([evidence("sufficient", -1), LESS]) == "necessary only"


def test_what_only_works_where_training_never_was_is_off_the_manifold() -> None:
    far = {"off_manifold": 0.051}
    assert verdict([replace(MORE, **far), replace(LESS, **far)]) == "off-manifold"
    assert verdict([replace(MORE, **far), replace(LESS, q_value=0.06)]) == "off-manifold"
    assert verdict([replace(MORE, **far), LESS]) == "necessary only"
    assert verdict([replace(MORE, off_manifold=0.05), LESS]) == "causal"


def trials(
    effect_of: dict[tuple[str, float], float],
    *,
    random: float = 0.0,
    baselines: dict[str, float] | None = None,
) -> ConceptTrials:
    """Outcomes in which the latent's arms move combat by so much, random directions by at most `random`, and the
    baselines by a share of what the latent does."""
    kinds = baselines or {}
    generator = np.random.default_rng(0)
    played = arms(LATENT, CONFIG, seed=0)
    for kind in get_args(Claim):
        claimed = next(arm for arm in played if (arm.mode, arm.dose) == (claim(kind, 1).mode, 1.0))
        others = [replace(LATENT, latent=n) for n in (5, 6)]
        played += random_latent_arms(others, claimed)
        played.append(mean_difference_arm(claimed, np.eye(D, dtype=np.float32)[0]))
        played += baseline_arms(dict.fromkeys(kinds, LATENT), claimed)
    base_EO = generator.standard_normal((E, 2))
    rows = [base_EO]
    for arm in played:
        size = random if arm.rival else effect_of.get((arm.mode, arm.dose), 0.0)
        if arm.rival == "baseline":
            size = kinds[BASELINES[arm.number]] * effect_of[arm.mode, arm.dose]
        wobble = 0.01 * generator.standard_normal((E, 2)) if size else 0.0
        rows.append(base_EO + np.array([0.0, size]) + wobble)
    return ConceptTrials(
        latent=LATENT,
        arms=tuple(played),
        outcome_names=OUTCOMES,
        outcome_XEO=np.stack(rows),
    )


def diagnosis(off_manifold: float = 0.0) -> Diagnosis:
    columns = {name: np.linspace(0, 1, 10) for name in Diagnosis.__slots__}
    return Diagnosis(**{**columns, "off_manifold_E": np.full(10, off_manifold)})


def table(concept: ConceptTrials, signs: tuple[Literal[-1, 1], Literal[-1, 1]]) -> list[dict]:
    claimed = [claim("sufficient", signs[0]), claim("necessary", signs[1])]
    return verdicts_table(
        [concept],
        claimed,
        {one: diagnosis() for one in claimed},
        {one: np.zeros((E, 2)) for one in claimed},
        policy_id="p",
        policy_name="planted",
        registration_id="g-0",
        seed=0,
    ).to_pylist()


EFFECT = {("add", 1.0): 1.0, ("add", -1.0): -1.0, ("ablate", 1.0): -0.8}


def test_the_table_holds_the_evidence_and_the_word() -> None:
    more, less = table(trials(EFFECT, random=0.1), (1, -1))
    assert more["verdict"] == less["verdict"] == "causal"
    assert more["difference"] == pytest.approx(1, abs=0.02)
    assert more["lo"] < more["difference"] < more["hi"]
    assert more["random_direction_percentile"] == more["random_latent_percentile"] == 100
    assert more["n_random_latents"] == 2
    assert more["mean_difference_effect"] == pytest.approx(0.1, abs=0.02)
    assert more["monotonicity"] == 1
    assert more["untrained_difference"] == 0
    assert (more["n_episodes"], more["n_diagnosed"]) == (E, 10)


def test_random_directions_that_do_as_much_take_the_verdict_away() -> None:
    rows = table(trials(EFFECT, random=1.2), (1, -1))
    assert {row["verdict"] for row in rows} == {"no effect"}
    assert {row["random_direction_percentile"] for row in rows} == {0}


def test_the_table_says_which_baselines_a_claim_is_ahead_of() -> None:
    """Farther in the registered direction than the baseline goes in any; the necessary claim lowers combat."""
    shares = {"neuron": 0.5, "pca": 1.0, "diff_in_means": -0.2, "probe": -1.5}
    more, less = table(trials(EFFECT, baselines=shares), (1, -1))
    for row, effect in ((more, 1.0), (less, -0.8)):
        assert row["beats"] == "neuron, diff_in_means"
        assert row["strongest_rival"] == "probe"
        assert row["lead"] == pytest.approx(-0.5 * abs(effect), abs=0.03)
        assert row["lead_lo"] < row["lead"] < row["lead_hi"] < 0
        assert row["neuron_effect"] == pytest.approx(0.5 * effect, abs=0.02)
        assert row["sparse_probe_effect"] is None
    for row in table(trials(EFFECT, baselines=shares), (-1, 1)):  # registered the other way
        assert row["beats"] == ""
    (none, _) = table(trials(EFFECT), (1, -1))
    assert none["beats"] is None and none["lead"] is None


def test_a_claim_is_found_again_among_the_arms() -> None:
    concept = trials(EFFECT)
    arm = concept.arms[find_arm(concept, claim("necessary", 1))]
    assert (arm.mode, arm.dose, arm.rival) == ("ablate", 1.0, None)


def test_specificity_compares_the_target_with_the_others() -> None:
    assert specificity(np.array([3.0, 1.0, 1.0]), 0) == pytest.approx(3)
    assert specificity(np.array([1.0, 0.0]), 0) is None


def test_an_effect_that_rises_with_the_dose_and_one_that_turns_back() -> None:
    rising = trials(EFFECT)
    assert monotonicity(rising, "lstm.h", 1, seed=0)[0] == 1
    turning = trials({("add", 1.0): 1.0, ("add", -1.0): 1.0})
    rho, lo, hi = monotonicity(turning, "lstm.h", 1, seed=0)
    assert rho is not None and lo is not None and hi is not None
    assert lo <= rho <= hi < 1
    assert monotonicity(trials({}), "lstm.h", 1, seed=0) == (None, None, None)


# --- selection


def arm_of(mode: str, dose: float):
    return next(
        arm
        for arm in arms(LATENT, CONFIG, seed=0)
        if (arm.mode, arm.dose, arm.rival) == (mode, dose, None)
    )


def looked_at(mode: str, dose: float, mean: tuple[float, float], noise: float) -> Tried:
    generator = np.random.default_rng(1)
    difference_EO = np.array(mean) + noise * generator.standard_normal((8, 2))
    return tried(arm_of(mode, dose), difference_EO, np.ones(2), CONFIG)


def test_an_arm_is_settled_when_it_acts_and_when_it_surely_does_nothing() -> None:
    assert looked_at("add", 1.0, (1.0, 0.0), 0.1).settled == "acts"
    assert looked_at("add", 1.0, (0.0, 0.0), 0.01).settled == "nothing"
    assert looked_at("add", 1.0, (0.0, 0.0), 0.0).settled == "nothing"
    assert looked_at("add", 1.0, (0.2, 0.0), 1.0).settled == "open"


def test_the_outcome_that_raising_and_removing_move_apart_is_claimed_with_its_signs() -> None:
    """The return falls more surely, but whatever is done; combat goes up and down with the latent."""
    results = [
        looked_at("add", 1.0, (-3.0, 0.9), 0.05),
        looked_at("ablate", 1.0, (-3.0, -0.9), 0.05),
        looked_at("add", -1.0, (9.0, 9.0), 0.05),  # negative doses claim nothing
    ]
    more, less = hypotheses("combat:3", results, OUTCOMES)
    assert (more.claim, more.outcome, more.sign, more.dose) == ("sufficient", "combat", 1, 1.0)
    assert (less.claim, less.outcome, less.sign) == ("necessary", "combat", -1)


def test_without_a_way_to_remove_it_only_sufficiency_is_claimed() -> None:
    (only,) = hypotheses("combat:3", [looked_at("add", 1.0, (-3.0, 0.9), 0.05)], OUTCOMES)
    assert (only.claim, only.outcome, only.sign) == ("sufficient", "return", -1)
    assert hypotheses("combat:3", [looked_at("add", -1.0, (1.0, 1.0), 0.1)], OUTCOMES) == []
