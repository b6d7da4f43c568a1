"""Fine-tuning from submitted labels: runs the bundle's training (configs/fine_tune.yaml), measures before and after.

The weights that come out are added as a version. What is served changes only where asked for, and only for the better.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
from filelock import FileLock, Timeout
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list
from pydantic import BaseModel, Field, ValidationError

from monailabel_app import versions
from monailabel_app.bundle import ServedBundle
from monailabel_app.devices import Device
from monailabel_app.errors import Busy, InputError, sentence_of
from monailabel_app.tasks.infer import Switch
from monailabel_app.tasks.scoring import dice
from monailabel_app.tasks.submitted import (
    SECTIONS,
    LabeledCase,
    check_enough,
    collect,
    datalist_entry,
    described,
    split,
)

logger = logging.getLogger(__name__)

FINE_TUNE = "configs/fine_tune.yaml"
RUNS, SPLIT = "runs", "split.json"  # in the model's folder, beside the versions
FEW_CASES = 5  # a mean Dice over fewer says little
LINES_OF_AN_ERROR = 5
ERROR = re.compile(r"([a-z_]\w*\.)*[A-Z]\w*(Error|Exception|Interrupt)\b")  # the line of a traceback that names it
TEMPORARY = ("checkpoints", "candidate", "scans/*/scan_*", "training/previews")  # of a run: weights, patients' scans


class Options(BaseModel):
    """What a request may ask a training for."""

    max_epochs: int = Field(20, ge=1, le=1000)
    val_split: float = Field(0.2, ge=0.05, le=0.9)
    learning_rate: float = Field(2e-5, ge=1e-7, le=1e-2)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    promote_if_better: Switch = False
    device: Device


class TISSNetTrainTask(TrainTask):
    """Fine-tunes one model; runs in the process that MONAI Label starts for it, and ends its own when it is told to."""

    def __init__(self, bundle: ServedBundle) -> None:
        sources = " and ".join(bundle.source_modalities)
        super().__init__(
            f"Fine-tunes {bundle.name} with the submitted masks: needs {sources}, uses {bundle.target_modality} where "
            "a case has it. What is served changes only if promote_if_better is on and the result is better."
        )
        self.bundle = bundle

    def config(self) -> dict[str, Any]:
        """What a clinician may set in 3D Slicer."""
        shown = ("max_epochs", "val_split", "learning_rate", "promote_if_better")
        return {**{key: Options.model_fields[key].default for key in shown}, "device": device_list()}

    def stats(self) -> dict[str, Any]:
        """The newest version: when, on what, and its Dice on the validation cases before and after."""
        if self.bundle.fine_tuned is None:
            return {}
        records = versions.listing(self.bundle.fine_tuned, self.bundle.name)
        return _summary(records[-1]) | {"served": records[-1]["served"]} if records else {}

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> None:
        """Refuses at once a training that would fail for its options, or for too few cases; see `__call__`."""
        _options(request)
        self._folder()
        check_enough(datastore, self.bundle)

    def _folder(self) -> Path:
        """Where this model's versions and trainings are kept."""
        bundle = self.bundle
        if bundle.fine_tuned is None:
            raise InputError("This server has no folder for fine-tuned weights: start it with --conf versions FOLDER.")
        for file in ("configs/train.json", FINE_TUNE):
            if not (bundle.folder / file).is_file():
                raise InputError(f"{bundle.name} cannot be fine-tuned: its bundle has no {file}.")
        return bundle.fine_tuned.resolve() / bundle.name

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Collects, trains, measures, adds a version; promotes it if asked to and if it is better.

        Args:
            request: see `Options`; what else it holds is ignored.
            datastore: the store; labels with the tag `final` count, none that the model made.

        Returns:
            version, Dice before and after (mean and by case), cases that were left out with the reason, promoted.

        Raises:
            InputError: a value out of range, too few usable cases, a bundle that cannot be trained.
            Busy: another training of this model is running.
            RuntimeError: the training itself failed; its last lines.
        """
        bundle, options = self.bundle, _options(request)
        own = self._folder()
        own.mkdir(parents=True, exist_ok=True)
        lock = FileLock(own / ".training.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise Busy(f"A training of {bundle.name} is running: wait for its end, or stop it.") from error
        try:
            with _ending_on_sigterm():
                _remove_leftovers(own / RUNS)
                return self._train(own, options, datastore)
        finally:
            lock.release()

    def _train(self, own: Path, options: Options, datastore: Datastore) -> dict[str, Any]:
        bundle = self.bundle
        bundle.refresh()
        parent = {"version": versions.served_number(own.parent, bundle.name), "sha256": bundle.sha256}
        start, localizer = bundle.weights, bundle.localizer
        cases, left_out = collect(datastore, bundle)
        for name, reason in left_out.items():
            logger.warning("left out: %s: %s", name, reason)
        sections = split(cases, own / SPLIT, share=options.val_split)
        run = own / RUNS / datetime.now(UTC).strftime("%Y%m%dT%H%M%S_%fZ")
        run.mkdir(parents=True)
        try:
            entries = {name: [datalist_entry(case, run) for case in part] for name, part in sections.items()}
            content = {"task": bundle.task, **entries, "testing": []}
            (run / "datalist.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            command = self._command(run, start, options)
            counts = [len(sections[name]) for name in SECTIONS]
            with_target = sum(case.target is not None for case in sections["training"])
            logger.info("training on %d case(s), %d with %s", counts[0], with_target, bundle.target_modality)
            logger.info("validating on %d case(s); %d left out", counts[1], len(left_out))
            validation = sections["validation"], entries["validation"], options.device
            before = _measure(self._fixed(start), *validation, "served")
            environment = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
            _run(command, bundle.folder, run / "training.log", environment)
            candidate = self._candidate(run, localizer)
            after = _measure(candidate, *validation, "new")
            record: dict[str, Any] = {
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "parent": parent,
                "bundle_version": bundle.released_version,
                "released_sha256": bundle.released_sha256,
                "demonstration": bundle.demonstration,
                "training": [described(case) for case in sections["training"]],
                "validation": [
                    described(case) | {"dice_before": before[case.case], "dice_after": after[case.case]}
                    for case in sections["validation"]
                ],
                "left_out": left_out,
                "dice_before": float(np.mean([*before.values()])),
                "dice_after": float(np.mean([*after.values()])),
                "epochs": options.max_epochs,
                "learning_rate": options.learning_rate,
                "seed": options.seed,
                "command": command,
                "run": run.name,
            }
            record = versions.add(own.parent, bundle.name, candidate.weights, record=record, localizer=localizer)
        finally:
            _remove_temporary(run)
        promoted = self._promoted(own.parent, record["number"], options)
        if counts[1] < FEW_CASES:
            promoted["note"] += f" Measured on {counts[1]} case(s): the difference may be chance."
        return _summary(record) | {"left_out": left_out} | promoted

    def _promoted(self, folder: Path, number: int, options: Options) -> dict[str, Any]:
        if not options.promote_if_better:
            return {"promoted": False, "note": "The server goes on with what it serves: promote this version by hand."}
        try:
            versions.promote(folder, self.bundle.name, number, released=self.bundle.released_weights)
        except InputError as error:
            logger.warning("not promoted: %s", error)
            return {"promoted": False, "note": str(error)}
        return {"promoted": True, "note": "Served from the next request on."}

    def _command(self, run: Path, start: Path, options: Options) -> list[str]:
        bundle = self.bundle
        overrides = [str(Path(file).resolve()) for file in bundle.config_files[1:]]
        files = [str(bundle.folder / "configs/train.json"), str(bundle.folder / FINE_TUNE), *overrides]
        given = {
            "bundle_root": bundle.folder,
            "datalist": run / "datalist.json",
            "run_dir": run / "training",
            "ckpt_dir": run / "checkpoints",
            "start_from": start,
            "epochs": options.max_epochs,
            "learning_rate": options.learning_rate,
            "seed": options.seed,
        }
        perceptor = bundle.released_weights.parent / "perceptor" / "perceptor.pt"
        if perceptor.is_file():
            given["perceptor_path"] = perceptor
        else:
            logger.warning("no perceptor at %s: trained without the perceptibility loss", perceptor)
            given["weights#perceptibility"] = 0
        if options.device.startswith("cuda:"):
            given["device"] = f"$torch.device('{options.device}')"
        pairs = [part for key, value in given.items() for part in (f"--{key}", str(value))]
        return [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(files), *pairs]

    def _candidate(self, run: Path, localizer: Path | None) -> ServedBundle:
        """The training's last weights, the only ones that it validated, as they would be served."""
        best = run / "checkpoints" / "best.pt"
        if not best.is_file():
            raise RuntimeError(f"the training ended without {best}: see training.log there.")
        exported = run / "candidate" / "exported.pt"
        command = [sys.executable, "-m", "scripts.weights", "export", "--run", str(run), "--output", str(exported)]
        _run(command, self.bundle.folder, run / "export.log", {})
        weights = versions.place(exported, run / "candidate" / "placed", localizer=localizer)
        return self._fixed(weights)

    def _fixed(self, weights: Path) -> ServedBundle:
        """The model with these weights, whatever is promoted meanwhile."""
        return ServedBundle(
            self.bundle.name, self.bundle.folder, overrides=self.bundle.config_files[1:], weights=weights
        )


def _options(request: Mapping[str, Any]) -> Options:
    try:
        return Options.model_validate({"device": None, **request})
    except ValidationError as error:
        raise InputError(sentence_of(error, shown=True)) from error


def _measure(
    bundle: ServedBundle, cases: Sequence[LabeledCase], entries: Sequence[Mapping[str, Any]], device: str, name: str
) -> dict[str, float]:
    """Dice by case, of the whole scan as it would be answered."""
    found = {}
    for case, entry in zip(cases, entries, strict=True):
        with tempfile.TemporaryDirectory(prefix="tissnet_") as folder:
            answer = bundle.segment(
                [Path(file) for file in entry["image"]],
                Path(folder),
                case=case.case,
                **bundle.defaults,
                flips=False,
                device=device,
            )
        found[case.case] = dice(answer.mask.astype(np.uint8), case.mask()[0])
        logger.info("%s weights, %s: Dice %.4f", name, case.case, found[case.case])
    return found


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """What MONAI Label shows of a version; `best_metric` is what Slicer draws as accuracy."""
    keys = ("created", "parent", "dice_before", "dice_after", "training", "validation", "epochs", "demonstration")
    return {"version": record["number"], "best_metric": record["dice_after"], **{key: record[key] for key in keys}}


def _run(command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
    """Runs a command of the bundle, passes its lines on, and ends it with this process."""
    last: deque[str] = deque(maxlen=LINES_OF_AN_ERROR)
    errors: list[str] = []
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=_die_with_parent(),
    )
    try:
        assert process.stdout is not None
        with log.open("w", encoding="utf-8") as kept:
            for line in process.stdout:
                kept.write(line)
                if text := line.strip():
                    last.append(text)
                    errors += [text] if ERROR.match(text) else []
                    logger.info("%s", text)
        status = process.wait()
    finally:
        _kill(process)
    if status:
        told = "\n".join(errors or last)
        raise RuntimeError(f"{command[2]} ended with status {status}, see {log}:\n{told}")


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends a process and its children, if they are still there."""
    if process.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux, for a child before it starts: it is killed with this process, also where that is killed itself."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1

    def ask() -> None:
        prctl(set_parent_death_signal, signal.SIGKILL)

    return ask


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends this process in order, its children first; only the main thread can listen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _remove_leftovers(runs: Path) -> None:
    """Of trainings that were killed; no other is running now."""
    for run in runs.iterdir() if runs.is_dir() else ():
        _remove_temporary(run)


def _remove_temporary(run: Path) -> None:
    for path in (path for pattern in TEMPORARY for path in run.glob(pattern)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
