"""Seconds and megabytes of a header scan over made DICOM files, each arm in a fresh process.

    python tests/benchmarks/dicom_scan.py [--files 10000] [--workers 2] [--size 128]

Writes MR slices of size x size voxels into a temporary folder (128: 0.4 GB for 10,000; real slices are 512 x 512, but
a scan stops before the pixels), with the attributes of a scanner's header, sequences and private elements among them,
and one RTDOSE of 200 MB that must not be read. No cache is dropped: the files were written a moment before, so these
are seconds of the processor, not of a disk. Peak memory is that of the scanning process, its imports included; workers
are told apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from made.dicom import MR_IMAGE, make_affine, make_uid, save, write_series  # noqa: E402

from scripts.data.dicom.folder import scan  # noqa: E402

SLICES = 100  # of a series
DOSE_BYTES = 200_000_000
TEXTS = (
    "InstitutionName InstitutionAddress ReferringPhysicianName StationName OperatorsName ProtocolName SoftwareVersions "
    "DeviceSerialNumber TransmitCoilName PatientComments StudyComments RequestedProcedureDescription AccessionNumber"
).split()
PRIVATE_BYTES = 8_000  # of the scanner's own elements


def references(index: int) -> list[Dataset]:
    """A sequence of three items, as localizer references are."""
    items = []
    for number in range(3):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = MR_IMAGE, make_uid(f"{index} {number}")
        items.append(item)
    return items


def make_files(folder: Path, files: int, size: int) -> None:
    """Patients of two series each, in folders as an archive lays them out, and one dose."""
    voxels = np.random.default_rng(0).integers(0, 1000, (size, size, SLICES)).astype(np.int16)
    private = Dataset()
    private.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", bytes(PRIVATE_BYTES))
    texts = {name: "some text" for name in TEXTS}
    for index in range(-(-files // SLICES)):
        patient = f"VS-SEG-{index // 2 + 1:03d}"
        write_series(
            folder / patient / "study" / f"series {index % 2}",
            voxels[:, :, : min(SLICES, files - index * SLICES)],
            make_affine(),
            patient=patient,
            description=("t1_mpr_tra", "t2_ci3d_tra")[index % 2],
            ReferencedImageSequence=references,
            MagneticFieldStrength=1.5,
            FlipAngle=90,
            ScanningSequence="GR",
            ReferencedPerformedProcedureStepSequence=[private],
            **texts,
        )
    dose = Dataset()
    dose.SOPClassUID, dose.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.2", make_uid("dose")
    dose.Modality, dose.PixelData = "RTDOSE", bytes(DOSE_BYTES)
    dose["PixelData"].VR = "OW"
    save(folder / "dose.dcm", dose)


def measure(folder: Path, workers: int) -> dict[str, float]:
    """Scans once; to be called in a fresh process."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    found = scan(folder, workers=workers)
    seconds = time.perf_counter() - begin
    after, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "files": found.files,
        "series": len(found.series),
        "seconds": seconds,
        "cpu_seconds": sum(r.ru_utime + r.ru_stime for r in (after, ended)) - before.ru_utime - before.ru_stime,
        "before_mb": before.ru_maxrss / 1024,
        "peak_mb": after.ru_maxrss / 1024,
        "worker_mb": ended.ru_maxrss / 1024,
    }


def compare(files: int, size: int, workers: int) -> None:
    """Prints one row per number of workers. This process stays small: a child's peak starts at its parent's."""

    def child(*arguments: object) -> str:
        command = [sys.executable, "-W", "ignore", __file__, *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        child("--make", folder, "--files", files, "--size", size)
        sys.stdout.write(f"{files} slices of {size} x {size} written in {time.perf_counter() - begin:.1f} s\n\n")
        sys.stdout.write(
            "| workers | files | series | seconds | CPU seconds | MB before | peak MB | MB of a worker |\n"
        )
        sys.stdout.write("|---" * 8 + "|\n")
        for count in sorted({1, workers}):
            row = json.loads(child("--measure", folder, "--workers", count))
            times = " | ".join(f"{row[name]:.1f}" for name in ("seconds", "cpu_seconds"))
            sizes = " | ".join(f"{row[name]:.0f}" for name in ("before_mb", "peak_mb", "worker_mb"))
            sys.stdout.write(f"| {count} | {row['files']} | {row['series']} | {times} | {sizes} |\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2, help="the second arm; the first has one")
    parser.add_argument("--size", type=int, default=128, help="rows and columns")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)  # a child: the folder to write
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # a child: the folder to scan
    args = parser.parse_args()
    if args.make:
        make_files(args.make, args.files, args.size)
    elif args.measure:
        sys.stdout.write(json.dumps(measure(args.measure, args.workers)))
    else:
        compare(args.files, args.size, args.workers)


if __name__ == "__main__":
    main()
