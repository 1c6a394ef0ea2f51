import pytest

from interp.dictionaries.relu_l1 import ReluL1


def test_penalty_rises_linearly_to_target():
    family = ReluL1(l1=4.0, l1_warm_up=0.1)
    assert [family.l1_at(share) for share in (0.0, 0.05, 0.1, 0.9)] == [0.0, 2.0, 4.0, 4.0]
    assert ReluL1(l1=4.0, l1_warm_up=0.0).l1_at(0.0) == 4.0


@pytest.mark.parametrize("change", [{"l1": -1.0}, {"l1": float("nan")}, {"l1_warm_up": 1.5}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        ReluL1(**change)
