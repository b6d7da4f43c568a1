"""Tests of checkpoints: the exact resume, files that are never half written, SIGTERM's orderly end, and errors.

A trainer made by hand on voxels, with train.json's AdamW, clipping and average, and dropout: nothing here costs more
than its data workers.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ignite.engine import Engine, Events
from made.training import Voxels, leaves
from monai.data import DataLoader
from monai.handlers import LrScheduleHandler
from monai.transforms import Compose, RandFlipd, RandShiftIntensityd
from torch import Tensor, nn

from scripts.training.averaging import WeightAverage
from scripts.training.checkpoints import BestCheckpoint, FinalCheckpoint, LastCheckpoint, StopOnSignal
from scripts.training.dataset import SeededDataset, SeededSampler
from scripts.training.schedule import two_phase_schedule
from scripts.training.trainer import MethodTrainer

SAMPLES, BATCH_SIZE, EPOCHS = 7, 2, 3
LENGTH = 4  # batches of an epoch; the last one has a single sample
MAX_GRAD_NORM = 0.05  # less than most gradients here
SIGTERM_STATUS = 143  # 128 + 15, as a shell says it
WORKERS = [(0, 0), (2, 0), (0, 2)]  # before and after the resume


class Training(NamedTuple):
    trainer: MethodTrainer
    state: dict[str, Any]
    last: LastCheckpoint
    stop: StopOnSignal
    seen: list[tuple[int, ...]]  # the cases of every batch
    status: Any = None  # of the exit

    def content(self) -> dict[str, Any]:
        return {name: item.state_dict() for name, item in self.state.items() if name != "trainer"}


def make(
    folder: Path,
    *,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    accumulation_steps: int = 1,
    channels: int = 4,
    interval: int = 1,
    resume: bool = False,
    kill_at: int | None = None,
    on_epoch: Callable[[Engine], None] | None = None,
) -> Training:
    """Puts together what train.json does; `kill_at` is the iteration in which SIGTERM comes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(SAMPLES, 1, 4, 4, 2, generator=generator)
    data = [{"image": x, "target": 1 - x, "label": (x > 0.5).float(), "case": i} for i, x in enumerate(images)]
    random = [
        RandFlipd(["image", "target", "label"], prob=0.5, spatial_axis=0),
        RandShiftIntensityd(["image"], offsets=0.3, prob=1.0),
    ]
    dataset = SeededDataset(data, Compose(random), seed=5, cache_rate=0.0)
    sampler = SeededSampler(dataset, seed=5)
    loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=workers)
    method = Voxels(channels, dropout=0.5)
    optimizer_g = torch.optim.AdamW(method.generator_parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    optimizer_d = torch.optim.AdamW(method.discriminator_parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    options: dict[str, Any] = {"accumulation_steps": accumulation_steps, "max_grad_norm": MAX_GRAD_NORM}
    trainer = MethodTrainer("cpu", epochs, loader, method, optimizer_g, optimizer_d, decollate=False, **options)
    if on_epoch is not None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, on_epoch)
    schedules = [two_phase_schedule(optimizer, max_epochs=EPOCHS) for optimizer in (optimizer_g, optimizer_d)]
    for schedule in schedules:
        LrScheduleHandler(schedule, print_lr=False).attach(trainer)
    seen: list[tuple[int, ...]] = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda e: seen.append(tuple(e.state.batch["case"].tolist())))
    if kill_at is not None:
        at = Events.ITERATION_STARTED(once=kill_at)
        trainer.add_event_handler(at, lambda: os.kill(os.getpid(), signal.SIGTERM))
    state = {"trainer": trainer, "G": method.G, "D": method.D, "optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    average = WeightAverage(method.G, decay=0.9)
    average.attach(trainer)
    state |= {"scheduler_g": schedules[0], "scheduler_d": schedules[1], "average": average}
    FinalCheckpoint(average.module, path=str(folder / "final.pt")).attach(trainer)
    last = LastCheckpoint(state, path=str(folder / "last.pt"), interval=interval, resume=resume)
    last.attach(trainer)
    stop = StopOnSignal(last)
    torch.manual_seed(17 + resume)  # nothing may depend on the global generator
    return Training(trainer, state, last, stop, seen)


def train(folder: Path, **options: Any) -> Training:
    """Trains to the end, or until SIGTERM."""
    training = make(folder, **options)
    try:
        training.stop.run(training.trainer)
    except SystemExit as ended:
        return training._replace(status=ended.code)
    return training


def different(a: Training, b: Training) -> list[str]:
    """What is not the same in two trainings, to the last bit."""
    first, second = dict(leaves(a.content())), dict(leaves(b.content()))
    assert first.keys() == second.keys()
    return [
        path
        for path, value in first.items()
        if not (torch.equal(value, second[path]) if isinstance(value, Tensor) else value == second[path])
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """The run that nothing interrupts."""
    training = train(tmp_path_factory.mktemp("whole"))
    assert len(training.seen) == EPOCHS * LENGTH
    assert training.trainer.state.output["grad_norm_G"] > MAX_GRAD_NORM
    return training


# the exact resume


@pytest.mark.parametrize(("before", "after"), WORKERS)
def test_resume_at_an_epochs_end_is_bit_identical(whole: Training, tmp_path: Path, before: int, after: int) -> None:
    first = train(tmp_path, epochs=2, workers=before)
    assert different(first, whole)
    resumed = train(tmp_path, workers=after, resume=True)
    assert first.seen + resumed.seen == whole.seen
    assert different(resumed, whole) == []


@pytest.mark.parametrize(("before", "after"), WORKERS)
def test_resume_in_the_middle_of_an_epoch_is_bit_identical(
    whole: Training, tmp_path: Path, before: int, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(tmp_path, kill_at=LENGTH + 2, workers=before)
    assert first.seen == whole.seen[: LENGTH + 2]
    with caplog.at_level("INFO", logger="scripts.training.checkpoints"):
        resumed = train(tmp_path, workers=after, resume=True)
    assert f"resumed from {tmp_path / 'last.pt'}: epoch 2, batch 3 of {LENGTH}" in caplog.messages
    assert first.seen + resumed.seen == whole.seen
    assert different(resumed, whole) == []


def test_a_run_stopped_many_times_is_bit_identical(whole: Training, tmp_path: Path) -> None:
    seen = []
    for iteration in (1, 3, 4, 7, 12):
        seen += train(tmp_path, kill_at=iteration, resume=iteration > 1).seen
    resumed = train(tmp_path, resume=True)
    assert seen + resumed.seen == whole.seen
    assert different(resumed, whole) == []


def test_dropout_does_matter_here(whole: Training, tmp_path: Path) -> None:
    """Or the tests above would say nothing about its random numbers."""
    training = make(tmp_path)
    training.trainer.seed = 1
    training.trainer.run()
    assert training.seen == whole.seen
    assert different(training, whole)


@pytest.mark.parametrize(
    ("batch_size", "start"),
    [(1, 4), (2, 4), (3, 3), (5, 0)],  # 4 samples were seen
)
def test_another_batch_size_goes_on_behind_the_samples_seen(
    whole: Training, tmp_path: Path, batch_size: int, start: int
) -> None:
    train(tmp_path, kill_at=LENGTH + 2)
    resumed = train(tmp_path, batch_size=batch_size, resume=True)
    second = [case for batch in whole.seen[LENGTH : 2 * LENGTH] for case in batch]
    third = [case for batch in whole.seen[2 * LENGTH :] for case in batch]
    assert [case for batch in resumed.seen for case in batch] == second[start:] + third
    length = -(-SAMPLES // batch_size)
    assert (resumed.trainer.state.epoch, resumed.trainer.state.iteration) == (EPOCHS, EPOCHS * length)


def test_another_batch_size_starts_a_whole_step(tmp_path: Path) -> None:
    """6 samples were seen; steps of 4 start with the 1st and the 5th."""
    train(tmp_path, batch_size=2, kill_at=3)
    resumed = make(tmp_path, batch_size=1, accumulation_steps=4, resume=True)
    steps: list[int] = []
    resumed.trainer.optimizer_g.register_step_pre_hook(lambda *args: steps.append(len(resumed.seen)))
    resumed.trainer.run()
    assert steps[:3] == [3, 7, 10]  # batches since the resume: 5th to 7th, then the next epoch's 1st to 4th, 5th to 7th


def test_a_finished_run_resumes_to_itself(whole: Training, tmp_path: Path) -> None:
    train(tmp_path)
    resumed = train(tmp_path, resume=True)
    assert resumed.seen == [] and different(resumed, whole) == []


def test_more_epochs_go_on(tmp_path: Path) -> None:
    train(tmp_path)
    resumed = train(tmp_path, epochs=EPOCHS + 1, resume=True)
    assert len(resumed.seen) == LENGTH and resumed.trainer.state.epoch == EPOCHS + 1


def test_the_file_is_written_every_interval_and_at_the_end(tmp_path: Path) -> None:
    training = make(tmp_path, interval=2)
    written: list[int] = []

    def note(engine: Engine) -> None:
        if training.last.path.is_file():
            content = torch.load(training.last.path, weights_only=True)
            written.append(content["trainer"]["iteration"] // LENGTH)

    training.trainer.add_event_handler(Events.EPOCH_COMPLETED | Events.COMPLETED, note)
    training.trainer.run()
    assert written == [2, 2, 3]


# a write that dies


def test_a_write_that_dies_midway_leaves_the_last_good_file(
    whole: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = torch.save

    def dies_in_the_second(content: Any, file: Any) -> None:
        if content["trainer"]["iteration"] < 2 * LENGTH:
            return write(content, file)
        file.write(b"half of a checkpoint")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", dies_in_the_second)
    with pytest.raises(OSError, match="no space left"):
        train(tmp_path)
    monkeypatch.undo()
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert content["trainer"]["iteration"] == LENGTH
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    (tmp_path / ".last.pt.partial").write_bytes(b"half of a checkpoint")  # what a killed process leaves
    assert different(train(tmp_path, resume=True), whole) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final.pt", "last.pt"]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def synced(descriptor: int) -> None:
        order.append("fsync")
        fsync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        order.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    network = nn.Linear(1, 1)
    engine = Engine(lambda e, b: None)
    BestCheckpoint(network, path=str(tmp_path / "best.pt")).attach(engine)
    score(engine, 0.5)
    assert order == ["fsync", "replace"]


# SIGTERM


def test_sigterm_ends_with_a_checkpoint_and_status_143(
    whole: Training, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    training = train(tmp_path, kill_at=2)
    assert len(training.seen) == 2
    assert training.trainer.state.iteration == 2
    assert f"SIGTERM: stopped after iteration 2, wrote {tmp_path / 'last.pt'}." in caplog.messages
    assert training.status == SIGTERM_STATUS
    assert signal.getsignal(signal.SIGTERM) is before
    assert whole.status is None


def test_an_error_leaves_sigterm_as_it_was(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def fail(engine: Engine) -> None:
        raise FloatingPointError("a loss is not finite")

    with pytest.raises(FloatingPointError):
        train(tmp_path, on_epoch=fail)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("kill_at", [1, 2, 3, 4])
def test_sigterm_never_comes_between_the_batches_of_a_step(tmp_path: Path, kill_at: int) -> None:
    whole = train(tmp_path / "whole", accumulation_steps=2)
    first = train(tmp_path / "two", accumulation_steps=2, kill_at=kill_at)
    assert len(first.seen) == kill_at + kill_at % 2
    resumed = train(tmp_path / "two", accumulation_steps=2, resume=True)
    assert first.seen + resumed.seen == whole.seen
    assert different(resumed, whole) == []


def test_sigterm_in_an_epochs_last_iteration_waits_for_its_end(whole: Training, tmp_path: Path) -> None:
    """The validation and the schedules of that epoch come first, or the resumed run would never make them."""
    validated: list[int] = []
    first = train(tmp_path, kill_at=LENGTH, interval=2, on_epoch=lambda e: validated.append(e.state.epoch))
    assert validated == [1] and len(first.seen) == LENGTH
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert content["trainer"]["iteration"] == LENGTH
    assert content["scheduler_g"]["last_epoch"] == content["scheduler_d"]["last_epoch"] == 1
    resumed = train(tmp_path, interval=2, resume=True, on_epoch=lambda e: validated.append(e.state.epoch))
    assert validated == [1, 2, 3]
    assert different(resumed, whole) == []


def test_sigterm_during_validation_is_heard_at_its_end(whole: Training, tmp_path: Path) -> None:
    first = train(tmp_path, on_epoch=lambda e: os.kill(os.getpid(), signal.SIGTERM))
    assert first.stop.stopped and len(first.seen) == LENGTH
    assert different(train(tmp_path, resume=True), whole) == []


# errors


def test_nothing_to_resume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: no .*last\.pt\. Start the run without --resume"):
        make(tmp_path, resume=True)


def test_a_resume_that_is_text_is_refused() -> None:
    with pytest.raises(ValueError, match="resume is 'false': expected True or False"):
        LastCheckpoint({}, path="last.pt", resume="false")  # type: ignore[arg-type]


def test_another_runs_file_is_not_replaced(tmp_path: Path) -> None:
    train(tmp_path)
    kept = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(
        FileExistsError, match=r"last\.pt is another run's: go on from it with --resume True, or .*run_name"
    ):
        make(tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == kept


@pytest.mark.parametrize("interval", [0, EPOCHS + 1])
def test_an_interval_without_validation_is_refused(tmp_path: Path, interval: int) -> None:
    with pytest.raises(ValueError, match=f"val_interval is {interval} and epochs {EPOCHS}: expected 1 <= val_interval"):
        make(tmp_path, interval=interval)


@pytest.mark.parametrize("garbage", [b"", b"no checkpoint", b"PK\x03\x04" + b"\x00" * 100, "half"])
def test_an_unreadable_file_is_named(tmp_path: Path, garbage: bytes | str) -> None:
    if isinstance(garbage, str):
        train(tmp_path)
        whole = (tmp_path / "last.pt").read_bytes()
        garbage = whole[: len(whole) // 2]
    (tmp_path / "last.pt").write_bytes(garbage)
    with pytest.raises(ValueError, match=r"last\.pt cannot be read: expected the last\.pt of a run"):
        train(tmp_path, resume=True)


def test_a_file_of_other_objects_is_named(tmp_path: Path) -> None:
    torch.save(Voxels().state_dict(), tmp_path / "last.pt")
    with pytest.raises(
        ValueError, match=r"last\.pt holds \['D\.bias'.*expected \['D', 'G', .*resume with the configur"
    ):
        train(tmp_path, resume=True)
    torch.save(torch.zeros(1), tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt holds Tensor, expected"):
        train(tmp_path, resume=True)


def test_a_file_of_another_network_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(
        ValueError, match=r"(?s)last\.pt: G does not fit this configuration .*size mismatch.*resume with the"
    ):
        train(tmp_path, channels=8, resume=True)


@pytest.mark.parametrize("kill_at", [None, 2 * LENGTH + 1])
def test_fewer_epochs_than_done_are_refused(tmp_path: Path, kill_at: int | None) -> None:
    """Also where the file is in the middle of an epoch too many."""
    train(tmp_path, kill_at=kill_at)
    with pytest.raises(ValueError, match=r"last\.pt is in or behind epoch 3, expected at most the 2 asked for"):
        train(tmp_path, epochs=2, resume=True)


# the best weights


def score(engine: Engine, value: float) -> None:
    engine.state.metrics = {"dice": value}
    engine.state.key_metric_name = "dice"
    engine.fire_event(Events.COMPLETED)


def test_the_best_checkpoint_survives_a_resume(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)
    first, engine = BestCheckpoint(network, path=str(tmp_path / "best.pt")), Engine(lambda e, b: None)
    first.attach(engine)
    score(engine, 0.7)
    kept = (tmp_path / "best.pt").read_bytes()

    resumed, engine = BestCheckpoint(network, path=str(tmp_path / "best.pt")), Engine(lambda e, b: None)
    resumed.load_state_dict(first.state_dict())
    resumed.attach(engine)
    nn.init.constant_(network.weight, 5.0)
    score(engine, 0.6)
    assert (tmp_path / "best.pt").read_bytes() == kept
    score(engine, 0.8)
    assert torch.load(tmp_path / "best.pt", weights_only=True)["weight"].item() == 5.0


# the final weights


def final(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "final.pt", weights_only=True)


def test_the_final_weights_are_the_average_after_the_last_epoch_alone(tmp_path: Path) -> None:
    there: list[bool] = []
    training = train(tmp_path, on_epoch=lambda e: there.append((tmp_path / "final.pt").is_file()))
    assert there == [False] * EPOCHS  # noted before it is written
    average = training.state["average"].module.state_dict()
    assert final(tmp_path).keys() == average.keys()
    assert all(torch.equal(average[name], value) for name, value in final(tmp_path).items())
    last = training.state["G"].state_dict()
    assert not all(torch.equal(last[name], value) for name, value in final(tmp_path).items())


def test_a_stopped_run_has_no_final_weights_until_it_is_resumed(whole: Training, tmp_path: Path) -> None:
    train(tmp_path, kill_at=EPOCHS * LENGTH - 1)
    assert not (tmp_path / "final.pt").exists()
    train(tmp_path, resume=True)
    expected = whole.state["average"].module.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in final(tmp_path).items())


def test_only_the_first_process_writes_the_final_weights(tmp_path: Path) -> None:
    training = make(tmp_path)
    training.trainer.state.rank = 1
    training.trainer.run()
    assert not (tmp_path / "final.pt").exists()
