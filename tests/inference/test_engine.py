"""Tests of engine: the same numbers on every engine, compiled anew when weights or shapes change, errors."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from warm import Warm

from scripts.inference import engine as module_under_test
from scripts.inference.engine import Engine
from scripts.inference.stages import Outputs
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import UNet2d5

TINY = (4, 4, 8, 8, 8)
FLOAT32_ATOL = 1e-4
STAGES_ATOL = 1e-6
BFLOAT16_ATOL = 0.1


def batch(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def segmentor() -> nn.Module:
    """A U-Net, not the cascade: OpenVINO takes seconds to read that. Its heads start near 0; here they do not."""
    torch.manual_seed(0)
    network = UNet2d5(1, 1, features=TINY)
    nn.init.normal_(network.decoders[0].head.weight)  # type: ignore[arg-type]
    return Outputs(network).eval()


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
def test_openvino_follows_new_weights() -> None:
    convolution = nn.Conv3d(1, 1, 1).eval()
    nn.init.constant_(convolution.weight, 2.0)
    nn.init.constant_(convolution.bias, 0.5)
    engine = Engine("openvino", precision="float32")
    x = torch.ones(1, 1, 4, 4, 4)
    assert engine(convolution, x)[0, 0, 0, 0, 0] == pytest.approx(2.5)
    convolution.load_state_dict({"weight": torch.full((1, 1, 1, 1, 1), 3.0), "bias": torch.zeros(1)})
    engine.refresh(convolution, x.device)
    assert engine(convolution, x)[0, 0, 0, 0, 0] == pytest.approx(3.0)
    assert engine(convolution, 2 * x)[0, 0, 0, 0, 0] == pytest.approx(6.0)
    two = engine(convolution, torch.cat([x, -x]))  # another batch size
    assert two[:, 0, 0, 0, 0].tolist() == pytest.approx([3.0, -3.0])


def test_openvino_follows_weights_that_a_fused_optimizer_wrote() -> None:
    """It writes without raising the tensors' version counters."""
    torch.manual_seed(0)
    convolution, x = nn.Conv3d(1, 1, 1), torch.ones(1, 1, 4, 4, 4)
    optimizer = torch.optim.Adam(convolution.parameters(), lr=0.5, fused=True)
    engine = Engine("openvino", precision="float32")
    for _ in range(3):
        engine.refresh(convolution.eval(), x.device)
        with torch.no_grad():
            assert torch.allclose(engine(convolution, x), convolution(x), atol=FLOAT32_ATOL)
        convolution(x).sum().backward()
        optimizer.step()


@torch.no_grad()
def test_a_module_is_compiled_once_for_every_shape(caplog: pytest.LogCaptureFixture) -> None:
    convolution = nn.Conv3d(1, 1, 1).eval()
    engine = Engine("openvino", precision="float32")
    with caplog.at_level(logging.INFO, logger="scripts.inference.engine"):
        for size in (4, 5, 4, 5):
            engine.refresh(convolution, torch.device("cpu"))
            engine(convolution, torch.ones(1, 1, size, size, size))
    assert [record.getMessage()[-5:] for record in caplog.records] == ["4x4x4", "5x5x5"]


@torch.no_grad()
def test_a_module_is_compiled_once(caplog: pytest.LogCaptureFixture) -> None:
    convolution = nn.Conv3d(1, 1, 1).eval()
    engine = Engine("torch")
    with caplog.at_level(logging.INFO, logger="scripts.inference.engine"):
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
        """A Bessel function, which OpenVINO has no operation for."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    x, module = batch(1, 1, 2, 3, 3), Unknown().eval()
    level = logging.getLogger().level
    out = Engine("auto")(module, x)
    assert logging.getLogger().level == level
    assert torch.allclose(out, torch.special.bessel_j0(x))
    assert "OpenVINO cannot run this network" in caplog.text and "bessel" in caplog.text
    with pytest.raises(Exception, match="bessel"):
        Engine("openvino")(module, x)


def test_auto_goes_on_with_torch_where_openvino_does_not_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise OSError("libopenvino.so: no such file")

    monkeypatch.setattr(module_under_test, "_core", broken)
    with caplog.at_level(logging.WARNING, logger="scripts.inference.engine"):
        assert Engine("auto").chosen(torch.device("cpu")) == ("torch", "float32")
    assert "does not start (libopenvino.so" in caplog.text


# stages


@pytest.fixture(scope="module")
def cascade() -> Outputs:
    torch.manual_seed(0)
    return Outputs(TISSNet(1, features=TINY)).eval()


@torch.no_grad()
def test_the_stages_together_are_the_cascade(cascade: Outputs) -> None:
    x = batch(1, 1, 32, 32, 8)
    stages = cascade.stages(x)
    assert [stage.sensitive for stage in stages] == [True, False, True, False]
    values = [x]
    for stage in stages:
        values.append(stage.module.eval()(*(values[i] for i in stage.inputs)))
    assert torch.allclose(values[-1], cascade(x), atol=STAGES_ATOL)


@torch.no_grad()
def test_openvino_runs_the_stages(cascade: Outputs) -> None:
    """In bfloat16 where the processor computes in it; channels would differ by far more if they were mixed up."""
    x = batch(1, 1, 32, 32, 8)
    out = Engine("openvino", precision="bfloat16")(cascade, x)
    assert torch.allclose(out, cascade(x), atol=BFLOAT16_ATOL)
    mean = cascade(x).mean((0, 2, 3, 4))
    assert (mean[:, None] - mean).abs().sort().values[:, 1].max() > 2 * BFLOAT16_ATOL


@torch.no_grad()
def test_windows_that_have_to_be_padded_are_computed_in_float32(
    cascade: Outputs, caplog: pytest.LogCaptureFixture
) -> None:
    assert cascade.stages(batch(1, 1, 30, 32, 8)) == []
    with caplog.at_level(logging.INFO, logger="scripts.inference.engine"):
        x = batch(1, 1, 20, 16, 4)
        assert torch.allclose(Engine("openvino", precision="bfloat16")(cascade, x), cascade(x), atol=FLOAT32_ATOL)
    assert "float32 after all" in caplog.text


def test_a_network_whose_class_was_loaded_anew_has_stages_too(bundle_root: Path) -> None:
    """MONAI Label unloads `scripts` between two bundles."""
    spec = importlib.util.spec_from_file_location("another", bundle_root / "scripts" / "networks" / "tissnet.py")
    assert spec is not None and spec.loader is not None
    another = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(another)
    assert another.TISSNet is not TISSNet
    assert len(Outputs(another.TISSNet(1, features=TINY)).stages(batch(1, 1, 32, 32, 8))) == 4


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


def run_alone(code: str, warm: Warm, folder: Path, bundle_root: Path) -> None:
    """Code in a process of its own, which finds `scripts` and must end with status 0."""
    (folder / "code.py").write_text(f"import sys\nsys.path.insert(0, {str(bundle_root)!r})\n{code}")
    assert warm.run([str(folder / "code.py")], folder, folder / "log", 120, {}) == 0, (folder / "log").read_text()


TELL_NOBODY = """
import multiprocessing
import torch
from scripts.inference.engine import Engine

with torch.no_grad():
    Engine("openvino")(torch.nn.Conv3d(1, 1, 1).eval(), torch.ones(1, 1, 4, 4, 4))
told = [name for name in sys.modules if name.startswith("openvino_telemetry.")]
assert not told and not multiprocessing.active_children(), told
"""


def test_openvino_tells_nobody_of_its_use(warm: Warm, tmp_path: Path, bundle_root: Path) -> None:
    """It would, in a process that it forks; where there is no network, a training then never ended."""
    run_alone(TELL_NOBODY, warm, tmp_path, bundle_root)


SIGNAL_AFTER_OPENVINO = """
import signal, subprocess
import torch
from scripts.inference.engine import Engine

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


def test_a_signal_after_openvino_is_harmless(warm: Warm, tmp_path: Path, bundle_root: Path) -> None:
    """A DataLoader's workers end with SIGCHLD; with OpenVINO unloaded that was a crash."""
    run_alone(SIGNAL_AFTER_OPENVINO, warm, tmp_path, bundle_root)
