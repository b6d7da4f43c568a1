"""The paper's algorithm, readable top to bottom: one loop that trains any method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import IterationEvents, Trainer
from monai.inferers import SimpleInferer
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from scripts.compiler import compile_networks
from scripts.training.distributed import average_gradients, global_mean, share_weights
from scripts.training.methods.protocol import Method

TENSORS = (Keys.IMAGE, Keys.LABEL, "target")
HAS_TARGET = "has_target"  # (B,) in {0, 1}, only where cases may lack the target


class MethodTrainer(Trainer):
    """Trains a method: one forward pass, a step of the generators, a step of the discriminators on the same fakes.

    The losses of a `Method` are dicts of named, weighted scalars; their sum is stepped.

    Args:
        device: where to train.
        max_epochs: number of epochs; one epoch is one patch per case.
        train_data_loader: gives dicts with `image` (x_s), `target` (x_t), `label` (y), `case` (ids) and, where cases
            may lack the target, `has_target` (see `FillTargetd`).
        method: what to train.
        optimizer_g: of the generator step (G and S, or the only network).
        optimizer_d: of the discriminator step, None where there is no adversary.
        inferer: how the method is called, MONAI's SimpleInferer.
        amp: bfloat16 autocast of the forward passes; losses stay in float32.
        channels_last: keep weights and batches with the channels innermost, as a GPU's convolutions want them.
        compile: `torch.compile` of the method's networks, in place: the keys of their state dicts stay. A mapping is
            passed on to it, such as {"mode": "reduce-overhead"}. Where Triton or a compiler is missing, a warning
            says so and the training goes on without.
        accumulation_steps: batches per optimizer step.
        max_grad_norm: larger gradients of the generator step are scaled down to this norm.
        seed: of dropout. Every iteration starts its random numbers anew, by (seed, iteration, process), so that a
            resumed run draws what an uninterrupted one does.
        epoch_length, train_handlers, key_train_metric, additional_metrics, postprocessing, decollate: as MONAI's
            SupervisedTrainer.

    In several processes (torchrun), gradients are averaged over them before each step: with equal weights everywhere
    and losses that sum over all batches, every process makes the step of one process with the whole batch.
    DistributedDataParallel would not do: the discriminators run three times per step, once without gradients.

    A GPU is waited for once per step: losses, gradient norms and which gradients are 0 come over in one copy, after
    both backward passes and before any step is made.

    `engine.state.output` holds image, label, pred (the mask's probability), loss (their sum) and every term by name,
    with `loss_D` for the sum of the discriminators' and `grad_norm_G`, `grad_norm_D` (before any limit) on batches that
    step: scalars on the CPU, in several processes means over them.

    Raises:
        FloatingPointError: a loss or a gradient is NaN or infinite, in any process; names the term, the epoch and the
            cases. Nothing was stepped.
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
        channels_last: bool = False,
        compile: bool | Mapping[str, Any] = False,
        accumulation_steps: int = 1,
        max_grad_norm: float = math.inf,
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
        if not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {max_grad_norm}: expected a positive number, infinity for no limit.")
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
        self.memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.accumulation_steps = accumulation_steps
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.method.to(memory_format=self.memory_format)
        for optimizer in (optimizer_g, optimizer_d):
            if optimizer is not None:
                optimizer.register_load_state_dict_post_hook(_match_layout)
        if compile:
            compile_networks(self.method.networks(), torch.device(device), **({} if compile is True else compile))
        self.add_event_handler(Events.STARTED, lambda engine: share_weights(engine.method))

    @property
    def at_a_step(self) -> bool:
        """Whether the last iteration ended with an optimizer step: no gradient is waiting for more batches."""
        return self._accumulation()[1]

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch = {
            key: batchdata[key].to(self.state.device, non_blocking=True, memory_format=self.memory_format)
            for key in TENSORS
        }
        if HAS_TARGET in batchdata:
            batch[HAS_TARGET] = batchdata[HAS_TARGET]  # stays on the CPU: what is asked of it must not wait for a GPU
        cases = batchdata.get("case", [])
        first, last, share = self._accumulation()
        drawn_by = np.random.SeedSequence((self.seed, self.state.iteration, self.state.rank))
        torch.manual_seed(int(drawn_by.generate_state(1)[0]))

        self.method.train()
        discriminators = self.method.discriminator_parameters()
        if first:
            self.optimizer_g.zero_grad(set_to_none=True)
            if self.optimizer_d is not None:
                self.optimizer_d.zero_grad(set_to_none=True)

        # the losses of {G, S}, eq. 10: the discriminators judge, but do not learn
        _requires_grad(discriminators, False)
        with self._autocast():
            outputs = self.inferer(batch, self.method)
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            losses_g = self.method.generator_losses(batch, outputs)
        scalars = {Keys.LOSS: _total(losses_g)} | losses_g
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        (scalars[Keys.LOSS] * share).backward()
        _requires_grad(discriminators, True)

        # the losses of {D_g, D_t}, eq. 11, on the fakes of the same forward pass
        losses_d: dict[str, Tensor] = {}
        if self.optimizer_d is not None:
            with self._autocast():
                losses_d = self.method.discriminator_losses(batch, outputs)
        if losses_d:
            scalars |= losses_d | {"loss_D": _total(losses_d)}
            (scalars["loss_D"] * share).backward()

        # the gradients of the whole step, over all processes
        largest = torch.zeros(0, device=self.state.device)
        if last:
            average_gradients(self.method.generator_parameters())
            scalars["grad_norm_G"] = _grad_norm(self.method.generator_parameters())
            if math.isfinite(self.max_grad_norm):
                clip_grads_with_norm_(self.method.generator_parameters(), self.max_grad_norm, scalars["grad_norm_G"])
        judged = any(parameter.grad is not None for parameter in discriminators)  # in any batch of this step
        if last and judged:
            average_gradients(discriminators)
            scalars["grad_norm_D"] = _grad_norm(discriminators)
            largest = _largest_gradients(discriminators)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)

        # the steps of {G, S} and of {D_g, D_t}, once everything is known to be finite: the only wait for the device
        values, largest = self._look(scalars, largest, cases)
        if last:
            self.optimizer_g.step()
        if last and judged and self.optimizer_d is not None:
            _drop_zero_gradients(discriminators, largest)
            self.optimizer_d.step()

        engine.state.output = {
            Keys.IMAGE: batch[Keys.IMAGE],
            Keys.LABEL: batch[Keys.LABEL],
            Keys.PRED: torch.sigmoid(self.method.logits(outputs).detach().float()),
            **values,
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

    def _look(
        self, scalars: Mapping[str, Tensor], largest: Tensor, cases: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Fetches the scalars, means over all processes, and `largest`, in one copy; refuses what is not finite."""
        own = torch.stack([value.detach().float() for value in scalars.values()])
        means = global_mean(own)
        own, means, largest = torch.cat([own, means, largest]).cpu().split([len(own), len(means), len(largest)])
        if not torch.isfinite(means).all():
            where = "" if not torch.isfinite(own).all() else " (all finite here: look at the other processes' messages)"
            raise FloatingPointError(
                f"a loss or a gradient is not finite in epoch {self.state.epoch}, iteration {self.state.iteration}, "
                f"case(s) {', '.join(cases) or 'unnamed'}: {dict(zip(scalars, own.tolist(), strict=True))}{where}. "
                "No weight was changed by this batch. Look at these cases' images; if they are sound, lower the "
                "learning rate or train without amp."
            )
        return dict(zip(scalars, means, strict=True)), largest


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    if not losses:
        raise ValueError("every loss weight is 0: nothing to train; set at least one of the weights above 0.")
    return torch.stack([value.float() for value in losses.values()]).sum()


def _requires_grad(parameters: Iterable[nn.Parameter], flag: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(flag)


def _grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    return get_total_norm([p.grad for p in parameters if p.grad is not None])


def _largest_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(p.grad, float("inf")) for p in parameters if p.grad is not None])


def _drop_zero_gradients(parameters: Iterable[nn.Parameter], largest: Tensor) -> None:
    """Lets a discriminator that judged nothing (D_t, no tumor) make no step, where Adam's momentum would move it.

    Args:
        parameters: as for `_largest_gradients`.
        largest: what that computed.
    """
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter, value in zip(learning, largest.tolist(), strict=True):
        if value == 0:
            parameter.grad = None


def _match_layout(optimizer: Optimizer) -> None:
    """Gives a loaded state the memory layout of its parameters.

    Fused Adam on a CPU walks through both as they lie in memory: a state written by a channels-last run would be
    applied to the wrong weights of another.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
