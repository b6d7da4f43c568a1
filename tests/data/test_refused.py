"""Tests of scripts.prepare on made cases: each check that leaves one out, and odd DICOM that must come out right.

`CASES` has one row per made case; `benchmarks/refused.py` prints it as a table of check and message. What single
functions refuse is tested beside them; damaged bytes are in `test_corrupted.py`.
"""

from __future__ import annotations

import ast
import csv
import functools
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
from made.contours import ball_contours, polygon_contour, tube_contours, write_contours_json, write_rtstruct
from made.dicom import LPS_FROM_RAS, MadeSeries, make_affine, make_uid, write_enhanced, write_series
from made.tcia import mask_contours
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from scripts.data.datalist import load_datalist
from scripts.data.phantom.make import PhantomCase, make_phantom
from scripts.prepare import main

DATA = Path(__file__).parents[2] / "bundle/scripts/data"
SHIFT = "1 0 0 0 1 0 0 0 1 {:g} 0 0"
TFM = """#Insight Transform File V1.0
#Transform 0
Transform: AffineTransform_double_3_3
Parameters: {}
FixedParameters: 0 0 0
"""
PATTERNS = ("--pattern", "T2={case}_T2.nii.gz", "ceT1={case}_ceT1.nii.gz", "label={case}_label.nii.gz")


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


# --- Makers


@functools.cache
def head() -> PhantomCase:
    """A patient with a schwannoma, coarse; not to be changed."""
    return make_phantom(2, shape=(40, 40, 10), spacing=(1.4, 1.4, 3.0))


@functools.cache
def brain() -> PhantomCase:
    """A patient with a glioma, coarse; not to be changed."""
    return make_phantom(2, task="glioma", shape=(24, 26, 22), spacing=(6.5, 6.5, 6.5), diameter=60.0)


def stored(image: NDArray) -> NDArray[np.int16]:
    """As scanners store it."""
    return np.rint(image).astype(np.int16)


def t2_series(root: Path, *, slices: int = 10, **arguments) -> MadeSeries:
    """One T2 series."""
    voxels = arguments.pop("voxels", stored(head().images["T2"][:, :, :slices]))
    return write_series(
        root / arguments.pop("folder", "t2"), voxels, arguments.pop("affine", head().affine), **arguments
    )


def two_in_one(root: Path, *, affine: NDArray | None = None, **attributes) -> None:
    """A series to which slices with other attributes were added under its UID."""
    series = t2_series(root, folder="first", **{name: pair[0] for name, pair in attributes.items()})
    t2_series(
        root,
        folder="second",
        series_uid=series.series_uid,
        affine=head().affine if affine is None else affine,
        SOPInstanceUID=lambda k: make_uid(f"second {k}"),
        InstanceNumber=lambda k: k + 11,
        **{name: pair[1] for name, pair in attributes.items()},
    )


def changed_slices(root: Path, change: Callable[[list[Path]], object]) -> None:
    """One T2 series whose files are changed."""
    change(t2_series(root).paths)


def jpeg_ls(root: Path) -> None:
    """A series that says it is compressed by JPEG-LS."""
    for path in t2_series(root).paths:
        data = dcmread(path)
        data.file_meta.TransferSyntaxUID, data.PixelData = JPEGLSLossless, encapsulate([data.PixelData])
        data.save_as(path)


def cut(path: Path, size: int) -> None:
    """Only the first bytes of a file; from the end where negative."""
    path.write_bytes(path.read_bytes()[:size])


def above(series_affine: NDArray, mm: float) -> NDArray[np.float64]:
    """The same grid, farther up."""
    moved = series_affine.copy()
    moved[2, 3] += mm
    return moved


def sheared(k: int) -> list[float]:
    """Position of a slice that lies 0.3 mm farther back than the one below."""
    return [float(x) for x in (LPS_FROM_RAS @ head().affine @ [0, 0, k, 1])[:3] + (0, 0.3 * k, 0)]


def download(
    root: Path,
    *,
    patient: str = "VS-SEG-001",
    images: tuple[NDArray, NDArray] | None = None,
    affine: NDArray[np.float64] | None = None,
    cet1_affine: NDArray[np.float64] | None = None,
    structures: Mapping[str, Sequence[NDArray]] | None = None,
    drawn: Mapping[str, Sequence[NDArray]] | str | None = None,
    tfm: str | None = SHIFT.format(0),
    frame: str | None = None,
    **attributes,
) -> dict[str, MadeSeries]:
    """A patient as the archive hands it out.

    Args:
        root: where to.
        patient: PatientID.
        images: T2 and ceT1; default the phantom's.
        affine: of T2.
        cet1_affine: of ceT1, default that of T2.
        structures: of the RTSTRUCT on T2; default the phantom's tumor, none for no file.
        drawn: of contours.json, or its text; None for no file.
        tfm: parameters of the .tfm; None for no file.
        frame: FrameOfReferenceUID in the RTSTRUCT, default the right one.
        **attributes: of both series, see `write_series`.
    """
    t2, cet1 = (head().images["T2"], head().images["ceT1"]) if images is None else images
    affine = head().affine if affine is None else affine
    if structures is None:
        structures = {"TV": mask_contours(head().label, head().affine)}
    grids = {"t2_tra": (t2, affine), "t1_tra": (cet1, affine if cet1_affine is None else cet1_affine)}
    series = {
        name: write_series(root / name, stored(image), grid, **{"patient": patient, "description": name, **attributes})
        for name, (image, grid) in grids.items()
    }
    extras = root / "vs_gk_1_t2"
    extras.mkdir()
    if structures:
        uid, study, right = series["t2_tra"].series_uid, series["t2_tra"].study_uid, series["t2_tra"].frame_uid
        write_rtstruct(
            root / "rtstruct.dcm",
            structures,
            series=(uid,),
            study=study,
            patient=patient,
            frame_of_reference=frame or right,
        )
    if isinstance(drawn, str):
        (extras / "contours.json").write_text(drawn)
    elif drawn is not None:
        write_contours_json(extras / "contours.json", drawn)
    if tfm is not None:
        (extras / "inv_T2_LPS_to_T1_LPS.tfm").write_text(TFM.format(tfm))
    return series


def tumor(**change) -> dict[str, list[NDArray]]:
    """The phantom's tumor under a name, its contours moved by mm (LPS)."""
    move = np.array(change.get("move", (0.0, 0.0, 0.0)))
    return {change.get("name", "TV"): [contour + move for contour in mask_contours(head().label, head().affine)]}


def lost_end(root: Path) -> None:
    """A patient whose highest T2 slice is lost; the structure set lists all of them."""
    series = download(root, structures={})["t2_tra"]
    write_rtstruct(
        root / "rtstruct.dcm",
        tumor(),
        series=(series.series_uid,),
        study=series.study_uid,
        frame_of_reference=series.frame_uid,
        sop_uids=dict(enumerate(series.sop_uids)),
    )
    series.paths[-1].unlink()


def unnamed(root: Path) -> None:
    """A patient whose series have no description, in folders that say nothing either."""
    download(root, SeriesDescription=None)
    for name, other in (("t2_tra", "a"), ("t1_tra", "b")):
        (root / name).rename(root / other)


def years_apart(root: Path, *dates: str) -> None:
    """T2 of one study, ceT1 of another one."""
    for name, image, date in zip(("t2_tra", "t1_tra"), ("T2", "ceT1"), dates or ("20120501", "20190501"), strict=True):
        voxels = stored(head().images[image])
        write_series(root / name, voxels, head().affine, description=name, study_uid=make_uid(date), StudyDate=date)


def swapped_series(root: Path) -> None:
    """The descriptions of T2 and ceT1 exchanged."""
    download(root, images=(head().images["ceT1"], head().images["T2"]))


def in_air(root: Path) -> None:
    """Contours where half of the field of view is air."""
    images = tuple(np.where(np.arange(40)[:, None, None] < 20, 0.1, 1) * head().images[n] for n in ("T2", "ceT1"))
    square = [polygon_contour([(4, 14), (10, 14), (10, 24), (4, 24)], k, head().affine) for k in range(3, 7)]
    download(root, images=images, structures={"TV": square})


def two_patients(root: Path) -> None:
    """T2 of one patient, ceT1 of another."""
    other = make_phantom(6, shape=(40, 40, 10), spacing=(1.4, 1.4, 3.0))
    download(root, images=(head().images["T2"], other.images["ceT1"]), tfm=None)


def save(path: Path, voxels: NDArray, affine: NDArray | None = None) -> None:
    """A NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, head().affine if affine is None else affine), path)


def nifti(root: Path, case: str = "VS-SEG-001", **change) -> None:
    """A patient in NIfTI; `T2`, `ceT1`, `label` give other voxels, or voxels and affine, or None for no file."""
    volumes = {name: stored(image) for name, image in head().images.items()} | {"label": head().label} | change
    for name, volume in volumes.items():
        if volume is not None:
            save(root / f"{case}_{name}.nii.gz", *(volume if isinstance(volume, tuple) else (volume,)))


def in_nifti(check: str, made: str, found: str, expected: str, *options: str, **change) -> Refused:
    """A row for NIfTI files that differ from a good case by `change`."""
    return Refused(check, made, "nifti", functools.partial(nifti, **change), found, expected, (*PATTERNS, *options))


def odd_header(root: Path, **change) -> None:
    """A T2 in NIfTI whose header says one thing twice, differently."""
    nifti(root)
    image = nib.load(root / "VS-SEG-001_T2.nii.gz")
    data = bytearray(nib.Nifti1Image(np.asarray(image.dataobj), image.affine).to_bytes())
    header = nib.Nifti1Header(bytes(data[:348]))
    for name, value in change.items():
        header[name] = value
    (root / "VS-SEG-001_T2.nii.gz").unlink()
    (root / "VS-SEG-001_T2.nii").write_bytes(header.binaryblock + bytes(data[348:]))


def brats(root: Path, case: str = "BraTS-GLI-00001-000", **change) -> None:
    """A BraTS case of 2023; suffixes give other voxels, None for no file."""
    names = {"t1n": "T1", "t1c": "ceT1", "t2w": "T2", "t2f": "FLAIR"}
    volumes = {suffix: stored(brain().images[name]) for suffix, name in names.items()} | {"seg": brain().label} | change
    for suffix, voxels in volumes.items():
        if voxels is not None:
            save(root / case / f"{case}-{suffix}.nii.gz", voxels, brain().affine)


def in_brats(check: str, made: str, found: str, expected: str, case: str = "BraTS-GLI-00001-000", **change) -> Refused:
    """A row for BraTS files that differ from a good case by `change`."""
    return Refused(check, made, "brats", functools.partial(brats, case=case, **change), found, expected, (), case)


def msd(root: Path, channels: int) -> None:
    """A case of Task01 with so many channels."""
    names = ("FLAIR", "T1", "ceT1", "T2", "T2")[:channels]
    save(root / "imagesTr/BRATS_001.nii.gz", np.stack([stored(brain().images[n]) for n in names], axis=-1))
    save(root / "labelsTr/BRATS_001.nii.gz", brain().label)


def with_nan(image: NDArray) -> NDArray[np.float32]:
    """The image with NaN in its first two voxels."""
    image = image.astype(np.float32).copy()
    image[:2, 0, 0] = np.nan
    return image


def rgb(shape: Sequence[int]) -> NDArray:
    """A color NIfTI's voxels."""
    return np.zeros(shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


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
        in_vs(
            "structure",
            "another name asked for",
            "'TV'",
            "a name with one of gtv_old",
            "--structure",
            "gtv_old",
        ),
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


# --- Left out


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


@pytest.mark.parametrize("refused", CASES, ids=lambda r: f"{r.source}-{r.check}-{r.made}".replace(" ", "_"))
def test_refused(tmp_path, refused):
    status, rows = refuse(refused, tmp_path)
    shown = [row for row in rows if (row["case"], row["check"]) == (refused.case, refused.check)]
    assert len(shown) >= 1, rows
    assert refused.found in shown[0]["found"]
    assert refused.expected in shown[0]["expected"]
    assert {row["check"] for row in rows} == {refused.check}
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
        (folder / "in").mkdir(parents=True)
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
    (tmp_path / "in").mkdir()
    years_apart(tmp_path / "in", "20120501", "20120515")
    (tmp_path / "in/vs_gk_1_t2").mkdir()
    write_contours_json(tmp_path / "in/vs_gk_1_t2/contours.json", tumor())
    (tmp_path / "in/vs_gk_1_t2/inv_T2_LPS_to_T1_LPS.tfm").write_text(TFM.format(SHIFT.format(0)))
    assert prepared("vs_seg", tmp_path) == (0, [])


def test_a_copy_of_a_case_that_is_left_out_is_used(tmp_path):
    """The scan is in one patient then."""
    (tmp_path / "in").mkdir()
    nifti(tmp_path / "in", "first", label=0 * head().label)
    nifti(tmp_path / "in", "second")
    status, rows = prepared("nifti", tmp_path, *PATTERNS)
    assert status == 0 and [(row["case"], row["check"]) for row in rows] == [("first", "empty mask")]


def test_a_damaged_file_is_told_once(tmp_path):
    """In the folder of a chosen series it is that case's problem, elsewhere a row of its own."""
    (tmp_path / "in").mkdir()
    t2_series(tmp_path / "in")
    (tmp_path / "in/t2/more.dcm").write_bytes(b"damaged")
    assert [row["case"] for row in prepared("dicom", tmp_path)[1]] == ["VS-SEG-001"]
    (tmp_path / "in/other").mkdir()
    (tmp_path / "in/t2/more.dcm").rename(tmp_path / "in/other/more.dcm")
    status, rows = prepared("dicom", tmp_path)
    assert status == 0
    assert [(row["case"], row["check"]) for row in rows] == [(str(tmp_path / "in/other/more.dcm"), "unreadable file")]


def test_folders_name_series_without_description(tmp_path):
    (tmp_path / "in").mkdir()
    download(tmp_path / "in", SeriesDescription=None)
    assert prepared("vs_seg", tmp_path) == (0, [])


def test_names_that_differ_by_case_or_signs_are_numbered(tmp_path):
    for index, patient in enumerate(("A 1", "A_1", "a_1")):
        t2_series(tmp_path / "in" / str(index), patient=patient, voxels=stored(head().images["T2"]) + np.int16(index))
    assert prepared("dicom", tmp_path) == (0, [])
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("*_T2.nii.gz")) == ["A_1", "A_1-2", "a_1-3"]


def test_converted_and_downloaded_data_are_not_mixed(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    download(tmp_path / "in")
    for name, image in {"t1": head().images["ceT1"], "t2": head().images["T2"], "seg": head().label}.items():
        save(tmp_path / f"in/vs_gk_5/vs_gk_{name}_refT2.nii.gz", stored(image) if name != "seg" else image)
    assert main(["vs_seg", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 1
    assert "found DICOM beside the converter's" in caplog.text


def test_the_newest_structure_set_is_taken(tmp_path):
    (tmp_path / "in").mkdir()
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
    (tmp_path / "in").mkdir()
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


def test_our_own_mistake_costs_one_case(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("two\nlines")

    (tmp_path / "in").mkdir()
    t2_series(tmp_path / "in")
    monkeypatch.setattr("scripts.data.sources.studies.write_study", fail)
    status, rows = prepared("dicom", tmp_path)
    assert status == 1
    assert [(row["check"], row["found"]) for row in rows] == [("unexpected error", "ZeroDivisionError: two lines")]


@pytest.mark.parametrize("strict", [False, True])
def test_strict(tmp_path, caplog, strict):
    """Of two patients one is left out: the datalist is there in any case, the exit status differs."""
    (tmp_path / "in").mkdir()
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
    (folder / "in").mkdir()
    image = blob(affine)
    download(folder / "in", images=(image, image), affine=affine, structures=structures, **arguments)
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
    (tmp_path / "in").mkdir()
    images = blob(affine), blob(affine)
    download(tmp_path / "in", patient=patient, images=images, affine=affine, structures={"TV": contours}, tfm=None)
    assert prepared("vs_seg", tmp_path) == (0, [])
    (entry,) = load_datalist(tmp_path / "out/datalist.json", "training")
    assert (entry["case"], entry["patient"]) == (name, patient)
    assert mask_of(tmp_path, name)[0] == pytest.approx(BALL_MM3, rel=0.01)
    assert re.search(name, (tmp_path / "out/overview.html").read_text(encoding="utf-8"))


def test_anonymized_without_study_description(tmp_path):
    (tmp_path / "in").mkdir()
    download(tmp_path / "in", StudyDescription=None, StudyDate=None, PatientName=None)
    assert prepared("vs_seg", tmp_path) == (0, [])
    np.testing.assert_array_equal(np.asarray(mask_of(tmp_path)[2].dataobj), head().label)
