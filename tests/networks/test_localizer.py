"""Tests of scripts.networks.localizer: grids and borders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scripts.networks.localizer import Localizer

TINY = (4, 4, 8, 8, 8)


class Identity(nn.Module):
    """In place of the U-Net; keeps what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x


def test_it_averages_blocks_and_interpolates_back() -> None:
    localizer = Localizer(1, pooling=(2, 2, 1), features=TINY)
    localizer.unet = Identity()  # type: ignore[assignment]
    x = torch.full((1, 1, 5, 4, 3), 1.0)
    x[:, :, 0, 0] = -1
    out = localizer(x)
    assert out.shape == x.shape
    seen = localizer.unet.seen
    assert seen.shape == (1, 1, 3, 2, 3)
    assert seen[0, 0, 0, 0].tolist() == [0.5] * 3  # three of four voxels are 1
    assert seen[0, 0, 2, 1].tolist() == [0.0] * 3  # behind the border: air, -1
    assert out[0, 0, 0, 0, 0] == pytest.approx(0.5) and out[0, 0, 2, 3, 1] == pytest.approx(1)


def test_any_size_works_and_gradients_flow() -> None:
    torch.manual_seed(0)
    localizer = Localizer(2, features=TINY, dropout=[0] * 5)
    out = localizer(torch.rand(1, 2, 70, 66, 5))
    assert out.shape == (1, 1, 70, 66, 5)
    out.sum().backward()
    assert all(p.grad is not None for p in localizer.parameters())


@pytest.mark.parametrize("pooling", [(4, 4), (0, 4, 1)])
def test_wrong_pooling_is_refused(pooling: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected three whole numbers"):
        Localizer(1, pooling=pooling, features=TINY)
