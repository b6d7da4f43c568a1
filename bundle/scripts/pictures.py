"""Pictures of one case: planes with contours of the masks and the error map, and a small one for a page of hundreds.

Drawn with matplotlib's object interface: no pyplot, no global state, no display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from scripts.data.datalist import prepared_name
from scripts.data.page import overview_path
from scripts.data.reading import open_volume
from scripts.data.volume import NiftiVolume

TRUTH_COLOR = "#ffff00"
PREDICTION_COLOR = "#00ff00"
ERROR_COLORMAP = "inferno"
ERROR_FLOOR = 0.05  # error probabilities below this are left transparent
GRAY_PERCENTILES = (0.5, 99.9)  # of the whole volume: what is drawn black and white
ZOOM_FACTOR = 2.5  # side of the zoomed view, as a multiple of the largest extent of the masks
ZOOM_SMALLEST = 60.0  # mm; least side of the zoomed view
FOOTNOTE = "Radiological convention: the patient's right is on the left. Slices count from L, P, I. Research use only."

_PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # what lies towards index 0 and towards the last index of each axis
_LETTER_COLOR = "#7fd4ff"
_LINES = {"ground truth": (TRUTH_COLOR, 2.4), "prediction": (PREDICTION_COLOR, 1.1)}  # the truth shows on both sides
_PANEL_INCHES = 2.3
_MARGIN_INCHES = (0.5, 0.55, 0.6, 0.45)  # left, right, top, bottom
_SMALLEST_WIDTH_INCHES = 7.0  # fits the legend and the footnote
_DPI = 110

# Of small pictures:
_LONGEST_PIXELS = 230  # of the longest side of a volume
_DETAIL_SMALLEST_MM = 40.0  # least side of the enlarged part
_GAP_PIXELS = 4
_SMALL_DPI = 100
_GRAYS = 40
_SHADES = 6  # of the outline's and the letters' colors, which mix with the gray below
_WINDOW_STEP = 4  # intensities are windowed by every fourth voxel along each axis


def case_figure(
    path: str | Path,
    *,
    source: np.ndarray,
    synthetic: np.ndarray | None = None,
    target: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
    error: np.ndarray | None = None,
    spacing: Sequence[float],
    title: str = "",
) -> None:
    """Draw one case: a row per plane, a column per image, contours of truth (yellow) and prediction (green).

    The planes pass through the voxel of a mask nearest to its center of mass: of the truth, else of the prediction,
    else through the middle of the volume. Where there is a mask, a first column shows the whole plane with a frame
    around the part that the other columns enlarge.

    Args:
        path: PNG to write; missing folders are made.
        source: image (X, Y, Z) in RAS orientation, as every other array, on the same grid.
        synthetic: synthetic target.
        target: real target.
        truth: tumor mask, non-zero is tumor.
        prediction: tumor mask, non-zero is tumor.
        error: probability that the coarse mask is wrong, 0 to 1, drawn over the source.
        spacing: voxel size along X, Y, Z in mm.
        title: a line above the picture, for example the case and its Dice.

    Raises:
        ValueError: arrays that are not 3-D or not on one grid, or a spacing that is not positive.
    """
    masks = {"ground truth": truth, "prediction": prediction}
    images = {"source": source, "synthetic target": synthetic, "real target": target}
    voxel = np.array([float(size) for size in spacing])
    _check_grid(Path(path), {**images, **masks, "error": error}, voxel)

    drawn = {name: (np.asarray(mask) > 0) for name, mask in masks.items() if mask is not None}
    center, view = _center(source.shape, drawn), _view(source.shape, drawn, voxel)
    columns = [name for name, image in images.items() if image is not None]
    columns += ["contours on source"] if drawn else []
    columns += ["error probability"] if error is not None else []
    zoomed = view is not None
    columns = (["whole plane"] if zoomed else []) + columns

    left, right, top, bottom = _MARGIN_INCHES
    width = max(_PANEL_INCHES * len(columns) + left + right, _SMALLEST_WIDTH_INCHES)
    height = _PANEL_INCHES * 3 + top + bottom
    figure = Figure(figsize=(width, height), facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(columns), squeeze=False)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=0.03,
        hspace=0.03,
    )
    windows = {name: _window(image) for name, image in images.items() if image is not None}
    error_image = None
    for row, (plane, axis) in enumerate(_PLANES):
        for column, name in enumerate(columns):
            axes = grid[row, column]
            shown = name if name in windows else "source"
            _draw_gray(axes, images[shown], axis, center, voxel, windows[shown])
            if name == "error probability":
                error_image = _draw_error(axes, error, axis, center, voxel)
            if name == "contours on source":
                _draw_contours(axes, drawn, axis, center, voxel)
            if name == "whole plane":
                _draw_frame(axes, view, axis)
            _set_limits(axes, axis, source.shape, voxel, None if name == "whole plane" else view)
            _label(axes, axis, letters=column == 0 or (zoomed and column == 1))
            if row == 0:
                axes.set_title(name, color="white", fontsize=10)
        position = f"{plane}\nslice {center[axis] + 1} of {source.shape[axis]}"
        place = grid[row, 0].get_position(original=True)
        middle = (place.y0 + place.y1) / 2
        figure.text(0.04 / width, middle, position, color="white", fontsize=9, rotation=90, va="center")
    if error_image is not None:
        place = grid[1, -1].get_position()
        bar_axes = figure.add_axes((1 - (right - 0.08) / width, place.y0, 0.1 / width, place.height))
        bar = figure.colorbar(error_image, cax=bar_axes)
        bar.ax.tick_params(colors="white", labelsize=8)
    _add_legend(figure, drawn, voxel)
    figure.suptitle(title, color="white", fontsize=11, y=1 - 0.08 / height, va="top")
    figure.text(1 - 0.1 / width, 0.08 / height, FOOTNOTE, color="#b0b0b0", fontsize=7, ha="right")
    save_figure(figure, path)


def overlay_figure(
    path: str | Path,
    *,
    source: np.ndarray,
    prediction: np.ndarray,
    error: np.ndarray | None = None,
    spacing: Sequence[float],
    title: str,
) -> None:
    """Draw a prediction without ground truth: source, contour of the prediction, and the error map if there is one.

    Args and errors as for `case_figure`.
    """
    case_figure(path, source=source, prediction=prediction, error=error, spacing=spacing, title=title)


def draw_case(folder: Path, case: str, modalities: Sequence[str]) -> None:
    """Draw `<case>_overview.png` in the folder that holds the prepared files of a case.

    Args:
        folder: with `<case>_<modality>.nii.gz`, and `<case>_label.nii.gz` where there is a mask.
        case: the name in these files' names.
        modalities: those to draw.

    Raises:
        CaseError: a modality that is missing or unreadable.
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
    drawn = {} if inside is None or not inside.any() else {"ground truth": inside}
    _draw_panels(path, turned, drawn, _sizes(np.asarray(affine), turn))


def read_volume(path: str | Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a 3-D scan, mask or map in the order nearest to RAS.

    Returns:
        the array (X, Y, Z) and its voxel size in mm.

    Raises:
        CaseError: what `reading.open_volume` refuses.
    """
    volume = open_volume(Path(path))
    _, affine = volume.grid()
    turn = nib.io_orientation(affine)
    return nib.apply_orientation(volume.voxels(), turn), tuple(float(size) for size in _sizes(affine, turn))


def _sizes(affine: NDArray[np.float64], turn: NDArray) -> NDArray[np.float64]:
    """Voxel size in mm along the axes of a volume that is turned."""
    sizes = np.empty(3)
    sizes[turn[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    return sizes


def _draw_panels(
    path: Path, images: Mapping[str, NDArray], drawn: Mapping[str, NDArray[np.bool_]], voxel: NDArray[np.float64]
) -> None:
    """Draw the panels of a small picture side by side at one scale; arrays in RAS order."""
    shape = next(iter(images.values())).shape
    extent, center = np.array(shape) * voxel, _center(shape, drawn)
    whole = np.stack([np.zeros(3), extent], axis=1)
    panels = [(axis, whole, extent[_axes_in_plane(axis)[0]]) for _, axis in _PLANES]
    low, high = _box(drawn) if drawn else (np.zeros(3, np.int64), np.array(shape))
    side = max(float(((high - low) * voxel)[:2].max()) * ZOOM_FACTOR, _DETAIL_SMALLEST_MM)
    if side < extent[:2].min():
        middle = (low + high) / 2 * voxel
        panels.append((2, np.stack([middle - side / 2, middle + side / 2], axis=1), extent[1]))
    scale = _LONGEST_PIXELS / extent.max()
    height = max(extent[1], extent[2]) * scale
    lefts = np.cumsum([0.0, *(width * scale + _GAP_PIXELS for _, _, width in panels)])
    size = np.array([lefts[-1] - _GAP_PIXELS, height * len(images) + _GAP_PIXELS * (len(images) - 1)])
    figure = Figure(figsize=tuple(size / _SMALL_DPI), dpi=_SMALL_DPI, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    for row, (name, image) in enumerate(images.items()):
        window = _window(image[(slice(None, None, _WINDOW_STEP),) * 3].astype(np.float32))
        bottom = size[1] - height * (row + 1) - _GAP_PIXELS * row
        for column, (axis, view, width) in enumerate(panels):
            place = (lefts[column] / size[0], bottom / size[1], width * scale / size[0], height / size[1])
            axes = figure.add_axes(place)
            _draw_gray(axes, image, axis, center, voxel, window, interpolation=None)
            _draw_contours(axes, drawn, axis, center, voxel, linewidth=0.8)
            _set_limits(axes, axis, shape, voxel, view)
            text = name if column == 0 else "enlarged" if column == len(_PLANES) else ""
            _annotate(axes, axis, text, f"{center[axis] + 1}/{shape[axis]}")
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    figure.clear()
    # A palette takes less than half of the bytes: pages have hundreds of these.
    pixels.quantize(palette=_palette(), dither=Image.Dither.NONE).save(path, format="png", optimize=True)


def _annotate(axes: Axes, axis: int, text: str, position: str) -> None:
    """Take ticks and frame away; write the directions at two edges, the image's name and the slice."""
    axes.set_axis_off()
    across, up = _axes_in_plane(axis)
    style: dict[str, Any] = {"color": _LETTER_COLOR, "fontsize": 6, "transform": axes.transAxes}
    axes.text(0.01, 0.5, _LETTERS[across][1], va="center", **style)
    axes.text(0.5, 0.99, _LETTERS[up][1], ha="center", va="top", **style)
    axes.text(0.01, 0.99, text, va="top", **{**style, "color": "white", "fontsize": 7})
    axes.text(0.99, 0.01, position, ha="right", va="bottom", **style)


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


def _check_grid(path: Path, arrays: Mapping[str, np.ndarray | None], voxel: np.ndarray) -> None:
    shapes = {name: np.shape(array) for name, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1 or len(shapes["source"]) != 3:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{path}: found shapes {found}; expected one 3-D grid. Resample all to the grid of the source."
        )
    if voxel.shape != (3,) or not (np.isfinite(voxel) & (voxel > 0)).all():
        raise ValueError(f"{path}: found spacing {voxel.tolist()}; expected three positive numbers in mm.")


def _center(shape: tuple[int, ...], masks: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Return the voxel of the first non-empty mask nearest to its center of mass, else the middle of the volume."""
    for mask in masks.values():
        if mask.any():
            voxels = np.argwhere(mask)
            nearest = np.square(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()
            return tuple(int(index) for index in voxels[nearest])
    return tuple(size // 2 for size in shape)


def _view(shape: tuple[int, ...], masks: Mapping[str, np.ndarray], voxel: np.ndarray) -> np.ndarray | None:
    """Return the corners, in mm, of the cube to enlarge: array (3, 2), or None where there is nothing to enlarge."""
    if not any(mask.any() for mask in masks.values()):
        return None
    low, high = (corner * voxel for corner in _box(masks))
    extent = np.array(shape) * voxel
    side = max(float((high - low).max()) * ZOOM_FACTOR, ZOOM_SMALLEST)
    if side >= extent.max():
        return None
    # A volume thinner than the cube is shown whole along that axis, with the cube centered on it.
    inside = np.clip((low + high - side) / 2, 0, np.maximum(extent - side, 0))
    start = np.where(extent > side, inside, (extent - side) / 2)
    return np.stack([start, start + side], axis=1)


def _box(masks: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first voxel of the box around masks that are not all empty, and the one after its last."""
    voxels = np.argwhere(np.logical_or.reduce(list(masks.values())))
    return voxels.min(axis=0), voxels.max(axis=0) + 1


def _axes_in_plane(axis: int) -> tuple[int, int]:
    """Return the array axes drawn across and upwards in the plane normal to `axis`."""
    across, up = (other for other in range(3) if other != axis)
    return across, up


def _slice(array: Any, axis: int, center: tuple[int, ...]) -> np.ndarray:
    """Return the plane through the center, rows upwards and columns across."""
    return np.take(np.asarray(array), center[axis], axis=axis).T


def _extent(plane: np.ndarray, axis: int, voxel: np.ndarray) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of a plane in mm."""
    across, up = _axes_in_plane(axis)
    return 0.0, plane.shape[1] * float(voxel[across]), 0.0, plane.shape[0] * float(voxel[up])


def _window(image: np.ndarray) -> tuple[float, float]:
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, GRAY_PERCENTILES) if finite.size else (0.0, 1.0)
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1)


def _draw_gray(
    axes: Axes,
    image: Any,
    axis: int,
    center: tuple[int, ...],
    voxel: np.ndarray,
    window: tuple[float, float],
    *,
    interpolation: str | None = "bilinear",
) -> None:
    plane = _slice(image, axis, center)
    axes.imshow(
        plane,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        extent=_extent(plane, axis, voxel),
        interpolation=interpolation,
    )


def _draw_error(axes: Axes, error: Any, axis: int, center: tuple[int, ...], voxel: np.ndarray) -> Any:
    """Draw a plane of the error probability over what is there, transparent where it is low."""
    plane = _slice(error, axis, center)
    return axes.imshow(
        np.ma.masked_less(plane, ERROR_FLOOR),
        cmap=ERROR_COLORMAP,
        vmin=0,
        vmax=1,
        alpha=0.8,
        origin="lower",
        extent=_extent(plane, axis, voxel),
        interpolation="nearest",
    )


def _draw_contours(
    axes: Axes,
    masks: Mapping[str, np.ndarray],
    axis: int,
    center: tuple[int, ...],
    voxel: np.ndarray,
    *,
    linewidth: float | None = None,
) -> None:
    """Draw the outlines of the masks, as wide as `_LINES` says where no width is given."""
    across, up = _axes_in_plane(axis)
    for name, mask in masks.items():
        plane = np.pad(_slice(mask, axis, center).astype(float), 1)  # closes outlines at the border of the volume
        if plane.any():
            x, y = ((np.arange(n) - 0.5) * voxel[a] for n, a in ((plane.shape[1], across), (plane.shape[0], up)))
            color, width = _LINES[name]
            axes.contour(x, y, plane, levels=[0.5], colors=[color], linewidths=linewidth or width)


def _draw_frame(axes: Axes, view: Any, axis: int) -> None:
    across, up = _axes_in_plane(axis)
    (left, right), (bottom, top) = view[across], view[up]
    axes.add_patch(
        Rectangle(
            (left, bottom), right - left, top - bottom, fill=False, edgecolor="white", linestyle="--", linewidth=0.9
        )
    )


def _set_limits(axes: Axes, axis: int, shape: tuple[int, ...], voxel: np.ndarray, view: np.ndarray | None) -> None:
    """Show the whole plane or the enlarged part, equal in mm, with the patient's right or front on the left."""
    limits = np.stack([np.zeros(3), np.array(shape) * voxel], axis=1) if view is None else view
    across, up = _axes_in_plane(axis)
    axes.set_aspect("equal")
    axes.set_xlim(limits[across][1], limits[across][0])
    axes.set_ylim(limits[up][0], limits[up][1])


def _label(axes: Axes, axis: int, *, letters: bool) -> None:
    """Take ticks and frame away and write the directions at the edges."""
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if letters:
        across, up = _axes_in_plane(axis)
        style: dict[str, Any] = {"color": _LETTER_COLOR, "fontsize": 8, "ha": "center", "va": "center"}
        for x, y, letter in (
            (0.04, 0.5, _LETTERS[across][1]),
            (0.96, 0.5, _LETTERS[across][0]),
            (0.5, 0.96, _LETTERS[up][1]),
            (0.5, 0.04, _LETTERS[up][0]),
        ):
            axes.text(x, y, letter, transform=axes.transAxes, **style).set_path_effects(
                [withStroke(linewidth=2, foreground="black")]
            )


def _add_legend(figure: Figure, masks: Mapping[str, np.ndarray], voxel: np.ndarray) -> None:
    handles = []
    for name, mask in masks.items():
        milliliters = mask.sum() * float(np.prod(voxel)) / 1000
        text = f"{name} ({milliliters:.2f} mL)" if mask.any() else f"{name} (empty)"
        color, width = _LINES[name]
        handles.append(Line2D([], [], color=color, linewidth=width, label=text))
    if handles:
        style: dict[str, Any] = {"fontsize": 9, "facecolor": "black", "edgecolor": "black", "labelcolor": "white"}
        figure.legend(handles=handles, loc="lower left", ncols=len(handles), borderaxespad=0, **style)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a PNG and frees the figure; missing folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, format="png")
    figure.clear()
