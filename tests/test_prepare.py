"""Tests of scripts.prepare: what it writes, what it leaves out, and how the command line fails.

Real BraTS cases are read only where TISSNET_DATA names a folder that contains `glioma/`.
"""

import csv
import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from made.dicom import make_affine, make_voxels, write_series
from made.files import save
from made.outcomes import digest

from scripts.data import dataset
from scripts.data.datalist import SECTIONS, load_datalist
from scripts.data.dataset import prepare_phantoms, prepare_source
from scripts.data.inputs import find_inputs
from scripts.data.phantom.make import SIZES
from scripts.data.sources.registry import Options
from scripts.pictures import draw_case
from scripts.prepare import main

BUNDLE = Path(__file__).parents[1] / "bundle"
FIXTURE = Path(__file__).parent / "fixtures" / "Task01_BrainTumour"
AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1, 0, 120], [0, 0, 2, -70], [0, 0, 0, 1]])


def brats_case(folder: Path, case: str, labels=(0, 1, 2, 4), ending: str = ".nii.gz") -> None:
    """A tiny BraTS case whose labels lie in the first row."""
    rng = np.random.default_rng(list(case.encode()))
    for suffix in ("_t1", "_t1ce", "_t2", "_flair"):
        save(folder / case / f"{case}{suffix}{ending}", rng.integers(0, 900, (6, 5, 4)).astype(np.int16), AFFINE)
    seg = np.zeros((6, 5, 4), np.int16)
    seg[: len(labels), 0, 0] = labels
    save(folder / case / f"{case}_seg{ending}", seg, AFFINE)


def excluded(output: Path) -> list[tuple[str, str]]:
    with (output / "excluded.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["case", "check", "found", "expected"]
        return [(row["case"], row["check"]) for row in reader]


def sections_of(output: Path) -> dict[str, str]:
    datalist = load_datalist(output / "datalist.json")
    return {entry["case"]: name for name in SECTIONS for entry in datalist[name]}


@pytest.mark.parametrize(("task", "values"), [("glioma", (1, 2, 3)), ("surrogate_t2_cet1", (3,))])
def test_msd(tmp_path, task, values):
    counts = prepare_source("msd", FIXTURE, tmp_path / "out", task)
    assert counts == {"training": 1, "validation": 0, "testing": 0, "excluded": 0}
    load_datalist(tmp_path / "out/datalist.json", check="voxels")
    (entry,) = load_datalist(tmp_path / "out/datalist.json", "training")
    source = nib.load(FIXTURE / "imagesTr/BRATS_001.nii.gz")
    seg = np.asarray(nib.load(FIXTURE / "labelsTr/BRATS_001.nii.gz").dataobj)
    names = ("FLAIR", "T1", "ceT1", "T2")
    for file in [*entry["image"], entry["target"]]:
        written = nib.load(file)
        channel = names.index(Path(file).name.removesuffix(".nii.gz").removeprefix("BRATS_001_"))
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(source.dataobj)[..., channel])
        assert written.get_data_dtype() == np.uint16
        np.testing.assert_array_equal(written.affine, source.affine)
    label = nib.load(entry["label"])
    assert label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(label.dataobj), np.isin(seg, values))
    np.testing.assert_array_equal(label.affine, source.affine)


def test_msd_layouts_agree(tmp_path):
    """One file per channel gives the same voxels as one 4-D file."""
    source = nib.load(FIXTURE / "imagesTr/BRATS_001.nii.gz")
    for channel in range(4):
        voxels = np.asarray(source.dataobj)[..., channel]
        save(tmp_path / "flat" / f"BRATS_001_000{channel}.nii.gz", voxels, source.affine)
    seg = np.asarray(nib.load(FIXTURE / "labelsTr/BRATS_001.nii.gz").dataobj)
    save(tmp_path / "flat/BRATS_001_labels.nii.gz", seg, source.affine)
    prepare_source("msd", tmp_path / "flat", tmp_path / "one", "glioma")
    prepare_source("msd", FIXTURE, tmp_path / "two", "glioma")
    for file in digest(tmp_path / "one"):
        if file.endswith(".nii.gz"):
            first, second = (nib.load(tmp_path / name / file) for name in ("one", "two"))
            np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
            np.testing.assert_array_equal(first.affine, second.affine)


def test_scaled_4d_keeps_stored_numbers_and_scaling(tmp_path):
    stored = np.random.default_rng(0).integers(0, 900, (6, 5, 4, 4)).astype(np.int16)
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(0.5, 3)
    (tmp_path / "in/imagesTr").mkdir(parents=True)
    nib.save(image, tmp_path / "in/imagesTr/x.nii.gz")
    save(tmp_path / "in/labelsTr/x.nii.gz", np.zeros((6, 5, 4), np.uint8), AFFINE)
    prepare_source("msd", tmp_path / "in", tmp_path / "out", Options("glioma", keep_empty=True))
    written = nib.load(tmp_path / "out/x/x_FLAIR.nii.gz")
    assert written.get_data_dtype() == np.int16
    np.testing.assert_array_equal(written.dataobj.get_unscaled(), stored[..., 0])
    np.testing.assert_array_equal(np.asarray(written.dataobj), 0.5 * stored[..., 0] + 3)
    label = nib.load(tmp_path / "out/x/x_label.nii.gz")
    assert not np.asarray(label.dataobj).any()


def test_brats_bytes_are_copied(tmp_path):
    brats_case(tmp_path / "in", "BraTS2021_00001")
    brats_case(tmp_path / "in", "BraTS2021_00002", ending=".nii")
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma")
    for case, ending in (("BraTS2021_00001", ".nii.gz"), ("BraTS2021_00002", ".nii")):
        source = (tmp_path / "in" / case / f"{case}_t1ce{ending}").read_bytes()
        written = (tmp_path / "out" / case / f"{case}_ceT1.nii.gz").read_bytes()
        assert written == source if ending == ".nii.gz" else gzip.decompress(written) == source


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        ("glioma", (0, 1, 2, 4), [0, 1, 1, 1]),
        ("glioma", (0, 1, 2, 3), [0, 1, 1, 1]),
        ("surrogate_t2_cet1", (0, 1, 2, 4), [0, 0, 0, 1]),
        ("surrogate_t2_cet1", (0, 1, 2, 3), [0, 0, 0, 1]),
        ("surrogate_t2_cet1", (0, 1, 2, 2), [0, 0, 0, 0]),
    ],
)
def test_brats_labels(tmp_path, task, labels, expected):
    brats_case(tmp_path / "in", "x", labels)
    prepare_source("brats", tmp_path / "in", tmp_path / "out", task)
    load_datalist(tmp_path / "out/datalist.json", check="voxels")
    label = nib.load(tmp_path / "out/x/x_label.nii.gz")
    assert np.asarray(label.dataobj)[:4, 0, 0].tolist() == expected
    assert np.asarray(label.dataobj).sum() == sum(expected)
    np.testing.assert_array_equal(label.affine, AFFINE)


def test_unneeded_modalities_are_neither_required_nor_written(tmp_path):
    brats_case(tmp_path / "in", "x")
    (tmp_path / "in/x/x_flair.nii.gz").unlink()
    (tmp_path / "in/x/x_t1.nii.gz").write_text("damaged")
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "surrogate_t2_cet1", draw=draw_case)
    names = ["x.json", "x_T2.nii.gz", "x_ceT1.nii.gz", "x_label.nii.gz", "x_overview.png"]
    assert sorted(p.name for p in (tmp_path / "out/x").iterdir()) == names


def test_excluded(tmp_path, caplog):
    folder, output = tmp_path / "in", tmp_path / "out"
    for case in ("a_good", "b_both", "c_missing", "i_good"):
        brats_case(folder, case, (0, 3, 4) if case == "b_both" else (0, 1, 2, 4))
    (folder / "c_missing/c_missing_t2.nii.gz").unlink()
    counts = prepare_source("brats", folder, output, "glioma")
    assert excluded(output) == [("b_both", "label values"), ("c_missing", "missing file")] and counts["excluded"] == 2
    datalist = load_datalist(output / "datalist.json")
    assert sorted(entry["case"] for name in SECTIONS for entry in datalist[name]) == ["a_good", "i_good"]
    names = ["a_good", "cases.csv", "datalist.json", "excluded.csv", "i_good", "overview.html", "split.csv"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert "b_both left out: label values: found label: {0, 3, 4}; expected {0, 1, 2, 4} or {0, 1, 2, 3}" in caplog.text


def test_time_points_of_a_patient_stay_together(tmp_path):
    for patient in range(5):
        for visit in range(2):
            brats_case(tmp_path / "in", f"BraTS-GLI-0000{patient}-00{visit}", (0, 1, 2, 3))
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma")
    datalist = load_datalist(tmp_path / "out/datalist.json")
    visits = {name: Counter(entry["patient"] for entry in datalist[name]) for name in SECTIONS}
    assert {name: len(patients) for name, patients in visits.items()} == {"training": 3, "validation": 1, "testing": 1}
    assert all(count == 2 for patients in visits.values() for count in patients.values())


def test_a_stored_split_stays_when_patients_are_added(tmp_path):
    for case in ("p0", "p1", "p2", "p3"):
        brats_case(tmp_path / "in", case)
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma", seed=1)
    first = sections_of(tmp_path / "out")
    for case in ("a0", "a1", "a2"):
        brats_case(tmp_path / "in", case)
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma", seed=2, overwrite=True)
    second = sections_of(tmp_path / "out")
    assert len(second) == 7
    assert {case: second[case] for case in first} == first


def test_a_patient_who_is_absent_once_keeps_the_section(tmp_path):
    for index in range(10):
        brats_case(tmp_path / "in", f"p{index}")
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma", seed=1)
    first = sections_of(tmp_path / "out")
    away = [case for case, section in first.items() if section == "testing"]
    for case in away:
        (tmp_path / "in" / case).rename(tmp_path / case)
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma", seed=2, overwrite=True)
    for case in away:
        (tmp_path / case).rename(tmp_path / "in" / case)
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma", seed=3, overwrite=True)
    assert sections_of(tmp_path / "out") == first


def test_cases_of_earlier_runs_are_told(tmp_path, caplog):
    for case in ("a", "b"):
        brats_case(tmp_path / "in", case)
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma")
    assert "earlier runs" not in caplog.text
    (tmp_path / "in/b").rename(tmp_path / "b")
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma", overwrite=True)
    assert "1 cases of earlier runs are still there: b; remove what is not wanted" in caplog.text


def test_crossmoda_for_the_perceptor_and_for_inference(tmp_path, caplog):
    rng = np.random.default_rng(0)
    label = np.zeros((6, 5, 4), np.uint8)
    label[2, 2, 2], label[3, 2, 2] = 1, 2
    for name in ("crossmoda2022_ldn_1_ceT1", "crossmoda2022_ldn_2_hrT2"):
        save(tmp_path / f"in/{name}.nii.gz", rng.integers(0, 900, label.shape).astype(np.int16))
    command = ["crossmoda", "--input", str(tmp_path / "in"), "--output"]
    assert main([*command, str(tmp_path / "unlabeled")]) == 0
    assert "crossMoDA's ceT1 and T2 are of different patients" in caplog.text
    assert excluded(tmp_path / "unlabeled") == [("crossmoda2022_ldn_1", "missing file")]
    save(tmp_path / "in/crossmoda2022_ldn_1_Label.nii.gz", label)
    assert main([*command, str(tmp_path / "out")]) == 0
    (entry,) = load_datalist(tmp_path / "out/datalist.json", "training", task="vs_cet1")
    assert entry["image"] == [entry["target"]]
    np.testing.assert_array_equal(np.asarray(nib.load(entry["label"]).dataobj), label == 1)
    (scan,) = find_inputs(tmp_path / "out/scans_only", "vs")
    assert scan["case"] == "crossmoda2022_ldn_2"


def test_cases_csv_is_a_split_file_for_another_task(tmp_path):
    for index in range(6):
        brats_case(tmp_path / "in", f"p{index}")
    prepare_source("brats", tmp_path / "in", tmp_path / "one", "glioma")
    split = tmp_path / "one/cases.csv"
    prepare_source("brats", tmp_path / "in", tmp_path / "two", "surrogate_t2_cet1", split=split, seed=7)
    assert sections_of(tmp_path / "one") == sections_of(tmp_path / "two")
    with split.open(newline="") as file:
        row = next(csv.DictReader(file))
    # Three labeled voxels of 2 mm3.
    assert row["tumor_mm3"] == "6.0" and row["shape"] == "6 x 5 x 4" and row["spacing_mm"] == "1 x 1 x 2"


def test_split_file(tmp_path):
    for case in "abc":
        brats_case(tmp_path / "in", case)
    split = tmp_path / "split.csv"
    split.write_text("case,split\na,training\nb,testing\n")
    prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma", split=split)
    datalist = load_datalist(tmp_path / "out/datalist.json")
    assert [[entry["case"] for entry in datalist[name]] for name in SECTIONS] == [["a"], [], ["b"]]
    assert excluded(tmp_path / "out") == [("c", "not in split")]


def test_overwrite(tmp_path):
    brats_case(tmp_path / "in", "x")
    arguments = ("brats", tmp_path / "in", tmp_path / "out")
    prepare_source(*arguments, "glioma")
    with pytest.raises(ValueError, match="datalist.json exists already; name another --output or add --overwrite"):
        prepare_source(*arguments, "glioma")
    prepare_source(*arguments, "surrogate_t2_cet1", overwrite=True)
    assert load_datalist(tmp_path / "out/datalist.json")["task"] == "surrogate_t2_cet1"


def test_a_second_run_into_the_folder_changes_nothing_or_says_what(tmp_path, caplog):
    """Of the source without a datalist, which asks for no --overwrite."""
    output = tmp_path / "out"

    def run(folder: str, seed: int, patient: str) -> dict[str, str]:
        caplog.clear()
        if not (tmp_path / folder).exists():
            write_series(tmp_path / folder, make_voxels() + seed, make_affine(), patient=patient)
        assert prepare_source("dicom", tmp_path / folder, output, "vs") == {"scans": 1, "excluded": 0}
        return digest(output)

    first = run("a", 0, "p1")
    stamps = {path: path.stat().st_mtime_ns for path in (output / "p1").iterdir()}
    assert run("a", 0, "p1") == first and {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert "earlier runs" not in caplog.text
    second = run("b", 1, "p2")
    assert f"{output}: 1 cases of earlier runs are still there: p1; remove what is not wanted" in caplog.text
    assert second["p1/p1_T2.nii.gz"] == first["p1/p1_T2.nii.gz"] and "p2/p2_T2.nii.gz" in second
    third = run("c", 2, "p1")
    assert f"{output}: 1 cases of earlier runs were made of other files and are replaced: p1" in caplog.text
    assert third["p1/p1_T2.nii.gz"] != first["p1/p1_T2.nii.gz"]


FILES = ("T2", "ceT1", "label")


def files_of_a_case(folder: Path, suffix: str) -> dict[str, np.ndarray]:
    """T2, ceT1 and label of a case, each as `<folder>/p1/<name><suffix>`; their voxels."""
    rngs = {name: np.random.default_rng(seed) for seed, name in enumerate(FILES)}
    voxels = {name: rng.integers(0, 900, (9, 8, 7)).astype(np.int16) for name, rng in rngs.items()}
    voxels["label"] = (voxels["label"] > 800).astype(np.int16)
    for name, values in voxels.items():
        save(plain := folder.parent / f"plain/{name}.nii.gz", values, AFFINE)
        path = folder / f"p1/{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".NII.GZ":
            path.write_bytes(plain.read_bytes())
        else:
            sitk.WriteImage(sitk.ReadImage(str(plain)), str(path))
    return voxels


@pytest.mark.parametrize("register", [False, True])
@pytest.mark.parametrize("suffix", [".NII.GZ", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_format_is_prepared_alike(tmp_path, suffix, register):
    voxels = files_of_a_case(tmp_path / "in", suffix)
    patterns = {name: f"{{case}}/{name}{suffix}" for name in FILES}
    options = Options("vs", patterns=patterns, register=register)
    assert prepare_source("nifti", tmp_path / "in", tmp_path / "out", options)["training"] == 1
    for name in FILES:
        written = nib.load(tmp_path / f"out/p1/p1_{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), voxels[name])
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-4)
    load_datalist(tmp_path / "out/datalist.json", check="voxels")


def test_links_to_blobs_are_prepared_by_their_own_names(tmp_path):
    """As Hugging Face's cache and DVC keep files."""
    voxels = files_of_a_case(tmp_path / "real", ".NII.GZ")
    (tmp_path / "blobs").mkdir()
    for number, name in enumerate(FILES):
        (tmp_path / f"real/p1/{name}.NII.GZ").rename(tmp_path / f"blobs/{number:040x}")
        (tmp_path / "in/p1").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"in/p1/{name}.nii.gz").symlink_to(f"../../blobs/{number:040x}")
    options = Options("vs", patterns={name: f"{{case}}/{name}.nii.gz" for name in FILES})
    assert prepare_source("nifti", tmp_path / "in", tmp_path / "out", options)["training"] == 1
    for name in FILES:
        path = tmp_path / f"out/p1/p1_{name}.nii.gz"
        assert not path.is_symlink()
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), voxels[name])


@pytest.mark.parametrize("other", [".nii", ".nrrd"])
def test_two_files_for_one_modality_are_named(tmp_path, other):
    files_of_a_case(tmp_path / "in", ".nii.gz")
    files_of_a_case(tmp_path / "in", other)
    options = Options("vs", patterns={name: f"{{case}}/{name}.n*" for name in FILES})
    with pytest.raises(ValueError, match="none of the cases can be used"):
        prepare_source("nifti", tmp_path / "in", tmp_path / "out", options)
    with (tmp_path / "out/excluded.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    both = sorted(str(tmp_path / f"in/p1/T2{suffix}") for suffix in (".nii.gz", other))
    assert (row["check"], row["found"]) == ("ambiguous files", f"T2 in {both[0]} and {both[1]}")


def test_a_full_disk_leaves_no_datalist_and_no_part_of_a_case(tmp_path, monkeypatch, caplog):
    brats_case(tmp_path / "in", "x")

    def full(image, path):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", full)
    command = ["brats", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 1
    assert "No space left on device" in caplog.text
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def coarse(monkeypatch):
    """Small phantoms on grids that take a tenth of the time."""
    monkeypatch.setitem(SIZES, ("vs", "small"), ((48, 48, 12), (0.9, 0.9, 2.4)))
    monkeypatch.setitem(SIZES, ("glioma", "small"), ((40, 44, 36), (4.0, 4.0, 4.0)))


@pytest.mark.parametrize("task", ["vs", "vs_cet1", "glioma", "surrogate_t2_cet1"])
def test_phantoms(tmp_path, coarse, task):
    counts = prepare_phantoms(tmp_path, task, {"training": 2, "validation": 1, "testing": 0}, without_tumor=0.5)
    assert counts == {"training": 2, "validation": 1, "testing": 0, "excluded": 0}
    load_datalist(tmp_path / "datalist.json", check="voxels")
    datalist = load_datalist(tmp_path / "datalist.json")
    entries = datalist["training"] + datalist["validation"]
    assert [entry["case"] for entry in entries] == [f"phantom_{task}_{index:04d}" for index in range(3)]
    image = nib.load(entries[0]["target"])
    assert image.get_data_dtype() == np.int16
    record = json.loads((tmp_path / entries[1]["case"] / f"{entries[1]['case']}.json").read_text())["identity"]
    assert record["options"] == {
        "seed": 1,
        "tumor": False,
        "shape": list(image.shape),
        "spacing": pytest.approx(image.header.get_zooms()),
        "keep_empty": True,
    }
    labels = [entry["label"] for entry in entries]
    assert [bool(np.asarray(nib.load(label).dataobj).any()) for label in labels] == [True, False, True]
    assert excluded(tmp_path) == []


def test_phantoms_are_reproducible(tmp_path, coarse):
    counts = {"training": 1, "validation": 0, "testing": 1}
    for name, seed, workers in (("one", 5, 1), ("two", 5, 2), ("other", 6, 1)):
        prepare_phantoms(tmp_path / name, "vs", counts, seed=seed, workers=workers)
    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(tmp_path / "other")


@pytest.mark.parametrize(("fraction", "without"), [(0, []), (0.15, [6, 13, 19]), (1, list(range(20)))])
def test_phantoms_without_tumor(tmp_path, monkeypatch, fraction, without):
    class Seen(Exception):
        pass

    def run_jobs(jobs, *others, **options):
        raise Seen([index for index, job in enumerate(jobs) if not job.options["tumor"]])

    monkeypatch.setattr(dataset, "run_jobs", run_jobs)
    with pytest.raises(Seen) as seen:
        prepare_phantoms(tmp_path, "vs", {"training": 20, "validation": 0, "testing": 0}, without_tumor=fraction)
    assert seen.value.args[0] == without


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["brats", "--input", "none", "--output", "out"], "none: no such folder"),
        (["brats", "--input", "in", "--output", "out"], "in: no brats case found"),
        (["msd", "--input", "in", "--output", "out"], "in: no msd case found"),
        (["brats", "--input", "bad", "--output", "out"], "none of the cases can be used"),
        (["brats", "--input", "bad", "--output", "bad"], "overlaps --input"),
        (["brats", "--input", "bad", "--output", "bad/out"], "overlaps --input"),
        (["brats", "--input", "bad", "--output", "out", "--split", "none.csv"], "none.csv: no such split file"),
        (["brats", "--input", "bad", "--output", "file"], "file is a file, expected a folder"),
        (
            ["brats", "--input", "bad", "--output", "out", "--fractions", "70", "10", "20"],
            "numbers of 0 or more that sum",
        ),
        (["brats", "--input", "bad", "--output", "out", "--seed", "-1"], "the seed of the split is -1"),
        (["dicom", "--input", "in", "--output", "out", "--series", "T2=*t2*"], "T2=*t2*: no regular expression"),
        (["dicom", "--input", "in", "--output", "out", "--series", "t2=ciss"], "NAME is one of T2, ceT1"),
        (["dicom", "--input", "in", "--output", "out", "--series", "T2=a", "T2=b"], "--series gives T2 twice"),
        (["nifti", "--input", "in", "--output", "out", "--pattern", "T9={case}.nii"], "NAME is one of T2, ceT1, label"),
        (["vs_seg", "--input", "in", "bad", "--output", "out"], "no vs_seg case found"),
        (["msd", "--input", "in", "bad", "--output", "out"], "--input names 2 folders, expected one for msd"),
        (["phantom", "--output", "out", "--training", "-1"], "expected no negative number"),
        (["phantom", "--output", "out", "--training=0", "--validation=0", "--testing=0"], "at least one case"),
        (["phantom", "--output", "out", "--without-tumor", "2"], "--without-tumor is 2.0"),
        (["phantom", "--output", "out", "--seed", "-3"], "--seed is -3"),
        (["phantom", "--output", "out", "--workers", "0"], "--workers is 0"),
    ],
)
def test_user_errors_are_one_line(tmp_path, monkeypatch, caplog, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "file").touch()
    brats_case(tmp_path / "bad", "x", (0, 9))
    assert main(arguments) == 1
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1 and "\n" not in errors[0] and message in errors[0]
    assert not (tmp_path / "out/datalist.json").exists()


def test_folds(tmp_path):
    """Two cases of one patient never part; the folds of an earlier run do not outlive another one's."""
    for number in range(1, 7):
        brats_case(tmp_path / "in", f"BraTS2021_{number:05d}")
    brats_case(tmp_path / "in", "BraTS-GLI-00003-000")
    out = tmp_path / "out"
    command = ["brats", "--input", str(tmp_path / "in"), "--output", str(out), "--overwrite", "--folds"]
    tested = Counter()
    assert main([*command, "3"]) == 0
    for fold in range(3):
        datalist = load_datalist(out / f"datalist_fold{fold}.json", check="voxels")
        cases = {name: {entry["case"] for entry in datalist[name]} for name in ("training", "testing")}
        patients = {name: {entry["patient"] for entry in datalist[name]} for name in ("training", "testing")}
        assert datalist.get("validation", []) == []
        assert len(cases["training"] | cases["testing"]) == 7 and not cases["training"] & cases["testing"]
        assert len(patients["testing"]) == 2 and not patients["training"] & patients["testing"]
        tested.update(cases["testing"])
    assert set(tested.values()) == {1} and len(tested) == 7
    first = (out / "datalist_fold0.json").read_bytes()
    assert main([*command, "3"]) == 0 and (out / "datalist_fold0.json").read_bytes() == first
    assert main([*command, "2"]) == 0
    assert sorted(path.name for path in out.glob("datalist_fold*")) == ["datalist_fold0.json", "datalist_fold1.json"]
    assert main(command[:-1]) == 0
    assert list(out.glob("datalist_fold*")) == []


@pytest.mark.parametrize("count", [-1, 1])
def test_a_wrong_number_of_folds_is_told_before_anything_is_done(tmp_path, count):
    brats_case(tmp_path / "in", "BraTS2021_00001")
    with pytest.raises(ValueError, match=f"--folds is {count}, expected 2 or more, or 0 for none"):
        prepare_source("brats", tmp_path / "in", tmp_path / "out", "glioma", folds=count)
    assert not (tmp_path / "out").exists()


def test_command_line_in_its_own_process(tmp_path):
    def run(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "scripts.prepare", *arguments]
        done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    status, told, _ = run("msd", "--input", str(FIXTURE), "--output", str(tmp_path / "out"))
    counts = "training 1, validation 0, testing 0, excluded 0"
    assert (status, told) == (0, f"{tmp_path / 'out/datalist.json'}: {counts}\n")
    error = "ERROR: nowhere: no such folder, expected the brats data set as downloaded\n"
    assert run("brats", "--input", "nowhere", "--output", str(tmp_path / "new")) == (1, "", error)


def test_list_and_wrong_usage(tmp_path, capsys):
    assert main(["msd", "--input", str(FIXTURE), "--list"]) == 0
    assert capsys.readouterr().out == "BRATS_001: patient BRATS_001, cohort MSD, 2 files\n1 cases, 0 left out\n"
    for arguments in (["brats", "--output", "x"], ["brats", "--input", str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)


@pytest.mark.parametrize("task", ["glioma", "surrogate_t2_cet1"])
def test_real_brats(tmp_path, task):
    """Three published cases with label 3 and one with label 4, compared voxel by voxel with their segmentation."""
    root = os.environ.get("TISSNET_DATA")
    if root is None or not (Path(root) / "glioma").is_dir():
        pytest.skip("TISSNET_DATA does not name a folder with glioma/ (BraTS cases)")
    cases = sorted(path for path in (Path(root) / "glioma").iterdir() if path.is_dir())
    chosen = [case.name for case in (*cases[:3], cases[-1])]
    for name in chosen:
        (tmp_path / "in" / name).mkdir(parents=True)
        for file in (Path(root) / "glioma" / name).iterdir():
            (tmp_path / "in" / name / file.name).symlink_to(file)
    prepare_source("brats", tmp_path / "in", tmp_path / "out", task)
    load_datalist(tmp_path / "out/datalist.json", check="voxels")
    for name in chosen:
        seg = np.asarray(nib.load(Path(root) / "glioma" / name / f"{name}_seg.nii.gz").dataobj)
        label = np.asarray(nib.load(tmp_path / "out" / name / f"{name}_label.nii.gz").dataobj)
        np.testing.assert_array_equal(label, seg > 0 if task == "glioma" else seg >= 3)
