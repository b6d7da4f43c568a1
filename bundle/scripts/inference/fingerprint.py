"""What the components of a config are set to, as one hash: results made with other settings are other results.

Which components a result depends on is said where it is made, not here; hashes of files are in `data/record.py`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


def fingerprint(value: Any, *, besides: Path) -> str:
    """Computes the sha256 of settings, see `described`, whatever folder `besides` is, however it is written."""
    text = json.dumps(_without(described(value), besides), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def described(value: Any, *, inside: tuple[int, ...] = ()) -> Any:
    """What a component of a config is set to, as JSON can hold it: its class and attributes, and theirs.

    Networks are described by their layers' settings, not by their weights; objects of other libraries (locks, random
    states) by their class alone.

    Args:
        value: a component, or a value of one.
        inside: what it is an attribute of, by id; for references in circles.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum):
        return described(value.value)
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    if id(value) in inside:
        return "..."
    inside = (*inside, id(value))
    if isinstance(value, nn.Module):
        return {
            name: [
                type(layer).__qualname__,
                {
                    key: described(item, inside=inside)
                    for key, item in vars(layer).items()
                    if not key.startswith("_") and key != "training"
                },
            ]
            for name, layer in value.named_modules()
        }
    if isinstance(value, Mapping):
        return {str(key): described(item, inside=inside) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item, inside=inside) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((described(item, inside=inside) for item in value), key=repr)
    if isinstance(value, functools.partial):
        return [described(item, inside=inside) for item in (value.func, value.args, value.keywords)]
    if getattr(value, "__name__", None) == "<lambda>":
        code = value.__code__
        return [code.co_code.hex(), described([*code.co_names, *code.co_consts], inside=inside)]
    named = value if hasattr(value, "__qualname__") else type(value)
    name = f"{named.__module__}.{named.__qualname__}"
    if named is value or not name.startswith(("monai.", "scripts.")):
        return name
    return [name, described(vars(value), inside=inside)]


def _without(value: Any, folder: Path) -> Any:
    """Described settings with every mention of a folder left out."""
    if isinstance(value, dict):
        return {key: _without(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, folder) for item in value]
    return "" if isinstance(value, str) and Path(value) == folder else value
