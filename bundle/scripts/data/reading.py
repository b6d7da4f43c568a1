"""Opens a scan by its path, whatever its format: a NIfTI, NRRD or MetaImage file, or a folder with a DICOM series."""

from __future__ import annotations

from pathlib import Path

from scripts.data.volume import ITK_SUFFIXES, ItkVolume, NiftiVolume, Volume


def open_volume(path: Path) -> Volume:
    """The volume that a file is by its suffix, or the only MR series of a folder; nothing of a file is read yet.

    Every step that is given a scan by its path opens it here: prepare's sources of files, datalists, training,
    evaluation, inference and pictures.

    Raises:
        CaseError: a folder without a series or with several, or with damaged files; see `dicom.folder.open_series`.
    """
    if path.is_dir():
        from scripts.data.dicom.folder import open_series  # pydicom is slow to import, and files do without

        return open_series(path)
    return ItkVolume(path) if path.name.lower().endswith(ITK_SUFFIXES) else NiftiVolume(path)
