"""Made downloads of a patient: DICOM as an archive hands it out, and NIfTI in several layouts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML

from made.contours import polygon_contour, write_contours_json, write_rtstruct
from made.dicom import LPS_FROM_RAS, MadeSeries, make_uid, write_series
from made.files import save
from made.tcia import mask_contours
from scripts.data.phantom.make import PhantomCase, make_phantom

SHIFT = "1 0 0 0 1 0 0 0 1 {:g} 0 0"
TFM = """#Insight Transform File V1.0
#Transform 0
Transform: AffineTransform_double_3_3
Parameters: {}
FixedParameters: 0 0 0
"""
PATTERNS = ("--pattern", "T2={case}_T2.nii.gz", "ceT1={case}_ceT1.nii.gz", "label={case}_label.nii.gz")


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


def htj2k(root: Path) -> None:
    """A series that says it is compressed by high-throughput JPEG 2000, which pydicom does not know either."""
    for path in t2_series(root).paths:
        data = dcmread(path)
        data.file_meta.TransferSyntaxUID, data.PixelData = MPEG2MPML, encapsulate([data.PixelData])
        data.save_as(path)
        path.write_bytes(path.read_bytes().replace(MPEG2MPML.encode(), b"1.2.840.10008.1.2.4.201"))


def modality_lut() -> Dataset:
    """A table of stored to shown values."""
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [600, 0, 16], "US"
    table.LUTData = (np.arange(600, dtype=np.uint16) * 3).tobytes()
    table["LUTData"].VR = "OW"
    return table


def other_pixels(path: Path, copy: Path) -> None:
    """A copy of an image, one pixel of which is not the same."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    copy.write_bytes(content)


def cut(path: Path, size: int) -> None:
    """Only the first bytes of a file; from the end where negative."""
    path.write_bytes(path.read_bytes()[:size])


def above(series_affine: NDArray, mm: float) -> NDArray[np.float64]:
    """The same grid, farther up."""
    moved = series_affine.copy()
    moved[2, 3] += mm
    return moved


def far(k: int) -> list[float]:
    """Position of a slice, 12 m from where it should be."""
    return [float(x) for x in (LPS_FROM_RAS @ head().affine @ [0, 0, k, 1])[:3] + (12000, 0, 0)]


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


def other_rtstruct(root: Path) -> None:
    """A patient whose structure set was drawn on a series that is not there."""
    series = download(root, structures={})["t2_tra"]
    write_rtstruct(
        root / "rtstruct.dcm", tumor(), series=("9.9.9",), study=series.study_uid, frame_of_reference=series.frame_uid
    )


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


def in_air(root: Path) -> None:
    """Contours where half of the field of view is air."""
    images = tuple(np.where(np.arange(40)[:, None, None] < 20, 0.1, 1) * head().images[n] for n in ("T2", "ceT1"))
    square = [polygon_contour([(4, 14), (10, 14), (10, 24), (4, 24)], k, head().affine) for k in range(3, 7)]
    download(root, images=images, structures={"TV": square})


def two_patients(root: Path) -> None:
    """T2 of one patient, ceT1 of another."""
    other = make_phantom(6, shape=(40, 40, 10), spacing=(1.4, 1.4, 3.0))
    download(root, images=(head().images["T2"], other.images["ceT1"]), tfm=None)


def nifti(root: Path, case: str = "VS-SEG-001", **change) -> None:
    """A patient in NIfTI; `T2`, `ceT1`, `label` give other voxels, or voxels and affine, or None for no file."""
    volumes = {name: stored(image) for name, image in head().images.items()} | {"label": head().label} | change
    for name, volume in volumes.items():
        if volume is not None:
            voxels, affine = volume if isinstance(volume, tuple) else (volume, head().affine)
            save(root / f"{case}_{name}.nii.gz", voxels, affine)


def odd_header(root: Path, **change) -> None:
    """A T2 in NIfTI with other values in its header; it has a sform alone, and a slope."""
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


def msd(root: Path, channels: int) -> None:
    """A case of Task01 with so many channels."""
    names = ("FLAIR", "T1", "ceT1", "T2", "T2")[:channels]
    save(root / "imagesTr/BRATS_001.nii.gz", np.stack([stored(brain().images[n]) for n in names], -1), brain().affine)
    save(root / "labelsTr/BRATS_001.nii.gz", brain().label, brain().affine)


def with_nan(image: NDArray) -> NDArray[np.float32]:
    """The image with NaN in its first two voxels."""
    image = image.astype(np.float32).copy()
    image[:2, 0, 0] = np.nan
    return image


def rgb(shape: Sequence[int]) -> NDArray:
    """A color NIfTI's voxels."""
    return np.zeros(shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
