"""From a made download of Vestibular-Schwannoma-SEG to a training that starts: commands, seconds, and what came out.

    python tests/benchmarks/tcia.py --output DIR [--patients 6] [--size real]

Makes the same patients in both layouts of the archive, from phantoms, and runs the commands a researcher would type:
prepare (of both layouts; of two patients without contours.json and .tfm), pretrain S_p, train. Compares the two layouts
byte by byte and prints what was found out about each case. It measures; assertions belong in the tests.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("bundle", "tests")]

from made.tcia import write_patient  # noqa: E402

LAYOUTS = ("descriptive", "classic")
TRAINING = ("--epochs", "1", "--val_interval", "1", "--num_workers", "0")


def run(name: str, command: list[str]) -> tuple[str, float, str]:
    shown = shlex.join(command)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT / "bundle", capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{name}: python {shown}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return f"python {shown}", seconds, (done.stdout.strip().splitlines() or [""])[-1]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=6)
    parser.add_argument("--size", default="real")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    for layout in LAYOUTS:
        for number in range(1, arguments.patients + 1):
            start = time.perf_counter()
            slicer = number % 2 == 0
            write_patient(output / layout, number, size=arguments.size, layout=layout, tfm_as_slicer=slicer)
            print(f"made {layout} VS-SEG-{number:03d} in {time.perf_counter() - start:.0f} s", flush=True)
    for number in (1, 2):
        write_patient(output / "bare", number, size=arguments.size, extras=False, structure_sets=("ceT1",))
    prepare = ["-m", "scripts.prepare", "vs_seg", "--input"]
    data = output / "data_descriptive"
    train = ["-m", "monai.bundle", "run", "training", "--config_file"]
    steps = [
        ("list", [*prepare, str(output / "descriptive"), "--list"]),
        *((f"prepare {x}", [*prepare, str(output / x), "--output", str(output / f"data_{x}")]) for x in LAYOUTS),
        ("prepare bare", [*prepare, str(output / "bare"), "--output", str(output / "data_bare")]),
        (
            "pretrain",
            [*train, "['configs/train.json','configs/pretrain.json']", "--dataset_dir", str(data), *TRAINING]
            + ["--run_dir", str(output / "run_perceptor")],
        ),
        (
            "train",
            [*train, "configs/train.json", "--dataset_dir", str(data), *TRAINING]
            + ["--run_dir", str(output / "run"), "--perceptor_path", str(output / "run_perceptor/checkpoints/best.pt")],
        ),
    ]
    print("\n| step | seconds | last line | command |\n|---|---|---|---|")
    for name, command in steps:
        text, seconds, last = run(name, command)
        print(f"| {name} | {seconds:.1f} | {last[-120:]} | `{text}` |", flush=True)
    one, two = (digest(output / f"data_{layout}") for layout in LAYOUTS)
    images = [name for name in one if name.endswith((".nii.gz", ".png", "datalist.json", "cases.csv"))]
    same = sum(one[name] == two.get(name) for name in images)
    print(f"\nThe two layouts gave {same} of {len(images)} images, pictures and lists alike, byte by byte.\n")
    for name in ("data_descriptive", "data_bare"):
        with (output / name / "cases.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                print(
                    f"{name} {row['case']} ({row['split']}, {row['tumor_mm3']} mm3): {row['facts']} {row['warnings']}"
                )


if __name__ == "__main__":
    main()
