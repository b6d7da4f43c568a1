"""What a training keeps and goes on from: last.pt to resume exactly, best.pt and final.pt for the user, SIGTERM's end.

Files are complete at any moment: they are written beside and then renamed.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.files import whole_file
from scripts.training.distributed import any_process, world_size

logger = logging.getLogger(__name__)

BATCH = "samples_per_iteration"  # in last.pt: how far the run was, whatever the number of processes that go on


class LastCheckpoint:
    """Writes everything that a resume needs to one file, every few epochs and at the end; goes on from it.

    A resumed run does what the uninterrupted one would have done, bit for bit on a CPU, also from the middle of an
    epoch, also with another number of data workers. It may have another number of processes or another batch size:
    then it goes on behind the samples already seen (or at the last of them that starts a step of the new size).
    MONAI's CheckpointSaver has no fixed name for the newest file, and its CheckpointLoader starts in the middle of an
    epoch with that epoch's first samples.

    Args:
        state: objects with a `state_dict()` by name: networks, optimizers, schedulers, BestCheckpoint, and as `trainer`
            the trainer.
        path: the file.
        interval: epochs between two writes and two validations.
        resume: load the file when the trainer starts.

    Raises:
        FileNotFoundError: nothing to resume from.
        FileExistsError: a run that is not resumed would replace another run's file.
        ValueError: an interval that never validates, a file of another configuration, or a resume that is text.
    """

    def __init__(self, state: Mapping[str, Any], *, path: str, interval: int = 1, resume: bool = False) -> None:
        if not isinstance(resume, bool):  # the text "false" would count as true
            raise ValueError(f"resume is {resume!r}: expected True or False, with a capital letter on a command line.")
        self.state = dict(state)
        self.path = Path(path)
        self.interval = interval
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        epochs: Any = engine.state.max_epochs
        if not 1 <= self.interval <= epochs:
            raise ValueError(
                f"val_interval is {self.interval} and epochs {epochs}: expected 1 <= val_interval <= epochs, "
                "or the run would never validate and leave no best.pt."
            )
        if self.resume and not self.path.is_file():
            raise FileNotFoundError(f"nothing to resume: no {self.path}. Start the run without --resume.")
        if not self.resume and self.path.is_file():
            raise FileExistsError(
                f"{self.path} is another run's: go on from it with --resume True, or give this run another --run_name, "
                "or remove that run's folder."
            )
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        """Writes the file; in distributed training the first process alone does."""
        if not getattr(engine.state, "rank", 0):
            content = {name: item.state_dict() for name, item in self.state.items()}
            _save(content | {BATCH: _samples_per_iteration(engine)}, self.path)

    def load(self, engine: Engine) -> None:
        """Restores every object of `state` and the place in the epoch; the run's own number of epochs stays."""
        epochs: Any = engine.state.max_epochs
        length: Any = engine.state.epoch_length
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:  # OSError: a truncated file
            raise ValueError(f"{self.path} cannot be read: expected the last.pt of a run.") from error
        expected = {*self.state, BATCH}
        if not isinstance(content, dict) or set(content) != expected:
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(
                f"{self.path} holds {found}, expected {sorted(expected)}: resume with the configuration and the "
                "version that wrote it."
            )
        for name, item in self.state.items():
            try:
                item.load_state_dict(content[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise ValueError(
                    f"{self.path}: {name} does not fit this configuration ({error}): resume with the one that wrote it."
                ) from error
        done = content["trainer"]
        epoch, rest = divmod(done["iteration"], done["epoch_length"])
        if epoch + bool(rest) > epochs:
            raise ValueError(
                f"{self.path} is in or behind epoch {epoch + bool(rest)}, expected at most the {epochs} asked for."
            )
        start = rest * content[BATCH] // _samples_per_iteration(engine)
        start -= start % engine.accumulation_steps  # type: ignore[attr-defined]
        engine.state.max_epochs, engine.state.epoch_length = epochs, length
        engine.state.epoch, engine.state.iteration = epoch, epoch * length + start
        loader: Any = engine.data_loader  # type: ignore[attr-defined]
        loader.sampler.start = start * loader.batch_size
        logger.info("resumed from %s: epoch %d, batch %d of %d", self.path, epoch + 1, start + 1, length)


class BestCheckpoint:
    """Writes a network's state dict whenever the validator's key metric is better than ever, also across resumes.

    MONAI's CheckpointSaver forgets the best score at a resume, and a worse network would replace the best one.

    Args:
        network: what to save.
        path: the file.
    """

    def __init__(self, network: torch.nn.Module, *, path: str) -> None:
        self.network = network
        self.path = Path(path)
        self.best = float("-inf")

    def state_dict(self) -> dict[str, float]:
        """The best score, for `LastCheckpoint`."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restores the best score."""
        self.best = float(state["best"])

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self._save_if_better)

    def _save_if_better(self, engine: Engine) -> None:
        state: Any = engine.state
        score = float(state.metrics[state.key_metric_name])
        if score > self.best and not getattr(state, "rank", 0):
            self.best = score
            _save(self.network.state_dict(), self.path)
            logger.info("best %s so far, %.4f: %s", state.key_metric_name, score, self.path)


class FinalCheckpoint:
    """Writes a network's state dict after the last epoch: nothing was chosen by any case.

    Args:
        network: what to save.
        path: the file.
    """

    def __init__(self, network: torch.nn.Module, *, path: str) -> None:
        self.network = network
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_at_the_end)

    def _save_at_the_end(self, engine: Engine) -> None:
        if engine.state.epoch == engine.state.max_epochs and not getattr(engine.state, "rank", 0):
            _save(self.network.state_dict(), self.path)


class StopOnSignal:
    """Ends a training in order when the process is told to (SIGTERM, a cluster's way): last.pt, then exit status 143.

    The signal is noticed at the end of an optimizer step, or of the epoch with its validation, by all processes alike.

    Args:
        checkpoint: attached to the trainer, it writes the file.
    """

    def __init__(self, checkpoint: LastCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.told = False
        self.stopped = False

    def run(self, trainer: Engine) -> None:
        """Runs the trainer and exits with 128 + 15 if the signal ended it; listens only meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            logger.warning("training outside the main thread: SIGTERM will not write a checkpoint.")
            trainer.run()
            return
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._stop_if_told)
        before = signal.signal(signal.SIGTERM, self._hear)
        try:
            trainer.run()
        finally:
            signal.signal(signal.SIGTERM, before)
        if self.stopped:
            state: Any = trainer.state
            any_process(False, device=state.device)  # nobody leaves before the first process has written the file
            if not state.rank:
                logger.warning("SIGTERM: stopped after iteration %d, wrote %s.", state.iteration, self.checkpoint.path)
            sys.exit(128 + signal.SIGTERM)

    def _hear(self, number: int, frame: Any) -> None:
        self.told = True

    def _after_iteration(self, engine: Engine) -> None:
        trainer: Any = engine
        at_epochs_end = trainer.state.iteration % trainer.state.epoch_length == 0  # its validation is still to come
        if trainer.at_a_step and not at_epochs_end:
            self._stop_if_told(engine)

    def _stop_if_told(self, engine: Engine) -> None:
        state: Any = engine.state
        if any_process(self.told, device=state.device):
            self.stopped = True
            engine.terminate()  # the handlers of COMPLETED follow, the checkpoint among them


def _samples_per_iteration(engine: Engine) -> int:
    loader: Any = engine.data_loader  # type: ignore[attr-defined]
    return loader.batch_size * world_size()


def _save(content: Any, path: Path) -> None:
    """torch.save that replaces the file in one step, once all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
