"""What the trainer asks of a method. A new one is a module beside this with these functions, and a config for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Method(Protocol):
    """A method to train; every one is also a `torch.nn.Module`.

    The network that it trains names its `outputs` and computes them in `infer`, as `networks.tissnet.TISSNet` does;
    one whose forward gives the logits of a mask needs neither.

    A batch has `image` x_s (B, C, X, Y, Z), `target` x_t and `label` y, both (B, 1, X, Y, Z), and where cases may lack
    their target `has_target` (B,), on the CPU. Losses are dicts of named, weighted scalars, which the trainer sums.
    """

    def generator_parameters(self) -> list[nn.Parameter]:
        """What the first step of an iteration changes; all there is, without an adversary."""

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """What the second step changes; empty without an adversary."""

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One forward pass, whose outputs serve both steps."""

    def generator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the first step."""

    def discriminator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the second step, on detached fakes; empty where nothing can be judged."""

    def logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The mask to follow during training, (B, 1, X, Y, Z), raw."""

    def networks(self) -> list[nn.Module]:
        """Every network that a step runs, for `torch.compile`."""

    def to(self, *, memory_format: torch.memory_format) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...
