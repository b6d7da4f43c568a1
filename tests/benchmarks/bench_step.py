"""Seconds and memory of one TISS-Net training step, float32 against bfloat16, interleaved in one run.

    python tests/benchmarks/bench_step.py [--device cuda] [--features 16 32 64 128 256] [--patch 128 128 16] [--steps 3]

Prints a table and, with --json, writes the same figures. Peak memory includes the other arm's weights and optimizer
state; on a CPU it is that of the whole process. It measures and never asserts: no test belongs here.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.methods.tissnet import TISSNetMethod
from scripts.networks.discriminator import PatchDiscriminator3d
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import UNet2d5
from scripts.trainer import MethodTrainer


def make_trainer(args: argparse.Namespace, device: torch.device, amp: bool) -> MethodTrainer:
    """A trainer on one made batch, repeated: the step is measured, not the data."""
    torch.manual_seed(0)
    batch = {
        "image": torch.rand(args.batch, 1, *args.patch) * 2 - 1,
        "target": torch.rand(args.batch, 1, *args.patch) * 2 - 1,
        "label": torch.zeros(args.batch, 1, *args.patch),
        "case": ["made"] * args.batch,
    }
    batch["label"][..., 8:16, 8:16, 4:8] = 1
    method = TISSNetMethod(
        TISSNet(1, features=args.features),
        D_g=PatchDiscriminator3d(2, features=args.discriminator_features),
        D_t=PatchDiscriminator3d(2, features=args.discriminator_features),
        S_p=UNet2d5(1, 1, features=args.features),
    ).to(device)
    return MethodTrainer(
        device,
        1,
        [batch],
        method,
        torch.optim.Adam(method.generator_parameters(), 1e-4),
        torch.optim.Adam(method.discriminator_parameters(), 1e-4),
        amp=amp,
        decollate=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--features", type=int, nargs=5, default=[16, 32, 64, 128, 256])
    parser.add_argument("--discriminator-features", type=int, default=64)
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 16], help="voxels x, y, z")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="measured steps per arm, after one for warm-up")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    arms = {name: make_trainer(args, device, amp) for name, amp in (("float32", False), ("bfloat16", True))}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    memory: dict[str, float] = {}
    for step in range(args.steps + 1):
        for name, trainer in arms.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            begin = time.perf_counter()
            trainer.state.epoch, trainer.state.iteration, trainer.state.max_epochs = 0, 0, 1
            trainer.run()
            if device.type == "cuda":
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
            if step:
                seconds[name].append(time.perf_counter() - begin)
    if device.type != "cuda":
        memory = dict.fromkeys(arms, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    lines = [f"{args}", "", "| arm | median s/step | ratio to float32 | peak GiB |", "|---|---|---|---|"]
    lines += [f"| {n} | {median[n]:.3f} | {median['float32'] / median[n]:.2f} | {memory[n]:.2f} |" for n in arms]
    sys.stdout.write("\n".join(lines) + "\n")
    if args.json:
        figures = {"arguments": vars(args) | {"json": str(args.json)}, "seconds": seconds, "peak_gib": memory}
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
