"""The exported formats against PyTorch on a real patient, and the comparison itself: benchmarks/exports.py.

The network here is tiny and untrained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import yaml
from exports import FORMATS, PYTORCH, command, compare, lacking, load, make, read_config, report
from monai.bundle import ConfigParser, ckpt_export, onnx_export
from torch import Tensor

from scripts.data.datalist import load_datalist
from scripts.networks.tissnet import TISSNet
from scripts.weights import load_weights

BENCHMARK = Path(__file__).parent / "benchmarks" / "exports.py"
CPU = torch.device("cpu")
PATCH = [32, 32, 8]  # debug.yaml's
PIXDIM = [2.0, 2.0, 2.0]
SMALL = (4, 4, 8, 8, 8)  # debug.yaml's features
HEAD_STD = 0.5  # heads start near 0; with this, probabilities go from near 0 to near 1
SPREAD = 0.9
ON_A_CPU = [name for name in FORMATS if lacking(name, CPU) is None]
# Largest difference of the probability: at least five times what this network had on the committed patient, and on a
# whole one, in whose windows is more air.
TOLERANCES = {name: 0.1 if name == "OpenVINO, its own choice" else 1e-4 for name in ON_A_CPU}
ON_A_WHOLE_SCAN = TOLERANCES | {"ONNX Runtime": 3e-4, "OpenVINO, float32": 0.01}
PROCESS_SECONDS = 900

Compared = tuple[Tensor, dict[str, list[float]]]


@pytest.fixture(scope="module")
def bundle(bundle_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A glioma bundle: three source modalities, debug.yaml's sizes, weights from a seed, float16 as shipped."""
    folder = tmp_path_factory.mktemp("tissnet_glioma")
    configs = bundle_root / "configs"
    content = json.loads((configs / "inference.json").read_text())
    for name in ("glioma.yaml", "debug.yaml"):
        override = yaml.safe_load((configs / name).read_text())
        content |= {key: value for key, value in override.items() if key in content}
    for name in ("configs", "models"):
        (folder / name).mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(content | {"pixdim": PIXDIM}))
    (folder / "configs" / "metadata.json").write_text((configs / "metadata.json").read_text())
    torch.manual_seed(0)
    network = TISSNet(3, features=SMALL)
    torch.nn.init.normal_(network.S.decoders[0].head.weight, std=HEAD_STD)
    torch.save(network.half().state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def files(bundle: Path) -> Path:
    """The exported files, by the documented commands; MONAI's in this process, which saves the start of two."""
    folder = bundle / "exports"
    folder.mkdir()
    shared = {"net_id": "network_def", "ckpt_file": str(bundle / "models" / "model.pt")}
    shared |= {
        f"{name}_file": str(bundle / "configs" / f"{file}.json")
        for name, file in (("meta", "metadata"), ("config", "inference"))
    }
    ckpt_export(filepath=str(folder / "model.ts"), **shared)
    onnx_export(filepath=str(folder / "model.onnx"), input_shape=[1, 3, *PATCH], **shared)
    make("model.xml", bundle, folder, [1, 3, *PATCH])
    return folder


def runs_of(bundle: Path, files: Path, names: list[str], device: torch.device) -> tuple[ConfigParser, dict[str, Any]]:
    """The bundle's config, and the forward passes of PyTorch and the formats."""
    config = read_config(bundle)
    network = load_weights(config.get_parsed_content("network_def"), path=bundle / "models" / "model.pt")
    return config, {PYTORCH: network.to(device).eval(), **{name: load(name, files, device) for name in names}}


def sources(folder: Path) -> list[Path]:
    """The source scans of a prepared folder's only case."""
    (entry,) = load_datalist(folder / "datalist.json", "testing")
    return [Path(file) for file in entry["image"]]


@pytest.fixture(scope="module")
def compared(bundle: Path, files: Path, real_mri: Callable[[str], Path]) -> Compared:
    """All formats of a CPU on the committed patient."""
    config, runs = runs_of(bundle, files, ON_A_CPU, CPU)
    return compare(config, runs, sources(real_mri("glioma")), CPU)


def assert_agrees(compared: Compared, name: str, tolerance: float) -> None:
    predicted, seconds = compared
    exact, found = predicted[0], predicted[list(seconds).index(name)]
    assert exact.max() - exact.min() > SPREAD, "a format that computes nothing would go unseen"
    assert len(seconds[name]) > 1
    assert float((found - exact).abs().max()) < tolerance


@pytest.mark.parametrize("name", ON_A_CPU)
def test_a_format_agrees_with_pytorch_on_a_real_patient(name: str, compared: Compared) -> None:
    assert_agrees(compared, name, TOLERANCES[name])


def test_every_format_of_a_cpu_is_compared() -> None:
    """They are in requirements.txt."""
    assert ON_A_CPU == ["TorchScript", "ONNX Runtime", "OpenVINO, float32", "OpenVINO, its own choice"]
    assert lacking("TensorRT, float16", CPU) == "not on cpu, only on cuda"


def test_predictions_lie_on_the_scans_own_grid(compared: Compared, real_mri: Callable[[str], Path]) -> None:
    import nibabel as nib

    assert compared[0].shape[1:] == nib.load(sources(real_mri("glioma"))[0]).shape


def test_torchscript_takes_any_size_and_onnx_the_window(files: Path) -> None:
    """As the model card says."""
    session = onnxruntime.InferenceSession(files / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, *PATCH]
    x = torch.zeros(2, 3, 40, 36, 11)
    assert torch.jit.load(str(files / "model.ts"))(x).shape == (2, 1, 40, 36, 11)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ([0.9, 0.9, 0.1, 0.1], None),
        ([0.9, 0.881, 0.1, 0.1], None),
        ([0.9, 0.87, 0.1, 0.1], "ONNX Runtime: the probability differs by 0.03 (allowed 0.02)"),
        ([float("nan"), 0.9, 0.1, 0.1], "ONNX Runtime: the probability differs by nan"),
    ],
)
def test_a_disagreement_is_told(found: list[float], problem: str | None) -> None:
    predicted = torch.tensor([[0.9, 0.9, 0.1, 0.1], found])
    seconds = {PYTORCH: [2.0, 4.0, 2.0], "ONNX Runtime": [1.0, 1.0, 5.0]}
    truth = torch.tensor([True, False, False, False])
    table, wrong = report(predicted, seconds, sizes={PYTORCH: 30.0, "ONNX Runtime": 60.0}, truth=truth, least=0.5)
    assert [message.startswith(str(problem)) for message in wrong] == ([] if problem is None else [True])
    assert table.splitlines()[2] == "| PyTorch | 30.0 | 2.000 | 1.00 | 0 | 1.00000 | 0.6667 |"
    assert table.splitlines()[3].startswith("| ONNX Runtime | 60.0 | 1.000 | 0.50 |")


def test_other_masks_are_told_though_probabilities_hardly_differ() -> None:
    """At the threshold; and without any mask nothing was compared."""
    seconds = {PYTORCH: [1.0], "TorchScript": [1.0]}
    predicted = torch.tensor([[0.50001, 0.50001], [0.50001, 0.49999]])
    _, wrong = report(predicted, seconds, sizes=dict.fromkeys(seconds, 1.0), truth=None, least=0.5)
    assert len(wrong) == 1 and "Dice with PyTorch's mask 0.66667" in wrong[0]
    _, wrong = report(torch.zeros(2, 4), seconds, sizes=dict.fromkeys(seconds, 1.0), truth=None, least=0.5)
    assert wrong == ["PyTorch's mask is empty: compare on a case with a tumor"]


def test_a_command_that_fails_is_told_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="(?s)ended with status .*model.onnx"):
        make("model.xml", tmp_path, tmp_path, [1, 1, *PATCH])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is here")
def test_tensorrt_agrees_with_pytorch_on_a_real_patient(bundle: Path, real_mri: Callable[[str], Path]) -> None:
    name, cuda = "TensorRT, float16", torch.device("cuda")
    if reason := lacking(name, cuda):
        pytest.skip(reason)
    folder = bundle / "exports_gpu"
    folder.mkdir()
    make(FORMATS[name].file, bundle, folder, [1, 3, *PATCH])
    config, runs = runs_of(bundle, folder, [name], cuda)
    assert_agrees(compare(config, runs, sources(real_mri("glioma")), cuda), name, FORMATS[name].difference)


@pytest.mark.slow
@pytest.mark.skipif("TISSNET_DATA" not in os.environ, reason="TISSNET_DATA names no folder of real data")
def test_formats_agree_on_a_whole_real_patient(bundle: Path, files: Path) -> None:
    case = min(path for path in (Path(os.environ["TISSNET_DATA"]) / "glioma").iterdir() if path.is_dir())
    scans = [case / f"{case.name}_{modality}.nii.gz" for modality in ("t1", "t1ce", "t2")]
    config, runs = runs_of(bundle, files, ON_A_CPU, CPU)
    compared = compare(config, runs, scans, CPU)
    for name in ON_A_CPU:
        assert_agrees(compared, name, ON_A_WHOLE_SCAN[name])


@pytest.mark.slow
def test_the_shipped_weights_by_the_commands() -> None:
    """The whole benchmark as a user starts it, on its phantom."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", BENCHMARK],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in [PYTORCH, *ON_A_CPU]:
        assert f"\n| {name} | " in done.stdout
    made = [line for line in done.stdout.splitlines() if line.startswith("python -m ")]
    assert [line.split()[2] for line in made] == ["monai.bundle", "monai.bundle", "openvino.tools.ovc"]
    assert command("model.onnx", Path("x"), [1, 1, 128, 128, 16])[-1] in made[1]
