"""Trains in one process and in two (gloo, torchrun) and compares the loss curves; then kills one of two and goes on.

    python tests/benchmarks/processes.py [--epochs 6] [--output DIR]

Small phantoms, debug.yaml without dropout, one process of batch 2 and two of batch 1. Prints the largest difference of
every term as a Markdown table; with --output also writes curves.csv and curves.png there. Then one of two processes
gets SIGKILL: how long until torchrun ends, and with which status; one process resumes. Exits with 1 if a curve differs
by more than TOLERANCE or the resume fails. Speed does not go here (bench_step.py), nor kills of one (resume.py).
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.data.dataset import prepare_phantoms

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
CASES = {"training": 6, "validation": 2, "testing": 0}
BATCHES = CASES["training"] // 2
TOLERANCE = 0.01  # relative to a curve's largest value; rounding grows from step to step, most of all in Adam
SECONDS = 300  # for one training
KILLED_SECONDS = 60  # for torchrun, after one process is dead
DRAWN = ("loss", "fine", "l1_tumor", "D_t", "grad_norm_G", "val_mean_dice")

Curves = dict[str, list[tuple[int, float]]]


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
    """Waits for the end of a training that must succeed."""
    try:
        status = running.wait(SECONDS)
    finally:
        running.kill()
    if status:
        sys.exit(f"exit status {status}: {run_dir.with_suffix('.log').read_text()[-3000:]}")


def curves(run_dir: Path) -> Curves:
    """What TensorBoard shows of a run."""
    found: Curves = {}
    for file in (run_dir / "logs").glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found


def compare(one: Curves, two: Curves) -> float:
    """Prints the differences; returns the largest, relative to the largest value of its curve."""
    if {name: len(points) for name, points in one.items()} != {name: len(points) for name, points in two.items()}:
        sys.exit(f"other curves: {sorted(one)} in one process, {sorted(two)} in two")
    sys.stdout.write("| curve | points | largest value | largest difference | relative |\n|---|---|---|---|---|\n")
    worst = 0.0
    for name, points in sorted(one.items()):
        differences = [abs(a - b) for (_, a), (_, b) in zip(points, two[name], strict=True)]
        largest = max(abs(value) for _, value in points)
        relative = max(differences) / largest if largest else max(differences)
        worst = max(worst, relative)
        sys.stdout.write(f"| {name} | {len(points)} | {largest:.4g} | {max(differences):.2g} | {relative:.2g} |\n")
    return worst


def write(output: Path, one: Curves, two: Curves) -> None:
    """Writes curves.csv and curves.png."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["curve", "step", "one_process", "two_processes"])
        for name, points in sorted(one.items()):
            writer.writerows([name, step, a, b] for (step, a), (_, b) in zip(points, two[name], strict=True))
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(2, 3).flat, DRAWN, strict=True):
        axes.plot(*zip(*one[name], strict=True), "-", linewidth=3, alpha=0.4, label="one process, batch 2")
        axes.plot(*zip(*two[name], strict=True), "k--", linewidth=1, label="two processes, batch 1 each")
        axes.set(title=name, xlabel="epoch" if name.startswith("val_") else "step")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(output / "curves.png", dpi=110)


def kill_one(run_dir: Path, data: Path) -> bool:
    """Kills one of two processes behind the first checkpoint, says what became of the other, and resumes with one."""
    running = start(run_dir, data, "--epochs", "1000", processes=2)
    last, log = run_dir / "checkpoints" / "last.pt", run_dir.with_suffix(".log")
    try:
        limit = time.monotonic() + SECONDS
        while not last.is_file() and running.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        if not last.is_file():
            sys.exit(f"no checkpoint: {log.read_text()[-3000:]}")
        child = int(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()[-1])
        os.kill(child, signal.SIGKILL)
        begun = time.monotonic()
        status = running.wait(KILLED_SECONDS)
    finally:
        running.kill()
    seconds = time.monotonic() - begun
    before = torch.load(last, weights_only=True)["trainer"]["iteration"]
    epochs = before // BATCHES + 1
    more = ["--epochs", "1000", "--resume", "True", "--train#trainer#max_epochs", str(epochs)]
    finish(start(run_dir, data, *more), run_dir)
    said = [line.rpartition(": ")[2] for line in log.read_text().splitlines() if "resumed from" in line]
    after = torch.load(last, weights_only=True)["trainer"]["iteration"]
    sys.stdout.write(
        f"\nOne of two processes killed (SIGKILL): torchrun ended after {seconds:.1f} s with status {status}. last.pt "
        f"had {before} steps; one process went on at {''.join(said)} and ended after {after} steps, expected "
        f"{epochs * BATCHES}.\n"
    )
    return status != 0 and after == epochs * BATCHES


def main() -> int:
    """Command line; returns the exit status."""
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
        resumed = kill_one(folder / "killed", data)
    return 0 if worst <= TOLERANCE and resumed else 1


if __name__ == "__main__":
    sys.exit(main())
