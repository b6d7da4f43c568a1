"""A method of two outputs, as whoever adds one writes it: an image by a GAN, and a mask from scan and image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scripts.networks.tissnet import PRED, SYNTHETIC
from scripts.networks.unet2d5 import UNet2d5
from scripts.training.losses import GlobalSynthesisLoss, MaskLoss


class Pix2Pix(nn.Module):
    """G: x_s to x_t_syn; S: both to y_f. Its image comes first: nothing is found by its place."""

    outputs = (SYNTHETIC, PRED)

    def __init__(self, in_channels: int = 1, **unet: Any) -> None:
        super().__init__()
        self.G = UNet2d5(in_channels, 1, **unet)
        self.S = UNet2d5(in_channels + 1, 1, **unet)

    def both(self, x_s: Tensor) -> tuple[Tensor, Tensor]:
        """Computes x_t_syn and y_f_logits."""
        x_t_syn = torch.tanh(self.G(x_s))
        return x_t_syn, self.S(torch.cat([x_s, x_t_syn], dim=1))

    def forward(self, x_s: Tensor) -> Tensor:
        return self.both(x_s)[1]

    def infer(self, x_s: Tensor) -> Tensor:
        """Computes the outputs in their order."""
        x_t_syn, y_f_logits = self.both(x_s)
        return torch.cat([x_t_syn.float(), torch.sigmoid(y_f_logits.float())], dim=1)


class Pix2PixMethod(nn.Module):
    """L1 and LSGAN of the image, Dice of the mask."""

    def __init__(self, network: Pix2Pix, *, D_g: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.D_g = D_g
        self.synthesis = GlobalSynthesisLoss(l1=100.0, adversarial=1.0)
        self.mask_loss = MaskLoss()

    def generator_parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def discriminator_parameters(self) -> list[nn.Parameter]:
        return list(self.D_g.parameters())

    def networks(self) -> list[nn.Module]:
        return [self.network, self.D_g]

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x_t_syn, y_f_logits = self.network.both(batch["image"])
        return {"x_t_syn": x_t_syn, "y_f_logits": y_f_logits}

    def generator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        terms = self.synthesis(batch["image"], outputs["x_t_syn"], batch["target"], self.D_g)
        return terms | {"fine": self.mask_loss(outputs["y_f_logits"], batch["label"])}

    def discriminator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.synthesis.discriminator(batch["image"], outputs["x_t_syn"], batch["target"], self.D_g)

    def logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["y_f_logits"]
