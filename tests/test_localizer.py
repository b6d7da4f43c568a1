"""Tests of scripts.networks.localizer: grids, borders, finding and loading weights. Regions: test_inferer.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.networks.localizer import Localizer, find_localizer, load_localizer

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


def test_it_is_found_beside_the_weights_it_belongs_to(tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    assert find_localizer(str(weights)) is None
    (tmp_path / "localizer").mkdir()
    path = tmp_path / "localizer" / "localizer.pt"
    trained = Localizer(1, features=TINY)
    torch.save(trained.state_dict(), path)
    assert find_localizer(str(weights)) == str(path)
    loaded = load_localizer(Localizer(1, features=TINY), path=str(path))
    assert loaded is not None and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trained.parameters(), strict=True))


def test_without_path_or_wish_there_is_none_but_a_missing_file_is_an_error(tmp_path: Path) -> None:
    network = Localizer(1, features=TINY)
    assert load_localizer(network, path=None) is None
    assert load_localizer(network, path=str(tmp_path / "no.pt"), localize=False) is None
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_localizer(network, path=str(tmp_path / "no.pt"))
