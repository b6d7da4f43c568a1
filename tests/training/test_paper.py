"""Tests of configs/paper.yaml: a step that it trains has the terms of the paper's equations, written out here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor, nn

RTOL = 1e-5
STACK = ["train.json", "paper.yaml", "debug.yaml"]


def dice(p: Tensor, q: Tensor) -> Tensor:
    return 1 - (2 * (p * q).sum() + 1) / (p.sum() + q.sum() + 1)


def box(y: Tensor) -> Tensor:
    """M of eq. 4."""
    M = torch.zeros_like(y)
    for mask, sample in zip(M, y, strict=True):
        if len(inside := sample[0].nonzero()):
            low, high = inside.amin(0), inside.amax(0) + 1
            mask[0, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1
    return M


def over_tumors(values: Tensor, y: Tensor) -> Tensor:
    """Mean over the samples with tumor."""
    there = y.flatten(1).amax(1) > 0
    return values[there].mean() if there.any() else values.new_zeros(())


def paper(
    batch: dict[str, Tensor], outputs: dict[str, Tensor], S_p: nn.Module, D_g: nn.Module, D_t: nn.Module
) -> dict[str, Tensor]:
    """Every term of equations 1 to 9 with the paper's weights."""
    x_s, x_t, y, x_t_syn = batch["image"], batch["target"], batch["label"], outputs["x_t_syn"]
    y_c, y_f, y_e = (torch.sigmoid(outputs[f"{name}_logits"]) for name in ("y_c", "y_f", "y_e"))
    M = box(y)
    fake, real = D_g(torch.cat([x_s, x_t_syn], 1)), D_g(torch.cat([x_s, x_t], 1))
    fake_t, real_t = D_t(torch.cat([M * x_s, M * x_t_syn], 1)), D_t(torch.cat([M * x_s, M * x_t], 1))
    y_r = y_c * (1 - y_e) + (1 - y_c) * y_e
    return {
        "l1_global": 50 * (x_t_syn - x_t).abs().mean(),
        "adversarial_global": ((fake - 1) ** 2).mean(),
        "l1_tumor": 200 * over_tumors((M * x_t_syn - M * x_t).abs(), y),
        "adversarial_tumor": over_tumors((fake_t - 1) ** 2, y),
        "perceptibility": 25 * dice(torch.sigmoid(S_p(x_t_syn)), y),
        "coarse": dice(y_c, y),
        "fine": 25 * dice(y_f, y),
        "error": 25 * dice(y_e, (y != (y_c > 0.5)).float()),
        "consistency": 25 * ((y_f - y_r) ** 2).mean(),
        "D_g": (fake**2).mean() + ((real - 1) ** 2).mean(),
        "D_t": over_tumors(fake_t**2, y) + over_tumors((real_t - 1) ** 2, y),
    }


def test_a_step_of_paper_yaml_has_the_papers_terms(
    open_workflow: Callable[..., ConfigWorkflow], vs_data: Path, tmp_path: Path
) -> None:
    given = {"dataset_dir": str(vs_data), "run_dir": str(tmp_path / "run"), "cache_rate": 0.0, "device": "cpu"}
    own = {"train#handlers": [], "train#trainer#epoch_length": 1, "epochs": 1, "amp": False, "compile": False}
    workflow = open_workflow(STACK, given | own | {"perceptor_path": str(weights(open_workflow, given, tmp_path))})
    torch.manual_seed(0)
    trainer: Any = workflow.parser.get_parsed_content("train#trainer")
    before = copy.deepcopy(trainer.method.eval())
    seen: dict[str, Any] = {}

    def inferer(batch: dict[str, Tensor], method: nn.Module) -> dict[str, Tensor]:
        outputs = method(batch)
        seen.update(batch=batch, outputs={name: value.detach() for name, value in outputs.items()})
        return outputs

    trainer.inferer = inferer
    trainer.run()
    assert len(seen["batch"]["label"]) == 2 and seen["batch"]["label"].any()
    with torch.no_grad():
        expected = paper(seen["batch"], seen["outputs"], before.perceptibility.S_p, before.D_g, before.D_t)
    output = trainer.state.output[0]
    assert {name: float(output[name]) for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=RTOL
    )
    total = sum(value.item() for name, value in expected.items() if name not in ("D_g", "D_t"))
    assert float(output["loss"]) == pytest.approx(total, rel=RTOL)
    for parameter, old in zip(trainer.method.parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, old) is not parameter.requires_grad  # S_p alone stays


def weights(open_workflow: Callable[..., ConfigWorkflow], given: dict[str, Any], folder: Path) -> Path:
    """A perceptor as initialized."""
    torch.manual_seed(1)
    network = open_workflow(STACK, given).parser.get_parsed_content("perceptor_def")
    torch.save(network.state_dict(), folder / "perceptor.pt")
    return folder / "perceptor.pt"
