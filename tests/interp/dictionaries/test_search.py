import importlib.util

import pytest

from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.config import SaeConfig
from interp.dictionaries.gated import Gated
from interp.dictionaries.search import Range, Space, Tpe
from interp.dictionaries.topk import Counting, TopK

BASE = SaeConfig(family=BatchTopK(k=4), d_sae=64, samples=5000)
needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="needs the extra 'search'"
)


def a_space(content):
    return Space(content, base=BASE, site="lstm.h", seed=3)


def k_of(candidate):
    family = candidate.config.family
    assert isinstance(family, Counting)
    return family.k


def test_grid_has_every_combination_once_in_order():
    found = a_space({"family.k": [2, 4], "d_sae": [32, 64], "site": ["lstm.h", "lstm.c"]}).grid()
    assert [(k_of(c), c.config.d_sae, c.site, c.seed) for c in found] == [
        (k, d_sae, site, 3) for k in (2, 4) for d_sae in (32, 64) for site in ("lstm.h", "lstm.c")
    ]
    assert all(candidate.config.samples == 5000 for candidate in found)


def test_fields_that_a_family_lacks_do_not_multiply_its_trials():
    found = a_space(
        {"family.name": ["batch_topk", "gated"], "family.k": [2, 4], "family.l1": [1.0]}
    )
    families = [candidate.config.family for candidate in found.grid()]
    assert families == [BatchTopK(k=2), BatchTopK(k=4), Gated(l1=1.0)]


def test_settings_of_the_base_family_are_kept_only_for_it():
    base = SaeConfig(family=BatchTopK(k=4, wide=2.0))
    space = Space({"family.name": ["batch_topk", "topk"]}, base=base, site="x", seed=0)
    first, second = (candidate.config.family for candidate in space.grid())
    assert (first, second) == (BatchTopK(k=4, wide=2.0), TopK())


def test_random_search_is_a_function_of_its_seed_and_stays_in_range():
    space = a_space(
        {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "family.k": {"low": 2, "high": 9}}
    )
    first = space.random(200, seed=1)
    assert first == space.random(200, seed=1)
    assert first[:50] == space.random(50, seed=1)
    assert first != space.random(200, seed=2)
    rates = sorted(candidate.config.lr for candidate in first)
    assert 1e-4 <= rates[0] < 2e-4
    assert 5e-3 < rates[-1] <= 1e-2
    assert 5e-4 < rates[100] < 2e-3  # half of them below the geometric mean
    assert {k_of(candidate) for candidate in first} == set(range(2, 10))


def test_range_reaches_its_ends():
    assert (Range(low=2, high=9).at(0.0), Range(low=2, high=9).at(1.0)) == (2, 9)
    assert Range(low=1e-3, high=1e-1, log=True).at(0.5) == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"girth.k": [1]}, r"no field \['girth.k'\]; there are"),
        ({"family.k": []}, r"family.k has no values"),
        ({"lr": {"low": 1.0}}, r"lr is \{'low': 1.0\}; a range has low, high"),
        ({"lr": {"low": 1.0, "high": 0.5}}, r"lr: range from 1.0 to 0.5: wanted low below high"),
        ({"lr": {"low": 0.0, "high": 1.0, "log": True}}, r"above 0 with log"),
        (
            {"lr": {"low": 1.0, "high": float("inf")}},
            r"lr: range from 1.0 to inf: wanted low below high, both finite",
        ),
        (
            {"family.l1": [3.0]},
            r"names family.l1, which batch_topk has no use for; .* try gated, relu_l1",
        ),
        (
            {"family.name": ["topk", "matryoshka"], "family.l1": [3.0]},
            r"names family.l1, which topk and matryoshka have no use for",
        ),
        ({"family.name": ["ica"]}, r"family.name is \['ica'\]; there are"),
    ],
)
def test_space_that_means_nothing_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        a_space(content)


def test_trial_that_contradicts_itself_is_named():
    with pytest.raises(
        ValueError, match=r"trial \{'family.k': 99\}: family.k is 99 but d_sae is 64"
    ):
        a_space({"family.k": [99]}).grid()
    with pytest.raises(ValueError, match=r"lr is a range, of which there is no grid"):
        a_space({"lr": {"low": 1e-3, "high": 1e-2}}).grid()


@needs_optuna
def test_tpe_asks_the_same_again_and_finds_what_is_good():
    def run():
        space = a_space({"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "family.k": [2, 4, 8]})
        search, asked = Tpe(space, seed=0), []
        for _ in range(8):
            candidates = search.ask(4)
            asked += candidates
            search.tell([(abs(c.config.lr - 3e-3), float(k_of(c))) for c in candidates])
        return asked

    first = run()
    assert first == run()
    early, late = ([abs(c.config.lr - 3e-3) for c in part] for part in (first[:8], first[-12:]))
    assert sum(late) / len(late) < sum(early) / len(early)


@pytest.mark.skipif(importlib.util.find_spec("optuna") is not None, reason="Optuna is installed")
def test_without_optuna_the_extra_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sparsight\[search\]'"):
        Tpe(a_space({"lr": [1e-3]}), seed=0)
