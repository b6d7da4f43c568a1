"""Tests of scripts.inferer: windows, blending, channels. The networks are stand-ins whose outputs are known.

Pre- and postprocessing of whole scans is tested in test_transforms.py and test_workflows.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from scripts.inferer import CascadeInferer, SegmentationInferer
from scripts.networks.tissnet import Cascade, TISSNet
from scripts.networks.unet2d5 import UNet2d5

TINY = (4, 4, 8, 8, 8)
WINDOW = (16, 16, 4)
ATOL = 1e-5
BFLOAT16_ATOL = 0.1  # of probabilities, after some twenty layers
SYMMETRY_ATOL = 0.05  # a window of even size has no voxel in its middle
LOG3 = math.log(3)


def volume(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Constant(nn.Module):
    """A TISSNet of constant heads, also when called as a plain network."""

    def generate(self, x_s: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(x_s[:, :1])
        return 0.5 * one, -LOG3 * one

    def segment(self, x_s: Tensor, x_t_syn: Tensor, y_c_logits: Tensor, error: bool = True) -> Tensor:
        one = torch.ones_like(x_s[:, :1])
        return torch.cat([LOG3 * one, 0 * one], dim=1)

    def forward(self, x_s: Tensor) -> Tensor:
        return LOG3 * torch.ones_like(x_s[:, :1])


class Voxelwise(nn.Module):
    """Every output voxel depends on its own input voxel only, so that blending must not change anything."""

    def generate(self, x_s: Tensor) -> tuple[Tensor, Tensor]:
        return -x_s[:, :1], 2 * x_s[:, :1]

    def segment(self, x_s: Tensor, x_t_syn: Tensor, y_c_logits: Tensor, error: bool = True) -> Tensor:
        return torch.cat([3 * x_s[:, :1], 4 * x_s[:, :1]], dim=1)


class Sizes(nn.Module):
    """Keeps the sizes of the batches it was given, returns logits that say where a window is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x[:, :1]


# blending


@pytest.mark.parametrize("size", [(40, 23, 9), (16, 16, 4), (5, 7, 2), (16, 50, 1)])
def test_a_constant_network_blends_to_a_constant(size: tuple[int, ...]) -> None:
    out = SegmentationInferer(WINDOW)(volume(1, 2, *size), Constant())
    assert out.shape == (1, 1, *size)
    assert torch.allclose(out, torch.tensor(0.75), atol=ATOL)


@pytest.mark.parametrize("size", [(40, 23, 9), (5, 7, 2)])
def test_channels_are_in_the_documented_order(size: tuple[int, ...]) -> None:
    out = CascadeInferer(WINDOW)(volume(2, 1, *size), Constant())
    assert out.shape == (2, 4, *size) and out.dtype == torch.float32
    expected = torch.tensor([0.75, 0.5, 0.25, 0.5]).reshape(1, 4, 1, 1, 1)  # y_f, x_t_syn, y_c, y_e
    assert torch.allclose(out, expected.expand_as(out), atol=ATOL)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_a_voxelwise_network_is_blended_exactly(overlap: float) -> None:
    x_s = volume(1, 1, 30, 21, 7)
    out = CascadeInferer(WINDOW, overlap=overlap, sw_batch_size=3)(x_s, Voxelwise())
    expected = torch.cat([torch.sigmoid(3 * x_s), -x_s, torch.sigmoid(2 * x_s), torch.sigmoid(4 * x_s)], dim=1)
    assert torch.allclose(out, expected, atol=ATOL)


def test_probabilities_are_blended_with_gaussian_weights() -> None:
    """Two windows that disagree: near a window's center its own value counts more than the other's."""

    class First(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return torch.full_like(x, 60.0 if self.calls == 1 else -60.0)  # probabilities 1 and 0

    line = SegmentationInferer(WINDOW)(torch.zeros(1, 1, 24, 16, 4), First())[0, 0, :, 8, 2]
    assert torch.allclose(line[:8], torch.ones(8), atol=ATOL) and torch.allclose(line[16:], torch.zeros(8), atol=ATOL)
    overlap = line[8:16]
    assert (overlap.diff() < 0).all()
    assert torch.allclose(overlap + overlap.flip(0), torch.ones(8), atol=SYMMETRY_ATOL)  # symmetric about the middle
    assert overlap[0] > 0.9  # a mean of logits or equal weights would give 0.5


# windows


@pytest.mark.parametrize("channels", [1, 2])
def test_a_volume_of_the_windows_size_is_one_forward_pass(channels: int) -> None:
    torch.manual_seed(0)
    network = TISSNet(channels, features=TINY).eval()
    x_s = volume(1, channels, 32, 32, 8)
    with torch.no_grad():
        outputs = Cascade(network)(x_s)
        out = CascadeInferer((32, 32, 8))(x_s, network)
        assert torch.allclose(out[:, :1], torch.sigmoid(network(x_s)), atol=ATOL)
    names = ("y_f_logits", None, "y_c_logits", "y_e_logits")
    for i, name in enumerate(names):
        expected = outputs["x_t_syn"] if name is None else torch.sigmoid(outputs[name])
        assert torch.allclose(out[:, i : i + 1], expected, atol=ATOL), name


def test_every_window_has_the_windows_size_and_padding_is_background() -> None:
    network = Sizes()
    SegmentationInferer(WINDOW, sw_batch_size=2)(torch.zeros(1, 1, 10, 40, 3), network)
    assert len(network.seen) > 1
    for x in network.seen:
        assert x.shape[2:] == WINDOW and len(x) <= 2
        assert set(x.unique().tolist()) == {-1.0, 0.0}  # air, never 0, around the volume
        assert int((x[0, 0] == 0).sum()) == 10 * 16 * 3


def test_a_small_volume_equals_the_padded_one() -> None:
    torch.manual_seed(0)
    network = UNet2d5(1, 1, features=TINY).eval()
    small = volume(1, 1, 20, 32, 4)
    padded = torch.full((1, 1, 32, 32, 8), -1.0)
    padded[:, :, 6:26, :, 2:6] = small  # MONAI pads both sides
    with torch.no_grad():
        out = SegmentationInferer((32, 32, 8))(small, network)
        expected = torch.sigmoid(network(padded))[:, :, 6:26, :, 2:6]
    assert torch.allclose(out, expected, atol=ATOL)


def test_bfloat16_windows_give_float32() -> None:
    torch.manual_seed(0)
    network = TISSNet(1, features=TINY).eval()
    x_s = volume(1, 1, 32, 32, 4)
    with torch.no_grad():
        full = CascadeInferer((32, 32, 4))(x_s, network)
        half = CascadeInferer((32, 32, 4), amp=True)(x_s, network)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.allclose(half, full, atol=BFLOAT16_ATOL)


# the perceptor


def test_the_perceptor_sees_the_synthetic_image() -> None:
    class Perceptor(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1] == 1 and not self.training
            return 5 * x

    x_s = volume(1, 2, 30, 21, 7)
    out = CascadeInferer(WINDOW, perceptor=Perceptor().train())(x_s, Voxelwise())
    assert out.shape == (1, 5, 30, 21, 7)
    assert torch.allclose(out[:, 4:], torch.sigmoid(-5 * x_s[:, :1]), atol=ATOL)
    assert torch.equal(out[:, :4], CascadeInferer(WINDOW)(x_s, Voxelwise()))


# input checks


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("inferer", [SegmentationInferer, CascadeInferer])
def test_input_that_is_not_finite_is_refused(value: float, inferer: type[SegmentationInferer]) -> None:
    x_s = volume(1, 1, *WINDOW)
    x_s[0, 0, 3, 3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        inferer(WINDOW)(x_s, Constant())


def test_roi_size_may_be_a_list() -> None:
    assert tuple(SegmentationInferer([16, 16, 4]).roi_size) == WINDOW
