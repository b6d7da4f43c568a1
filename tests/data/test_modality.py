"""Tests of scripts.data.modality: looks of made brains and heads, what is noted, what is refused, real patients.

Real scans come from the folder that TISSNET_DATA names; the benchmark modalities.py counts over all of them.
"""

import functools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data import modality
from scripts.data.modality import Look, examine, look, modality_notes, swapped_with
from scripts.data.phantom.make import make_phantom
from scripts.data.volume import NiftiVolume

VS_SPACING = (0.41, 0.41, 1.5)
SPACING = (4.0, 4.0, 4.0)
CROP = Path(__file__).parents[1] / "fixtures/Task01_BrainTumour/imagesTr/BRATS_001.nii.gz"
CHANNELS = ("FLAIR", "T1", "ceT1", "T2")
real = pytest.mark.skipif("TISSNET_DATA" not in os.environ, reason="needs real scans: set TISSNET_DATA")


@functools.cache
def brain():
    """A made brain without skull."""
    return make_phantom(5, task="glioma", shape=(40, 44, 36), spacing=SPACING).images


@functools.cache
def crop():
    """A piece of a real patient's brain, without any surface."""
    voxels = np.asarray(nib.load(CROP).dataobj)
    return {name: voxels[..., n] for n, name in enumerate(CHANNELS)}


@functools.cache
def head():
    """A made piece of a head with skin and bone."""
    return make_phantom(0)


def scans(images, spacing=SPACING):
    return {name: (voxels, spacing) for name, voxels in images.items()}


def dimmed(t2, *, left=0.0):
    """A T2 whose fluid and edema keep that part of their brightness above tissue."""
    tissue = 1.25 * np.median(t2[t2 > 0])
    return np.where(t2 > tissue, tissue + left * (t2 - tissue), t2)


def swapped(images, first, second):
    return {**images, first: images[second], second: images[first]}


# --- One scan


@pytest.mark.parametrize("make", [brain, crop])
def test_t2_is_told_from_the_others_by_itself(make):
    spacing = SPACING if make is brain else (1.0, 1.0, 1.0)
    for name, voxels in make().items():
        seen = look(voxels, spacing=spacing)
        assert (seen.margin("T2") > 1) == (name == "T2"), name
        assert (seen.margin("T2") < -1) == (name != "T2"), name


def test_t2_of_a_piece_of_a_head_is_told():
    images = head().images
    assert look(images["T2"], spacing=VS_SPACING).margin("T2") > 1
    assert look(images["ceT1"], spacing=VS_SPACING).margin("T2") < -1


def test_a_look_ignores_units_and_the_order_in_memory():
    t2 = np.asarray(brain()["T2"], np.float32)
    seen = look(t2, spacing=SPACING)
    for other in (np.ascontiguousarray(t2) * 50, np.asfortranarray(t2) / 1e4):
        np.testing.assert_allclose(look(other, spacing=SPACING).features, seen.features, atol=2e-3)


def test_brains_without_skull_are_known_and_a_head_in_zeroed_air_is_none():
    """Scanners may set air to 0; that is no skull stripping."""
    assert all(look(voxels, spacing=SPACING).stripped for voxels in brain().values())
    t2 = np.asarray(brain()["T2"], np.float32)
    # Around the brain 8 mm of dark bone, then a shell of scalp.
    padded = np.pad(t2, 8)
    inside = modality.ndimage.distance_transform_edt(padded == 0) * SPACING[0]
    head = np.where((inside > 10) & (inside < 26), np.median(t2[t2 > 0]), padded)
    assert (head == 0).mean() > 0.1
    seen = look(head, spacing=SPACING)
    assert not seen.stripped
    assert seen.margin("T2") > 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 5, 1), (30, 30, 30)])
@pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
def test_nothing_is_said_of_too_little_or_constant_tissue(shape, value):
    images = {name: np.full(shape, value, np.float32) for name in ("T1", "ceT1", "T2")}
    assert modality_notes(scans(images, (1, 1, 1))) == []


# --- A case


@pytest.mark.parametrize("name", ["T1", "ceT1", "FLAIR"])
def test_a_swapped_brain_is_an_error_and_a_right_one_nothing(name):
    right = examine(scans({key: brain()[key] for key in ("T2", name)}))
    assert (right.errors, right.notes) == ([], [])
    assert right.shown["T2 looks like"].startswith("T2 (score of T2 ")
    found = examine(scans(swapped({key: brain()[key] for key in ("T2", name)}, "T2", name)))
    (error,) = found.errors
    assert (error.check, found.notes) == ("modality", [])
    assert f"T2 and {name} look swapped (score -" in error.found
    assert f"fluid bright on T2 and dark on {name}" in error.expected


def test_a_swapped_head_is_a_note():
    images = head().images
    found = examine(scans(swapped(images, "T2", "ceT1"), VS_SPACING))
    assert found.errors == []
    (note,) = found.notes
    assert "T2 and ceT1 look swapped" in note and note.endswith("On swapped scans the result means nothing.")


def test_the_right_order_of_the_crop_is_not_doubted_and_every_swap_with_t2_is():
    images = scans(crop(), (1.0, 1.0, 1.0))
    assert modality_notes(images) == []
    for name in ("T1", "ceT1", "FLAIR"):
        said = " ".join(modality_notes(swapped(images, "T2", name)))
        assert f"T2 and {name} look swapped" in said or f"given as {name} looks like a T2 scan" in said


@pytest.mark.parametrize("exchanged", [False, True])
def test_t1_and_cet1_are_told_by_what_is_brighter_on_which(exchanged):
    """Vessels and meninges take up the agent: a fiftieth of the voxels at twice their brightness."""
    t1 = np.asarray(brain()["T1"], np.float32)
    vessels = np.random.default_rng(0).random(t1.shape) < 0.02
    pair = {"T1": t1, "ceT1": np.where(vessels, 2 * t1, t1 * np.random.default_rng(1).normal(1, 0.01, t1.shape))}
    notes = modality_notes(scans(swapped(pair, "T1", "ceT1") if exchanged else pair))
    assert ["T1 and ceT1 look swapped (contrast -" in note for note in notes] == [True] * exchanged


@pytest.mark.parametrize("left", [0.1, 0.0, -0.3])
def test_a_t2_with_little_bright_fluid_is_not_refused(left):
    """Its T1 does not look like a T2: two scans must say so."""
    for images, spacing in ((brain(), SPACING), (crop(), (1.0, 1.0, 1.0))):
        assert examine(scans({**images, "T2": dimmed(images["T2"], left=left)}, spacing)).errors == []


def look_of(**likelihood):
    return Look((0.0, 0.0, 0.0), likelihood, True)


def test_a_swap_needs_both_scans_by_hand():
    like_t2, like_t1 = look_of(T1=-3.0, T2=-1.0, FLAIR=-2.0), look_of(T1=-1.0, T2=-1.5, FLAIR=-4.0)
    assert swapped_with({"T2": like_t2, "T1": like_t1}) == {}
    assert swapped_with({"T2": like_t1, "T1": like_t2}) == {"T1": -0.5}
    assert swapped_with({"T2": like_t1, "T1": like_t1}) == {}
    assert swapped_with({"T2": like_t2, "T1": like_t2}) == {}
    assert swapped_with({"T2": None, "T1": like_t2}) == {}


@pytest.mark.parametrize(
    ("given", "likelihood", "said"),
    [
        ("T2", {"T1": -1.0, "T2": -2.5, "FLAIR": -3.0}, "does not look like a T2 scan, but like T1 (fluid is dark"),
        ("T2", {"T1": -3.0, "T2": -2.5, "FLAIR": -1.0}, "does not look like a T2 scan, but like FLAIR"),
        ("T2", {"T1": -1.5, "T2": -2.5, "FLAIR": -1.0}, "does not look like a T2 scan, but like T1 or FLAIR"),
        ("T2", {"T1": -1.6, "T2": -2.5, "FLAIR": -3.0}, None),
        ("ceT1", {"T1": -2.5, "T2": -1.0, "FLAIR": -3.0}, "given as ceT1 looks like a T2 scan"),
        ("FLAIR", {"T1": -1.0, "T2": -2.5, "FLAIR": -3.0}, None),
    ],
)
def test_what_a_note_says(monkeypatch, given, likelihood, said):
    monkeypatch.setattr(modality, "look", lambda voxels, spacing: look_of(**likelihood))
    notes = modality_notes({given: (np.zeros((2, 2, 2)), SPACING)})
    assert [said in note for note in notes] == ([True] if said else [])


# --- Real scans


def volume(path):
    found = NiftiVolume(path)
    return found.voxels(), np.linalg.norm(found.grid()[1][:3, :3], axis=0)


def patient(case="BraTS2021_00002"):
    folder = Path(os.environ["TISSNET_DATA"]) / "glioma" / case
    files = {"T1": "t1", "ceT1": "t1ce", "T2": "t2", "FLAIR": "flair"}
    return {name: volume(folder / f"{case}_{file}.nii.gz") for name, file in files.items()}


@real
def test_a_patient_is_not_doubted_and_a_swapped_one_is():
    right = patient()
    assert modality_notes(right) == []
    for name in ("T1", "ceT1", "FLAIR"):
        assert [e.check for e in examine(swapped({n: right[n] for n in ("T2", name)}, "T2", name)).errors] == [
            "modality"
        ]
    sources = {name: right[name] for name in ("T1", "ceT1", "T2")}
    (note,) = modality_notes({**sources, "T2": right["FLAIR"]})
    assert "does not look like a T2 scan, but like" in note and "FLAIR" in note


@real
@pytest.mark.parametrize("left", [0.0, -0.3])
def test_a_patient_with_little_bright_fluid_is_not_refused(left):
    right = patient()
    t2, spacing = right["T2"]
    assert examine({**right, "T2": (dimmed(t2.astype(np.float32), left=left), spacing)}).errors == []


@real
def test_whole_heads_are_known_as_such_and_their_t2_is_not_doubted():
    """Two people, whose scans the model has not seen; a FLAIR in T2's place is named."""
    for study in ("ms01_study2", "ms03_study2"):
        folder = Path(os.environ["TISSNET_DATA"]) / "heads"
        images = {name: volume(folder / f"{study}_{name}.nii.gz") for name in ("T1", "T2", "FLAIR")}
        found = examine(images)
        assert (found.errors, found.notes) == ([], [])
        assert not any(look(*scan[:1], spacing=scan[1]).stripped for scan in images.values())
        (note,) = modality_notes({"T2": images["FLAIR"]})
        assert "does not look like a T2 scan, but like FLAIR" in note
        found = examine(swapped({name: images[name] for name in ("T1", "T2")}, "T1", "T2"))
        assert found.errors == [] and "T2 and T1 look swapped" in found.notes[0]
