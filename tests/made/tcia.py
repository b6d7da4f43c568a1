"""Makes downloads of Vestibular-Schwannoma-SEG from phantoms: series, RTSTRUCT, RTPLAN, RTDOSE, contours.json, .tfm.

The ceT1 of a patient lies on a grid of its own, and the patient has moved by a known transform in between. Only makers;
what is right is said by the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from skimage.measure import find_contours

from made.contours import write_contours_json, write_rtstruct
from made.dicom import LPS_FROM_RAS, MadeSeries, make_uid, save, write_series
from made.moves import displaced
from scripts.data.phantom.make import SIZES, make_phantom

# tiny: coarse, for tests that train.
GRIDS = {name: grid for (kind, name), grid in SIZES.items() if kind == "vs"} | {
    "tiny": ((64, 64, 16), (0.82, 0.82, 2.2))
}
RT_CLASSES = {"RTPLAN": "1.2.840.10008.5.1.4.1.1.481.5", "RTDOSE": "1.2.840.10008.5.1.4.1.1.481.2"}


@dataclass(frozen=True)
class MadePatient:
    """What is true of a made patient.

    Args:
        patient: PatientID.
        images: modality to int16 voxels (X, Y, Z), each on its own grid, in LPS order as scanners write them.
        affines: modality to affine, voxel index to RAS+ mm.
        masks: modality to uint8 mask of the tumor on that grid.
        t2_to_t1: where a point of the T2 scan is found in the ceT1 scan, LPS mm.
        series: modality to what was written.
    """

    patient: str
    images: dict[str, NDArray]
    affines: dict[str, NDArray[np.float64]]
    masks: dict[str, NDArray[np.uint8]]
    t2_to_t1: sitk.Euler3DTransform
    series: dict[str, MadeSeries]


def write_patient(
    root: Path,
    number: int,
    *,
    size: str = "small",
    seed: int | None = None,
    layout: str = "descriptive",
    extras: bool = True,
    tfm_as_slicer: bool = False,
    structure_sets: tuple[str, ...] = ("T2", "ceT1"),
    move: tuple[float, ...] = (1.5, -2.0, 1.0, 0.02, -0.015, 0.025),
) -> MadePatient:
    """Write one patient below `<root>/manifest-.../Vestibular-Schwannoma-SEG/`, and its extras beside the manifest.

    Args:
        number: N of VS-SEG-N.
        size: of the phantom, a key of `GRIDS`.
        seed: of the phantom; default the number.
        layout: "descriptive" or "classic" folder names.
        extras: write contours.json and the .tfm files.
        tfm_as_slicer: write the matrices in the opposite direction.
        structure_sets: series that have an RTSTRUCT.
        move: translation (mm) and rotation (radians) of the patient between T2 and ceT1, LPS.
    """
    patient = f"VS-SEG-{number:03d}"
    shape, spacing = GRIDS[size]
    phantom = make_phantom(number if seed is None else seed, task="vs", shape=shape, spacing=spacing)
    # Scanners write rows from the patient's right to left, columns from front to back.
    flip, affine = (slice(None, None, -1), slice(None, None, -1)), phantom.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (shape[0] - 1) + affine[:3, 1] * (shape[1] - 1)
    affine[:3, :2] *= -1
    t2, cet1 = (np.rint(phantom.images[name]).astype(np.int16)[flip] for name in ("T2", "ceT1"))
    label = phantom.label[flip]
    transform = sitk.Euler3DTransform()
    transform.SetCenter([float(x) for x in (LPS_FROM_RAS @ affine @ [*(np.array(shape) / 2), 1])[:3]])
    transform.SetParameters((*move[3:], *move[:3]))
    t1_affine = affine.copy()
    t1_affine[:3, 3] += (0.1, -0.15, 0.4)
    moved = (displaced(voxels.astype(np.float32), affine, transform, t1_affine) for voxels in (cet1, label * 1000))
    image, inside = (np.rint(voxels).astype(np.int16) for voxels in moved)
    images = {"T2": t2, "ceT1": image}
    masks = {"T2": label, "ceT1": (inside >= 500).astype(np.uint8)}
    affines = {"T2": affine, "ceT1": t1_affine}
    study = make_uid(f"{patient} study")
    folder = root / "manifest-1614264588831" / "Vestibular-Schwannoma-SEG" / patient
    folder /= "05-12-1993-NA-NA-54321" if layout == "descriptive" else study
    series = {}
    for index, (name, description) in enumerate((("T2", "t2_ci3d_tra_1.5mm"), ("ceT1", "t1_mpr_tra_C")), start=1):
        uid = make_uid(f"{patient} {name}")
        place = folder / (
            f"{index}.000000-{description.replace('_', '')}-{index:05d}" if layout == "descriptive" else uid
        )
        names = "1-{:03d}.dcm" if layout == "descriptive" else "{:06d}.dcm"
        frame = make_uid(f"{patient} {name} frame")
        series[name] = write_series(
            place,
            images[name],
            affines[name],
            patient=patient,
            description=description,
            study_uid=study,
            series_uid=uid,
            frame_uid=frame,
            names=names,
        )
        if name in structure_sets:
            _write_rt(folder, index, patient, series[name], mask_contours(masks[name], affines[name]), layout)
    if extras:
        _write_extras(root, number, masks, affines, transform, tfm_as_slicer)
    return MadePatient(patient, images, affines, masks, transform, series)


def mask_contours(mask: NDArray[np.uint8], affine: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Outlines of a mask, slice by slice: arrays (n, 3), LPS mm. Voxels whose centers they enclose are the mask's."""
    matrix = LPS_FROM_RAS @ affine
    contours = []
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        for outline in find_contours(np.pad(mask[:, :, k], 1).astype(np.float64), 0.5):
            index = np.column_stack([outline[:-1] - 1, np.full(len(outline) - 1, k)])
            contours.append(index @ matrix[:3, :3].T + matrix[:3, 3])
    return contours


def _write_rt(
    folder: Path, index: int, patient: str, series: MadeSeries, contours: list[NDArray[np.float64]], layout: str
) -> None:
    """The RTSTRUCT of a series, and an RTPLAN and RTDOSE that a reader must pass over."""
    cochlea = [contour + np.array([12.0, 0.0, 0.0]) for contour in contours[:2]]
    for kind in ("RTSTRUCT", "RTPLAN", "RTDOSE"):
        uid = make_uid(f"{patient} {index} {kind}")
        place = folder / (f"{index}.000000-{kind}-{uid[-5:]}" if layout == "descriptive" else uid)
        place.mkdir(parents=True)
        path = place / ("1-1.dcm" if layout == "descriptive" else "000000.dcm")
        if kind == "RTSTRUCT":
            write_rtstruct(
                path,
                {"Cochlea": cochlea, "TV": contours},
                series=(series.series_uid,),
                frame_of_reference=series.frame_uid,
                study=series.study_uid,
                patient=patient,
                sop_uids=dict(enumerate(series.sop_uids)),
            )
            continue
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = RT_CLASSES[kind], uid
        data.PatientID, data.Modality = patient, kind
        data.StudyInstanceUID, data.SeriesInstanceUID = series.study_uid, make_uid(uid)
        save(path, data, ImplicitVRLittleEndian)


def _write_extras(
    root: Path,
    number: int,
    masks: dict[str, NDArray[np.uint8]],
    affines: dict[str, NDArray[np.float64]],
    transform: sitk.Euler3DTransform,
    tfm_as_slicer: bool,
) -> None:
    for name, weighting, tfm in (("T2", "t2", "inv_T2_LPS_to_T1_LPS"), ("ceT1", "t1", "inv_T1_LPS_to_T2_LPS")):
        folder = root / "contours" / f"vs_gk_{number}_{weighting}"
        folder.mkdir(parents=True)
        write_contours_json(folder / "contours.json", {"TV": mask_contours(masks[name], affines[name])})
        folder = root / "registration_matrices" / f"vs_gk_{number}_{weighting}"
        folder.mkdir(parents=True)
        matrix = sitk.AffineTransform(3)
        matrix.SetMatrix(transform.GetMatrix())
        matrix.SetTranslation(np.array(transform.TransformPoint((0.0, 0.0, 0.0))).tolist())
        forward = (name == "T2") != tfm_as_slicer
        sitk.WriteTransform(matrix if forward else matrix.GetInverse(), str(folder / f"{tfm}.tfm"))
