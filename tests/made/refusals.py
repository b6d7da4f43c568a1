"""Downloads that must be left out, a row for each, and what `scripts.prepare` makes of them."""

from __future__ import annotations

import csv
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from made.contours import polygon_contour
from made.dicom import LPS_FROM_RAS, make_affine, write_enhanced
from made.downloads import (
    PATTERNS,
    above,
    brain,
    brats,
    changed_slices,
    cut,
    download,
    head,
    in_air,
    jpeg_ls,
    lost_end,
    msd,
    nifti,
    odd_header,
    rgb,
    save,
    sheared,
    stored,
    swapped_series,
    t2_series,
    tumor,
    two_in_one,
    two_patients,
    unnamed,
    with_nan,
    years_apart,
)
from scripts.prepare import main


class Refused(NamedTuple):
    """A made case that must be left out.

    Args:
        check, found, expected: of its row in excluded.csv; the last two are parts of the text.
        made: what is wrong with it, in words.
        source: of scripts.prepare.
        make: writes it into an empty folder.
        options: further ones of the command line; FOLDER stands for the folder.
        case: as it is called in excluded.csv.
    """

    check: str
    made: str
    source: str
    make: Callable[[Path], object]
    found: str
    expected: str
    options: tuple[str, ...] = ()
    case: str = "VS-SEG-001"


def in_nifti(check: str, made: str, found: str, expected: str, *options: str, **change) -> Refused:
    """A row for NIfTI files that differ from a good case by `change`."""
    return Refused(check, made, "nifti", functools.partial(nifti, **change), found, expected, (*PATTERNS, *options))


def in_brats(check: str, made: str, found: str, expected: str, case: str = "BraTS-GLI-00001-000", **change) -> Refused:
    """A row for BraTS files that differ from a good case by `change`."""
    return Refused(check, made, "brats", functools.partial(brats, case=case, **change), found, expected, (), case)


def in_dicom(check: str, made: str, make: Callable[[Path], object], found: str, expected: str) -> Refused:
    """A row for one T2 series."""
    return Refused(check, made, "dicom", make, found, expected)


def in_series(check: str, made: str, found: str, expected: str, **arguments) -> Refused:
    """A row for one T2 series written with other arguments of `t2_series`."""
    return Refused(check, made, "dicom", functools.partial(t2_series, **arguments), found, expected)


def in_vs(check: str, made: str, found: str, expected: str, *options: str, **arguments) -> Refused:
    """A row for a patient written with other arguments of `download`."""
    return Refused(check, made, "vs_seg", functools.partial(download, **arguments), found, expected, options)


TILTED = polygon_contour([(10, 10), (20, 10), (20, 20)], 4, make_affine((1.4, 1.4, 3.0))) + [
    [0, 0, 0],
    [0, 0, 0],
    [0, 0, 6],
]


def _cases() -> list[Refused]:
    t2, cet1, label, affine = (*(stored(head().images[name]) for name in ("T2", "ceT1")), head().label, head().affine)
    glioma = {name: stored(image) for name, image in brain().images.items()}
    skewed = affine.copy()
    skewed[0, 1] = 0.2
    return [
        # Which series
        Refused(
            "missing series", "only a T2 series", "vs_seg", t2_series, "ceT1: series 't2_ci3d_tra'", "contains 't1_'"
        ),
        Refused(
            "missing series",
            "anonymized: no SeriesDescription, no telling folder",
            "vs_seg",
            unnamed,
            "'a', 'b'",
            "'t2_'",
        ),
        Refused(
            "different studies",
            "ceT1 of seven years later",
            "vs_seg",
            years_apart,
            "T2 of 2012-05-01, ceT1 of 2019-05-01",
            "31 days",
        ),
        in_dicom(
            "ambiguous series",
            "two series that fit",
            lambda root: [t2_series(root, folder=name, description=name) for name in ("t2_tra", "t2_cor")],
            "'t2_tra'",
            "one MR series",
        )._replace(options=("--series", "T2=t2_")),
        in_vs(
            "known incomplete", "patient 168", "listed by its publishers", "complete patient", patient="VS-SEG-168"
        )._replace(case="VS-SEG-168"),
        # Slices
        in_dicom(
            "unreadable file",
            "a slice cut off in its header",
            lambda root: changed_slices(root, lambda paths: cut(paths[3], 300)),
            "000004.dcm",
            "a complete download",
        ),
        in_dicom(
            "unreadable file",
            "a slice cut off in its pixels",
            lambda root: changed_slices(root, lambda paths: cut(paths[3], -100)),
            "000004.dcm",
            "a complete DICOM file",
        ),
        in_series("number of slices", "two slices", "2, in 000001.dcm", "at least 3", slices=2),
        Refused(
            "number of slices",
            "the last slice is missing",
            "vs_seg",
            lost_end,
            "T2: 1 of the 10 images that the structure set lists are missing",
            "every image of the series",
        ),
        in_dicom(
            "gap",
            "a slice is missing",
            lambda root: changed_slices(root, lambda paths: paths[4].unlink()),
            "6 mm between 000004.dcm",
            "3 mm as between most slices",
        ),
        in_dicom(
            "duplicate position",
            "a slice is there twice",
            lambda root: changed_slices(root, lambda paths: shutil.copy(paths[2], root / "t2/copy.dcm")),
            "the same instance in",
            "one copy of every instance",
        ),
        in_series(
            "duplicate position",
            "two slices at one place",
            "000004.dcm and 000005.dcm both at",
            "one slice at each position",
            ImagePositionPatient=lambda k: [*(LPS_FROM_RAS @ affine @ [0, 0, 3 if k == 4 else k, 1])[:3]],
        ),
        in_series(
            "slice order",
            "instance numbers shuffled",
            "the position turns back from instance number",
            "in order of instance numbers",
            InstanceNumber=lambda k: (3 * k) % 10 + 1,
        ),
        in_series(
            "gantry tilt",
            "slices sheared by 0.3 mm",
            "0.3 mm sideways",
            "along their normal",
            ImagePositionPatient=sheared,
        ),
        in_dicom(
            "mixed series",
            "two orientations",
            lambda root: two_in_one(root, affine=make_affine((1.4, 1.4, 3.0), plane="sagittal")),
            "orientation (",
            "one orientation in a series",
        ),
        in_dicom(
            "mixed series",
            "two pixel spacings",
            lambda root: two_in_one(root, affine=above(affine, 30.0), PixelSpacing=([1.4, 1.4], [1.2, 1.2])),
            "pixel spacing (1.4, 1.4)",
            "one pixel spacing in a series",
        ),
        in_dicom(
            "mixed series",
            "two echo times",
            lambda root: two_in_one(root, affine=above(affine, 30.0), EchoTime=(177.0, 20.0)),
            "echo time 177 ms",
            "one echo time in a series",
        ),
        in_dicom(
            "4-D",
            "two time points",
            lambda root: two_in_one(root, TemporalPositionIdentifier=(1, 2)),
            "20 slices at 10 positions, 2 at each, differing in time point",
            "a 3-D series",
        ),
        in_dicom(
            "4-D",
            "enhanced multi-frame with two time points",
            lambda root: write_enhanced(root / "e.dcm", np.stack([t2, t2], axis=-1), affine),
            "20 slices at 10 positions, 2 at each, differing in time point",
            "a 3-D series",
        ),
        in_series(
            "missing attribute",
            "no positions",
            "no usable ImagePositionPatient",
            "in every slice",
            ImagePositionPatient=None,
        ),
        in_series(
            "orientation",
            "directions of length 2",
            "lengths 2 and 2",
            "perpendicular",
            ImageOrientationPatient=[2, 0, 0, 0, 2, 0],
        ),
        in_series(
            "orientation",
            "no orientation",
            "no usable ImageOrientationPatient",
            "perpendicular",
            ImageOrientationPatient=None,
        ),
        in_series(
            "spacing", "pixels of 0 mm", "pixels of 0 x 0 mm", "0.05 to 5 mm between pixels", PixelSpacing=[0, 0]
        ),
        in_series(
            "spacing",
            "slices 40 mm apart",
            "slices 40 mm apart",
            "between slices",
            affine=make_affine((1.4, 1.4, 40.0)),
        ),
        # Pixels
        in_series(
            "color image",
            "RGB",
            "3 samples per pixel, RGB",
            "one gray value per pixel",
            voxels=np.full((8, 8, 4, 3), 7, dtype=np.uint8),
        ),
        in_dicom("compressed", "JPEG-LS, no decoder here", jpeg_ls, "000001.dcm: JPEG-LS Lossless", "gdcmconv --raw"),
        in_series(
            "photometric interpretation",
            "MONOCHROME1",
            "low values are bright",
            "MONOCHROME2",
            PhotometricInterpretation="MONOCHROME1",
        ),
        in_series("rescale", "slope 0", "slope 0", "a slope that is not 0", RescaleSlope=0, RescaleIntercept=0),
        in_series(
            "constant image", "all pixels 7", "T2: every voxel is 7", "an image with contrast", voxels=0 * t2 + 7
        ),
        # Contours
        in_vs(
            "missing contours",
            "neither RTSTRUCT nor contours.json",
            "no drawing of the tumor",
            "RTSTRUCT",
            structures={},
        ),
        in_vs("structure", "only a cochlea", "'Cochlea'", "a name with one of tv", structures=tumor(name="Cochlea")),
        in_vs("structure", "another name asked for", "'TV'", "a name with one of gtv_old", "--structure", "gtv_old"),
        in_vs(
            "structure",
            "two versions of one tumor",
            "'TV' and 'GTV', which overlap",
            "give the name to use",
            structures=tumor() | tumor(name="GTV", move=(0.3, 0, 0)),
        ),
        in_vs(
            "frame of reference", "RTSTRUCT in another one", "9.9.9, the T2 series has", "the same one", frame="9.9.9"
        ),
        in_vs(
            "contour outside image",
            "contours 60 mm beside the image",
            "'TV' reaches",
            "at most 1 voxel",
            structures=tumor(move=(60.0, 0.0, 0.0)),
        ),
        in_vs(
            "contour plane",
            "a contour across slices",
            "spans 6.00 mm across the slices",
            "parallel to the image's slices",
            affine=make_affine((1.4, 1.4, 3.0)),
            structures={"TV": [TILTED]},
        ),
        in_vs("structures", "contours.json is a number", "no list of structures", "a list", structures={}, drawn="7"),
        in_vs(
            "structures",
            "contours.json without points",
            "structure 1: other content",
            "LPS_contour_points",
            structures={},
            drawn='[{"structure_name": "TV"}]',
        ),
        in_vs(
            "unreadable file",
            "contours.json cut off",
            "contours.json:",
            "a JSON file",
            structures={},
            drawn='[{"struct',
        ),
        # Registration
        in_vs("transform", ".tfm that scales", "matrix [[2.0", "no scaling, shear", tfm="2 0 0 0 2 0 0 0 2 0 0 0"),
        in_vs("unreadable file", ".tfm cut off", "1 and 3 fixed parameters", "12 parameters", tfm="1"),
        Refused(
            "registration",
            "ceT1 of another patient",
            "vs_seg",
            two_patients,
            "mm between the two directions",
            "at most 2 mm",
        ),
        in_vs(
            "head overlap",
            "ceT1 beside the head, .tfm says it is right",
            "of the two heads after resampling",
            "at least 0.8",
            cet1_affine=above(affine, 15.0),
        ),
        in_vs(
            "head overlap",
            "ceT1 ends in the middle of the tumor",
            "mask voxels",
            "at most 1%",
            images=(head().images["T2"], head().images["ceT1"][:, :, 2:]),
            cet1_affine=above(affine, 6.0),
        ),
        # What was written
        Refused("mask outside head", "contours in air", "vs_seg", in_air, "mm outside the head", "at most 10%"),
        Refused(
            "modality",
            "T2 called t1_ and ceT1 t2_",
            "vs_seg",
            swapped_series,
            "T2 and ceT1 look swapped",
            "CSF bright on T2",
        ),
        in_brats(
            "modality", "t1n and t2w exchanged", "look swapped", "CSF bright on T2", t1n=glioma["T2"], t2w=glioma["T1"]
        ),
        in_nifti("empty mask", "no tumor in the label", "a mask without a voxel", "--keep-empty", label=0 * label),
        # NIfTI
        in_nifti("constant image", "all voxels 0", "T2: every voxel is 0", "an image with contrast", T2=0 * t2),
        in_nifti("non-finite image", "NaN", "T2: 2 voxels of NaN", "finite intensities", T2=with_nan(t2)),
        in_nifti("not 3-D", "a 4-D file", "4-D, shape (40, 40, 10, 2)", "a 3-D volume", T2=np.stack([t2, t2], axis=-1)),
        in_nifti("color image", "RGB", "VS-SEG-001_T2.nii.gz: data type", "one number per voxel", T2=rgb(t2.shape)),
        in_nifti("shape", "a slice less", "ceT1 (40, 40, 9)", "(40, 40, 10) as T2", ceT1=cet1[:, :, :9]),
        in_nifti("affine", "5 mm away", "ceT1 5 mm away from T2", "at most 0.1 mm", ceT1=(cet1, above(affine, 5.0))),
        in_nifti(
            "shape",
            "--register, a label on no image's grid",
            "label of shape (40, 40, 9) on a grid of its own",
            "the grid of T2 or ceT1",
            "--register",
            label=label[:, :, :9],
        ),
        in_nifti("label values", "a 3 in the label", "label: {0, 3}", "{0, 1}", label=3 * label),
        in_nifti(
            "label values", "halves in the label", "{0, 0.5}", "whole numbers", "--label-values", "1", label=label / 2
        ),
        in_nifti("orientation", "skewed axes", "axes whose cosine is", "perpendicular axes", T2=(t2, skewed)),
        Refused(
            "spacing",
            "header with two sizes of voxels",
            "nifti",
            lambda root: odd_header(root, pixdim=[1, 2, 2, 2, 0, 0, 0, 0], sform_code=1),
            "pixdim 2 x 2 x 2, affine 1.4 x 1.4 x 3 mm",
            "one size of the voxels",
            ("--pattern", "T2={case}_T2.nii", *PATTERNS[2:]),
        ),
        Refused(
            "unreadable file",
            "a NIfTI file cut off",
            "nifti",
            lambda root: [nifti(root), cut(root / "VS-SEG-001_T2.nii.gz", -200)],
            "VS-SEG-001_T2.nii.gz",
            "a complete NIfTI file",
            PATTERNS,
        ),
        Refused(
            "missing file",
            "no ceT1",
            "nifti",
            lambda root: [nifti(root), nifti(root, "VS-SEG-002", ceT1=None)],
            "no ceT1",
            "T2, ceT1",
            PATTERNS,
            "VS-SEG-002",
        ),
        in_brats("missing file", "no segmentation", "no segmentation", "one segmentation per case", seg=None),
        Refused(
            "ambiguous files",
            "a case in two folders",
            "brats",
            lambda root: [brats(root / name) for name in "ab"],
            "label in ",
            "one file",
            (),
            "BraTS-GLI-00001-000",
        ),
        Refused(
            "ambiguous patient",
            "one case of two patients",
            "nifti",
            lambda root: [save(root / "a/x_T2.nii.gz", t2), save(root / "b/x_ceT1.nii.gz", cet1)],
            "a and b",
            "one patient per case",
            ("--pattern", "T2={patient}/{case}_T2.nii.gz", "ceT1={patient}/{case}_ceT1.nii.gz"),
            "x",
        ),
        Refused(
            "same image",
            "one scan under two names",
            "nifti",
            lambda root: [nifti(root, case) for case in ("first", "VS-SEG-001", "second")],
            "patient VS-SEG-001",
            "one patient per image",
            PATTERNS,
            "first",
        ),
        in_brats("cohort", "a meningioma", "BraTS-MEN", "BraTS-GLI or BraTS-SSA", case="BraTS-MEN-00001-000"),
        Refused(
            "not in split",
            "no row in the split file",
            "nifti",
            lambda root: [nifti(root), nifti(root, "b"), (root / "split.csv").write_text("case,split\nb,training\n")],
            "no row in",
            "one row per case",
            (*PATTERNS, "--split", "FOLDER/split.csv"),
        ),
        Refused(
            "wrong channels",
            "three channels",
            "msd",
            functools.partial(msd, channels=3),
            "shape (24, 26, 22, 3)",
            "a 4-D volume with 4 channels",
            (),
            "BRATS_001",
        ),
    ]


CASES = _cases()


def prepared(source: str, folder: Path, *options: str) -> tuple[int, list[dict[str, str]]]:
    """Exit status, and rows of excluded.csv, of `<folder>/in` prepared into `<folder>/out`."""
    given = [option.replace("FOLDER", str(folder / "in")) for option in options]
    paths = ["--input", str(folder / "in"), "--output", str(folder / "out"), "--workers", "1"]
    status = main([source, *paths, *given])
    with (folder / "out/excluded.csv").open(newline="", encoding="utf-8") as file:
        return status, list(csv.DictReader(file))


def refuse(refused: Refused, folder: Path) -> tuple[int, list[dict[str, str]]]:
    """Makes a case in an empty folder and prepares it; as `prepared`."""
    (folder / "in").mkdir()
    refused.make(folder / "in")
    return prepared(refused.source, folder, *refused.options)
