"""Tests of scripts.training.heads: the means over tumor of made validations, and when a warning is given."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted, Compose
from torch import Tensor, nn

from scripts.networks.tissnet import COARSE, ERROR, PRED, SYNTHETIC, name_outputs
from scripts.training.heads import HeadsHandler
from scripts.transforms import SplitPredictiond

NAMES = (PRED, SYNTHETIC, COARSE, ERROR)
LOGGER = "scripts.training.heads"
Values = tuple[float, float, float]  # of y_f, y_c, y_e over tumor; elsewhere all heads say 0.9


def case(voxels: int) -> dict[str, Tensor]:
    """A scan whose source image is its tumor, so many voxels of 64."""
    y = torch.zeros(1, 64)
    y[:, :voxels] = 1
    return {"image": y.reshape(1, 4, 4, 4), "label": y.reshape(1, 4, 4, 4)}


def validate(
    handler: HeadsHandler, sequence: Sequence[Values], *, names: Sequence[str] = NAMES, tumors: Sequence[int] = (8, 24)
) -> list[dict[str, float]]:
    """Runs one evaluator once for every entry; returns its metrics after each."""
    now: dict[str, float] = {}

    def inferer(inputs: Tensor, network: nn.Module) -> Tensor:
        y = torch.as_tensor(inputs).as_subclass(Tensor)
        heads = [torch.where(y > 0, now.get(name, 0.0), 0.9) for name in names]
        return name_outputs(torch.cat(heads, dim=1), names)

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([case(voxels) for voxels in tumors]), batch_size=1),
        network=nn.Identity(),
        inferer=inferer,  # type: ignore[arg-type]
        postprocessing=Compose([SplitPredictiond("pred"), AsDiscreted("pred", threshold=0.5)]),
        val_handlers=[handler],
    )
    metrics = []
    for values in sequence:
        now.update(zip((PRED, COARSE, ERROR), values, strict=True))
        evaluator.run()
        metrics.append(dict(evaluator.state.metrics))
    return metrics


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def test_means_are_over_the_tumors_voxels_of_all_cases_before_the_threshold() -> None:
    (metrics,) = validate(HeadsHandler(), [(0.6, 0.3, 0.2)])
    y_r = 0.3 * 0.8 + 0.7 * 0.2
    assert metrics == pytest.approx({"y_f_on_tumor": 0.6, "y_c_on_tumor": 0.3, "y_r_on_tumor": y_r})


def test_large_tumors_count_by_their_voxels() -> None:
    """The inferer's value is the tumor's share of the scan: 0.125 in 8 voxels, 0.375 in 24."""
    handler = HeadsHandler()
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([case(8), case(24)]), batch_size=1),
        network=nn.Identity(),
        inferer=lambda inputs, network: name_outputs(torch.full((1, 1, 4, 4, 4), inputs.mean().item()), [PRED]),  # type: ignore[arg-type]
        val_handlers=[handler],
    )
    evaluator.run()
    expected = {"y_f_on_tumor": (8 * 0.125 + 24 * 0.375) / 32}
    assert evaluator.state.metrics == pytest.approx(expected)
    evaluator.run()
    assert evaluator.state.metrics == pytest.approx(expected), "the sums start anew"


def test_a_dying_coarse_mask_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """As in trainings with the paper's weights: y_f rises, y_c falls, y_e takes its place."""
    dying = [(0.3, 0.3, 0.3), (0.5, 0.28, 0.4), (0.6, 0.2, 0.7), (0.7, 0.1, 0.8), (0.8, 0.02, 0.9), (0.8, 0.01, 0.9)]
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        validate(HeadsHandler(), dying)
    (message,) = warnings_of(caplog)
    assert message.startswith("y_c is 0.20 on average over tumor (0.28 before), y_f 0.60: the coarse mask dies")
    assert "docs/method.md" in message


def test_an_error_map_that_floods_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """As with Dice on the error: y_c is right, and y_r flips it."""
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        validate(HeadsHandler(), [(0.5, 0.5, 0.2), (0.7, 0.7, 0.7), (0.7, 0.9, 0.9), (0.8, 0.95, 0.95)])
    (message,) = warnings_of(caplog)
    assert message.startswith("y_r is ") and "marks what the coarse mask has right" in message


@pytest.mark.parametrize(
    "healthy",
    [
        [(0.1, 0.1, 0.1), (0.4, 0.3, 0.3), (0.6, 0.5, 0.2), (0.8, 0.7, 0.1), (0.78, 0.68, 0.1)],
        [(0.5, 0.5, 0.5), (0.05, 0.01, 0.0), (0.1, 0.005, 0.0), (0.3, 0.2, 0.0)],  # the first steps: all go down
        [(0.5, 0.05, 0.6), (0.6, 0.1, 0.6), (0.65, 0.2, 0.6)],  # late, but it rises
        [(0.8, 0.5, 0.1), (0.5, 0.2, 0.1)],  # all fall together: no head dies for another
        [(0.5, 0.01, 0.6)],  # nothing to compare with
    ],
    ids=["together", "first steps", "late", "all fall", "first"],
)
def test_a_healthy_training_is_left_alone(healthy: list[Values], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        validate(HeadsHandler(), healthy)
    assert warnings_of(caplog) == []


def test_other_networks_and_scans_without_tumor_are_followed_as_far_as_they_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        assert validate(HeadsHandler(), [(0.4, 0.0, 0.0)] * 3, names=[PRED, SYNTHETIC])[-1] == pytest.approx(
            {"y_f_on_tumor": 0.4}
        )
        assert validate(HeadsHandler(), [(0.4, 0.0, 0.0)] * 3, tumors=[0, 0]) == [{}] * 3
        assert set(validate(HeadsHandler(), [(0.4, 0.3, 0.0)], tumors=[0, 4])[0]) == {
            f"{name}_on_tumor" for name in ("y_f", "y_c", "y_r")
        }
    assert warnings_of(caplog) == []
