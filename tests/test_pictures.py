"""Tests of scripts.pictures: a picture is written, shows what it was given, and is the right way round."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from scripts.data.volume import CaseError
from scripts.pictures import case_figure, case_picture, draw_case, overlay_figure, read_volume

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
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(array, np.diag([-2.0, -1.0, 3.0, 1.0])), tmp_path / "lps.nii.gz")
    volume, spacing = read_volume(tmp_path / "lps.nii.gz")
    assert spacing == (2, 1, 3)
    np.testing.assert_array_equal(volume, array[::-1, ::-1])
    with pytest.raises(ValueError, match=r"missing file: found no file .*absent\.nii, expected"):
        read_volume(tmp_path / "absent.nii")
    (tmp_path / "text.nii").write_text("not an image")
    with pytest.raises(ValueError, match=r"unreadable file: found text\.nii: "):
        read_volume(tmp_path / "text.nii")
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 3)), np.eye(4)), tmp_path / "four.nii")
    with pytest.raises(ValueError, match=r"not 3-D: found four\.nii: 4-D, shape \(2, 2, 2, 3\)"):
        read_volume(tmp_path / "four.nii")


# --- Small pictures


RAS = np.array([[1.0, 0, 0, -50], [0, 1, 0, -60], [0, 0, 2, -40], [0, 0, 0, 1]])
VOLUME = (100, 120, 40)  # 100 x 120 x 80 mm


def volume(bright: tuple[slice, slice, slice]) -> np.ndarray:
    """A gray volume with one bright box."""
    image = np.full(VOLUME, 100, np.int16)
    image[0, 0, 0] = 0
    image[bright] = 200
    return image


def mask_at(corner: tuple[int, int, int], size: tuple[int, int, int] = (6, 6, 4)) -> np.ndarray:
    mask = np.zeros(VOLUME, np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))] = 1
    return mask


def pixels(path: Path) -> np.ndarray:
    return imread(path)[..., :3]


def yellow(picture: np.ndarray) -> np.ndarray:
    return np.abs(picture - np.array(YELLOW)).max(axis=2) < 0.3


def panels(picture: np.ndarray) -> list[np.ndarray]:
    """Axial, coronal, sagittal and enlarged panel of the first row; 120 mm are 230 pixels, the gap is 4."""
    rights = np.cumsum([100, 100, 120, 120]) * 230 / 120 + 4 * np.arange(4)
    lefts = [0.0, *(rights[:-1] + 4)]
    return [picture[:230, round(left) : round(right)] for left, right in zip(lefts, rights, strict=True)]


def middle(shown: np.ndarray) -> tuple[float, float]:
    """Row and column of the middle of what is True, as fractions of the panel."""
    return tuple(((np.argwhere(shown) + 0.5).mean(axis=0) / shown.shape).tolist())


def test_planes_are_in_radiological_convention(tmp_path):
    """A bright box on the patient's left, in front, below the middle: right and up on axial, down on the others."""
    image = volume((slice(10, 30), slice(80, 100), slice(8, 16)))  # center at 20, 90, 24 of 100, 120, 80 mm
    case_picture(tmp_path / "p.png", {" ": image}, mask=mask_at((17, 87, 10)), affine=RAS)
    axial, coronal, sagittal, enlarged = panels(pixels(tmp_path / "p.png"))
    row = 0.5 + (40 - 24) / 120  # coronal and sagittal, 80 mm high, stand in the middle of a panel of 120 mm
    bright = [panel.min(axis=2) > 0.9 for panel in (axial, coronal, sagittal)]
    assert middle(bright[0]) == pytest.approx((1 - 90 / 120, 1 - 20 / 100), abs=0.02)
    assert middle(bright[1]) == pytest.approx((row, 1 - 20 / 100), abs=0.02)
    assert middle(bright[2]) == pytest.approx((row, 1 - 90 / 120), abs=0.02)
    assert middle(yellow(axial)) == pytest.approx((1 - 90 / 120, 1 - 20 / 100), abs=0.02)
    assert middle(yellow(coronal)) == pytest.approx((row, 1 - 20 / 100), abs=0.02)
    assert middle(yellow(sagittal)) == pytest.approx((row, 1 - 90 / 120), abs=0.02)
    # 6 of the 40 mm that are shown: the outline of the mask is a square of 6 / 40 of the panel's side.
    shown = np.argwhere(yellow(enlarged))
    assert np.ptp(shown, axis=0) / 230 == pytest.approx([6 / 40, 6 / 40], abs=0.02)


@pytest.mark.parametrize("codes", ["LPS", "PIR", "ASL", "IRP"])
def test_orientation_of_the_file_does_not_matter(tmp_path, codes):
    image, mask = volume((slice(10, 30), slice(80, 100), slice(8, 16))), mask_at((17, 87, 10))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    affine = RAS @ nib.orientations.inv_ornt_aff(turn, VOLUME)
    images = {"T2": nib.apply_orientation(image, turn)}
    case_picture(tmp_path / "a.png", {"T2": image}, mask=mask, affine=RAS)
    case_picture(tmp_path / "b.png", images, mask=nib.apply_orientation(mask, turn), affine=affine)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_two_images_are_two_rows_of_the_same_planes(tmp_path):
    image = volume((slice(40, 60), slice(50, 70), slice(15, 25)))
    case_picture(tmp_path / "p.png", {"T2": image, "ceT1": 300 - image}, mask=mask_at((47, 57, 18)), affine=RAS)
    picture = pixels(tmp_path / "p.png")
    assert picture.shape[0] == 2 * 230 + 4
    first, second = yellow(picture[:230]), yellow(picture[234:])
    assert first.sum() == pytest.approx(second.sum(), rel=0.1) and first.sum() > 100


@pytest.mark.parametrize("mask", [None, np.zeros(VOLUME, np.uint8)])
def test_without_tumor_the_middle_is_shown_whole(tmp_path, mask):
    image = volume((slice(50, 51), slice(60, 61), slice(20, 21)))
    case_picture(tmp_path / "p.png", {"T2": image}, mask=mask, affine=RAS)
    picture = pixels(tmp_path / "p.png")
    assert not yellow(picture).any()
    assert picture.shape[1] == pytest.approx(320 * 230 / 120 + 8, abs=2)  # three planes, no enlarged part


def test_a_large_mask_is_not_enlarged(tmp_path):
    case_picture(
        tmp_path / "p.png", {"T2": volume(np.s_[40:60, :, :])}, mask=mask_at((5, 5, 5), (80, 90, 30)), affine=RAS
    )
    picture = pixels(tmp_path / "p.png")
    assert picture.shape[1] == pytest.approx(320 * 230 / 120 + 8, abs=2)
    assert yellow(picture).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 50, 20)])
@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_odd_volumes_are_drawn(tmp_path, shape, value):
    image = np.full(shape, value, np.float32)
    case_picture(tmp_path / "p.png", {"T2": image}, mask=np.ones(shape), affine=RAS)
    assert yellow(pixels(tmp_path / "p.png")).any()


def test_a_picture_of_real_size_stays_small(tmp_path):
    """Two images of 512 x 512 x 60 with noise: below 200 kB."""
    plane = np.random.default_rng(0).normal(400, 40, (2, 512, 512)).astype(np.int16)
    inside = np.hypot(*(np.mgrid[:512, :512] - 256)) < 210
    images = {name: np.repeat((noise * inside)[..., None], 60, axis=2) for name, noise in zip("ab", plane, strict=True)}
    mask = np.zeros((512, 512, 60), np.uint8)
    mask[200:230, 240:270, 28:36] = 1
    case_picture(tmp_path / "p.png", images, mask=mask, affine=np.diag([0.41, 0.41, 1.5, 1]))
    assert (tmp_path / "p.png").stat().st_size < 200_000


def test_wrong_arrays(tmp_path):
    path = tmp_path / "p.png"
    with pytest.raises(ValueError, match=r"p.png: found T2 \(2, 3, 4\), mask \(2, 3, 5\), expected images on one 3-D"):
        case_picture(path, {"T2": np.zeros((2, 3, 4))}, mask=np.zeros((2, 3, 5)), affine=RAS)
    with pytest.raises(ValueError, match=r"found T2 \(2, 3, 4, 1\), expected"):
        case_picture(path, {"T2": np.zeros((2, 3, 4, 1))}, affine=RAS)
    with pytest.raises(ValueError, match="found no image, expected"):
        case_picture(path, {}, affine=RAS)
    assert not path.exists()


def test_draw_case_reads_the_prepared_files(tmp_path):
    image, mask = volume(np.s_[40:60, 50:70, 15:25]), mask_at((47, 57, 18))
    nib.save(nib.Nifti1Image(image, RAS), tmp_path / "x_T2.nii.gz")
    draw_case(tmp_path, "x", ("T2",))
    assert not yellow(pixels(tmp_path / "x_overview.png")).any()
    nib.save(nib.Nifti1Image(mask, RAS), tmp_path / "x_label.nii.gz")
    draw_case(tmp_path, "x", ("T2",))
    case_picture(tmp_path / "same.png", {"T2": image}, mask=mask, affine=RAS)
    assert (tmp_path / "x_overview.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    with pytest.raises(CaseError, match="missing file"):
        draw_case(tmp_path, "x", ("T2", "ceT1"))
