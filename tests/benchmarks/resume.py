"""Kills trainings at random moments and resumes them: do they end with the weights of the run that nothing interrupts?

    python tests/benchmarks/resume.py [--runs 5] [--epochs 6] [--seed 0] [--output DIR]

Small phantoms, debug.yaml, dropout as published. Every second run is killed twice, by SIGKILL in an iteration, in a
validation or in the middle of writing a checkpoint, with 0 or 2 data workers; the last run gets SIGTERM. Prints a
Markdown table with the SHA-256 of all weights and optimizers, and exits with 1 if any differs. A killed process is a
fork of this one that runs the bundle's workflow, for `python -m monai.bundle` spends most of its time on imports.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import create_workflow

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundle"
sys.path[:0] = [str(BUNDLE), str(ROOT / "tests")]

from made.training import leaves  # noqa: E402

from scripts.data.dataset import prepare_phantoms  # noqa: E402

CASES = {"training": 6, "validation": 2, "testing": 0}
BATCHES = CASES["training"] // 2
PIXDIM = [1.2, 1.2, 3.0]  # coarse: a validation takes a second
TRAINED = ("network", "D_g", "D_t", "optimizer_g", "optimizer_d")  # of last.pt; network is G and S
VAL_INTERVAL = 2
SECONDS = 300  # for one process
WRITE_SECONDS = 0.1  # for which a checkpoint is half written, so that a kill can hit it
MOMENTS = ("iteration", "validation", "half of")
FORK: Any = multiprocessing.get_context("fork")


def train(run_dir: Path, data: Path, log: Path, epochs: int, workers: int, resume: bool) -> None:
    """The child: runs train.json with debug.yaml, telling its log what it is about to do."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    torch.set_num_threads(1)
    say = logging.getLogger("moment").info
    save = torch.save

    def slow_save(content: Any, file: Any) -> None:
        buffer = io.BytesIO()
        save(content, buffer)
        whole = buffer.getvalue()
        file.write(whole[: len(whole) // 2])
        file.flush()
        say("half of %s written", Path(file.name).name)
        time.sleep(WRITE_SECONDS)
        file.write(whole[len(whole) // 2 :])

    torch.save = slow_save
    options = {"dataset_dir": str(data), "run_dir": str(run_dir), "device": "$torch.device('cpu')", "resume": resume}
    options |= {"epochs": epochs, "val_interval": VAL_INTERVAL, "num_workers": workers, "pixdim": PIXDIM}
    workflow: Any = create_workflow(
        config_file=[str(BUNDLE / "configs" / name) for name in ("train.json", "debug.yaml")],
        workflow_type="train",
        logging_file=False,
        bundle_root=str(BUNDLE),
        **options,
        **{"weights#perceptibility": 0.0},
    )
    trainer, evaluator = workflow.trainer, workflow.evaluator
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda e: say("iteration %d", e.state.iteration))
    evaluator.add_event_handler(Events.ITERATION_STARTED, lambda: say("validation of epoch %d", trainer.state.epoch))
    workflow.run()
    workflow.finalize()


def attempt(log: Path, arguments: tuple, moment: tuple[str, int, float] | None, number: int) -> int:
    """Runs a child; at its n-th moment of a kind and some milliseconds, sends it a signal. Returns its exit status."""
    child = FORK.Process(target=train, args=arguments)
    log.unlink(missing_ok=True)
    child.start()
    limit = time.monotonic() + SECONDS
    while moment is not None and child.is_alive() and time.monotonic() < limit:
        lines = log.read_text().splitlines() if log.is_file() else []
        if sum(line.startswith(moment[0]) for line in lines) >= moment[1]:
            time.sleep(moment[2])
            os.kill(child.pid, number)
            break
        time.sleep(0.005)
    child.join(max(0.0, limit - time.monotonic()))
    if child.is_alive():
        child.kill()
        sys.exit(f"no end within {SECONDS} s: {log.read_text()[-2000:]}")
    return child.exitcode


def fingerprint(last: Path) -> str:
    """SHA-256 of every weight of G, S, D_g, D_t and every number of their optimizers."""
    state = torch.load(last, weights_only=True)
    digest = hashlib.sha256()
    for path, value in leaves({name: state[name] for name in TRAINED}):
        content = value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()
        digest.update(path.encode() + b"\0" + content)
    return digest.hexdigest()


def interrupted(
    folder: Path, data: Path, epochs: int, kills: int, number: int, rng: random.Random, kinds: Iterator[str]
) -> dict[str, str]:
    """One row: a run that is ended `kills` times, at moments of these kinds, and then left alone."""
    row: dict[str, list[str]] = {"workers": [], "killed at": [], "resumed at": []}
    last, log = folder / "checkpoints" / "last.pt", folder.with_suffix(".log")
    for left in range(kills, -1, -1):
        workers, resume = rng.choice((0, 2)), last.is_file()
        kind = next(kinds) if number == signal.SIGKILL else "iteration"
        most = (epochs * BATCHES if kind == "iteration" else epochs // VAL_INTERVAL * CASES["validation"]) // kills
        count = rng.randint(1, most)
        if number == signal.SIGTERM:
            count -= (count - 1) % BATCHES  # an epoch's first iteration: the stop is in its middle
        moment = (kind, count, rng.uniform(0, 0.06)) if left else None
        begun = left < kills
        status = attempt(log, (folder, data, log, epochs, workers, resume), moment, number)
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        row["workers"].append(str(workers))
        if begun:
            resumed = [line.rpartition(": ")[2] for line in lines if line.startswith("resumed from")]
            row["resumed at"] += resumed or ["anew: no checkpoint yet"]
        if status == 0:
            if left:
                row["killed at"].append("finished before")
            break
        if status != (-signal.SIGKILL if number == signal.SIGKILL else 128 + number):
            sys.exit(f"exit status {status}: {chr(10).join(lines[-30:])}")
        said = [line for line in lines if line.startswith((*MOMENTS, "best val", "SIGTERM"))]
        row["killed at"].append(said[-1].replace(str(folder), "") if said else lines[-1])
    return {name: "; ".join(values) for name, values in row.items()} | {"sha": fingerprint(last)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="killed by SIGKILL; one more gets SIGTERM")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, help="keep the runs and their logs here")
    args = parser.parse_args()
    rng, kinds, equal = random.Random(args.seed), itertools.cycle(MOMENTS), True
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "data"
        prepare_phantoms(data, "vs", CASES, overwrite=True)
        log = folder / "uninterrupted.log"
        status = attempt(log, (folder / "uninterrupted", data, log, args.epochs, 0, False), None, 0)
        if status:
            sys.exit(f"exit status {status}: {log.read_text()[-3000:]}")
        expected = fingerprint(folder / "uninterrupted" / "checkpoints" / "last.pt")
        sys.stdout.write(
            "| run | workers | killed at | resumed at | SHA-256 of all weights | equal |\n|---|---|---|---|---|---|\n"
        )
        sys.stdout.write(f"| uninterrupted | 0 | - | - | `{expected[:16]}` | |\n")
        for run in range(args.runs + 1):
            number, name = (signal.SIGKILL, f"{run + 1}") if run < args.runs else (signal.SIGTERM, "SIGTERM")
            kills = 1 + run % 2 if run < args.runs else 1
            row = interrupted(folder / f"run{run + 1}", data, args.epochs, kills, number, rng, kinds)
            same = row.pop("sha")
            equal &= same == expected
            cells = [name, *row.values(), f"`{same[:16]}`", "yes" if same == expected else "NO"]
            sys.stdout.write(f"| {' | '.join(cells)} |\n")
            sys.stdout.flush()
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
