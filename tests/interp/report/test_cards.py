"""A card holds what the tables say of a concept, is JSON, and leads back to seeds."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from interp.identity import canonical_json
from interp.report.cards import cards


def test_a_card_says_what_the_tables_say(report) -> None:
    ((name, card),) = cards(report).items()
    assert name == "forage-s0-wall-3"
    assert card["verdict"] == "sufficient only"
    assert card["registration"] == "g-0123"
    assert card["concept"]["auroc"] == 0.9137
    assert card["definition"] == "State: a wall stands next to the agent."
    assert [claim["claim"] for claim in card["claims"]] == ["sufficient", "necessary"]
    assert {row["outcome"] for row in card["dose_response"]} == {"return", "wall"}
    assert {row["random_hi"] for row in card["dose_response"] if row["dose"]} == {0.3}
    assert [row["cosine"] for row in card["stability"]] == [0.95]
    assert [row["step"] for row in card["evolution"]] == [0, 1000, 4000]


def test_episodes_are_kept_as_seeds_and_values_not_as_pictures(report) -> None:
    (card,) = cards(report).values()
    first = card["episodes"][0]
    assert (first["env_seed"], first["agent"], first["peak_step"], first["first_step"]) == (
        *(7, 1, 15, 10),
    )
    assert len(first["latent"]) == 12
    assert "map" not in json.dumps(card)
    (clip,) = card["clips"]
    assert clip["arm"] == "add 1 at lstm.c"
    assert clip["before"]["env_seed"] == clip["after"]["env_seed"]


def test_an_episode_has_the_latent_around_its_peak_and_over_all_of_it(report) -> None:
    (card,) = cards(report).values()
    first = card["episodes"][0]
    assert (len(first["latent"]), len(first["whole_latent"])) == (12, 40)
    assert first["whole_latent"][10:22] == first["latent"]
    assert first["whole_label_holds"][10:22] == first["label_holds"]


def test_every_label_of_the_latent_stands_beside_its_null(report) -> None:
    """0.9137 with a selectivity of 0.4 is 0.0137 beyond 1/2 on labels of other episodes."""
    (card,) = cards(report).values()
    (row,) = card["labels"]
    assert row["null_auroc"] == pytest.approx(0.5137)


def test_every_dose_says_how_it_works(report) -> None:
    (card,) = cards(report).values()
    for row in card["dose_response"]:
        assert (row["off_manifold"], row["kl_on_policy"]) == (
            (0.011, 0.345) if row["dose"] else (None, None)
        )
        assert "specificity" in row and "divergence_step" in row


def test_what_has_no_value_is_null(report) -> None:
    (card,) = cards(report).values()
    zero = next(row for row in card["dose_response"] if row["dose"] == 0)
    assert zero["random_direction_percentile"] is None
    assert json.loads(canonical_json(card)) == json.loads(json.dumps(card, allow_nan=False))


def test_the_labels_of_the_latent_are_the_clearest_first(report) -> None:
    (card,) = cards(report).values()
    aurocs = [abs(row["auroc"] - 0.5) for row in card["labels"]]
    assert aurocs == sorted(aurocs, reverse=True)
    assert all("null" in row and "q_value" in row for row in card["labels"])


def test_without_verdicts_there_are_no_cards(report, empty) -> None:
    assert cards(replace(report, verdicts=pa.table({}))) == {}
    assert cards(empty) == {}
