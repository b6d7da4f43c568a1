"""What the processes of one training tell each other: sums over the whole batch, averaged gradients, equal weights.

torchrun and multi_gpu_train.json start and end the processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from monai.data import DistributedSampler
from torch import Tensor, nn


def world_size() -> int:
    """How many processes train together, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_sum(values: Tensor) -> Tensor:
    """Computes the sum of `values` over all processes, whatever its shape.

    Its gradient is that of world_size * values, without any communication in the backward pass: averaged over the
    processes, as `average_gradients` does, it is the gradient that one process with the whole batch would have.
    """
    count = world_size()
    if count == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    own = count * values
    return own + (total - own.detach())


def global_mean(values: Tensor) -> Tensor:
    """Computes the mean over all processes of values that need no gradient, for logs."""
    count = world_size()
    return values if count == 1 else global_sum(values.detach()) / count


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over all processes.

    Which parameters have a gradient must be the same everywhere: no loss here is left out for a sample without tumor.
    """
    count = world_size()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if count == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= count
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def share_weights(module: nn.Module) -> None:
    """Gives every process the parameters and buffers of the first one."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


def share_cases(dataset: Any) -> DistributedSampler:
    """Divides the cases among the processes, in their order, each to one of them: for validation.

    Raises:
        ValueError: fewer cases than processes.
    """
    if len(dataset) < world_size():
        raise ValueError(
            f"{len(dataset)} validation cases for {world_size()} processes: expected at least one each. Start fewer "
            "processes, or move cases into the datalist's validation section."
        )
    return DistributedSampler(dataset, even_divisible=False, shuffle=False)


def any_process(flag: bool, *, device: torch.device) -> bool:
    """Whether `flag` is true in at least one process."""
    if world_size() == 1:
        return flag
    votes = torch.tensor([float(flag)], device=device)
    dist.all_reduce(votes)
    return bool(votes.item())
