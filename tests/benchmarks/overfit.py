"""Overfits TISS-Net on one batch of two phantom patches: every loss term and the Dice of y_c and y_f, by step.

    python tests/benchmarks/overfit.py [--steps 400] [--seed 0] [--cross-entropy 0] [--output DIR]

The networks are small (features 8 to 128, discriminators 8, no dropout), the losses the paper's, with a perceptor S_p
trained first on the same batch. Prints a Markdown table; with --output also writes overfit.csv and
overfit.png there. Exits with 1 if the final Dice of y_f is not above 0.98: then something in the step is broken. It is
no result about patients, nor about phantoms that were not trained on; nothing that must be quick goes here.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.handlers import LrScheduleHandler
from monai.metrics import compute_dice
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.data.phantom.make import make_phantom
from scripts.networks.discriminator import PatchDiscriminator3d
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import UNet2d5
from scripts.training.methods.segmentation import SegmentationMethod
from scripts.training.methods.tissnet import TISSNetMethod
from scripts.training.trainer import MethodTrainer, scalars, two_phase_schedule
from scripts.transforms import NormalizeForegroundd

FEATURES = (8, 16, 32, 64, 128)
DISCRIMINATOR_FEATURES = 8
NO_DROPOUT = (0.0, 0.0, 0.0, 0.0, 0.0)
LEARNING_RATE = 1e-3
BETAS = (0.5, 0.999)
PATCH = (48, 48, 16)  # voxels x, y, z
PHANTOMS = {1: 9.0, 2: 13.0}  # seed to the tumor's diameter in mm
INTERVAL = 25
REQUIRED_DICE = 0.98


def make_batch() -> dict[str, Any]:
    """Cuts one patch out of each phantom, around its tumor's center, after normalizing the whole volume."""
    normalize = NormalizeForegroundd(["image", "target"])
    samples = []
    for seed, diameter in PHANTOMS.items():
        phantom = make_phantom(seed, diameter=diameter)
        volumes = {"image": phantom.images["T2"], "target": phantom.images["ceT1"], "label": phantom.label}
        sample = normalize({name: torch.as_tensor(v, dtype=torch.float32)[None] for name, v in volumes.items()})
        where = np.argwhere(phantom.label)
        middle = (where.min(axis=0) + where.max(axis=0) + 1) // 2
        bounds = zip(middle, PATCH, phantom.label.shape, strict=True)
        starts = [min(max(int(c) - size // 2, 0), n - size) for c, size, n in bounds]
        box = (slice(None), *(slice(start, start + size) for start, size in zip(starts, PATCH, strict=True)))
        samples.append({name: sample[name][box] for name in volumes})
    batch: dict[str, Any] = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return batch | {"case": [f"phantom {seed}" for seed in PHANTOMS]}


def train(method: Any, batch: dict[str, Any], steps: int, handler: Any = None) -> None:
    """Trains on the batch alone; one step is one epoch, so that the rate falls as in a whole run."""
    groups = (method.generator_parameters(), method.discriminator_parameters())
    optimizers = [torch.optim.Adam(group, LEARNING_RATE, betas=BETAS) if group else None for group in groups]
    schedules = [two_phase_schedule(o, max_epochs=steps) for o in optimizers if o is not None]
    trainer = MethodTrainer(
        "cpu",
        steps,
        [batch],
        method,
        optimizers[0],  # type: ignore[arg-type]
        optimizers[1],
        train_handlers=[LrScheduleHandler(schedule, print_lr=False) for schedule in schedules],
        decollate=False,
    )
    if handler is not None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)
    trainer.run()


def dice(logits: torch.Tensor, label: torch.Tensor) -> float:
    """Mean over the patches of the Dice of the mask at 0.5."""
    return float(compute_dice((logits > 0).float(), label, include_background=True).mean())


class Recorder:
    """Keeps a row every 25 steps, and at the first and the last: losses of the step, Dice after it."""

    def __init__(self, method: TISSNetMethod, batch: dict[str, Any], steps: int) -> None:
        self.method, self.batch, self.steps = method, batch, steps
        self.rows: list[dict[str, float]] = []

    def __call__(self, engine: Engine) -> None:
        step = engine.state.epoch
        if step % INTERVAL and step not in (1, self.steps):
            return
        self.method.eval()
        with torch.no_grad():
            outputs = self.method(self.batch)
        row: dict[str, float] = {"step": step}
        row |= {f"dice_{name}": dice(outputs[f"{name}_logits"], self.batch["label"]) for name in ("y_c", "y_f")}
        self.rows.append(row | scalars(engine.state.output))
        if step == 1:
            sys.stdout.write(f"| {' | '.join(self.rows[0])} |\n{'|---' * len(self.rows[0])}|\n")
        cells = [str(step), *(f"{value:.3f}" for value in list(self.rows[-1].values())[1:])]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()


def write(output: Path, rows: list[dict[str, float]]) -> None:
    """Writes overfit.csv and overfit.png."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "overfit.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in rows]
    for name in rows[0]:
        if name == "step" or name.startswith("grad_norm"):
            continue
        axes = left if name.startswith("dice_") else right
        style = "--" if name in ("loss", "loss_D", "D_g", "D_t") else "-"
        axes.plot(steps, [row[name] for row in rows], style, label=name.removeprefix("dice_"))
    left.axhline(REQUIRED_DICE, color="gray", linewidth=0.8)
    left.set(xlabel="step", ylabel="Dice", ylim=(0, 1.02), title="Dice on the batch")
    right.set(xlabel="step", yscale="log", title="weighted loss terms")
    for axes in (left, right):
        axes.legend(fontsize=7)
    figure.savefig(output / "overfit.png", dpi=110)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--perceptor-steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the networks' first weights")
    parser.add_argument("--cross-entropy", type=float, default=0.0, help="weight added to Dice, 0 the paper's")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    batch = make_batch()
    S_p: nn.Module = UNet2d5(1, 1, features=FEATURES, dropout=NO_DROPOUT)
    perceptor = SegmentationMethod(S_p, inputs=("target",), cross_entropy=args.cross_entropy)
    train(perceptor, batch, args.perceptor_steps)
    with torch.no_grad():
        perceived = dice(S_p(batch["target"]), batch["label"])
    voxels = batch["label"].flatten(1).sum(1).int().tolist()
    sys.stdout.write(
        f"tumor voxels {voxels} of {int(np.prod(PATCH))}; S_p on the real target after {args.perceptor_steps} steps: "
        f"Dice {perceived:.3f}\n\n"
    )
    method = TISSNetMethod(
        TISSNet(1, features=FEATURES, dropout=NO_DROPOUT),
        D_g=PatchDiscriminator3d(2, features=DISCRIMINATOR_FEATURES),
        D_t=PatchDiscriminator3d(2, features=DISCRIMINATOR_FEATURES),
        S_p=S_p,
        cross_entropy=args.cross_entropy,
    )
    recorder = Recorder(method, batch, args.steps)
    train(method, batch, args.steps, recorder)
    if args.output is not None:
        write(args.output, recorder.rows)
    final = recorder.rows[-1]["dice_y_f"]
    sys.stdout.write(f"\nfinal Dice of y_f {final:.4f}, required: above {REQUIRED_DICE}\n")
    return 0 if final > REQUIRED_DICE else 1


if __name__ == "__main__":
    sys.exit(main())
