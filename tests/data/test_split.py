"""Tests of scripts.data.split: balance of cohorts and volumes, stability, and split files."""

import csv
import math
from collections import Counter

import numpy as np
import pytest

from scripts.data.datalist import SECTIONS
from scripts.data.split import read_split, stratified_folds, stratified_split, write_split

FRACTIONS = {"training": 0.7, "validation": 0.1, "testing": 0.2}


def made(count: int, cohorts=("A", "B"), shares=(0.65, 0.35), seed: int = 0) -> dict[str, tuple[str, float]]:
    """Patients with log-normal volumes around 1.5 cm3, those of each later cohort twice as large."""
    rng = np.random.default_rng(seed)
    index = rng.choice(len(cohorts), count, p=shares)
    volumes = np.exp(rng.normal(math.log(1500), 1.1, count)) * 2.0**index
    return {f"p{i:03d}": (cohorts[k], float(v)) for i, (k, v) in enumerate(zip(index, volumes, strict=True))}


def counts(sections: dict[str, str]) -> list[int]:
    return [list(sections.values()).count(name) for name in SECTIONS]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, [0, 0, 0]),
        (1, [1, 0, 0]),
        (2, [1, 0, 1]),
        (3, [1, 1, 1]),  # 2.1, 0.3, 0.6: 2, 0, 1, then one to validation
        (4, [2, 1, 1]),  # 2.8, 0.4, 0.8: 3, 0, 1, then one to validation
        (5, [3, 1, 1]),  # 3.5, 0.5, 1: equal remainders, validation before training
        (10, [7, 1, 2]),
        (16, [11, 2, 3]),  # 11.2, 1.6, 3.2
        (200, [140, 20, 40]),
    ],
)
def test_totals_by_largest_remainder(count, expected):
    patients = {f"p{i}": ("A", float(i)) for i in range(count)}
    assert counts(stratified_split(patients)) == expected


def test_other_fractions():
    patients = {f"p{i}": ("A", float(i)) for i in range(8)}
    assert counts(stratified_split(patients, fractions=(0.5, 0.25, 0.25))) == [4, 2, 2]
    assert counts(stratified_split(patients, fractions=(0.75, 0, 0.25))) == [6, 0, 2]
    assert counts(stratified_split(patients, fractions=(0, 0, 1))) == [0, 0, 8]


@pytest.mark.parametrize("seed", range(20))
def test_every_block_of_neighbors_in_volume_has_its_quotas(seed):
    patients = {f"p{i:02d}": ("A", 10.0 * i) for i in range(40)}
    sections = stratified_split(patients, seed=seed)
    for start in range(0, 40, 10):
        block = {p: s for p, s in sections.items() if start <= int(p[1:]) < start + 10}
        assert counts(block) == [7, 1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_cohorts_and_volumes_are_balanced(seed):
    patients = made(200, seed=seed)
    sections = stratified_split(patients, seed=seed)
    assert counts(sections) == [140, 20, 40]
    sizes = Counter(cohort for cohort, _ in patients.values())
    for cohort, size in sizes.items():
        for name, fraction in FRACTIONS.items():
            held = sum(sections[p] == name and patients[p][0] == cohort for p in patients)
            assert abs(held - size * fraction) <= 1
    logs = {p: math.log(volume) for p, (_, volume) in patients.items()}
    spread = np.std(list(logs.values()))
    for name in SECTIONS:
        mean = np.mean([logs[p] for p in patients if sections[p] == name])
        # A simple draw of 20 of 200 has a standard error of 0.21 spreads; blocks stay well below it.
        assert abs(mean - np.mean(list(logs.values()))) < 0.2 * spread


def test_blocks_beat_a_simple_draw():
    """Over 60 seeds, the mean log volume of validation varies less than half as much as by a simple draw."""
    patients = {p: ("A", v) for p, (_, v) in made(200).items()}
    logs = {p: math.log(volume) for p, (_, volume) in patients.items()}
    blocks, simple = [], []
    for seed in range(60):
        sections = stratified_split(patients, seed=seed)
        blocks.append(np.mean([logs[p] for p in patients if sections[p] == "validation"]))
        simple.append(np.random.default_rng(seed).choice(list(logs.values()), 20, replace=False).mean())
    assert np.std(blocks) < 0.5 * np.std(simple)


@pytest.mark.parametrize("seed", range(30))
def test_many_small_cohorts_get_their_quotas(seed):
    names = tuple("ABCDEFGHIJKL")
    patients = made(57, names, np.full(12, 1 / 12), seed)
    sections = stratified_split(patients, seed=seed)
    total = dict(zip(SECTIONS, counts(sections), strict=True))
    assert total == {"training": 40, "validation": 6, "testing": 11}
    sizes = Counter(cohort for cohort, _ in patients.values())
    for cohort, size in sizes.items():
        for name in SECTIONS:
            held = sum(sections[p] == name and patients[p][0] == cohort for p in patients)
            assert abs(held - size * total[name] / 57) <= 1


def test_every_patient_can_come_into_testing():
    patients = made(12)
    drawn = {p for seed in range(60) for p, s in stratified_split(patients, seed=seed).items() if s == "testing"}
    assert drawn == set(patients)


def test_order_does_not_matter_and_the_seed_does():
    patients = made(50)
    backwards = dict(reversed(patients.items()))
    assert list(stratified_split(backwards, seed=3).items()) == list(stratified_split(patients, seed=3).items())
    assert stratified_split(patients, seed=3) != stratified_split(patients, seed=4)


def test_equal_volumes_are_ordered_by_id():
    patients = {f"p{i}": ("A", 0.0) for i in range(30)}
    assert stratified_split(dict(reversed(patients.items()))) == stratified_split(patients)


def test_kept_sections_stay_and_new_patients_fill_up():
    patients = made(60)
    earlier = stratified_split({p: patients[p] for p in list(patients)[:40]})
    sections = stratified_split(patients, seed=1, kept={**earlier, "gone": "testing"})
    assert {p: sections[p] for p in earlier} == earlier
    assert set(sections) == set(patients)
    assert counts(sections) == [42, 6, 12]


def test_kept_sections_beyond_their_total():
    patients = {f"p{i}": ("A", float(i)) for i in range(10)}
    kept = {f"p{i}": "testing" for i in range(5)}  # 3 too many: 5 new for 7 training and 1 validation
    assert counts(stratified_split(patients, kept=kept)) == [4, 1, 5]
    assert stratified_split(patients, kept=dict.fromkeys(patients, "testing")) == dict.fromkeys(patients, "testing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": (0.7, 0.2)}, "found fractions 0.7, 0.2, expected 3: training, validation, testing"),
        ({"fractions": (0.7, 0.2, 0.2)}, "found fractions 0.7, 0.2, 0.2, expected numbers of 0 or more that sum to 1"),
        ({"fractions": (1.1, -0.3, 0.2)}, "found fractions 1.1, -0.3, 0.2"),
        ({"fractions": (math.nan, 0.5, 0.5)}, "found fractions nan"),
        ({"kept": {"a": "train"}}, "patient a: found section 'train'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        stratified_split({"a": ("A", 1.0)}, **arguments)


@pytest.mark.parametrize("volume", [math.nan, math.inf, -1.0])
def test_wrong_volume(volume):
    with pytest.raises(ValueError, match=f"patient a: found volume {volume} mm3"):
        stratified_split({"a": ("A", volume)})


# folds


@pytest.mark.parametrize(("count", "number"), [(5, 34), (2, 2), (3, 10), (5, 60), (7, 41)])
def test_folds_hold_every_patient_once_in_equal_numbers(count, number):
    patients = made(number)
    folds = stratified_folds(patients, count)
    assert set(folds) == set(patients)
    sizes = Counter(folds.values())
    assert set(sizes) == set(range(count)) and max(sizes.values()) - min(sizes.values()) <= 1


def test_folds_are_alike_in_cohort_and_volume():
    """Among `count` neighbors of a cohort in the order of volume, no fold is there thrice."""
    count, patients = 5, made(60)
    for seed in range(5):
        folds = stratified_folds(patients, count, seed=seed)
        for cohort in {cohort for cohort, _ in patients.values()}:
            members = sorted((p for p in patients if patients[p][0] == cohort), key=lambda p: (*patients[p], p))
            numbers = Counter(folds[p] for p in members)
            assert max(numbers.values()) - min(numbers[fold] for fold in range(count)) <= 2, (seed, cohort)
            for start in range(len(members) - count + 1):
                assert max(Counter(folds[p] for p in members[start : start + count]).values()) <= 2, (seed, cohort)


def test_folds_depend_on_patients_and_seed_alone():
    patients = made(34)
    folds = stratified_folds(patients, 5, seed=1)
    assert stratified_folds(dict(reversed(patients.items())), 5, seed=1) == folds
    assert stratified_folds(patients, 5, seed=2) != folds


@pytest.mark.parametrize("count", [-1, 0, 1, 4])
def test_folds_that_cannot_be(count):
    with pytest.raises(ValueError, match=f"--folds is {count}, expected 2 to 3, the number of patients"):
        stratified_folds(made(3), count)


PATIENTS = {"a": "p", "b": "p", "c": "q"}


def test_read_split(tmp_path):
    (tmp_path / "s.csv").write_text("\ufeffsplit,case,note\ntraining,a,\ntraining,b,x\n\ntest,c,\ntesting,d,\n")
    sections = read_split(tmp_path / "s.csv", PATIENTS, ["d"])
    assert sections == {"a": "training", "b": "training", "c": "testing", "d": "testing"}


def test_read_published_split(tmp_path):
    (tmp_path / "s.csv").write_text("vs_gk_1,training\nvs_gk_12,validation\nvs_gk_168,test\nvs_gk_250,test\n")
    patients = {name: name for name in ("VS-SEG-001", "VS-SEG-012", "vs_gk_250")}
    assert read_split(tmp_path / "s.csv", patients, ["VS-SEG-168"]) == {
        "VS-SEG-001": "training",
        "VS-SEG-012": "validation",
        "VS-SEG-168": "testing",
        "vs_gk_250": "testing",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found columns none, expected case,split"),
        ("id,split\na,training\n", "found columns id, split, expected case,split"),
        ("case,split\na,train\n", "line 2: found split 'train', expected one of training, validation, testing"),
        ("case,split\n\n\na,train\n", "line 4: found split 'train'"),
        ("case,split\na\n", "line 2: found split ''"),
        ("case,split\na,training\na,training\n", "line 3: second row for case 'a'"),
        ("case,split\nz,training\n", "1 cases are not in the input folder: z"),
        ("case,split\na,training\nb,testing\n", "patient p is in training and testing"),
        ("a,training\nb,tests\n", "line 2: found split 'tests'"),
        ("\ufeffcase,split\nM\xfcller,training\n".encode("latin1", "ignore"), "cannot read it as CSV in UTF-8"),
    ],
)
def test_wrong_split_files(tmp_path, text, message):
    (tmp_path / "s.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_split(tmp_path / "s.csv", PATIENTS)


def test_published_and_own_name_of_one_case(tmp_path):
    (tmp_path / "s.csv").write_text("vs_gk_12,training\nVS-SEG-012,training\n")
    with pytest.raises(ValueError, match="line 2: second row for case 'VS-SEG-012'"):
        read_split(tmp_path / "s.csv", {"VS-SEG-012": "VS-SEG-012"})


def test_no_split_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv: no such split file"):
        read_split(tmp_path / "none.csv", PATIENTS)


def row(case: str, patient: str, split: str, **more: object) -> dict[str, object]:
    return {"case": case, "patient": patient, "cohort": "A", "split": split, **more}


def test_write_split(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("old")
    rows = [row("a", "p", "training", volume_mm3=12.5), row("b", "p", "training", note='Müller, "K"')]
    write_split(path, [*rows, row("c", "q", "testing")])
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["case", "patient", "cohort", "split", "volume_mm3", "note"]
    assert lines[1] == ["a", "p", "A", "training", "12.5", ""]
    assert lines[2] == ["b", "p", "A", "training", "", 'Müller, "K"']
    assert read_split(path, PATIENTS) == {"a": "training", "b": "training", "c": "testing"}
    assert [file.name for file in tmp_path.iterdir()] == ["split.csv"]


def test_a_patient_in_two_sections_leaves_the_old_file(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="patient p is in training and testing"):
        write_split(path, [row("a", "p", "training"), row("b", "p", "testing")])
    assert path.read_text() == "old"


def test_failure_while_writing_leaves_the_old_file(tmp_path):
    class Unwritable:
        def __str__(self) -> str:
            raise OSError("No space left on device")

    path = tmp_path / "split.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        write_split(path, [row("a", "p", "training", note=Unwritable())])
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["split.csv"]


def test_several_cases_of_a_patient_stay_together(tmp_path):
    """From patients to a stored split of three cases each and back: no patient in two sections."""
    sections = stratified_split(made(20))
    cases = {f"{patient}_{scan}": patient for patient in sections for scan in range(3)}
    write_split(tmp_path / "split.csv", [row(case, p, sections[p]) for case, p in cases.items()])
    stored = read_split(tmp_path / "split.csv", cases)
    assert {(cases[case], section) for case, section in stored.items()} == set(sections.items())
    assert stratified_split(made(20), seed=9, kept=sections) == sections


def test_the_published_split_of_a_partial_download(tmp_path, caplog):
    (tmp_path / "s.csv").write_text("vs_gk_1,training\nvs_gk_2,test\nvs_gk_3,training\n")
    sections = read_split(tmp_path / "s.csv", {"VS-SEG-001": "VS-SEG-001", "VS-SEG-002": "VS-SEG-002"})
    assert sections == {"VS-SEG-001": "training", "VS-SEG-002": "testing"}
    assert "1 cases of the published split are not in the input folder" in caplog.text
