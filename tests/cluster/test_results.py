"""Tables in the store: asked for once, found afterwards, refused when damaged."""

import pyarrow as pa
import pytest

from cluster.backends import Corrupt
from cluster.results import Question, read_table
from cluster.store import Store

QUESTION = Question("concepts", {"seed": 0}, {"recording": "r-1"})
TABLE = pa.table({"latent": [1, 2], "auroc": [0.5, 0.75]})


def test_an_answer_is_found_by_the_same_question_only(store: Store) -> None:
    assert QUESTION.find(store) is None
    QUESTION.answer(store, TABLE)
    found = QUESTION.find(store)
    assert found is not None
    assert found.equals(TABLE)
    for other in (
        Question("effects", {"seed": 0}, {"recording": "r-1"}),
        Question("concepts", {"seed": 1}, {"recording": "r-1"}),
        Question("concepts", {"seed": 0}, {"recording": "r-2"}),
    ):
        assert other.id != QUESTION.id
        assert other.find(store) is None


def test_answering_twice_changes_nothing(store: Store) -> None:
    QUESTION.answer(store, TABLE)
    before = {key: store.get(key) for key in store.list()}
    QUESTION.answer(store, TABLE)
    assert {key: store.get(key) for key in store.list()} == before


def test_a_damaged_table_is_refused_by_name(store: Store) -> None:
    QUESTION.answer(store, TABLE)
    path = store.local_path(QUESTION.key)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Corrupt, match=QUESTION.key):
        read_table(store, "concepts", QUESTION.id)
