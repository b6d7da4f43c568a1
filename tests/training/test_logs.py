"""Tests of scripts.training.logs: the scalars of a step, and the line of an epoch."""

import logging
from types import SimpleNamespace

import pytest
import torch

from scripts.training.logs import log_epoch, scalars


def test_scalars_picks_single_numbers() -> None:
    output = {"image": torch.zeros(2, 1, 3), "loss": torch.tensor(2.5), "D_g": 1}
    assert scalars(output) == {"loss": 2.5, "D_g": 1.0}
    assert scalars([{"pred": torch.zeros(1, 3), "loss": torch.tensor([4.0])}, {"loss": 7.0}]) == {"loss": 4.0}


def test_log_epoch_names_every_term(caplog: pytest.LogCaptureFixture) -> None:
    state = SimpleNamespace(epoch=3, max_epochs=9, output={"loss": torch.tensor(2.5), "fine": 0.123456})
    with caplog.at_level(logging.INFO, logger="scripts.training.logs"):
        log_epoch(SimpleNamespace(state=state))  # type: ignore[arg-type]
    assert caplog.messages == ["epoch 3/9: loss 2.5, fine 0.1235"]
