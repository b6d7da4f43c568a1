"""Arrays and a voxel spacing in, numbers out: how good a mask is, and how good a synthetic image is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage
from scipy.stats import mannwhitneyu

logger = logging.getLogger(__name__)

Array: TypeAlias = np.ndarray | torch.Tensor

DATA_RANGE = 2.0  # images lie in [-1, 1]
RANGE_TOLERANCE = 1e-3  # how far interpolation and reduced precision may leave [-1, 1]
LOCAL_MARGIN = 5  # voxels added on each side of the box around the truth, for the local PSNR and SSIM
SSIM_WINDOW = 7  # voxels along each axis
SSIM_SIGMA = 1.5  # voxels
BORDER_MM = 5.0  # how near to the mask's border a voxel counts as one of it, for the AUROC
PSNR_CAP = 100.0  # dB; identical images would be infinite and would make every mean over cases infinite
_SURFACE_MARGIN = 1  # voxels of background kept around both masks, so that cropping changes no surface


def segmentation_metrics(prediction: Array, truth: Array, *, spacing: Sequence[float]) -> dict[str, float]:
    """Compute Dice, ASSD, HD95 and the volumes of a binary mask and its ground truth.

    Surface voxels are mask voxels with a face neighbor outside the mask or the volume. ASSD is the mean over the
    surface voxels of both masks of the distance to the other surface; HD95 the larger of the two directed 95th
    percentiles. Both are symmetric.

    No tumor: both masks empty, Dice 1; one empty, Dice 0; the surface distances are then missing (NaN).

    Args:
        prediction: mask (X, Y, Z) of 0 and 1, on the same grid as the truth.
        truth: mask (X, Y, Z) of 0 and 1.
        spacing: voxel size along X, Y, Z in mm.

    Returns:
        dice (0 to 1), assd_mm, hd95_mm, volume_mm3 (of the prediction) and volume_truth_mm3.

    Raises:
        ValueError: values other than 0 and 1, shapes that differ or are not 3-D, or a spacing that is not positive.
    """
    prediction_mask, truth_mask = _mask(prediction, "prediction"), _mask(truth, "truth")
    _check_same_shape(prediction=prediction_mask, truth=truth_mask)
    voxel = [float(size) for size in spacing]
    if len(voxel) != 3 or not all(0 < size < np.inf for size in voxel):
        raise ValueError(
            f"spacing: found {voxel}; expected three positive numbers, the voxel size in mm along X, Y, Z."
        )

    voxels, voxels_truth = int(prediction_mask.sum()), int(truth_mask.sum())
    overlap = int((prediction_mask & truth_mask).sum())
    assd = hd95 = float("nan")
    if voxels and voxels_truth:
        box = _box(prediction_mask | truth_mask, margin=_SURFACE_MARGIN)
        first, second = _batch(prediction_mask[box].astype(np.uint8)), _batch(truth_mask[box].astype(np.uint8))
        assd = compute_average_surface_distance(
            first, second, include_background=True, symmetric=True, spacing=voxel
        ).item()
        hd95 = compute_hausdorff_distance(first, second, include_background=True, percentile=95, spacing=voxel).item()
    return {
        "dice": 2 * overlap / (voxels + voxels_truth) if voxels + voxels_truth else 1.0,
        "assd_mm": assd,
        "hd95_mm": hd95,
        "volume_mm3": voxels * float(np.prod(voxel)),
        "volume_truth_mm3": voxels_truth * float(np.prod(voxel)),
    }


def detection_metrics(
    error: Array, probability: Array, truth: Array, inside: Array, *, spacing: Sequence[float]
) -> dict[str, float]:
    """Compute how well the error map finds the voxels where the mask is wrong, and how well the mask's entropy does.

    AUROC: the chance that a wrong voxel has a higher value than a right one; 0.5 teaches nothing. It is missing (NaN)
    where no voxel is wrong or none is right. The entropy of a probability p orders voxels as -|p - 1/2| does.

    Args:
        error: error map (X, Y, Z), 0 to 1.
        probability: of the fine mask, y_f, (X, Y, Z); the mask is where it is above 1/2.
        truth: mask (X, Y, Z) of 0 and 1.
        inside: mask (X, Y, Z) of the voxels that count, the head.
        spacing: voxel size along X, Y, Z in mm.

    Returns:
        error_auroc and entropy_auroc, over all of `inside`; error_auroc_border and entropy_auroc_border, over those of
        its voxels within `BORDER_MM` of the mask's border.
    """
    given = {"error": error, "probability": probability}
    maps = {name: np.asarray(torch.as_tensor(value), dtype=np.float64) for name, value in given.items()}
    right, head = _mask(truth, "truth"), _mask(inside, "inside")
    _check_same_shape(**maps, truth=right, inside=head)
    mask = maps["probability"] > 0.5
    wrong = mask != right
    near = head & (_distance_to_border(mask, spacing) <= BORDER_MM)
    scores = {"error": maps["error"], "entropy": -np.abs(maps["probability"] - 0.5)}
    return {
        f"{name}_auroc{suffix}": _auroc(score[region], wrong[region])
        for suffix, region in (("", head), ("_border", near))
        for name, score in scores.items()
    }


def _distance_to_border(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance in mm to the nearest voxel on the mask's other side; infinite where there is none."""
    if mask.all() or not mask.any():
        return np.full(mask.shape, np.inf)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    return np.where(mask, ndimage.distance_transform_edt(mask, sampling=spacing), outside)


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """The Mann-Whitney statistic as a fraction, ties counted half."""
    n, total = int(positive.sum()), positive.size
    if n in (0, total):
        return float("nan")
    pairs = mannwhitneyu(score[positive], score[~positive], method="asymptotic").statistic
    return float(pairs / (n * (total - n)))


def synthesis_metrics(synthetic: Array, real: Array, truth: Array, *, margin: int = LOCAL_MARGIN) -> dict[str, float]:
    """Compute PSNR and SSIM of a synthetic image, over the whole volume and in the box around the tumor.

    PSNR = 10 log10(2^2 / MSE) in dB, at most `PSNR_CAP`: identical images give the cap and a warning, since a real
    synthesis never reaches it. SSIM (Wang 2004; K1 0.01, K2 0.03) has a 3-D Gaussian window of `SSIM_WINDOW` voxels
    with sigma `SSIM_SIGMA` and is averaged over the windows that lie wholly inside. Intensities are not shifted to be
    positive: where local means are near 0 the luminance term of SSIM is small, or negative if their signs differ.

    Local values are computed in the bounding box of the truth plus `margin` voxels, cut at the border of the volume
    and, where smaller than the window, grown to it. Along an axis on which the volume itself has fewer voxels than
    the window, the window shrinks to the largest odd number that fits. Without a tumor the local values are missing
    (NaN).

    Args:
        synthetic: image (X, Y, Z) in [-1, 1].
        real: image (X, Y, Z) in [-1, 1].
        truth: tumor mask (X, Y, Z) of 0 and 1.
        margin: voxels added on each side of the box.

    Returns:
        psnr_global and psnr_local in dB; ssim_global and ssim_local, at most 1.

    Raises:
        ValueError: images not finite or out of [-1, 1], a mask of other values than 0 and 1, shapes that differ or are
            not 3-D, or a negative margin.
    """
    synthetic_image, real_image = _image(synthetic, "synthetic"), _image(real, "real")
    mask = _mask(truth, "truth")
    _check_same_shape(synthetic=synthetic_image, real=real_image, truth=mask)
    if margin < 0:
        raise ValueError(f"margin: found {margin}; expected 0 or more voxels.")

    psnr_local = ssim_local = float("nan")
    if mask.any():
        box = _box(mask, margin=margin, smallest=SSIM_WINDOW)
        psnr_local = _psnr(synthetic_image[box], real_image[box])
        ssim_local = _ssim(synthetic_image[box], real_image[box])
    psnr_global = _psnr(synthetic_image, real_image)
    if psnr_global >= PSNR_CAP:
        logger.warning("The synthetic image equals the real one (PSNR reported as %g dB): was it copied?", PSNR_CAP)
    return {
        "psnr_global": psnr_global,
        "psnr_local": psnr_local,
        "ssim_global": _ssim(synthetic_image, real_image),
        "ssim_local": ssim_local,
    }


def _psnr(synthetic: np.ndarray, real: np.ndarray) -> float:
    mse = float(np.mean(np.square(synthetic - real), dtype=np.float64))
    smallest = DATA_RANGE**2 / 10 ** (PSNR_CAP / 10)
    return float(10 * np.log10(DATA_RANGE**2 / max(mse, smallest)))


def _ssim(synthetic: np.ndarray, real: np.ndarray) -> float:
    """Average SSIM over the Gaussian windows inside the images.

    The same numbers as MONAI's `compute_ssim_and_cs`, whose dense 3-D kernel is several times slower on a whole scan.
    """
    reach = [(min(SSIM_WINDOW, size) - 1) // 2 for size in real.shape]  # an odd window: 2 * reach + 1 voxels
    inside = tuple(slice(margin, size - margin) for margin, size in zip(reach, real.shape, strict=True))

    def local_mean(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, SSIM_SIGMA, radius=reach)[inside]

    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    mean_s, mean_r = local_mean(synthetic), local_mean(real)
    variances = local_mean(synthetic**2) - mean_s**2 + local_mean(real**2) - mean_r**2
    covariance = local_mean(synthetic * real) - mean_s * mean_r
    luminance = (2 * mean_s * mean_r + c1) / (mean_s**2 + mean_r**2 + c1)
    contrast = (2 * covariance + c2) / (variances + c2)
    return float(np.mean(luminance * contrast, dtype=np.float64))


def _batch(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]  # (X, Y, Z) -> (1, 1, X, Y, Z)


def _box(mask: np.ndarray, *, margin: int, smallest: int = 0) -> tuple[slice, ...]:
    """Return the bounding box of a non-empty mask plus a margin, at least `smallest` wide, inside the volume."""
    box = []
    for tight, size in zip(ndimage.find_objects(mask.astype(np.uint8))[0], mask.shape, strict=True):
        start, stop = max(tight.start - margin, 0), min(tight.stop + margin, size)
        short = min(smallest, size) - (stop - start)
        if short > 0:
            start = min(max(start - short // 2, 0), size - (stop - start) - short)
            stop = start + min(smallest, size)
        box.append(slice(start, stop))
    return tuple(box)


def _mask(array: Array, name: str) -> np.ndarray:
    """Return a 3-D boolean array, or say which argument holds other values than 0 and 1."""
    values = _volume(array, name)
    mask = values.astype(bool)
    if not np.array_equal(mask, values):
        found = np.unique(values[mask != values])[:5].tolist()
        raise ValueError(f"{name}: found the values {found}; expected only 0 and 1. Threshold probabilities first.")
    return mask


def _image(array: Array, name: str) -> np.ndarray:
    """Return a 3-D float32 array, or say which argument is not finite or leaves [-1, 1]."""
    values = _volume(array, name).astype(np.float32)
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"{name}: found {count} voxels that are NaN or infinite; expected finite values in [-1, 1].")
    low, high = float(values.min()), float(values.max())
    if low < -1 - RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(
            f"{name}: found values from {low:g} to {high:g}; expected [-1, 1]. Pass normalized images, not the written "
            "ones."
        )
    return values


def _volume(array: Any, name: str) -> np.ndarray:
    values = array.detach().cpu().float().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    if values.ndim != 3 or not values.size:
        raise ValueError(
            f"{name}: found shape {values.shape}; expected (X, Y, Z). Remove batch and channel axes first."
        )
    return values


def _check_same_shape(**arrays: np.ndarray) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"shapes differ: found {found}; expected one grid. Resample to the grid of the truth first.")
