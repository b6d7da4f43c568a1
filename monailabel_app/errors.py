"""What the app answers with when a request cannot be done: each message is a sentence that a clinician understands."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError


class InputError(ValueError):
    """The request or its image cannot be used: says what was found, what was expected, what to do."""


class NotFound(InputError):
    """There is no image, label or model of that name."""


class Busy(RuntimeError):
    """Too many requests wait already: the same request can be sent again later."""


def sentence_of(error: ValidationError, *, name: Callable[[Any], str] = str, shown: bool = False) -> str:
    """Pydantic's first complaint as a sentence; an `InputError` of a check speaks for itself.

    The value is `shown` unless it came over the network; `name` makes the name of a field what its user calls it.
    """
    first = error.errors(include_url=False)[0]
    reason = first.get("ctx", {}).get("error")
    if isinstance(reason, InputError):
        return str(reason)
    found = f"is {first['input']!r}" if shown else "cannot be used"
    expected = re.sub(r"^\w+ should (be|have) |, unable to .*", "", first["msg"])
    for word, plain in {"integer": "whole number", "string": "text", "dictionary": "object"}.items():
        expected = expected.replace(word, plain)
    return f"{name(first['loc'][0])} {found}: expected {expected}."
