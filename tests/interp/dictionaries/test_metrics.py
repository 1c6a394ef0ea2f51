import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from interp.dictionaries.metrics import DensitySummary, explained_variance, fvu, l0, measure


class Identity:
    """Latents are the coordinates themselves, of which the positive ones count as active."""

    def encode(self, x_BD):
        return x_BD

    def decode(self, latents_BF):
        return latents_BF


class Constant:
    """Ignores its input; one of three latents is always on."""

    def __init__(self, recon_D):
        self.recon_D = recon_D

    def encode(self, x_BD):
        return torch.tensor([1.0, 0.0, 0.0]).repeat(x_BD.shape[0], 1)

    def decode(self, latents_BF):
        return self.recon_D.repeat(latents_BF.shape[0], 1)


seeds = st.integers(0, 2**32 - 1)


def rows(seed, *, num_rows=50, width=7):
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


@given(seed=seeds)
def test_fvu_of_exact_reconstruction_is_zero(seed):
    x_BD = rows(seed)
    assert fvu(x_BD, x_BD) == 0


@given(seed=seeds)
def test_fvu_of_mean_is_one(seed):
    x_BD = rows(seed).double()
    assert fvu(x_BD, x_BD.mean(0).expand_as(x_BD)) == pytest.approx(1, rel=1e-12)


@given(seed=seeds, scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_fvu_is_invariant_to_scale_and_shift(seed, scale, shift):
    x_BD = rows(seed).double()
    recon_BD = x_BD + 0.3 * rows(seed + 1)
    assert fvu(scale * x_BD + shift, scale * recon_BD + shift) == pytest.approx(
        fvu(x_BD, recon_BD), rel=1e-6
    )


@given(seed=seeds)
def test_fvu_is_invariant_to_order_of_rows(seed):
    x_BD, recon_BD = rows(seed), rows(seed + 1)
    order = torch.randperm(x_BD.shape[0], generator=torch.Generator().manual_seed(seed))
    assert fvu(x_BD[order], recon_BD[order]) == pytest.approx(fvu(x_BD, recon_BD), rel=1e-12)


def test_fvu_refuses_rows_without_variance():
    x_BD = torch.ones(4, 3)
    with pytest.raises(ValueError, match="all 4 rows are equal"):
        fvu(x_BD, x_BD)


def test_l0_counts_positive_latents_per_row():
    assert l0(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.5]])) == 1.5


@given(seed=seeds, offset=st.sampled_from([0.0, 300.0]))
def test_streamed_metrics_equal_direct_ones(seed, offset):
    x_BD = rows(seed, num_rows=9000) + offset
    codec = Constant(recon_D=x_BD[0])
    measured = measure(codec, x_BD.numpy())
    assert measured.fvu == pytest.approx(fvu(x_BD, x_BD[:1].expand_as(x_BD)), rel=1e-5)
    assert measured.l0 == 1
    assert measured.dead_fraction == pytest.approx(2 / 3)
    assert measured.density_F.tolist() == [1, 0, 0]


def test_measure_reads_float16_memory_map(tmp_path):
    np.save(tmp_path / "rows.npy", rows(0, num_rows=5000).half().numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    measured = measure(Identity(), mapped)
    assert measured.fvu == 0
    assert measured.l0 == pytest.approx(3.5, abs=0.1)


def test_measure_refuses_empty_split():
    with pytest.raises(ValueError, match="held-out split is empty"):
        measure(Identity(), np.empty((0, 3), dtype=np.float32))


def test_density_summary_leaves_out_dead_latents():
    summary = DensitySummary.of(torch.tensor([0.0, 0.0, 0.1, 0.2, 0.3]))
    assert summary.p50 == pytest.approx(0.2)
    assert summary.max == pytest.approx(0.3)
    assert DensitySummary.of(torch.zeros(3)) == DensitySummary(p10=0.0, p50=0.0, p90=0.0, max=0.0)


def test_explained_variance_is_one_exact_zero_at_the_mean_and_below_that_worse():
    x_BD = rows(0)
    mean_BD = x_BD.mean(0).expand_as(x_BD)
    assert explained_variance(x_BD, x_BD) == 1
    assert explained_variance(x_BD, mean_BD) == pytest.approx(0, abs=1e-6)
    assert explained_variance(x_BD, 2 * mean_BD - x_BD) == pytest.approx(-3, abs=1e-5)
    assert measure(Identity(), x_BD.numpy()).explained_variance == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_are_named_and_refused(bad):
    x_ND = rows(0, num_rows=5000).numpy()
    x_ND[4500, 2] = bad
    with pytest.raises(ValueError, match=r"1 of .* not finite \(row 4500\)"):
        measure(Identity(), x_ND)
    with pytest.raises(ValueError, match=r"not finite \(row 4500\)"):
        measure(Identity(), rows(0, num_rows=5000).numpy(), x_ND)
    with pytest.raises(ValueError, match=r"1 of 5000 rows .* not finite"):
        fvu(torch.from_numpy(x_ND), torch.from_numpy(x_ND))
