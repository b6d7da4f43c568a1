"""Tests of scripts.pictures: a picture is written, shows what it was given, and is the right way round."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from scripts.pictures import case_figure, overlay_figure, read_volume

SHAPE = (40, 48, 12)
SPACING = (0.8, 0.8, 3.0)
YELLOW, GREEN = (1, 1, 0), (0, 1, 0)


def head() -> np.ndarray:
    """Make a bright ellipsoid in the dark, brighter towards the patient's right."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return np.where(x**2 + y**2 + z**2 < 0.9, 0.2 + 0.3 * x, -1.0).astype(np.float32)


def tumor(start: tuple[int, int, int] = (22, 24, 5)) -> np.ndarray:
    """Make a mask with one box."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(start, (8, 7, 3), strict=True))] = 1
    return mask


def count(path: Path, color: tuple[float, float, float], tolerance: float = 0.25) -> int:
    """Count the pixels near a color."""
    return int((np.abs(imread(path)[..., :3] - np.array(color)).max(axis=-1) < tolerance).sum())


def test_case_figure_has_both_contours(tmp_path: Path) -> None:
    path = tmp_path / "new" / "case.png"
    everything = {"synthetic": head(), "target": head(), "truth": tumor(), "prediction": tumor((20, 23, 5))}
    error = tumor().astype(np.float32) * 0.8
    case_figure(path, source=head(), error=error, spacing=SPACING, title="case 1   Dice 0.71", **everything)
    pixels = imread(path)
    assert pixels.shape[1] > pixels.shape[0] > 500
    assert count(path, YELLOW) > 200
    assert count(path, GREEN) > 200


def test_contours_appear_only_for_the_masks_given(tmp_path: Path) -> None:
    path = tmp_path / "case.png"
    case_figure(path, source=head(), truth=tumor(), spacing=SPACING)
    assert count(path, YELLOW) > 200
    assert count(path, GREEN) == 0
    overlay_figure(path, source=head(), prediction=tumor(), spacing=SPACING, title="x")
    assert count(path, YELLOW) == 0
    assert count(path, GREEN) > 200


def test_error_map_is_drawn_where_it_is_high(tmp_path: Path) -> None:
    path, other = tmp_path / "a.png", tmp_path / "b.png"
    error = np.zeros(SHAPE, np.float32)
    case_figure(path, source=head(), truth=tumor(), error=error, spacing=SPACING)
    case_figure(other, source=head(), truth=tumor(), error=error + 0.6 * tumor(), spacing=SPACING)
    assert np.abs(imread(path) - imread(other)).max() > 0.3


def test_planes_are_radiological(tmp_path: Path) -> None:
    # Right half bright, left half dark: in the axial view (top row) the patient's right is on the left of the picture.
    source = np.full((40, 40, 40), 0.2)
    source[20:] = 1.0
    source[0] = 0.0
    path = tmp_path / "case.png"
    case_figure(path, source=source, spacing=(1, 1, 1))
    pixels = imread(path)[..., :3].mean(axis=-1)
    top = pixels[int(pixels.shape[0] * 0.2) : int(pixels.shape[0] * 0.3)].mean(axis=0)
    middle = len(top) // 2
    assert top[:middle].sum() > 2 * top[middle:].sum()


def test_same_input_same_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        case_figure(tmp_path / name, source=head(), truth=tumor(), spacing=SPACING)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 50, 20)])
def test_odd_shapes_and_masks_at_the_border(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    path = tmp_path / "case.png"
    case_figure(path, source=np.zeros(shape), truth=np.ones(shape), prediction=np.zeros(shape), spacing=SPACING)
    assert count(path, YELLOW) > 50


def test_empty_masks_are_drawn_whole(tmp_path: Path) -> None:
    path = tmp_path / "case.png"
    case_figure(path, source=head(), truth=np.zeros(SHAPE), prediction=np.zeros(SHAPE), spacing=SPACING)
    assert path.stat().st_size > 0


def test_bad_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "case.png"
    with pytest.raises(ValueError, match=r"source \(40, 48, 12\), ground truth \(2, 2, 2\); expected one 3-D grid"):
        case_figure(path, source=head(), truth=np.zeros((2, 2, 2)), spacing=SPACING)
    with pytest.raises(ValueError, match="expected one 3-D grid"):
        case_figure(path, source=head()[None], spacing=SPACING)
    with pytest.raises(ValueError, match="expected three positive numbers in mm"):
        case_figure(path, source=head(), spacing=(1, 0, 1))
    assert not path.exists()


def test_read_volume_turns_to_ras(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    nib.save(nib.Nifti1Image(array, np.diag([-2.0, -1.0, 3.0, 1.0])), tmp_path / "lps.nii.gz")
    volume, spacing = read_volume(tmp_path / "lps.nii.gz")
    assert spacing == (2, 1, 3)
    np.testing.assert_array_equal(volume, array[::-1, ::-1])
    with pytest.raises(FileNotFoundError, match="absent.nii: no such file"):
        read_volume(tmp_path / "absent.nii")
    (tmp_path / "text.nii").write_text("not an image")
    with pytest.raises(ValueError, match=r"text.nii: found a file that nibabel cannot read"):
        read_volume(tmp_path / "text.nii")
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 3)), np.eye(4)), tmp_path / "four.nii")
    with pytest.raises(ValueError, match=r"found shape \(2, 2, 2, 3\); expected a 3-D image"):
        read_volume(tmp_path / "four.nii")


def test_import_is_free_of_torch_and_pyplot() -> None:
    unwanted = {"torch", "monai", "matplotlib.pyplot"}
    code = f"import sys, scripts.pictures; sys.exit(', '.join({unwanted} & set(sys.modules)) or 0)"
    folder = Path(__file__).parents[1] / "bundle"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
