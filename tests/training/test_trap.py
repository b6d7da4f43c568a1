"""Tests of what docs/method.md says under "Where the losses depart": the trap of y_c, and Dice on the error map.

The heads are free logits here, so that nothing but the losses moves them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made.training import make_method
from torch import Tensor

from scripts.networks.tissnet import refine
from scripts.training.losses import SegmentorLoss

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
OPTIONS = ("weights", "cross_entropy", "detach_coarse", "error_loss", "error_target")
SIZE = (4, 4, 4)
RIGHT = 0.98  # of a head that is sure
RATE = 0.1

CONFIG = {
    "paper": yaml.safe_load((CONFIGS / "paper.yaml").read_text(encoding="utf-8")),
    "train": json.loads((CONFIGS / "train.json").read_text(encoding="utf-8")),
}


def tumor(*size: int) -> Tensor:
    """A mask with a tumor of 8 voxels."""
    y = torch.zeros(1, 1, *size)
    y[:, :, 1:3, 1:3, 1:3] = 1
    return y


def heads(y: Tensor, y_c: float) -> dict[str, Tensor]:
    """In the trap: y_c as given on tumor, y_f = y_e = y; all low elsewhere."""
    on_tumor = {"y_c_logits": y_c, "y_f_logits": RIGHT, "y_e_logits": RIGHT}
    return {
        name: torch.logit(torch.where(y > 0, torch.tensor(p), torch.tensor(1 - RIGHT))).requires_grad_()
        for name, p in on_tumor.items()
    }


def total(config: str, outputs: dict[str, Tensor], y: Tensor, **more: Any) -> Tensor:
    """What a config's method makes of the masks: L_c + eq. 9."""
    method = make_method(**{name: CONFIG[config][name] for name in OPTIONS} | more)
    return sum((method.coarse(outputs["y_c_logits"], y) | method.segmentor(outputs, y)).values())  # type: ignore[return-value]


def descend(config: str, outputs: dict[str, Tensor], y: Tensor, steps: int = 200) -> dict[str, float]:
    """Mean of every head over tumor after that many steps of Adam."""
    method = make_method(**{name: CONFIG[config][name] for name in OPTIONS})
    optimizer = torch.optim.Adam(outputs.values(), lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        terms = method.coarse(outputs["y_c_logits"], y) | method.segmentor(outputs, y)
        torch.stack([*terms.values()]).sum().backward()
        optimizer.step()
    return {name[:3]: torch.sigmoid(value)[y > 0].mean().item() for name, value in outputs.items()}


def upward(loss: Tensor, outputs: dict[str, Tensor], y: Tensor) -> Tensor:
    """How a step of gradient descent moves the logits of y_c on tumor."""
    (gradient,) = torch.autograd.grad(loss, outputs["y_c_logits"])
    return -gradient[y > 0]


@pytest.mark.parametrize("y_c", [0.25, 0.3, 0.4, 0.49])
def test_the_papers_total_moves_y_c_down_in_the_trap_and_ours_up(y_c: float) -> None:
    y = tumor(*SIZE)
    outputs = heads(y, y_c)
    assert (upward(total("paper", outputs, y), outputs, y) < 0).all()
    assert (upward(total("train", outputs, y), outputs, y) > 0).all()
    assert (upward(total("train", outputs, y, detach_coarse=True), outputs, y) > 0).all()


def test_the_push_of_the_consistency_is_the_formula() -> None:
    """d L_con / d y_c = 2 (y_r - y_f) (1 - 2 y_e) / N; times y_c (1 - y_c) for the logit."""
    y = tumor(*SIZE)
    outputs = heads(y, 0.4)
    loss = SegmentorLoss(segmentor=25.0, fine=0.0, error=0.0, consistency=1.0)
    (gradient,) = torch.autograd.grad(loss(outputs, y)["consistency"], outputs["y_c_logits"])
    y_c, y_f, y_e = (torch.sigmoid(value.detach()) for value in outputs.values())
    expected = 25 * 2 * (refine(y_c, y_e) - y_f) * (1 - 2 * y_e) / y.numel() * y_c * (1 - y_c)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-8) and (gradient[y > 0] > 0).all()


@pytest.mark.parametrize("y_c", [0.02, 0.4])
def test_the_trap_holds_with_the_papers_losses_alone(y_c: float) -> None:
    """Wherever y_c starts below 0.5: the balance of L_c with eq. 8, with y_f right and y_e calling all of y wrong."""
    y = tumor(*SIZE)  # an eighth of the patch
    trapped = descend("paper", heads(y, y_c), y)
    assert trapped["y_c"] == pytest.approx(0.2, abs=0.02)
    assert trapped["y_e"] > 0.99 and trapped["y_f"] > 0.99
    alive = descend("train", heads(y, y_c), y)
    assert alive["y_c"] > 0.97 and alive["y_e"] < 0.05 and alive["y_f"] > 0.99


def test_a_small_tumor_is_not_trapped() -> None:
    """Dice pulls by the tumor, the consistency by the patch: 8 voxels of 512."""
    y = tumor(8, 8, 8)
    alive = descend("paper", heads(y, 0.02), y, steps=500)
    assert alive["y_c"] > 0.9 and alive["y_e"] < 0.1


@pytest.mark.parametrize(("error_loss", "marked"), [("dice", 1.0), ("cross_entropy", 0.25)])
def test_dice_marks_errors_of_half_its_value_and_cross_entropy_is_a_probability(error_loss: str, marked: float) -> None:
    """In half of the voxels y_c is wrong one time in four, unpredictably: the best Dice is 0.4, and 0.25 is over 0.2.

    y_e is one map for all samples. Where y_c errs one time in four, y_r is wrong three times in four with Dice.
    """
    y = torch.ones(4, 1, *SIZE)
    wrong = torch.zeros_like(y)
    wrong[0, ..., :2] = 1
    y_c = torch.where(wrong > 0, 0.1, 0.9)
    y_e_logits = torch.zeros(1, 1, *SIZE, requires_grad=True)
    loss = SegmentorLoss(segmentor=1.0, fine=0.0, error=1.0, consistency=0.0, error_loss=error_loss)
    optimizer = torch.optim.Adam([y_e_logits], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss({"y_c_logits": torch.logit(y_c), "y_e_logits": y_e_logits.expand_as(y)}, y)["error"].backward()
        optimizer.step()
    y_e = torch.sigmoid(y_e_logits.detach())
    assert y_e[..., :2].mean().item() == pytest.approx(marked, abs=0.02)
    assert y_e[..., 2:].mean().item() == pytest.approx(0, abs=0.02)
    right = (refine(y_c, y_e) > 0.5)[..., :2].float().mean().item()
    assert right == (0.25 if error_loss == "dice" else 0.75)
