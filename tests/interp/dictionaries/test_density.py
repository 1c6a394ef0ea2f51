import pytest
import torch

from interp.dictionaries.density import dense_share, density_histogram


def test_every_latent_is_in_the_decade_of_its_density():
    density_F = torch.tensor([0.0, 0.0, 5e-6, 5e-4, 5e-3, 0.05, 0.1, 0.2, 1.0, 0.3])
    histogram = density_histogram(density_F)
    assert histogram.dead_share == pytest.approx(0.2)
    assert histogram.share_H.tolist() == pytest.approx([0.1, 0, 0.1, 0.1, 0.1, 0.4])
    assert histogram.share_H.sum() + histogram.dead_share == pytest.approx(1)


def test_dense_is_above_the_limit():
    density_F = torch.tensor([0.0, 0.05, 0.2, 0.9])
    assert dense_share(density_F) == 0.5
    assert dense_share(density_F, above=0.5) == 0.25
    with pytest.raises(ValueError, match=r"above is 1\.5"):
        dense_share(density_F, above=1.5)


def test_what_is_no_share_is_refused():
    with pytest.raises(ValueError, match="wanted shares of rows"):
        density_histogram(torch.tensor([0.5, 3.0]))
    with pytest.raises(ValueError, match="wanted shares of rows"):
        density_histogram(torch.tensor([0.5, float("nan")]))
