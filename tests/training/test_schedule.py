"""Tests of scripts.training.schedule: the learning rate by epoch."""

import pytest
import torch
from torch import nn

from scripts.training.schedule import two_phase_schedule

TOLERANCE = 1e-6  # of rates that the scheduler multiplies


def rates_of(epochs: int, **options: float) -> list[float]:
    """The rate in every epoch, and after the last one, as LrScheduleHandler leaves it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = two_phase_schedule(optimizer, max_epochs=epochs, **options)
    rates = []
    for _ in range(epochs + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_schedule_is_constant_then_linear() -> None:
    rates = rates_of(250)
    assert rates[:101] == [1.0] * 101
    by_hand = {101: 149 / 150, 130: 0.8, 175: 0.5, 220: 0.2, 249: 1 / 150, 250: 0.0}
    assert {epoch: rates[epoch] for epoch in by_hand} == pytest.approx(by_hand, rel=TOLERANCE)


@pytest.mark.parametrize(("constant", "expected"), [(0.0, [1.0, 0.75, 0.5, 0.25, 0.0]), (1.0, [1.0] * 4)])
def test_schedule_with_one_phase(constant: float, expected: list[float]) -> None:
    assert rates_of(4, constant=constant)[: len(expected)] == pytest.approx(expected)
