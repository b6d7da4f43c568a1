"""What the benchmarks of speed share: seconds, peak memory, a child process, and where figures go."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
sys.path.insert(0, str(BUNDLE))  # whoever imports this finds `scripts`
FEATURES = [16, 32, 64, 128, 256]  # of the released weights
MATRIX = {"cuda": 8192, "cpu": 1024}


def timed(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def interleaved(
    arms: Mapping[str, Callable[[int], Any]], args: argparse.Namespace, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of one call of every arm, turn by turn; an arm makes as many calls as it is told."""
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(args.warm_up + args.turns):
        for arm, work in arms.items():
            took = timed(lambda work=work: work(args.block), device) / args.block  # type: ignore[misc]
            if turn >= args.warm_up:
                seconds[arm].append(took)
    return seconds


def matrix_product(device: torch.device, size: int | None) -> float:
    """FLOP per second of a bfloat16 matrix product, the median of ten."""
    size = size or MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [timed(lambda: a @ b, device) for _ in range(13)][3:]
    return 2 * size**3 / statistics.median(seconds)


def most_allocated_gib(work: Callable[[], Any]) -> float:
    """What torch allocates on the GPU meanwhile, at most."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def most_resident_gib() -> float:
    """This process's own peak; ru_maxrss would begin with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 2**20


def child(*arguments: str) -> Any:
    """The last line, JSON, that this script prints with further arguments, in a process of its own."""
    command = [sys.executable, "-W", "ignore", *sys.argv, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def machine(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__}


def tell(args: argparse.Namespace, device: torch.device, figures: dict[str, Any], text: str, *, reference: str) -> None:
    """Prints the figures, writes them where asked, and ends with exit status 1 where arms disagree."""
    if product := figures.get("matrix_product_flop_per_second"):
        text += f"\n\nbfloat16 matrix product: {product / 1e12:.2f} TFLOP/s"
    sys.stdout.write(f"{args}\n\n{text}\n")
    if args.json:
        content = {"arguments": vars(args)} | machine(device) | figures
        args.json.write_text(json.dumps(content, indent=1, default=str))
    if figures.get("disagreements"):
        sys.exit(f"disagreement with {reference}: " + "; ".join(figures["disagreements"]))
