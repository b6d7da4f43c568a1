"""Trains in one process and in two (gloo, torchrun) and compares the loss curves.

    python tests/benchmarks/processes.py [--epochs 6] [--output DIR]

Small phantoms, debug.yaml without dropout, one process of batch 2 and two of batch 1. Prints the largest difference of
every term as a Markdown table; with --output also writes curves.csv and curves.png there. Exits with 1 if a curve
differs by more than TOLERANCE.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundle"
sys.path[:0] = [str(BUNDLE), str(ROOT / "tests")]

from made.training import curves  # noqa: E402

from scripts.data.dataset import prepare_phantoms  # noqa: E402

Curves = dict[str, dict[int, float]]
CASES = {"training": 6, "validation": 2, "testing": 0}
TOLERANCE = 0.01  # relative to a curve's largest value; rounding grows from step to step, most of all in Adam
SECONDS = 300  # for one training
DRAWN = ("loss", "fine", "l1_tumor", "D_t", "grad_norm_G", "val_mean_dice")


def start(run_dir: Path, data: Path, *more: str, processes: int = 1) -> subprocess.Popen:
    """Starts the training that the README shows, on CPUs; its log lies beside run_dir."""
    files = ["train.json", *(["multi_gpu_train.json"] if processes > 1 else []), "debug.yaml"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, "-W", "ignore", *launcher, "-m", "monai.bundle", "run", "training"]
    command += ["--config_file", str([f"configs/{name}" for name in files]), "--batch_size", str(2 // processes)]
    command += ["--dataset_dir", str(data), "--run_dir", str(run_dir), "--pixdim", "[1.2, 1.2, 3.0]"]
    command += ["--weights#perceptibility", "0.0", "--network_def#dropout", str([0.0] * 5), *more]
    with run_dir.with_suffix(".log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(command, cwd=BUNDLE, env=environment, stdout=log, stderr=log)


def finish(running: subprocess.Popen, run_dir: Path) -> None:
    try:
        status = running.wait(SECONDS)
    finally:
        running.kill()
    if status:
        sys.exit(f"exit status {status}: {run_dir.with_suffix('.log').read_text()[-3000:]}")


def compare(one: Curves, two: Curves) -> float:
    """Prints the differences; returns the largest, relative to the largest value of its curve."""
    if {name: list(points) for name, points in one.items()} != {name: list(points) for name, points in two.items()}:
        sys.exit(f"other curves: {sorted(one)} in one process, {sorted(two)} in two")
    sys.stdout.write("| curve | points | largest value | largest difference | relative |\n|---|---|---|---|---|\n")
    worst = 0.0
    for name, points in sorted(one.items()):
        differences = [abs(value - two[name][step]) for step, value in points.items()]
        largest = max(map(abs, points.values()))
        relative = max(differences) / largest if largest else max(differences)
        worst = max(worst, relative)
        sys.stdout.write(f"| {name} | {len(points)} | {largest:.4g} | {max(differences):.2g} | {relative:.2g} |\n")
    return worst


def write(output: Path, one: Curves, two: Curves) -> None:
    output.mkdir(parents=True, exist_ok=True)
    with (output / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["curve", "step", "one_process", "two_processes"])
        for name, points in sorted(one.items()):
            writer.writerows([name, step, value, two[name][step]] for step, value in points.items())
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(2, 3).flat, DRAWN, strict=True):
        axes.plot(*zip(*one[name].items(), strict=True), "-", linewidth=3, alpha=0.4, label="one process, batch 2")
        axes.plot(*zip(*two[name].items(), strict=True), "k--", linewidth=1, label="two processes, batch 1 each")
        axes.set(title=name, xlabel="epoch" if name.startswith("val_") else "step")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(output / "curves.png", dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output", type=Path, help="for curves.csv and curves.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "data"
        prepare_phantoms(data, "vs", CASES)
        found = []
        for processes in (1, 2):
            run_dir = folder / f"processes{processes}"
            finish(start(run_dir, data, "--epochs", str(args.epochs), processes=processes), run_dir)
            found.append(curves(run_dir))
        worst = compare(*found)
        if args.output is not None:
            write(args.output, *found)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
