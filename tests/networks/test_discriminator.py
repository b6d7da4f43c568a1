"""Tests of scripts.networks.discriminator: field, shape and size of the PatchGAN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.networks.discriminator import PatchDiscriminator3d

MIN_SIZE = (24, 24, 6)


def discriminator(in_channels: int = 2, features: int = 2, **kwargs: object) -> PatchDiscriminator3d:
    torch.manual_seed(0)
    return PatchDiscriminator3d(in_channels, features=features, **kwargs)  # type: ignore[arg-type]


def test_field_by_gradient() -> None:
    """The voxels that a logit's gradient reaches fill a box of exactly 70 x 70 x 16, a neighbor's one a stride on."""
    network = discriminator(features=1, norm="batch").eval()  # batch norm in eval mode mixes no voxels
    x = torch.rand(1, 2, 110, 110, 26, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = network(x)
    assert out.shape == (1, 1, 11, 11, 21)
    starts = []
    for index in ((4, 5, 9), (5, 5, 10)):
        (gradient,) = torch.autograd.grad(out[(0, 0, *index)], x, retain_graph=True)
        where = torch.nonzero(gradient[0].abs().amax(0))
        assert tuple((where.amax(0) - where.amin(0) + 1).tolist()) == (70, 70, 16)
        starts.append(where.amin(0))
    assert (starts[1] - starts[0]).tolist() == [8, 0, 1]


@pytest.mark.parametrize(
    ("size", "expected"),
    [(MIN_SIZE, (1, 1, 1)), ((128, 128, 16), (14, 14, 11)), ((31, 40, 7), (1, 3, 2))],
)
def test_shapes(size: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert discriminator(4, 1)(torch.zeros(2, 4, *size)).shape == (2, 1, *expected)


@pytest.mark.parametrize("size", [(23, 24, 6), (24, 23, 6), (24, 24, 5)])
def test_too_small_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="too small.*24 x 24 x 6.*patch_size"):
        discriminator()(torch.zeros(1, 2, *size))


def test_size_by_hand() -> None:
    with torch.device("meta"):
        network = PatchDiscriminator3d(2)
    widths = (2, 64, 128, 256, 512)
    expected = sum(a * b * 64 + b for a, b in zip(widths, widths[1:], strict=False))  # kernels of 4^3 and biases
    expected += 2 * (128 + 256 + 512) + 512 * 64 + 1  # three affine norms; the last layer
    assert sum(p.numel() for p in network.parameters()) == expected == 11_053_761


def test_norm_and_activation_on_the_right_layers() -> None:
    kinds = [[type(m).__name__ for m in layer] for layer in discriminator().layers]
    middle = ["Conv3d", "ADN"]
    assert kinds == [middle, middle, middle, middle, ["Conv3d"]]
    norms = [any(isinstance(m, nn.InstanceNorm3d) for m in layer.modules()) for layer in discriminator().layers]
    assert norms == [False, True, True, True, False]
    slopes = [m.negative_slope for m in discriminator().modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 4


def test_logits_are_raw() -> None:
    network = discriminator()
    last = network.layers[-1].conv
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, -7.0)
    assert network(torch.zeros(1, 2, *MIN_SIZE)).item() == -7.0
