import threading

import pytest

from cluster.fanout import in_threads


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("num_items", [0, 1, 7, 1000])
def test_answers_come_in_the_order_of_the_items(num_items, large):
    answers = in_threads(lambda item: item * item, range(num_items), threads=3, large=large)
    assert list(answers) == [item * item for item in range(num_items)]


def test_requests_run_at_the_same_time():
    together = threading.Barrier(4, timeout=30)
    assert len(list(in_threads(lambda _: together.wait(), range(4), threads=4))) == 4


def test_first_error_ends_it_and_what_was_not_begun_is_left():
    asked = []

    def ask(item):
        asked.append(item)
        if item == 3:
            raise ValueError("item 3")
        return item

    with pytest.raises(ValueError, match="item 3"):
        list(in_threads(ask, range(1000), threads=2, large=True))
    assert len(asked) < 20


def test_large_answers_do_not_pile_up():
    asked = []
    answers = in_threads(lambda item: asked.append(item) or item, range(100), threads=2, large=True)
    next(answers)
    assert len(asked) <= 5
    answers.close()
