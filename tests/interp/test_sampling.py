"""A sample is a function of the rows' keys, keeps rare events, and estimates what was not kept."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from interp.sampling import Reservoir, mean, ranks, total

NUM_ROWS = 4000
RATES = np.array([0.5, 0.05, 0.002])


def make_labels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((NUM_ROWS, 3)) < RATES


def make_ranks(salt: str) -> np.ndarray:
    row = np.arange(NUM_ROWS)
    return ranks(row // 1000, row % 4, row % 1000 // 4, salt=salt)


def make_table(num_rows: int = NUM_ROWS) -> pa.Table:
    row = np.arange(num_rows)
    labels = make_labels()[:num_rows]
    return pa.table(
        {
            "env_seed": row // 1000,
            "agent": (row % 4).astype(np.int16),
            "t": (row % 1000 // 4).astype(np.int32),
            "label.often": labels[:, 0],
            "label.rare": labels[:, 2],
            "site.h": pa.array([b"ab"] * num_rows, pa.binary(2)),
        }
    )


RESERVOIR = Reservoir(rows=300, label_share=0.5, salt="s")


def test_ranks_are_uniform_and_differ_by_every_part_of_the_key():
    rank = make_ranks("a")
    assert len(np.unique(rank)) == NUM_ROWS
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand times
    assert np.abs(np.sort(rank) - np.arange(NUM_ROWS) / NUM_ROWS).max() < 1.95 / np.sqrt(NUM_ROWS)
    assert abs(np.corrcoef(rank[:-1], rank[1:])[0, 1]) < 4 / np.sqrt(NUM_ROWS)
    assert abs(np.corrcoef(rank, make_ranks("b"))[0, 1]) < 4 / np.sqrt(NUM_ROWS)


def plain_rank(salt: str, *key: int) -> float:
    """SplitMix64 in whole numbers of Python."""
    mask = 2**64 - 1
    state = int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=8).digest(), "big")
    for part in key:
        state = ((state ^ part) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return ((state >> 11) + 0.5) / 2**53


def test_ranks_never_change():
    keys = [(10_000, 0, 0), (2**31 - 1, 3, 255)]
    rank = ranks(*np.array(keys).T, salt="sample-0")
    assert rank.tolist() == [plain_rank("sample-0", *key) for key in keys]
    assert rank.tolist() == [0.22710398502403512, 0.6364674846089191]


@settings(max_examples=40)
@given(
    rows=st.integers(10, 5000),
    share=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.integers(0, 1000),
)
def test_sample_is_within_its_limit_and_keeps_the_quota_of_rare_labels(rows, share, seed):
    labels = make_labels(seed)
    reservoir = Reservoir(rows=rows, label_share=share, salt=f"salt-{seed}")
    rank = make_ranks(reservoir.salt)
    kept = reservoir.keep(rank, labels)
    assert 0 < len(kept.row_K) <= rows
    assert (np.diff(kept.row_K) > 0).all()
    assert ((kept.inclusion_K > 0) & (kept.inclusion_K <= 1)).all()
    quota = reservoir.quota(3)
    for label, count in enumerate(labels.sum(0)):
        if count * (rows - 3 * quota) < quota * NUM_ROWS:
            assert labels[kept.row_K, label].sum() >= min(count, quota)
    if rows >= NUM_ROWS:
        assert len(kept.row_K) == NUM_ROWS
        assert (kept.inclusion_K == 1).all()


def test_rare_events_are_kept_whole_where_the_quota_suffices():
    labels = make_labels()
    rank = make_ranks("s")
    num_rare = labels[:, 2].sum()
    kept = RESERVOIR.keep(rank, labels)
    assert labels[kept.row_K, 2].sum() == num_rare
    assert (kept.inclusion_K[labels[kept.row_K, 2]] == 1).all()
    even = Reservoir(rows=300, label_share=0.0, salt="s").keep(rank, labels)
    assert labels[even.row_K, 2].sum() < num_rare / 2


def test_totals_over_many_salts_are_those_of_all_rows():
    labels = make_labels()
    labels[:, 1] |= labels[:, 2]  # one label implies another
    value = np.concatenate(
        [labels, np.random.default_rng(1).exponential(size=(NUM_ROWS, 1))], axis=1
    )
    truth = value.sum(0)
    estimates = np.empty((600, 4))
    counts = np.empty(600)
    for draw in range(600):
        kept = RESERVOIR.keep(make_ranks(f"salt-{draw}"), labels)
        estimates[draw] = total(value[kept.row_K], kept.inclusion_K)
        counts[draw] = total(np.ones(len(kept.row_K)), kept.inclusion_K)
    error = (estimates.mean(0) - truth)[[0, 1, 3]]
    standard_error = (estimates.std(0, ddof=1) / np.sqrt(600))[[0, 1, 3]]
    assert (np.abs(error) < 4 * standard_error).all(), error / standard_error
    assert (standard_error < 0.01 * truth[[0, 1, 3]]).all()
    np.testing.assert_allclose(estimates[:, 2], truth[2])  # all of them are kept
    assert abs(counts.mean() - NUM_ROWS) < 4 * counts.std(ddof=1) / np.sqrt(600)


def test_unweighted_rates_of_a_sample_are_wrong_and_weighted_ones_right():
    labels = make_labels()
    kept = RESERVOIR.keep(make_ranks("s"), labels)
    rate = labels.mean(0)
    assert labels[kept.row_K, 2].mean() > 5 * rate[2]
    np.testing.assert_allclose(mean(labels[kept.row_K], kept.inclusion_K), rate, rtol=0.25)


def test_order_of_the_rows_does_not_matter():
    table = make_table()
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    sample, other = (
        RESERVOIR.sample(one).sort_by(
            [("env_seed", "ascending"), ("t", "ascending"), ("agent", "ascending")]
        )
        for one in (table, shuffled)
    )
    assert sample.equals(other)


def test_table_keeps_its_order_its_columns_and_gains_the_probability():
    table = make_table()
    sample = RESERVOIR.sample(table)
    assert sample.column_names == [*table.column_names, "inclusion"]
    assert not sample.schema.field("inclusion").nullable
    key = sample.column("env_seed").to_numpy() * 1000 + sample.column("t").to_numpy() * 4
    assert (np.diff(key + sample.column("agent").to_numpy()) > 0).all()
    few = make_table(100)
    whole = RESERVOIR.sample(few)
    assert whole.drop_columns(["inclusion"]).equals(few)
    assert set(whole.column("inclusion").to_pylist()) == {1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "a sample of 0 rows"),
        ({"label_share": 1.0}, "label_share 1.0: from 0 to below 1"),
    ],
)
def test_impossible_samples_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Reservoir(**{"rows": 10, "label_share": 0.5, "salt": "s", **change})


def test_share_of_less_than_a_row_for_a_label_is_refused():
    with pytest.raises(ValueError, match=r"leave no row for each of 17 labels; keep more rows"):
        Reservoir(rows=33, label_share=0.5, salt="s").quota(17)
    assert Reservoir(rows=34, label_share=0.5, salt="s").quota(17) == 1
    assert Reservoir(rows=1, label_share=0.0, salt="s").quota(17) == 0
