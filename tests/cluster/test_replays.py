"""A card leads back to what it speaks of: its episodes, whole, and a page of them that needs nothing else."""

from pathlib import Path

import numpy as np
import pytest

from cluster import dictionaries
from cluster.replays import replay
from cluster.store import Store
from interp.identity import canonical_json
from interp.rollout import Capture, Trial, roll
from jobs.concepts import Replay, play_again
from tests.fakes.planted_policy import (
    FACTORY,
    GENERATOR,
    SITE,
    STANDS_STILL,
    dictionary,
    kept,
    planted,
    world_file,
)

pytestmark = pytest.mark.mettagrid
SEED, AGENT = 4, 2


def card(store: Store) -> dict:
    """What of a card its replay needs."""
    episode = {"world": FACTORY.name, "env_seed": SEED, "agent": AGENT, "peak_step": 7}
    return {
        "name": "battery_proximity:0",
        "policy": "planted",
        "policy_id": kept(store, planted(STANDS_STILL), "planted"),
        "label": "battery_proximity",
        "concept": {
            "dict_id": dictionaries.save(store, "d-" + "0" * 16, dictionary(), {}).dict_id,
            "latent": GENERATOR,
        },
        "episodes": [episode, {**episode, "env_seed": SEED + 1}],
    }


def test_a_card_is_played_again_whole_with_the_latent_at_every_step(
    store: Store, tmp_path: Path
) -> None:
    first, second = replay(store, card(store), world=str(world_file(tmp_path)))
    assert (first.env_seed, second.env_seed) == (SEED, SEED + 1)
    assert first.t.tolist() == list(range(FACTORY.spec.max_steps))
    (episode,) = roll(
        planted(STANDS_STILL), FACTORY(1), [Trial(env_seed=SEED)], Capture(sites=(SITE,))
    )
    np.testing.assert_array_equal(first.action_T, episode.action_TA[:, AGENT])
    latent_T = dictionary().encode_rows(episode.activations[SITE][:, AGENT])[:, GENERATOR]
    np.testing.assert_array_equal(first.latent_T, latent_T)
    np.testing.assert_array_equal(first.latent_T > 0, first.label_T)


def test_the_page_of_a_card_opens_offline(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "planted-battery.json"
    file.write_bytes(canonical_json(card(store)))
    asked = Replay(card=str(file), out=tmp_path / "page.html", world=str(world_file(tmp_path)))
    page = play_again(store, asked).read_text(encoding="utf-8")
    assert f"seed {SEED}, agent {AGENT}" in page
    assert "startPlayer" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert play_again(store, asked).read_text(encoding="utf-8") == page


def test_a_card_that_leads_nowhere_is_refused(store: Store, tmp_path: Path) -> None:
    told = card(store)
    with pytest.raises(ValueError, match=r"card of 'battery_proximity:0' names no episode"):
        replay(store, {**told, "episodes": []})
    with pytest.raises(ValueError, match=r"is of world short-forage, and this is forage"):
        replay(store, told, world="forage")
    with pytest.raises(FileNotFoundError, match=r"card nothing.json is neither a file nor in"):
        play_again(store, Replay(card="nothing.json"))
