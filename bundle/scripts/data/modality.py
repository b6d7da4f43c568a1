"""Which modality a scan looks like, by its fluid and its white matter; said in notes, and refused where it is certain.

A brain is looked at alone, so a whole head and a skull-stripped one are judged alike. Measured on patients by the
repository's benchmark `modalities.py`, which also prints the numbers of the model anew; figures: docs/data.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import rankdata

from scripts.data.plausibility import (
    AIR_FRACTION,
    block_mean,
    coarse_factors,
    fill_slices,
    is_skull_stripped,
    largest_part,
)
from scripts.data.volume import CaseError

# What one scan can be told to be. T1 is T1 with or without contrast agent: only the two together can be told apart.
LOOKS = ("T1", "T2", "FLAIR")
LOOK_OF = {"T1": "T1", "ceT1": "T1", "T2": "T2", "FLAIR": "FLAIR"}

# --- The brain of a scan

TISSUE_FRACTION = 0.3  # Of the median of what is not air, above which it is tissue and neither bone nor air.
CORE_MM = 8.0  # Depth in tissue at which the skull has parted brain and scalp; the largest part there is the brain.
STRIPPED_SHARE = 0.75  # The brain's share of what is not 0: 0.88 at least in 140 stripped scans, 0.55 at most in heads.
EDGE_MM = 5.0  # Below the brain's surface: meninges and partial volume end there.
LEAST_VOXELS = 200  # Of about 2 mm, below which nothing is said.

# --- The three features

SMALL_MM = 8.0  # Standard deviation of the surroundings against which sulci and ventricles stand out.
TAILS = (2.0, 98.0)  # Percentiles that are called darkest and brightest.
BRIGHT = 1.4  # Times the median, above which a voxel is bright: fluid, edema and lesions on T2.
MIDDLE = (15.0, 85.0)  # Percentiles between which tissue is neither fluid nor vessel.
LEAST_INTENSITY = 0.05  # Of the median; keeps logarithms finite.

# --- The model: a row per look, a column per feature; the inverse of the shared covariance; degrees of freedom.

CENTERS = np.array([[-0.212, 0.046, 0.272], [0.165, 0.389, -0.098], [-0.247, 0.233, -0.08]])
PRECISION = np.array([[46.6, -5.6, 2.4], [-5.6, 181.3, -14.2], [2.4, -14.2, 67.4]])
FREEDOM = 4.0  # Of Student's t: brains that are unlike all of those measured are not certain to be anything.

# --- What is said

LEAST_SWAPPED = 0.0  # By how much both of two scans look like the other, as a difference of log likelihoods.
LEAST_NOTED = 1.0  # By how much one scan by itself looks like something else.
LEAST_NAMED = 1.0  # And between the two things that it may be instead.
MOST_CONTRAST = -0.3  # `contrast` of ceT1 over T1, below which the two look exchanged.


@dataclass(frozen=True)
class Look:
    """What one scan looks like.

    Args:
        features: fluid, bright share, white matter; see `look`.
        likelihood: logarithm for each of `LOOKS`, without a constant.
        stripped: whether it shows the brain alone.
    """

    features: tuple[float, float, float]
    likelihood: Mapping[str, float]
    stripped: bool

    def margin(self, modality: str, other: str | None = None) -> float:
        """How much more it looks like a modality than like another, or like whatever else it looks like most."""
        own = LOOK_OF[modality]
        others = [self.likelihood[name] for name in LOOKS if name != own] if other is None else []
        return self.likelihood[own] - max(others or [self.likelihood[LOOK_OF[str(other)]]])


def look(voxels: NDArray, *, spacing: Sequence[float]) -> Look | None:
    """Judges one scan by three features of its brain, on a grid of about 2 mm.

    - Fluid: whether what stands out from its surroundings is bright (T2: sulci and ventricles) or dark (T1, FLAIR), as
      the skewness of their logarithm, -1 to 1. Neither a coil's shading nor a large lesion counts.
    - Bright share: the root of the share of voxels above 1.4 times the median.
    - White matter: the rank correlation of brightness and depth in what is neither very dark nor very bright. White
      matter is deep and brighter than gray matter on T1, and darker on T2 and FLAIR.

    Args:
        voxels: (X, Y, Z) in any units, of a head, a brain, or a part of one.
        spacing: mm (X, Y, Z).

    Returns:
        None where too little tissue is seen to tell.
    """
    blocks, sizes = _coarse(voxels, spacing)
    brain, stripped = _brain(blocks, sizes)
    found = _features(blocks, brain, sizes)
    return None if found is None else Look(found, likelihood(found), stripped)


def likelihood(
    features: Sequence[float], *, centers: NDArray = CENTERS, precision: NDArray = PRECISION
) -> dict[str, float]:
    """Logarithm of the likelihood of each of `LOOKS`, without a constant: Student's t, one covariance for all."""
    away = np.asarray(features) - centers
    distance = np.einsum("ij,jk,ik->i", away, precision, away)
    logarithm = -(FREEDOM + len(features)) / 2 * np.log1p(distance / FREEDOM)
    return dict(zip(LOOKS, logarithm.tolist(), strict=True))


def contrast(cet1: NDArray, t1: NDArray, *, spacing: Sequence[float]) -> float | None:
    """Whether what differs most between two scans is brighter on the first: vessels, meninges and tumor on ceT1.

    Args:
        cet1, t1: on one grid.
        spacing: mm (X, Y, Z).

    Returns:
        The skewness of the logarithm of their ratio, -1 to 1, above 0 in the right order; None as for `look`.
    """
    first, sizes = _coarse(cet1, spacing)
    second, _ = _coarse(t1, spacing)
    brain, _ = _brain(second, sizes)
    deep = brain & (_depth(brain, sizes) > EDGE_MM)
    if np.count_nonzero(deep) < LEAST_VOXELS:
        return None
    return _skewness((_logarithm(first, brain) - _logarithm(second, brain))[deep], (1.0, 99.0))


def swap_score(t2: Look, other: Look, name: str) -> float:
    """Below 0 where what was given as T2 looks more like `name`, and what was given as that like T2 most of all."""
    return max(t2.margin("T2", name), -other.margin("T2"))


def swapped_with(looks: Mapping[str, Look | None]) -> dict[str, float]:
    """The scans with which T2 looks swapped, and the score of each; one scan alone never decides.

    Args:
        looks: modality to what its scan looks like.
    """
    t2 = looks.get("T2")
    scores = {n: swap_score(t2, other, n) for n, other in looks.items() if t2 and other and LOOK_OF[n] != "T2"}
    return {name: score for name, score in scores.items() if score < -LEAST_SWAPPED}


@dataclass(frozen=True)
class Findings:
    """What was found out about the modalities of a case.

    Args:
        errors: pairs of skull-stripped scans that look swapped.
        notes: sentences about everything else that looks odd; whole heads never give more than notes.
        shown: short name to short text.
    """

    errors: list[CaseError]
    notes: list[str]
    shown: dict[str, str]


def examine(scans: Mapping[str, tuple[NDArray, Sequence[float]]]) -> Findings:
    """Whether the scans of a case look like what they were given as.

    Nothing is said of T1 against FLAIR, which one scan does not tell for certain.

    Args:
        scans: modality to its voxels (X, Y, Z) and spacing in mm; grids may differ.
    """
    looks = {name: look(voxels, spacing=spacing) for name, (voxels, spacing) in scans.items()}
    swapped = swapped_with(looks)
    errors, notes = [], []
    for name, score in swapped.items():
        found = f"T2 and {name} look swapped (score {score:.2f})"
        expected = f"fluid bright on T2 and dark on {name} (score at least {0 - LEAST_SWAPPED:g})"
        if all(seen is not None and seen.stripped for seen in (looks["T2"], looks[name])):
            errors.append(CaseError("modality", found, expected))
        else:
            notes.append(_swapped(found, expected))
    for name, seen in looks.items():
        if seen is None or name in swapped or (name == "T2" and swapped):
            continue
        if name == "T2" and seen.margin("T2") < -LEAST_NOTED:
            notes.append(_note(name, f"does not look like a T2 scan, but like {_named(seen)}"))
        elif name != "T2" and seen.margin("T2") > LEAST_NOTED:
            notes.append(_note(name, "looks like a T2 scan (fluid is bright)"))
    if {"T1", "ceT1"} <= scans.keys() - swapped.keys() and scans["T1"][0].shape == scans["ceT1"][0].shape:
        agent = contrast(scans["ceT1"][0], scans["T1"][0], spacing=scans["T1"][1])
        if agent is not None and agent < MOST_CONTRAST:
            notes.append(_swapped(f"T1 and ceT1 look swapped (contrast {agent:.2f})", "vessels brighter on ceT1"))
    shown = {f"{name} looks like": _shown(seen, name) for name, seen in looks.items() if seen is not None}
    return Findings(errors, notes, shown)


def modality_notes(scans: Mapping[str, tuple[NDArray, Sequence[float]]]) -> list[str]:
    """What `examine` finds, as sentences for whoever reads the result: the same in the log, the tables and the app."""
    found = examine(scans)
    return [_swapped(error.found, error.expected) for error in found.errors] + found.notes


def _note(name: str, found: str) -> str:
    return f"Check the scan: what was given as {name} {found}. On another kind of scan the result means nothing."


def _swapped(found: str, expected: str) -> str:
    return f"Check the scans: {found}; expected {expected}. On swapped scans the result means nothing."


def _shown(seen: Look, name: str) -> str:
    best = max(LOOKS, key=lambda look: seen.likelihood[look])
    return f"{best} (score of {LOOK_OF[name]} {seen.margin(name):.2f}, above 0 where it looks like that most)"


def _named(seen: Look) -> str:
    """What a scan that is no T2 looks like, if that is known."""
    margin = seen.margin("T1", "FLAIR")
    if abs(margin) < LEAST_NAMED:
        return "T1 or FLAIR (fluid is not the brightest)"
    return "T1 (fluid is dark, white matter bright)" if margin > 0 else "FLAIR (fluid and white matter are dark)"


def _coarse(voxels: NDArray, spacing: Sequence[float]) -> tuple[NDArray, list[float]]:
    """Means of blocks of about 2 mm, above the least of them, and their size in mm."""
    factors = coarse_factors(spacing)
    blocks = block_mean(voxels, factors)
    return blocks - float(blocks.min()), [step * factor for step, factor in zip(spacing, factors, strict=True)]


def _brain(blocks: NDArray, sizes: Sequence[float]) -> tuple[NDArray[np.bool_], bool]:
    """The brain, and whether it is all that is there.

    It is the largest part of tissue that is thick, grown back to its surface, holes filled; where that is nearly all
    that is not 0, the scan is skull-stripped, and all of that is brain. None of the voxels where nothing is thick.
    """
    air = AIR_FRACTION * float(np.percentile(blocks, 99))
    bright = blocks > air
    if not bright.any():
        return bright, False
    tissue = blocks > TISSUE_FRACTION * float(np.median(blocks[bright]))
    parts, count = ndimage.label(_depth(tissue, sizes) > CORE_MM)
    if count == 0:
        return np.zeros_like(tissue), False
    core = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    brain = fill_slices((ndimage.distance_transform_edt(~core, sampling=sizes) <= CORE_MM) & tissue)
    inside = blocks > 0
    stripped = is_skull_stripped(blocks) and np.count_nonzero(brain) >= STRIPPED_SHARE * np.count_nonzero(inside)
    return (largest_part(inside), True) if stripped else (brain, False)


def _depth(mask: NDArray[np.bool_], sizes: Sequence[float]) -> NDArray:
    """Distance to the surface, mm; the border of the grid is no surface."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    padded = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"), sampling=sizes)
    return padded[1:-1, 1:-1, 1:-1]


def _logarithm(blocks: NDArray, brain: NDArray[np.bool_]) -> NDArray:
    """Logarithm of the intensity over the brain's median; 0 outside of the brain."""
    median = float(np.median(blocks[brain]))
    if median <= 0:
        return np.zeros(blocks.shape)
    return np.where(brain, np.log(np.maximum(blocks, LEAST_INTENSITY * median) / median), 0.0)


def _features(blocks: NDArray, brain: NDArray[np.bool_], sizes: Sequence[float]) -> tuple[float, float, float] | None:
    depth = _depth(brain, sizes)
    deep = brain & (depth > EDGE_MM)
    if np.count_nonzero(deep) < LEAST_VOXELS:
        return None
    values = _logarithm(blocks, brain)
    width = [SMALL_MM / size for size in sizes]
    share = np.maximum(ndimage.gaussian_filter(brain.astype(np.float32), width), 1e-3)
    fluid = _skewness((values - ndimage.gaussian_filter(values, width) / share)[deep], TAILS)
    inside, depth = values[deep], depth[deep]
    bright = float(np.mean(inside > np.median(inside) + np.log(BRIGHT)))
    low, high = np.percentile(inside, MIDDLE)
    middle = (inside > low) & (inside < high)
    return fluid, bright**0.5, _rank_correlation(inside[middle], depth[middle])


def _skewness(values: NDArray, tails: tuple[float, float]) -> float:
    """How much further the brightest lie from the median than the darkest, over the distance of both; -1 to 1."""
    low, median, high = np.percentile(values, (tails[0], 50, tails[1]))
    return float((high + low - 2 * median) / (high - low)) if high > low else 0.0


def _rank_correlation(first: NDArray, second: NDArray) -> float:
    """Spearman's; 0 where one of them is constant."""
    if first.size == 0 or np.ptp(first) == 0 or not np.ptp(second) > 0:
        return 0.0
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
