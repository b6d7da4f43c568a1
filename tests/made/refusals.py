"""Downloads that must be left out, a row for each, and what `scripts.prepare` makes of them."""

from __future__ import annotations

import csv
import functools
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
    far,
    head,
    htj2k,
    in_air,
    lost_end,
    modality_lut,
    msd,
    nifti,
    odd_header,
    other_pixels,
    other_rtstruct,
    rgb,
    sheared,
    stored,
    t2_series,
    tumor,
    two_in_one,
    two_patients,
    unnamed,
    with_nan,
    years_apart,
)
from made.files import save
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


def refused(
    row: str, source: str, make: Callable[[Path], object], options: tuple[str, ...] = (), case: str = "VS-SEG-001"
) -> Refused:
    """A case whose row has "check | made | found | expected"."""
    check, made, found, expected = row.split(" | ")
    return Refused(check, made, source, make, found, expected, options, case)


def in_header(row: str, **fields) -> Refused:
    """A T2 in NIfTI with other values in its header."""
    patterns = ("--pattern", "T2={case}_T2.nii", *PATTERNS[2:])
    return refused(row, "nifti", functools.partial(odd_header, **fields), patterns)


def in_nifti(row: str, *options: str, **change) -> Refused:
    """NIfTI files that differ from a good case by `change`."""
    return refused(row, "nifti", functools.partial(nifti, **change), (*PATTERNS, *options))


def in_brats(row: str, case: str = "BraTS-GLI-00001-000", **change) -> Refused:
    """BraTS files that differ from a good case by `change`."""
    return refused(row, "brats", functools.partial(brats, case=case, **change), (), case)


def in_series(row: str, **arguments) -> Refused:
    """One T2 series written with other arguments of `t2_series`."""
    return refused(row, "dicom", functools.partial(t2_series, **arguments))


def in_vs(row: str, *options: str, **arguments) -> Refused:
    """A patient written with other arguments of `download`."""
    return refused(row, "vs_seg", functools.partial(download, **arguments), options)


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
        refused("missing series | only a T2 series | ceT1: series 't2_ci3d_tra' | contains 't1_'", "vs_seg", t2_series),
        refused(
            "missing series | anonymized: no SeriesDescription, no telling folder | 'a', 'b' | 't2_'", "vs_seg", unnamed
        ),
        refused(
            "missing series | a FLAIR called T2 | 't2_tirm_tra_dark-fluid' | not FLAIR, dark-fluid, TIRM or STIR",
            "dicom",
            lambda root: t2_series(root, description="t2_tirm_tra_dark-fluid"),
            ("--series", "T2=t2"),
        ),
        refused(
            "different studies | ceT1 of seven years later | T2 of 2012-05-01, ceT1 of 2019-05-01 | 31 days",
            "vs_seg",
            years_apart,
        ),
        refused(
            "ambiguous series | two series that fit | 't2_tra' | one MR series",
            "dicom",
            lambda root: [t2_series(root, folder=name, description=name) for name in ("t2_tra", "t2_cor")],
            ("--series", "T2=t2_"),
        ),
        in_vs(
            "known incomplete | patient 168 | listed by its publishers | complete patient", patient="VS-SEG-168"
        )._replace(case="VS-SEG-168"),
        # Slices
        refused(
            "unreadable file | a slice cut off in its header | 000004.dcm | a complete download",
            "dicom",
            lambda root: changed_slices(root, lambda paths: cut(paths[3], 300)),
        ),
        refused(
            "unreadable file | a slice cut off in its pixels | 000004.dcm | a complete DICOM file",
            "dicom",
            lambda root: changed_slices(root, lambda paths: cut(paths[3], -100)),
        ),
        in_series("number of slices | two slices | 2, in 000001.dcm | at least 3", slices=2),
        refused(
            "number of slices | the last slice is missing | "
            "T2: 1 of the 10 images that the structure set lists are missing | every image of the series",
            "vs_seg",
            lost_end,
        ),
        refused(
            "gap | a slice is missing | 6 mm between 000004.dcm | 3 mm as between most slices",
            "dicom",
            lambda root: changed_slices(root, lambda paths: paths[4].unlink()),
        ),
        refused(
            "duplicate position | one instance, two contents | the same instance in | one copy of every instance",
            "dicom",
            lambda root: changed_slices(root, lambda paths: other_pixels(paths[2], root / "t2/copy.dcm")),
        ),
        in_series(
            "duplicate position | two slices at one place | "
            "000004.dcm and 000005.dcm both at | one slice at each position",
            ImagePositionPatient=lambda k: [*(LPS_FROM_RAS @ affine @ [0, 0, 3 if k == 4 else k, 1])[:3]],
        ),
        in_series(
            "slice order | instance numbers shuffled | "
            "the position turns back from instance number | in order of instance numbers",
            InstanceNumber=lambda k: (3 * k) % 10 + 1,
        ),
        in_series(
            "gantry tilt | slices sheared by 0.3 mm | 0.3 mm sideways | along their normal",
            ImagePositionPatient=sheared,
        ),
        refused(
            "mixed series | two orientations | orientation ( | one orientation in a series",
            "dicom",
            lambda root: two_in_one(root, affine=make_affine((1.4, 1.4, 3.0), plane="sagittal")),
        ),
        in_series(
            "mixed series | a localizer: three planes | orientation ( | one orientation in a series",
            slices=3,
            ImageOrientationPatient=lambda k: [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]][k],
        ),
        refused(
            "mixed series | two pixel spacings | pixel spacing (1.4, 1.4) | one pixel spacing in a series",
            "dicom",
            lambda root: two_in_one(root, affine=above(affine, 30.0), PixelSpacing=([1.4, 1.4], [1.2, 1.2])),
        ),
        refused(
            "mixed series | two echo times | echo time 177 ms | one echo time in a series",
            "dicom",
            lambda root: two_in_one(root, affine=above(affine, 30.0), EchoTime=(177.0, 20.0)),
        ),
        refused(
            "4-D | two time points | 20 slices at 10 positions, 2 at each, differing in time point | a 3-D series",
            "dicom",
            lambda root: two_in_one(root, TemporalPositionIdentifier=(1, 2)),
        ),
        refused(
            "4-D | enhanced multi-frame with two time points | "
            "20 slices at 10 positions, 2 at each, differing in time point | a 3-D series",
            "dicom",
            lambda root: write_enhanced(root / "e.dcm", np.stack([t2, t2], axis=-1), affine),
        ),
        in_series(
            "missing attribute | no positions | no usable ImagePositionPatient | in every slice",
            ImagePositionPatient=None,
        ),
        in_series(
            "orientation | directions of length 2 | lengths 2 and 2 | perpendicular",
            ImageOrientationPatient=[2, 0, 0, 0, 2, 0],
        ),
        in_series(
            "orientation | no orientation | no usable ImageOrientationPatient | perpendicular",
            ImageOrientationPatient=None,
        ),
        in_series("spacing | pixels of 0 mm | pixels of 0 x 0 mm | 0.05 to 5 mm between pixels", PixelSpacing=[0, 0]),
        in_series(
            "spacing | slices 40 mm apart | slices 40 mm apart | between slices", affine=make_affine((1.4, 1.4, 40.0))
        ),
        in_series(
            "orientation | 12 m away | the first pixel of 000001.dcm lies at | within 10000 mm",
            ImagePositionPatient=far,
        ),
        # Pixels
        in_series("missing attribute | no pixels | 000001.dcm: no PixelData | in every image", PixelData=None),
        in_series(
            "missing attribute | no BitsAllocated | 000001.dcm: no BitsAllocated | in every image", BitsAllocated=None
        ),
        in_series("unreadable file | BitsAllocated 12 | 000001.dcm: BitsAllocated 12 | such as 16", BitsAllocated=12),
        refused(
            "missing attribute | enhanced, no functional group | e.dcm: 0 frames, 0 functional groups | "
            "one functional group",
            "dicom",
            lambda root: write_enhanced(
                root / "e.dcm", t2, affine, PerFrameFunctionalGroupsSequence=None, NumberOfFrames=0
            ),
        ),
        in_series(
            "color image | RGB | 3 samples per pixel, RGB | one gray value per pixel",
            voxels=np.full((8, 8, 4, 3), 7, dtype=np.uint8),
        ),
        refused(
            "compressed | high-throughput JPEG 2000 | "
            "000001.dcm: 1.2.840.10008.1.2.4.201, for which there is no decoder here | ask the archive for",
            "dicom",
            htj2k,
        ),
        in_series(
            "mixed series | MONOCHROME1, rescaled otherwise in each slice | rescale of MONOCHROME1 (1, 0) in | "
            "one rescale of MONOCHROME1 in a series",
            PhotometricInterpretation="MONOCHROME1",
            RescaleSlope=lambda k: k + 1,
            RescaleIntercept=0,
        ),
        in_series(
            "photometric interpretation | MONOCHROME1 with a modality LUT | "
            "000001.dcm: MONOCHROME1 (low values are bright) with a modality LUT | MONOCHROME2",
            PhotometricInterpretation="MONOCHROME1",
            ModalityLUTSequence=[modality_lut()],
        ),
        in_series("rescale | slope 0 | slope 0 | a slope that is not 0", RescaleSlope=0, RescaleIntercept=0),
        in_series("constant image | all pixels 7 | T2: every voxel is 7 | an image with contrast", voxels=0 * t2 + 7),
        # Contours
        in_vs(
            "missing contours | neither RTSTRUCT nor contours.json | no drawing of the tumor | RTSTRUCT", structures={}
        ),
        in_vs("structure | only a cochlea | 'Cochlea' | a name with one of tv", structures=tumor(name="Cochlea")),
        in_vs("structure | another name asked for | 'TV' | a name with one of gtv_old", "--structure", "gtv_old"),
        in_vs(
            "structure | two versions of one tumor | 'TV' and 'GTV', which overlap | give the name to use",
            structures=tumor() | tumor(name="GTV", move=(0.3, 0, 0)),
        ),
        in_vs("frame of reference | RTSTRUCT in another one | 9.9.9, the T2 series has | the same one", frame="9.9.9"),
        in_vs(
            "contour outside image | contours 60 mm beside the image | 'TV' reaches | at most 1 voxel",
            structures=tumor(move=(60.0, 0.0, 0.0)),
        ),
        in_vs(
            "contour plane | a contour across slices | "
            "spans 6.00 mm across the slices | parallel to the image's slices",
            affine=make_affine((1.4, 1.4, 3.0)),
            structures={"TV": [TILTED]},
        ),
        in_vs("structures | contours.json is a number | no list of structures | a list", structures={}, drawn="7"),
        in_vs(
            "structures | contours.json without points | structure 1: other content | LPS_contour_points",
            structures={},
            drawn='[{"structure_name": "TV"}]',
        ),
        in_vs(
            "unreadable file | contours.json cut off | contours.json: | a JSON file", structures={}, drawn='[{"struct'
        ),
        refused(
            "missing contours | RTSTRUCT of another series | no drawing of the tumor | RTSTRUCT",
            "vs_seg",
            other_rtstruct,
        ),
        # Registration
        in_vs("transform | .tfm that scales | matrix [[2.0 | no scaling, shear", tfm="2 0 0 0 2 0 0 0 2 0 0 0"),
        in_vs("unreadable file | .tfm cut off | 1 and 3 fixed parameters | 12 parameters", tfm="1"),
        refused(
            "registration | ceT1 of another patient | mm between the two directions | at most 2 mm",
            "vs_seg",
            two_patients,
        ),
        in_vs(
            "head overlap | ceT1 beside the head, .tfm says it is right | "
            "of the two heads after resampling | at least 0.8",
            cet1_affine=above(affine, 15.0),
        ),
        in_vs(
            "head overlap | ceT1 ends in the middle of the tumor | mask voxels | at most 1%",
            images=(head().images["T2"], head().images["ceT1"][:, :, 2:]),
            cet1_affine=above(affine, 6.0),
        ),
        # What was written
        refused("mask outside head | contours in air | mm outside the head | at most 10%", "vs_seg", in_air),
        in_brats(
            "modality | t1n and t2w exchanged | look swapped | fluid bright on T2", t1n=glioma["T2"], t2w=glioma["T1"]
        ),
        in_nifti("empty mask | no tumor in the label | a mask without a voxel | --keep-empty", label=0 * label),
        # NIfTI
        in_nifti("constant image | all voxels 0 | T2: every voxel is 0 | an image with contrast", T2=0 * t2),
        in_nifti("non-finite image | NaN | T2: 2 voxels of NaN | finite intensities", T2=with_nan(t2)),
        in_nifti("not 3-D | a 4-D file | 4-D, shape (40, 40, 10, 2) | a 3-D volume", T2=np.stack([t2, t2], axis=-1)),
        in_nifti("color image | RGB | VS-SEG-001_T2.nii.gz: data type | one number per voxel", T2=rgb(t2.shape)),
        in_nifti("shape | a slice less | ceT1 (40, 40, 9) | (40, 40, 10) as T2", ceT1=cet1[:, :, :9]),
        in_nifti("affine | 5 mm away | ceT1 5 mm away from T2 | at most 0.1 mm", ceT1=(cet1, above(affine, 5.0))),
        in_nifti(
            "shape | --register, a label on no image's grid | "
            "label of shape (40, 40, 9) on a grid of its own | the grid of T2 or ceT1",
            "--register",
            label=label[:, :, :9],
        ),
        in_nifti(
            "shape | --register, a label moved | of shape (40, 40, 10) on a grid of its own | the grid of T2 or ceT1",
            "--register",
            label=(label, above(affine, 5.0)),
        ),
        in_nifti("label values | a 3 in the label | label: {0, 3} | {0, 1}", label=3 * label),
        in_nifti(
            "label values | halves in the label | {0, 0.5} | whole numbers", "--label-values", "1", label=label / 2
        ),
        in_nifti("label values | below 0 in the label | {-1, 0} | {0, 1}", label=-label.astype(np.int16)),
        in_nifti("mask outside head | all tumor | mm outside the head | at most 10%", label=label * 0 + 1),
        in_nifti("orientation | skewed axes | axes whose cosine is | perpendicular axes", T2=(t2, skewed)),
        in_header(
            "spacing | header with two sizes of voxels | "
            "pixdim 2 x 2 x 2, affine 1.4 x 1.4 x 3 mm | one size of the voxels",
            pixdim=[1, 2, 2, 2, 0, 0, 0, 0],
            sform_code=1,
        ),
        in_header("spacing | a size of 0 | pixdim 0 x 1.4 x 3 | sizes above 0", pixdim=[1, 0, 1.4, 3, 0, 0, 0, 0]),
        in_header("spacing | micron | VS-SEG-001_T2.nii: sizes in micron | mm; convert", xyzt_units=3),
        in_header("spacing | meter | VS-SEG-001_T2.nii: sizes in meter | mm; convert", xyzt_units=1),
        in_header(
            "orientation | codes 0 and 0 | no position, sform and qform have code 0 | from DICOM again",
            sform_code=0,
            qform_code=0,
        ),
        in_header("orientation | an unknown code | VS-SEG-001_T2.nii: sform_code 9 | a code from 0 to 5", sform_code=9),
        in_header(
            "affine | sform and qform differ | sform and qform differ by | correct or remove", qform_code=1, qoffset_x=0
        ),
        in_header("unreadable file | an intercept of NaN | invalid intercept nan | a NIfTI file", scl_inter=np.nan),
        in_nifti("number of slices | one slice | VS-SEG-001_T2.nii.gz: 1, shape (40, 40, 1) | 3", T2=t2[:, :, :1]),
        refused(
            "unreadable file | a NIfTI file cut off | VS-SEG-001_T2.nii.gz | a complete NIfTI file",
            "nifti",
            lambda root: [nifti(root), cut(root / "VS-SEG-001_T2.nii.gz", -200)],
            PATTERNS,
        ),
        refused(
            "missing file | no ceT1 | no ceT1 | T2, ceT1",
            "nifti",
            lambda root: [nifti(root), nifti(root, "VS-SEG-002", ceT1=None)],
            PATTERNS,
            "VS-SEG-002",
        ),
        in_brats("missing file | no segmentation | no segmentation | one segmentation per case", seg=None),
        refused(
            "ambiguous files | a case in two folders | label in  | one file",
            "brats",
            lambda root: [brats(root / name) for name in "ab"],
            (),
            "BraTS-GLI-00001-000",
        ),
        refused(
            "ambiguous patient | one case of two patients | a and b | one patient per case",
            "nifti",
            lambda root: [save(root / "a/x_T2.nii.gz", t2), save(root / "b/x_ceT1.nii.gz", cet1)],
            ("--pattern", "T2={patient}/{case}_T2.nii.gz", "ceT1={patient}/{case}_ceT1.nii.gz"),
            "x",
        ),
        refused(
            "same image | one scan under two names | patient VS-SEG-001 | one patient per image",
            "nifti",
            lambda root: [nifti(root, case) for case in ("first", "VS-SEG-001", "second")],
            PATTERNS,
            "first",
        ),
        refused(
            "same image | T2 copied in place of ceT1 | T2 and ceT1 have the same voxels | one image per modality",
            "nifti",
            functools.partial(nifti, ceT1=t2),
            PATTERNS,
        ),
        in_brats("cohort | a meningioma | BraTS-MEN | BraTS-GLI or BraTS-SSA", case="BraTS-MEN-00001-000"),
        refused(
            "not in split | no row in the split file | no row in | one row per case",
            "nifti",
            lambda root: [nifti(root), nifti(root, "b"), (root / "split.csv").write_text("case,split\nb,training\n")],
            (*PATTERNS, "--split", "FOLDER/split.csv"),
        ),
        refused(
            "wrong channels | three channels | shape (24, 26, 22, 3) | a 4-D volume with 4 channels",
            "msd",
            functools.partial(msd, channels=3),
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
    refused.make(folder / "in")
    return prepared(refused.source, folder, *refused.options)
