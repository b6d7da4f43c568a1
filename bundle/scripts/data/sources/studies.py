"""DICOM studies as cases: the series, structure sets, contours and transforms of a patient linked, and written."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.data.case import Facts, Job
from scripts.data.conversion import Registered, register_images, write_image
from scripts.data.datalist import TASKS
from scripts.data.dicom.contours import Structure, contour_gaps, contour_volume, structure_mask
from scripts.data.dicom.folder import UNKNOWN, Scan, scan
from scripts.data.dicom.rtstruct import (
    DEFAULT_TUMOR_NAMES,
    StructureSet,
    choose_structure,
    read_contours_json,
    read_rtstruct,
)
from scripts.data.dicom.series import Series
from scripts.data.names import is_called_otherwise, is_suppressed
from scripts.data.sources.registry import Found, Options
from scripts.data.volume import CaseError, refuse

logger = logging.getLogger(__name__)

# As the publishers say.
KNOWN_INCOMPLETE = {"VS-SEG-168": "listed by its publishers as incomplete"}
# Series of different studies that are farther apart show two states of a tumor.
MOST_DAYS = 31
# Two drawings of one tumor that agree less than this are told.
_DRAWINGS_AGREE = 0.8
# A mask whose volume differs from that of its contours by more than this fraction is told.
_VOLUME_AGREES = 0.05


@dataclass(frozen=True)
class StudyCase:
    """One case in DICOM: the series of each modality, and what describes the tumor.

    Args:
        case: unique, and fit for a file name.
        patient: cases of one patient never part.
        cohort: a split is stratified by it.
        series: modality to series, the one that decides the grid first.
        structure_sets: RTSTRUCT files of the patient, of whatever series.
        contours: modality to contours.json.
        transforms: .tfm files between the two series, in whatever direction.
    """

    case: str
    patient: str
    cohort: str
    series: dict[str, Series]
    structure_sets: tuple[Path, ...] = ()
    contours: dict[str, Path] = field(default_factory=dict)
    transforms: tuple[Path, ...] = ()

    def files(self) -> dict[str, tuple[Path, ...]]:
        """Every file that the case is made from, by what it is for."""
        return {
            **{name: tuple(series.files()) for name, series in self.series.items()},
            "structure sets": self.structure_sets,
            **{f"contours on {name}": (path,) for name, path in self.contours.items()},
            "transforms": self.transforms,
        }


def find(folders: Sequence[Path], options: Options) -> Found:
    """Series for inference as jobs; arguments and errors as in `find_cases` of `registry.py`."""
    return study_jobs(folders, TASKS[options.task].image, options.series, options)


def study_jobs(
    folders: Sequence[Path],
    modalities: Sequence[str],
    patterns: Mapping[str, str],
    options: Options,
    *,
    drawn: Callable[[Sequence[StudyCase], Sequence[Path]], list[StudyCase]] | None = None,
) -> Found:
    """Cases of DICOM folders as jobs.

    Args:
        folders, options: as in `find_cases` of `registry.py`.
        modalities, patterns: as in `find_studies`.
        drawn: adds what describes the tumor beside its RTSTRUCT; a mask is needed then.
    """
    headers = scan(*folders, workers=options.workers)
    cases, problems = find_studies(headers, modalities, patterns)
    said = {"task": options.task, "structure": options.structure, "modalities": list(modalities)}
    jobs = []
    for case in cases if drawn is None else drawn(cases, folders):
        write = partial(write_study, case, options.structure, drawn is not None)
        jobs.append(Job(case.case, case.patient, case.cohort, case.files(), said, write))
    nameless = sum(series.header.patient == UNKNOWN for series in headers.series)
    note = f"{nameless} series have neither PatientID nor PatientName and count as one patient"
    return Found(jobs, problems, notes=[note] if nameless else [])


def find_studies(
    headers: Scan, modalities: Sequence[str], patterns: Mapping[str, str]
) -> tuple[list[StudyCase], list[CaseError]]:
    """Cases of a scanned folder: per patient the studies in which each modality has one series.

    A series without description is known by the name of its folder.

    Args:
        headers: of all files.
        modalities: those that a case must have; the first decides the grid.
        patterns: modality to a regular expression that is searched in SeriesDescription, in any case of letters. Where
            one modality is wanted and has no pattern, the only MR series of a study is taken, unless it is called
            otherwise. T2 never is a series called FLAIR, dark-fluid, TIRM or STIR that the pattern does not name.

    Returns:
        The cases, sorted, and the problems of those that are left out: no series or several for a modality, damaged
        files, headers that do not make a volume; and files that cannot be read and belong to no chosen series.
    """
    patients: dict[str, list[Series]] = {}
    for series in headers.series:
        patients.setdefault(series.header.patient, []).extend([series] if series.header.modality == "MR" else [])
    cases, problems = [], []
    used: set[str] = set()
    told: set[Path] = set()
    for patient, own in sorted(patients.items()):
        name = file_name(patient)
        if patient in KNOWN_INCOMPLETE:
            problems.append(CaseError("known incomplete", KNOWN_INCOMPLETE[patient], "a complete patient", case=name))
            continue
        studies = {series.header.study_uid for series in own}
        sets = tuple(s.path for s in headers.structure_sets if s.patient == patient or s.study_uid in studies)
        found = list(_series_of_studies(own, modalities, patterns))
        for index, (chosen, errors) in enumerate(found, start=1):
            case = _unused(name if len(found) == 1 else f"{name}_{index}", used)
            sound = {} if errors else chosen
            damaged = {path: e.of(name) for name, one in sound.items() for path, e in headers.damaged(one).items()}
            told |= damaged.keys()
            errors = errors or list(damaged.values())
            errors = errors or [error.of(modality) for modality, one in chosen.items() for error in one.problems()]
            problems += [error.at(case) for error in errors]
            if not errors:
                for modality, one in chosen.items():
                    for sentence in one.warnings():
                        logger.warning("%s: %s: %s", case, modality, sentence)
                cases.append(StudyCase(case, patient, vs_seg_cohort(patient), chosen, sets))
    problems += [
        CaseError("unreadable file", message, "DICOM; download the file again", case=str(path))
        for path, message in headers.unreadable
        if path not in told
    ]
    return cases, problems


def write_study(case: StudyCase, structure: Sequence[str] | None, with_label: bool, folder: Path) -> Facts:
    """Write the images of a case on the grid of its first series and, if wanted, the mask of its tumor.

    Contours drawn on the first series are taken before those of another one, which move with their image; a structure
    set before contours.json.

    Args:
        structure: names or patterns of the tumor's structure; None for the usual ones.
        with_label: whether a mask is needed.
        folder: an empty folder.

    Raises:
        CaseError: a series that has lost images or cannot be read, no contours that can be used, or a registration
            that does not hold.
    """
    facts = Facts()
    sets, unreadable = _structure_sets(case, facts)
    refuse([error.of(name) for name, series in case.series.items() for error in _lost_images(series, sets)])
    for name, one in case.series.items():
        facts.warnings += [f"{name}: {sentence}" for sentence in one.warnings()]
        facts.shown.update({f"{name} {what}": text for what, text in one.facts().items()})
    frames = {series.header.frame_of_reference for series in case.series.values()}
    if len(frames) > 1:
        facts.shown["frames of reference"] = "differ between the series"
    registered = register_images(case.series, facts, transforms=case.transforms)
    mask = None
    if with_label:
        patterns = DEFAULT_TUMOR_NAMES if structure is None else tuple(structure)
        mask = _tumor(case, _drawings(case, sets, patterns, unreadable), unreadable, registered, facts)
    registered.check(mask)
    for name, image in registered.images.items():
        write_image(image, registered.affine, case.case, name, folder)
    if mask is not None:
        write_image(mask, registered.affine, case.case, "label", folder)
    return facts


def vs_seg_cohort(patient: str) -> str:
    """Cohort of a patient: "VS-SEG" for names of that data set, "DICOM" for all others."""
    return "VS-SEG" if re.fullmatch(r"VS-SEG-\d+", patient) else "DICOM"


def file_name(identity: str) -> str:
    """A patient's identity as part of a file name: letters and digits of any script, dot, dash and underscore."""
    return re.sub(r"[^\w.-]+", "_", identity).strip("._") or "unknown"


def _unused(name: str, used: set[str]) -> str:
    """The name, or the name with a number behind it where another case has it, in whatever case of letters."""
    numbered, number = name, 1
    while numbered.casefold() in used:
        number += 1
        numbered = f"{name}-{number}"
    used.add(numbered.casefold())
    return numbered


def _series_of_studies(
    all_series: Sequence[Series], modalities: Sequence[str], patterns: Mapping[str, str]
) -> Iterable[tuple[dict[str, Series], list[CaseError]]]:
    """Series and errors of each study; all studies together where no study has all modalities by itself."""
    studies: dict[str, list[Series]] = {}
    for series in sorted(all_series, key=lambda s: (s.header.study_date, s.header.study_uid, s.header.series_uid)):
        studies.setdefault(series.header.study_uid, []).append(series)
    chosen = [_choose(series, modalities, patterns) for series in studies.values()]
    if any(not errors for _, errors in chosen) or len(studies) < 2:
        return chosen or [_choose(all_series, modalities, patterns)]
    together, errors = _choose(all_series, modalities, patterns)
    return [(together, errors or _far_apart(together))]


def _far_apart(series: Mapping[str, Series]) -> list[CaseError]:
    """Whether series of different studies are of different times: a tumor grows."""
    dates = {name: _date(one.header.study_date) for name, one in series.items()}
    known = [date for date in dates.values() if date is not None]
    shown = ", ".join(f"{name} of {date or 'an unknown date'}" for name, date in dates.items())
    if len(known) == len(dates) and (max(known) - min(known)).days <= MOST_DAYS:
        return []
    return [CaseError("different studies", shown, f"series of one study, or of {MOST_DAYS} days")]


def _date(text: str) -> date | None:
    """A date of DICOM, YYYYMMDD; None for anything else."""
    try:
        return datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return None


def _choose(
    candidates: Sequence[Series], modalities: Sequence[str], patterns: Mapping[str, str]
) -> tuple[dict[str, Series], list[CaseError]]:
    chosen: dict[str, Series] = {}
    errors = []
    for name in modalities:
        pattern = patterns.get(name)
        fitting = [s for s in candidates if pattern is None or re.search(pattern, s.label, re.IGNORECASE)]
        wanted = "one MR series" if pattern is None else f"one MR series whose description contains {pattern!r}"
        if pattern is None and len(fitting) == 1 and is_called_otherwise(fitting[0].label, name):
            fitting, wanted = [], f"one MR series that is not called otherwise than {name}"
        elif pattern is not None and name == "T2":
            fitting = [series for series in fitting if not is_suppressed(series.label, pattern)]
            wanted += ", and not FLAIR, dark-fluid, TIRM or STIR unless the pattern does too"
        if len(fitting) == 1:
            chosen[name] = fitting[0]
            continue
        shown = ", ".join(repr(s.label) for s in fitting or candidates) or "none"
        check = "ambiguous series" if fitting else "missing series"
        errors.append(CaseError(check, f"{name}: series {shown}", f"{wanted}; --series chooses by another pattern"))
    return chosen, errors


def _structure_sets(case: StudyCase, facts: Facts) -> tuple[list[StructureSet], list[CaseError]]:
    """The structure sets of a case that can be read, the newest first, and what is wrong with the others."""
    sets: list[StructureSet] = []
    errors = []
    for path in case.structure_sets:
        try:
            sets.append(read_rtstruct(path))
        except CaseError as error:
            errors.append(error)
    sets.sort(key=lambda drawn: drawn.date, reverse=True)
    for name, series in case.series.items():
        own = [drawn.path.name for drawn in sets if series.header.series_uid in drawn.images]
        if len(own) > 1:
            facts.warnings.append(f"{len(own)} structure sets of {name}, the newest is taken first: {', '.join(own)}")
    facts.warnings += [f"{drawn.path.name}: {note}" for drawn in sets for note in drawn.notes]
    return sets, errors


def _lost_images(series: Series, sets: Sequence[StructureSet]) -> list[CaseError]:
    """Images of a series that a structure set lists and that are not there: slices lost at an end leave no gap.

    Where it lists none of those that are there, images were renamed after it was drawn, and nothing can be said.
    """
    listed = frozenset().union(*(drawn.images.get(series.header.series_uid, frozenset()) for drawn in sets))
    lost = len(listed - series.sop_uids())
    if not lost or lost == len(listed):
        return []
    found = f"{lost} of the {len(listed)} images that the structure set lists are missing"
    return [CaseError("number of slices", found, "every image of the series; download it again")]


def _tumor(
    case: StudyCase,
    drawings: Iterable[tuple[str, str, Structure]],
    errors: list[CaseError],
    registered: Registered,
    facts: Facts,
) -> NDArray[np.uint8]:
    """Mask of the tumor on the common grid, from the first drawing that can be used; other drawings are compared.

    Args:
        drawings: from `_drawings`, which adds to `errors` as it goes.
        errors: what was wrong with drawings so far.
        facts: is told what was used.
    """
    taken: NDArray[np.uint8] | None = None
    for modality, origin, drawing in drawings:
        shape, affine = case.series[modality].grid()
        try:
            drawn = structure_mask(drawing, shape, affine)
        except CaseError as error:
            errors.append(error.of(origin))
            continue
        mask = registered.mask(drawn, modality)
        if taken is None:
            taken = mask
            facts.shown["tumor drawn on"] = f"{modality}, {origin}, structure {drawing.name!r}"
            _compare_volumes(drawing, drawn, affine, facts)
            continue
        agreement = _dice(taken, mask)
        facts.shown[f"{origin} on {modality}"] = f"Dice {agreement:.3f} with the mask"
        if agreement < _DRAWINGS_AGREE:
            facts.warnings.append(f"{origin} on {modality} is another drawing: Dice {agreement:.3f}")
    if taken is None:
        expected = "an RTSTRUCT that references one of the series, or contours.json in vs_gk_N_t2 or vs_gk_N_t1"
        refuse(errors or [CaseError("missing contours", "no drawing of the tumor", expected)])
    assert taken is not None
    facts.warnings += [f"not used: {error}" for error in errors]
    return taken


def _drawings(
    case: StudyCase, sets: Sequence[StructureSet], patterns: Sequence[str], errors: list[CaseError]
) -> Iterable[tuple[str, str, Structure]]:
    """Modality, origin and structure of each drawing, the best first; what cannot be used goes to `errors`."""
    for modality, series in case.series.items():
        for drawn in sets:
            if series.header.series_uid not in drawn.images:
                continue
            try:
                frame = drawn.frames.get(series.header.series_uid, "")
                if frame not in ("", series.header.frame_of_reference):
                    found = f"{frame}, the {modality} series has {series.header.frame_of_reference}"
                    raise CaseError("frame of reference", found, "the same one in structure set and series")
                yield modality, f"RTSTRUCT {drawn.path.name}", choose_structure(drawn.structures, patterns)
            except CaseError as error:
                errors.append(error.of(drawn.path.name))
        if modality not in case.contours:
            continue
        folder = case.contours[modality].parent.name
        try:
            structures = read_contours_json(case.contours[modality])
            yield modality, "contours.json", choose_structure(structures, patterns, first=True)
        except CaseError as error:
            errors.append(error.of(folder))


def _compare_volumes(drawing: Structure, mask: NDArray[np.uint8], affine: NDArray[np.float64], facts: Facts) -> None:
    distance = float(np.linalg.norm(affine[:3, 2]))
    drawn = contour_volume(drawing, slice_spacing=distance)
    filled = np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3]))
    facts.shown["contours enclose"] = f"{drawn:.0f} mm3, their mask {filled:.0f} mm3"
    if abs(filled - drawn) > _VOLUME_AGREES * drawn:
        facts.warnings.append(f"the mask has {filled:.0f} mm3, its contours enclose {drawn:.0f} mm3")
    for gap in contour_gaps(drawing):
        facts.warnings.append(f"contours skip {gap:.1f} mm between two planes whose outlines lie above one another")


def _dice(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    total = int(first.sum()) + int(second.sum())
    return 2 * np.count_nonzero(first & second) / total if total else 1.0
