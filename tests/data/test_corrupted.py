"""Tests of scripts.prepare on damaged downloads: random bytes changed, files cut off.

Whatever is damaged, the command ends with 0 or 1 and says so case by case; what it writes is on one finite grid, and
on the grid of the undamaged files where the damage is not one that a reader could know. Made cases that a check names
are in `made/refusals.py`.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made.downloads import brats, download, tumor
from made.refusals import prepared
from numpy.random import Generator

logger = logging.getLogger(__name__)

RUNS = 16  # Of each kind; by `-m slow` more.
MANY = 60
HEADER_BYTES = {".dcm": 1200, ".nii": 352, ".gz": 60}
SAME_GRID_MM = 0.1


def vs_download(root: Path) -> None:
    """A patient with everything that is read: slices, RTSTRUCT, contours.json, .tfm."""
    download(root, drawn=tumor())


def unpacked_brats(root: Path) -> None:
    """A BraTS case as .nii."""
    brats(root)
    for path in list(root.rglob("*.nii.gz")):
        nib.save(nib.load(path), path.with_suffix(""))
        path.unlink()


def bytes_changed(path: Path, rng: Generator, *, most: int | None) -> None:
    """1 to 20 bytes of a file replaced, within the first `most`."""
    data = bytearray(path.read_bytes())
    where = rng.integers(0, min(len(data), most or len(data)), rng.integers(1, 21))
    for index in where:
        data[index] = rng.integers(256)
    path.write_bytes(data)


def one_bit_changed(path: Path, rng: Generator) -> None:
    """One bit of a file's header turned."""
    data = bytearray(path.read_bytes())
    data[rng.integers(min(len(data), HEADER_BYTES.get(path.suffix, 10**9)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def header_changed(path: Path, rng: Generator) -> None:
    bytes_changed(path, rng, most=HEADER_BYTES.get(path.suffix))


def anything_changed(path: Path, rng: Generator) -> None:
    bytes_changed(path, rng, most=None)


def truncated(path: Path, rng: Generator) -> None:
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


DAMAGE = (header_changed, anything_changed, one_bit_changed, truncated)
DOWNLOADS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "vs_seg": ("vs_seg", vs_download),
    "brats .nii": ("brats", unpacked_brats),
    "brats .nii.gz": ("brats", brats),
}


@pytest.fixture(scope="module", params=DOWNLOADS)
def whole(request, tmp_path_factory):
    """Source, folder with `in` and `out` of an undamaged download."""
    source, make = DOWNLOADS[request.param]
    folder = tmp_path_factory.mktemp("whole")
    make(folder / "in")
    assert prepared(source, folder) == (0, [])
    return source, folder


def chosen(files: Sequence[Path], rng: Generator) -> Path:
    """A file; each kind of file (a folder's slices, RTSTRUCT, ...) as often as another."""
    kinds = sorted({(path.parent.name if path.suffix == ".dcm" else "", path.suffix) for path in files})
    kind = kinds[rng.integers(len(kinds))]
    return rng.choice([path for path in files if (path.parent.name if kind[0] else "", path.suffix) == kind])


def grids(folder: Path) -> dict[str, tuple[tuple[int, ...], np.ndarray]]:
    """Shape and affine of every volume that was written, by its name."""
    return {path.name: (nib.load(path).shape, nib.load(path).affine) for path in sorted(folder.glob("*/*.nii.gz"))}


def corners(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Corners of a grid, mm (8, 3)."""
    return np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(shape) - 1) @ affine[:3, :3].T + affine[:3, 3]


def damaged_run(whole: tuple[str, Path], folder: Path, damage: Callable, seed: int) -> tuple[str, str]:
    """One file of a copy damaged and prepared: what was damaged, and what came of it; asserts what always holds."""
    source, undamaged = whole
    rng = np.random.default_rng(seed)
    shutil.copytree(undamaged / "in", folder / "in")
    path = chosen([path for path in sorted((folder / "in").rglob("*")) if path.is_file()], rng)
    damage(path, rng)
    what = f"{damage.__name__} of {path.relative_to(folder / 'in')}, seed {seed}"
    try:
        status, rows = prepared(source, folder)
    except FileNotFoundError:  # No excluded.csv: the download holds no case any more.
        return what, "no case"
    assert status in (0, 1), what
    assert all(row["check"] != "unexpected error" for row in rows), (what, rows)
    assert all(row[key] and "\n" not in row[key] for row in rows for key in row), (what, rows)
    if status == 1:
        assert not list(folder.glob("out/*/")) and not (folder / "out/datalist.json").exists(), what
        return what, rows[0]["check"]
    found, right = grids(folder / "out"), grids(undamaged / "out")
    shape, affine = next(iter(found.values()))
    assert np.isfinite(affine).all(), what
    for other_shape, other_affine in found.values():
        assert other_shape == shape, what
        assert np.abs(corners(shape, other_affine) - corners(shape, affine)).max() < SAME_GRID_MM, what
    expected = next(iter(right.values()))
    if shape != expected[0] or np.abs(corners(shape, affine) - corners(*expected)).max() >= SAME_GRID_MM:
        return what, "another grid"
    with (folder / "out/cases.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return what, "warned" if row["warnings"] else "as good"


def runs(whole: tuple[str, Path], folder: Path, numbers: range) -> Counter[str]:
    """What came of many runs; fails where a grid became another one in silence."""
    outcomes: Counter[str] = Counter()
    moved = []
    for seed in numbers:
        here = folder / str(seed)
        what, outcome = damaged_run(whole, here, DAMAGE[seed % len(DAMAGE)], seed)
        shutil.rmtree(here)
        outcomes[outcome] += 1
        if outcome == "another grid":
            moved.append(what)
    assert not moved, moved
    return outcomes


def test_damage_is_told_or_harmless(whole, tmp_path):
    outcomes = runs(whole, tmp_path, range(RUNS))
    assert outcomes.total() == RUNS
    assert outcomes["as good"] < RUNS


def test_a_bit_of_compressed_voxels_is_told(tmp_path):
    """gzip says so itself, at the end of the file."""
    brats(tmp_path / "in")
    path = next((tmp_path / "in").rglob("*-t2w.nii.gz"))
    data, right = bytearray(path.read_bytes()), np.asarray(nib.load(path).dataobj)
    for place in range(len(data) // 2, len(data)):  # The first whose bit leaves a stream that can be decoded.
        data[place] ^= 1
        path.write_bytes(data)
        with contextlib.suppress(OSError, EOFError, zlib.error):
            if not np.array_equal(np.asarray(nib.load(path).dataobj), right):
                break
        data[place] ^= 1
    status, rows = prepared("brats", tmp_path)
    assert (status, [row["check"] for row in rows]) == (1, ["unreadable file"])


@pytest.mark.slow
def test_much_damage_is_told_or_harmless(whole, tmp_path):
    outcomes = runs(whole, tmp_path, range(RUNS, RUNS + MANY))
    assert outcomes.total() == MANY
    logger.info("%s", dict(outcomes))
