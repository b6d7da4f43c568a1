"""The moving average of a network's weights: validated, saved and shipped in place of the last step's."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage(AveragedModel):
    """torch's `AveragedModel`, updated after every optimizer step: average = decay * average + (1 - decay) * weights.

    The first steps count more, so that the random weights of the start are soon forgotten: the decay after n steps is
    at most (n + 1) / (n + 11). In several processes all hold the same average, because all hold the same weights.

    Args:
        network: what is trained; it is copied.
        decay: of the average, from 0 (the weights of the last step) to below 1.

    Attributes:
        module: the network with the averaged weights. The state dict is of it and of the number of steps averaged.

    Raises:
        ValueError: a decay out of range.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"average_decay is {decay}: expected 0 (no averaging) to below 1, such as 0.98.")

        def average(means: Any, values: Any, steps: Tensor | int) -> None:
            n = int(self.n_averaged)  # `steps` lies on the weights' device: reading it would wait for a GPU
            torch._foreach_lerp_(means, values, 1 - min(decay, (n + 1) / (n + 11)))

        super().__init__(network, multi_avg_fn=average)
        self.network = [network]  # not a part of this module
        self.requires_grad_(False)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)

    def _update(self, engine: Engine) -> None:
        trainer: Any = engine
        if trainer.at_a_step:
            self.update_parameters(self.network[0])
