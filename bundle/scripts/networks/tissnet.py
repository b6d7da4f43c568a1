"""TISS-Net: the dual-task generator G, the dual-task segmentor S, their cascade, and the names of what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from scripts.networks.unet2d5 import BACKGROUND, UNet2d5

# What leaves a network, in words: keys of postprocessing, files, columns. Every method has a mask.
PRED = "pred"  # y_f
SYNTHETIC = "synthetic"  # x_t_syn
COARSE = "coarse"  # y_c
ERROR = "error"  # y_e
PERCEPTOR = "perceptor"  # S_p(x_t_syn)
OUTSIDE = {SYNTHETIC: BACKGROUND}  # an output's value where no network looked, 0 for all others

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
        not computed here. Training goes through `Cascade`, inference through `infer`.

    Attributes:
        outputs: names of the channels that `infer` computes. Inferers run `infer` of any network that has both, and
            take any other for one that gives the logits of a mask.

    Source: Wu et al., Neurocomputing 544 (2023) 126295, sections 3.1 and 3.3.
    """

    outputs = (PRED, SYNTHETIC, COARSE, ERROR)

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

    def infer(self, x_s: Tensor) -> Tensor:
        """Computes all `outputs`: (B, 4, X, Y, Z), float32, probabilities but for x_t_syn."""
        return self.finish(x_s, *self.generate(x_s))

    def finish(self, x_s: Tensor, x_t_syn: Tensor, y_c_logits: Tensor) -> Tensor:
        """Computes the same from what `generate` gave."""
        heads = self.segment(x_s, x_t_syn, y_c_logits)
        y_f, y_c, y_e = (torch.sigmoid(logits.float()) for logits in (heads[:, :1], y_c_logits, heads[:, 1:]))
        return torch.cat([y_f, x_t_syn.float(), y_c, y_e], dim=1)


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


def refine(y_c: Tensor, y_e: Tensor) -> Tensor:
    """Computes y_r = y_c (1 - y_e) + (1 - y_c) y_e on probabilities, eq. 7: flip the coarse mask where it is wrong."""
    return y_c * (1 - y_e) + (1 - y_c) * y_e


def name_outputs(prediction: Tensor, names: Sequence[str]) -> MetaTensor:
    """Writes the names of its channels into a prediction's metadata, as one string: a batch is divided without it."""
    named = prediction if isinstance(prediction, MetaTensor) else MetaTensor(prediction)
    named.meta = {**named.meta, "outputs": " ".join(names)}
    return named


def output_names(prediction: Any) -> list[str]:
    """Names of a prediction's channels; none where it has not been named."""
    return getattr(prediction, "meta", {}).get("outputs", "").split()


def outputs_of(prediction: Tensor) -> dict[str, Any]:
    """Divides a prediction, (C, X, Y, Z) or (B, C, X, Y, Z), into its outputs by name, of one channel each.

    Raises:
        ValueError: its channels have no names, or not as many.
    """
    names = output_names(prediction)
    if len(names) != prediction.shape[-4]:
        raise ValueError(
            f"a prediction of {prediction.shape[-4]} channel(s) has the names {names}: expected one each, as the "
            "inferers give; undo preprocessing with scripts.transforms.InvertPredictiond, which keeps them."
        )
    return {name: name_outputs(prediction.narrow(-4, i, 1), [name]) for i, name in enumerate(names)}
