"""The algorithm box: trains any method, readable top to bottom. No method's own losses or networks go here."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, Trainer
from monai.inferers import SimpleInferer
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn
from torch.optim import Optimizer

from scripts.distributed import average_gradients, global_mean, share_weights

logger = logging.getLogger(__name__)

TENSORS = (Keys.IMAGE, Keys.LABEL, "target")


class Method(Protocol):
    """What the trainer asks of a method; every method is also a `torch.nn.Module`. See `methods/`."""

    def generator_parameters(self) -> list[nn.Parameter]: ...
    def discriminator_parameters(self) -> list[nn.Parameter]: ...
    def generator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def discriminator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def logits(self, outputs: Mapping[str, Tensor]) -> Tensor: ...
    def train(self, mode: bool = True) -> Any: ...
    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


class MethodTrainer(Trainer):
    """Trains a method: one forward pass, a step of the generators, a step of the discriminators on the same fakes.

    The losses of a `Method` are dicts of named, weighted scalars; their sum is stepped.

    Args:
        device: where to train.
        max_epochs: number of epochs; one epoch is one patch per case.
        train_data_loader: gives dicts with `image` (x_s), `target` (x_t), `label` (y) and `case` (ids).
        method: what to train.
        optimizer_g: of the generator step (G and S, or the only network).
        optimizer_d: of the discriminator step, None where there is no adversary.
        inferer: how the method is called, MONAI's SimpleInferer.
        amp: bfloat16 autocast of the forward passes; losses stay in float32.
        accumulation_steps: batches per optimizer step.
        seed: of dropout. Every iteration starts its random numbers anew, by (seed, iteration, process), so that a
            resumed run draws what an uninterrupted one does.
        epoch_length, train_handlers, key_train_metric, additional_metrics, postprocessing, decollate: as MONAI's
            SupervisedTrainer.

    In several processes (torchrun), gradients are averaged over them before each step: with equal weights everywhere
    and losses that sum over all batches, every process makes the step of one process with the whole batch.
    DistributedDataParallel would not do: the discriminators run three times per step, once without gradients.

    `engine.state.output` holds image, label, pred (the mask's probability), loss (their sum) and every term by name,
    with `loss_D` for the sum of the discriminators' and `grad_norm_G`, `grad_norm_D` on batches that step. In several
    processes the losses are means over them.

    Raises:
        FloatingPointError: a loss is NaN or infinite; names the term, the epoch and the cases. Nothing was stepped.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable,
        method: Method,
        optimizer_g: Optimizer,
        optimizer_d: Optimizer | None = None,
        *,
        inferer: Callable | None = None,
        amp: bool = False,
        accumulation_steps: int = 1,
        seed: int = 0,
        epoch_length: int | None = None,
        train_handlers: Sequence | None = None,
        key_train_metric: dict | None = None,
        additional_metrics: dict | None = None,
        postprocessing: Callable | None = None,
        decollate: bool = True,
    ) -> None:
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps is {accumulation_steps}: expected 1 or more.")
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            key_metric=key_train_metric,
            additional_metrics=additional_metrics,
            postprocessing=postprocessing,
            handlers=train_handlers,
            decollate=decollate,
        )
        if self.state.epoch_length is None:
            raise ValueError("train_data_loader has no length: give epoch_length, the number of batches per epoch.")
        self.method = method
        self.optimizer_g = optimizer_g
        self.optimizer_d = optimizer_d
        self.inferer: Callable = inferer or SimpleInferer()
        self.bfloat16 = amp
        self.accumulation_steps = accumulation_steps
        self.seed = seed
        self.add_event_handler(Events.STARTED, lambda engine: share_weights(engine.method))

    @property
    def at_a_step(self) -> bool:
        """Whether the last iteration ended with an optimizer step: no gradient is waiting for more batches."""
        return self._accumulation()[1]

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch = {key: batchdata[key].to(self.state.device, non_blocking=True) for key in TENSORS}
        cases = batchdata.get("case", [])
        first, last, share = self._accumulation()
        torch.manual_seed(_iteration_seed(self.seed, self.state.iteration, self.state.rank))

        self.method.train()
        discriminators = self.method.discriminator_parameters()
        if first:
            self.optimizer_g.zero_grad(set_to_none=True)
            if self.optimizer_d is not None:
                self.optimizer_d.zero_grad(set_to_none=True)

        # the step of {G, S}, eq. 10: the discriminators judge, but do not learn
        _requires_grad(discriminators, False)
        with self._autocast():
            outputs = self.inferer(batch, self.method)
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            losses_g = self.method.generator_losses(batch, outputs)
        loss_g = self._total(losses_g, cases)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        (loss_g * share).backward()
        scalars = {Keys.LOSS: loss_g.detach()} | {name: value.detach() for name, value in losses_g.items()}
        _requires_grad(discriminators, True)

        # the losses of {D_g, D_t}, eq. 11, on the fakes of the same forward pass; nothing steps before all are finite
        losses_d: dict[str, Tensor] = {}
        if self.optimizer_d is not None:
            with self._autocast():
                losses_d = self.method.discriminator_losses(batch, outputs)
        loss_d = self._total(losses_d, cases) if losses_d else None
        if last:
            average_gradients(self.method.generator_parameters())
            scalars["grad_norm_G"] = _grad_norm(self.method.generator_parameters())
            self.optimizer_g.step()

        # the step of {D_g, D_t}
        if self.optimizer_d is not None and loss_d is not None:
            (loss_d * share).backward()
            scalars |= {name: value.detach() for name, value in losses_d.items()}
            scalars["loss_D"] = loss_d.detach()
            if last:
                average_gradients(discriminators)
                scalars["grad_norm_D"] = _grad_norm(discriminators)
                _drop_zero_gradients(discriminators)
                self.optimizer_d.step()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)

        engine.state.output = {
            Keys.IMAGE: batch[Keys.IMAGE],
            Keys.LABEL: batch[Keys.LABEL],
            Keys.PRED: torch.sigmoid(self.method.logits(outputs).detach().float()),
            **dict(zip(scalars, global_mean(torch.stack([value.float() for value in scalars.values()])), strict=True)),
        }
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def _accumulation(self) -> tuple[bool, bool, float]:
        """Whether this batch opens, whether it closes a step (the epoch's last does), and its share of the step."""
        length = self.state.epoch_length
        i = (self.state.iteration - 1) % length
        start = i - i % self.accumulation_steps
        end = min(start + self.accumulation_steps, length)
        return i == start, i + 1 == end, 1 / (end - start)

    def _total(self, losses: Mapping[str, Tensor], cases: Sequence[str]) -> Tensor:
        if not losses:
            raise ValueError("every loss weight is 0: nothing to train; set at least one of the weights above 0.")
        total = torch.stack([value.float() for value in losses.values()]).sum()
        if not torch.isfinite(total):
            values = {name: float(value.detach()) for name, value in losses.items()}
            raise FloatingPointError(
                f"a loss is not finite in epoch {self.state.epoch}, iteration {self.state.iteration}, "
                f"case(s) {', '.join(cases) or 'unnamed'}: {values}. No weight was changed by this batch. "
                "Look at these cases' images; if they are sound, lower the learning rate or train without amp."
            )
        return total


def _iteration_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _requires_grad(parameters: Iterable[nn.Parameter], flag: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(flag)


def _grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _drop_zero_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Lets a discriminator that judged nothing (D_t, no tumor) make no step, where Adam's momentum would move it."""
    learning = [(p, p.grad) for p in parameters if p.grad is not None]
    if learning:
        largest = torch.stack([grad.abs().max() for _, grad in learning]).tolist()
        for (parameter, _), value in zip(learning, largest, strict=True):
            if value == 0:
                parameter.grad = None


def scalars(output: Any) -> dict[str, float]:
    """Picks the named scalars from a trainer's output, decollated or not, for the logging handlers."""
    first = output[0] if isinstance(output, list) else output
    return {name: float(value) for name, value in first.items() if torch.as_tensor(value).numel() == 1}


def two_phase_schedule(optimizer: Optimizer, *, max_epochs: int, constant: float = 0.4) -> Any:
    """Makes the schedule of the GAN networks: constant for a fraction of the epochs, then linear to 0.

    Args:
        optimizer: whose learning rate to scale, stepped once per epoch.
        max_epochs: number of epochs of the run.
        constant: fraction of them at the full rate (the paper: 100 of 250).
    """

    def factor(epoch: int) -> float:
        start = constant * max_epochs
        return 1.0 if epoch < start else max(0.0, (max_epochs - epoch) / max(max_epochs - start, 1.0))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def load_weights(network: nn.Module, *, path: str | Path) -> nn.Module:
    """Loads a network's state dict from a file, strictly.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or holds another network's weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: expected the best.pt of a run, or a released model.pt.")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold the weights of the configured {type(network).__name__} ({error}): give the weights "
            "of this configuration, or the configuration (features, source_channels) of these weights."
        ) from error
    return network


def load_perceptor(network: nn.Module, *, path: str, weight: float) -> nn.Module | None:
    """Loads the frozen perceptor S_p, or returns None where its loss has weight 0.

    Args:
        network: S_p's network, weights are loaded into it.
        path: its checkpoint, the state dict of `network`.
        weight: the perceptibility loss's weight.

    Raises:
        FileNotFoundError: there is no such file; names the command that trains it.
        ValueError: the file holds another network's weights.
    """
    if not weight:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no perceptor S_p at {path}, and the weight of the perceptibility loss is {weight:g}. Train it first, on "
            "the same task and data: python -m monai.bundle run training --config_file "
            "\"['configs/train.json','configs/pretrain.json']\" (further override files behind), or set "
            "--weights#perceptibility 0 (when evaluating: --S_p#weight 0), or point --perceptor_path to a trained one."
        )
    return load_weights(network, path=path).requires_grad_(False).eval()


def log_epoch(engine: Engine) -> None:
    """Logs the last batch's terms once per epoch, for StatsHandler's `epoch_print_logger`."""
    terms = ", ".join(f"{name} {value:.4g}" for name, value in scalars(engine.state.output).items())
    logger.info("epoch %d/%d: %s", engine.state.epoch, engine.state.max_epochs, terms)
