"""Made contours, and files that hold them: RTSTRUCT as planning systems write it, and contours.json.

Only makers; what is right is said by the tests. Points are LPS mm; grids are given by shape and RAS+ affine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from made.dicom import LPS_FROM_RAS, MR_IMAGE, save

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

# On the edges of voxels of the unit grid: 4 x 4 of them, and 2 x 2 in their middle.
SQUARE = [(1.5, 1.5), (1.5, 5.5), (5.5, 5.5), (5.5, 1.5)]
HOLE = [(2.5, 2.5), (2.5, 4.5), (4.5, 4.5), (4.5, 2.5)]
UNIT = np.eye(4)

Contours = Sequence[NDArray[np.float64]]


def write_rtstruct(
    path: Path,
    structures: Mapping[str, Contours],
    *,
    series: Sequence[str] = ("1.2.3.1",),
    frame_of_reference: str = "1.2.3.0",
    study: str = "1.2.3",
    patient: str = "VS-SEG-001",
    sop_uids: Mapping[float, str] | None = None,
    kinds: Mapping[str, str] | None = None,
    decimals: int = 4,
    date: tuple[str, str] | None = None,
) -> Path:
    """Write an RTSTRUCT with a structure per name.

    Args:
        structures: name to contours (n, 3), LPS mm.
        series: SeriesInstanceUID of each MR series that is referred to.
        study: StudyInstanceUID of series and structure set.
        sop_uids: SOPInstanceUIDs of the images that are listed, by z of the slice, rounded to 0.01 mm; contours at such
            a z refer to theirs.
        kinds: ContourGeometricType by name where it is not CLOSED_PLANAR.
        decimals: of coordinates, as planning systems round them.
        date: StructureSetDate (YYYYMMDD) and StructureSetTime (HHMMSS); None: neither is there.
    """
    sop_uids = sop_uids or {}
    images = [_item(ReferencedSOPClassUID=MR_IMAGE, ReferencedSOPInstanceUID=uid) for uid in sop_uids.values()]
    dataset = _item(
        SpecificCharacterSet="ISO_IR 192",
        SOPClassUID=RTSTRUCT_CLASS,
        SOPInstanceUID=generate_uid(),
        Modality="RTSTRUCT",
        PatientID=patient,
        PatientName=patient,
        StudyInstanceUID=study,
        SeriesInstanceUID=generate_uid(),
        StructureSetLabel="RTSTRUCT",
        ReferencedFrameOfReferenceSequence=[
            _item(
                FrameOfReferenceUID=frame_of_reference,
                RTReferencedStudySequence=[
                    _item(
                        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
                        ReferencedSOPInstanceUID=study,
                        RTReferencedSeriesSequence=[
                            _item(SeriesInstanceUID=uid, ContourImageSequence=images) for uid in series
                        ],
                    )
                ],
            )
        ],
        StructureSetROISequence=[
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=frame_of_reference,
                ROIName=name,
                ROIGenerationAlgorithm="MANUAL",
            )
            for number, name in enumerate(structures, start=1)
        ],
        ROIContourSequence=[
            _item(
                ROIDisplayColor=[255, 0, 0],
                ReferencedROINumber=number,
                ContourSequence=[
                    _contour_item(contour, (kinds or {}).get(name, "CLOSED_PLANAR"), sop_uids, decimals)
                    for contour in contours
                ],
            )
            for number, (name, contours) in enumerate(structures.items(), start=1)
        ],
        RTROIObservationsSequence=[
            _item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="", ROIInterpreter="")
            for number, _ in enumerate(structures, start=1)
        ],
    )
    if date is not None:
        dataset.StructureSetDate, dataset.StructureSetTime = date
    save(path, dataset)
    return path


def write_contours_json(path: Path, structures: Mapping[str, Contours]) -> Path:
    """Write a contours.json as published with Vestibular-Schwannoma-SEG, structures in the order given."""
    entries = [
        {"structure_name": name, "LPS_contour_points": [np.asarray(contour).tolist() for contour in contours]}
        for name, contours in structures.items()
    ]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def grid_affine(
    spacing: Sequence[float] = (0.41, 0.41, 1.5),
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    rotation: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """4x4 affine (voxel index to RAS+ mm) of spacing (mm, negative where reversed), origin and rotation (3, 3)."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def to_lps(points: NDArray[np.float64], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """LPS mm of voxel positions (n, 3)."""
    matrix = LPS_FROM_RAS @ affine
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def polygon_contour(corners: Sequence[Sequence[float]], plane: float, affine: NDArray[np.float64]) -> NDArray:
    """Contour (n, 3) in LPS mm of corners (i, j) in voxels on the plane k of a grid."""
    return to_lps(np.array([[i, j, plane] for i, j in corners], dtype=np.float64), affine)


def squares(*planes: float, corners: Sequence[tuple[float, float]] = SQUARE) -> list[NDArray]:
    """The same square on several planes of the unit grid."""
    return [polygon_contour(corners, plane, UNIT) for plane in planes]


def ellipsoid_contours(
    center_lps: Sequence[float],
    radii: Sequence[float],
    planes: Iterable[float],
    affine: NDArray[np.float64],
    *,
    points: int = 240,
) -> list[NDArray[np.float64]]:
    """Contours (points, 3) of an ellipsoid, its radii (mm) along a grid's axes, on planes k (voxels) of that grid.

    Planes that miss it give none.
    """
    center = np.linalg.inv(LPS_FROM_RAS @ affine) @ [*center_lps, 1.0]
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    contours = []
    for plane in planes:
        scale = 1 - ((plane - center[2]) * voxel[2] / radii[2]) ** 2
        if scale > 0:
            i = center[0] + np.sqrt(scale) * radii[0] / voxel[0] * np.cos(angles)
            j = center[1] + np.sqrt(scale) * radii[1] / voxel[1] * np.sin(angles)
            contours.append(to_lps(np.stack([i, j, np.full(points, plane)], axis=1), affine))
    return contours


def ball_contours(
    center_lps: Sequence[float], radius: float, planes: Iterable[float], affine: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Contours of a ball; see `ellipsoid_contours`."""
    return ellipsoid_contours(center_lps, (radius,) * 3, planes, affine)


def tube_contours(
    center_lps: Sequence[float],
    radii: tuple[float, float],
    planes: Iterable[float],
    affine: NDArray[np.float64],
    *,
    keyhole: bool = False,
) -> list[NDArray[np.float64]]:
    """Rings of an outer and an inner radius (mm): two contours per plane, or one that enters the hole by a slit."""
    contours = []
    for plane in planes:
        height = to_lps(np.array([[0, 0, plane]], dtype=np.float64), affine)[0]
        axis = (LPS_FROM_RAS @ affine)[:3, 2]
        axis = axis / np.linalg.norm(axis)
        center = np.asarray(center_lps) + axis * ((height - center_lps) @ axis)
        index = np.linalg.inv(LPS_FROM_RAS @ affine) @ [*center, 1.0]
        outer, inner = (ellipsoid_contours(center, (r, r, 1.0), [index[2]], affine)[0] for r in radii)
        contours += [np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])] if keyhole else [outer, inner]
    return contours


def _contour_item(contour: NDArray[np.float64], kind: str, sop_uids: Mapping[float, str], decimals: int) -> Dataset:
    """Item of ContourSequence, with a reference to its image where that is known."""
    item = _item(
        ContourGeometricType=kind,
        NumberOfContourPoints=len(contour),
        ContourData=[f"{value:.{decimals}f}" for value in np.ravel(contour)],
    )
    uid = sop_uids.get(round(float(contour[0][2]), 2)) if len(contour) else None
    if uid is not None:
        item.ContourImageSequence = [_item(ReferencedSOPClassUID=MR_IMAGE, ReferencedSOPInstanceUID=uid)]
    return item


def _item(**elements: object) -> Dataset:
    """Dataset of elements by keyword."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset
