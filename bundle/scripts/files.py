"""Files: those below a folder; written in one step, so that nobody sees a part of one; and their SHA-256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def files_below(folder: Path, *, failed: Callable[[OSError], None] | None = None) -> list[Path]:
    """All files at any depth, sorted, so that results do not depend on the file system; links to nothing among them.

    Links to folders are followed, but no folder is entered twice: a folder's own place goes before links to it. Hidden
    files and folders are passed over.

    Args:
        folder: where to begin.
        failed: told of folders that cannot be listed.
    """
    found: list[Path] = []
    entered: set[str] = set()
    todo = [os.fspath(folder)]
    while todo:  # all that is below a folder by its own place, then what the links in it lead to
        links: list[str] = []
        for top in todo:
            for parent, folders, names in os.walk(top, onerror=failed):
                real = os.path.realpath(parent)
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                if real in entered:
                    folders.clear()
                    continue
                entered.add(real)
                links += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
                found += [Path(parent, name) for name in names if not name.startswith(".")]
        todo = links
    return sorted(found)


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
