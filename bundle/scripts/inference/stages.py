"""What the inferers run: a network's outputs as one tensor, and the stages in which it may compute in bfloat16.

Engines and windows do not go here, see `engine.py` and `inferer.py`; nor anything that is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scripts.networks.tissnet import Cascade, TISSNet
from scripts.networks.unet2d5 import UNet2d5


@dataclass(frozen=True)
class Stage:
    """A part of a forward pass.

    Args:
        module: computes one tensor from one or more.
        inputs: which: 0 is the input x, i the result of the i-th stage.
        sensitive: whether it is to compute in float32 even where the rest is in bfloat16.
    """

    module: nn.Module
    inputs: tuple[int, ...]
    sensitive: bool


class MaskOutput(nn.Module):
    """A network with one head as the inferers run it: (B, C, X, Y, Z) to the mask's probability, (B, 1, X, Y, Z)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.network(x).float())


class CascadeOutput(nn.Module):
    """The cascade as the inferers run it: x_s to y_f, x_t_syn, y_c, y_e along the channels, (B, 4, X, Y, Z)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.cascade = Cascade(network)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.cascade(x)
        return _joined(outputs["x_t_syn"], outputs["y_c_logits"], outputs["y_f_logits"], outputs["y_e_logits"])

    def stages(self, x: Tensor) -> list[Stage]:
        """The same in stages for an input like x; none where x has to be padded, or without a `TISSNet`'s G.

        In bfloat16 most of the error of y_f and y_e arises at G's full resolution, where T2 contrasts are small beside
        the intensities, and S passes it on. G's first block and last blocks in float32 cost little and take it away.
        """
        network = self.cascade.network
        if not hasattr(network, "G") or network.G.pad(x)[0].shape != x.shape:  # its class may have been loaded anew
            return []
        return [
            Stage(network.G.encoders[0], (0,), True),
            Stage(_Rise(network.G), (1,), False),
            Stage(_Finish(network.G), (1, 2), True),
            Stage(_Segment(network), (0, 3), False),
        ]


class _Rise(nn.Module):
    """From the first skip down and up again: what the last block of each decoder gets, (B, decoders * C, X, Y, Z)."""

    def __init__(self, unet: UNet2d5) -> None:
        super().__init__()
        self.encoders = unet.encoders[1:]
        self.decoders = unet.decoders

    def forward(self, skip: Tensor) -> Tensor:
        skips = [skip]
        for encoder in self.encoders:
            skips.append(encoder(skips[-1]))
        return torch.cat([decoder.rise(skips) for decoder in self.decoders], dim=1)  # type: ignore[operator]


class _Finish(nn.Module):
    """The last blocks and heads of G's decoders: x_t_syn and y_c_logits."""

    def __init__(self, unet: UNet2d5) -> None:
        super().__init__()
        self.decoders = unet.decoders

    def forward(self, skip: Tensor, risen: Tensor) -> Tensor:
        parts = risen.chunk(len(self.decoders), dim=1)
        image, mask = (d.finish(skip, part) for d, part in zip(self.decoders, parts, strict=True))  # type: ignore[operator]
        return torch.cat([torch.tanh(image), mask], dim=1)


class _Segment(nn.Module):
    """S on what G gave."""

    def __init__(self, network: TISSNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, generated: Tensor) -> Tensor:
        x_t_syn, y_c_logits = generated[:, :1], generated[:, 1:]
        heads = self.network.segment(x, x_t_syn, y_c_logits)
        return _joined(x_t_syn, y_c_logits, heads[:, :1], heads[:, 1:])


def _joined(x_t_syn: Tensor, y_c_logits: Tensor, y_f_logits: Tensor, y_e_logits: Tensor) -> Tensor:
    y_f, y_c, y_e = (torch.sigmoid(logits.float()) for logits in (y_f_logits, y_c_logits, y_e_logits))
    return torch.cat([y_f, x_t_syn.float(), y_c, y_e], dim=1)
