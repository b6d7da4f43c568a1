"""A plain segmentor's training step: the perceptor S_p (on x_t), and the baselines on x_s, or on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from scripts.training.losses import MaskLoss

INPUTS = ("image", "target")


class SegmentationMethod(nn.Module):
    """One network with one head, trained by Dice and cross-entropy on the modalities it sees.

    Args:
        network: maps the inputs, concatenated, to logits (B, 1, X, Y, Z).
        inputs: "image" (x_s), "target" (x_t), or both in this order.
        cross_entropy: weight of the cross-entropy added to Dice; 0 is the paper's.

    Batch: `image` x_s (B, C, X, Y, Z), `target` x_t (B, 1, X, Y, Z), `label` y (B, 1, X, Y, Z).
    """

    def __init__(self, network: nn.Module, *, inputs: Sequence[str] = ("image",), cross_entropy: float = 1.0) -> None:
        super().__init__()
        if not inputs or [name for name in INPUTS if name in inputs] != list(inputs):
            raise ValueError(f"inputs {list(inputs)}: expected 'image', 'target' or both in this order.")
        self.network = network
        self.inputs = tuple(inputs)
        self.mask_loss = MaskLoss(cross_entropy=cross_entropy)

    def generator_parameters(self) -> list[nn.Parameter]:
        """The parameters of the only step."""
        return list(self.network.parameters())

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """None: there is no adversary."""
        return []

    def networks(self) -> list[nn.Module]:
        """The only network."""
        return [self.network]

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs the network.

        Raises:
            ValueError: x_t is an input, and a sample of the batch has none.
        """
        if "target" in self.inputs and not batch.get("has_target", torch.ones(1)).all():
            raise ValueError("cases without a target cannot train a network that sees it: leave them out.")
        return {"y_f_logits": self.network(torch.cat([batch[name] for name in self.inputs], dim=1))}

    def generator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes Dice of the mask."""
        return {"fine": self.mask_loss(outputs["y_f_logits"], batch["label"])}

    def discriminator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes nothing: there is no adversary."""
        return {}

    def logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The mask to follow during training."""
        return outputs["y_f_logits"]
