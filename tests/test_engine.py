"""Tests of scripts.engine: the same numbers on every engine, compiled anew when weights or shapes change, errors."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts import engine as module_under_test
from scripts.engine import Engine
from scripts.networks.unet2d5 import UNet2d5
from scripts.outputs import MaskOutput

TINY = (4, 4, 8, 8, 8)
FLOAT32_ATOL = 1e-4
BFLOAT16_ATOL = 0.1


def batch(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def segmentor() -> nn.Module:
    """A U-Net, not the cascade: OpenVINO takes seconds to read that. Its heads start near 0; here they do not."""
    torch.manual_seed(0)
    network = UNet2d5(1, 1, features=TINY)
    nn.init.normal_(network.decoders[0].head.weight)  # type: ignore[arg-type]
    return MaskOutput(network).eval()


@torch.no_grad()
def test_openvino_computes_what_torch_does(segmentor: nn.Module) -> None:
    x = batch(1, 1, 30, 21, 7)  # not a multiple of the pooling: padded inside
    expected = Engine("torch", precision="float32")(segmentor, x)
    engine = Engine("openvino", precision="float32")
    assert torch.allclose(engine(segmentor, x), expected, atol=FLOAT32_ATOL)


@torch.no_grad()
def test_bfloat16_is_close_and_float32_comes_out(segmentor: nn.Module) -> None:
    x = batch(1, 1, 32, 32, 8)
    expected = Engine("torch", precision="float32")(segmentor, x)
    out = Engine("torch", precision="bfloat16")(segmentor, x)
    assert out.dtype == torch.float32 and not torch.equal(out, expected)
    assert torch.allclose(out, expected, atol=BFLOAT16_ATOL)


@torch.no_grad()
def test_openvino_follows_new_weights_without_being_told() -> None:
    convolution = nn.Conv3d(1, 1, 1).eval()
    nn.init.constant_(convolution.weight, 2.0)
    nn.init.constant_(convolution.bias, 0.5)
    engine = Engine("openvino", precision="float32")
    x = torch.ones(1, 1, 4, 4, 4)
    assert engine(convolution, x)[0, 0, 0, 0, 0] == pytest.approx(2.5)
    convolution.load_state_dict({"weight": torch.full((1, 1, 1, 1, 1), 3.0), "bias": torch.zeros(1)})
    assert engine(convolution, x)[0, 0, 0, 0, 0] == pytest.approx(3.0)
    assert engine(convolution, 2 * x)[0, 0, 0, 0, 0] == pytest.approx(6.0)
    two = engine(convolution, torch.cat([x, -x]))  # another batch size
    assert two[:, 0, 0, 0, 0].tolist() == pytest.approx([3.0, -3.0])


@torch.no_grad()
def test_a_module_is_compiled_once(caplog: pytest.LogCaptureFixture) -> None:
    convolution = nn.Conv3d(1, 1, 1).eval()
    engine = Engine("torch")
    with caplog.at_level(logging.INFO, logger="scripts.engine"):
        for _ in range(3):
            engine(convolution, torch.ones(1, 1, 4, 4, 4))
    assert [record.getMessage() for record in caplog.records] == ["engine: torch, float32, on cpu, windows of 4x4x4"]


def test_auto_takes_openvino_on_a_cpu_and_torch_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine("auto").chosen(torch.device("cpu"))[0] == "openvino"
    assert Engine("auto").chosen(torch.device("cuda")) == ("torch", "bfloat16")
    assert Engine("auto", precision="float32").chosen(torch.device("cuda")) == ("torch", "float32")
    monkeypatch.setattr(module_under_test.importlib.util, "find_spec", lambda name: None)
    assert Engine("auto").chosen(torch.device("cpu")) == ("torch", "float32")


@torch.no_grad()
def test_auto_goes_on_with_torch_where_openvino_cannot(caplog: pytest.LogCaptureFixture) -> None:
    class Unknown(nn.Module):
        """Sorting by a complex transform, which OpenVINO has no operation for."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(x)

    x = batch(1, 1, 2, 3, 3)
    with caplog.at_level(logging.WARNING, logger="scripts.engine"):
        out = Engine("auto")(Unknown(), x)
    assert torch.allclose(out, torch.linalg.svdvals(x))
    assert "going on with torch" in caplog.text
    with pytest.raises(RuntimeError):
        Engine("openvino")(Unknown(), x)


def test_openvino_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="openvino is not installed"):
        Engine("openvino", precision="float32")(nn.Identity(), torch.zeros(1, 1, 2, 2, 2))


@pytest.mark.parametrize("arguments", [{"name": "onnx"}, {"name": "torch", "precision": "int8"}])
def test_unknown_choices_are_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        Engine(**arguments)


def test_openvino_is_for_a_cpu() -> None:
    with pytest.raises(ValueError, match="expected the CPU"):
        Engine("openvino").chosen(torch.device("cuda"))


SIGNAL_AFTER_OPENVINO = """
import signal, subprocess, sys
import torch
from scripts.engine import Engine

def compile_and_forget():
    engine, module, x = Engine("openvino"), torch.nn.Conv3d(1, 1, 1).eval(), torch.ones(1, 1, 4, 4, 4)
    with torch.no_grad():
        engine(module, x)
        engine(module, torch.cat([x, x]))

signal.signal(signal.SIGCHLD, lambda *_: None)
compile_and_forget()
others = [bytearray(100_000) for _ in range(1000)]
subprocess.run([sys.executable, "-c", ""], check=True)
"""


def test_a_signal_after_openvino_is_harmless(bundle_root: Path) -> None:
    """A DataLoader's workers end with SIGCHLD; with OpenVINO unloaded that was a crash."""
    subprocess.run([sys.executable, "-c", SIGNAL_AFTER_OPENVINO], cwd=bundle_root, check=True, timeout=120)
