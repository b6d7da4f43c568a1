"""Does the phantom look like patients? Contact sheets, contrast-to-noise, and tumor size and place beside patients.

    python tests/benchmarks/phantoms.py --output DIR [--cases 12] [--positions 40] [--size small|real] [--tasks vs]

Real data come from the folder that TISSNET_DATA names: glioma/ (BraTS naming) and vs_labels/ (crossMoDA; 1 tumor,
2 cochlea); without them those columns are left out, and the report says so. Writes report.md, phantoms.json, the sheets
and vs_geometry.png to DIR. No picture of a patient is drawn, no number is judged, and no network is run here: this
is for whoever changes the phantom, and says nothing about a method.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import binary_erosion, binary_fill_holes, distance_transform_edt, gaussian_filter, label

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.data.phantom.canal import COCHLEA
from scripts.data.phantom.make import SIZES, PhantomCase, make_phantom
from scripts.data.phantom.mri import ID

SHELL = (3.0, 8.0)  # mm from the tumor: its surroundings
SMALLEST_SHELL = 500.0  # mm3; with less around it, a tumor has no figure
SMALLEST_PART = 50.0  # mm3; parts below this have no figure
SHEET = {"vs": (("T2", "ceT1"), 3), "glioma": (("T1", "ceT1", "T2", "FLAIR"), 2)}  # modalities, cases per row
WITH_TUMOR, TUMOR_FREE_SEEDS = 10, (1000, 1001)  # of one sheet
FILES = {"T1": "t1", "ceT1": "t1ce", "T2": "t2", "FLAIR": "flair"}
CNR_DEFINITION = (
    "CNR = (mean inside - mean of the shell) / standard deviation of the shell; the shell lies 3 to 8 mm outside "
    "of the part, inside the brain (vs: the head), without other tumor. Mean +- standard deviation over cases."
)


def cnr(
    images: Mapping[str, np.ndarray], part: np.ndarray, tumor: np.ndarray, foreground: np.ndarray, spacing: Any
) -> dict[str, float]:
    """Contrast-to-noise of `part` by modality; empty if the part or its surroundings are too small."""
    voxel = float(np.prod(spacing))
    if part.sum() * voxel < SMALLEST_PART:
        return {}
    index = np.argwhere(part)
    reach = np.ceil((SHELL[1] + 1) / np.asarray(spacing)).astype(int)
    box = tuple(slice(max(a, 0), b) for a, b in zip(index.min(0) - reach, index.max(0) + reach + 1, strict=True))
    distance = distance_transform_edt(~part[box], sampling=spacing)
    shell = (distance >= SHELL[0]) & (distance <= SHELL[1]) & foreground[box] & ~tumor[box]
    if shell.sum() * voxel < SMALLEST_SHELL:
        return {}
    result = {}
    for name, image in images.items():
        around = image[box][shell].astype(float)
        result[name] = float((image[box][part[box]].mean() - around.mean()) / around.std())
    return result


def glioma_row(images: Mapping[str, np.ndarray], tumor: np.ndarray, enhancing: np.ndarray, spacing: Any) -> dict:
    """CNR of the whole tumor and of its enhancing part, and the volumes in ml: the same for phantoms and patients."""
    foreground = np.all([image > 0 for image in images.values()], axis=0)
    voxel = float(np.prod(spacing)) / 1000
    row = {"brain ml": float(foreground.sum() * voxel), "tumor ml": float(tumor.sum() * voxel)}
    row |= {"enhancing ml": float(enhancing.sum() * voxel)}
    row |= {f"{k} whole": v for k, v in cnr(images, tumor, tumor, foreground, spacing).items()}
    row |= {f"{k} enhancing": v for k, v in cnr(images, enhancing, tumor, foreground, spacing).items()}
    return row


def real_gliomas(folder: Path) -> Iterator[dict]:
    for case in sorted(path for path in folder.iterdir() if path.is_dir()):
        seg = nib.load(case / f"{case.name}_seg.nii.gz")
        spacing = [float(size) for size in seg.header.get_zooms()[:3]]
        labels = np.asarray(seg.dataobj)
        images = {k: np.asarray(nib.load(case / f"{case.name}_{v}.nii.gz").dataobj) for k, v in FILES.items()}
        yield {"case": case.name, **glioma_row(images, labels > 0, labels >= 3, spacing)}


def head_of(image: np.ndarray, spacing: Any) -> np.ndarray:
    """The head with its bone and air, slice by slice: bright after smoothing, holes filled."""
    smooth = gaussian_filter(image, 2.0 / np.asarray(spacing))
    bright = smooth > 0.1 * np.percentile(smooth, 99)
    return np.stack([binary_fill_holes(bright[..., k]) for k in range(bright.shape[2])], axis=2)


def phantom_cochlea(case: PhantomCase) -> np.ndarray | None:
    """The cochlea of the tumor's side: of the labyrinth, what is within 4.5 mm of where canal.py puts it."""
    labyrinth = case.anatomy == ID["labyrinth"]
    index = np.argwhere(labyrinth)
    points = index * np.diag(case.affine)[:3] + case.affine[:3, 3]
    side = np.sign(case.affine[0, 3] + case.affine[0, 0] * np.argwhere(case.label)[:, 0].mean())
    center = np.array(COCHLEA) * (side, 1, 1)
    near = np.zeros(len(points), dtype=bool)
    for _ in range(3):  # The head is turned and warped: follow it.
        near = np.linalg.norm(points - center, axis=1) < 4.5
        if not near.any():
            return None
        center = points[near].mean(0)
    mask = np.zeros(labyrinth.shape, dtype=bool)
    mask[tuple(index[near].T)] = True
    return mask


def phantom_row(case: PhantomCase, task: str) -> dict:
    spacing = np.abs(np.diag(case.affine)[:3])
    if task == "glioma":
        row = glioma_row(case.images, case.label > 0, case.tissue == 3, spacing)
        edema, fluid = (binary_erosion(case.anatomy == ID[name]) for name in ("edema", "csf"))
        if fluid.any() and edema.any():  # Of the fluid, ventricles and cisterns are left.
            for name in ("T2", "FLAIR"):
                a, b = case.images[name][edema], case.images[name][fluid]
                row[f"{name} edema-CSF"] = float((a.mean() - b.mean()) / np.hypot(a.std(), b.std()))
        return row
    tumor, images = case.label > 0, {name: case.images[name] for name in SHEET["vs"][0]}
    head, voxel = head_of(images["ceT1"], spacing), float(np.prod(spacing)) / 1000
    row = {"tumor ml": float(tumor.sum() * voxel)}
    row |= {f"{k} whole": v for k, v in cnr(images, tumor, tumor, head, spacing).items()}
    return row | {f"{k} solid": v for k, v in cnr(images, case.tissue == 3, tumor, head, spacing).items()}


def geometry(tumor: np.ndarray, cochlea: np.ndarray | None, affine: np.ndarray, midline: float) -> dict:
    """Volume, extents and the place of the centroid relative to the cochlea of the same side, in mm, axes RAS+."""
    spacing = np.abs(np.diag(affine)[:3])
    index = np.argwhere(tumor)
    extent = (index.max(0) - index.min(0) + 1) * spacing
    centroid = affine[:3, :3] @ index.mean(0) + affine[:3, 3]
    row = {"volume mm3": float(len(index) * spacing.prod())}
    row |= {f"extent {a} mm": float(e) for a, e in zip("XYZ", extent, strict=True)}
    if cochlea is None:
        return row
    pieces, count = label(cochlea, np.ones((3, 3, 3)))
    centers = [affine[:3, :3] @ np.argwhere(pieces == k).mean(0) + affine[:3, 3] for k in range(1, count + 1)]
    if not centers:
        return row
    ear = min(centers, key=lambda center: float(np.linalg.norm(center - centroid)))
    medial = (ear[0] - centroid[0]) * np.sign(ear[0] - midline)
    offset = (medial, centroid[1] - ear[1], centroid[2] - ear[2])
    return row | {f"{k} mm": float(v) for k, v in zip(("medial", "anterior", "superior"), offset, strict=True)}


def real_schwannomas(folder: Path) -> Iterator[dict]:
    for path in sorted(folder.glob("*.nii.gz")):
        image = nib.as_closest_canonical(nib.load(path))
        labels, affine = np.asarray(image.dataobj), image.affine
        midline = float((affine @ [*(np.array(labels.shape) - 1) / 2, 1])[0])
        yield {"case": path.name, **geometry(labels == 1, labels == 2, affine, midline)}


def draw_geometry(path: Path, made: pd.DataFrame, real: pd.DataFrame) -> None:
    """Histograms of volume and extents, and the place relative to the cochlea; patients as marked points."""
    panels: list[tuple[str, str | None]] = [("volume mm3", None)] + [(f"extent {a} mm", None) for a in "XYZ"]
    if "medial mm" in made:
        panels += [("medial mm", "anterior mm"), ("medial mm", "superior mm"), ("medial mm", "volume mm3")]
    figure = Figure(figsize=(16, 8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(2, 4).flat)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (x, y) in zip(grid, panels, strict=False):
        axes.set_xlabel(x)
        if y is None:
            axes.hist(made[x], bins=14, color="#56b4e9", label="phantoms")
            for value in real.get(x, ()):
                axes.axvline(value, color="#d55e00", label="patient")
        else:
            axes.set_ylabel(y)
            axes.plot(made[x], made[y], "o", color="#56b4e9", label="phantoms")
            if x in real and y in real:
                axes.plot(real[x], real[y], "D", color="#d55e00", markersize=9, label="patients")
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


def draw_sheet(
    path: Path, task: str, cases: list[tuple[str, dict[str, np.ndarray], np.ndarray]], aspect: float
) -> None:
    """One block per case: its slice in every modality of the task, the tumor outlined."""
    modalities, per_row = SHEET[task]
    columns, rows = per_row * len(modalities), -(-len(cases) // per_row)
    height = 18 / columns * cases[0][2].shape[1] / cases[0][2].shape[0] * aspect + 0.12
    figure = Figure(figsize=(18, rows * height), facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0, 0, 1, 1 - 0.12 / (rows * height), 0.01, 0.12 / height)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (name, images, mask) in enumerate(cases):
        row, block = divmod(index, per_row)
        for column, modality in enumerate(modalities):
            axes, image = grid[row, block * len(modalities) + column], images[modality]
            axes.imshow(image.T, cmap="gray", origin="lower", vmin=0, vmax=np.percentile(image, 99.7), aspect=aspect)
            if mask.any():
                axes.contour(mask.T, levels=[0.5], colors="#ffff00", linewidths=0.6)
            axes.invert_xaxis()  # Radiological: the patient's right is on the left.
            axes.set_title(f"{name}: {modality}" if column == 0 else modality, color="white", fontsize=8, pad=1)
    figure.savefig(path, dpi=100)


def slices_of(case: PhantomCase) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The axial slice with most tumor; without tumor, vs: with most labyrinth, at the canals; glioma: at z = 0 mm."""
    area = (case.label if case.label.any() else case.anatomy == ID["labyrinth"]).sum((0, 1))
    k = int(area.argmax()) if area.any() else int(round(-case.affine[2, 3] / case.affine[2, 2]))
    k = int(np.clip(k, 0, case.label.shape[2] - 1))
    return {name: image[..., k] for name, image in case.images.items()}, case.label[..., k]


def summary(groups: Mapping[str, pd.DataFrame]) -> str:
    """Mean +- standard deviation of every column, one table column per group."""
    names = dict.fromkeys(c for frame in groups.values() for c in frame.columns if c not in ("case", "seconds"))
    lines = ["| figure | " + " | ".join(f"{k} (n = {len(v)})" for k, v in groups.items()) + " |"]
    lines.append("|---" * (len(groups) + 1) + "|")
    for name in names:
        cells = []
        for frame in groups.values():
            values = frame[name].dropna() if name in frame else pd.Series(dtype=float)
            few = f" (n = {len(values)})" if 0 < len(values) < len(frame) else ""
            cells.append(f"{values.mean():.2f} +- {values.std():.2f}{few}" if len(values) else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run_task(task: str, args: argparse.Namespace, data: Path | None, report: list[str]) -> dict[str, Any]:
    shape, spacing = SIZES[(task, args.size)]
    sheet, rows = [], []
    seeds = [(seed, True) for seed in range(args.cases)] + [(seed, False) for seed in TUMOR_FREE_SEEDS]
    for seed, tumor in seeds:
        start = time.process_time()
        case = make_phantom(seed, task=task, shape=shape, spacing=spacing, tumor=tumor)
        seconds = time.process_time() - start
        if tumor:
            rows.append({"case": f"seed {seed}", "seconds": seconds, **phantom_row(case, task)})
        if not tumor or seed < WITH_TUMOR:
            sheet.append((f"seed {seed}" + ("" if tumor else ", no tumor"), *slices_of(case)))
    draw_sheet(args.output / f"sheet_{task}.png", task, sheet, spacing[1] / spacing[0])
    made = pd.DataFrame(rows)
    groups = {f"phantoms, {args.size}": made}
    report += [f"## {task}", "", f"{made['seconds'].mean():.1f} s CPU per {args.size} phantom.", CNR_DEFINITION]
    if task == "vs":
        report.append("There are no real images of schwannomas at hand: no column beside the phantoms.")
    elif data is None or not (data / "glioma").is_dir():
        report.append("No patients: TISSNET_DATA names no folder with glioma/.")
    else:
        groups["patients"] = pd.DataFrame(real_gliomas(data / "glioma"))
    if task == "glioma":
        report.append(
            "Edema-CSF: difference of the means over the root of the sum of both variances, one voxel inside."
        )
    report += ["", summary(groups), ""]
    return {name: frame.to_dict("records") for name, frame in groups.items()}


def run_geometry(args: argparse.Namespace, data: Path | None, report: list[str]) -> dict[str, Any]:
    rows = []
    for seed in range(args.positions):  # The small grid holds the whole tumor, and costs little.
        case = make_phantom(seed, task="vs")
        row = geometry(case.label > 0, phantom_cochlea(case), case.affine, 0.0)
        rows.append({"case": f"seed {seed}", **row})
    groups = {"phantoms, small": pd.DataFrame(rows)}
    report += ["## vs: volume and place", "", "Place: the tumor's centroid relative to the cochlea of its side."]
    if "medial mm" not in groups["phantoms, small"]:
        report.append("Place of the phantoms: not measured, no cochlea on their grids.")
    if data is None or not (data / "vs_labels").is_dir():
        report.append("No patients: TISSNET_DATA names no folder with vs_labels/.")
    else:
        groups["patients"] = pd.DataFrame(real_schwannomas(data / "vs_labels"))
    draw_geometry(args.output / "vs_geometry.png", groups["phantoms, small"], groups.get("patients", pd.DataFrame()))
    report += ["", summary(groups), ""]
    if "patients" in groups:
        report += ["```", groups["patients"].round(1).set_index("case").T.to_string(), "```", ""]
    return {name: frame.to_dict("records") for name, frame in groups.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=12, help="phantoms with tumor per task")
    parser.add_argument("--positions", type=int, default=40, help="small vs phantoms whose tumor's place is measured")
    parser.add_argument("--size", choices=("small", "real"), default="small")
    parser.add_argument("--tasks", nargs="+", choices=tuple(SHEET), default=list(SHEET))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ["TISSNET_DATA"]) if os.environ.get("TISSNET_DATA") else None
    report: list[str] = ["# Phantoms beside patients", ""]
    figures = {task: run_task(task, args, data, report) for task in args.tasks}
    if "vs" in args.tasks:
        figures["vs geometry"] = run_geometry(args, data, report)
    (args.output / "phantoms.json").write_text(json.dumps(figures, indent=1) + "\n")
    (args.output / "report.md").write_text("\n".join(report))
    print("\n".join(report))


if __name__ == "__main__":
    main()
