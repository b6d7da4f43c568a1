"""The 2.5D U-Net: one encoder, any number of decoders. Building block of G, S, S_p and the plain segmentors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution, UpSample
from monai.networks.layers import Pool
from torch import Tensor, nn
from torch.nn import functional as F

BACKGROUND = -1.0  # normalized intensity of air, and of everything outside the scan
FEATURES = (16, 32, 64, 128, 256)
DROPOUT = (0.0, 0.0, 0.3, 0.4, 0.5)
UPSAMPLE_MODES = ("deconv2", "deconv4", "linear")
ATTENTION_MODES = ("none", "bottom", "all")
HEAD_STD = 0.02  # of the heads' first weights, so that a mask starts at probability 0.5 everywhere


class SpatialAttention(nn.Module):
    """Weights every voxel: x * a + x with a = sigmoid(conv(relu(conv(x)))), a of one channel.

    Source: Shapey et al., J. Neurosurg. 134 (2021) 171-179, the attention of the 2.5D U-Net for vestibular schwannoma.
    """

    def __init__(self, channels: int, *, kernel_size: Sequence[int] = (3, 3, 3)) -> None:
        super().__init__()
        self.squeeze = Convolution(3, channels, channels // 2, kernel_size=kernel_size, act="relu", norm=None)
        self.score = Convolution(3, channels // 2, 1, kernel_size=kernel_size, conv_only=True)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.sigmoid(self.score(self.squeeze(x)))
        return x * a + x


def _block(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: Sequence[int],
    dropout: float,
    norm: str | tuple,
    attention: bool,
) -> nn.Sequential:
    """2 x (convolution, norm, PReLU) with dropout between, and spatial attention where asked for."""
    first = Convolution(
        3, in_channels, out_channels, kernel_size=kernel_size, adn_ordering="NAD", norm=norm, dropout=dropout or None
    )
    second = Convolution(3, out_channels, out_channels, kernel_size=kernel_size, adn_ordering="NA", norm=norm)
    layers: list[nn.Module] = [first, second]
    if attention:
        layers.append(SpatialAttention(out_channels, kernel_size=kernel_size))
    return nn.Sequential(*layers)


def _upsample(in_channels: int, out_channels: int, *, mode: str, planar: bool) -> nn.Module:
    scale = (2, 2, 1 if planar else 2)
    if mode == "linear":
        return UpSample(
            3,
            in_channels,
            out_channels,
            scale_factor=scale,
            mode="nontrainable",
            interp_mode="linear",
            align_corners=False,
        )
    kernel = scale if mode == "deconv2" else (4, 4, 1 if planar else 4)
    return UpSample(3, in_channels, out_channels, scale_factor=scale, kernel_size=kernel, mode="deconv")


class Decoder(nn.Module):
    """From the features of all levels back to full resolution; ends in a 1x1x1 convolution without activation.

    That head starts near 0 everywhere. With torch's own initialization it starts at a random value, and a mask that
    happens to start as tumor everywhere takes hundreds of steps to come down, or with plain Dice does not.
    """

    def __init__(
        self,
        out_channels: int,
        *,
        features: Sequence[int],
        planar_levels: int,
        norm: str | tuple,
        upsample: str,
        attention: str,
        dropout: Sequence[float],
    ) -> None:
        super().__init__()
        self.ups = nn.ModuleList()
        self.blocks = nn.ModuleList()
        for level in range(len(features) - 2, -1, -1):
            planar = level < planar_levels
            width = features[level]
            self.ups.append(_upsample(features[level + 1], width, mode=upsample, planar=planar))
            self.blocks.append(
                _block(
                    2 * width,
                    width,
                    kernel_size=(3, 3, 1 if planar else 3),
                    dropout=dropout[level],
                    norm=norm,
                    attention=attention == "all",
                )
            )
        self.head = nn.Conv3d(features[0], out_channels, kernel_size=1)
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, skips: list[Tensor]) -> Tensor:
        return self.finish(skips[0], self.rise(skips))

    def rise(self, skips: list[Tensor]) -> Tensor:
        """Computes the features that are joined with the first skip, at full resolution."""
        x = skips[-1]
        for i, (up, block) in enumerate(zip(self.ups, self.blocks, strict=True)):
            x = up(x)
            if i < len(self.ups) - 1:
                x = block(torch.cat([skips[len(skips) - 2 - i], x], dim=1))
        return x

    def finish(self, skip: Tensor, x: Tensor) -> Tensor:
        """Computes the head from the first skip and the risen features."""
        return self.head(self.blocks[-1](torch.cat([skip, x], dim=1)))


class UNet2d5(nn.Module):
    """2.5D U-Net: planar convolutions at the highest resolutions, 3-D ones below.

    Level i of five has `features[i]` channels. The first `planar_levels` levels convolve with kernel 3 x 3 x 1 and
    are pooled in-plane only, the others with 3 x 3 x 3 and pooled along all axes: with the default of 2 the
    through-plane size is divided by 4 and the in-plane size by 16. Any input size works: the input is padded behind
    with the value of background and the output cropped back.

    Args:
        in_channels: channels of the input.
        out_channels: channels of each decoder's head; one integer makes one decoder. Two decoders of one channel
            make the dual-branch network of the paper.
        features: channels per level, five of them.
        planar_levels: how many of the highest levels are planar, 0 (plain 3-D) to 5 (2-D throughout).
        norm: MONAI's name of the normalization, with its arguments.
        upsample: "deconv2" or "deconv4" (transposed convolution, kernel 2 or 4), or "linear" (1x1x1 convolution,
            trilinear interpolation).
        attention: spatial attention "none", at the "bottom", or at "all" levels.
        dropout: probability per level, between the two convolutions of a block.
        background: value of background in the input, one number or one per channel.

    Shapes:
        input (B, in_channels, X, Y, Z), Z the through-plane axis; output (B, sum(out_channels), X, Y, Z): the heads'
        raw values, concatenated in the order of the decoders. No tanh, no sigmoid.

    Source: Wu et al., Neurocomputing 544 (2023) 126295, section 3.1; Wang et al., MICCAI 2019 (the 2.5D U-Net).
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | Sequence[int] = 1,
        *,
        features: Sequence[int] = FEATURES,
        planar_levels: int = 2,
        norm: str | tuple = ("instance", {"affine": True}),
        upsample: str = "deconv2",
        attention: str = "none",
        dropout: Sequence[float] = DROPOUT,
        background: float | Sequence[float] = BACKGROUND,
    ) -> None:
        super().__init__()
        heads = [out_channels] if isinstance(out_channels, int) else list(out_channels)
        backgrounds = [float(background)] * in_channels if isinstance(background, int | float) else list(background)
        if in_channels < 1 or not heads or min(heads) < 1:
            raise ValueError(f"in_channels {in_channels} and out_channels {heads}: every number must be 1 or more.")
        if len(features) != 5 or min(features) < 1:
            raise ValueError(f"features {list(features)}: expected five positive numbers, one per level.")
        if not 0 <= planar_levels <= 5:
            raise ValueError(f"planar_levels {planar_levels}: expected 0 (plain 3-D) to 5 (2-D).")
        if upsample not in UPSAMPLE_MODES:
            raise ValueError(f"upsample {upsample!r}: expected one of {UPSAMPLE_MODES}.")
        if attention not in ATTENTION_MODES:
            raise ValueError(f"attention {attention!r}: expected one of {ATTENTION_MODES}.")
        if attention != "none" and min(features) < 2:
            raise ValueError(
                f"features {list(features)}: spatial attention halves the channels, so it needs 2 or more."
            )
        if len(dropout) != 5 or not all(0 <= p < 1 for p in dropout):
            raise ValueError(f"dropout {list(dropout)}: expected five probabilities from 0 to below 1, one per level.")
        if len(backgrounds) != in_channels:
            raise ValueError(f"background has {len(backgrounds)} values for {in_channels} input channels.")
        norm = norm if isinstance(norm, str) else tuple(norm)  # configs write lists

        self.encoders = nn.ModuleList()
        self.factors: list[int] = [1, 1, 1]
        channels = in_channels
        for level, width in enumerate(features):
            bottom = level == len(features) - 1
            block = _block(
                channels,
                width,
                kernel_size=(3, 3, 1 if level < planar_levels else 3),
                dropout=dropout[level],
                norm=norm,
                attention=attention == "all" or (attention == "bottom" and bottom),
            )
            if level > 0:
                window = [2, 2, 1 if level - 1 < planar_levels else 2]
                self.factors = [f * w for f, w in zip(self.factors, window, strict=True)]
                block = nn.Sequential(Pool[Pool.MAX, 3](kernel_size=window, stride=window), block)
            self.encoders.append(block)
            channels = width
        self.decoders = nn.ModuleList(
            Decoder(
                head,
                features=features,
                planar_levels=planar_levels,
                norm=norm,
                upsample=upsample,
                attention=attention,
                dropout=dropout,
            )
            for head in heads
        )
        self.register_buffer("background", torch.tensor(backgrounds).reshape(1, -1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor, decoders: int = -1) -> Tensor:
        """Computes the heads of the first `decoders` decoders (-1: of all), concatenated along the channels."""
        x, size = self.pad(x)
        skips: list[Tensor] = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        heads: list[Tensor] = []
        for i, decoder in enumerate(self.decoders):
            if decoders < 0 or i < decoders:
                heads.append(decoder(skips))
        return torch.cat(heads, dim=1)[:, :, : size[0], : size[1], : size[2]]

    def pad(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """Pads behind with background to whole multiples of the pooling; returns the size to crop back to.

        In-plane at least two voxels are left at the bottom, where instance norm needs more than one.
        """
        size = [x.shape[2], x.shape[3], x.shape[4]]
        missing = [-n % f for n, f in zip(size, self.factors)]  # noqa: B905 (zip(strict) does not script)
        if size[0] <= self.factors[0]:
            missing[0] = 2 * self.factors[0] - size[0]
        if missing[0] + missing[1] + missing[2] > 0:
            pads = [0, missing[2], 0, missing[1], 0, missing[0]]
            inside = F.pad(torch.ones_like(x[:1, :1]), pads)
            x = F.pad(x, pads) + self.background.to(x.dtype) * (1 - inside)  # type: ignore[operator]
        return x, size
