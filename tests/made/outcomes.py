"""What tests look at: the error of a call, the one series of a folder, and checksums of what was written."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.data.dicom.folder import scan
from scripts.data.dicom.series import Series
from scripts.data.volume import CaseError


def error_of(call: Callable[[], object]) -> CaseError:
    """The CaseError that a call raises; its message is one line."""
    with pytest.raises(CaseError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def one_series(folder: Path) -> Series:
    """The only series below a folder, in which every file can be read."""
    found = scan(folder)
    assert not found.unreadable
    (series,) = found.series
    return series


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
