"""What a model may be computed on: the processor, or a graphics card that this server has."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from monailabel.utils.others.generic import device_map
from pydantic import BeforeValidator

from monailabel_app.errors import InputError


def known_device(value: Any) -> str:
    """The torch device that a request or the server's options ask for; none means a graphics card if there is one.

    Args:
        value: cpu, cuda, cuda:N or the name of a card, as `/info` lists them; the first of a list, which is how 3D
            Slicer sends choices back.

    Raises:
        InputError: this server has no such device; nothing else takes its place in silence.
    """
    wanted = value[0] if isinstance(value, (list, tuple)) and value else value
    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    known = ["cpu", *["cuda"] * bool(cards), *cards]
    if wanted in (None, "", []):
        return "cuda" if cards else "cpu"
    found = device_map().get(wanted, wanted) if isinstance(wanted, str) else None
    if found not in known:
        shown = f" {wanted!r}" if isinstance(wanted, str) and len(wanted) <= 32 and wanted.isprintable() else ""
        raise InputError(f"There is no device{shown} on the server: expected one of {', '.join(known)}.")
    return str(found)


def known_gpus(value: Any) -> str:
    """The numbers of graphics cards, with commas, or all.

    Raises:
        InputError: this server has no such card, or it is none of these.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    numbers = value.split(",") if isinstance(value, str) and len(value) <= 64 else [""]
    if value != "all" and not all(number in map(str, range(count)) for number in numbers):
        there = f"numbers from 0 to {count - 1}, with commas" if count else "the server has no graphics card"
        raise InputError(f"The GPUs are not on the server: expected all; {there}.")
    return str(value)


Device = Annotated[str, BeforeValidator(known_device)]
GPUs = Annotated[str, BeforeValidator(known_gpus)]
