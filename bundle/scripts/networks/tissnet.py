"""TISS-Net: the dual-task generator G, the dual-task segmentor S and their cascade.

Discriminators, the perceptor and losses do not go here: this is what is released and what runs in a clinic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scripts.networks.unet2d5 import UNet2d5
from scripts.transforms import BACKGROUND

IMAGE_START, IMAGE_STD = -1.0, 0.15  # x_t_syn starts around tanh(-1) = -0.76, near the background
SEGMENTOR_INPUTS = ("x_s", "x_t_syn", "y_c")


class TISSNet(nn.Module):
    """G: x_s to a synthetic target and a coarse mask; S: x_s, x_t_syn, y_c to a fine mask and the coarse mask's error.

    Args:
        in_channels: number of source modalities.
        segmentor_inputs: what S sees, at least one of "x_s", "x_t_syn", "y_c" (ablations leave some out).
        unet: every further argument goes to both 2.5D U-Nets, see `UNet2d5`.

    Shapes:
        input x_s (B, in_channels, X, Y, Z) in [-1, 1]; output (B, 1, X, Y, Z), the logits of y_f. The error decoder is
        not computed here. Training and full inference go through `Cascade`.

    Source: Wu et al., Neurocomputing 544 (2023) 126295, sections 3.1 and 3.3.
    """

    def __init__(
        self, in_channels: int = 1, *, segmentor_inputs: Sequence[str] = SEGMENTOR_INPUTS, **unet: Any
    ) -> None:
        super().__init__()
        unknown = sorted(set(segmentor_inputs) - set(SEGMENTOR_INPUTS))
        if unknown or not segmentor_inputs:
            raise ValueError(f"segmentor_inputs {list(segmentor_inputs)}: expected some of {SEGMENTOR_INPUTS}.")
        self.use_x_s = "x_s" in segmentor_inputs
        self.use_x_t_syn = "x_t_syn" in segmentor_inputs
        self.use_y_c = "y_c" in segmentor_inputs
        background = (
            [BACKGROUND] * (in_channels * self.use_x_s) + [BACKGROUND] * self.use_x_t_syn + [0.0] * self.use_y_c
        )
        self.G = UNet2d5(in_channels, (1, 1), **unet)
        image_head: Any = self.G.decoders[0].head
        nn.init.normal_(image_head.weight, std=IMAGE_STD)
        nn.init.constant_(image_head.bias, IMAGE_START)
        self.S = UNet2d5(len(background), (1, 1), background=background, **unet)

    def generate(self, x_s: Tensor) -> tuple[Tensor, Tensor]:
        """Computes x_t_syn in [-1, 1] and y_c_logits, each (B, 1, X, Y, Z)."""
        heads = self.G(x_s)
        return torch.tanh(heads[:, :1]), heads[:, 1:]

    def segment(self, x_s: Tensor, x_t_syn: Tensor, y_c_logits: Tensor, error: bool = True) -> Tensor:
        """Computes y_f_logits and, with `error`, y_e_logits behind them: (B, 2 or 1, X, Y, Z)."""
        inputs: list[Tensor] = []
        if self.use_x_s:
            inputs.append(x_s)
        if self.use_x_t_syn:
            inputs.append(x_t_syn)
        if self.use_y_c:
            inputs.append(torch.sigmoid(y_c_logits))
        return self.S(torch.cat(inputs, dim=1), 2 if error else 1)

    def forward(self, x_s: Tensor) -> Tensor:
        """Computes y_f_logits."""
        x_t_syn, y_c_logits = self.generate(x_s)
        return self.segment(x_s, x_t_syn, y_c_logits, False)


class Cascade(nn.Module):
    """The whole cascade as one forward pass: what training, DistributedDataParallel and compile wrap.

    Args:
        network: the TISSNet whose parameters are used; not copied.
    """

    def __init__(self, network: TISSNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_s: Tensor, segmentor: bool = True, error: bool = True) -> dict[str, Tensor]:
        """Computes `x_t_syn`, `y_c_logits`, and with `segmentor` `y_f_logits`, with `error` `y_e_logits`.

        Shapes:
            each (B, 1, X, Y, Z); x_t_syn in [-1, 1], the others raw logits.
        """
        x_t_syn, y_c_logits = self.network.generate(x_s)
        outputs = {"x_t_syn": x_t_syn, "y_c_logits": y_c_logits}
        if segmentor:
            heads = self.network.segment(x_s, x_t_syn, y_c_logits, error)
            outputs["y_f_logits"] = heads[:, :1]
            if error:
                outputs["y_e_logits"] = heads[:, 1:]
        return outputs
