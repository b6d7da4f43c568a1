"""What a training's log and TensorBoard show of the trainer's output: the named scalars of a step."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Engine

logger = logging.getLogger(__name__)


def scalars(output: Any) -> dict[str, float]:
    """Picks the named scalars from a trainer's output, decollated or not, for the logging handlers."""
    first = output[0] if isinstance(output, list) else output
    return {name: float(value) for name, value in first.items() if torch.as_tensor(value).numel() == 1}


def log_epoch(engine: Engine) -> None:
    """Logs the last batch's terms once per epoch, for StatsHandler's `epoch_print_logger`."""
    terms = ", ".join(f"{name} {value:.4g}" for name, value in scalars(engine.state.output).items())
    logger.info("epoch %d/%d: %s", engine.state.epoch, engine.state.max_epochs, terms)
