"""Labels made of labels, on tracks short enough to be read: what holds, and where that is not known."""

import re

import numpy as np
import pytest
from hypothesis import given, strategies as st
from jaxtyping import Bool

from interp.records import Trace, VariableLabel
from interp.worlds.expressions import Judged, looks_ahead, parse, parts_of
from interp.worlds.labels import (
    LABELS,
    Scene,
    check_labels,
    compute_labels,
    judge_labels,
    label,
    label_named,
    label_parts,
)
from tests.interp.worlds.test_labels import carry, draw, registry, truth

__all__ = ["registry"]
TRACKS = {"a": "0010000", "b": "0110011", "c": "1111100"}


def judged(text: str, tracks: dict[str, str] = TRACKS) -> str:
    """One sign a step: 1, 0, or ? where it is not known."""
    held = {name: np.array([[x == "1"] for x in track]) for name, track in tracks.items()}
    answer: Judged = parse(text).judge(held)
    assert not (answer.true_TA & ~answer.known_TA).any()
    return "".join(
        "01"[int(true)] if known else "?"
        for (true,), (known,) in zip(answer.true_TA, answer.known_TA, strict=True)
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a", "0010000"),
        ("!a", "1101111"),
        ("b&c", "0110000"),
        ("a | c", "1111100"),
        ("a@within1", "010000?"),
        ("a@within3", "1100???"),
        ("a@within7", "???????"),
        ("!a@within3", "0011???"),  # not: a comes within 3 steps
        ("(!a)@within3", "1111???"),  # somewhen in 3 steps, a does not hold
        ("c&a@within3", "1100???"),  # c is false at the end, which alone would tell the answer
        ("a|b&!c", "0010011"),
        ("(a|b)&!c", "0000011"),
        ("a@within2@within2", "100????"),
        ("!!a", "0010000"),
    ],
)
def test_what_an_expression_says(text, wanted) -> None:
    assert judged(text) == wanted


def test_an_event_in_a_window_that_passes_the_end_does_not_make_the_answer_known() -> None:
    """Else all that is known near the end would be positive, and telling the end would be telling the label."""
    assert judged("x@within3", {"x": "0000010"}) == "0011???"


@given(
    track=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30),
    steps=st.integers(1, 12),
)
def test_within_is_any_of_the_next_steps_of_the_same_agent(track, steps) -> None:
    held_TA = np.array(track)
    answer = parse(f"x@within{steps}").judge({"x": held_TA})
    for t in range(len(held_TA)):
        known = t + steps < len(held_TA)
        assert answer.known_TA[t].tolist() == [known] * 2
        soon = held_TA[t + 1 : t + 1 + steps].any(0) & known
        assert answer.true_TA[t].tolist() == soon.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at character 1 found its end, wanted the name of a label"),
        ("a&", "at character 3 found its end, wanted the name of a label"),
        ("a b", "at character 3 found 'b', wanted &, |, @ or the end"),
        ("(a&b", "at character 5 found its end, wanted a closing parenthesis"),
        ("a@soon", "at character 3 found 'soon', wanted within and a number of steps from 1"),
        ("a@within0", "at character 3 found 'within0'"),
        ("a@", "at character 3 found its end, wanted within and a number"),
        ("a&&b", "at character 3 found '&b', wanted the name"),
        ("a + b", "at character 3 found '+ b', wanted a name or one of ! & | ( ) @"),
        ("(" * 40 + "a", "wanted at most 400 and 32; define a label of your own"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place_and_what_was_wanted_there(
    text, message
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text)


def test_a_part_that_does_not_exist_is_named_with_the_nearest_that_does() -> None:
    with pytest.raises(ValueError, match=r"'carrying_oar' does not exist.*mean 'carrying_ore'"):
        check_labels(["landmark", "landmark&!carrying_oar@within5"], LABELS)


def test_parts_are_told_once_each_and_horizons_found_at_any_depth() -> None:
    expression = parse("!(b|a)&a@within3")
    assert parts_of(expression) == ("b", "a")
    assert looks_ahead(expression) and not looks_ahead(parse("!(b|a)&a"))
    assert label_parts(["landmark&combat", "combat@within2"], LABELS) == ("landmark", "combat")


def test_expressions_are_labels_of_an_episode_with_a_kind_and_a_definition() -> None:
    facts = carry(draw("....a", ((0, 0), "EEE.")), ore="00110")
    assert truth(facts, "landmark") == "0011"
    assert truth(facts, "landmark&!carrying_ore") == "0000"
    assert truth(facts, "!landmark&!carrying_ore") == "1100"
    soon = judge_labels(facts, ["carrying_ore@within2"])["carrying_ore@within2"]
    assert soon.true_TA[:, 0].tolist() == [True, True, False, False]
    assert soon.known_TA[:, 0].tolist() == [True, True, False, False]
    made = label_named("carrying_ore&landmark@within2", LABELS)
    assert (made.kind, label_named("combat|!avoidance", LABELS).kind) == ("mixed", "behavioural")
    assert LABELS["landmark"].definition in made.definition
    assert "Known up to where its windows pass" in made.definition


def test_the_same_in_worlds_of_variables() -> None:
    flag = VariableLabel(
        name="high", kind="spatial", definition="State: high.", variable="x", at_least=1.0
    )
    trace = Trace(
        variables={"x": np.array([[0], [2], [0], [0]], np.float32)}, labels={"high": flag}
    )
    found = compute_labels(trace, ["!high", "high@within1"])
    assert found["!high"][:, 0].tolist() == [True, False, True]
    assert found["high@within1"][:, 0].tolist() == [True, False, False]


@pytest.mark.usefixtures("registry")
def test_a_label_of_ones_own_combines_like_the_others() -> None:
    @label("turret_close", kind="spatial")
    def turret_close(scene: Scene) -> Bool[np.ndarray, "T A"]:
        """State: a turret stands next to the agent."""
        return scene.near("turret", 1)

    assert truth(draw("t...", ((0, 3), "WWW")), "turret_close@within2&!turret_close") == "100"
    with pytest.raises(ValueError, match=r"label 'a&b': wanted letters"):
        label("a&b", kind="spatial")(turret_close)
