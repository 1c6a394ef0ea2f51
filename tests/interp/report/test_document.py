"""The page says what the tables say, needs nothing but itself, and lets no name become code."""

import re

from interp.report.document import figures, render


def test_the_page_needs_nothing_from_outside(report) -> None:
    html = render(report)
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", html)
    assert not re.search(r"""url\(\s*["']?(?!#)""", html)
    assert "@import" not in html
    assert "<link" not in html


def test_the_numbers_of_a_concept_are_on_the_page(report) -> None:
    html = render(report)
    for text in ("0.914", "0.892–0.932", "0.812", "0.713", "0.613", "0.432", "12.5 %", "0.0123"):
        assert text in html, text


def test_the_verdict_names_the_controls_that_were_not_beaten(report) -> None:
    html = render(report)
    assert "beats every control" in html  # .9137 - .0213 lies above all of .8125, .7125, .6125
    assert "learned; the best neuron and the best principal direction read it as well" in html


def test_dose_zero_is_stated_and_not_tabulated(report) -> None:
    html = render(report)
    assert "Dose 0 changed nothing: largest difference 0" in html
    assert "97" in html


def test_names_cannot_become_code(hostile) -> None:
    html = render(hostile)
    assert "<img" not in html
    assert html.count("</script>") == 2  # the data of the player, and the player


def test_a_study_that_found_nothing_says_so(empty) -> None:
    html = render(empty)
    assert "nothing was found" in html
    assert "Nothing found" in html
    assert "Nothing was steered" in html
    assert "Nothing was followed" in html


def test_the_same_report_gives_the_same_bytes(report) -> None:
    assert render(report) == render(report)


def test_figures_have_names_of_files_and_are_drawings(report) -> None:
    drawn = figures(report)
    assert {"training", "pareto", "heat-map", "auroc-histogram", "evolution-00"} <= drawn.keys()
    for name, svg in drawn.items():
        assert re.fullmatch(r"[\w.-]+", name)
        assert svg.startswith("<svg")


def test_figures_of_hostile_names_stay_drawings(hostile) -> None:
    for name, svg in figures(hostile).items():
        assert re.fullmatch(r"[\w.-]+", name), name
        assert "<img" not in svg
