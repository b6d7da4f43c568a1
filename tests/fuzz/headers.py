"""Damaged headers of NIfTI, NRRD, MetaImage and DICOM, as many as one likes: each is read rightly or refused by name.

    python tests/fuzz/headers.py --format nifti --seconds 60

What is found is printed with the bytes that make it again (`--again`). With atheris installed (`pip install atheris`)
`--guided` lets it choose the bytes, without measuring the readers' lines; else they are random. `test_headers.py` tries
some of each.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import itertools
import json
import logging
import os
import random
import re
import resource
import select
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / folder) for folder in ("bundle", "tests")]

from made.dicom import make_affine, write_enhanced, write_series  # noqa: E402
from made.places import corners, itk_affine  # noqa: E402

from scripts.data.conversion import write_image  # noqa: E402
from scripts.data.dicom.folder import scan  # noqa: E402
from scripts.data.volume import CaseError  # noqa: E402
from scripts.inference.writer import SourceHeaderWriter  # noqa: E402
from scripts.loading import LoadScansd  # noqa: E402

T = TypeVar("T")
Files = dict[str, bytes]

SECONDS = 5.0  # that a file may take
HANGS = 20.0  # and where it is ended
ADDRESS_BYTES = 3 * 2**30  # that a process may take
WRONG = "WRONG"
MEGABYTES = 300  # by which memory may grow: the seeds have 60 to 1440 voxels
SAME_MM = 1e-3  # output in nibabel and in ITK
FORMS_MM = 0.6  # a scan in ITK, which takes another form and the sizes of pixdim
SHAPE = (4, 5, 3)
AFFINE = make_affine((0.5, 0.7, 1.5), origin=(10.0, 20.0, 30.0), plane="oblique")
FIXTURES = ROOT / "tests/fixtures/dicom"

INTEGERS = (0, 1, -1, 2, 3, 4, 5, 7, 127, 128, 255, 256, 1000, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**31)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e-5, 0.04, 25.0, 1e5, 1e30, -1e30, np.nan, np.inf, -np.inf)
NUMBERS = (
    *("", "0", "1", "-1", "2", "3", "4", "16", "nan", "inf", "-inf", "1e400", "1e-400", "-0.5", "0.001", "1e30"),
    *("2147483648", "4294967296", "99999999999999999999", "1\\2", "1\\1\\1\\1\\1\\1", "text", "é", "a" * 300),
)
WORDS = (
    *NUMBERS,
    *("none", "list", "vector", "complex", "raw", "gzip", "bzip2", "hex", "ascii", "big", "little", "True", "False"),
    *("LOCAL", "LIST", "missing.raw", "../a", "float", "double", "uchar", "block", "MET_UCHAR", "MET_DOUBLE"),
    *("MET_STRING", "MET_OTHER", "LPS", "RAS", "???", "right-anterior-superior", "scanner-xyz", "%s%n"),
    *(
        "left-posterior-superior",
        "left-posterior-superior-time",
        "(1,0,0)",
        "(0,0,0)",
        "(nan,0,0)",
        "(1,0)",
        "(1,0,0,0)",
    ),
)


class Wrong(AssertionError):
    """A file that was neither read rightly nor refused by name."""


class Choices:
    """Numbers out of bytes; zeros where they end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def below(self, count: int) -> int:
        """From 0 to count - 1."""
        self.place += 3
        return int.from_bytes(self.data[self.place - 3 : self.place], "little") % max(count, 1)

    def of(self, things: Sequence[T]) -> T:
        return things[self.below(len(things))]


@functools.cache
def load() -> LoadScansd:
    """As training, inference and the app load a scan."""
    return LoadScansd("image")


# Seeds: what all readers agree on


def _voxels(dtype: str = "i2") -> np.ndarray:
    return np.arange(1, 1 + np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


@functools.cache
def seeds(kind: str) -> tuple[Files, ...]:
    """Undamaged files of a format by their names, one scan a group."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "dicom":
            write_series(folder / "plain", _voxels("u2"), AFFINE)
            write_series(folder / "scaled", _voxels(), AFFINE, slope=2.0, intercept=-10.0)
            write_enhanced(folder / "enhanced/e.dcm", _voxels("u2"), AFFINE)
            folders = [
                *sorted(folder.iterdir()),
                *(FIXTURES / n for n in ("jpeg_ls", "jpeg2000", "rle", "jpeg_baseline")),
            ]
            return tuple({path.name: path.read_bytes() for path in sorted(each.iterdir())} for each in folders)
        if kind == "nifti":
            for image in (nib.Nifti1Image, nib.Nifti2Image):
                for codes, ending in (((1, 1), ".nii"), ((0, 1), ".nii"), ((1, 0), ".nii"), ((2, 2), ".nii.gz")):
                    scan = image(_voxels(), AFFINE)
                    scan.set_qform(AFFINE, codes[0])
                    scan.set_sform(AFFINE, codes[1])
                    nib.save(scan, folder / f"{image.__name__}_{codes[0]}{codes[1]}{ending}")
            return tuple({f"a{''.join(path.suffixes)}": path.read_bytes()} for path in sorted(folder.iterdir()))
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
        sizes = np.linalg.norm(lps[:3, :3], axis=0)
        found = []
        for ending, compressed in itertools.product((".nrrd", ".nhdr") if kind == "nrrd" else (".mha", ".mhd"), (0, 1)):
            image = sitk.GetImageFromArray(_voxels().T)
            image.SetSpacing(sizes.tolist())
            image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
            image.SetOrigin(lps[:3, 3].tolist())
            here = folder / f"{ending[1:]}{compressed}"
            here.mkdir()
            sitk.WriteImage(image, str(here / f"a{ending}"), useCompression=bool(compressed))
            found.append({path.name: path.read_bytes() for path in sorted(here.iterdir())})
        return tuple(found)


# Damage


def bit_turned(data: bytearray, choices: Choices) -> None:
    data[choices.below(min(len(data), 600))] ^= 1 << choices.below(8)


def number_set(data: bytearray, choices: Choices) -> None:
    """A number in the header, of any size and order of bytes, made extreme."""
    kind = choices.of("bhiqfdBHIQ")
    order = choices.of("<>")
    number = choices.of(FLOATS if kind in "fd" else INTEGERS)
    size = struct.calcsize(kind)
    place = choices.below(min(len(data) - size, 600)) // size * size
    if kind in "bhiqBHIQ":
        raw = int(number) & (2 ** (8 * size) - 1)
        data[place : place + size] = raw.to_bytes(size, "little" if order == "<" else "big")
    else:
        data[place : place + size] = struct.pack(order + kind, number)


def numbers_swapped(data: bytearray, choices: Choices) -> None:
    size = choices.of((2, 4, 8))
    one, other = (choices.below(min(len(data) - size, 600)) // size * size for _ in range(2))
    first, second = data[one : one + size], data[other : other + size]
    data[one : one + size], data[other : other + size] = second, first


def truncated(data: bytearray, choices: Choices) -> None:
    del data[choices.below(len(data)) :]


def field_set(data: bytearray, choices: Choices) -> None:
    """A field of a NIfTI header by its name."""
    for image in (nib.Nifti1Header, nib.Nifti2Header):
        dtype = image.template_dtype
        if len(data) >= dtype.itemsize and int.from_bytes(data[:4], "little") == dtype.itemsize:
            name = choices.of(dtype.names)
            kind, place = dtype.fields[name][:2]
            base, count = (kind.subdtype[0], kind.shape[0]) if kind.subdtype else (kind, 1)
            place += choices.below(count) * base.itemsize
            if base.kind in "iuf":
                number = choices.of(FLOATS if base.kind == "f" else INTEGERS)
                with np.errstate(all="ignore"):
                    raw = np.array([number], "f8" if base.kind == "f" else "i8").astype(base).tobytes()
                data[place : place + base.itemsize] = raw


def text_changed(data: bytearray, choices: Choices) -> None:
    """A line of a text header left out, doubled, or with another word."""
    end = data.find(b"\n\n") + 1 or data.rfind(b"ElementDataFile") + 40
    lines = bytes(data[:end]).split(b"\n")
    which = choices.below(len(lines))
    action = choices.below(5)
    if action == 0:
        del lines[which]
    elif action == 1:
        lines.insert(choices.below(len(lines)), lines[which])
    else:
        pieces = re.split(rb"([ ,()=:]+)", lines[which])
        pieces[choices.below(len(pieces))] = choices.of(WORDS).encode()
        lines[which] = b"".join(pieces)
    data[:end] = b"\n".join(lines)


def element_changed(data: bytearray, choices: Choices) -> None:
    """A data element of DICOM (explicit VR little endian) left out, or with another value."""
    elements, place = [], 132
    while place + 8 <= len(data):
        long = bytes(data[place + 4 : place + 6]) in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD")
        begin = place + (12 if long else 8)
        length = int.from_bytes(data[place + 8 : begin] if long else data[place + 6 : begin], "little")
        if begin + length > len(data):
            break
        elements.append((place, begin, length, long))
        place = begin + length
    if not elements:
        return
    place, begin, length, long = choices.of(elements)
    if choices.below(4) == 0:
        del data[place : begin + length]
        return
    value = choices.of(NUMBERS).encode()
    if bytes(data[place + 4 : place + 6]) in (b"US", b"SS", b"UL", b"SL"):
        value = (choices.of(INTEGERS) & 0xFFFFFFFF).to_bytes(4, "little")[:length]
    value += b" " * (len(value) % 2)
    data[begin : begin + length] = value
    data[place + 8 : begin] if long else data[place + 6 : begin]
    head = begin - (4 if long else 2)
    data[head:begin] = len(value).to_bytes(begin - head, "little")


ANYHOW = (bit_turned, number_set, numbers_swapped, truncated)
DAMAGE: dict[str, tuple[Callable[[bytearray, Choices], None], ...]] = {
    "nifti": (field_set, field_set, field_set, *ANYHOW),
    "nrrd": (text_changed, text_changed, text_changed, *ANYHOW),
    "mha": (text_changed, text_changed, text_changed, *ANYHOW),
    "dicom": (element_changed, element_changed, element_changed, *ANYHOW),
}


def damaged(kind: str, data: bytes) -> Files:
    """Files of a format, one of them damaged one to three times, as the bytes choose."""
    choices = Choices(data)
    files = dict(choices.of(seeds(kind)))
    name = choices.of(sorted(files))
    content = bytearray(files[name])
    zipped = name.endswith(".gz") and choices.below(4) > 0
    content = bytearray(gzip.decompress(content)) if zipped else content
    for _ in range(1 + choices.below(3)):
        if len(content) > 16:
            choices.of(DAMAGE[kind])(content, choices)
    return files | {name: gzip.compress(bytes(content), 1) if zipped else bytes(content)}


# What must hold


def check_outcome(kind: str, files: Files) -> str:
    """Reads files of a format; says how it ended: "read", or the name of the check that refused them.

    Raises:
        Wrong: anything but a right image or a refusal that names a file, or too much time or memory for it.
    """
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        for name, content in files.items():
            (Path(folder) / "in" / name).write_bytes(content)
        try:
            outcome = (_dicom if kind == "dicom" else _file)(Path(folder), files)
        except (Wrong, KeyboardInterrupt):
            raise
        except Exception as error:
            raise Wrong(f"{type(error).__name__}: {error}") from error
    if (seconds := time.monotonic() - begin) > SECONDS:
        raise Wrong(f"{seconds:.1f} s")
    if (grown := (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024) > MEGABYTES:
        raise Wrong(f"{grown} megabytes")
    return outcome


def _refused(error: CaseError, files: Files) -> str:
    sentence = str(error)
    if not any(name in sentence for name in files) or "\n" in sentence:
        raise Wrong(f"does not name the file: {sentence}")
    if re.search(r"\(0x[0-9a-f]+\)|object has no attribute", sentence):
        raise Wrong(f"no sentence: {sentence}")
    if re.search(r"MemoryError|bad_alloc|allocate |std::", sentence):
        raise Wrong(f"memory was asked for: {sentence}")
    return error.check


def _file(folder: Path, files: Files) -> str:
    """A file through the reader of training, inference and app, and the writer of outputs."""
    path = folder / "in" / next(name for name in files if not name.endswith(("raw", "raw.gz", "zraw")))
    try:
        image = load()({"case": "7", "image": str(path)})["image"]
    except CaseError as error:
        return _refused(error, files)
    shape, affine = tuple(image.shape[1:]), image.affine.numpy()
    writer = SourceHeaderWriter(output_dtype=np.uint8)
    writer.set_data_array(image > 0, channel_dim=0)
    writer.set_metadata(image.meta, resample=False)
    written = folder / "mask.nii.gz"
    writer.write(written)
    _same_place(written, path, shape, affine)
    return "read"


def _dicom(folder: Path, files: Files) -> str:
    """A folder as `scripts.prepare` reads it."""
    found = scan(folder / "in")
    for one in found.unreadable:
        if not one.message or "\n" in one.message:
            raise Wrong(f"no sentence of {one.path}: {one.message!r}")
    outcome = "unreadable file" if found.unreadable else "no image"
    for series in found.series:
        problems = series.problems()
        if problems:
            outcome = problems[0].check
            for problem in problems:
                if problem.check not in ("spacing", "4-D"):  # of all slices, not of one file
                    _refused(problem, files)
            continue
        try:
            shape, affine = series.grid()
            voxels = series.voxels()
            series.warnings(), series.facts()
        except CaseError as error:
            outcome = _refused(error, files)
            continue
        if voxels.shape != shape:
            raise Wrong(f"voxels {voxels.shape} on a grid {shape}")
        write_image(voxels, affine, "a", "T2", folder)
        _same_place(folder / "a_T2.nii.gz", None, shape, affine)
        outcome = "read"
    return outcome


def _same_place(written: Path, scan: Path | None, shape: tuple[int, ...], affine: np.ndarray) -> None:
    if not np.isfinite(affine).all():
        raise Wrong(f"affine {affine.tolist()}")
    output = nib.load(written)
    if output.shape != shape:
        raise Wrong(f"shape {shape}, written {output.shape}")
    if not (apart := np.abs(corners(shape, output.affine) - corners(shape, affine)).max()) < SAME_MM:
        raise Wrong(f"output {apart:g} mm from the reader's place in nibabel")
    in_itk, of_scan = itk_affine(written), None if scan is None else itk_affine(scan)
    if in_itk is None:  # NIfTI-2, or skewed by rounding
        if of_scan is not None or scan is None:
            raise Wrong("ITK refuses the output")
        return
    apart = np.abs(corners(shape, in_itk) - corners(shape, affine)).max()
    if not apart < FORMS_MM:
        raise Wrong(f"output {apart:g} mm from the reader's place in ITK")
    if of_scan is not None and not (apart := np.abs(corners(shape, in_itk) - corners(shape, of_scan)).max()) < FORMS_MM:
        raise Wrong(f"output {apart:g} mm from the scan in ITK")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--format", choices=tuple(DAMAGE), required=True)
    parser.add_argument("--runs", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="by atheris")
    parser.add_argument("--again", metavar="HEX", help="one run, whose error is shown")
    arguments = parser.parse_args()
    kind = arguments.format
    logging.disable()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    seeds(kind), load()
    if arguments.again:
        print(check_outcome(kind, damaged(kind, bytes.fromhex(arguments.again))))
        return
    begin, outcomes, wrong = time.monotonic(), Counter[str](), Counter[str]()
    while sum(outcomes.values()) < arguments.runs and (left := arguments.seconds - time.monotonic() + begin) > 1:
        seed = arguments.seed + sum(outcomes.values())  # of a process, which a reader's C code may end
        for data, outcome, sentence in _in_a_process(arguments, seed, arguments.runs - sum(outcomes.values()), left):
            outcomes[outcome] += 1
            if outcome == WRONG:
                like = re.sub(r"[-+\d.e]{2,}|\w*\d\w*", "#", sentence)[:100]
                wrong[like] += 1
                if wrong[like] == 1:
                    print(f"{sentence}\n  --again {data}", flush=True)
    shown = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
    print(f"{kind}: {sum(outcomes.values())} files in {time.monotonic() - begin:.0f} s: {shown}")


def _in_a_process(
    arguments: argparse.Namespace, seed: int, runs: int, seconds: float
) -> Iterator[tuple[str, str, str]]:
    """Bytes, outcome and sentence of each file that another process tries, until it ends or is ended."""
    ours, theirs = os.pipe()
    if (process := os.fork()) == 0:
        os.close(ours)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what ITK's readers print of damaged files
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_BYTES, used + ADDRESS_BYTES))
        _try(arguments, theirs, seed, runs, seconds)
        os._exit(0)
    os.close(theirs)
    data, text = "", b""
    while select.select([ours], [], [], HANGS)[0] and (read := os.read(ours, 65536)):
        *lines, text = (text + read).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                yield (data, *json.loads(line).popitem())
                data = ""
            else:
                data = line.decode()
    os.close(ours)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL if data else 0)
    status = os.waitpid(process, 0)[1]
    if data:
        yield data, WRONG, f"the process ended, status {status}" if status != signal.SIGKILL else "no end"


def _try(arguments: argparse.Namespace, told: int, seed: int, runs: int, seconds: float) -> None:
    end, count = time.monotonic() + seconds, 0

    def one(data: bytes) -> None:
        nonlocal count
        os.write(told, data.hex().encode() + b"\n")
        try:
            outcome = {check_outcome(arguments.format, damaged(arguments.format, data)): ""}
        except Wrong as error:
            outcome = {WRONG: " ".join(str(error).split())[:3000]}
        os.write(told, json.dumps(outcome).encode() + b"\n")
        count += 1
        if count >= runs or time.monotonic() > end:
            os._exit(0)

    if arguments.guided:
        import atheris

        atheris.Setup([sys.argv[0], f"-seed={seed + 1}", "-max_len=64", "-len_control=0"], one)
        atheris.Fuzz()
    rng = random.Random(seed)
    while True:
        one(rng.randbytes(48))


if __name__ == "__main__":
    main()
