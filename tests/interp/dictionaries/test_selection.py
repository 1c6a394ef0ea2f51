import math
from typing import NamedTuple

import pytest
from hypothesis import given, strategies as st

from interp.dictionaries.selection import choose, knee, pareto_front


class Trial(NamedTuple):
    l0: float
    fvu: float


trials = st.lists(st.builds(Trial, l0=st.floats(0.1, 100), fvu=st.floats(0.001, 1.5)), min_size=1)


@given(trials)
def test_front_is_what_no_trial_beats(found):
    front = pareto_front(found)
    for trial in found:
        beaten = any(
            other.l0 <= trial.l0 and other.fvu <= trial.fvu and other != trial for other in found
        )
        assert (trial in front) != beaten
    assert [trial.l0 for trial in front] == sorted({trial.l0 for trial in front})


@given(trials, st.randoms())
def test_front_does_not_depend_on_order(found, random):
    shuffled = random.sample(found, len(found))
    assert pareto_front(shuffled) == pareto_front(found)


def test_failed_and_empty_trials_are_left_out():
    good = Trial(8, 0.1)
    assert pareto_front([Trial(0, 0.01), Trial(4, math.nan), Trial(math.inf, 0.0), good]) == [good]


def test_knee_is_where_more_latents_stop_helping():
    front = [Trial(2, 0.8), Trial(4, 0.5), Trial(8, 0.15), Trial(16, 0.12), Trial(32, 0.1)]
    assert knee(front) == Trial(8, 0.15)


def test_knee_of_a_short_front_is_its_best_reconstruction():
    assert knee([Trial(4, 0.5), Trial(8, 0.2)]) == Trial(8, 0.2)


def test_choice_within_target_has_lowest_fvu():
    found = [Trial(4, 0.5), Trial(10, 0.3), Trial(16, 0.2), Trial(40, 0.01)]
    assert choose(found, target_l0=(8.0, 16.0)) == Trial(16, 0.2)


def test_choice_outside_target_falls_to_knee_with_a_warning(caplog):
    found = [Trial(2, 0.8), Trial(4, 0.2), Trial(8, 0.19)]
    assert choose(found, target_l0=(50.0, 60.0)) == Trial(4, 0.2)
    assert "no trial has l0 within the target" in caplog.text
    caplog.clear()
    assert choose(found) == Trial(4, 0.2)
    assert not caplog.text


def test_nothing_to_choose_is_refused():
    with pytest.raises(ValueError, match="no trial to choose from"):
        choose([Trial(0, 1.0)])
    with pytest.raises(ValueError, match=r"target_l0 is \(9.0, 3.0\)"):
        choose([Trial(1, 1.0)], target_l0=(9.0, 3.0))
