"""Tests of crossMoDA: names, patients and label values of its editions."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made.files import touch

from scripts.data.sources.crossmoda import CROSSMODA_2022_LABELS, CROSSMODA_2023_LABELS, find_crossmoda
from scripts.data.volume import NiftiVolume

TUMOR = "vestibular schwannoma"


def test_crossmoda_2021(tmp_path):
    touch(tmp_path / "source_training", "crossmoda_1_ceT1", "crossmoda_1_Label")
    touch(tmp_path / "target_training", "crossmoda_106_hrT2")
    touch(tmp_path / "target_validation", "crossmoda_211_hrT2")
    (labeled,), scans, problems = find_crossmoda(tmp_path)
    assert not problems
    assert (labeled.case, labeled.cohort) == ("crossmoda_1", "crossMoDA2021-ldn")
    assert labeled.patient == "crossmoda2021_ldn_1"
    assert labeled.images == {"ceT1": NiftiVolume(tmp_path / "source_training/crossmoda_1_ceT1.nii.gz")}
    assert labeled.label == NiftiVolume(tmp_path / "source_training/crossmoda_1_Label.nii.gz")
    assert labeled.label_values is CROSSMODA_2022_LABELS
    assert [(scan.case, list(scan.images), scan.label, scan.label_values) for scan in scans] == [
        ("crossmoda_106", ["T2"], None, None),
        ("crossmoda_211", ["T2"], None, None),
    ]


def test_crossmoda_2022_has_two_editions(tmp_path):
    touch(tmp_path / "training_source", "crossmoda2021_ldn_1_ceT1", "crossmoda2021_ldn_1_Label")
    touch(tmp_path / "training_source", "crossmoda2022_etz_0_ceT1", "crossmoda2022_etz_0_Label")
    touch(tmp_path / "training_target", "crossmoda2022_etz_105_hrT2")
    touch(tmp_path, "crossmoda_1_ceT1", "crossmoda_1_Label")  # the first edition's name of the same patient
    labeled, scans, problems = find_crossmoda(tmp_path)
    assert not problems
    assert [(case.case, case.patient, case.cohort) for case in labeled] == [
        ("crossmoda2021_ldn_1", "crossmoda2021_ldn_1", "crossMoDA2021-ldn"),
        ("crossmoda2022_etz_0", "crossmoda2022_etz_0", "crossMoDA2022-etz"),
        ("crossmoda_1", "crossmoda2021_ldn_1", "crossMoDA2021-ldn"),
    ]
    assert all(case.label_values is CROSSMODA_2022_LABELS for case in labeled)
    assert [scan.case for scan in scans] == ["crossmoda2022_etz_105"]


@pytest.mark.parametrize("edition", ["crossmoda2023", "crossmoda23"])
def test_crossmoda_2023(tmp_path, edition):
    touch(tmp_path / "TrainingSource", f"{edition}_ukm_6_ceT1", f"{edition}_ukm_6_Label")
    touch(tmp_path / "TrainingTarget", f"{edition}_ldn_84_T2", f"{edition}_xyz_1_T2", f"{edition}_1_T2")
    (labeled,), (scan,), problems = find_crossmoda(tmp_path)
    assert not problems
    assert (labeled.case, labeled.patient) == (f"{edition}_ukm_6", "crossmoda2023_ukm_6")
    assert labeled.cohort == "crossMoDA2023-ukm"
    assert labeled.label_values is CROSSMODA_2023_LABELS
    assert (scan.case, scan.cohort, list(scan.images)) == (f"{edition}_ldn_84", "crossMoDA2023-ldn", ["T2"])


def test_crossmoda_problems(tmp_path):
    touch(
        tmp_path, "crossmoda_1_ceT1", "crossmoda_2_Label", "crossmoda_3_ceT1", "crossmoda_3_hrT2", "crossmoda_3_Label"
    )
    touch(tmp_path, "crossmoda_4_hrT2", "crossmoda_5_hrT2", "crossmoda_5_Label")
    touch(tmp_path / "again", "crossmoda_4_hrT2")
    labeled, (scan,), problems = find_crossmoda(tmp_path)
    assert not labeled
    assert [(p.case, p.check) for p in problems] == [
        ("crossmoda_1", "missing file"),
        ("crossmoda_2", "missing file"),
        ("crossmoda_3", "ambiguous files"),
        ("crossmoda_4", "ambiguous files"),
    ]
    assert [p.found for p in problems[:3]] == [
        "no segmentation",
        "a label without an image",
        "ceT1 and T2 under one name",
    ]
    # A label of T2, which some have, is kept.
    assert (scan.case, scan.label_values) == ("crossmoda_5", CROSSMODA_2022_LABELS)


def test_crossmoda_editions_that_share_patients(tmp_path):
    touch(tmp_path, "crossmoda_106_hrT2", "crossmoda2023_ldn_84_T2")
    with pytest.raises(ValueError, match="found crossMoDA 2021, 2023, expected 2023 alone or the earlier ones"):
        find_crossmoda(tmp_path)


def test_real_crossmoda_labels(tmp_path):
    """A published label map: a tumor on one side, and cochleae on both."""
    root = Path(os.environ.get("TISSNET_DATA", "")) / "vs_labels"
    if "TISSNET_DATA" not in os.environ or not root.is_dir():
        pytest.skip("TISSNET_DATA does not name a folder with vs_labels/ (crossMoDA label maps)")
    for path in sorted(root.glob("*_Label.nii.gz"))[:1]:
        (tmp_path / path.name).symlink_to(path)
        (tmp_path / path.name.replace("Label", "ceT1")).touch()
    labeled, _, problems = find_crossmoda(tmp_path)
    assert len(labeled) == 1 and not problems
    for case in labeled:
        voxels = case.label.voxels()
        voxel_mm3 = abs(np.linalg.det(nib.load(case.label.path).affine[:3, :3]))
        tumor, cochlea = (case.label_values.mask(voxels, name) for name in (TUMOR, "cochlea"))
        assert 10 < tumor.sum() * voxel_mm3 < 30_000
        assert 50 < cochlea.sum() * voxel_mm3 < 1000
        tumor_x, cochlea_x = (np.nonzero(mask.any(axis=(1, 2)))[0] for mask in (tumor, cochlea))
        assert np.ptp(tumor_x) < 0.25 * voxels.shape[0] < np.ptp(cochlea_x)
