"""A latent that another dictionary has is found there, however it is scaled and wherever it stands; others are not."""

import numpy as np
import pytest
import torch

from cluster import dictionaries
from cluster.results import read_table
from cluster.stability import seed_stability
from cluster.store import Store
from interp.dictionaries.dictionary import Dictionary

D, F = 64, 48


def unit_rows(num: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((num, D))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def save(store: Store, dict_id: str, direction_FD: np.ndarray) -> str:
    W_dec = torch.from_numpy(direction_FD).float()
    entry = dictionaries.save(
        store,
        dict_id,
        Dictionary(
            W_enc=W_dec.T.contiguous(),
            b_enc=torch.zeros(len(W_dec)),
            W_dec=W_dec,
            b_dec=torch.zeros(D),
            threshold=torch.tensor(0.0),
            mean=torch.zeros(D),
            scale=1.0,
            family="planted",
            fvu=0.0,
            l0=1.0,
            dead_fraction=0.0,
            site="lstm.h",
        ),
        {},
    )
    return entry.dict_id


OWN_FD = unit_rows(F, 0)


@pytest.fixture
def own(store: Store) -> str:
    return save(store, "d-own", OWN_FD)


@pytest.fixture
def other(store: Store) -> str:
    """Of our latents it has the first at twice the length, the second nearly, the third reversed; one is dead."""
    other_FD = unit_rows(F, 1)
    other_FD[40] = 2 * OWN_FD[0]
    other_FD[7] = OWN_FD[1] + 0.1 * unit_rows(1, 2)[0]
    other_FD[20] = -OWN_FD[2]
    other_FD[30] = 0
    return save(store, "d-other", other_FD)


def test_planted_latents_are_found_again_and_only_they(store: Store, own: str, other: str) -> None:
    _, table = seed_stability(store, own, [other], range(F), policy_name="p", seed=0)
    rows = table.to_pylist()
    assert [row["latent"] for row in rows] == list(range(F))
    assert rows[0]["cosine"] == pytest.approx(1, abs=1e-6)
    assert 0.98 < rows[1]["cosine"] < 1
    (by_chance,) = {row["random_cosine"] for row in rows}
    assert 0.25 < by_chance < 0.5  # the largest of 48 cosines in 64 dimensions
    absent = np.array([row["cosine"] for row in rows[2:]])
    assert absent.max() < 0.6, "a reversed direction is another latent"
    # of latents that are not there, one in twenty exceeds the 95th percentile of chance
    assert (absent > by_chance).mean() < 0.2


def test_a_row_for_every_latent_and_dictionary_in_their_order(
    store: Store, own: str, other: str
) -> None:
    same = save(store, "d-same", OWN_FD[::-1].copy())
    table_id, table = seed_stability(store, own, [other, same], [5, 0], policy_name="p", seed=0)
    rows = table.to_pylist()
    assert [(row["other_dict_id"], row["latent"]) for row in rows] == [
        *((other, 5), (other, 0), (same, 5), (same, 0)),
    ]
    assert {(row["policy_name"], row["dict_id"]) for row in rows} == {("p", own)}
    assert [round(row["cosine"], 6) for row in rows[2:]] == [1, 1]
    assert read_table(store, "stabilities", table_id).equals(table)


def test_a_dead_latent_is_like_nothing(store: Store, other: str, own: str) -> None:
    _, table = seed_stability(store, other, [own], [30], policy_name="p", seed=0)
    assert table.to_pylist()[0]["cosine"] == 0


def test_what_is_known_is_not_computed_again(
    store: Store, own: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_id, first = seed_stability(store, own, [other], [0], policy_name="p", seed=0)
    another_id, another = seed_stability(store, own, [other], [0], policy_name="p", seed=1)
    assert another_id != first_id
    assert another["random_cosine"] != first["random_cosine"]
    monkeypatch.setattr(dictionaries, "load", lambda *_: pytest.fail("computed again"))
    again_id, again = seed_stability(store, own, [other], [0], policy_name="p", seed=0)
    assert (again_id, again.to_pylist()) == (first_id, first.to_pylist())


def test_a_dictionary_that_is_not_there_is_named(store: Store, own: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"dictionary d-2 is not in store"):
        seed_stability(store, own, ["d-2"], [0], policy_name="p", seed=0)
    assert store.list("stabilities") == []
