"""Trains and evaluates the arms of an experiment on every fold of a cross-validation; a run that was stopped goes on.

    python -m scripts.prepare brats --input DOWNLOADED --output data/glioma --task glioma --folds 5
    python -m scripts.experiments --dataset_dir data/glioma --output runs/folds --arms tissnet source_only upper_bound \
        --configs configs/glioma.yaml configs/experiments/glioma_folds.yaml --jobs 2
    python -m scripts.report runs/folds/source_only runs/folds/tissnet runs/folds/upper_bound --output runs/folds/report

Every arm gets the same configs, and with them the same patches, steps and recipe. The weights of the last epoch are
evaluated, so that nothing is chosen on the fold that is scored. Each case is scored once, by a network that never saw
its patient; an arm's per_case.csv holds all of them.

A failing run does not stop the others. SIGTERM and Ctrl-C end the trainings in order. The same command then does what
is left; other configs or another seed need another --output.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bundle_command import EVALUATE, PRETRAIN, TRAIN, bundle_run
from scripts.evaluation.per_case import read_per_case, write_per_case
from scripts.files import whole_file

logger = logging.getLogger(__name__)

PERCEPTOR = "real_target"  # S_p, which is an arm too: the segmentation of the scan that is missing
ARMS = {
    PERCEPTOR: [PRETRAIN],
    "source_only": [PRETRAIN, "configs/experiments/source_only.yaml"],
    "upper_bound": [PRETRAIN, "configs/experiments/upper_bound.yaml"],
    "tissnet": [],
}


@dataclass(frozen=True)
class Run:
    """One arm on one fold.

    Attributes:
        arm: a key of `ARMS`.
        fold: its number.
        folder: where it is trained and evaluated.
        perceptor: the fold's S_p, for what needs one.
        dataset_dir: as `scripts.prepare --folds` wrote it.
        configs: what every arm gets behind its own files.
        seed: of the training.
    """

    arm: str
    fold: int
    folder: Path
    perceptor: Path
    dataset_dir: Path
    configs: tuple[str, ...]
    seed: int

    @property
    def weights(self) -> Path:
        """What a finished training leaves."""
        return self.folder / "checkpoints" / "final.pt"

    @property
    def evaluated(self) -> Path:
        """An empty file that marks a finished evaluation."""
        return self.folder / "evaluated"

    def steps(self) -> Iterable[tuple[str, list[str]]]:
        """What is still to be done, in order: a name and the arguments behind `python -m`."""
        shared = {
            "dataset_dir": self.dataset_dir,
            "datalist": self.dataset_dir / f"datalist_fold{self.fold}.json",
            "run_dir": self.folder,
            "perceptor_path": self.perceptor,
        }
        trained = self.weights.is_file()
        if not trained:
            files = [TRAIN, *ARMS[self.arm], *self.configs]
            resume = (self.folder / "checkpoints" / "last.pt").is_file()
            yield (
                "training",
                bundle_run("training", files, **shared, seed=self.seed, val_interval=0, resume=resume),
            )
        if not trained or not self.evaluated.is_file():
            files = [TRAIN, EVALUATE, *ARMS[self.arm], *self.configs]
            yield "evaluation", bundle_run("evaluating", files, **shared, checkpoint_path=self.weights)


def plan(dataset_dir: Path, output: Path, *, arms: Sequence[str], configs: Sequence[str], seed: int) -> list[list[Run]]:
    """Lists the runs in chains: those of a chain need each other in this order, chains are independent.

    Raises:
        FileNotFoundError: the data have no folds.
    """
    folds = sorted(int(path.stem.removeprefix("datalist_fold")) for path in dataset_dir.glob("datalist_fold*.json"))
    if not folds:
        raise FileNotFoundError(f"{dataset_dir} has no datalist_fold*.json: prepare the data with --folds 5.")
    chains = []
    for fold in folds:
        perceptor = output / PERCEPTOR / f"fold{fold}" / "checkpoints" / "final.pt"
        runs = {
            arm: Run(arm, fold, output / arm / f"fold{fold}", perceptor, dataset_dir, tuple(configs), seed)
            for arm in ARMS
        }
        needing = [runs[arm] for arm in (PERCEPTOR, "tissnet") if arm in arms or "tissnet" in arms]
        chains += [needing] if needing else []
        chains += [[runs[arm]] for arm in arms if arm not in (PERCEPTOR, "tissnet")]
    return chains


class Runner:
    """Runs chains in processes of their own; every step writes to log.txt in its run's folder.

    Args:
        threads: of each process.
    """

    def __init__(self, *, threads: int) -> None:
        self.threads = threads
        self.stopped_by = 0
        self._running: set[subprocess.Popen] = set()

    def stop(self, number: int, frame: Any = None) -> None:
        """A signal's handler: tells what runs to end in order (a training writes last.pt first) and starts no more."""
        self.stopped_by = number
        for process in list(self._running):
            process.terminate()

    def run_chain(self, chain: Sequence[Run]) -> None:
        """Runs what is left of a chain.

        Raises:
            RuntimeError: a step failed; names its log.
        """
        for run in chain:
            run.folder.mkdir(parents=True, exist_ok=True)
            log = run.folder / "log.txt"
            for name, arguments in run.steps():
                begin = time.perf_counter()
                status = 0 if self.stopped_by else self._step(arguments, log)
                if self.stopped_by:
                    return
                if status:
                    raise RuntimeError(
                        f"{name} of {run.arm}, fold {run.fold}, ended with exit status {status}: see {log}"
                    )
                if name == "evaluation":
                    run.evaluated.touch()
                minutes = (time.perf_counter() - begin) / 60
                logger.info("%s, fold %d: %s done in %.1f minutes", run.arm, run.fold, name, minutes)

    def _step(self, arguments: Sequence[str], log: Path) -> int:
        command = [sys.executable, "-W", "ignore", "-m", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with log.open("a", encoding="utf-8") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            self._running.add(process)
            if self.stopped_by:  # between the look and the start
                process.terminate()
            status = process.wait()
        self._running.discard(process)
        return status


def pool(runs: Sequence[Run], folder: Path) -> None:
    """Writes one per_case.csv and predictions.json for all folds of an arm, for `scripts.report`."""
    write_per_case(folder / "per_case.csv", [row for run in runs for row in read_per_case(run.folder / "per_case.csv")])
    entries = [e for run in runs for e in json.loads((run.folder / "predictions.json").read_text(encoding="utf-8"))]
    with whole_file(folder / "predictions.json") as partial:
        partial.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 1 where a run failed, after all others have ended, 143 after SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset_dir", type=Path, required=True, metavar="DIR", help="prepared with --folds")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets ARM/foldN for every run")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=["tissnet", "source_only", "upper_bound"])
    parser.add_argument("--configs", nargs="+", default=[], metavar="FILE", help="behind every arm's own")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings, default %(default)s")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time; each gets its share of cores")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}, expected 1 or more")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s: %(message)s", datefmt="%H:%M:%S")
    output, data = args.output.resolve(), args.dataset_dir.resolve()
    try:
        chains = plan(data, output, arms=args.arms, configs=args.configs, seed=args.seed)
    except FileNotFoundError as error:
        logger.error("%s", error)
        return 1
    runner, failed = Runner(threads=max(1, (os.cpu_count() or 1) // args.jobs)), 0
    before = {number: signal.signal(number, runner.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(args.jobs) as workers:
            for done in as_completed(workers.submit(runner.run_chain, chain) for chain in chains):
                if problem := done.exception():
                    failed += 1
                    logger.error("%s", problem)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if runner.stopped_by:
        logger.warning("stopped; the same command goes on")
        return 128 + runner.stopped_by
    runs = [run for chain in chains for run in chain]
    for arm in dict.fromkeys(run.arm for run in runs):
        folds = [run for run in runs if run.arm == arm]
        if all(run.evaluated.is_file() for run in folds):
            pool(folds, output / arm)
            logger.info("%s: all %d folds in %s", arm, len(folds), output / arm / "per_case.csv")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
