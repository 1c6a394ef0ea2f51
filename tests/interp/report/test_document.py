"""The page says what the tables say, needs nothing but itself, and lets no name become code."""

import math
import re
from dataclasses import replace

import pyarrow as pa
import pytest

from interp.report.document import Report, figures, render


def changed(table: pa.Table, **values: object) -> pa.Table:
    """The table with the same value in every row of some columns."""
    return pa.Table.from_pylist([{**row, **values} for row in table.to_pylist()], table.schema)


def text_of(report: Report) -> str:
    """The page as it is read: no tags, no runs of blanks."""
    body = re.sub(r"<(style|script|svg)\b.*?</\1>", "", render(report), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


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
    assert "beats every control" in html
    better = (
        "best neuron and best principal direction and difference of means and linear probe and "
        "sparse probe better"
    )
    assert better in html


def test_controls_are_told_by_the_paired_rule_and_not_by_where_their_point_lies(report) -> None:
    """A lead on the same episodes may be sure although the control lies inside the concept's own interval."""
    row = report.concepts.slice(0, 1)
    level = changed(row, neuron_auroc=0.9137, beats="pca, random_init", better="probe")
    others = "best random direction and difference of means and sparse probe level"
    text = text_of(replace(report, concepts=level))
    assert f"linear probe better; best neuron and {others}" in text
    surely = changed(row, neuron_auroc=0.9137)
    assert "beats every control" in text_of(replace(report, concepts=surely))


def test_the_lead_over_the_strongest_control_is_shown_with_its_interval(report) -> None:
    text = text_of(replace(report, concepts=report.concepts.slice(0, 1)))
    assert "+0.091 +0.081 to +0.101" in text


def test_the_state_that_latents_tell_together_stands_beside_units_and_the_untrained(report) -> None:
    text = text_of(report)
    for who, numbers in (
        ("latents", "0.400 0.410–0.420 0.430 0.440–0.450 0.460"),
        ("units", "0.300 0.310–0.320 0.330 0.340–0.350 0.360"),
        ("latents of the untrained policy", "0.200 0.210–0.220 0.230 0.240–0.250 0.260"),
    ):
        assert f"forage-s0 {who} {numbers}" in text
    assert "forage-s0 3, 61 0.551 0.962" in text


def test_a_control_that_was_not_measured_is_not_beaten(report) -> None:
    html = render(
        replace(report, concepts=changed(report.concepts, random_init_auroc=math.nan).slice(0, 1))
    )
    assert "no best untrained latent" in html
    assert "beats every control" not in html


def test_a_latent_that_stands_for_two_labels_is_counted_once(report) -> None:
    assert "2 distinct latents stand for 2 concepts" in text_of(report)
    shared = replace(report, concepts=changed(report.concepts, latent=3))
    assert "1 distinct latent stands for 2 concepts" in text_of(shared)


@pytest.mark.parametrize(("percentile", "causal"), [(95.0, "0 of 1"), (97.5, "1 of 1")])
def test_an_effect_at_the_limit_of_random_directions_is_not_beyond_it(
    report, percentile, causal
) -> None:
    steered = replace(
        report, effects=changed(report.effects, random_direction_percentile=percentile)
    )
    assert f"causal {causal}" in text_of(replace(steered, verdicts=pa.table({})))


def test_where_there_are_verdicts_they_are_what_counts(report) -> None:
    said = text_of(report)
    assert "1 has the verdict “sufficient only”" in said
    assert "causal 0 of 1" in said
    assert "sufficient add 1.0 at lstm.c wall ↑" in said
    assert "necessary: not confirmed" in said
    assert "registered as g-0123" in said
    assert "Other seeds of the dictionary: cosine 0.95 (random directions 0.31)" in said


def test_an_effect_without_significance_is_not_causal(report) -> None:
    text = text_of(
        replace(report, verdicts=pa.table({}), effects=changed(report.effects, q_value=0.05))
    )
    assert "causal 0 of 1" in text
    assert "none of these effects is shown to be the concept's own" in text


def test_windows_count_the_peaks_at_which_the_label_holds(report) -> None:
    peak = report.windows[
        0
    ].peak_t  # step 15 is the sixth, an odd one: the label does not hold there
    there = replace(report.windows[0], label_T=report.windows[0].t == peak)
    text = text_of(replace(report, windows=(there, *report.windows)))
    assert "the label holds in 1 of 3 windows" in text
    assert "forage-s0 wall:3 1/3" in text


def test_an_outcome_that_no_arm_moved_is_said_and_not_drawn(report) -> None:
    still = replace(report, effects=changed(report.effects, difference=0.0))
    assert not [name for name in figures(still) if name.startswith("effect")]
    assert "return was the same in every arm" in text_of(still)


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


def test_what_was_found_without_labels_is_told_with_strength_and_evidence(report) -> None:
    text = text_of(report)
    assert "here 2, those that fire in most episodes. 1 has a name" in text
    assert "1 spatial, 1 undecided." in text
    assert (
        "wall cluster&nbsp;0, latents 0, 1, 2, 3, 4, 5, 6, 7 and 3 more forage-s0 +3.142 0.7854"
        in text
    )
    assert "spatial 45.7 % 0.0021 pulse 6.5 37 Peaks with wall &amp; more." in text
    assert "nothing stands out cluster&nbsp;1" in text and "undecided first spatial" in text
    assert 'points="0.0,18.0 18.0,18.0 36.0,0.0 54.0,9.0 72.0,18.0"' in render(report)


def test_a_group_says_whether_it_beats_its_best_latent(report) -> None:
    text = text_of(report)
    assert "1 of 2 beats the best latent alone" in text
    assert "0.753 0.542 +0.211 +0.111 to +0.311 yes" in text
    assert "−0.032 −0.132 to +0.068 no" in text


def test_a_concept_has_strength_and_evidence_and_its_label_a_definition(report) -> None:
    html = render(report)
    assert '<td class="n" data-value="0.9877">0.9877</td>' in html  # 1 - .0123
    assert 'title="State: a wall stands next to the agent."' in html
    certain = changed(report.concepts, q_value=0.0)
    assert "&gt;0.9999" in render(replace(report, concepts=certain))


def test_a_study_that_did_not_look_says_so(empty) -> None:
    text = text_of(empty)
    assert "Nothing was found without labels : this study was not asked to look" in text.replace(
        "labels:", "labels :"
    )
    asked = replace(empty, study=replace(empty.study, findings=("f-1",), groups=("g-1",)))
    assert "not asked to look" not in text_of(asked)


def test_discoveries_without_a_concept_are_still_counted_and_drawn(report) -> None:
    nameless = replace(report, concepts=changed(report.concepts, concept=None))
    text = text_of(nameless)
    assert "Nothing found: 3 of 3 tested latent–label pairs differ from chance" in text
    assert "auroc-histogram" in figures(nameless)


def test_a_label_that_looks_like_mathematics_is_drawn_as_it_is(report) -> None:
    odd = changed(report.lineages, label="a$^{$b")
    drawn = figures(
        replace(report, concepts=changed(report.concepts, label="a$^{$b"), lineages=odd)
    )
    assert "a$^{$b" in drawn["heat-map"]


def test_numbers_on_axes_are_plain(report) -> None:
    assert all("mathdefault" not in svg for svg in figures(report).values())


def test_ids_of_the_page_are_unique(report) -> None:
    ids = re.findall(r'\bid="([^"]*)"', render(report))
    assert len(ids) == len(set(ids))


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


def test_what_is_left_of_the_play_stands_beside_the_dictionary(report, empty) -> None:
    text = text_of(report)
    assert "Does the policy still play with it?" in text
    assert "forage-s0 lstm.c dictionary 2.500 2.438–2.562 0.875 0.812–0.938 – ––– 0.500" in text
    assert "Does the policy still play with it?" not in text_of(empty)


def test_claims_stand_beside_the_baselines_in_their_place(report) -> None:
    said = text_of(report)
    assert "+0.333 (+0.200 to +0.400) 5 of 5" in said
    assert "+0.333 (+0.200 to +0.400) 2 of 5" in said
    assert said.count("≈ +0.123") == 3  # what the second claim does not beat
    unknown = changed(report.verdicts, strongest_rival=None, beats=None, probe_effect=None)
    assert "lead over strongest" not in text_of(replace(report, verdicts=unknown))


def test_every_arm_says_how_it_works_and_the_latent_what_its_nulls_are(report) -> None:
    said = text_of(report)
    assert "add −1.0 1.1 % 0.0 % 0.345 0.345 0.0 % +0.000 7.2 10" in said
    assert "Latent 3 against all 1 labels" in said
    assert "0.914 0.892 to 0.932 0.514 0.001 0.0123 episode permutation 12.5 % 40" in said
