"""Seconds, memory and FLOP of one TISS-Net training step: a naive loop and ours, interleaved in one run.

    python tests/benchmarks/bench_step.py [--device cuda] [--features 16 32 64 128 256] [--patch 128 128 16] [--json F]
    python tests/benchmarks/bench_step.py --waiting DATA_DIR

The naive arm is a loop as one would write it first, float32: one forward pass of the cascade per update, discriminators
that get gradients in the generator's update too, an S_p whose parameters require gradients, plain Adam, a look at every
loss. The arms of ours are `MethodTrainer` and its options. Before anything is timed, the losses and gradient norms of
every arm are compared with the naive arm's (same weights, same batch, no dropout): a difference beyond the tolerances
below is told, and makes the exit status 1. Peak memory is that of an arm alone; on a CPU of a process of its own,
libraries included. FLOP are those of convolutions and matrix products, forward and backward, told as a share of a
measured bfloat16 matrix product.

--waiting trains by train.json on prepared data instead, and tells the share of the time spent waiting for batches.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from measured import BUNDLE, FEATURES, child, interleaved, matrix_product, most_allocated_gib, most_resident_gib, tell
from monai.bundle import create_workflow
from monai.utils import set_determinism
from torch.utils.flop_counter import FlopCounterMode

from scripts.networks.discriminator import PatchDiscriminator3d
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import DROPOUT, UNet2d5
from scripts.training.methods.tissnet import TISSNetMethod
from scripts.training.trainer import MethodTrainer

LOSS_WEIGHTS = json.loads((BUNDLE / "configs" / "train.json").read_text(encoding="utf-8"))["weights"]
NAIVE, FLOAT32 = "naive float32", "ours float32"
ARMS: dict[str, dict[str, Any]] = {
    NAIVE: {},
    FLOAT32: {"amp": False},
    "bfloat16": {"amp": True},
    "bfloat16 channels-last": {"amp": True, "channels_last": True},
    "bfloat16 compiled": {"amp": True, "compile": True},
    "bfloat16 channels-last compiled": {"amp": True, "channels_last": True, "compile": True},
}
ON_A_CPU = (NAIVE, FLOAT32, "bfloat16", "bfloat16 channels-last")
FLOAT32_RTOL = 1e-4  # of a loss; sums in another order
GRADIENT_RTOL = 1e-3  # of a gradient's norm
BFLOAT16_RTOL = 0.1  # of both: bfloat16 has 8 bits of mantissa, and a U-Net has many layers

Step = Callable[[int], dict[str, float]]


def make_batch(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One made batch, used again and again: the step is measured, not the data."""
    shape, generator = (args.batch, 1, *args.patch), torch.Generator().manual_seed(1)
    label = torch.zeros(shape)
    label[..., 8:16, 8:16, 2:6] = 1
    image = torch.rand(shape, generator=generator) * 2 - 1
    batch = {"image": image, "target": (label - image).clamp(-1, 1), "label": label}
    if device.type == "cuda":
        batch = {name: value.pin_memory() for name, value in batch.items()}
    return batch | {"case": ["made"] * args.batch}


def make_step(name: str, args: argparse.Namespace, device: torch.device, *, dropout: bool = True) -> Step:
    """A function that makes n steps and returns the last one's losses and gradient norms."""
    torch.manual_seed(0)
    batch = make_batch(args, device)
    method = TISSNetMethod(
        TISSNet(1, features=args.features, dropout=DROPOUT if dropout else (0.0,) * len(DROPOUT)),
        D_g=PatchDiscriminator3d(2, features=args.discriminator_features),
        D_t=PatchDiscriminator3d(2, features=args.discriminator_features),
        S_p=UNet2d5(1, 1, features=args.features),
        weights=LOSS_WEIGHTS,
    ).to(device)
    parameters = (method.generator_parameters(), method.discriminator_parameters())
    plain = {"foreach": False, "fused": False} if name == NAIVE else {"fused": True}
    optimizers = [torch.optim.Adam(p, 1e-4, betas=(0.5, 0.999), **plain) for p in parameters]
    if name == NAIVE:
        return lambda steps: [naive_step(method, optimizers, batch, device) for _ in range(steps)][-1]
    options = dict(ARMS[name])
    if options.get("compile") and args.compile_mode:
        options["compile"] = {"mode": args.compile_mode}
    trainer = MethodTrainer(device, 1, [batch], method, *optimizers, **options)

    def run(steps: int) -> dict[str, float]:
        trainer.state.epoch, trainer.state.iteration, trainer.state.max_epochs = 0, 0, 1
        trainer.data_loader, trainer.state.dataloader, trainer.state.epoch_length = [batch] * steps, None, steps
        trainer.run()
        first = trainer.state.output[0]
        return {name: value for name, value in first.items() if isinstance(value, float)}

    return run


def naive_step(
    method: TISSNetMethod, optimizers: list, batch: dict[str, Any], device: torch.device
) -> dict[str, float]:
    """A training step without any of the trainer's savings."""
    batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    method.train()
    assert method.perceptibility.S_p is not None
    method.perceptibility.S_p.requires_grad_(True)
    found: dict[str, float] = {}
    for letter, losses_of, optimizer in zip(
        "GD", (method.generator_losses, method.discriminator_losses), optimizers, strict=True
    ):
        method.zero_grad()
        losses = losses_of(batch, method(batch))
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"the naive loop's losses: {losses}")
        total.backward()
        found |= {name: float(value) for name, value in losses.items()}
        found["loss" if letter == "G" else "loss_D"] = float(total)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        found[f"grad_norm_{letter}"] = float(torch.nn.utils.get_total_norm(gradients))
        if letter == "G":
            kept = gradients  # both updates start from the same weights, as in the paper's box
    for p, gradient in zip(optimizers[0].param_groups[0]["params"], kept, strict=True):
        p.grad = gradient
    for optimizer in optimizers:
        optimizer.step()
    return found


def check(args: argparse.Namespace, device: torch.device) -> tuple[dict[str, float], list[str]]:
    """Compares every arm's first step with the naive one's: the largest relative differences, and what is wrong."""
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    differences: dict[str, float] = {}
    wrong: list[str] = []
    exact = make_step(NAIVE, args, device, dropout=False)(1)
    for name in args.arms:
        if name == NAIVE:
            continue
        found = make_step(name, args, device, dropout=False)(1)
        if set(found) != set(exact):
            raise AssertionError(f"{name} has {sorted(found)}, the naive loop {sorted(exact)}")
        worst = 0.0
        for term, value in exact.items():
            exactly = GRADIENT_RTOL if term.startswith("grad_norm") else FLOAT32_RTOL
            allowed = exactly if name == FLOAT32 else BFLOAT16_RTOL
            if not math.isclose(found[term], value, rel_tol=allowed):
                wrong.append(f"{name}: {term} is {found[term]}, the naive loop's {value}, allowed {allowed:.0e}")
            worst = max(worst, abs(found[term] - value) / max(abs(value), 1e-30))
        differences[name] = worst
        torch._dynamo.reset()
    torch.backends.cudnn.allow_tf32 = tf32
    return differences, wrong


def peak_gib(name: str, args: argparse.Namespace, device: torch.device) -> float:
    """Peak memory of two steps of one arm alone."""
    if device.type != "cuda":
        return child("--memory-of", name)
    gib = most_allocated_gib(lambda: make_step(name, args, device)(2))
    torch._dynamo.reset()
    return gib


def flop(name: str, args: argparse.Namespace, device: torch.device) -> float:
    with FlopCounterMode(display=False) as counter:
        make_step(name, args, device)(1)
    return counter.get_total_flops()


def compare(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    memory = {name: peak_gib(name, args, device) for name in args.arms}
    differences, wrong = check(args, device)
    work = {name: flop(name, args, device) for name in (NAIVE, FLOAT32)}
    product = matrix_product(device, args.matrix)
    seconds = interleaved({name: make_step(name, args, device) for name in args.arms}, args, device)
    found = {}
    for name in args.arms:
        median = statistics.median(seconds[name])
        own = work[NAIVE if name == NAIVE else FLOAT32]
        found[name] = {
            "seconds": seconds[name],
            "median_seconds": median,
            "ratio_to_naive": statistics.median(seconds[NAIVE]) / median,
            "peak_gib": memory[name],
            "flop": own,
            "flop_per_second": own / median,
            "share_of_matrix_product": own / median / product,
            "largest_relative_difference": differences.get(name, 0.0),
        }
    return {"arms": found, "matrix_product_flop_per_second": product, "disagreements": wrong}


def table(figures: dict[str, Any]) -> str:
    head = (
        "| arm | median s/step | ratio to naive | peak GiB | GFLOP | TFLOP/s | share of matrix product | difference |"
    )
    lines = [head, "|---" * 8 + "|"]
    for name, f in figures["arms"].items():
        lines.append(
            f"| {name} | {f['median_seconds']:.4f} | {f['ratio_to_naive']:.2f} | {f['peak_gib']:.2f} "
            f"| {f['flop'] / 1e9:.1f} | {f['flop_per_second'] / 1e12:.2f} | {f['share_of_matrix_product']:.1%} "
            f"| {f['largest_relative_difference']:.1e} |"
        )
    return "\n".join(lines)


def waiting(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The share of a training's time, after its first epoch, between asking for a batch and having it.

    No validation, no logs, no checkpoints. On a GPU the process waits for its results once per step, so that what it
    waits for data is what the GPU does.
    """
    with tempfile.TemporaryDirectory() as folder:
        overrides: dict[str, Any] = {
            "bundle_root": str(BUNDLE),
            "dataset_dir": str(args.waiting.resolve()),
            "run_dir": folder,
            "device": device,
            "perceptor_path": str(BUNDLE / "models" / "perceptor" / "perceptor.pt"),
            "features": args.features,
            "discriminator_features": args.discriminator_features,
            "patch_size": args.patch,
            "batch_size": args.batch,
            "num_workers": args.workers,
            "epochs": args.epochs + 1,
            "train#handlers": [],
        }
        if args.features != FEATURES:  # the released S_p is of these
            overrides["weights#perceptibility"] = 0.0
        workflow = create_workflow(
            config_file=str(BUNDLE / "configs" / "train.json"), workflow_type="train", logging_file=False, **overrides
        )
        workflow.initialize()
        trainer = workflow.parser.get_parsed_content("train#trainer")
    asked, waits, epochs = [0.0], [], [0.0]

    def started() -> None:
        asked[0] = time.perf_counter()

    def completed(engine: Any) -> None:
        if engine.state.epoch > 1:
            waits.append((engine.state.iteration % engine.state.epoch_length == 1, time.perf_counter() - asked[0]))

    def first_epoch_ended(engine: Any) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        epochs.append(time.perf_counter())

    trainer.add_event_handler(Events.GET_BATCH_STARTED, started)
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, completed)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, first_epoch_ended)
    trainer.run()
    total = epochs[-1] - epochs[1]
    steps = args.epochs * trainer.state.epoch_length
    return {
        "steps": steps,
        "seconds_per_step": total / steps,
        "share_waiting": sum(seconds for _, seconds in waits) / total,
        "share_waiting_for_an_epochs_first_batch": sum(seconds for first, seconds in waits if first) / total,
        "median_wait_seconds": statistics.median(seconds for _, seconds in waits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--features", type=int, nargs=5, default=FEATURES)
    parser.add_argument("--discriminator-features", type=int, default=64)
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 16], help="voxels x, y, z")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="the naive one is always there")
    parser.add_argument("--turns", type=int, default=3, help="measured turns over all arms")
    parser.add_argument("--warm-up", type=int, default=1, help="turns before")
    parser.add_argument("--block", type=int, help="steps of an arm per turn; default 20 on a GPU, 1 on a CPU")
    parser.add_argument("--matrix", type=int, help="rows of the matrix product")
    parser.add_argument("--compile-mode", help="torch.compile's mode, of the compiled arms")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="cuDNN's fastest algorithms, not the repeatable")
    parser.add_argument("--waiting", type=Path, metavar="DATA_DIR", help="a folder with datalist.json")
    parser.add_argument("--epochs", type=int, default=3, help="of --waiting, after one for warm-up")
    parser.add_argument("--workers", type=int, default=2, help="of --waiting, processes that load")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=list(ARMS), help=argparse.SUPPRESS)  # a child: one arm alone
    args = parser.parse_args()
    device = torch.device(args.device)
    args.arms = [NAIVE, *(a for a in args.arms or (ARMS if device.type == "cuda" else ON_A_CPU) if a != NAIVE)]
    args.block = args.block or (20 if device.type == "cuda" else 1)
    set_determinism(seed=0)  # as train.json does
    if args.cudnn_benchmark:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    if args.memory_of:
        make_step(args.memory_of, args, device)(2)
        sys.stdout.write(f"{most_resident_gib()}\n")
        return
    figures = waiting(args, device) if args.waiting else compare(args, device)
    text = json.dumps(figures, indent=1) if args.waiting else table(figures)
    tell(args, device, figures, text, reference="the naive loop")


if __name__ == "__main__":
    main()
