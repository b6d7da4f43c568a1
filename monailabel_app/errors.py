"""What the app answers with when a request cannot be done; each message is a sentence that a clinician understands.

Which status of HTTP they become goes to `server.py`.
"""

from __future__ import annotations


class InputError(ValueError):
    """The request or its image cannot be used: says what was found, what was expected, what to do."""


class NotFound(InputError):
    """There is no image, label or model of that name."""


class Busy(RuntimeError):
    """Too many requests wait already: the same request can be sent again later."""
