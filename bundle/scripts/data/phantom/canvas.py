"""A tissue map to paint on, in millimeters, and the shapes to paint.

Shapes live in head coordinates (RAS+ mm: x right, y anterior, z superior). The canvas turns and smoothly warps them, so
that nothing comes out as the solid it was given as.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.data.phantom.mri import ID

Vector = Sequence[float] | NDArray[np.float64]  # Three numbers, X, Y, Z.
Array = NDArray[np.float32]
Box = tuple[slice, slice, slice]

_LATTICE_MM = 132.0  # Random fields are defined on -this..this mm, whatever the grid, so that grids show the same head.
_THICK_MM = 1.2  # Image slices from here on are painted as several.
_SLAB_VOXELS = 600_000  # Shapes are evaluated in slabs that fit into the processor's cache.


@dataclass(frozen=True)
class Shape:
    """A solid in head coordinates.

    Args:
        low: smallest X, Y, Z of a box around it, mm.
        high: largest X, Y, Z of that box.
        depth: of points (x, y, z), arrays: about the mm below the surface, negative outside.
        parts: shapes whose union it is, to be painted one by one; none: painted as a whole.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    depth: Callable[[Array, Array, Array], Array]
    parts: tuple[Shape, ...] = ()


def ellipsoid(center: Vector, radii: Vector, turn: float = 0.0) -> Shape:
    """An ellipsoid; `turn` in degrees about z, counterclockwise seen from above."""
    c, r = np.asarray(center, np.float32), np.asarray(radii, np.float32)
    cos, sin = np.float32(np.cos(np.radians(turn))), np.float32(np.sin(np.radians(turn)))
    reach = np.array((np.hypot(r[0] * cos, r[1] * sin), np.hypot(r[0] * sin, r[1] * cos), r[2]), dtype=float)

    def depth(x: Array, y: Array, z: Array) -> Array:
        x, y, z = x - c[0], y - c[1], z - c[2]
        if turn:
            x, y = x * cos + y * sin, y * cos - x * sin
        x *= 1 / r[0]
        y *= 1 / r[1]
        z *= 1 / r[2]
        x *= x
        y *= y
        z *= z
        x += y
        x += z
        return (1 - np.sqrt(x, out=x)) * r.min()

    return Shape(c - reach, c + reach, depth)


def tube(points: Sequence[Vector], radii: float | Sequence[float]) -> Shape:
    """A tube along a polyline, its radius linear between the points (one number: constant), its ends round."""
    r = np.broadcast_to(np.asarray(radii, dtype=float), len(points))
    parts = [_capsule(*ends) for ends in zip(points[:-1], points[1:], r[:-1], r[1:], strict=True)]
    low, high = np.min([part.low for part in parts], 0), np.max([part.high for part in parts], 0)
    return Shape(low, high, either(*parts).depth if len(parts) > 1 else parts[0].depth, tuple(parts))


def _capsule(start: Vector, end: Vector, start_radius: float, end_radius: float) -> Shape:
    """One straight piece of a tube."""
    a, b = np.asarray(start, np.float32), np.asarray(end, np.float32)
    d, most = b - a, max(start_radius, end_radius)
    squared_length = max(np.float32(d @ d), np.float32(1e-6))
    first, growth = np.float32(start_radius), np.float32(end_radius - start_radius)

    def depth(x: Array, y: Array, z: Array) -> Array:
        x, y, z = x - a[0], y - a[1], z - a[2]
        dot = x * d[0]
        dot += y * d[1]
        dot += z * d[2]
        along = np.clip(dot / squared_length, 0, 1)
        distance = x * x
        distance += y * y
        distance += z * z
        distance += along * (along * squared_length - 2 * dot)
        np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
        return first + along * growth - distance

    return Shape(np.minimum(a, b).astype(float) - most, np.maximum(a, b).astype(float) + most, depth)


def halfspace(point: Vector, normal: Vector) -> Shape:
    """All that lies on the side of the plane that `normal` points away from; only to cut others with."""
    p, n = np.asarray(point, np.float32), np.asarray(normal, np.float32)
    n = n / np.linalg.norm(n)
    everywhere = np.full(3, 1e4)
    return Shape(-everywhere, everywhere, lambda x, y, z: (p[0] - x) * n[0] + (p[1] - y) * n[1] + (p[2] - z) * n[2])


def both(*shapes: Shape) -> Shape:
    """What lies in all of the shapes."""
    low, high = np.max([s.low for s in shapes], 0), np.min([s.high for s in shapes], 0)

    def depth(x: Array, y: Array, z: Array) -> Array:
        result = shapes[0].depth(x, y, z)
        for shape in shapes[1:]:
            result = np.minimum(result, shape.depth(x, y, z))
        return result

    return Shape(low, high, depth)


def either(*shapes: Shape, smooth: float = 0.0) -> Shape:
    """What lies in any of the shapes; `smooth` mm rounds the seams between them."""
    low, high = np.min([s.low for s in shapes], 0) - smooth, np.max([s.high for s in shapes], 0) + smooth

    def depth(x: Array, y: Array, z: Array) -> Array:
        result = shapes[0].depth(x, y, z)
        for shape in shapes[1:]:
            other = shape.depth(x, y, z)
            if smooth:  # Polynomial smooth maximum.
                blend = np.maximum(smooth - np.abs(result - other), 0)
                result = np.maximum(result, other) + blend * blend * np.float32(0.25 / smooth)
            else:
                result = np.maximum(result, other)
        return result

    return Shape(low, high, depth)


def grown(shape: Shape, by: float) -> Shape:
    """The shape with its surface moved outward by `by` mm (inward if negative)."""
    return Shape(shape.low - by, shape.high + by, lambda x, y, z: shape.depth(x, y, z) + np.float32(by))


class Canvas:
    """A map of tissue ids on a grid that is finer than the image's along z.

    Args:
        rng: decides the random fields; each field takes one draw from it, whatever the grid.
        shape: of the image, voxels (X, Y, Z).
        spacing: of the image, mm.
        center: of the grid, mm.
        turn: of the head, degrees about X, Y, Z.
        warp: (correlation length, amplitude), both mm, of the random displacements; their sum warps the head.

    Attributes:
        sub: slices to paint per image slice, odd, so that none of an image's voxels is half full: 3, or 1 where the
            image's slices are thinner than 1.2 mm.
        tissue: uint8 (X, Y, Z * sub), ids of `mri.ID`; starts as air.
        coordinates: head coordinates x, y, z of each painted voxel, float32, shaped as `tissue`.
        affine: of the image, voxel index to mm.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        shape: Sequence[int],
        spacing: Sequence[float],
        center: Vector,
        *,
        turn: Vector = (0.0, 0.0, 0.0),
        warp: Sequence[tuple[float, float]] = ((25.0, 1.6), (9.0, 0.45)),
    ) -> None:
        self.rng, self.spacing = rng, np.asarray(spacing, dtype=float)
        self.sub = 3 if spacing[2] >= _THICK_MM else 1
        self.tissue = np.zeros((shape[0], shape[1], shape[2] * self.sub), dtype=np.uint8)
        self.affine = np.diag([*self.spacing, 1.0])
        self.affine[:3, 3] = np.asarray(center) - (np.asarray(shape) - 1) / 2 * self.spacing
        self.axes = [self.affine[i, 3] + np.arange(shape[i]) * self.spacing[i] for i in range(3)]
        thin = self.spacing[2] / self.sub
        first = self.axes[2][0] - (self.sub - 1) / 2 * thin
        self.fine_axes = [*self.axes[:2], first + np.arange(shape[2] * self.sub) * thin]
        self._rotation = _rotation(turn)
        self._margin = np.zeros(3)
        x, y, z = np.meshgrid(*(axis.astype(np.float32) for axis in self.fine_axes), indexing="ij", sparse=True)
        self.coordinates: list[Array] = []
        self._relaxed: list[tuple[Box, list[Array]]] = []
        for row, weights in enumerate(self._rotation):
            moved = np.zeros(self.tissue.shape, dtype=np.float32)
            for scale, amplitude in warp:
                moved += self.field(scale, amplitude)
            self._margin[row] = float(np.abs(moved).max()) + 0.5
            for weight, axis in zip(weights.astype(np.float32), (x, y, z), strict=True):
                moved += weight * axis
            self.coordinates.append(moved)
        self.roughness = self.field(5.0)

    def field(
        self,
        scale: float,
        amplitude: float = 1.0,
        *,
        box: Box | None = None,
        fine: bool = True,
        rng: np.random.Generator | None = None,
    ) -> Array:
        """Smooth random field of mean 0 and standard deviation `amplitude`; the same head's at any grid.

        Args:
            scale: correlation length, mm.
            amplitude: standard deviation.
            box: evaluate only there (indices of `tissue`); default everywhere.
            fine: on the painted grid; otherwise on the image's (then no box).
            rng: decides it; default the canvas's.
        """
        key = int((rng or self.rng).integers(2**63))
        half = int(np.ceil(_LATTICE_MM / scale)) + 4
        weights, spans = [], []
        for index, axis in enumerate(self.fine_axes if fine else self.axes):
            inside = np.clip(axis if box is None else axis[box[index]], -_LATTICE_MM, _LATTICE_MM)
            first, last = (inside[0], inside[-1]) if len(inside) else (0.0, 0.0)
            spans.append(range(int(first // scale) + half - 3, int(last // scale) + half + 5))
            knots = (np.asarray(spans[-1]) - half) * scale
            kernel = np.exp(-0.5 * ((inside[:, None] - knots) / (0.7 * scale)) ** 2)
            weights.append((kernel / np.linalg.norm(kernel, axis=1, keepdims=True)).astype(np.float32))
        size, (rows, columns) = 2 * half + 1, (slice(span.start, span.stop) for span in spans[1:])
        # Each plane of the lattice has a seed of its own, so that a small grid need not draw all of them.
        planes = (np.random.default_rng([key, i]).standard_normal((size, size), dtype=np.float32) for i in spans[0])
        coarse = np.stack([plane[rows, columns] for plane in planes])
        values = np.tensordot(np.float32(amplitude) * weights[0], coarse, 1)  # X b c
        values = np.matmul(weights[1], values)  # X Y c
        return values @ weights[2].T

    def box(self, shape: Shape, margin: float = 0.0) -> Box:
        """Slices of `tissue` that hold the shape, however it is turned and warped."""
        middle, half = (shape.low + shape.high) / 2, (shape.high - shape.low) / 2
        place, slack = self._rotation.T @ middle, self._margin
        if not self._relaxed:  # Where the warp puts the middle; around it, a box that allows for how the warp changes.
            for _ in range(2):
                index = tuple(
                    np.clip(np.searchsorted(a, p), 0, len(a) - 1) for a, p in zip(self.fine_axes, place, strict=True)
                )
                here = np.array([axis[i] for axis, i in zip(self.fine_axes, index, strict=True)])
                moved = np.array([axis[index] for axis in self.coordinates]) - self._rotation @ here
                if np.abs(here - place).max() > 2 * self.spacing.max():
                    place = self._rotation.T @ middle  # Outside of the grid, where the warp is not known.
                    break
                place = self._rotation.T @ (middle - moved)
            else:
                slack = np.minimum(slack, 1.2 + 0.35 * half.max())
        reach = np.abs(self._rotation.T) @ (half + slack + margin)
        slices = [
            slice(*(int(i) for i in np.searchsorted(axis, (c - r, c + r))))
            for axis, c, r in zip(self.fine_axes, place, reach, strict=True)
        ]
        return slices[0], slices[1], slices[2]

    def slabs(self, box: Box) -> Iterator[Box]:
        """The box in thin slabs along X."""
        area = (box[1].stop - box[1].start) * (box[2].stop - box[2].start)
        if area <= 0:
            return
        step = max(1, _SLAB_VOXELS // area)
        for start in range(box[0].start, box[0].stop, step):
            yield slice(start, min(start + step, box[0].stop)), box[1], box[2]

    def depth(self, shape: Shape, box: Box) -> Array:
        """Depth below the shape's surface in a box of `tissue`, mm, negative outside."""
        return shape.depth(*(axis[box] for axis in self.coordinates))

    def paint(self, tissue: str, shape: Shape, *, rough: float = 0.0, only: Sequence[str] = ()) -> None:
        """Fill a shape; what is painted last wins.

        Args:
            tissue: name, of `mri.TISSUES`.
            shape: what to fill.
            rough: mm, standard deviation of an irregularity of its surface about 5 mm wide.
            only: paint just where one of these tissues is; default anywhere.
        """
        allowed = self.lookup(only) if only else None
        for part in shape.parts or (shape,):
            for slab in self.slabs(self.box(part, 3 * rough)):
                depth = self.depth(part, slab)
                if rough:
                    depth = depth + np.float32(rough) * self.roughness[slab]
                inside = depth > 0
                if allowed is not None:
                    inside &= allowed[self.tissue[slab]]
                self.tissue[slab][inside] = ID[tissue]

    def layers(self, shape: Shape, tissues: Sequence[tuple[float, str]], *, only: Sequence[str] = ()) -> None:
        """Fill a shape with shells: each tissue from its depth in mm inward, up to where the next one begins."""
        allowed = self.lookup(only) if only else None
        for slab in self.slabs(self.box(shape)):
            depth = self.depth(shape, slab)
            region = self.tissue[slab]
            free = allowed[region] if allowed is not None else None
            for start, tissue in tissues:
                inside = depth > start
                region[inside if free is None else inside & free] = ID[tissue]

    def push(self, center: Vector, radius: float, strength: float) -> None:
        """Squeeze what is painted from now on out of a ball, as a mass does to the soft tissue around it.

        Args:
            center: of the ball, head coordinates, mm.
            radius: of the ball, mm; the effect ends at 2.2 radii.
            strength: from 0 (none) to 1.
        """
        reach = 2.2 * radius
        box = self.box(ellipsoid(center, (reach,) * 3))
        self._margin = self._margin + (0 if self._relaxed else 0.7 * strength * radius)
        self._relaxed.append((box, [axis[box].copy() for axis in self.coordinates]))
        offsets = [axis[box] - np.float32(c) for axis, c in zip(self.coordinates, center, strict=True)]
        squared = offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2
        fall = np.clip(1 - squared / np.float32(reach**2), 0, None) ** 2
        pull = np.minimum(np.float32(strength * radius) * fall / np.sqrt(squared + 1), 0.95)
        for axis, offset in zip(self.coordinates, offsets, strict=True):
            axis[box] -= offset * pull

    def relax(self) -> None:
        """Undo every push: what is painted from now on is not squeezed."""
        for box, originals in reversed(self._relaxed):
            for axis, original in zip(self.coordinates, originals, strict=True):
                axis[box] = original
        self._relaxed.clear()

    def put(self, tissue: str, box: Box, inside: NDArray[np.bool_], only: Sequence[str] = ()) -> None:
        """Fill where `inside`, a mask of the box; with `only`, just where one of those tissues is."""
        if only:
            inside = inside & self.lookup(only)[self.tissue[box]]
        self.tissue[box][inside] = ID[tissue]

    @staticmethod
    def lookup(names: Sequence[str]) -> NDArray[np.bool_]:
        """Table of 256 booleans: whether a tissue id is one of the names."""
        table = np.zeros(256, dtype=bool)
        table[[ID[name] for name in names]] = True
        return table

    def mean(self, values: Array) -> Array:
        """Image (X, Y, Z) of a quantity given by tissue id, averaged over the painted slices of each image slice."""
        result = values[self.tissue[:, :, :: self.sub]]
        for index in range(1, self.sub):
            result += values[self.tissue[:, :, index :: self.sub]]
        result *= np.float32(1 / self.sub)
        return result

    def mask(self, *names: str) -> NDArray[np.bool_]:
        """Where these tissues together fill at least half of an image voxel."""
        return self.mean(self.lookup(names)[: len(ID)].astype(np.float32)) >= 0.5


def _rotation(degrees: Vector) -> NDArray[np.float64]:
    """Rotation matrix from image to head coordinates, about X, then Y, then Z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(np.asarray(degrees, dtype=float))):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
