"""The localizer: a small 2.5D U-Net on a reduced grid that says where in a whole scan a tumor may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.networks.unet2d5 import BACKGROUND, UNet2d5

FEATURES = (8, 16, 32, 64, 128)
TUMOR_LOGIT = -4.0  # of every voxel before training: tumors fill a few of a thousand voxels


class Localizer(nn.Module):
    """Averages the scan over blocks of voxels, segments that, and interpolates back to the scan's grid.

    Args:
        in_channels: number of source modalities.
        pooling: voxels x, y, z that are averaged to one.
        features: channels per level of the U-Net.
        unet: every further argument goes to the U-Net, see `UNet2d5`.

    Shapes:
        input x_s (B, in_channels, X, Y, Z) in [-1, 1], of any size; output (B, 1, X, Y, Z), logits of the tumor.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        pooling: Sequence[int] = (4, 4, 1),
        features: Sequence[int] = FEATURES,
        **unet: Any,
    ) -> None:
        super().__init__()
        if len(pooling) != 3 or min(pooling) < 1:
            raise ValueError(f"pooling {list(pooling)}: expected three whole numbers, 1 or more.")
        self.pooling = [int(n) for n in pooling]
        self.register_buffer("trained_pooling", torch.tensor(self.pooling))  # checked by `load_localizer`
        self.unet = UNet2d5(in_channels, 1, features=features, **unet)
        head: Any = self.unet.decoders[0].head
        nn.init.constant_(head.bias, TUMOR_LOGIT)

    def forward(self, x_s: Tensor) -> Tensor:
        size = [x_s.shape[2], x_s.shape[3], x_s.shape[4]]
        missing = [-n % p for n, p in zip(size, self.pooling)]  # noqa: B905 (zip(strict) does not script)
        if missing[0] + missing[1] + missing[2] > 0:
            x_s = F.pad(x_s, [0, missing[2], 0, missing[1], 0, missing[0]], value=BACKGROUND)
        logits = self.unet(F.avg_pool3d(x_s, self.pooling))
        whole = [x_s.shape[2], x_s.shape[3], x_s.shape[4]]
        return F.interpolate(logits, size=whole, mode="trilinear")[:, :, : size[0], : size[1], : size[2]]
