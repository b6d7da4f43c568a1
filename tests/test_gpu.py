"""The code on CUDA: a step, its waits, inference against the CPU, a crop inverted, nccl."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from made.training import make_batch, make_method
from monai.data import MetaTensor
from torch import nn

from scripts.inference.inferer import CascadeInferer, FullScanInferer
from scripts.networks.tissnet import TISSNet, name_outputs
from scripts.training.trainer import MethodTrainer
from scripts.transforms import CropAroundTumord, InvertPredictiond

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is here"),
]

SMALL = (4, 4, 8, 8, 8)
PROCESS_SECONDS = 300
LOSS_RTOL = 0.01  # after a step of Adam; convolutions in TensorFloat-32
AGREEMENT = 0.02  # largest difference of a probability, bfloat16 on the GPU against float32 on the CPU


def make_trainer(batches: int = 1, *, dropout: float = 0.0, **options: Any) -> MethodTrainer:
    method = make_method(dropout=(dropout,) * 5).to("cuda")
    batch = make_batch(True, True, size=(32, 32, 8))
    batch = {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    optimizers = [
        torch.optim.Adam(parameters, 1e-4, fused=True)
        for parameters in (method.generator_parameters(), method.discriminator_parameters())
    ]
    return MethodTrainer("cuda", 1, [batch] * batches, method, *optimizers, **options)


def test_a_training_step() -> None:
    trainer = make_trainer(dropout=0.5, amp=True, channels_last=True)
    before = [p.detach().clone() for p in trainer.method.generator_parameters()]
    trainer.run()
    after = trainer.method.generator_parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_step_waits_for_the_gpu_once() -> None:
    trainer = make_trainer(batches=4, amp=True)
    waits: list[int] = []

    def count() -> None:
        waits.append(len(warned))

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer.add_event_handler(Events.ITERATION_COMPLETED, count)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert waits[-1] - waits[-2] == 1, [str(w.message) for w in warned[waits[-2] : waits[-1]]]


@pytest.mark.slow
def test_compiled_channels_last_steps_agree_with_plain_ones() -> None:
    exact, fast = (
        make_trainer(batches=2, decollate=False),
        make_trainer(batches=2, decollate=False, channels_last=True, compile=True),
    )
    for trainer in (exact, fast):
        trainer.run()
    assert list(exact.method.state_dict()) == list(fast.method.state_dict())
    for name in ("loss", "loss_D"):
        assert float(fast.state.output[name]) == pytest.approx(float(exact.state.output[name]), rel=LOSS_RTOL), name


def test_inference_agrees_with_the_cpu() -> None:
    torch.manual_seed(0)
    network = TISSNet(1, features=SMALL).eval()
    image = torch.rand(1, 1, 40, 36, 12) * 2 - 1
    with torch.no_grad():
        cpu = CascadeInferer((32, 32, 8))(image, network)
        gpu = CascadeInferer((32, 32, 8), precision="bfloat16")(image.cuda(), network.cuda())
    assert (cpu - gpu.cpu()).abs().max() < AGREEMENT


class Bright(nn.Module):
    """As localizer: tumor where the scan is brighter than 0.5."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 40 * (x - 0.5)


def test_a_localized_scan_agrees_with_the_cpu(tmp_path: Path) -> None:
    """What inference.json runs, with flips and an ensemble."""
    torch.manual_seed(0)
    network, second = (TISSNet(1, features=SMALL).eval() for _ in range(2))
    torch.save(second.state_dict(), tmp_path / "second.pt")
    image = torch.full((1, 1, 120, 100, 24), -1.0)
    image[..., 8:112, 4:96, :] = torch.rand(1, 1, 104, 92, 24) - 0.9
    image[..., 40:46, 50:56, 10:13] = 1.0
    options: dict[str, Any] = {"localizer": Bright(), "localizer_roi_size": (32, 32, 8), "flips": [[0], [1, 2]]}
    options["ensemble"] = [str(tmp_path / "second.pt")]
    on_cpu = FullScanInferer((32, 32, 8), precision="float32", **options)
    on_gpu = FullScanInferer((32, 32, 8), engine="auto", precision="auto", **options)
    cpu = on_cpu(image, network)
    gpu = on_gpu(image.cuda(), network.cuda())
    assert on_cpu.localized and on_cpu.regions == on_gpu.regions and gpu.is_cuda
    assert (cpu - gpu.cpu()).abs().max() < AGREEMENT


@pytest.mark.slow
def test_compiled_inference_agrees_with_plain() -> None:
    """With CUDA graphs: a later window must not overwrite an earlier one's result."""
    torch.manual_seed(0)
    network = TISSNet(1, features=SMALL).eval().cuda()
    image = torch.rand(1, 1, 64, 48, 16, device="cuda") * 2 - 1
    plain, compiled = (CascadeInferer((32, 32, 8), compile=compile)(image, network) for compile in (False, True))
    assert (plain - compiled).abs().max() < AGREEMENT


def test_an_inverted_crop() -> None:
    label = MetaTensor(torch.zeros(1, 12, 12, 6))
    label[0, 5:7, 5:7, 2:4] = 1
    crop = CropAroundTumord(["image", "label"], label_key="label", size=(4, 4, 2))
    cropped = crop({"image": MetaTensor(torch.ones(1, 12, 12, 6)), "label": label})
    pred = name_outputs(torch.full((2, 4, 4, 2), 0.5).cuda(), ["pred", "synthetic"])
    invert = InvertPredictiond("pred", transform=crop, orig_keys="image", nearest_interp=False)
    inverted = invert({**cropped, "pred": pred})["pred"]
    assert inverted.is_cuda and inverted.shape == (2, 12, 12, 6)
    assert inverted[:, 0, 0, 0].tolist() == [0, -1]


def test_a_process_per_gpu_by_nccl(vs_data: Path, bundle_root: Path, tmp_path: Path) -> None:
    """Training by torchrun on up to two GPUs (one is enough for nccl), stopped after an epoch and resumed."""
    files = str([f"configs/{name}" for name in ("train.json", "multi_gpu_train.json", "debug.yaml")])
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={min(2, torch.cuda.device_count())}"]
    command += ["-m", "monai.bundle", "run", "training", "--config_file", files, "--dataset_dir", str(vs_data)]
    command += ["--run_dir", str(tmp_path), "--weights#perceptibility", "0.0", "--batch_size", "1"]
    for more in (["--epochs", "1"], ["--epochs", "2", "--resume", "True"]):
        subprocess.run([sys.executable, *command, *more], cwd=bundle_root, timeout=PROCESS_SECONDS, check=True)
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert last["trainer"]["iteration"] == 2 * last["trainer"]["epoch_length"]
    assert all(torch.isfinite(value).all() for value in last["network"].values())
