"""Tests of scripts.networks.discriminator: field, shape and size of the PatchGAN. Its losses: test_losses.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.networks.discriminator import KERNEL, RECEPTIVE_FIELD, STRIDES, PatchDiscriminator3d

MIN_SIZE = (24, 24, 6)


def discriminator(in_channels: int = 2, features: int = 2, **kwargs: object) -> PatchDiscriminator3d:
    torch.manual_seed(0)
    return PatchDiscriminator3d(in_channels, features=features, **kwargs)  # type: ignore[arg-type]


def test_field_by_formula() -> None:
    field, jump = 1, 1
    for stride in STRIDES:
        field, jump = field + (KERNEL - 1) * jump, jump * stride
    assert (field, field, 1 + (KERNEL - 1) * len(STRIDES)) == RECEPTIVE_FIELD == (70, 70, 16)


def test_field_of_the_built_layers() -> None:
    """The same sum over the convolutions that are really there, per axis."""
    convolutions = [m for m in discriminator().modules() if isinstance(m, nn.Conv3d)]
    assert len(convolutions) == 5
    for axis, expected in enumerate((70, 70, 16)):
        field, jump = 1, 1
        for m in convolutions:
            field, jump = field + (m.kernel_size[axis] - 1) * jump, jump * m.stride[axis]
        assert field == expected


def test_field_by_gradient() -> None:
    """The input voxels that one logit's gradient reaches fill a box of exactly 70 x 70 x 16."""
    network = discriminator(features=1, norm="batch").eval()  # batch norm in eval mode mixes no voxels
    x = torch.rand(1, 2, 110, 110, 26, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = network(x)
    assert out.shape == (1, 1, 11, 11, 21)
    out[0, 0, 5, 5, 10].backward()
    assert x.grad is not None
    where = torch.nonzero(x.grad[0].abs().amax(0))
    assert (where.amax(0) - where.amin(0) + 1).tolist() == [70, 70, 16]


def test_field_of_neighbors_is_shifted_by_the_strides() -> None:
    network = discriminator(features=1, norm="batch").eval()
    x = torch.rand(1, 2, 110, 110, 26, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = network(x)
    starts = []
    for index in ((4, 5, 9), (5, 5, 10)):
        (gradient,) = torch.autograd.grad(out[(0, 0, *index)], x, retain_graph=True)
        starts.append(torch.nonzero(gradient[0].abs().amax(0)).amin(0))
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
