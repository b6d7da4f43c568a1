"""The record of a prepared case, `<case>/<case>.json`: what it was made from, and checksums of what was written.

It says whether a case is finished, whether its folder is ours, and whether somebody has changed it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.data.volume import CaseError, one_line
from scripts.files import sha256

# Part of every record: raise it when the same input gives other files, and cases of older versions are made again.
VERSION = 1


def digest_inputs(files: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """SHA-256 over the contents of each role's files, not over their places or dates.

    Args:
        files: role, such as a modality, to the files in their order.

    Raises:
        CaseError: a file that cannot be read.
    """
    digests = {}
    for role, paths in files.items():
        whole = hashlib.sha256()
        for path in paths:
            try:
                whole.update(sha256(path).encode())
            except OSError as error:
                raise CaseError("unreadable file", f"{path}: {one_line(error)}", "a file that can be read") from error
        digests[role] = whole.hexdigest()
    return digests


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a case's folder; None where there is no such folder.

    Raises:
        ValueError: the folder is there without a record of ours; it must not be replaced, so the run ends.
    """
    if not folder.exists():
        return None
    try:
        record = json.loads(_path(folder, folder.name).read_text(encoding="utf-8"))
        if record["identity"]["version"] and all(isinstance(text, str) for text in record["files"].values()):
            return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        f"{folder} is there and was not written by scripts.prepare, or has lost its record {folder.name}.json: move it "
        "away or name another --output"
    )


def is_complete(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether every file of the record is there and still what was written.

    Raises:
        CaseError: a file is there and was changed since, by hand or by damage; it must not be lost.
    """
    there = [name for name in record["files"] if (folder / name).is_file()]
    for name in there:
        if sha256(folder / name) != record["files"][name]:
            expected = "the file as it was written; move the folder away to have the case made again"
            raise CaseError("changed file", f"{folder.name}/{name} was changed after it was prepared", expected)
    return len(there) == len(record["files"])


def write_record(folder: Path, case: str, content: Mapping[str, Any]) -> None:
    """Write the record of a case beside the files that are in the folder by now.

    Args:
        folder: where the case is being written.
        case: what the folder will be called.
        content: "identity" with its "version", and whatever else is to be kept.
    """
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    text = json.dumps({**content, "files": files}, indent=1, ensure_ascii=False)
    _path(folder, case).write_text(text + "\n", encoding="utf-8")


def _path(folder: Path, case: str) -> Path:
    return folder / f"{case}.json"
