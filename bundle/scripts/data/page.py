"""What was prepared, to look at: a picture per case and one HTML page of all cases, with what was left out and why.

Small pictures for a page of hundreds, of the real data alone; large ones with predictions are in `figures.py`. Drawn
with matplotlib's object interface. Nothing here decides what is suspicious: warnings come from the checks. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from scripts.data.datalist import SECTIONS, prepared_name
from scripts.data.volume import NiftiVolume, Problem
from scripts.files import whole_file
from scripts.pictures import GRAY_PERCENTILES, TRUTH_COLOR, ZOOM_FACTOR

_LONGEST_PIXELS = 230  # of the longest side of a volume in a picture
_DETAIL_SMALLEST_MM = 40.0  # least side of the enlarged part
_GAP_PIXELS = 4
_DPI = 100
_LETTER_COLOR = "#7fd4ff"
_GRAYS = 40
_SHADES = 6  # of the outline's and the letters' colors, which mix with the gray below
_WINDOW_STEP = 4  # intensities are windowed by every fourth voxel along each axis
# Plane, the axis through it, and the letters at its left and upper edge: the patient's right, or front, is on the left.
_PLANES = (("axial", 2, "R", "A"), ("coronal", 1, "R", "S"), ("sagittal", 0, "A", "S"))

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --soft: #667; --line: #ccd; --paper: #fff; --card: #f6f7f9;
  --alarm: #a33a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --soft: #9aa; --line: #3a3f45; --paper: #16181a;
  --card: #1f2226; --alarm: #ff9d5c; } }
body { margin: 1.5rem auto; max-width: 84rem; padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; } td.number, th.number { text-align: right; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(25rem, 100%), 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem;
  break-inside: avoid; overflow-wrap: anywhere; }
.card.warned { border-color: var(--alarm); } .card h3 { margin: .4rem 0 .2rem; font-size: 1rem; }
.card img { width: 100%; height: auto; display: block; background: #000; }
.nopicture { padding: 3rem 0; text-align: center; color: var(--soft); border: 1px dashed var(--line); }
.card ul { margin: .2rem 0; padding-left: 1.1rem; color: var(--alarm); }
.card dl { display: grid; grid-template-columns: fit-content(36%) 1fr; gap: 0 .8rem; margin: .3rem 0 0;
  font-size: .87rem; }
dt { color: var(--soft); } dd { margin: 0; } .note { color: var(--soft); }
@media print { body { max-width: none; font-size: 10pt; } .cards { grid-template-columns: 1fr 1fr; } }
"""


@dataclass(frozen=True)
class OverviewCase:
    """What the page shows of one case.

    Args:
        case, patient, cohort: ids, as prepared.
        section: training, validation, testing, or what else the cases serve.
        tumor_mm3: volume of the mask; None without one.
        shape: voxels (X, Y, Z).
        spacing: size of a voxel along them, mm.
        facts: short name to short text, shown as they are.
        warnings: sentences; a case with any comes first.
    """

    case: str
    patient: str
    cohort: str
    section: str
    tumor_mm3: float | None = None
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def overview_path(case: str) -> str:
    """Path of a case's picture, relative to the page."""
    return f"{case}/{case}_overview.png"


def draw_case(folder: Path, case: str, modalities: Sequence[str]) -> None:
    """Draw `<case>_overview.png` in the folder that holds the prepared files of a case.

    Args:
        folder: with `<case>_<modality>.nii.gz`, and `<case>_label.nii.gz` where there is a mask.
        case: the name in these files' names.
        modalities: those to draw.

    Raises:
        VolumeError: a modality that is missing or unreadable.
        ValueError: files on different grids.
    """
    volumes = {name: NiftiVolume(folder / prepared_name(case, name)) for name in modalities}
    label = NiftiVolume(folder / prepared_name(case, "label"))
    _, affine = next(iter(volumes.values())).grid()
    mask = label.voxels() if label.path.is_file() else None
    images = {name: volume.voxels() for name, volume in volumes.items()}
    case_picture(folder / Path(overview_path(case)).name, images, mask=mask, affine=affine)


def case_picture(
    path: Path, images: Mapping[str, NDArray], *, mask: NDArray | None = None, affine: NDArray[np.float64]
) -> None:
    """Draw a row per image: its axial, coronal and sagittal plane with the outline of the mask; a small mask enlarged.

    The planes pass through the voxel of the mask nearest to its center of mass, or the middle of the volume. In
    radiological convention: the patient's right is on the left, and in the sagittal plane the front.

    Args:
        path: PNG to write.
        images: name to array (X, Y, Z) on one grid, in any orientation; at least one.
        mask: array on the same grid; what is not 0 is drawn.
        affine: 4x4, voxel index to mm, RAS+.

    Raises:
        ValueError: no image, arrays that are not 3-D, or not on one grid.
    """
    shapes = {name: np.shape(array) for name, array in (*images.items(), ("mask", mask)) if array is not None}
    if not images or len(set(shapes.values())) > 1 or any(len(shape) != 3 for shape in shapes.values()):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "no image"
        raise ValueError(f"{path}: found {found}, expected images on one 3-D grid")
    turn = nib.io_orientation(affine)
    turned = {name: nib.apply_orientation(image, turn) for name, image in images.items()}
    inside = None if mask is None else nib.apply_orientation(np.asarray(mask) != 0, turn)
    voxel = np.empty(3)
    voxel[turn[:, 0].astype(int)] = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    _draw_panels(path, turned, inside if inside is not None and inside.any() else None, voxel)


def write_overview(
    path: Path,
    title: str,
    cases: Sequence[OverviewCase],
    excluded: Sequence[Problem] = (),
    *,
    notes: Sequence[str] = (),
) -> None:
    """Write the page in one step: counts, cases left out, then a card per case, those with warnings first.

    It needs nothing but the pictures beside it (`overview_path`), no script and no network.

    Args:
        path: HTML file in the folder that holds the cases' folders.
        title: heading of the page.
        cases: those that can be used.
        excluded: what left the others out, a row each.
        notes: sentences below the heading.
    """
    ordered = sorted(cases, key=lambda case: (not case.warnings, case.case))
    page = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        *_counts_table(cases),
        *_excluded_table(excluded),
        f"<h2>Cases ({len(cases)}, {sum(bool(case.warnings) for case in cases)} with warnings)</h2>",
        '<p class="note">Radiological convention: the patient\'s right is on the left. The outline is the mask.</p>',
        '<div class="cards">',
        *(_card(path.parent, case) for case in ordered),
        "</div></body></html>",
    ]
    with whole_file(path) as partial:
        # File names that are not valid text become visible escapes.
        partial.write_text("\n".join(page) + "\n", encoding="utf-8", errors="backslashreplace")


def _counts_table(cases: Sequence[OverviewCase]) -> list[str]:
    """Number of cases per cohort and section, with totals; sections of one's own come after the usual three."""
    counts = Counter((case.cohort, case.section) for case in cases)
    others = sorted({case.section for case in cases} - set(SECTIONS))
    sections = (*SECTIONS, *others)
    rows = [
        [cohort, *(counts[cohort, section] for section in sections), sum(case.cohort == cohort for case in cases)]
        for cohort in sorted({case.cohort for case in cases})
    ]
    totals = [sum(case.section == section for case in cases) for section in sections]
    return _table("counts", ("cohort", *sections, "total"), [*rows, ["total", *totals, len(cases)]])


def _excluded_table(excluded: Sequence[Problem]) -> list[str]:
    """One row per problem that left a case out."""
    heading = f"<h2>Left out ({len({problem.case for problem in excluded})})</h2>"
    if not excluded:
        return [heading, '<p class="note">No case was left out.</p>']
    return [heading, *_table("excluded", Problem._fields, excluded)]


def _table(name: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """A table with a header row; numbers are set to the right."""
    lines = [f'<table id="{name}"><thead><tr>', *(f"<th>{escape(column)}</th>" for column in columns)]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        cells = [
            f'<td class="number">{cell}</td>' if isinstance(cell, int) else f"<td>{escape(str(cell))}</td>"
            for cell in row
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return [*lines, "</tbody></table>"]


def _card(folder: Path, case: OverviewCase) -> str:
    """Picture, name, warnings and facts of one case."""
    picture = '<div class="nopicture">no picture</div>'
    if (folder / overview_path(case.case)).is_file():
        link = escape(quote(overview_path(case.case)))
        alternative = escape(f"Three planes of {case.case} with the outline of the mask")
        picture = f'<a href="{link}"><img src="{link}" loading="lazy" alt="{alternative}"></a>'
    facts = {"patient": case.patient, "cohort": case.cohort, "section": case.section, **_measures(case), **case.facts}
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in case.warnings)
    return "".join(
        [
            f'<article class="card{" warned" if case.warnings else ""}">{picture}<h3>{escape(case.case)}</h3>',
            f"<ul>{warnings}</ul>" if warnings else "",
            "<dl>",
            *(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()),
            "</dl></article>",
        ]
    )


def _measures(case: OverviewCase) -> dict[str, str]:
    """Volume, grid and spacing in words; those that are known."""
    measures = {}
    if case.tumor_mm3 is not None:
        measures["tumor"] = f"{case.tumor_mm3:.0f} mm³ ({case.tumor_mm3 / 1000:.2f} cm³)"
    if case.shape:
        measures["grid"] = " × ".join(map(str, case.shape))
    if case.spacing:
        measures["spacing"] = " × ".join(f"{size:.3g}" for size in case.spacing) + " mm"
    return measures


def _draw_panels(
    path: Path, images: Mapping[str, NDArray], inside: NDArray[np.bool_] | None, voxel: NDArray[np.float64]
) -> None:
    """Draw the panels side by side at one scale; arrays in RAS order, `inside` not empty."""
    shape = next(iter(images.values())).shape
    extent = np.array(shape) * voxel
    low, high, center = _bounds(shape, inside)
    scale = _LONGEST_PIXELS / extent.max()
    views = [np.stack([np.zeros(3), extent], axis=1)] * len(_PLANES)
    planes = list(_PLANES)
    widths = [extent[0], extent[0], extent[1]]
    side = max(float(((high - low) * voxel)[:2].max()) * ZOOM_FACTOR, _DETAIL_SMALLEST_MM)
    if side < extent[:2].min():
        planes.append(_PLANES[0])
        middle = (low + high) / 2 * voxel
        views.append(np.stack([middle - side / 2, middle + side / 2], axis=1))
        widths.append(extent[1])
    height = max(extent[1], extent[2]) * scale
    lefts = np.cumsum([0.0, *(width * scale + _GAP_PIXELS for width in widths)])
    size = np.array([lefts[-1] - _GAP_PIXELS, height * len(images) + _GAP_PIXELS * (len(images) - 1)])
    figure = Figure(figsize=tuple(size / _DPI), dpi=_DPI, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    for row, (name, image) in enumerate(images.items()):
        window = _window(image)
        bottom = size[1] - height * (row + 1) - _GAP_PIXELS * row
        for column, (plane, view) in enumerate(zip(planes, views, strict=True)):
            place = (lefts[column] / size[0], bottom / size[1], widths[column] * scale / size[0], height / size[1])
            axes = figure.add_axes(place)
            _draw_plane(axes, image, inside, plane, center, voxel, window, view)
            text = name if column == 0 else "enlarged" if column == len(_PLANES) else ""
            _annotate(axes, plane, text, shape, center)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    figure.clear()
    # A palette takes less than half of the bytes: pages have hundreds of these.
    pixels.quantize(palette=_palette(), dither=Image.Dither.NONE).save(path, format="png", optimize=True)


def _palette() -> Image.Image:
    """Palette of grays, and of the outline's and the letters' color from half mixed with black or white to pure."""
    colors = [np.repeat(np.linspace(0, 255, _GRAYS), 3).reshape(-1, 3)]
    for name in (TRUTH_COLOR, _LETTER_COLOR):
        pure = np.array(to_rgb(name)) * 255
        share = np.linspace(0.5, 1, _SHADES)[:, None]
        colors += [pure * share, pure * share + 255 * (1 - share)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(colors).round().astype(np.uint8).tobytes())
    return palette


def _bounds(
    shape: Sequence[int], inside: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, ...]]:
    """First voxel of the mask's box, the one after its last, and the mask's voxel nearest to its center of mass."""
    if inside is None:
        return np.zeros(3, np.int64), np.array(shape), tuple(size // 2 for size in shape)
    voxels = np.argwhere(inside)
    nearest = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return voxels.min(axis=0), voxels.max(axis=0) + 1, tuple(int(index) for index in nearest)


def _window(image: NDArray) -> tuple[float, float]:
    """Intensities drawn black and white."""
    sample = np.asarray(image[::_WINDOW_STEP, ::_WINDOW_STEP, ::_WINDOW_STEP], dtype=np.float32)
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, GRAY_PERCENTILES) if finite.size else (0.0, 1.0)
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1)


def _draw_plane(
    axes: Axes,
    image: NDArray,
    inside: NDArray[np.bool_] | None,
    plane: tuple[str, int, str, str],
    center: tuple[int, ...],
    voxel: NDArray[np.float64],
    window: tuple[float, float],
    view: NDArray[np.float64],
) -> None:
    """Draw one plane in mm and the outline of the mask; `view` is what is shown of each axis."""
    axis = plane[1]
    across, up = (other for other in range(3) if other != axis)
    cut = tuple(index if at == axis else slice(None) for at, index in enumerate(center))
    gray = image[cut].T
    box = (0.0, image.shape[across] * voxel[across], 0.0, image.shape[up] * voxel[up])
    axes.imshow(gray, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", extent=box)
    if inside is not None:
        outline = np.pad(inside[cut].T.astype(np.float32), 1)  # closes it at the border
        x, y = ((np.arange(n) - 0.5) * voxel[a] for n, a in ((outline.shape[1], across), (outline.shape[0], up)))
        axes.contour(x, y, outline, levels=[0.5], colors=[TRUTH_COLOR], linewidths=0.8)
    axes.set_aspect("equal")
    axes.set_xlim(view[across][1], view[across][0])
    axes.set_ylim(view[up][0], view[up][1])


def _annotate(
    axes: Axes, plane: tuple[str, int, str, str], text: str, shape: Sequence[int], center: tuple[int, ...]
) -> None:
    """Take ticks and frame away; write the directions at two edges, the image's name and the slice."""
    axes.set_axis_off()
    _, axis, left, upper = plane
    style: dict[str, Any] = {"color": _LETTER_COLOR, "fontsize": 6, "transform": axes.transAxes}
    axes.text(0.01, 0.5, left, va="center", **style)
    axes.text(0.5, 0.99, upper, ha="center", va="top", **style)
    axes.text(0.01, 0.99, text, va="top", **{**style, "color": "white", "fontsize": 7})
    axes.text(0.99, 0.01, f"{center[axis] + 1}/{shape[axis]}", ha="right", va="bottom", **style)
