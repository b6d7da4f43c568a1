"""Tests of metrics and scripts.evaluation.per_case; statistics over cases are tested in test_report.py."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_roc_auc
from monai.metrics.regression import compute_ssim_and_cs

from scripts.evaluation.metrics import (
    LOCAL_MARGIN,
    PSNR_CAP,
    SSIM_SIGMA,
    SSIM_WINDOW,
    detection_metrics,
    segmentation_metrics,
    synthesis_metrics,
)
from scripts.evaluation.per_case import CSV_COLUMNS, read_per_case, write_per_case

SHAPE = (20, 22, 16)
SPACING = (0.5, 1.0, 2.0)


def cube(start: Sequence[int], size: Sequence[int], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = 1
    return mask


def ball(center: tuple[float, ...], radius_mm: float) -> np.ndarray:
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(SHAPE, SPACING, strict=True)), indexing="ij")
    squares = [(g - c) ** 2 for g, c in zip(grid, center, strict=True)]
    return (np.sum(squares, axis=0) <= radius_mm**2).astype(np.uint8)


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


# Hand-computed values: masks


def test_two_cubes_with_half_overlap() -> None:
    result = segmentation_metrics(cube((4, 4, 4), (4, 4, 4)), cube((6, 4, 4), (4, 4, 4)), spacing=(1, 1, 1))
    assert result["dice"] == 0.5  # 2 * 32 / (64 + 64)
    assert result["volume_mm3"] == result["volume_truth_mm3"] == 64


def test_volume_is_in_cubic_millimeters() -> None:
    result = segmentation_metrics(cube((1, 1, 1), (2, 3, 4)), cube((1, 1, 1), (1, 1, 1)), spacing=(0.41, 0.41, 1.5))
    assert result["volume_mm3"] == pytest.approx(24 * 0.41 * 0.41 * 1.5)
    assert result["volume_truth_mm3"] == pytest.approx(0.41 * 0.41 * 1.5)


@pytest.mark.parametrize(("axis", "distance"), [(0, 3 * 0.5), (1, 3 * 1.0), (2, 3 * 2.0)])
def test_shifted_voxel_has_its_distance_in_mm(axis: int, distance: float) -> None:
    start = [4, 4, 4]
    start[axis] += 3
    result = segmentation_metrics(cube((4, 4, 4), (1, 1, 1)), cube(start, (1, 1, 1)), spacing=SPACING)
    assert result["assd_mm"] == pytest.approx(distance)
    assert result["hd95_mm"] == pytest.approx(distance)


def test_plates_three_slices_apart() -> None:
    # Every voxel of a one-voxel plate is surface, and its nearest voxel in the other plate is straight above it.
    result = segmentation_metrics(cube((2, 2, 3), (9, 9, 1)), cube((2, 2, 6), (9, 9, 1)), spacing=SPACING)
    assert result["dice"] == 0
    assert result["assd_mm"] == pytest.approx(6.0)
    assert result["hd95_mm"] == pytest.approx(6.0)


def test_rod_and_longer_rod() -> None:
    # A rod of 4 voxels and the same rod with 2 more, 0.5 mm each: distances 0 x 4 one way, 0 x 4, 0.5, 1 the other.
    result = segmentation_metrics(cube((4, 5, 5), (4, 1, 1)), cube((4, 5, 5), (6, 1, 1)), spacing=SPACING)
    assert result["dice"] == pytest.approx(2 * 4 / 10)
    assert result["assd_mm"] == pytest.approx(1.5 / 10)
    assert result["hd95_mm"] == pytest.approx(0.875)  # between 0.5 and 1, at position 0.95 * 5 = 4.75


# Relations: masks


def test_metrics_are_symmetric_and_zero_for_equal_masks() -> None:
    a, b = ball((5, 10, 15), 4), ball((6, 11, 15), 5)
    there, back = segmentation_metrics(a, b, spacing=SPACING), segmentation_metrics(b, a, spacing=SPACING)
    for key in ("dice", "assd_mm", "hd95_mm"):
        assert there[key] == pytest.approx(back[key])
    same = segmentation_metrics(a, a, spacing=SPACING)
    assert (same["dice"], same["assd_mm"], same["hd95_mm"]) == (1, 0, 0)


def test_far_false_positive_moves_hd95_more_than_assd() -> None:
    truth = ball((5, 10, 15), 4)
    stray = truth.copy()
    stray[-3:, -3:, -3:] = 1
    clean, dirty = (segmentation_metrics(mask, truth, spacing=SPACING) for mask in (truth, stray))
    assert dirty["dice"] < clean["dice"]
    assert dirty["hd95_mm"] > dirty["assd_mm"] > 0


def test_surroundings_do_not_change_the_result() -> None:
    a, b = ball((5, 10, 15), 4), ball((6, 11, 15), 5)
    expected = segmentation_metrics(a, b, spacing=SPACING)
    padded = segmentation_metrics(np.pad(a, 9), np.pad(b, 9), spacing=SPACING)
    assert padded == pytest.approx(expected)


def test_distances_agree_with_all_pairs_of_surface_voxels() -> None:
    a, b = ball((5, 10, 15), 4), ball((6, 12, 17), 5)

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = np.min([np.roll(padded, step, axis) for axis in range(3) for step in (-1, 1)], axis=0)
        return np.argwhere((padded == 1) & (inner == 0)) * np.array(SPACING)

    distances = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=-1)
    ab, ba = distances.min(axis=1), distances.min(axis=0)
    result = segmentation_metrics(a, b, spacing=SPACING)
    assert result["assd_mm"] == pytest.approx(np.concatenate([ab, ba]).mean(), rel=1e-5)
    assert result["hd95_mm"] == pytest.approx(max(np.percentile(ab, 95), np.percentile(ba, 95)), rel=1e-5)


def test_masks_at_the_border_and_tensors() -> None:
    a, b = cube((0, 0, 0), (3, 3, 3)), cube((0, 0, 0), (4, 3, 3))
    expected = segmentation_metrics(a, b, spacing=SPACING)
    assert expected == segmentation_metrics(np.pad(a, 5), np.pad(b, 5), spacing=SPACING)
    for dtype in (torch.bool, torch.uint8, torch.float32, torch.bfloat16):
        assert expected == segmentation_metrics(
            torch.from_numpy(a).to(dtype), torch.from_numpy(b).to(dtype), spacing=torch.tensor(SPACING).tolist()
        )


@pytest.mark.parametrize("shape", [(8, 8, 1), (1, 8, 8), (1, 1, 1)])
def test_flat_volumes(shape: tuple[int, int, int]) -> None:
    mask = np.ones(shape)
    result = segmentation_metrics(mask, mask, spacing=SPACING)
    assert (result["dice"], result["assd_mm"], result["hd95_mm"]) == (1, 0, 0)


# No tumor


def test_empty_masks() -> None:
    empty, full = np.zeros(SHAPE), cube((4, 4, 4), (4, 4, 4))
    for prediction, truth, dice in ((empty, empty, 1), (full, empty, 0), (empty, full, 0)):
        result = segmentation_metrics(prediction, truth, spacing=(1, 1, 1))
        assert result["dice"] == dice
        assert math.isnan(result["assd_mm"]) and math.isnan(result["hd95_mm"])
        assert (result["volume_mm3"], result["volume_truth_mm3"]) == (prediction.sum(), truth.sum())


def test_empty_truth_has_no_local_synthesis_metrics() -> None:
    result = synthesis_metrics(noise(0), noise(1), np.zeros(SHAPE))
    assert math.isnan(result["psnr_local"]) and math.isnan(result["ssim_local"])
    assert math.isfinite(result["psnr_global"]) and math.isfinite(result["ssim_global"])


# Synthetic images


@pytest.mark.parametrize("offset", [0.02, 0.1, 0.5])
def test_psnr_of_a_constant_offset(offset: float) -> None:
    real = noise(0) * 0.4
    result = synthesis_metrics(real + offset, real, cube((8, 8, 8), (3, 3, 3)))
    expected = 10 * math.log10(4 / offset**2)
    assert result["psnr_global"] == pytest.approx(expected, abs=1e-3)
    assert result["psnr_local"] == pytest.approx(expected, abs=1e-3)


def test_ssim_of_two_constants() -> None:
    # Without variance SSIM is (2ab + c1) / (a^2 + b^2 + c1), c1 = (0.01 * 2)^2.
    a, b, c1 = 0.2, 0.6, 0.0004
    result = synthesis_metrics(np.full(SHAPE, a), np.full(SHAPE, b), cube((8, 8, 8), (3, 3, 3)))
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert result["ssim_global"] == pytest.approx(expected, abs=1e-4)
    assert result["ssim_local"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("shape", "window"), [(SHAPE, (7, 7, 7)), ((20, 5, 2), (7, 5, 1))])
def test_ssim_agrees_with_monai(shape: tuple[int, int, int], window: tuple[int, int, int]) -> None:
    real, synthetic = noise(0, shape), np.clip(noise(0, shape) + 0.3 * noise(1, shape), -1, 1)
    batch = [torch.from_numpy(image)[None, None] for image in (synthetic, real)]
    sigma = (SSIM_SIGMA,) * 3
    expected, _ = compute_ssim_and_cs(batch[0], batch[1], 3, window, sigma, data_range=2.0)
    result = synthesis_metrics(synthetic, real, np.zeros(shape))
    assert result["ssim_global"] == pytest.approx(expected.mean().item(), abs=1e-5)


def test_psnr_local_counts_the_box_and_its_margin() -> None:
    real, truth = np.zeros(SHAPE), cube((9, 9, 8), (2, 2, 2))
    for reach, touched in ((LOCAL_MARGIN, True), (LOCAL_MARGIN + 1, False)):
        synthetic = real.copy()
        synthetic[9 - reach, 9, 8] = 1
        psnr = synthesis_metrics(synthetic, real, truth)["psnr_local"]
        box = (2 + 2 * LOCAL_MARGIN) ** 3
        assert psnr == pytest.approx(10 * math.log10(4 * box) if touched else PSNR_CAP)


def test_identical_images_are_finite_and_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = synthesis_metrics(noise(0), noise(0), cube((8, 8, 8), (3, 3, 3)))
    assert result["psnr_global"] == result["psnr_local"] == PSNR_CAP
    assert result["ssim_global"] == pytest.approx(1)
    assert "equals the real one" in caplog.text


def test_better_image_scores_higher() -> None:
    real, error, truth = noise(0) * 0.5, noise(1), cube((8, 8, 8), (3, 3, 3))
    good, bad = (synthesis_metrics(real + scale * error, real, truth) for scale in (0.1, 0.4))
    assert all(good[key] > bad[key] for key in good)


def test_box_at_the_border_is_grown_to_the_window() -> None:
    real, synthetic = noise(0), noise(1)
    result = synthesis_metrics(synthetic, real, cube((0, 21, 15), (1, 1, 1)), margin=0)
    w = SSIM_WINDOW
    box = (slice(0, w), slice(22 - w, 22), slice(16 - w, 16))
    whole = synthesis_metrics(synthetic[box], real[box], np.ones((w, w, w)))
    assert result["psnr_local"] == pytest.approx(whole["psnr_global"])
    assert result["ssim_local"] == pytest.approx(whole["ssim_global"])


@pytest.mark.parametrize("shape", [(20, 20, 1), (20, 20, 4), (3, 2, 1), (7, 7, 7), (9, 31, 8)])
def test_window_shrinks_in_thin_volumes(shape: tuple[int, int, int]) -> None:
    truth = np.zeros(shape)
    truth[0, 0, 0] = 1
    result = synthesis_metrics(noise(0, shape), noise(1, shape), truth)
    assert all(math.isfinite(value) for value in result.values())
    assert synthesis_metrics(noise(0, shape), noise(0, shape), truth)["ssim_global"] == pytest.approx(1)


# Bad input


@pytest.mark.parametrize(
    ("prediction", "truth", "spacing", "message"),
    [
        (np.full(SHAPE, 0.7), np.zeros(SHAPE), SPACING, r"prediction: found the values \[0.7.*only 0 and 1"),
        (np.zeros(SHAPE), np.full(SHAPE, 2), SPACING, r"truth: found the values \[2\]"),
        (np.full(SHAPE, np.nan), np.zeros(SHAPE), SPACING, "prediction: found the values"),
        (np.zeros(SHAPE), np.zeros((20, 22, 17)), SPACING, r"prediction \(20, 22, 16\), truth \(20, 22, 17\)"),
        (np.zeros((1, *SHAPE)), np.zeros(SHAPE), SPACING, r"prediction: found shape \(1, 20, 22, 16\)"),
        (np.zeros((0, 2, 2)), np.zeros((0, 2, 2)), SPACING, "prediction: found shape"),
        (np.zeros(SHAPE), np.zeros(SHAPE), (1, 0, 1), "spacing: found .* three positive"),
        (np.zeros(SHAPE), np.zeros(SHAPE), (1, 1), "spacing: found .* three positive"),
        (np.zeros(SHAPE), np.zeros(SHAPE), (1, 1, math.nan), "spacing: found .* three positive"),
    ],
)
def test_bad_masks_are_refused(prediction: np.ndarray, truth: np.ndarray, spacing: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmentation_metrics(prediction, truth, spacing=spacing)


@pytest.mark.parametrize(
    ("synthetic", "margin", "message"),
    [
        (np.full(SHAPE, 1000.0), 5, r"synthetic: found values from 1000 to 1000; expected \[-1, 1\]"),
        (np.full(SHAPE, np.nan), 5, "synthetic: found 7040 voxels that are NaN"),
        (np.zeros((4, 4, 4)), 5, "shapes differ"),
        (np.zeros(SHAPE), -1, "margin: found -1"),
    ],
)
def test_bad_images_are_refused(synthetic: np.ndarray, margin: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesis_metrics(synthetic, np.zeros(SHAPE), np.zeros(SHAPE), margin=margin)


# per_case.csv


def test_metrics_are_columns_and_survive_the_file(tmp_path: Path) -> None:
    truth = cube((4, 4, 4), (4, 4, 4))
    row = {"case": "007", "protocol": "full_scan", "prediction": "y_f", "seconds": 0.25}
    row |= segmentation_metrics(np.zeros(SHAPE), truth, spacing=SPACING)
    row |= synthesis_metrics(noise(0), noise(1), truth)
    path = tmp_path / "run" / "per_case.csv"
    write_per_case(path, [row, row | {"prediction": "y_r", "dice": np.float32(0.5), "hd95_mm": None}])
    assert path.read_text().splitlines()[0] == ",".join(CSV_COLUMNS)
    assert path.read_text().splitlines()[1].startswith("007,full_scan,y_f,0.0,,,")
    first, second = read_per_case(path)
    assert first["case"] == "007"
    assert first["psnr_local"] == row["psnr_local"]
    assert math.isnan(first["assd_mm"]) and math.isnan(first["perceptibility_dice"])
    assert (second["prediction"], second["dice"]) == ("y_r", 0.5)
    assert [item.name for item in path.parent.iterdir()] == ["per_case.csv"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"case": ""}, "no case name in row 1"),
        ({"protocol": "whole"}, "case 'a': found protocol 'whole'; expected one of full_scan, paper_crop"),
        ({"prediction": "y_e"}, "found prediction 'y_e'; expected one of y_f, y_c, y_r, mean"),
        ({"dice": 89.5}, "found dice = 89.5; expected a finite number from 0 to 1"),
        ({"hd95_mm": math.inf}, "found hd95_mm = inf; expected a finite number from 0 to inf, or an empty cell"),
        ({"seconds": -1}, "found seconds = -1"),
        ({"assd_mm": "n/a"}, "found assd_mm = 'n/a'; expected a number or an empty cell"),
        ({"hd95": 1.0}, "found hd95; expected only case"),
    ],
)
def test_bad_rows_are_refused_and_leave_the_old_file(tmp_path: Path, change: dict, message: str) -> None:
    row = {"case": "a", "protocol": "full_scan", "prediction": "y_f", "dice": 0.5}
    path = tmp_path / "per_case.csv"
    write_per_case(path, [row])
    before = path.read_text()
    with pytest.raises(ValueError, match=message):
        write_per_case(path, [row | change])
    assert path.read_text() == before


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "per_case.csv"
    with pytest.raises(FileNotFoundError, match="Run the evaluation first"):
        read_per_case(path)
    path.write_text("case,dice\na,0.5\n")
    with pytest.raises(ValueError, match="found the columns case, dice; expected case, protocol"):
        read_per_case(path)
    path.write_text("")
    with pytest.raises(ValueError, match="found the columns none"):
        read_per_case(path)
    path.write_text(",".join(CSV_COLUMNS) + "\n")
    with pytest.raises(ValueError, match="a header and no row"):
        read_per_case(path)
    path.write_text(",".join(CSV_COLUMNS) + "\na,full_scan,y_f,0.5\n")
    with pytest.raises(ValueError, match=r"case 'a': found assd_mm = '\(no cell\)'"):
        read_per_case(path)
    path.write_text(",".join(CSV_COLUMNS) + "\na,full_scan,y_f" + "," * (len(CSV_COLUMNS) - 2) + "\n")
    with pytest.raises(ValueError, match=r"case 'a': found \(more cells than columns\)"):
        read_per_case(path)
    row = {"case": "a", "protocol": "full_scan", "prediction": "y_f"}
    with pytest.raises(ValueError, match="found full_scan, y_f twice"):
        write_per_case(path, [row, row])


def test_detection_is_the_auroc_in_the_head() -> None:
    rng = np.random.default_rng(0)
    shape = (12, 10, 8)
    truth = np.zeros(shape, bool)
    truth[3:8, 3:8, 2:6] = True
    probability = 1 / (1 + np.exp(-4 * (truth - 0.5 + rng.normal(0, 0.4, shape))))
    error = np.round(rng.random(shape), 1)  # with ties
    inside = np.ones(shape, bool)
    inside[:, :, 0] = False
    wrong = (probability > 0.5) != truth
    entropy = -(probability * np.log(probability) + (1 - probability) * np.log(1 - probability))
    found = detection_metrics(error, probability, truth, inside, spacing=(2.0, 2.0, 3.0))
    for name, score in (("error_auroc", error), ("entropy_auroc", entropy)):
        expected = compute_roc_auc(torch.as_tensor(score[inside]), torch.as_tensor(wrong[inside]))
        assert found[name] == pytest.approx(expected, abs=1e-6), name


def test_detection_at_the_border_leaves_out_what_is_farther_than_5_mm() -> None:
    truth = np.zeros((20, 20, 20), bool)
    truth[8:12, 8:12, 8:12] = True
    probability, error = truth * 0.8 + 0.1, np.zeros(truth.shape)
    truth[0, 0, 0] = True  # missed, far away, and not marked
    probability[12, 9, 9], error[12, 9, 9] = 0.6, 1.0  # wrong at the border, and marked
    found = detection_metrics(error, probability, truth, np.ones(truth.shape, bool), spacing=(2.0, 2.0, 2.0))
    assert found["error_auroc_border"] == 1.0
    assert found["error_auroc"] == pytest.approx((1 + 0.5) / 2, abs=1e-3)


def test_detection_without_a_wrong_voxel_is_missing() -> None:
    truth = np.zeros((4, 4, 4), bool)
    truth[1:3, 1:3, 1:3] = True
    found = detection_metrics(np.zeros(truth.shape), truth * 1.0, truth, np.ones(truth.shape, bool), spacing=(1, 1, 1))
    assert all(math.isnan(value) for value in found.values())
