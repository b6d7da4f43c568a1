"""What the inferers run: a network's outputs as one tensor, and the stages in which it may compute in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scripts.networks.tissnet import PRED, TISSNet
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


class Outputs(nn.Module):
    """A network as the inferers run it: (B, C, X, Y, Z) to all that it computes along the channels, float32.

    Args:
        network: one that names its `outputs` and computes them in `infer`, see `TISSNet`; or any other, whose forward
            gives the logits of a mask.

    Attributes:
        names: of the channels.

    Raises:
        ValueError: the network has no output for the mask.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.names: tuple[str, ...] = tuple(getattr(network, "outputs", (PRED,)))
        if PRED not in self.names:
            raise ValueError(f"{type(network).__name__} has the outputs {self.names}: expected {PRED!r} among them.")

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self.network, "outputs"):
            return self.network.infer(x)  # type: ignore[operator]
        return torch.sigmoid(self.network(x).float())

    def stages(self, x: Tensor) -> list[Stage]:
        """The same in stages for an input like x; none where it cannot be divided: x is padded, or no `TISSNet`.

        In bfloat16 most of the error of y_f and y_e arises at G's full resolution, where T2 contrasts are small beside
        the intensities, and S passes it on. G's first block and last blocks in float32 cost little and take it away.
        A mask alone is one stage.
        """
        network = self.network
        if not hasattr(network, "outputs"):
            return [Stage(self, (0,), False)]
        cascade = any(parent.__name__ == "TISSNet" for parent in type(network).__mro__)  # which may be loaded anew
        if not cascade or network.G.pad(x)[0].shape != x.shape:  # type: ignore[union-attr, operator]
            return []
        return [
            Stage(network.G.encoders[0], (0,), True),  # type: ignore[union-attr, index, arg-type]
            Stage(_Rise(network.G), (1,), False),  # type: ignore[arg-type]
            Stage(_Finish(network.G), (1, 2), True),  # type: ignore[arg-type]
            Stage(_Segment(network), (0, 3), False),  # type: ignore[arg-type]
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
        return self.network.finish(x, generated[:, :1], generated[:, 1:])
