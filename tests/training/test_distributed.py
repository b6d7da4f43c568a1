"""Tests of distributed, and of losses, trainer and SIGTERM in two processes: equal to one with the whole batch.

Two real processes (gloo) are started once and answer every question here; one process works out the same in the test.
"""

from __future__ import annotations

import copy
import datetime
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Events
from made.training import make_batch, make_method, without_target
from torch import Tensor, nn

from scripts.training.averaging import WeightAverage
from scripts.training.checkpoints import StopOnSignal
from scripts.training.distributed import (
    any_process,
    average_gradients,
    global_mean,
    global_sum,
    share_cases,
    share_weights,
    world_size,
)
from scripts.training.losses import MaskLoss, lsgan_loss, mean_over_samples
from scripts.training.trainer import MethodTrainer

PROCESSES = 2
SECONDS = 120  # after which the processes are killed and the tests fail
RTOL = 1e-5  # float32, sums in another order
WEIGHTS_RTOL = 1e-4  # of how far the steps moved the weights; without exchange, processes differ by some tenths of it
TUMORS = {"both": (True, True), "first": (True, False), "second": (False, True), "none": (False, False)}
STEPS = ("both", "first", "none", "second")  # what the trainer sees, one after the other
TARGETS = ((True, True), (True, False), (False, False), (False, True))  # which process's case has its target, by step
MAX_GRAD_NORM = 12.0  # train.json's; less than the gradients here
STOPPED_AFTER = 2  # the iteration in which one process alone is told to stop

Batch = dict[str, Any]


def make_batches_without_target() -> list[Batch]:
    """One batch per entry of `TARGETS`, as `FillTargetd` makes them."""
    return [without_target(make_batch(True, True, seed=i), *has) for i, has in enumerate(TARGETS)]


def share(batch: Batch, rank: int) -> Batch:
    return {name: values[rank : rank + 1] for name, values in batch.items()}


# what is asked, by one process of the whole batch and by two of one sample each


def losses(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Every loss that sums or counts over the batch, with its gradient on a shared weight."""
    x, y = batch["image"], batch["label"]
    weight = y.flatten(1).amax(1)
    made = {
        "dice": lambda w: MaskLoss()(w * x, y),
        "dice and cross-entropy": lambda w: MaskLoss(cross_entropy=0.5)(w * x, y),
        "mean over samples": lambda w: mean_over_samples((w * x - 0.3).abs(), weight),
        "lsgan with weights": lambda w: lsgan_loss(w * x, True, weight=weight),
        "lsgan": lambda w: lsgan_loss(w * x, False),
    }
    found = {}
    for name, loss in made.items():
        w = nn.Parameter(torch.tensor(0.7))
        value = loss(w)
        value.backward()
        average_gradients([w])
        assert w.grad is not None
        found[name] = (global_mean(value.detach()), w.grad)
    return found


def make_trainer(batches: list[Batch], *, seed: int = 0) -> MethodTrainer:
    method = make_method(seed=seed)
    # SGD, for Adam makes a whole step of a gradient that is rounding alone; momentum, for what D_t must not do
    optimizers = [
        torch.optim.SGD(parameters, lr=rate, momentum=0.9)
        for parameters, rate in ((method.generator_parameters(), 1e-4), (method.discriminator_parameters(), 1e-3))
    ]
    return MethodTrainer("cpu", 1, batches, method, *optimizers, max_grad_norm=MAX_GRAD_NORM, decollate=False)


def train(batches: list[Batch], *, seed: int = 0) -> list[dict[str, Any]]:
    """Weights, their average, loss terms and gradient norms after every step."""
    trainer, steps = make_trainer(batches, seed=seed), []
    average = WeightAverage(trainer.method.cascade.network, decay=0.9)
    average.attach(trainer)

    def note() -> None:
        output = {f"{name}": float(value) for name, value in trainer.state.output.items() if value.numel() == 1}
        weights, mean = (copy.deepcopy(module.state_dict()) for module in (trainer.method, average.module))
        steps.append({"weights": weights, "average": mean, "output": output})

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    return steps


def stop(batches: list[Batch], *, told: bool) -> dict[str, Any]:
    """A training in which this process may get SIGTERM in iteration 2."""
    trainer, saved = make_trainer(batches), []
    checkpoint = SimpleNamespace(save=lambda engine: saved.append(engine.state.iteration), path="last.pt")
    trainer.add_event_handler(Events.COMPLETED, checkpoint.save)
    handler = StopOnSignal(checkpoint)  # type: ignore[arg-type]
    if told:
        at = Events.ITERATION_STARTED(once=STOPPED_AFTER)
        trainer.add_event_handler(at, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        handler.run(trainer)
    except SystemExit as ended:
        return {"iteration": trainer.state.iteration, "saved": saved, "status": ended.code}
    return {"iteration": trainer.state.iteration, "saved": saved, "status": None}


def process(rank: int, folder: Path) -> None:
    """One of the two processes: answers everything and writes it to a file."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", timeout, PROCESSES, rank)
    found: dict[str, Any] = {"world_size": world_size()}

    x = torch.tensor([1.0, 2.0, 4.0]) * (rank + 1)
    w = nn.Parameter(torch.tensor(3.0))
    total = global_sum(w * x)
    (total**2).sum().backward()
    average_gradients([w])
    found |= {"sum": total.detach(), "sum_gradient": w.grad, "mean": global_mean(x)}

    pair = nn.Linear(2, 1)
    pair.weight.grad = torch.full((1, 2), float(rank))
    average_gradients(pair.parameters())
    found |= {"average": pair.weight.grad, "no_gradient": pair.bias.grad}

    cpu = torch.device("cpu")
    found["votes"] = [any_process(flag, device=cpu) for flag in (False, rank == 0, rank == 1, True)]

    torch.manual_seed(rank)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    module(torch.rand(4, 3))  # moves the buffers
    before = copy.deepcopy(module.state_dict())
    share_weights(module)
    found["weights"] = {"before": before, "after": module.state_dict()}

    found["losses"] = {name: losses(share(make_batch(*present), rank)) for name, present in TUMORS.items()}
    batches = [share(make_batch(*TUMORS[name], seed=i), rank) for i, name in enumerate(STEPS)]
    found["steps"] = train(batches, seed=rank)  # other weights at first: the first process's are to be taken
    found["targets"] = train([share(batch, rank) for batch in make_batches_without_target()], seed=rank)
    found["stop"] = stop(batches, told=rank == 1)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    # a fork saves two imports of MONAI, but autograd cannot fork once it has threads for GPUs
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    running = [context.Process(target=process, args=(rank, folder), daemon=True) for rank in range(PROCESSES)]
    for one in running:
        one.start()
    for one in running:
        one.join(SECONDS)
    codes = [one.exitcode for one in running]
    for one in running:
        if one.is_alive():
            one.kill()
    assert codes == [0] * PROCESSES, f"exit codes {codes}: None is a process that hung"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone() -> list[dict[str, Any]]:
    return train([make_batch(*TUMORS[name], seed=i) for i, name in enumerate(STEPS)])


# the words that the processes exchange


def test_one_process_has_nothing_to_exchange() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    assert world_size() == 1
    assert global_sum(values) is values and global_mean(values) is values
    assert any_process(True, device=torch.device("cpu")) and not any_process(False, device=torch.device("cpu"))
    module = nn.Linear(2, 1)
    module.weight.grad = gradient = torch.ones(1, 2)
    average_gradients(module.parameters())
    share_weights(module)
    assert module.weight.grad is gradient and torch.equal(gradient, torch.ones(1, 2))


def test_global_sum_by_hand(found: list[dict[str, Any]]) -> None:
    """3 * (1, 2, 4) and 3 * (2, 4, 8); the gradient of the sum of squares is 2 * total * (3, 6, 12)."""
    for one in found:
        assert one["world_size"] == PROCESSES
        assert one["sum"].tolist() == pytest.approx([9, 18, 36], rel=RTOL)
        assert one["sum_gradient"].item() == pytest.approx(2 * (9 * 3 + 18 * 6 + 36 * 12), rel=RTOL)
        assert one["mean"].tolist() == pytest.approx([1.5, 3, 6], rel=RTOL)


def test_gradients_are_averaged_where_there_are_any(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["average"].tolist() == [[0.5, 0.5]] and one["no_gradient"] is None


def test_one_process_is_enough_for_a_vote(found: list[dict[str, Any]]) -> None:
    assert [one["votes"] for one in found] == [[False, True, True, True]] * PROCESSES


def test_every_process_gets_the_weights_and_buffers_of_the_first(found: list[dict[str, Any]]) -> None:
    first = found[0]["weights"]["before"]
    for one in found:
        assert all(torch.equal(one["weights"]["after"][name], value) for name, value in first.items())
    other = found[1]["weights"]["before"]
    assert any(not torch.equal(other[name], first[name]) for name in first if "running" in name)


# losses


@pytest.mark.parametrize("tumors", TUMORS)
def test_losses_and_gradients_are_those_of_the_whole_batch(found: list[dict[str, Any]], tumors: str) -> None:
    for name, (value, gradient) in losses(make_batch(*TUMORS[tumors])).items():
        for one in found:
            got_value, got_gradient = one["losses"][tumors][name]
            assert got_value.item() == pytest.approx(value.item(), rel=RTOL), name
            assert got_gradient.item() == pytest.approx(gradient.item(), rel=RTOL, abs=RTOL), name


def test_mean_of_each_ones_own_loss_would_be_another() -> None:
    """Or the test above would not tell global sums from local ones."""
    for tumors in ("both", "first", "second"):
        batch = make_batch(*TUMORS[tumors])
        pieces = [losses(share(batch, rank)) for rank in range(PROCESSES)]
        for name in {"dice"} if tumors == "both" else {"dice", "mean over samples", "lsgan with weights"}:
            mean = sum(piece[name][0].item() for piece in pieces) / PROCESSES
            assert mean != pytest.approx(losses(batch)[name][0].item(), rel=100 * RTOL), (tumors, name)


# steps


def test_steps_are_those_of_one_process(found: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    assert [len(one["steps"]) for one in found] == [len(STEPS)] * PROCESSES
    start = make_trainer([make_batch(True)]).method.state_dict()
    for name in ("cascade.network.G", "cascade.network.S", "D_g", "D_t"):
        weights = [weight for weight in start if weight.startswith(name)]
        for step, expected in enumerate(alone):
            moved = max(float((expected["weights"][w] - start[w]).abs().max()) for w in weights)
            for one in found:
                got = one["steps"][step]["weights"]
                worst = max(float((got[w] - expected["weights"][w]).abs().max()) for w in weights)
                assert worst <= WEIGHTS_RTOL * moved, (name, STEPS[step], worst, moved)


def test_cases_without_a_target_give_the_steps_of_one_process(found: list[dict[str, Any]]) -> None:
    """One process with, one without, none with: the same terms everywhere, and those of the whole batch."""
    start = make_trainer([make_batch(True)]).method.state_dict()
    for step, expected in enumerate(train(make_batches_without_target())):
        assert ("D_g" in expected["output"]) == any(TARGETS[step])
        moved = max(float((value - start[name]).abs().max()) for name, value in expected["weights"].items())
        for one in found:
            got = one["targets"][step]
            assert got["output"] == pytest.approx(expected["output"], rel=100 * RTOL, abs=RTOL), TARGETS[step]
            worst = max(float((value - expected["weights"][n]).abs().max()) for n, value in got["weights"].items())
            assert worst <= WEIGHTS_RTOL * moved, TARGETS[step]


def test_both_processes_have_the_same_weights_to_the_last_bit(found: list[dict[str, Any]]) -> None:
    first, second = (one["steps"] for one in found)
    for a, b in zip(first, second, strict=True):
        for kind in ("weights", "average"):
            assert all(torch.equal(value, b[kind][name]) for name, value in a[kind].items()), kind


def test_the_average_is_that_of_one_process(found: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    """Though the second process began with other weights."""
    start = make_trainer([make_batch(True)]).method.cascade.network.state_dict()
    for step, expected in enumerate(alone):
        moved = max(float((value - start[name]).abs().max()) for name, value in expected["average"].items())
        for one in found:
            got = one["steps"][step]["average"]
            worst = max(float((got[name] - value).abs().max()) for name, value in expected["average"].items())
            assert worst <= WEIGHTS_RTOL * moved, (STEPS[step], worst, moved)
    last = alone[-1]
    assert any(not torch.equal(last["weights"][f"cascade.network.{n}"], value) for n, value in last["average"].items())


def test_terms_and_gradient_norms_are_those_of_one_process(
    found: list[dict[str, Any]], alone: list[dict[str, Any]]
) -> None:
    for step, expected in enumerate(alone):
        assert expected["output"].keys() >= {"loss", "fine", "D_t", "grad_norm_G", "grad_norm_D"}
        assert expected["output"]["grad_norm_G"] > MAX_GRAD_NORM  # or the steps would say nothing about the limit
        for one in found:
            got = one["steps"][step]["output"]
            assert got == pytest.approx(expected["output"], rel=100 * RTOL, abs=RTOL), STEPS[step]


def test_d_t_makes_the_same_decision_everywhere(found: list[dict[str, Any]]) -> None:
    """A step where any process has a tumor, also in those without; none, in spite of momentum, where none has."""
    for one in found:
        states = [
            {name: value for name, value in step["weights"].items() if name.startswith("D_t.")} for step in one["steps"]
        ]
        assert states[0]
        moved = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in zip(states[:-1], states[1:], strict=True)]
        assert moved == [name != "none" for name in STEPS[1:]]


def test_sigterm_to_one_process_stops_all_after_the_same_step(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["stop"] == {"iteration": STOPPED_AFTER, "saved": [STOPPED_AFTER], "status": 143}


def test_fewer_validation_cases_than_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.training.distributed.world_size", lambda: 3)
    with pytest.raises(ValueError, match="2 validation cases for 3 processes: expected at least one each"):
        share_cases([0, 1])
