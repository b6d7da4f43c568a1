"""The PatchGAN that judges synthetic scans. Used in training only; never part of a released model."""

from __future__ import annotations

from monai.networks.blocks import Convolution
from torch import Tensor, nn

STRIDES = (2, 2, 2, 1, 1)  # in-plane; 1 through-plane throughout
KERNEL = 4
MIN_IN_PLANE = 24  # the smallest in-plane size that leaves an output
MIN_THROUGH_PLANE = 6


class PatchDiscriminator3d(nn.Module):
    """PatchGAN with a receptive field of 70 x 70 x 16 voxels (x, y, z): one logit per overlapping patch.

    Five convolutions of kernel 4 with strides 2, 2, 2, 1, 1 in-plane and 1 through-plane; LeakyReLU 0.2, normalization
    on all but the first and the last.

    Args:
        in_channels: source modalities and the target, concatenated.
        features: channels of the first layer; they double up to eightfold.
        norm: MONAI's name of the normalization, with its arguments.

    Shapes:
        input (B, in_channels, X, Y, Z), at least 24 x 24 x 6; output (B, 1, X', Y', Z'), raw logits.

    Source: Isola et al., CVPR 2017 (PatchGAN); its field of 16 x 70 x 70 (z, y, x): Wu et al. 2023, section 4.1.
    """

    def __init__(
        self, in_channels: int = 2, *, features: int = 64, norm: str | tuple = ("instance", {"affine": True})
    ) -> None:
        super().__init__()
        norm = norm if isinstance(norm, str) else tuple(norm)
        widths = [features, 2 * features, 4 * features, 8 * features, 1]
        layers: list[nn.Module] = []
        channels = in_channels
        for i, (width, stride) in enumerate(zip(widths, STRIDES, strict=True)):
            last = i == len(widths) - 1
            layers.append(
                Convolution(
                    3,
                    channels,
                    width,
                    strides=(stride, stride, 1),
                    kernel_size=KERNEL,
                    padding=1,
                    adn_ordering="NA",
                    norm=None if i == 0 else norm,
                    act=("leakyrelu", {"negative_slope": 0.2}),
                    conv_only=last,
                )
            )
            channels = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        if min(size[:2]) < MIN_IN_PLANE or size[2] < MIN_THROUGH_PLANE:
            raise ValueError(
                f"a patch of {size} voxels is too small for the discriminator: expected at least "
                f"{MIN_IN_PLANE} x {MIN_IN_PLANE} x {MIN_THROUGH_PLANE}; enlarge patch_size."
            )
        return self.layers(x)
