"""torch.compile, where this machine has what it needs."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

TRITON_CAPABILITY = (7, 0)  # the oldest GPUs that Triton writes code for


def missing_for_compile(device: torch.device) -> list[str]:
    """What torch.compile's default backend needs on a device and does not find on this machine."""
    missing = []
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        missing.append("Triton")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < TRITON_CAPABILITY:
        missing.append("a GPU of compute capability 7.0 or more")
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang", "cl"))):
        missing.append("a C compiler")
    return missing


def compile_networks(networks: Iterable[nn.Module], device: torch.device, **options: Any) -> None:
    """Compiles the forward passes of networks to be trained in place; warns and leaves them where something is missing.

    Args:
        networks: their state dicts keep their keys.
        device: where they are trained.
        options: of torch.compile; shapes count as fixed unless `dynamic` says otherwise.
    """
    missing = missing_for_compile(device) if options.get("backend", "inductor") == "inductor" else []
    if missing:
        logger.warning("training without torch.compile, which needs %s here: slower.", " and ".join(missing))
        return
    for network in networks:
        network.compile(**{"dynamic": False} | options)
