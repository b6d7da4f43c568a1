"""Files: written in one step, so that a reader sees the old one or the new one, never a part; and their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Path to write to in place of `path`: renamed to it when the block ends, removed when the block fails.

    It is hidden and in the same folder, so that the rename is one step. What a killed process leaves behind is
    overwritten by the next one.

    Args:
        path: the file to replace; its folder must exist.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
