"""Tests of scripts.training.schedule: the learning rate by epoch."""

import pytest
import torch
from torch import nn

from scripts.training.schedule import two_phase_schedule

TOLERANCE = 1e-6  # of rates that the scheduler multiplies


def test_schedule_is_constant_then_linear() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = two_phase_schedule(optimizer, max_epochs=250)
    rates = []
    for _ in range(251):
        rates.append(optimizer.param_groups[0]["lr"] / 1e-4)
        optimizer.step()
        schedule.step()
    assert rates[:101] == [1.0] * 101
    by_hand = {101: 149 / 150, 130: 0.8, 175: 0.5, 220: 0.2, 249: 1 / 150, 250: 0.0}
    assert {epoch: rates[epoch] for epoch in by_hand} == pytest.approx(by_hand, rel=TOLERANCE)


@pytest.mark.parametrize(("constant", "expected"), [(0.0, [1.0, 0.75, 0.5, 0.25, 0.0]), (1.0, [1.0] * 4)])
def test_schedule_with_one_phase(constant: float, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = two_phase_schedule(optimizer, max_epochs=4, constant=constant)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()  # also after the last epoch, as LrScheduleHandler does
    rates.append(optimizer.param_groups[0]["lr"])
    assert rates[: len(expected)] == pytest.approx(expected)
