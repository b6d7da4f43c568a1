"""Tests of scripts.networks.unet2d5: size, shape, padding and wiring of the 2.5D U-Net alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from scripts.networks.discriminator import PatchDiscriminator3d
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import FEATURES, SpatialAttention, UNet2d5

TINY = (4, 4, 8, 8, 8)
PAPER_SIZE = {"features": (32, 64, 128, 256, 512), "upsample": "deconv4", "attention": "bottom"}
ATOL = 1e-5  # of outputs of order 1 in float32
MIXED = 1e-4  # a change that must arrive somewhere arrives with more than this


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def block_size(channels: int, width: int, k: int, attention: bool) -> int:
    """Counts two convolutions with bias, two affine norms, two PReLUs of one slope, and attention."""
    size = channels * width * k + width + width * width * k + width + 2 * (2 * width + 1)
    half = width // 2
    return size + (width * half * k + half + half * k + 1 if attention else 0)


def unet_size(
    in_channels: int, heads: Sequence[int], features: Sequence[int], planar: int, upsample: str, attention: str
) -> int:
    """Counts the parameters from METHOD's table alone, independently of the network's code."""
    taps = [9 if level < planar else 27 for level in range(5)]
    inputs = [in_channels, *features[:-1]]
    total = 0
    for level in range(5):
        here = attention == "all" or (attention == "bottom" and level == 4)
        total += block_size(inputs[level], features[level], taps[level], here)
    for head in heads:
        for level in range(4):
            edge = {"deconv2": 2, "deconv4": 4, "linear": 1}[upsample]
            up = edge**2 if level < planar else edge**3
            total += features[level + 1] * features[level] * up + features[level]
            total += block_size(2 * features[level], features[level], taps[level], attention == "all")
        total += features[0] * head + head
    return total


def unet(*args: object, seed: int = 0, **kwargs: object) -> UNet2d5:
    torch.manual_seed(seed)
    return UNet2d5(*args, **{"features": TINY} | kwargs).eval()  # type: ignore[arg-type]


def volume(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# sizes


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert count(UNet2d5()) == 5_535_971
        assert count(TISSNet(1)) == 15_138_360  # G + S, the default
        pair = count(UNet2d5(1, 1, **PAPER_SIZE)) + count(UNet2d5(2, 1, **PAPER_SIZE))
        assert pair + count(PatchDiscriminator3d(2)) == 81_010_505  # published: 81.06 M


@pytest.mark.parametrize(
    ("planar", "upsample", "attention"),
    [*product((0, 2, 5), ("deconv2",), ("none",)), *product((2,), ("deconv4", "linear"), ("none", "bottom", "all"))],
)
def test_size_by_formula(planar: int, upsample: str, attention: str) -> None:
    with torch.device("meta"):
        network = UNet2d5(
            3, (1, 2), features=(6, 8, 10, 12, 14), planar_levels=planar, upsample=upsample, attention=attention
        )
    assert count(network) == unet_size(3, (1, 2), (6, 8, 10, 12, 14), planar, upsample, attention)


def test_defaults_are_the_methods() -> None:
    with torch.device("meta"):
        network = UNet2d5()
    assert FEATURES == (16, 32, 64, 128, 256)
    assert network.factors == [16, 16, 4]
    rates = [[m.p for m in encoder.modules() if isinstance(m, nn.Dropout)] for encoder in network.encoders]
    assert rates == [[], [], [0.3], [0.4], [0.5]]
    assert not any(isinstance(m, SpatialAttention) for m in network.modules())
    norms = [m for m in network.modules() if isinstance(m, nn.InstanceNorm3d)]
    assert len(norms) == 2 * 9 and all(m.affine for m in norms)
    assert sum(isinstance(m, nn.PReLU) for m in network.modules()) == 2 * 9


# shapes


@pytest.mark.parametrize("planar", range(6))
def test_every_number_of_planar_levels(planar: int) -> None:
    network = unet(planar_levels=planar)
    pooled_3d = [level for level in range(4) if level >= planar]
    assert network.factors == [16, 16, 2 ** len(pooled_3d)]
    assert network(volume(1, 1, 32, 16, 5)).shape == (1, 1, 32, 16, 5)


@pytest.mark.parametrize("size", [(1, 1, 1), (16, 16, 4), (33, 15, 3), (7, 40, 9), (17, 31, 1)])
def test_any_input_size_also_in_training(size: tuple[int, ...]) -> None:
    network = unet(2, (1, 1)).train()
    out = network(volume(2, 2, *size))
    assert out.shape == (2, 2, *size)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("upsample", ["deconv2", "deconv4", "linear"])
@pytest.mark.parametrize("attention", ["none", "bottom", "all"])
@pytest.mark.parametrize("norm", ["batch", ["instance", {"affine": True}]])
def test_every_choice_runs(upsample: str, attention: str, norm: object) -> None:
    network = unet(upsample=upsample, attention=attention, norm=norm)
    kind = nn.BatchNorm3d if norm == "batch" else nn.InstanceNorm3d
    assert sum(isinstance(m, kind) for m in network.modules()) == 18
    assert network(volume(1, 1, 32, 32, 4)).shape == (1, 1, 32, 32, 4)


def test_heads_are_concatenated_in_order_and_raw() -> None:
    network = unet(1, (1, 2, 1))
    for i, decoder in enumerate(network.decoders):
        nn.init.zeros_(decoder.head.weight)
        nn.init.constant_(decoder.head.bias, 10.0 * (i + 1))
    x = volume(1, 1, 32, 16, 4)
    assert network(x)[0, :, 0, 0, 0].tolist() == [10, 20, 20, 30]  # no tanh, no sigmoid
    assert network(x, 2)[0, :, 0, 0, 0].tolist() == [10, 20, 20]
    assert network(x, 1).shape == (1, 1, 32, 16, 4)


def test_decoders_left_out_are_not_computed() -> None:
    class Refuses(nn.Module):
        def forward(self, skips: list[Tensor]) -> Tensor:
            raise AssertionError("computed")

    network = unet(1, (1, 1))
    x = volume(1, 1, 32, 16, 4)
    first = network(x)[:, :1]
    network.decoders[1] = Refuses()
    assert torch.equal(network(x, 1), first)
    with pytest.raises(AssertionError, match="computed"):
        network(x)


# what reaches what


def changed_slices(network: nn.Module, z: int) -> set[int]:
    x = volume(1, 1, 32, 32, 8)
    other = x.clone()
    other[..., z] = -other[..., z]
    with torch.no_grad():
        difference = (network(x) - network(other)).abs().amax(dim=(0, 1, 2, 3))
    return set(torch.nonzero(difference > 0).flatten().tolist())


def test_planar_only_does_not_mix_slices() -> None:
    network = unet(planar_levels=5, norm="batch", upsample="deconv4", attention="all")  # eval: no mixing by the norm
    assert changed_slices(network, 3) == {3}


def test_fewer_planar_levels_mix_slices() -> None:
    network = unet(planar_levels=2, norm="batch")
    assert len(changed_slices(network, 3)) > 1


def test_skips_and_all_levels_reach_the_output() -> None:
    network = unet(1, (1, 1))
    network(volume(1, 1, 32, 32, 8)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    for i, encoder in enumerate(network.encoders):
        assert any(p.grad.abs().max() > 0 for p in encoder.parameters()), i  # type: ignore[union-attr]


def test_attention_by_hand() -> None:
    attention = SpatialAttention(2)
    for p in attention.parameters():
        nn.init.zeros_(p)
    x = volume(1, 2, 3, 3, 3)
    assert torch.allclose(attention(x), 1.5 * x, atol=ATOL)  # sigmoid(0) = 1/2
    nn.init.constant_(attention.score.conv.bias, 50.0)
    assert torch.allclose(attention(x), 2 * x, atol=ATOL)


# padding


def test_pad_values_per_channel_and_size() -> None:
    network = unet(3, background=(-1.0, 0.0, 0.25))
    x = volume(2, 3, 20, 33, 5)
    padded, size = network.pad(x)
    assert size == [20, 33, 5]
    assert padded.shape == (2, 3, 32, 48, 8)
    assert torch.equal(padded[:, :, :20, :33, :5], x)
    outside = torch.ones(32, 48, 8, dtype=torch.bool)
    outside[:20, :33, :5] = False
    for channel, value in enumerate((-1.0, 0.0, 0.25)):
        assert (padded[:, channel][:, outside] == value).all()


def test_pad_leaves_two_voxels_at_the_bottom_and_whole_sizes_alone() -> None:
    network = unet()
    assert network.pad(torch.zeros(1, 1, 16, 16, 4))[0].shape[2:] == (32, 16, 4)
    x = volume(1, 1, 32, 48, 8)
    assert network.pad(x)[0] is x


def test_padding_equals_a_background_border_given_by_hand() -> None:
    network = unet(2, background=(-1.0, 0.0))
    x = volume(1, 2, 20, 32, 4)
    air = torch.cat([torch.full((1, 1, 32, 32, 4), -1.0), torch.zeros(1, 1, 32, 32, 4)], dim=1)
    air[:, :, :20] = x
    with torch.no_grad():
        assert torch.allclose(network(x), network(air)[:, :, :20], atol=ATOL)
        zeros = air.clone()
        zeros[:, 0, 20:] = 0.0
        assert (network(x) - network(zeros)[:, :, :20]).abs().max() > MIXED  # the value matters


def test_result_does_not_depend_on_the_rest_of_the_batch() -> None:
    network = unet()
    x = volume(3, 1, 20, 32, 4)
    with torch.no_grad():
        assert torch.allclose(network(x)[1:2], network(x[1:2]), atol=ATOL)


def test_background_is_no_weight() -> None:
    network = unet()
    assert "background" not in network.state_dict()
    assert network.pad(torch.zeros(1, 1, 20, 32, 4, dtype=torch.bfloat16))[0].dtype == torch.bfloat16


# scripting, errors


@pytest.mark.parametrize(
    "choice",
    [{}, {"upsample": "linear", "attention": "all", "norm": "batch", "planar_levels": 5}],
    ids=["default", "other"],
)
def test_scripted_is_equal(choice: dict) -> None:
    network = unet(1, (1, 1), **choice)
    scripted = torch.jit.script(network)
    x = volume(1, 1, 20, 17, 5)
    with torch.no_grad():
        assert torch.equal(scripted(x), network(x))
        assert torch.equal(scripted(x, 1), network(x, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels 0"),
        ({"out_channels": ()}, "out_channels"),
        ({"out_channels": (1, 0)}, r"\[1, 0\]"),
        ({"features": (4, 4, 8, 8)}, "five positive"),
        ({"planar_levels": 6}, "planar_levels 6"),
        ({"planar_levels": -1}, "planar_levels -1"),
        ({"upsample": "nearest"}, "'nearest'"),
        ({"attention": "top"}, "'top'"),
        ({"attention": "all", "features": (1, 4, 8, 8, 8)}, "halves"),
        ({"dropout": (0, 0, 0, 0, 1)}, "dropout"),
        ({"dropout": (0, 0)}, "five probabilities"),
        ({"in_channels": 2, "background": (-1.0,)}, "1 values for 2"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet2d5(**{"features": TINY} | arguments)
