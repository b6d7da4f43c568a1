"""Tests of scripts.prepare on made cases: each check that leaves one out, and odd DICOM that must come out right.

The rows are in `made/refusals.py`; `benchmarks/refused.py` writes them into bundle/docs/refused.md. What single
functions refuse is tested beside them; damaged bytes are in `test_corrupted.py`.
"""

from __future__ import annotations

import ast
import csv
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made.contours import ball_contours, tube_contours, write_contours_json, write_rtstruct
from made.dicom import LPS_FROM_RAS, make_affine, make_uid, write_enhanced, write_series
from made.downloads import (
    PATTERNS,
    SHIFT,
    TFM,
    brats,
    download,
    head,
    msd,
    nifti,
    stored,
    t2_series,
    tumor,
    years_apart,
)
from made.files import touch
from made.refusals import CASES, prepared, refuse
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless
from refused import line_of_case

from scripts.data.datalist import load_datalist
from scripts.prepare import main

DATA = Path(__file__).parents[2] / "bundle/scripts/data"


def without_numbers(text: str) -> str:
    """A registration's millimeters differ from computer to computer; the rows above have the numbers that count."""
    return re.sub(r"[\d.]*\d", "#", text)


DOCUMENT = without_numbers((DATA.parents[1] / "docs/refused.md").read_text(encoding="utf-8")).splitlines()


@pytest.mark.parametrize("refused", CASES, ids=lambda r: f"{r.source}-{r.check}-{r.made}".replace(" ", "_"))
def test_refused(tmp_path, refused):
    status, rows = refuse(refused, tmp_path)
    shown = [row for row in rows if (row["case"], row["check"]) == (refused.case, refused.check)]
    assert len(shown) >= 1, rows
    assert refused.found in shown[0]["found"]
    assert refused.expected in shown[0]["expected"]
    assert {row["check"] for row in rows} == {refused.check}
    assert without_numbers(line_of_case(refused, rows, tmp_path)) in DOCUMENT
    assert not (tmp_path / "out" / refused.case).exists()
    survivors = list((tmp_path / "out").glob("*/*_T2.nii.gz"))
    assert status == (0 if survivors else 1)
    assert (tmp_path / "out/datalist.json").exists() == bool(survivors)


def test_good_cases_are_not_refused(tmp_path):
    """What `CASES` change; else they could be left out for another reason."""
    for source, make, options in (
        ("dicom", t2_series, ()),
        ("vs_seg", download, ()),
        ("nifti", nifti, PATTERNS),
        ("brats", brats, ()),
        ("msd", functools.partial(msd, channels=4), ()),
    ):
        folder = tmp_path / source
        make(folder / "in")
        assert prepared(source, folder, *options) == (0, [])


def test_every_check_has_a_case():
    """Names of checks, as the code has them; those of a datalist leave no case out, two have tests of their own."""
    trees = [ast.parse(path.read_text()) for path in DATA.rglob("*.py") if path.name != "datalist.py"]
    calls = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
    checks = (call.args[0] for call in calls if getattr(call.func, "id", "") == "CaseError")
    names = {check.value for check in checks if isinstance(check, ast.Constant)}
    names |= {"shape", "affine", "constant image", "non-finite image"}
    assert len(names) > 30
    assert names - {"unexpected error", "changed file"} <= {refused.check for refused in CASES}


def test_studies_a_few_days_apart_are_one_case(tmp_path):
    years_apart(tmp_path / "in", "20120501", "20120515")
    (tmp_path / "in/vs_gk_1_t2").mkdir()
    write_contours_json(tmp_path / "in/vs_gk_1_t2/contours.json", tumor())
    (tmp_path / "in/vs_gk_1_t2/inv_T2_LPS_to_T1_LPS.tfm").write_text(TFM.format(SHIFT.format(0)))
    assert prepared("vs_seg", tmp_path) == (0, [])


def test_a_copy_of_a_case_that_is_left_out_is_used(tmp_path):
    """The scan is in one patient then."""
    nifti(tmp_path / "in", "first", label=0 * head().label)
    nifti(tmp_path / "in", "second")
    status, rows = prepared("nifti", tmp_path, *PATTERNS)
    assert status == 0 and [(row["case"], row["check"]) for row in rows] == [("first", "empty mask")]


def test_a_damaged_file_is_told_once(tmp_path):
    """In the folder of a chosen series it is that case's problem, elsewhere a row of its own."""
    t2_series(tmp_path / "in")
    (tmp_path / "in/t2/more.dcm").write_bytes(b"damaged")
    assert [row["case"] for row in prepared("dicom", tmp_path)[1]] == ["VS-SEG-001"]
    (tmp_path / "in/other").mkdir()
    (tmp_path / "in/t2/more.dcm").rename(tmp_path / "in/other/more.dcm")
    status, rows = prepared("dicom", tmp_path)
    assert status == 0
    assert [(row["case"], row["check"]) for row in rows] == [(str(tmp_path / "in/other/more.dcm"), "unreadable file")]


def test_folders_name_series_without_description(tmp_path):
    download(tmp_path / "in", SeriesDescription=None)
    assert prepared("vs_seg", tmp_path) == (0, [])


def test_names_that_differ_by_case_or_signs_are_numbered(tmp_path):
    for index, patient in enumerate(("A 1", "A_1", "a_1")):
        t2_series(tmp_path / "in" / str(index), patient=patient, voxels=stored(head().images["T2"]) + np.int16(index))
    assert prepared("dicom", tmp_path) == (0, [])
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("*_T2.nii.gz")) == ["A_1", "A_1-2", "a_1-3"]


def test_converted_and_downloaded_data_are_not_mixed(tmp_path, caplog):
    download(tmp_path / "in")
    for name in ("t1", "t2", "seg"):
        touch(tmp_path / "in/vs_gk_5", f"vs_gk_{name}_refT2")
    assert main(["vs_seg", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 1
    assert "found DICOM beside the converter's" in caplog.text


def test_the_newest_structure_set_is_taken(tmp_path):
    series = download(tmp_path / "in", structures={})["t2_tra"]
    for name, date, move in (("a_old", "20190101", 3.0), ("z_new", "20200101", 0.0)):
        write_rtstruct(
            tmp_path / "in" / f"{name}.dcm",
            tumor(move=(move, 0, 0)),
            series=(series.series_uid,),
            study=series.study_uid,
            frame_of_reference=series.frame_uid,
            date=(date, "120000"),
        )
    assert prepared("vs_seg", tmp_path) == (0, [])
    label = nib.load(tmp_path / "out/VS-SEG-001/VS-SEG-001_label.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj), head().label)
    with (tmp_path / "out/cases.csv").open(newline="") as file:
        assert (
            "2 structure sets of T2, the newest is taken first: z_new.dcm, a_old.dcm"
            in next(csv.DictReader(file))["warnings"]
        )


def test_structure_sets_of_renamed_images_are_no_loss(tmp_path):
    series = download(tmp_path / "in", structures={})["t2_tra"]
    write_rtstruct(
        tmp_path / "in/rtstruct.dcm",
        tumor(),
        series=(series.series_uid,),
        study=series.study_uid,
        frame_of_reference=series.frame_uid,
        sop_uids={k: make_uid(f"renamed {k}") for k in range(10)},
    )
    assert prepared("vs_seg", tmp_path) == (0, [])


@pytest.mark.parametrize("strict", [False, True])
def test_strict(tmp_path, caplog, strict):
    """Of two patients one is left out: the datalist is there in any case, the exit status differs."""
    nifti(tmp_path / "in")
    nifti(tmp_path / "in", "bad", label=0 * head().label)
    status, rows = prepared("nifti", tmp_path, *PATTERNS, *(["--strict"] if strict else []))
    assert status == int(strict)
    assert ("--strict: 1 cases are left out" in caplog.text) == strict
    assert [row["case"] for row in rows] == ["bad"]
    assert [entry["case"] for entry in load_datalist(tmp_path / "out/datalist.json", "training")] == ["VS-SEG-001"]


# --- Odd, and right


def textured(shape: Sequence[int], seed: int = 0) -> NDArray[np.uint16]:
    """Noise around 500, by which every voxel is known; 4000 in one."""
    voxels = np.random.default_rng(seed).integers(300, 700, shape).astype(np.uint16)
    voxels[BRIGHT] = 4000
    return voxels


BRIGHT = (9, 4, 2)
BRIGHT_LPS = {
    # By hand: origin (LPS) + 9 * 0.5 along the rows + 4 * 0.7 along the columns + 2 * 1.5 along the normal.
    "axial": (-10 + 4.5, -20 + 2.8, 30 + 3.0),
    "sagittal": (-10 - 3.0, -20 + 4.5, 30 - 2.8),
    "coronal": (-10 + 4.5, -20 + 3.0, 30 - 2.8),
    # With a = 20 and b = 15 degrees: rows along (cos b, 0, -sin b), columns along (sin b sin a, cos a, cos b sin a),
    # slices along (sin b cos a, -sin a, cos b cos a).
    "oblique": (
        -10 + 4.5 * 0.9659258 + 2.8 * 0.0885213 + 3 * 0.2432103,
        -20 + 2.8 * 0.9396926 - 3 * 0.3420201,
        30 - 4.5 * 0.2588190 + 2.8 * 0.3303661 + 3 * 0.9076734,
    ),
}


def write_reversed(path: Path, voxels: NDArray, affine: NDArray) -> None:
    write_series(path, voxels, affine, order="reversed")


def write_one_enhanced(path: Path, voxels: NDArray, affine: NDArray) -> None:
    write_enhanced(path / "one.dcm", voxels, affine, order="reversed")


def write_jpeg2000(path: Path, voxels: NDArray, affine: NDArray) -> None:
    write_series(path, voxels, affine, transfer_syntax=JPEG2000Lossless)


def write_anonymized(path: Path, voxels: NDArray, affine: NDArray) -> None:
    write_series(path, voxels, affine, StudyDescription=None, SeriesDescription=None, StudyDate="", PatientName=None)


@pytest.mark.parametrize("plane", BRIGHT_LPS)
@pytest.mark.parametrize("write", [write_series, write_reversed, write_one_enhanced, write_jpeg2000, write_anonymized])
def test_a_point_stays_where_it_is(tmp_path, write, plane):
    affine = make_affine((0.5, 0.7, 1.5), origin=(10.0, 20.0, 30.0), plane=plane)
    voxels = textured((14, 12, 5))
    write(tmp_path / "in", voxels, affine)
    assert prepared("dicom", tmp_path) == (0, [])
    image = nib.load(tmp_path / "out/VS-SEG-001/VS-SEG-001_T2.nii.gz")
    data = np.asarray(image.dataobj)
    index = np.unravel_index(data.argmax(), data.shape)
    np.testing.assert_allclose((image.affine @ [*index, 1])[:3] * (-1, -1, 1), BRIGHT_LPS[plane], atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :3], axis=0), (0.5, 0.7, 1.5), atol=1e-5)
    np.testing.assert_array_equal(data, voxels)


def blob(affine: NDArray, shape: Sequence[int] = (64, 64, 22)) -> NDArray[np.float64]:
    """A head of 500 that fills most of the grid, with noise in and around it."""
    center = (np.array(shape) - 1) / 2
    inside = (((np.indices(shape).T - center) / (0.49 * np.array(shape))) ** 2).sum(axis=-1).T <= 1.4
    return np.where(inside, 500, 10) + np.random.default_rng(0).normal(0, 3, shape)


def center_lps(affine: NDArray, shape: Sequence[int] = (64, 64, 22)) -> NDArray[np.float64]:
    """Middle of the voxel in the middle of the grid."""
    return (LPS_FROM_RAS @ affine @ [*(size // 2 for size in shape), 1])[:3]


def mask_of(folder: Path, name: str = "VS-SEG-001") -> tuple[float, NDArray[np.float64], nib.Nifti1Image]:
    """Volume in mm3, center of mass in LPS mm, and image, of a written mask."""
    image = nib.load(folder / f"out/{name}/{name}_label.nii.gz")
    index = np.argwhere(np.asarray(image.dataobj))
    volume = len(index) * abs(np.linalg.det(image.affine[:3, :3]))
    return volume, (LPS_FROM_RAS @ image.affine @ [*index.mean(axis=0), 1])[:3], image


def prepare_drawn(folder: Path, structures: Mapping[str, Sequence[NDArray]], affine: NDArray, **arguments) -> None:
    """A patient with these structures through `prepare vs_seg`."""
    image = blob(affine)
    download(folder / "in", images=(image, image + 1), affine=affine, structures=structures, **arguments)
    assert prepared("vs_seg", folder) == (0, [])


BALL_MM3 = 4188.79  # 4/3 pi 10^3
CENTER_MM = 0.05


@pytest.mark.parametrize("plane", ["axial", "oblique", "sagittal", "coronal"])
@pytest.mark.parametrize("order", ["forward", "reversed"])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_a_ball_of_20_mm(tmp_path, plane, order, offset):
    """Its contours lie on the slices, or half way between them."""
    affine = make_affine((0.5, 0.5, 1.5), origin=(10.0, 20.0, 30.0), plane=plane)
    center = center_lps(affine)
    contours = ball_contours(center, 10.0, np.arange(22) + offset, affine)
    prepare_drawn(tmp_path, {"TV": contours}, affine, order=order)
    volume, middle, image = mask_of(tmp_path)
    # Every plane stands for 1.5 mm of height.
    heights = 1.5 * (np.arange(-7, 7) + offset)
    drawn = 1.5 * np.pi * np.clip(100 - heights**2, 0, None).sum()
    assert drawn == pytest.approx(BALL_MM3, rel=0.01)
    assert volume == pytest.approx(drawn, rel=0.01)
    assert volume == pytest.approx(BALL_MM3, rel=0.01)
    np.testing.assert_allclose(middle, center, atol=CENTER_MM)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)


def test_a_hole_stays_open(tmp_path):
    affine = make_affine((0.5, 0.5, 1.5))
    center = center_lps(affine)
    prepare_drawn(tmp_path, {"TV": tube_contours(center, (10.0, 4.0), range(6, 14), affine)}, affine)
    volume, _, image = mask_of(tmp_path)
    assert volume == pytest.approx(np.pi * (100 - 16) * 8 * 1.5, rel=0.01)
    assert not np.asarray(image.dataobj)[32, 32].any()


def test_two_tumors_are_one_mask(tmp_path):
    affine = make_affine((0.5, 0.5, 1.5))
    center = center_lps(affine)
    balls = [ball_contours(center + [side, 0, 0], 5.0, range(22), affine) for side in (-8, 8)]
    prepare_drawn(tmp_path, {"TV left": balls[0], "TV right": balls[1], "Cochlea": [balls[1][0] + [0, 7, 0]]}, affine)
    volume, middle, image = mask_of(tmp_path)
    assert volume == pytest.approx(2 * 523.6, rel=0.02)
    np.testing.assert_allclose(middle, center, atol=CENTER_MM)
    mask = np.asarray(image.dataobj)
    assert mask[16, 32, 11] and mask[48, 32, 11] and not mask[32, 32, 11]


@pytest.mark.parametrize(
    ("patient", "name"), [("Πέτρος^Ωμέγα 7", "Πέτρος_Ωμέγα_7"), ("山田^太郎=x/y", "山田_太郎_x_y")]
)
def test_names_in_any_script(tmp_path, patient, name):
    affine = make_affine((0.5, 0.5, 1.5))
    contours = ball_contours(center_lps(affine), 10.0, range(22), affine)
    images = blob(affine), blob(affine) + 1
    download(tmp_path / "in", patient=patient, images=images, affine=affine, structures={"TV": contours}, tfm=None)
    assert prepared("vs_seg", tmp_path) == (0, [])
    (entry,) = load_datalist(tmp_path / "out/datalist.json", "training")
    assert (entry["case"], entry["patient"]) == (name, patient)
    assert mask_of(tmp_path, name)[0] == pytest.approx(BALL_MM3, rel=0.01)
    assert re.search(name, (tmp_path / "out/overview.html").read_text(encoding="utf-8"))


def test_anonymized_without_study_description(tmp_path):
    download(tmp_path / "in", StudyDescription=None, StudyDate=None, PatientName=None)
    assert prepared("vs_seg", tmp_path) == (0, [])
    np.testing.assert_array_equal(np.asarray(mask_of(tmp_path)[2].dataobj), head().label)
