"""The code on CUDA: a step, inference against the CPU, a crop inverted, nccl. What needs no GPU is tested elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd

from scripts.inferer import CascadeInferer
from scripts.methods.tissnet import TISSNetMethod
from scripts.networks.discriminator import PatchDiscriminator3d
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import UNet2d5
from scripts.trainer import MethodTrainer
from scripts.transforms import CropAroundTumord

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is here"),
]

SMALL = (4, 4, 8, 8, 8)
PROCESS_SECONDS = 300
AGREEMENT = 0.02  # largest difference of a probability, bfloat16 on the GPU against float32 on the CPU


def test_a_training_step() -> None:
    torch.manual_seed(0)
    method = TISSNetMethod(
        TISSNet(1, features=SMALL),
        D_g=PatchDiscriminator3d(2, features=4),
        D_t=PatchDiscriminator3d(2, features=4),
        S_p=UNet2d5(1, 1, features=SMALL),
    ).to("cuda")
    label = torch.zeros(2, 1, 32, 32, 8)
    label[..., 8:16, 8:16, 2:6] = 1
    batch = {"image": torch.rand_like(label), "target": torch.rand_like(label), "label": label, "case": ["a", "b"]}
    before = [p.detach().clone() for p in method.generator_parameters()]
    trainer = MethodTrainer(
        "cuda",
        1,
        [batch],
        method,
        torch.optim.Adam(method.generator_parameters(), 1e-3),
        torch.optim.Adam(method.discriminator_parameters(), 1e-3),
        amp=True,
    )
    trainer.run()
    assert any(not torch.equal(old, new) for old, new in zip(before, method.generator_parameters(), strict=True))


def test_inference_agrees_with_the_cpu() -> None:
    torch.manual_seed(0)
    network = TISSNet(1, features=SMALL).eval()
    image = torch.rand(1, 1, 40, 36, 12) * 2 - 1
    with torch.no_grad():
        cpu = CascadeInferer((32, 32, 8))(image, network)
        gpu = CascadeInferer((32, 32, 8), amp=True)(image.cuda(), network.cuda())
    assert (cpu - gpu.cpu()).abs().max() < AGREEMENT


def test_an_inverted_crop() -> None:
    label = MetaTensor(torch.zeros(1, 12, 12, 6))
    label[0, 5:7, 5:7, 2:4] = 1
    crop = CropAroundTumord(["image", "label"], label_key="label", size=(4, 4, 2))
    cropped = crop({"image": MetaTensor(torch.ones(1, 12, 12, 6)), "label": label})
    pred = MetaTensor(torch.full((4, 4, 4, 2), 0.5)).cuda()
    inverted = Invertd("pred", transform=crop, orig_keys="image", nearest_interp=False)({**cropped, "pred": pred})
    assert inverted["pred"].shape == (4, 12, 12, 6)
    assert inverted["pred"][1, 0, 0, 0].item() == -1


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
