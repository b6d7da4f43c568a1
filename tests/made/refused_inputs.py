"""Scans, data lists, settings and commands that are refused, a row for each, by the entry point that reads them.

What `scripts.prepare` leaves out case by case is in `refusals.py`; `benchmarks/refused.py` writes both as a table.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from monai.bundle import ConfigParser
from monai.data import Dataset

from made.downloads import PATTERNS, brain, head, nifti, stored
from made.files import save
from scripts.config import COMMAND_LINE, CONFIGS, Command, problems
from scripts.data.datalist import load_datalist
from scripts.data.inputs import find_inputs
from scripts.inference.cohort import Cohort
from scripts.loading import LoadScansd
from scripts.prepare import main as prepare

EVERYWHERE = "Scans, wherever they are read: training, evaluation, inference"
OTHERS = "NRRD and MetaImage, where they are read"
INFERENCE = "Inference: names, folders, siblings"
DATALISTS = "Data lists of training and evaluation"
SETTINGS = "Settings of training, evaluation and inference"
COMMANDS = "Command line of scripts.prepare"


class Row(NamedTuple):
    """An input that is refused.

    Args:
        entry: a key of `ANSWERS`.
        made: the input, in words.
        make: writes it into an empty folder; of settings the values themselves.
        answer: part of the sentence.
        options: what the entry point is told besides.
    """

    entry: str
    made: str
    make: Any
    answer: str
    options: Mapping[str, Any] = {}


# --- Makers


def t2() -> np.ndarray:
    return stored(head().images["T2"])


def bytes_of(voxels: np.ndarray | None = None, kind: type = nib.Nifti1Image, **fields: Any) -> bytes:
    """An uncompressed T2 with other values in its header; both forms are coded, and agree."""
    image = kind(t2() if voxels is None else voxels, head().affine)
    image.set_qform(head().affine, 1)
    image.set_sform(head().affine, 1)
    content = image.to_bytes()
    header = type(image.header)(content[: image.header.template_dtype.itemsize], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[len(header.binaryblock) :]


def file(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], None]:
    """A file of such bytes."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content() if callable(content) else content)

    return make


def scan(made: str, answer: str, voxels: Callable[[], np.ndarray] | None = None, **fields: Any) -> Row:
    """A T2 of these voxels, with other values in its header."""
    return Row(EVERYWHERE, made, file("p_T2.nii", lambda: bytes_of(voxels() if voxels else None, **fields)), answer)


def raw(made: str, answer: str, content: Callable[[], bytes], name: str = "p_T2.nii.gz") -> Row:
    """A file called like a T2."""
    return Row(EVERYWHERE, made, file(name, content), answer)


def scans(
    *names: str, change: Callable[[str, np.ndarray], Any] = lambda name, voxels: voxels
) -> Callable[[Path], None]:
    """T2 or, where the names say so, other scans of a glioma; `change` gives other voxels, or voxels and affine."""

    def make(folder: Path) -> None:
        for index, name in enumerate(names):
            modality = next((m for m in ("ceT1", "T1", "T2") if m in name), "T2")
            found = change(name, stored(brain().images[modality]) + np.int16(index))
            voxels, affine = found if isinstance(found, tuple) else (found, brain().affine)
            save(folder / f"{name}.nii.gz", voxels, affine)

    return make


def moved(mm: float) -> np.ndarray:
    affine = brain().affine.copy()
    affine[0, 3] += mm
    return affine


def links(**targets: str) -> Callable[[Path], None]:
    """Links by the names of cases."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, target in targets.items():
            os.symlink(target, folder / f"{name}_T2.nii.gz")

    return make


def named(name: str, answer: str) -> Row:
    """A scan of another name, given by itself."""
    return Row(INFERENCE, f"`{name}`, given alone", scans(name), answer, {"file": f"{name}.nii.gz"})


def nrrd(made: str, answer: str, *changes: tuple[str, str], ending: str = ".nrrd", cut: int | None = None) -> Row:
    """A T2 in NRRD, or in MetaImage by its ending, with other text in its header."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        image = sitk.GetImageFromArray(t2().T)
        image.SetSpacing((1.4, 1.4, 3.0))
        sitk.WriteImage(image, str(folder / f"p_T2{ending}"), useCompression=cut is not None)
        content = (folder / f"p_T2{ending}").read_bytes()
        for old, new in changes:
            if old.encode() not in content:
                raise ValueError(f"{old!r} is not in {content[:500]!r}")
            content = content.replace(old.encode(), new.encode(), 1)
        (folder / f"p_T2{ending}").write_bytes(content[:cut])
        for beside in folder.glob("*.gone"):
            beside.unlink()

    return Row(OTHERS, made, make, answer, {"file": f"p_T2{ending}"})


def datalist(
    made: str, answer: str, change: Callable[[dict[str, Any]], Any] = lambda content: None, **files: Any
) -> Row:
    """A prepared case and its datalist, changed; `files` are voxels, or voxels and affine, of other volumes."""

    def make(folder: Path) -> None:
        nifti(folder / "p", "p", **{name: volume() for name, volume in files.items()})
        entry = {"case": "p", "patient": "p", "image": ["p/p_T2.nii.gz"], "target": "p/p_ceT1.nii.gz"}
        content = {"task": "vs", "training": [entry | {"label": "p/p_label.nii.gz"}], "validation": [], "testing": []}
        changed = change(content)
        text = changed if isinstance(changed, str) else json.dumps(content)
        (folder / "datalist.json").write_text(text)

    return Row(DATALISTS, made, make, answer)


def in_entry(**change: Any) -> Callable[[dict[str, Any]], None]:
    """Other values in the entry of the case; None for a key less."""

    def make(content: dict[str, Any]) -> None:
        entry = {**content["training"][0], **change}
        content["training"] = [{key: value for key, value in entry.items() if value is not None}]

    return make


def label(change: Callable[[np.ndarray], Any]) -> Callable[[], Any]:
    return lambda: change(head().label)


# --- Entry points


def _told(run: Callable[[], object]) -> str:
    """The sentence of an error; of MONAI's, what it was made from."""
    try:
        run()
    except Exception as error:
        while str(error).startswith("applying transform") and error.__cause__ is not None:
            error = error.__cause__
        return str(error)
    return "nothing: it is read"


@functools.cache
def _preprocessing(config: str, key: str, task: str) -> Callable:
    parser = ConfigParser()
    parser.read_config([CONFIGS / config, *([CONFIGS / "glioma.yaml"] if task == "glioma" else [])])
    return parser.get_parsed_content(key)


def infer(folder: Path, *, task: str = "vs", file: str = "", names: Mapping[str, str] | None = None) -> str:
    """As inference.json reads: finds the cases, loads each, records what failed."""

    def run() -> None:
        entries = find_inputs(folder / "in" / file, task, names=names, keep_incomplete=True)
        (folder / "weights.pt").touch()
        transform = _preprocessing("inference.json", "preprocessing", task)
        cohort = Cohort(Dataset(entries, transform), output_dir=str(folder / "out"), weights=str(folder / "weights.pt"))
        for _ in cohort:
            raise AssertionError("nothing: it is read")
        with (folder / "out/failed.csv").open(newline="") as table:
            raise ValueError(next(csv.DictReader(table))["error"])

    return _told(run)


def train(folder: Path, **options: Any) -> str:
    """As train.json reads, and evaluate.json."""
    asked = {"section": "training", "check": "voxels", "task": "vs"} | options
    return _told(lambda: load_datalist(folder / "in/datalist.json", **asked))


def everywhere(folder: Path) -> str:
    """A scan as inference reads it, and as training does; the sentences must be one."""
    (path,) = (folder / "in").iterdir()
    entry = {"case": "p", "patient": "p", "image": [path.name], "target": path.name, "label": path.name}
    content = {"task": "vs", "training": [entry], "validation": [], "testing": []}
    inference = infer(folder)
    (folder / "in/datalist.json").write_text(json.dumps(content))
    training = train(folder)
    found = inference.removeprefix("case p: ").partition(", expected")[0].replace("found case p: ", "found ")
    if found.partition("found ")[2][:40] not in training and "constant" not in inference and "NaN" not in inference:
        raise AssertionError(f"inference: {inference}\ntraining: {training}")
    return inference


def read(folder: Path, *, file: str) -> str:
    """As a configuration that names the file reads it."""
    return _told(lambda: LoadScansd("image")({"case": "p", "image": str(folder / "in" / file)}))


def settings(folder: Path, *, base: str, values: Mapping[str, Any]) -> str:
    """What `scripts.config.check` says of overrides."""
    layers = [(base, ConfigParser.load_config_file(str(CONFIGS / base))), (COMMAND_LINE, dict(values))]
    found = list(problems(Command("", layers, "run", {"run", "initialize", "finalize"}, set())))
    return "\n".join(found) or "nothing: it is read"


def command(folder: Path, *, line: tuple[str, ...]) -> str:
    """The line that `scripts.prepare` ends with."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("scripts.prepare")
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(None):
            status = prepare([part.replace("FOLDER", str(folder)) for part in line])
    finally:
        logger.removeHandler(handler)
    return told[-1] if status == 1 and told else "nothing: it is done"


ANSWERS: dict[str, Callable[..., str]] = {
    EVERYWHERE: everywhere,
    OTHERS: read,
    INFERENCE: infer,
    DATALISTS: train,
    SETTINGS: settings,
    COMMANDS: command,
}


def answer_to(row: Row, folder: Path) -> str:
    """Makes an input in an empty folder, and the sentence that answers it, its paths below the folder."""
    if row.make is not None:
        row.make(folder / "in")
    said = ANSWERS[row.entry](folder, **row.options)
    return (
        said.replace(f"{folder}/in/", "")
        .replace(f"{folder}/in", ".")
        .replace(f"{folder}/", "")
        .replace(str(folder), ".")
    )


# --- Rows


SFORM = {"sform_code": 1, "qform_code": 0}
NOWHERE = {"srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


def noisy() -> bytes:
    """A compressed T2 of which much is left when its end is cut off."""
    return gzip.compress(bytes_of(np.random.default_rng(0).integers(0, 4000, (40, 40, 10), np.int16)))


def swapped() -> bytes:
    """A T2 whose header has the other order of bytes than its length says."""
    content = bytearray(bytes_of())
    content[40:56] = np.frombuffer(bytes(content[40:56]), "<i2").astype(">i2").tobytes()
    return bytes(content)


def in_place(place: int, new: bytes) -> bytes:
    content = bytearray(bytes_of())
    content[place : place + len(new)] = new
    return bytes(content)


def _everywhere() -> list[Row]:
    return [
        scan("sform and qform apart, both coded", "differ by", qoffset_x=60),
        scan("sform and qform turned by half a turn", "differ by", quatern_d=0, quatern_b=1),
        scan("sform and qform both coded, the sform all 0", "voxels of 0 x 0 x 0", **NOWHERE),
        scan("sform alone, all 0", "voxels of 0 x 0 x 0", **NOWHERE, **SFORM),
        scan("codes 0 and 0", "no position", sform_code=0, qform_code=0),
        scan("sform_code 6, which no program knows", "sform_code 6", sform_code=6),
        scan("qform_code -1", "qform_code -1", qform_code=-1),
        scan("sform alone, pixdim 1 x 1 x 1", "pixdim 1 x 1 x 1", pixdim=[1, 1, 1, 1, 0, 0, 0, 0], **SFORM),
        scan("sform alone, pixdim another by 3 %", "pixdim 1.44", pixdim=[1, 1.44, 1.4, 3, 0, 0, 0, 0], **SFORM),
        scan("pixdim with a 0", "sizes above 0", pixdim=[1, 0, 1.4, 3, 0, 0, 0, 0]),
        scan("pixdim below 0", "sizes above 0", pixdim=[1, 1.4, -1.4, 3, 0, 0, 0, 0]),
        scan("pixdim NaN", "pixdim nan", pixdim=[1, np.nan, 1.4, 3, 0, 0, 0, 0]),
        scan("pixdim infinite", "pixdim", pixdim=[1, 1.4, 1.4, np.inf, 0, 0, 0, 0]),
        scan("qform alone, pixdim NaN", "affine", pixdim=[1, 1.4, 1.4, np.nan, 0, 0, 0, 0], sform_code=0),
        scan("pixdim[0] 2, neither side of the axes", "pixdim[0] 2", pixdim=[2, 1.4, 1.4, 3, 0, 0, 0, 0]),
        scan("sform with NaN", "nan", srow_x=[np.nan, 0, 0, 0], **SFORM),
        scan("sform with an infinite place", "inf", srow_x=[1.4, 0, 0, np.inf], **SFORM),
        scan("sform 30 m away", "the first voxel lies at", srow_x=[1.4, 0, 0, 3e4], **SFORM),
        scan("qform whose quaternion is NaN", "differ by nan", quatern_b=np.nan),
        scan("sheared axes, which ITK refuses", "axes whose cosine is", srow_x=[1.4, 0.2, 0, 0], **SFORM),
        scan("units micron", "sizes in micron", xyzt_units=3),
        scan("units meter", "sizes in meter", xyzt_units=1),
        scan(
            "sizes in meter without saying so",
            "voxels of 0.0014",
            pixdim=[1, 0.0014, 0.0014, 0.003, 0, 0, 0, 0],
            srow_x=[0.0014, 0, 0, 0],
            srow_y=[0, 0.0014, 0, 0],
            srow_z=[0, 0, 0.003, 0],
            **SFORM,
        ),
        scan("a slice of 2-D", "2-D, shape (40, 40)", lambda: t2()[:, :, 4]),
        scan("4-D with two time points", "4-D, shape (40, 40, 10, 2)", lambda: np.stack([t2(), t2()], -1)),
        scan("4-D with one time point", "4-D, shape (40, 40, 10, 1)", lambda: t2()[..., None]),
        scan("a vector at each voxel (5-D, intent 1007)", "5-D", lambda: np.stack([t2()] * 3, -1)[..., None, :]),
        scan("RGB", "color image", lambda: np.zeros(t2().shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        scan("RGBA", "color image", lambda: np.zeros(t2().shape, [("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])),
        scan("complex numbers", "data type complex64", lambda: t2().astype(np.complex64)),
        scan("single bits (data type 1)", "data code", datatype=1, bitpix=1),
        scan("a data type that does not exist", "data code", datatype=12345),
        scan("slope set, intercept NaN", "invalid intercept", scl_slope=1, scl_inter=np.nan),
        scan("slope set, intercept infinite", "invalid intercept", scl_slope=1, scl_inter=np.inf),
        scan("more voxels announced than the file has", "bytes for shape", dim=[3, 400, 400, 100, 1, 1, 1, 1]),
        scan("no voxel along an axis", "shape", dim=[3, 40, 0, 10, 1, 1, 1, 1]),
        scan("a dimension below 0", "p_T2.nii", dim=[3, 40, -40, 10, 1, 1, 1, 1]),
        scan("voxels said to begin behind the end of the file", "p_T2.nii", vox_offset=1e6),
        scan("voxels said to begin within the header", "vox offset", vox_offset=100),
        scan("one slice", "10), expected at least 3", lambda: t2()[:1]),
        scan("two slices", "2, shape (40, 40, 2)", lambda: t2()[:, :, :2]),
        scan("all voxels 0", "constant", lambda: 0 * t2()),
        scan("all voxels one number", "constant", lambda: 0 * t2() + 7),
        scan("all voxels NaN", "NaN", lambda: np.full(t2().shape, np.nan, np.float32)),
        scan("some voxels infinite", "NaN or infinite", lambda: np.where(t2() > 100, np.inf, t2()).astype(np.float32)),
        raw("an empty file", "p_T2.nii.gz", lambda: b""),
        raw("a web page saved as .nii.gz", "p_T2.nii.gz", lambda: b"<!DOCTYPE html><html>403 Forbidden</html>"),
        raw("a pointer of Git LFS, not the file", "p_T2.nii.gz", lambda: POINTER),
        raw("a zip called .nii.gz", "p_T2.nii.gz", lambda: b"PK\x03\x04" + bytes(400)),
        raw("an uncompressed file called .nii.gz", "gzip", lambda: bytes_of()),
        raw("a compressed file called .nii", "p_T2.nii", lambda: gzip.compress(bytes_of()), "p_T2.nii"),
        raw("compressed, cut off in the voxels", "p_T2.nii.gz", lambda: noisy()[:-4000]),
        raw("compressed, a bit of its checksum turned", "CRC", lambda: noisy()[:-8] + bytes(4) + noisy()[-4:]),
        raw("uncompressed, cut off in the voxels", "got 31800 bytes", lambda: bytes_of()[:-200], "p_T2.nii"),
        raw("uncompressed, cut off in the header", "p_T2.nii", lambda: bytes_of()[:200], "p_T2.nii"),
        raw("another magic than n+1", "p_T2.nii", lambda: in_place(344, b"abc\0"), "p_T2.nii"),
        raw("the length of the header wrong", "sizeof_hdr", lambda: in_place(0, b"\x00\x01\x00\x00"), "p_T2.nii"),
        raw("sizes in the other order of bytes", "p_T2.nii", swapped, "p_T2.nii"),
    ]


def _others() -> list[Row]:
    space, directions = (
        "space: left-posterior-superior\n",
        "space directions: (1.3999999999999999,0,0) (0,1.3999999999999999,0) (0,0,3)",
    )
    return [
        nrrd("no space, so no position", "names no space", (space, ""), (directions, "spacings: 1.4 1.4 3")),
        nrrd("space scanner-xyz", "space 'scanner-xyz'", ("left-posterior-superior", "scanner-xyz")),
        nrrd("sizes in um", "sizes in um", ("kinds:", 'space units: "um" "um" "um"\nkinds:')),
        nrrd("no space directions", "no space directions", (directions, "spacings: 1.4 1.4 3")),
        nrrd("a direction that is none", "no position along each axis", ("(0,0,3)", "none")),
        nrrd("kinds with a list: numbers at each place", "p_T2.nrrd", ("domain domain domain", "list domain domain")),
        nrrd("four sizes for three dimensions", "sizes '40 40 10 2'", ("sizes: 40 40 10", "sizes: 40 40 10 2")),
        nrrd("type block", "type 'block'", ("type: short", "type: block\nblock size: 2")),
        nrrd("bzip2", "encoding 'bzip2'", ("encoding: raw", "encoding: bzip2")),
        nrrd("2,147,483,648 voxels announced", "bytes for shape", ("sizes: 40 40 10", "sizes: 2048 1024 1024")),
        nrrd("gzip, cut off", "p_T2.nrrd", cut=900),
        nrrd("a text file", "no NRRD file", ("NRRD0004", "text text")),
        nrrd("sheared", "p_T2.nrrd", ("(1.3999999999999999,0,0)", "(1.3999999999999999,0.3,0)")),
        nrrd(
            "the detached voxels gone",
            "no file p.gone, which",
            ("data file: p_T2.raw", "data file: p.gone"),
            ending=".nhdr",
        ),
        nrrd("compressed, cut off", "p_T2.mha", ending=".mha", cut=900),
        nrrd("DimSize with two numbers", "DimSize '40 40'", ("DimSize = 40 40 10", "DimSize = 40 40"), ending=".mha"),
        nrrd("no TransformMatrix", "no TransformMatrix", ("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", ""), ending=".mha"),
        nrrd(
            "ElementSpacing with a word", "ElementSpacing", ("ElementSpacing = ", "ElementSpacing = x "), ending=".mha"
        ),
        nrrd("ElementType MET_STRING", "'MET_STRING'", ("MET_SHORT", "MET_STRING"), ending=".mha"),
        nrrd(
            "three numbers at each voxel",
            "3 numbers",
            ("ElementType", "ElementNumberOfChannels = 3\nElementType"),
            ending=".mha",
        ),
        nrrd("2,147,483,648 voxels announced", "bytes for shape", ("40 40 10", "2048 1024 1024"), ending=".mha"),
        nrrd(
            "spacing 0", "voxels of 0 x", ("ElementSpacing = 1.3999999999999999", "ElementSpacing = 0"), ending=".mha"
        ),
        nrrd("the detached voxels gone", "no file p.gone, which", ("p_T2.raw", "p.gone"), ending=".mhd"),
    ]


def _inference() -> list[Row]:
    glioma = {"task": "glioma"}
    return [
        named("sub-01_T1w", "is named as T1"),
        named("sub-01_ce-gadolinium_T1w", "is named as ceT1"),
        named("BraTS-GLI-00001-000-t1c", "is named as ceT1"),
        named("BraTS20_001_flair", "is named as FLAIR"),
        named("t2_tirm_tra_dark-fluid", "is named as FLAIR"),
        named("t2_stir_cor", "is named as STIR"),
        named("p1_0000", "is named as channel"),
        named("sub-01_desc-brain_mask", "is named as a mask"),
        named("crossmoda2021_ldn_1_Label", "is named as a mask"),
        named("p1_T2_seg", "is named as a mask"),
        named("p1_dwi", "is named as another kind"),
        named("p1_T2star", "is named as another kind"),
        named("p1_T1_T2", "is named as T1 and T2"),
        named("t1_ce_T2_reg", "is named as"),
        Row(
            INFERENCE,
            "a folder of `p1_T1`, `p1_seg`, `p1_adc`",
            scans("p1_T1", "p1_seg", "p1_adc"),
            "3 files passed over",
        ),
        Row(INFERENCE, "a folder of files that do not say what they are", scans("a", "b"), "names that do not say"),
        Row(INFERENCE, "an empty folder", lambda folder: folder.mkdir(), "no case for task vs"),
        Row(INFERENCE, "no such file", lambda folder: folder.mkdir(), "does not exist", {"file": "p_T2.nii.gz"}),
        Row(
            INFERENCE,
            "`.nii` beside `.nii.gz`",
            lambda f: [scans("p_T2")(f), file("p_T2.nii", bytes_of)(f)],
            "has two T2 files",
        ),
        Row(INFERENCE, "`p-T2` beside `p_T2`", scans("p_T2", "p-T2"), "has two T2 files"),
        Row(
            INFERENCE,
            "a folder called like a scan",
            lambda f: (f / "p_T2.nii.gz").mkdir(parents=True),
            "no case for task vs",
        ),
        Row(INFERENCE, "a link to a file that is not there", links(p="gone.nii.gz"), "is a link to"),
        Row(INFERENCE, "a link to itself", links(p="p_T2.nii.gz"), "is a link to"),
        Row(INFERENCE, "two links to each other", links(p="q_T2.nii.gz", q="p_T2.nii.gz"), "is a link to"),
        Row(INFERENCE, "a case's name of 236 letters", scans("x" * 236 + "_T2"), "expected at most 200"),
        Row(INFERENCE, "a case's name of 80 signs of three bytes", scans("腫" * 80 + "_T2"), "has 240 bytes"),
        Row(INFERENCE, "glioma: no T2 beside T1 and ceT1", scans("p_T1", "p_ceT1"), "lacks T2", glioma),
        Row(
            INFERENCE,
            "glioma: T2 copied in place of T1",
            scans("p_T1", "p_ceT1", "p_T2", change=copied),
            "have the same voxels",
            glioma,
        ),
        Row(
            INFERENCE,
            "glioma: ceT1 5 mm beside T1",
            scans("p_T1", "p_ceT1", "p_T2", change=shifted),
            "is not on the grid",
            glioma,
        ),
        Row(
            INFERENCE,
            "glioma: ceT1 with a slice less",
            scans("p_T1", "p_ceT1", "p_T2", change=shorter),
            "is not on the grid",
            glioma,
        ),
        Row(
            INFERENCE,
            "glioma: a case in two folders",
            lambda f: [scans("p_T1", "p_ceT1")(f / "a"), scans("p_T2")(f / "b")],
            "lies in two folders",
            glioma,
        ),
        Row(
            INFERENCE, "glioma: two T1 of a case", scans("p_T1", "p_T1w", "p_ceT1", "p_T2"), "has two T1 files", glioma
        ),
        Row(INFERENCE, "`--task gliom`", scans("p_T2"), "unknown task 'gliom'", {"task": "gliom"}),
        Row(
            INFERENCE,
            "`--names` for a modality that the task does not start from",
            scans("p_T2"),
            "names has ceT1",
            {"names": {"ceT1": "_1"}},
        ),
    ]


def copied(name: str, voxels: np.ndarray) -> np.ndarray:
    return stored(brain().images["T2"])


def shifted(name: str, voxels: np.ndarray) -> Any:
    return (voxels, moved(5.0)) if "ceT1" in name else voxels


def shorter(name: str, voxels: np.ndarray) -> np.ndarray:
    return voxels[:, :, 1:] if "ceT1" in name else voxels


def _datalists() -> list[Row]:
    def second(**change: Any) -> Callable[[dict[str, Any]], None]:
        return lambda content: content["testing"].append({**content["training"][0], **change})

    return [
        Row(DATALISTS, "no datalist.json", lambda folder: folder.mkdir(), "no such datalist"),
        datalist("not JSON", "malformed JSON", lambda content: "{'task': 'vs'"),
        datalist("an empty file", "malformed JSON", lambda content: " "),
        datalist("a list in place of an object", "found a list", lambda content: "[]"),
        datalist("no task", "task: found None", lambda content: [content.pop("task")]),
        datalist("an unknown task", "task: found 'liver'", lambda content: content.update(task="liver")),
        datalist("another task than the configuration's", "a datalist of task", lambda c: c.update(task="vs_cet1")),
        datalist("no section validation", "no 'validation'", lambda content: content.pop("validation")),
        datalist("a section train, as other programs call it", "'train'", lambda c: c.update(train=c["training"])),
        datalist("a section that is no list", "'training' is a dict", lambda c: c.update(training={})),
        datalist("an empty section", "is empty", lambda c: c.update(training=[], testing=c["training"])),
        datalist("an entry that is a text", "found a str", lambda c: c["training"].append("p/p_T2.nii.gz")),
        datalist("no label", "no 'label'", in_entry(label=None)),
        datalist("no target", "no 'target'", in_entry(target=None)),
        datalist("no patient", "no 'patient'", in_entry(patient=None)),
        datalist("a case that is a number", "case is 7", in_entry(case=7)),
        datalist("image as one text", "a list of file names", in_entry(image="p/p_T2.nii.gz")),
        datalist("two images for one source modality", "2 source files", in_entry(image=["p/p_T2.nii.gz"] * 2)),
        datalist("a file that is not there", "no file p/q_T2.nii.gz", in_entry(image=["p/q_T2.nii.gz"])),
        datalist("an absolute path of another computer", "no file /data/", in_entry(label="/data/p_label.nii.gz")),
        datalist("a case twice", "duplicate case", second(patient="p")),
        datalist("a patient in two sections", "patient in two splits", second(case="q")),
        datalist("a label with 2", "{2}", label=label(lambda mask: 2 * mask)),
        datalist("a label with halves", "{0.5}", label=label(lambda mask: mask / 2)),
        datalist("a label below 0", "{-1}", label=label(lambda mask: -mask.astype(np.int16))),
        datalist("a label with NaN", "{nan}", label=label(lambda mask: np.where(mask, np.nan, 0).astype(np.float32))),
        datalist("a label 20 mm beside the scan", "20 mm away", label=label(lambda mask: (mask, head_moved(20.0)))),
        datalist("a label with a slice less", "shape: found", label=label(lambda mask: mask[:, :, 1:])),
        datalist("a label turned against the scan", "mm away", label=label(lambda mask: (mask, head_turned()))),
        datalist("an image of zeros", "constant image", T2=lambda: 0 * t2()),
        datalist("a target with NaN", "non-finite image", ceT1=lambda: np.where(t2() > 9, np.nan, t2()).astype("f4")),
        datalist("a target of RGB", "color image", ceT1=lambda: np.zeros(t2().shape, [(c, "u1") for c in "RGB"])),
    ]


def head_moved(mm: float) -> np.ndarray:
    affine = head().affine.copy()
    affine[0, 3] += mm
    return affine


def head_turned() -> np.ndarray:
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ head().affine


def _settings() -> list[Row]:
    def row(values: Mapping[str, Any], answer: str, base: str = "train.json") -> Row:
        made = " ".join(f"{key} = {value}" for key, value in values.items())
        return Row(SETTINGS, f"`{made}`, {base}", None, answer, {"base": base, "values": values})

    return [
        row({"epoch": 10}, "there is no epoch; did you mean epochs"),
        row({"pixdim": [1, 1]}, "pixdim has 2 numbers", "inference.json"),
        row({"patch_size": [128, 128, 16, 1]}, "patch_size has 4 numbers"),
        row({"pixdim": 1.0}, "pixdim is the number"),
        row({"learning_rate": "1e-4"}, "learning_rate is the text"),
        row({"batch_size": 2.5}, "batch_size is 2.5, expected a whole number"),
        row({"amp": "false"}, "amp is the text 'false'"),
        row({"localize": 0}, "localize is the number", "inference.json"),
        row({"weights": 5}, "weights is the number"),
        row({"weights#l1": 5}, "there is no weights#l1"),
        row({"optimizer_g#learning_rate": 0.1}, "there is no optimizer_g#learning_rate"),
        row({"crop_size": [1, 1, 1]}, "there is no crop_size"),
        row({"network_def#in_channel": 3}, "there is no network_def#in_channel"),
    ]


def _commands() -> list[Row]:
    def row(made: str, answer: str, *line: str, make: Callable[[Path], Any] | None = nifti) -> Row:
        parts = ("--input", "FOLDER/in", "--output", "FOLDER/out", "--workers", "1")
        return Row(COMMANDS, made, make, answer, {"line": (line[0], *parts, *line[1:])})

    return [
        row("a folder that is not there", "no such folder", "nifti", *PATTERNS, make=None),
        row("output within the input", "overlaps", "nifti", *PATTERNS, "--output", "FOLDER/in/out"),
        row(
            "output that is a file",
            "is a file",
            "nifti",
            *PATTERNS,
            make=lambda f: [nifti(f), (f.parent / "out").touch()],
        ),
        row("a pattern without `{case}`", "found no {case}", "nifti", "--pattern", "T2=a.nii.gz"),
        row("a pattern with `{id}`", "found {id}", "nifti", "--pattern", "T2={id}/T2.nii.gz"),
        row("a pattern that no file fits", "no file matches", "nifti", "--pattern", "T2={case}_t2w.nii.gz"),
        row("a pattern for FLAIR, task vs", "expected NAME=TEXT", "nifti", "--pattern", "FLAIR={case}.nii.gz"),
        row("two patterns for T2", "gives T2 twice", "nifti", "--pattern", "T2={case}.nii", "T2={case}.nii.gz"),
        row("`--label-values 0`", "other than 0", "nifti", *PATTERNS, "--label-values", "0"),
        row("`--series T2=*t2`", "no regular expression", "dicom", "--series", "T2=*t2"),
        row("no DICOM in the folder", "no dicom case found", "dicom"),
        row("no BraTS name in the folder", "no brats case found", "brats"),
        row("`--fractions 1 1 1`", "fraction", "nifti", *PATTERNS, "--fractions", "1", "1", "1"),
        row("`--workers 0`", "expected 1 or more", "nifti", *PATTERNS, "--workers", "0"),
        row("a split file that is not there", "split", "nifti", *PATTERNS, "--split", "FOLDER/no.csv"),
        row(
            "a patient of one case in a split twice",
            "VS-SEG-001",
            "nifti",
            *PATTERNS,
            "--split",
            "FOLDER/in/split.csv",
            make=twice,
        ),
    ]


def twice(folder: Path) -> None:
    nifti(folder)
    (folder / "split.csv").write_text("case,split\nVS-SEG-001,training\nVS-SEG-001,testing\n")


ROWS = [*_everywhere(), *_others(), *_inference(), *_datalists(), *_settings(), *_commands()]
