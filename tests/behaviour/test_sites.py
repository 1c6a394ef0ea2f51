"""An edit acts from where it is made: what it changes reaches the head or it does not, and that decides its effect.

In the planted policy the encoder has an axis for each concept, h mixes them, and c is forgotten at once but for ore.
"""

import numpy as np
import pytest

from interp.policies.taps import Mode
from interp.steering.arms import Arm, SteeredLatent
from interp.steering.effects import ConceptTrials, effects_table
from interp.steering.trials import outcome_names, play_arms
from tests.fakes.planted_policy import (
    FACTORY,
    GAIN,
    GENERATOR,
    HIDDEN,
    MINE,
    MIXING,
    ORE,
    Head,
    planted,
)

pytestmark = [pytest.mark.mettagrid, pytest.mark.slow]
SEEDS = range(20_000, 20_010)
AXES = np.eye(HIDDEN, dtype=np.float32)
MIXED = (GAIN * MIXING.T).astype(np.float32)
"""[concepts, H] what one unit of each concept makes of h."""


def change(head: Head, site: str, direction_D: np.ndarray, mode: Mode = "add") -> dict:
    """The row of `exploration`, of one dose along a direction."""
    latent = SteeredLatent(
        concept="planted:0",
        label="none",
        latent=0,
        site=site,
        scale=1.0,
        write_D=direction_D,
        read_D=direction_D,
        read_bias=0.0,
        threshold=0.0,
    )
    arms = tuple(Arm(mode=mode, dose=dose, edit=latent.edit(mode, dose)) for dose in (0.0, 1.0))
    outcome_XEO = play_arms(planted(head), FACTORY(16), arms, SEEDS, labels=("exploration",))
    trials = ConceptTrials(
        latent=latent,
        arms=arms,
        outcome_names=outcome_names(("exploration",)),
        outcome_XEO=outcome_XEO,
    )
    rows = effects_table([trials], policy_id="p", policy_name="planted", seed=0).to_pylist()
    (row,) = (row for row in rows if row["outcome"] == "exploration" and row["dose"])
    return row


READS = {concept: Head({("noop", concept): 4.0}, {"noop": 0.5}) for concept in (GENERATOR, ORE)}


@pytest.mark.parametrize(
    ("site", "read", "direction_D"),
    [
        ("encoder", GENERATOR, AXES[GENERATOR]),
        ("lstm.h", GENERATOR, MIXED[GENERATOR]),
        ("lstm.y", GENERATOR, MIXED[GENERATOR]),
        ("lstm.c", ORE, AXES[ORE]),
    ],
)
def test_what_reaches_the_head_moves_the_outcome(
    site: str, read: int, direction_D: np.ndarray
) -> None:
    """More of what the head reads makes it stay, at whichever site it is added."""
    row = change(READS[read], site, direction_D)
    assert row["hi"] < 0
    assert row["p_value"] < 0.05


@pytest.mark.parametrize(
    ("site", "read", "direction_D"),
    [
        ("encoder", GENERATOR, AXES[ORE]),
        ("lstm.h", GENERATOR, MIXED[MINE]),
        ("lstm.y", GENERATOR, MIXED[MINE]),
        ("lstm.c", GENERATOR, MIXED[GENERATOR]),
    ],
)
def test_what_does_not_reach_it_moves_nothing(
    site: str, read: int, direction_D: np.ndarray
) -> None:
    """Ore and mines are not read, at any site; the memory of a generator is forgotten before it is."""
    row = change(READS[read], site, direction_D)
    assert (row["difference"], row["lo"], row["hi"], row["p_value"]) == (0, 0, 0, 1)


def test_taking_away_at_the_encoder_undoes_what_is_seen() -> None:
    """Without its input axis there is no generator to stay at: the agents walk more."""
    row = change(READS[GENERATOR], "encoder", AXES[GENERATOR], "ablate")
    assert row["lo"] > 0
