"""Task01_BrainTumour of the Medical Segmentation Decathlon: channels, label values, and two layouts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from scripts.data.conversion import nifti_jobs
from scripts.data.names import ENDING
from scripts.data.reading import open_volume
from scripts.data.sources.nifti_case import LabelValues, NiftiCase, file_problem
from scripts.data.sources.registry import Found, Options
from scripts.data.volume import CaseError, NiftiVolume, Volume, one_line
from scripts.files import files_below

# Edema 1, non-enhancing 2, enhancing 3.
MSD_LABELS = LabelValues(
    (frozenset({0, 1, 2, 3}),), {"whole tumor": frozenset({1, 2, 3}), "enhancing tumor": frozenset({3})}
)

MSD_CHANNELS = ("FLAIR", "T1", "ceT1", "T2")
_MSD_DECLARED_CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
_MSD_CHANNEL_FILE = re.compile(rf"(?P<case>[^.].*)_(?P<suffix>000[0-3]|labels){ENDING}")


def find(folders: Sequence[Path], options: Options) -> Found:
    """The cases as jobs; arguments and errors as in `find_cases` of `registry.py`."""
    cases, problems = find_msd(folders[0])
    return Found(nifti_jobs(cases, options), problems)


def find_msd(folder: Path) -> tuple[list[NiftiCase], list[CaseError]]:
    """Cases of the Medical Segmentation Decathlon's Task01_BrainTumour, sorted by case id.

    Two layouts: as published (`imagesTr/<case>.nii.gz`, 4-D with channels FLAIR, T1w, T1gd, T2w, and
    `labelsTr/<case>.nii.gz`), or anywhere below the folder one file per channel (`<case>_0000` to `_0003` and
    `<case>_labels`). The test images are published without labels and are not used.

    Returns:
        The cases, and the problems that leave a case out here.

    Raises:
        ValueError: dataset.json is unreadable or declares other channels, so this is another task of the decathlon.
    """
    _check_msd_declaration(folder / "dataset.json")
    files: dict[str, dict[str, list[Path]]] = {}
    four_d = (folder / "imagesTr").is_dir()
    if four_d:
        for part, name in (("imagesTr", "images"), ("labelsTr", "label")):
            for path in files_below(folder / part):
                match = re.fullmatch(rf"([^.].*){ENDING}", path.name)
                if match is not None:
                    files.setdefault(match[1], {}).setdefault(name, []).append(path)
    else:
        for path in files_below(folder):
            match = _MSD_CHANNEL_FILE.fullmatch(path.name)
            if match is not None:
                suffix = match["suffix"]
                name = "label" if suffix == "labels" else MSD_CHANNELS[int(suffix)]
                files.setdefault(match["case"], {}).setdefault(name, []).append(path)
    cases, problems = [], []
    for case, found in sorted(files.items()):
        problem = file_problem(found)
        if problem is None and four_d and "images" not in found:
            problem = CaseError("missing file", "a label without an image in imagesTr", "one 4-D image")
        if problem is not None:
            problems.append(problem.at(case))
        else:
            images: dict[str, Volume]
            if four_d:
                path = found["images"][0]
                images = {m: NiftiVolume(path, channel, len(MSD_CHANNELS)) for channel, m in enumerate(MSD_CHANNELS)}
            else:
                images = {name: open_volume(paths[0]) for name, paths in found.items() if name != "label"}
            cases.append(NiftiCase(case, case, "MSD", images, open_volume(found["label"][0]), MSD_LABELS))
    return cases, problems


def _check_msd_declaration(path: Path) -> None:
    """Compare the channels that dataset.json declares, where there is one, with the order this module relies on."""
    if not path.is_file():
        return
    try:
        declared = json.loads(path.read_text(encoding="utf-8"))["modality"]
        channels = [str(declared[str(index)]) for index in range(len(declared))]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot read the channel names ({one_line(error)}); download it again") from error
    if [name.lower() for name in channels] != [name.lower() for name in _MSD_DECLARED_CHANNELS]:
        raise ValueError(
            f"{path}: found channels {', '.join(channels)}, expected {', '.join(_MSD_DECLARED_CHANNELS)}; "
            "give the folder of Task01_BrainTumour"
        )
