"""Edits: what each mode does to a row, and that rows do not touch each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from interp.policies.taps import Edit, Mode, RecordingTap, RowEdits

WIDTH = 6
RNG = np.random.default_rng(0)
WRITE = RNG.standard_normal(WIDTH).astype(np.float32)
READ = RNG.standard_normal(WIDTH).astype(np.float32)


def edit(mode: Mode, dose: float, *, scale: float = 2.0, threshold: float = 0.1) -> Edit:
    return Edit(
        site="lstm.h",
        mode=mode,
        dose=dose,
        scale=scale,
        write_D=WRITE,
        read_D=READ,
        read_bias=0.3,
        threshold=threshold,
    )


def apply(x_RD: torch.Tensor, edits: dict[int, Edit]) -> torch.Tensor:
    rows = RowEdits(len(x_RD), {"lstm.h": WIDTH})
    for row, one in edits.items():
        rows.set_row(row, (one,))
    return RecordingTap((), rows.tile(0, len(x_RD)))("lstm.h", x_RD)


def latent(x_RD: torch.Tensor, threshold: float = 0.1) -> torch.Tensor:
    pre = x_RD @ torch.from_numpy(READ) + 0.3
    return torch.where(pre > threshold, pre, 0.0)


@pytest.mark.parametrize("mode", ["add", "clamp", "ablate"])
def test_dose_zero_is_no_edit_to_the_last_bit(mode: Mode) -> None:
    x_RD = torch.randn(8, WIDTH)
    assert torch.equal(apply(x_RD, {row: edit(mode, 0.0) for row in range(8)}), x_RD)


@given(seed=st.integers(0, 1000), dose=st.floats(0.25, 4))
@settings(deadline=None, max_examples=30)
def test_each_mode_moves_the_latents_contribution_to_where_it_says(seed: int, dose: float) -> None:
    x_RD = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed))
    write = torch.from_numpy(WRITE)
    f = latent(x_RD)
    share = min(dose, 1.0)
    edited = apply(x_RD, {0: edit("add", dose), 1: edit("clamp", dose), 2: edit("ablate", share)})
    wanted = torch.stack([dose * 2.0 + 0 * f[0], dose * 2.0 - f[1], -share * f[2]])
    torch.testing.assert_close(edited, x_RD + wanted[:, None] * write, rtol=1e-5, atol=1e-5)


def test_a_rows_edit_leaves_the_other_rows_alone() -> None:
    x_RD = torch.randn(5, WIDTH)
    edited = apply(x_RD, {2: edit("add", 3.0)})
    untouched = [0, 1, 3, 4]
    assert torch.equal(edited[untouched], x_RD[untouched])
    assert not torch.equal(edited[2], x_RD[2])


def test_setting_a_row_again_forgets_its_old_edit() -> None:
    rows = RowEdits(1, {"lstm.h": WIDTH})
    rows.set_row(0, (edit("clamp", 2.0),))
    rows.set_row(0, ())
    x_RD = torch.randn(1, WIDTH)
    assert torch.equal(RecordingTap((), rows.tile(0, 1))("lstm.h", x_RD), x_RD)


def test_what_is_recorded_includes_the_edit() -> None:
    x_RD = torch.randn(1, WIDTH)
    rows = RowEdits(1, {"lstm.h": WIDTH})
    rows.set_row(0, (edit("add", 1.0),))
    tap = RecordingTap(("lstm.h",), rows.tile(0, 1))
    assert torch.equal(tap("lstm.h", x_RD), tap.activations["lstm.h"])


def test_an_ablation_beyond_the_whole_latent_is_refused() -> None:
    with pytest.raises(ValueError, match="share of the latent"):
        edit("ablate", 1.5)
