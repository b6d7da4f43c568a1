"""A mask as DICOM-SEG, with SNOMED CT codes, on the grid of the series that it was drawn on.

What is inside a segmentation is the standard's (PS3.3 A.51); highdicom writes it.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from monailabel_app.errors import InputError
from monailabel_app.images import read_mask

logger = logging.getLogger(__name__)

# Of a voxel: how far a corner of the mask may be from that of the series. Headers round to 16 characters and float32.
GRID_TOLERANCE = 0.1

_MANUFACTURER = "TISS-Net bundle developers"
_MORPHOLOGY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
_TEXT = 64  # characters of a long string (LO)
_SHORT_TEXT = 1024  # characters of a short text (ST)
_CODE_PARTS = {"CodeValue": 16, "CodingSchemeDesignator": 16, "CodeMeaning": _TEXT}  # characters: SH, SH, LO
# A backslash parts the values of an attribute; half a surrogate pair, as JSON can bring it, has no encoding.
_FORBIDDEN = re.compile(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Type 2 attributes that highdicom copies and scans without an identity often lack.
_MAY_BE_EMPTY = (
    "PatientName PatientID PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime "
    "ReferringPhysicianName"
).split()


@dataclass(frozen=True)
class Finding:
    """What a segment is of, in SNOMED CT.

    Args:
        name: for people, where a request names none.
        words: regular expression that names of labels and models contain, in any case of letters.
        type: morphologic abnormality; Segmented Property Type.
        region: where it grows; Anatomic Region, None where that is not known.
        color: red, green, blue.
    """

    name: str
    words: str
    type: Code
    region: Code | None
    color: tuple[int, int, int]


# The category Morphologically Abnormal Structure (CID 7150) asks for a morphology as type. CID 7151, the baseline of
# the types, has none finer than Neoplasm and may be extended. So these are the morphologies Schwannoma and Glioma; with
# the region, schwannoma of the vestibulocochlear nerve. The concepts 126949007 (vestibular schwannoma) and 393564001
# (glioma) are disorders: a patient has one, voxels do not. "Neoplasm, Primary" (86049000) of CID 7151 is called a
# malignant one in SNOMED CT, which a schwannoma is not.
FINDINGS = (
    Finding(
        "vestibular schwannoma",
        r"schwannoma|neuroma|vestibular|(^|[^a-z])vs([^a-z]|$)",
        Code("985004", "SCT", "Schwannoma"),
        Code("8598002", "SCT", "vestibulocochlear nerve"),
        (241, 214, 145),
    ),
    Finding(
        "glioma",
        r"glioma|glioblastoma|whole tumor",
        Code("115240006", "SCT", "Glioma"),
        Code("12738006", "SCT", "Brain"),
        (144, 238, 144),
    ),
)
_OTHER = Finding("tumor", "", Code("108369006", "SCT", "Neoplasm"), None, (255, 0, 0))


def dicom_seg(
    series_dir: str,
    mask_file: str,
    label_info: Sequence[Mapping[str, Any]] | None = None,
    model: str = "",
    *,
    version: str = "",
    demonstration: bool = False,
    algorithm_type: str = "AUTOMATIC",
) -> str:
    """Writes a DICOM-SEG of a mask that refers to every image of the series it was drawn on.

    Every slice has a frame, also those without tumor, for two reasons: a mask without any tumor is then the same kind
    of file as any other (the standard wants one frame or more, whatever is in them), and readers that build a volume
    from the frames, MONAI Label's own among them, get back the grid of the scan and not a part of it.

    Args:
        series_dir: folder of the DICOM series, and of no other.
        mask_file: NIfTI, NRRD or what else ITK reads, on the grid of the series, 0 and 1; its axes may be in any order.
        label_info: as viewers send it: of the first entry `name`, `description`, `color` (red, green, blue) and
            `segmentAttribute` (that of dcmqi) go over what is said here.
        model: name of the model that made the mask; "" where it was drawn by hand.
        version: of the model.
        demonstration: the model's weights are no use on patients; then the series' description says so first.
        algorithm_type: "AUTOMATIC", or "SEMIAUTOMATIC" where a person went over the model's mask.

    Returns:
        Path of a temporary file, which the caller removes.

    Raises:
        InputError: the mask is not on the grid of the series or not of 0 and 1, the folder is no series, or a code of
            the request is incomplete or too long.
    """
    model, version = _plain(model), _plain(version)
    headers, grid = _read_series(Path(series_dir))
    planes = _on_grid(_read_mask(Path(mask_file)), grid, len(headers), (headers[0].Rows, headers[0].Columns))
    info = dict(label_info[0]) if label_info else {}
    title = " ".join(filter(None, [model or "drawn by hand", version]))
    title = f"{'DEMO, not for patients: ' * demonstration}{title}{'' if planes.any() else ', no tumor found'}"
    segmentation = highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=planes,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(info, model, version, algorithm_type)],
        series_instance_uid=highdicom.UID(),
        series_number=300,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=_MANUFACTURER,
        manufacturer_model_name=model or "MONAI Label",
        software_versions=version or "unknown",
        device_serial_number="1",
        content_label="TUMOR",
        content_description=title[:_TEXT],
        content_creator_name="MONAI Label^",
        series_description=title[:_TEXT],
        omit_empty_frames=False,
    )
    segmentation.SpecificCharacterSet = "ISO_IR 192"  # of the patient's name
    with tempfile.NamedTemporaryFile(suffix=".dcm", delete=False) as file:
        segmentation.save_as(file.name)
    logger.info("DICOM-SEG of %d voxels in %d frames: %s", int(planes.sum()), len(headers), file.name)
    return file.name


def finding_of(name: str) -> Finding:
    """What a label or a model of that name is of; a neoplasm of no known place where the name says nothing."""
    return next((finding for finding in FINDINGS if re.search(finding.words, name, re.IGNORECASE)), _OTHER)


def _segment(
    info: Mapping[str, Any], model: str, version: str, algorithm_type: str
) -> highdicom.seg.SegmentDescription:
    """The one segment: codes by the name of the label or else of the model, and what the request says over them."""
    given = info.get("segmentAttribute") or {}
    name = _plain(given.get("SegmentLabel")) or _plain(info.get("name"))
    finding = finding_of(name)
    if finding is _OTHER:
        finding = finding_of(model)
    name = name or finding.name
    region = _code(given, "AnatomicRegionSequence", finding.region)
    algorithm = None
    if model:
        algorithm = highdicom.AlgorithmIdentificationSequence(
            model, _ARTIFICIAL_INTELLIGENCE, version or "unknown", source=_MANUFACTURER
        )
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=name,
        segmented_property_category=_code(given, "SegmentedPropertyCategoryCodeSequence", _MORPHOLOGY) or _MORPHOLOGY,
        segmented_property_type=_code(given, "SegmentedPropertyTypeCodeSequence", finding.type) or finding.type,
        algorithm_type=algorithm_type if model else "MANUAL",
        algorithm_identification=algorithm,
        tracking_uid=highdicom.UID(),
        tracking_id=name,
        anatomic_regions=[region] if region is not None else None,
    )
    description = _plain(given.get("SegmentDescription"), _SHORT_TEXT) or _plain(info.get("description"), _SHORT_TEXT)
    if description:
        segment.SegmentDescription = description
    color = given.get("recommendedDisplayRGBValue") or info.get("color")
    segment.RecommendedDisplayCIELabValue = _dicom_lab(_rgb(color) or finding.color)
    return segment


def _plain(text: Any, length: int = _TEXT) -> str:
    """A client's text as one line that an attribute of that many characters can hold; "" for None."""
    words = _FORBIDDEN.sub(" ", "" if text is None else str(text)).split()
    return " ".join(words)[:length].rstrip()


def _code(given: Mapping[str, Any], key: str, default: Code | None) -> Code | None:
    """A code of a `segmentAttribute`, in which it is one item or a list of one, refused if DICOM cannot hold it."""
    item = given.get(key)
    if isinstance(item, Sequence) and not isinstance(item, str):
        item = item[0] if item else None
    if not item:
        return default
    if not isinstance(item, Mapping):
        item = {}
    parts = {part: str(item.get(part) or "").strip() for part in _CODE_PARTS}
    missing = [part for part, text in parts.items() if not text]
    if missing:
        raise InputError(
            f"The label's {key} lacks {', '.join(missing)}: it needs {', '.join(_CODE_PARTS)}, or leave it out."
        )
    for part, most in _CODE_PARTS.items():
        if len(parts[part]) > most:
            raise InputError(
                f"The label's {key} has a {part} of {len(parts[part])} characters: DICOM takes {most} at most."
            )
        if _FORBIDDEN.search(parts[part]):
            raise InputError(
                f"The label's {key} has a {part} with a backslash or a control character: expected plain text."
            )
    return Code(*parts.values())


def _rgb(color: Any) -> tuple[int, int, int] | None:
    """Three bytes, of a list of three or more numbers; None where it is something else."""
    try:
        red, green, blue = (min(max(int(value), 0), 255) for value in list(color)[:3])
    except (TypeError, ValueError, OverflowError):  # the last of infinity
        return None
    return red, green, blue


def _dicom_lab(rgb: tuple[int, int, int]) -> list[int]:
    """CIELab of sRGB as DICOM encodes it (PS3.3 C.10.7.1.1): L* 0..100, a* and b* -128..127, each over 16 bits; D50."""
    values = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    to_xyz_d50 = [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
    ratio = (np.array(to_xyz_d50) @ linear) / np.array([0.9642, 1.0, 0.8249])
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = np.array([116 * f[1] - 16, 500 * (f[0] - f[1]) + 128, 200 * (f[1] - f[2]) + 128])
    return [int(round(value)) for value in np.clip(lab / [100, 255, 255], 0, 1) * 65535]


def _read_series(folder: Path) -> tuple[list[Dataset], NDArray[np.float64]]:
    """Headers of a series of even single slices, in order, and its grid: (column, row, slice) to LPS mm, 4 x 4."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    headers = [header for path in files if (header := _read_header(path)) is not None]
    if not headers:
        logger.warning("no DICOM image in %s", folder)
        raise InputError("There is no DICOM image of this scan on the server: load the scan again.")
    series = {str(header.get("SeriesInstanceUID", "")) for header in headers}
    if len(series) > 1:
        logger.warning("images of %d series in %s", len(series), folder)
        raise InputError(f"There are images of {len(series)} series in the scan's folder: one series is expected.")
    missing = [k for k in ("FrameOfReferenceUID", "Rows", "Columns") if not headers[0].get(k)]
    if missing:
        raise InputError(f"The scan's headers lack {', '.join(missing)}, so that no segmentation can refer to it.")
    for header in headers:
        for keyword in _MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, "")
    if "NumberOfFrames" in headers[0]:
        raise InputError(
            "The scan is one file of many frames (enhanced DICOM), of which no DICOM segmentation is written here: "
            "take the mask as NIfTI or NRRD, or send the scan as single slices."
        )
    try:
        planes = [_plane(header) for header in headers]
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise InputError("The scan's headers do not say where its slices lie: send the original series.") from error
    across, down = planes[0][0][:, 0], planes[0][0][:, 1]
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    order = sorted(range(len(headers)), key=lambda i: float(planes[i][1] @ normal))
    positions = np.array([planes[i][1] for i in order])
    turned = max(np.abs(axes - planes[0][0]).max() for axes, _ in planes)
    if turned > 1e-3 or len({(header.Rows, header.Columns) for header in headers}) > 1:
        raise InputError("The slices of the scan differ in direction, size or spacing: open a series of one volume.")
    grid = np.eye(4)
    grid[:3, 0], grid[:3, 1], grid[:3, 3] = across, down, positions[0]
    thickness = float(headers[0].get("SliceThickness") or 1.0)
    grid[:3, 2] = (positions[-1] - positions[0]) / (len(order) - 1) if len(order) > 1 else normal * thickness
    step = np.linalg.norm(grid[:3, 2])
    even = positions[0] + np.arange(len(order))[:, None] * grid[:3, 2]
    if step == 0 or np.abs(positions - even).max() > GRID_TOLERANCE * step:
        raise InputError("The scan's slices are not evenly spaced: some are missing or there twice. Send it again.")
    return [headers[i] for i in order], grid


def _read_header(path: Path) -> Dataset | None:
    """Header of an image file; None for what is no DICOM image."""
    if not path.is_file() or path.name.startswith("."):
        return None
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except (pydicom.errors.InvalidDicomError, OSError):
        return None
    return header if "Rows" in header else None


def _plane(header: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps of one column and of one row (3, 2) and the position of a slice, LPS mm."""
    cosines = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    between_rows, between_columns = (float(value) for value in header.PixelSpacing)
    axes = np.stack([cosines[0] * between_columns, cosines[1] * between_rows], axis=1)
    return axes, np.array(header.ImagePositionPatient, dtype=np.float64).reshape(3)


def _read_mask(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A mask's voxels (X, Y, Z), 0 and 1, and its grid: voxel indices to LPS mm, 4 x 4."""
    voxels, affine = read_mask(path, "the mask")
    return voxels != 0, np.diag([-1, -1, 1, 1]) @ affine


def _on_grid(
    mask: tuple[np.ndarray, np.ndarray], grid: NDArray[np.float64], slices: int, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """The mask's voxels as (slice, row, column) of the series, whatever the order and sense of the mask's axes."""
    voxels, own = mask
    rows, columns = shape
    size = np.array([columns, rows, slices])
    step = np.linalg.solve(own, grid)  # voxel of the series to voxel of the mask
    axes = np.rint(step[:3, :3]).astype(int)
    if (np.abs(axes).sum(0) == 1).all() and (np.abs(axes).sum(1) == 1).all():
        first = np.rint(step[:3, 3])
        corners = np.array(np.meshgrid(*((0, n - 1) for n in size))).reshape(3, -1)
        off = np.abs((step[:3, :3] - axes) @ corners + (step[:3, 3] - first)[:, None]).max()
        reach = axes @ corners + first[:, None]
        covers = (reach.min(1) == 0).all() and (reach.max(1) == np.array(voxels.shape) - 1).all()
        if off <= GRID_TOLERANCE and covers:
            source = np.abs(axes).argmax(0)  # axis of the mask that each axis of the series runs along
            voxels = voxels.transpose(source)
            back = [k for k in range(3) if axes[source[k], k] < 0]
            return np.ascontiguousarray(np.flip(voxels, back).transpose(2, 1, 0))
    raise InputError(
        f"The mask ({_described(own, voxels.shape)}) does not lie on the scan it is for "
        f"({_described(grid, size)}): draw it on that series, or resample it to it."
    )


def _described(grid: NDArray[np.float64], size: Sequence[int] | NDArray) -> str:
    """Voxels, millimeters and origin of a grid."""
    spacing = np.linalg.norm(grid[:3, :3], axis=0)
    return (
        " x ".join(str(int(n)) for n in size)
        + " voxels of "
        + " x ".join(f"{value:.3g}" for value in spacing)
        + " mm from "
        + ", ".join(f"{value:.1f}" for value in grid[:3, 3])
    )
