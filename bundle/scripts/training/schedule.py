"""The learning rate over a training's epochs."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def two_phase_schedule(optimizer: Optimizer, *, max_epochs: int, constant: float = 0.4) -> LambdaLR:
    """Makes the schedule of the GAN networks: constant for a fraction of the epochs, then linear to 0.

    Args:
        optimizer: whose learning rate to scale, stepped once per epoch.
        max_epochs: number of epochs of the run.
        constant: fraction of them at the full rate (the paper: 100 of 250).
    """

    def factor(epoch: int) -> float:
        start = constant * max_epochs
        return 1.0 if epoch < start else max(0.0, (max_epochs - epoch) / max(max_epochs - start, 1.0))

    return LambdaLR(optimizer, factor)
