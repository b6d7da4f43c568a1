"""Tests of averaging: its values by hand, when it is updated, what it refuses. Resumes are in test_checkpoints.py."""

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Events
from made.training import Voxels, make_batch
from torch import nn

from scripts.training.averaging import WeightAverage
from scripts.training.trainer import MethodTrainer

TOLERANCE = 1e-6  # float32


def average_of(weights: list[float], *, decay: float) -> float:
    """The average after steps that left these weights."""
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, decay=decay)
    for weight in weights:
        nn.init.constant_(network.weight, weight)
        average.update_parameters(network)
    return average.module.weight.item()


@pytest.mark.parametrize(
    ("weights", "decay", "expected"),
    [
        ([7.0], 0.98, 7.0),  # the random weights of the start do not count
        ([0.0, 6.0], 0.98, 5.0),  # 2/12 of the average, 10/12 of the weight
        ([0.0, 6.0, 13.0], 0.98, 3 / 13 * 5 + 10 / 13 * 13),
        ([0.0, 6.0, 13.0], 0.1, 0.1 * 5.4 + 0.9 * 13),  # from the first step on the decay is the smaller
        ([1.0] * 989 + [0.0], 0.98, 0.98),  # (n + 1) / (n + 11) passes 0.98 at n = 489
        ([1.0, 2.0, 3.0], 0.0, 3.0),
    ],
)
def test_averages_by_hand(weights: list[float], decay: float, expected: float) -> None:
    assert average_of(weights, decay=decay) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"average_decay is {decay}: expected 0 .* to below 1"):
        WeightAverage(nn.Linear(1, 1), decay=decay)


def train(decay: float, *, accumulation_steps: int = 1) -> tuple[Voxels, WeightAverage, list[int]]:
    """Five batches; and after each the number of steps averaged."""
    method = Voxels()
    average = WeightAverage(method.G, decay=decay)
    optimizers = [
        torch.optim.SGD(p, lr=0.1) for p in (method.generator_parameters(), method.discriminator_parameters())
    ]
    batches = [make_batch(True, seed=i) for i in range(5)]
    trainer = MethodTrainer("cpu", 1, batches, method, *optimizers, accumulation_steps=accumulation_steps)
    average.attach(trainer)
    counted: list[int] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: counted.append(int(average.n_averaged)))
    trainer.run()
    return method, average, counted


def test_only_steps_of_the_optimizer_are_averaged() -> None:
    assert train(0.9)[2] == [1, 2, 3, 4, 5]
    assert train(0.9, accumulation_steps=2)[2] == [0, 1, 1, 2, 3]  # the epoch's last batch is a step of its own


def test_without_decay_the_average_is_the_last_step_to_the_last_bit() -> None:
    for decay, same in ((0.0, True), (0.9, False)):
        method, average, _ = train(decay)
        weights = average.module.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in method.G.state_dict().items()) is same


def test_the_average_is_a_copy_that_nothing_trains() -> None:
    method, average, _ = train(0.9)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    before = copy.deepcopy(method.state_dict())
    for parameter in average.module.parameters():
        nn.init.zeros_(parameter)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    assert {name.split(".")[0] for name in average.state_dict()} == {"n_averaged", "module"}
