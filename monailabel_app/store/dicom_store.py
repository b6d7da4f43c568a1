"""A DICOM archive as MONAI Label's store: knows studies and new series at once, keeps submitted masks as DICOM-SEG."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import requests
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.datastore.utils.dicom import dicom_web_download_series, dicom_web_upload_dcm
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from monailabel_app.bundle import read_series
from monailabel_app.errors import Busy, NotFound
from monailabel_app.images import write_nifti
from monailabel_app.store.dicom_seg import dicom_seg

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 30.0  # of silence until an archive is taken to be down
FRESH_SECONDS = 5.0  # how long a list of the DICOM server's series is believed
FRESH_LABELS_SECONDS = 30.0  # the same for its segmentations, each of which costs a request

_UID = re.compile(r"[0-9.]{1,64}")

# Words of SeriesDescription that tell a modality; a word ends at everything but letters and digits.
_WORDS = {
    "T1": r"t1|t1w|mp ?rage|mpr|bravo|tfl3d|spgr|vibe",
    "T2": r"t2|t2w|ciss|ciss3d|fiesta|drive",
    "FLAIR": r"flair|dark ?fluid|tirm|ir ?prep",
    "ceT1": r"cet1|t1ce|t1c|t1gd",
    "contrast": r"c|ce|gd|gad|gado|gadolinium|contrast|post|km|enhanced",
    "no contrast": r"pre|nativ|native|non? ?contrast|without|unenhanced",
    "another": (
        r"adc|dwi|dti|swi|tof|mra|mrv|angio|perf|perfusion|dsc|dce|asl|bold|fmri|loc|localizer|localiser|scout|survey"
        r"|mip|sub|pd|pdw|t2 ?star|t2 gre|hemo|heme|medic|stir"
    ),
}

_Value = TypeVar("_Value")


@functools.lru_cache(maxsize=4096)
def modality_of(description: str) -> str | None:
    """Modality that a SeriesDescription names: "T1", "ceT1", "T2" or "FLAIR"; None where it names none for certain.

    T1 with contrast is told by words such as ce, gd, post, or the C at the end of "t1_mpr_tra_C". Diffusion,
    angiography, localizers, subtractions and T2* are none of the four, whatever else they are called.
    """
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", description).lower().replace("t2*", "t2 star")
    words = f" {' '.join(re.findall('[a-z0-9]+', parted))} "
    said = {name for name, pattern in _WORDS.items() if re.search(f" (?:{pattern}) ", words)}
    if "another" in said:
        return None
    if "ceT1" in said:
        said |= {"T1", "contrast"}
    if {"T1", "T2"} <= said:
        return None
    if "FLAIR" in said and "T1" not in said:
        return "FLAIR"
    if "T1" in said:
        return "ceT1" if "contrast" in said and "no contrast" not in said else "T1"
    return "T2" if "T2" in said else None


class _Fresh:
    """Answers of a server, each believed for some seconds, its silence too: others do not wait for it once more."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._known: dict[Any, tuple[float, Any]] = {}
        self._failed: dict[Any, tuple[float, str]] = {}

    def get(self, key: Any, seconds: float, ask: Callable[[], _Value]) -> _Value:
        """The known answer where it is fresh, or else a new one."""
        with self._lock:
            known, failed = self._known.get(key), self._failed.get(key)
            if known is not None and time.monotonic() - known[0] <= seconds:
                return known[1]
            if failed is not None and time.monotonic() - failed[0] <= FRESH_SECONDS:
                raise Busy(failed[1])
            try:
                known = (time.monotonic(), ask())
            except Busy as error:
                self._failed[key] = (time.monotonic(), str(error))
                raise
            self._known[key] = known
            return known[1]

    def forget(self) -> None:
        """Asks anew next time."""
        with self._lock:
            self._known.clear()


class _Timely(HTTPAdapter):
    """Gives up on an archive that does not answer; requests would wait for ever."""

    def send(self, request: Any, stream: bool = False, timeout: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().send(request, stream, timeout or ANSWER_SECONDS, *args, **kwargs)


@contextmanager
def _archive() -> Iterator[None]:
    """Makes an archive's failures `Busy`: what it fails at can be tried again."""
    try:
        yield
    except requests.RequestException as error:
        logger.warning("the DICOM archive failed: %s", type(error).__name__)
        raise Busy(
            "The DICOM archive does not answer, or with an error: try again in a minute, and tell those who run it if "
            "it stays so."
        ) from error


def credentials() -> tuple[str, str] | None:
    """Name and password for the archive, by MONAI Label's settings."""
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    return (user, password) if user and password else None


def open_store(address: str) -> TISSNetDICOMStore:
    """The store of a DICOMweb address, by MONAI Label's settings. Nothing is downloaded: dcmqi is not needed."""
    session = requests.Session()
    session.auth = credentials()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Timely())
    client = DICOMwebClientX(
        url=address,
        session=session,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    return TISSNetDICOMStore(
        client=client,
        search_filter=settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER,
        cache_path=settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or None,
        fetch_by_frame=settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME,
        convert_to_nifti=settings.MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI,
    )


class TISSNetDICOMStore(DICOMWebDatastore):
    """MONAI Label's DICOMweb store, with five things set right for clinical use.

    - New series and labels appear within seconds: the base class believes its lists for two hours.
    - A submitted label without tumor is stored as DICOM-SEG too, and all have SNOMED CT codes.
    - A series that was half sent, or half downloaded, is fetched again once there is more of it.
    - An id that is no series answers NotFound, and never a path outside of the cache.
    - The modalities of a case are the series of a study (`siblings`), told apart by SeriesDescription.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._fresh = _Fresh()
        self._by_study: tuple[dict[str, Dataset], dict[str, list[str]]] = ({}, {})
        self._fetching = threading.RLock()
        super().__init__(*args, **kwargs)
        self._client.set_http_retry_params(retry=False)  # five tries of a minute each would be no answer

    def list_images(self) -> list[str]:
        """UIDs of the series that the search filter finds."""
        return list(self._series())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the series that a segmentation on the server refers to."""
        uncached = DICOMWebDatastore.get_labeled_images.__wrapped__

        def ask() -> list[str]:
            with _archive():
                return list(uncached(self, label_tag, labels))

        return list(self._fresh.get(("labeled", label_tag, tuple(labels or ())), FRESH_LABELS_SECONDS, ask))

    def siblings(self, image_id: str) -> dict[str, str]:
        """The series of the study that a series belongs to: UID by modality; none where the series itself has none.

        Where several of a study are of one modality, the series itself is taken, or the only one with as many slices;
        otherwise the modality is left out, for which one is meant is not known.
        """
        known = self._series()
        own = known.get(image_id)
        modality = modality_of(_text(own, "SeriesDescription")) if own is not None else None
        if own is None or modality is None:
            return {}
        study = _text(own, "StudyInstanceUID")
        found: dict[str, list[str]] = {}
        for uid in self._studies(known)[study]:
            if (name := modality_of(_text(known[uid], "SeriesDescription"))) is not None:
                found.setdefault(name, []).append(uid)
        chosen = {}
        for name, uids in found.items():
            alike = [uid for uid in uids if _count(known[uid]) == _count(own)]
            if name == modality:
                chosen[name] = image_id
            elif len(uids) == 1 or len(alike) == 1:
                chosen[name] = uids[0] if len(uids) == 1 else alike[0]
            else:
                logger.warning("study %s has %d series of %s: none is taken", study, len(uids), name)
        return chosen

    def get_image_uri(self, image_id: str) -> str:
        """The series as NIfTI (or its folder, where the server is told so), fetched unless it is there in full.

        What is to be said of its images, such as a lossy compression, is in the image's info: notes.

        Raises:
            NotFound, Busy: as the archive answers.
            InputError: the series is no volume that `read_series` takes.
        """
        count = self._count_of(image_id)
        with self._fetching:
            folder = Path(os.path.realpath(os.path.join(self._datastore.image_path(), image_id)))
            have = len(list(folder.glob("*.dcm"))) if folder.is_dir() else 0
            if have == 0 or have < count:
                self._fetch(image_id, folder)
            if not self._convert_to_nifti:
                return str(folder)
            volume = Path(f"{folder}.nii.gz")
            if not volume.is_file():
                voxels, affine, notes = read_series(folder)
                with tempfile.TemporaryDirectory(prefix="tissnet_") as made:
                    write_nifti(file := Path(made) / "scan.nii.gz", voxels, affine=affine)
                    self._keep_image(image_id, str(file), {**self._dicom_info(image_id), "notes": notes})
            return str(volume)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """A label that was submitted here, asked for by the series it is of; or else as the base class finds it."""
        own = self._datastore.objects.get(label_id)
        if own is not None and label_tag in own.labels:
            return str(LocalDatastore.get_label_uri(self, label_id, label_tag))
        return str(super().get_label_uri(label_id, label_tag, image_id))

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Keeps a label; a final one also goes to the DICOM server, as DICOM-SEG.

        Raises:
            NotFound: there is no such series.
            InputError: the label does not lie on the series, or has other values than 0 and 1.
            Busy: the archive does not answer or does not take it; then nothing is kept.
        """
        image = self.get_image_uri(image_id)
        made = []
        try:
            if Path(label_filename).suffix == ".bin":
                label_filename = binary_to_image(image, label_filename)
                made.append(label_filename)
            info = dict(label_info or {})
            if label_tag == DefaultLabelTag.FINAL:
                made.append(self._segmentation(image_id, label_filename, info))
                about = self.get_image_info(image_id)
                with _archive():
                    info["SeriesInstanceUID"] = dicom_web_upload_dcm(made[-1], self._client)
                if not info["SeriesInstanceUID"]:
                    raise Busy("The DICOM archive did not take the segmentation: tell those who run it.")
                info.update({key: about.get(key) for key in ("Modality", "PatientID", "StudyInstanceUID")})
                self._fresh.forget()
            return self._keep_label(image_id, label_filename, label_tag, info)
        finally:
            for path in made:
                Path(path).unlink(missing_ok=True)

    # These two work on the cache alone, without the archive.

    def _keep_image(self, image_id: str, path: str, info: dict[str, Any]) -> str:
        return str(LocalDatastore.add_image(self, image_id, path, info))

    def _keep_label(self, image_id: str, path: str, tag: str, info: dict[str, Any]) -> str:
        return str(LocalDatastore.save_label(self, image_id, path, tag, info))

    def _segmentation(self, image_id: str, label_filename: str, info: Mapping[str, Any]) -> str:
        """DICOM-SEG of a label that a person has submitted."""
        folder = os.path.realpath(os.path.join(self._datastore.image_path(), image_id))
        labels = info.get("label_info") or None
        model = str(info.get("model") or (labels[0].get("model_name") if labels else "") or "")
        return dicom_seg(folder, label_filename, labels, model, algorithm_type="SEMIAUTOMATIC")

    def _series(self) -> dict[str, Dataset]:
        """What the server says of the series that the search filter finds, by UID."""
        fields = ["StudyInstanceUID", "SeriesDescription", "NumberOfSeriesRelatedInstances"]

        def ask() -> dict[str, Dataset]:
            with _archive():
                found = self._client.search_for_series(search_filters=self._search_filter, fields=fields)
            series = [Dataset.from_json(one) for one in found]
            return {str(one.SeriesInstanceUID): one for one in series}

        return self._fresh.get("series", FRESH_SECONDS, ask)

    def _studies(self, known: dict[str, Dataset]) -> dict[str, list[str]]:
        """The UIDs of an answer of `_series` by study; of the last answer they are kept."""
        of, studies = self._by_study
        if of is not known:
            studies = {}
            for uid, one in known.items():
                studies.setdefault(_text(one, "StudyInstanceUID"), []).append(uid)
            self._by_study = (known, studies)
        return studies

    def _count_of(self, image_id: str) -> int:
        """How many images of a series the server has; 0 where it does not say."""
        if _UID.fullmatch(image_id) and ".." not in image_id:
            known = self._series().get(image_id)
            if known is not None:
                return _count(known)
            with _archive():
                found = self._client.search_for_series(search_filters={"SeriesInstanceUID": image_id})
            for one in found:
                series = Dataset.from_json(one)
                if str(series.SeriesInstanceUID) == image_id:
                    return _count(series)
        raise NotFound(f"There is no series {image_id!r} on the DICOM server: refresh the list, or send the scan.")

    def _fetch(self, image_id: str, folder: Path) -> None:
        """Downloads a series aside and puts it in place in one step, and forgets the volume made of an older one."""
        aside = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder.parent))
        try:
            with _archive():
                dicom_web_download_series(None, image_id, str(aside), self._client, self._fetch_by_frame)
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        Path(f"{folder}.nii.gz").unlink(missing_ok=True)


def _text(one: Dataset, keyword: str) -> str:
    """An attribute as text, "" where it is missing."""
    return str(one.get(keyword) or "")


def _count(one: Dataset) -> int:
    """How many images a series has, 0 where the server does not say."""
    return int(one.get("NumberOfSeriesRelatedInstances") or 0)
