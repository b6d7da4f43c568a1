"""Tests of scripts.transforms: orientation, normalization, crop and naming, by content and through `Invertd`.

The test volumes are functions of the place in millimeters, so that any grid's voxels can be checked against them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Invertd, SaveImaged, Spacingd
from scipy.spatial.transform import Rotation

from scripts.networks.tissnet import name_outputs
from scripts.transforms import (
    AddRefinedd,
    CropAroundTumord,
    FillTargetd,
    FindSiblingsd,
    InvertPredictiond,
    NameByCased,
    NormalizeForegroundd,
    OrientToWorkingGridd,
    SamplingClassesd,
    SplitPredictiond,
    ToDisplayRanged,
    working_axcodes,
)

AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
EXTENT = np.array([40.0, 36.0, 32.0])  # mm along R, A, S
CENTER = np.array([5.0, -7.0, 11.0])  # mm, where the middle of every test grid lies
CONTENT_ATOL = 0.02  # linear interpolation of the smooth image of range [0, 1]
MIN_CORRELATION = 0.99
MIN_DICE = 0.97  # a ball resampled and back
ATOL = 1e-4


def grid(codes: str, spacing: dict[str, float], tilt: float = 0.0) -> tuple[np.ndarray, tuple[int, ...]]:
    """Makes an affine and a shape: axis order and directions by codes, spacing by axis R, A, S, tilted by degrees."""
    affine, shape = np.eye(4), []
    world = {"R": spacing["R"], "A": spacing["A"], "S": spacing["S"]}
    for column, code in enumerate(codes):
        axis, sign = AXES[code]
        step = world["RAS"[axis]]
        affine[:3, column] = 0
        affine[axis, column] = sign * step
        shape.append(round(EXTENT[axis] / step))
    affine[:3, :3] = Rotation.from_euler("xyz", [tilt, -tilt / 2, tilt / 3], degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = CENTER - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine, tuple(shape)


def places(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Computes the place of every voxel in mm relative to the middle: (3, X, Y, Z)."""
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    return np.einsum("ab,bxyz->axyz", affine[:3, :3], ijk) + (affine[:3, 3] - CENTER).reshape(3, 1, 1, 1)


def scene(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Makes a smooth image without any symmetry, and an off-center ball of radius 8 mm."""
    x, y, z = places(affine, shape)
    image = 0.5 + 0.2 * np.sin(x / 8 + 0.5) + 0.15 * np.sin(y / 9 - 1) + 0.1 * np.sin(z / 10 + 2)
    ball = (x - 6) ** 2 + (y + 4) ** 2 + (z - 3) ** 2 <= 8**2
    return image, ball.astype(np.float32)


def sample(codes: str, spacing: dict[str, float], tilt: float = 0.0) -> dict[str, Any]:
    affine, shape = grid(codes, spacing, tilt)
    image, ball = scene(affine, shape)
    tensors = {"image": image, "label": ball}
    return {
        name: MetaTensor(torch.as_tensor(array, dtype=torch.float32)[None], affine=torch.as_tensor(affine))
        for name, array in tensors.items()
    } | {"case": "vs_007"}


def spacing_of(image: MetaTensor) -> np.ndarray:
    return np.linalg.norm(image.affine.numpy()[:3, :3], axis=0)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a * b).sum() / (a.sum() + b.sum()))


AXIAL = {"R": 1.0, "A": 1.0, "S": 2.0}
CORONAL = {"R": 1.0, "A": 2.0, "S": 1.0}
SAGITTAL = {"R": 2.0, "A": 1.0, "S": 1.0}
ISOTROPIC = {"R": 1.0, "A": 1.0, "S": 1.0}
GRIDS = [
    ("RAS", AXIAL, 0.0),
    ("LPS", AXIAL, 0.0),
    ("LPS", AXIAL, 20.0),
    ("PIR", SAGITTAL, 0.0),
    ("SLA", CORONAL, 0.0),
    ("PIR", SAGITTAL, 15.0),
    ("SLA", ISOTROPIC, 0.0),
    ("LAS", ISOTROPIC, 25.0),
]
IDS = [f"{codes}-{'x'.join(f'{s:g}' for s in spacing.values())}-{tilt:g}deg" for codes, spacing, tilt in GRIDS]


# the working grid


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        (AXIAL, "RAS"),
        (CORONAL, "RSA"),
        (SAGITTAL, "ASR"),
        (ISOTROPIC, "RAS"),
        ({"R": 1.0, "A": 1.04, "S": 1.0}, "RAS"),  # as good as isotropic
        ({"R": 1.0, "A": 1.06, "S": 1.0}, "RSA"),
        ({"R": 0.4, "A": 0.5, "S": 1.5}, "RAS"),
        ({"R": 3.0, "A": 0.4, "S": 2.0}, "ASR"),
    ],
)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "IRP"])
@pytest.mark.parametrize("tilt", [0.0, 20.0])
def test_working_axcodes(codes: str, spacing: dict[str, float], tilt: float, expected: str) -> None:
    assert working_axcodes(grid(codes, spacing, tilt)[0]) == expected


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 0.0, 1.0, 1.0])])
def test_an_affine_without_spacing_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no positive voxel spacing"):
        working_axcodes(affine)


@pytest.mark.parametrize(("codes", "spacing", "tilt"), GRIDS, ids=IDS)
def test_oriented_content_is_where_its_affine_says(codes: str, spacing: dict[str, float], tilt: float) -> None:
    d = OrientToWorkingGridd(["image", "label"])(sample(codes, spacing, tilt))
    image = d["image"]
    affine = image.affine.numpy()
    assert "".join(nib.aff2axcodes(affine)) == working_axcodes(affine)
    assert spacing_of(image).argmax() == 2 or spacing is ISOTROPIC
    expected, ball = scene(affine, tuple(image.shape[1:]))
    assert np.allclose(image[0].numpy(), expected, atol=ATOL)
    assert np.array_equal(d["label"][0].numpy(), ball)


def test_the_coarsest_axis_comes_last_under_any_rotation() -> None:
    """Far beyond what a scanner's oblique slices reach, the axis's name is a convention; that it comes last is not."""
    wrong = []
    for seed in range(60):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * np.roll((0.5, 0.5, 3.0), seed)
        image = MetaTensor(torch.zeros(1, 3, 4, 5), affine=torch.as_tensor(affine))
        if spacing_of(OrientToWorkingGridd("image")({"image": image})["image"]).argmax() != 2:
            wrong.append(seed)
    assert not wrong


@pytest.mark.parametrize(("codes", "spacing", "tilt"), GRIDS, ids=IDS)
def test_there_and_back_by_content(codes: str, spacing: dict[str, float], tilt: float) -> None:
    """Prediction and image come back to the scan's own grid, wherever its axes point."""
    original = sample(codes, spacing, tilt)
    pre = Compose(
        [
            OrientToWorkingGridd(["image", "label"]),
            Spacingd(["image", "label"], pixdim=(0.8, 0.8, 1.5), mode=("bilinear", "bilinear"), padding_mode="border"),
        ]
    )
    d = pre(original)
    assert np.allclose(spacing_of(d["image"]), (0.8, 0.8, 1.5), atol=ATOL)
    inner = (slice(3, -3),) * 3
    expected, _ = scene(d["image"].affine.numpy(), tuple(d["image"].shape[1:]))
    assert np.allclose(d["image"][0].numpy()[inner], expected[inner], atol=CONTENT_ATOL)

    d["pred"] = MetaTensor(d["label"].as_tensor().clone(), meta=dict(d["image"].meta))
    d["synthetic"] = MetaTensor(d["image"].as_tensor().clone(), meta=dict(d["image"].meta))
    d = Invertd(["pred", "synthetic"], transform=pre, orig_keys="image", nearest_interp=False)(d)
    for name in ("pred", "synthetic"):
        assert d[name].shape == original["image"].shape
        assert np.allclose(d[name].affine.numpy(), original["image"].affine.numpy(), atol=ATOL)
    truth = original["label"][0].numpy()
    assert dice((d["pred"][0].numpy() > 0.5).astype(np.float32), truth) > MIN_DICE
    pair = np.stack([d["synthetic"][0].numpy().ravel(), original["image"][0].numpy().ravel()])
    assert np.corrcoef(pair)[0, 1] > MIN_CORRELATION


@pytest.mark.parametrize(("codes", "spacing", "tilt"), GRIDS, ids=IDS)
def test_orientation_alone_comes_back_bit_for_bit(codes: str, spacing: dict[str, float], tilt: float) -> None:
    original = sample(codes, spacing, tilt)
    pre = Compose([OrientToWorkingGridd(["image", "label"]), NormalizeForegroundd("image")])
    d = pre(original)
    d["pred"] = MetaTensor(d["label"].as_tensor().clone(), meta=dict(d["image"].meta))
    d = Invertd("pred", transform=pre, orig_keys="image", nearest_interp=False)(d)
    assert torch.equal(d["pred"].as_tensor(), original["label"].as_tensor())
    assert torch.allclose(d["pred"].affine, original["image"].affine)


def test_another_instance_may_invert() -> None:
    """MONAI Label builds the transforms anew; operations of the same class must still match."""
    original = sample("PIR", SAGITTAL)
    d = OrientToWorkingGridd("image")(original)
    back = OrientToWorkingGridd("image").inverse(d)
    assert torch.equal(back["image"].as_tensor(), original["image"].as_tensor())


def test_the_input_is_left_as_it_was() -> None:
    original = sample("LPS", SAGITTAL)
    before = original["image"].as_tensor().clone()
    OrientToWorkingGridd("image")(original)
    assert torch.equal(original["image"].as_tensor(), before) and not original["image"].applied_operations


def test_missing_keys_and_slices_are_refused_by_name() -> None:
    d = sample("RAS", AXIAL)
    assert set(OrientToWorkingGridd(["image", "target"], allow_missing_keys=True)(d)) == set(d)
    with pytest.raises(KeyError):
        OrientToWorkingGridd(["target"])(d)
    d["image"] = MetaTensor(torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match=r"image of case vs_007 has shape \(1, 4, 5\).*3-D"):
        OrientToWorkingGridd("image")(d)


# normalization


def ramp() -> torch.Tensor:
    """Makes 1, 2, ..., 1000 beside 1000 zeros: skull-stripped; 0.5 and 99.5 percentile are 5.995 and 995.005."""
    return torch.cat([torch.arange(1.0, 1001.0), torch.zeros(1000)]).reshape(1, 20, 10, 10)


def normalize(image: torch.Tensor, **others: object) -> torch.Tensor:
    return NormalizeForegroundd("image")({"image": image, **others})["image"]


def test_skull_stripped_by_hand() -> None:
    out = normalize(ramp()).flatten()
    assert out.dtype == torch.float32
    assert (out[1000:] == -1).all()
    assert out[[0, 4, 999, 995]].tolist() == [-1, -1, 1, 1]  # clipped
    for value in (6, 250, 500, 995):
        assert out[value - 1].item() == pytest.approx((value - 5.995) / 989.01 * 2 - 1, abs=ATOL)


def test_whole_head_by_hand() -> None:
    """Air of 0 to 9 (a tenth of them 0) and tissue of 100 to 1099: air below a tenth of the 99th percentile is -1."""
    air = torch.arange(1000) % 10
    tissue = torch.arange(100.0, 1100.0)
    volume = torch.cat([air.float(), tissue]).reshape(1, 20, 10, 10)
    assert float((volume == 0).float().mean()) == pytest.approx(0.05)  # too few zeros for skull-stripping
    # the 99th percentile of all 2000 is 1079.01, the threshold 107.901; the foreground 108 to 1099
    low, high = 108 + 0.005 * 991, 108 + 0.995 * 991
    out = normalize(volume).flatten()
    assert (out[:1000] == -1).all() and (out[1000:1008] == -1).all()
    for value in (120, 600, 1090):
        assert out[1000 + value - 100].item() == pytest.approx((value - low) / (high - low) * 2 - 1, abs=ATOL)
    assert out.max() == 1


@pytest.mark.parametrize("scale", [1e-3, 37.0])
def test_scanner_units_do_not_matter(scale: float) -> None:
    assert torch.allclose(normalize(ramp() * scale), normalize(ramp()), atol=ATOL)


def test_outliers_do_not_matter() -> None:
    spiked = ramp()
    spiked[0, 9, 9, 9] = 1e6  # in place of 1000, above the 99.5 percentile already
    assert torch.allclose(normalize(spiked), normalize(ramp()), atol=ATOL)


def test_channels_are_normalized_on_their_own() -> None:
    two = torch.cat([ramp(), 5 * ramp()])
    out = normalize(two)
    assert torch.allclose(out[0], out[1], atol=ATOL)
    assert torch.allclose(out[:1], normalize(ramp()), atol=ATOL)


def test_metadata_and_input_survive() -> None:
    image = MetaTensor(ramp(), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    before = image.as_tensor().clone()
    out = normalize(image)
    assert isinstance(out, MetaTensor) and torch.equal(out.affine, image.affine)
    assert torch.equal(image.as_tensor(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_voxels_are_told_and_the_case_named(value: float) -> None:
    image = torch.cat([ramp(), ramp()])
    image[1, 0, 0, :3] = value
    with pytest.raises(ValueError, match="channel 1 of image of case vs_007 has NaN or infinite voxels"):
        normalize(image, case="vs_007")


@pytest.mark.parametrize("value", [0.0, 42.0, -1.0])
def test_a_constant_volume_is_refused_and_the_case_named(value: float) -> None:
    with pytest.raises(ValueError, match="channel 0 of image of case vs_007 is constant or empty"):
        normalize(torch.full((1, 4, 4, 4), value), case="vs_007")


# the paper's crop


def crop_case(corners: list[tuple[int, int, int]], shape: tuple[int, int, int] = (20, 18, 10)) -> dict[str, Any]:
    label = torch.zeros(1, *shape)
    for corner in corners:
        label[(0, *corner)] = 1
    image = torch.arange(float(label.numel())).reshape(1, *shape)
    return {"image": MetaTensor(image), "label": MetaTensor(label), "case": "vs_007"}


def crop(d: dict[str, Any], size: tuple[int, int, int]) -> dict[str, Any]:
    return CropAroundTumord(["image", "label"], label_key="label", size=size)(d)


@pytest.mark.parametrize(
    ("corners", "size", "expected"),
    [
        ([(10, 9, 5)], (4, 6, 2), ((8, 12), (6, 12), (4, 6))),  # centered
        ([(8, 8, 4), (12, 10, 6)], (6, 4, 4), ((7, 13), (7, 11), (3, 7))),  # the middle of the bounding box
        ([(0, 17, 9)], (4, 6, 4), ((0, 4), (12, 18), (6, 10))),  # moved inside
        ([(10, 9, 5)], (-1, 6, 2), ((0, 20), (6, 12), (4, 6))),  # -1: whole
        ([(10, 9, 5)], (64, 6, 2), ((0, 20), (6, 12), (4, 6))),  # larger than the volume
        ([(1, 1, 1), (10, 9, 5)], (12, 12, 6), ((0, 12), (0, 12), (0, 6))),  # two tumors
    ],
)
def test_crop_by_hand(corners: list, size: tuple[int, int, int], expected: tuple) -> None:
    d = crop_case(corners)
    box = tuple(slice(*bounds) for bounds in expected)
    out = crop(d, size)
    for key in ("image", "label"):
        assert torch.equal(out[key].as_tensor(), d[key].as_tensor()[(slice(None), *box)])
    assert out["label"].sum() == len(corners)
    assert out["image"].affine[:3, 3].tolist() == [bounds[0] for bounds in expected]


def test_crop_after_orientation_comes_back() -> None:
    original = sample("PIR", SAGITTAL)
    pre = Compose(
        [
            OrientToWorkingGridd(["image", "label"]),
            CropAroundTumord(["image", "label"], label_key="label", size=(24, 24, 10)),
        ]
    )
    d = pre(original)
    assert d["image"].shape == (1, 24, 24, 10) and d["label"].sum() == original["label"].sum()
    d["pred"] = MetaTensor(d["label"].as_tensor().clone(), meta=dict(d["image"].meta))
    back = Invertd("pred", transform=pre, orig_keys="image", nearest_interp=False)(d)["pred"]
    assert torch.equal(back.as_tensor(), original["label"].as_tensor())


def test_crop_without_tumor_is_refused() -> None:
    with pytest.raises(ValueError, match="case vs_007 has no tumor to crop around.*full_scan"):
        crop(crop_case([]), (4, 4, 4))


# where training looks


def sampled(codes: str, tumor: tuple[slice, slice, slice] | None) -> torch.Tensor:
    """The classes of a head of 12 x 8 x 4 voxels in 20 x 10 x 6, off the middle; axes as in `codes`, given as RAS."""
    image, label = torch.full((1, 20, 10, 6), -1.0), torch.zeros(1, 20, 10, 6)
    image[:, 2:14, 1:9, 1:5] = 0.3
    if tumor is not None:
        label[(0, *tumor)] = 1
    order = [codes.index(code) for code in "RAS"]
    back = [order.index(i) for i in range(3)]
    affine = np.eye(4)[:, [*back, 3]]
    image, label = (x.permute(0, *(b + 1 for b in back)) for x in (image, label))
    data = {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}
    classes = SamplingClassesd("label")(data)["sampling"]
    assert classes.dtype == torch.uint8 and classes.shape == label.shape
    return classes.permute(0, *(o + 1 for o in order))[0]


@pytest.mark.parametrize("codes", ["RAS", "ASR", "RSA"])  # axial, sagittal, coronal series
def test_patches_come_from_the_head_the_tumor_and_the_other_side(codes: str) -> None:
    classes = sampled(codes, (slice(3, 5), slice(4, 6), slice(2, 3)))
    assert [int((classes == i).sum()) for i in range(4)] == [1200 - 384, 384 - 8, 4, 4]
    assert (classes[3:5, 4:6, 2] == 3).all()
    assert (classes[11:13, 4:6, 2] == 2).all()  # the head reaches from 2 to 13: 3 and 4 become 12 and 11


def test_a_tumor_across_the_middle_stays_tumor() -> None:
    classes = sampled("RAS", (slice(6, 9), slice(4, 5), slice(2, 3)))
    assert (classes[6:9, 4, 2] == 3).all() and classes[9, 4, 2] == 2 and int((classes == 2).sum()) == 1


def test_without_tumor_patches_come_from_the_head() -> None:
    assert set(sampled("RAS", None).unique().tolist()) == {0, 1}


def test_the_other_side_outside_of_the_scan_is_passed_over() -> None:
    image, label = torch.full((1, 10, 4, 4), 0.3), torch.zeros(1, 10, 4, 4)
    image[:, :4] = -1
    label[:, 0] = 1  # in air, and its mirror image beyond the last voxel
    data = {"image": MetaTensor(image), "label": MetaTensor(label)}
    assert set(SamplingClassesd("label")(data)["sampling"].unique().tolist()) == {0, 1, 3}


# what is written


ALL_OUTPUTS = ["pred", "synthetic", "coarse", "error", "perceptor"]


@pytest.mark.parametrize("names", [["pred"], ["synthetic", "pred"], ALL_OUTPUTS])
def test_a_prediction_is_divided_by_the_names_of_its_outputs(names: list[str]) -> None:
    prediction = torch.arange(float(len(names))).reshape(-1, 1, 1, 1).repeat(1, 2, 2, 2)
    out = SplitPredictiond("pred")({"pred": name_outputs(prediction, names), "case": "vs_007"})
    assert set(out) == {*names, "case"}
    for i, name in enumerate(names):
        assert out[name].shape == (1, 2, 2, 2) and (out[name] == i).all()


@pytest.mark.parametrize("names", [[], ["pred"], ["pred", "synthetic", "error"]])
def test_a_prediction_without_a_name_for_every_channel_is_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"2 channel\(s\) has the names .*: expected one each.*InvertPredictiond"):
        SplitPredictiond("pred")({"pred": name_outputs(torch.zeros(2, 2, 2, 2), names)})
    with pytest.raises(ValueError, match=r"1 channel\(s\) has the names \[\]"):
        SplitPredictiond("pred")({"pred": torch.zeros(1, 2, 2, 2)})


@pytest.mark.parametrize("cases", [1, 2])
def test_names_survive_batches_and_the_way_back_to_the_scans_grid(cases: int) -> None:
    original = sample("PIR", SAGITTAL)
    pre = Compose([OrientToWorkingGridd("image"), Spacingd("image", pixdim=(0.8, 0.8, 1.5))])
    batch = list_data_collate([pre(original) for _ in range(cases)])
    image = batch["image"]
    batch["pred"] = name_outputs(torch.cat([image, 1 - image], dim=1), ["synthetic", "pred"])
    post = Compose([InvertPredictiond("pred", pre, orig_keys="image", nearest_interp=False), SplitPredictiond("pred")])
    items = decollate_batch(batch)
    assert len(items) == cases
    for item in items:
        out = post(item)
        assert out["synthetic"].shape == out["pred"].shape == original["image"].shape
        assert torch.allclose(out["synthetic"], 1 - out["pred"], atol=ATOL)
        pair = np.stack([out["synthetic"][0].numpy().ravel(), original["image"][0].numpy().ravel()])
        assert np.corrcoef(pair)[0, 1] > MIN_CORRELATION
        assert "outputs" not in item["image"].meta and item["image"].applied_operations  # as it was


def test_refined_masks_by_hand() -> None:
    """y_r = y_c (1 - y_e) + (1 - y_c) y_e, and its mean with y_f; a plain segmentor's mask stays alone."""
    y_f, y_c, y_e = (MetaTensor(torch.full((1, 1, 1, 1), value)) for value in (0.9, 0.8, 0.25))
    out = AddRefinedd()({"pred": y_f, "coarse": y_c, "error": y_e})
    assert out["y_r"].item() == pytest.approx(0.8 * 0.75 + 0.2 * 0.25)
    assert out["mean"].item() == pytest.approx((0.9 + 0.65) / 2)
    assert set(AddRefinedd()({"pred": y_f})) == {"pred"}


def test_display_range_by_hand() -> None:
    values = torch.tensor([-1.0, 0.0, 1.0, -0.5, -1.2, 1.5]).reshape(1, 6, 1, 1)
    out = ToDisplayRanged("synthetic")({"synthetic": values})["synthetic"]
    assert out.flatten().tolist() == [0, 500, 1000, 250, 0, 1000]


def save(folder: Path, d: dict[str, Any], key: str) -> None:
    SaveImaged(
        key,
        output_dir=folder,
        output_postfix=key,
        resample=False,
        print_log=False,
        writer="scripts.inference.writer.SourceHeaderWriter",  # the configs' own; MONAI's drops the description
    )(d)


def test_names_by_case(tmp_path: Path) -> None:
    def pred() -> MetaTensor:
        return MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "scan_t2.nii.gz"})

    named = NameByCased("pred")({"pred": pred(), "case": 17})
    assert named["pred"].meta["filename_or_obj"] == "17.nii.gz"
    assert NameByCased("pred", case_key="id")({"pred": pred(), "id": "a"})["pred"].meta["filename_or_obj"] == "a.nii.gz"
    unnamed = NameByCased("pred")({"pred": pred()})
    assert unnamed["pred"].meta["filename_or_obj"] == "scan_t2.nii.gz"
    save(tmp_path, named, "pred")
    save(tmp_path, unnamed, "pred")
    written = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.nii.gz"))
    assert written == [Path("17/17_pred.nii.gz"), Path("scan_t2/scan_t2_pred.nii.gz")]


@pytest.mark.parametrize("opened", ["T1", "ceT1", "T2"])
def test_one_file_of_a_case_brings_its_siblings(tmp_path: Path, opened: str) -> None:
    files = {name: str(tmp_path / f"a_{name}.nii.gz") for name in ("T2", "T1", "ceT1", "FLAIR")}
    for file in (*files.values(), tmp_path / "b_T1.nii.gz"):
        Path(file).touch()
    found = FindSiblingsd("image", task="glioma")({"image": files[opened]})["image"]
    assert found == [files[name] for name in ("T1", "ceT1", "T2")]
    with pytest.raises(FileNotFoundError, match="case b lacks ceT1, T2"):
        FindSiblingsd("image", task="glioma")({"image": str(tmp_path / "b_T1.nii.gz")})


@pytest.mark.parametrize("name", ["sub-01_T1w", "p1_flair", "p1_0000", "p1_mask"])
def test_a_file_that_is_called_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.nii.gz is named as"):
        FindSiblingsd("image", task="vs")({"image": f"x/{name}.nii.gz"})
    given = {"image": "x/p1_0000.nii.gz"}
    assert FindSiblingsd("image", task="vs", names={"T2": "_0000"})(given) == given


def test_lists_and_tasks_of_one_source_stay_as_they_are() -> None:
    given = ["x/a.nii.gz", "y/b.nii.gz", "z/c.nii.gz"]
    assert FindSiblingsd("image", task="glioma")({"image": given})["image"] == given
    assert FindSiblingsd("image", task="vs")({"image": "x/any name.nii.gz"})["image"] == "x/any name.nii.gz"


def test_outside_an_inverted_crop_is_background() -> None:
    label = MetaTensor(torch.zeros(1, 12, 12, 6))
    label[0, 5:7, 5:7, 2:4] = 1
    crop = CropAroundTumord(["image", "label"], label_key="label", size=(4, 4, 2))
    cropped = crop({"image": MetaTensor(torch.ones(1, 12, 12, 6)), "label": label})
    prediction = name_outputs(torch.full((3, 4, 4, 2), 0.5), ["pred", "error", "synthetic"])
    invert = InvertPredictiond("pred", transform=crop, orig_keys="image", nearest_interp=False)
    pred = invert({**cropped, "pred": prediction})["pred"]
    assert pred.shape == (3, 12, 12, 6)
    assert torch.equal(pred[:, 6, 6, 3].as_tensor(), torch.full((3,), 0.5))
    assert torch.equal(pred[:, 0, 0, 0].as_tensor(), torch.tensor([0.0, 0.0, -1.0]))


def test_a_missing_target_is_filled_with_background_on_the_grid_of_the_image() -> None:
    affine = np.diag([0.5, 0.5, 1.5, 1.0])
    image = MetaTensor(torch.rand(3, 4, 5, 6), affine=affine)
    filled = FillTargetd("target")({"image": image})
    assert filled["target"].shape == (1, 4, 5, 6) and bool((filled["target"] == -1).all())
    assert np.allclose(filled["target"].affine, affine) and filled["has_target"].item() == 0
    given = FillTargetd("target")({"image": image, "target": image[:1]})
    assert torch.equal(given["target"], image[:1]) and given["has_target"].item() == 1
