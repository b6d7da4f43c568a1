"""Which patient is in training, validation or testing: drawn by stratified blocks, or read from a split file.

Everything here is decided per patient, so that cases of one patient never part.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType

import numpy as np

from scripts.data.datalist import SECTIONS
from scripts.files import whole_file

logger = logging.getLogger(__name__)

FRACTIONS = (0.7, 0.1, 0.2)
_FRACTION_TOLERANCE = 1e-6

# Names of a section in split files, those of the published split of Vestibular-Schwannoma-SEG included.
_SECTION_NAMES = {**{name: name for name in SECTIONS}, "test": "testing"}
_COLUMNS = ("case", "patient", "cohort", "split")
_PUBLISHED_NAME = re.compile(r"vs_gk_(\d+)")
_NOTHING: Mapping[str, str] = MappingProxyType({})


def stratified_split(
    patients: Mapping[str, tuple[str, float]],
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    kept: Mapping[str, str] = _NOTHING,
) -> dict[str, str]:
    """Section of each patient, alike in cohort and tumor volume, by block randomization.

    The totals follow the fractions by largest remainder, with at least one validation and one testing patient from
    three patients on, and every cohort gets its share of each section to within one patient. The patients of a cohort
    are sorted by volume and id and taken in blocks of about 1 / (smallest fraction); each block holds its share of
    every section in random order, so that small and large tumors are spread alike.

    Args:
        patients: patient id to cohort and tumor volume in mm3; their order does not matter.
        fractions: of training, validation and testing; a section of fraction 0 stays empty.
        seed: decides all that is random.
        kept: patient id to section, as decided earlier; those stay, and the others are assigned so that the totals
            come as near to the fractions as they can. Patients that are not in `patients` are ignored.

    Returns:
        Patient id to section, sorted by id. A single patient is in training.

    Raises:
        ValueError: fractions that are negative or do not sum to 1, a volume that is not a number of 0 or more, an
            unknown section in `kept`.
    """
    _check_arguments(patients, fractions, seed, kept)
    sections = {patient: kept[patient] for patient in patients if patient in kept}
    new = sorted(
        (patient for patient in patients if patient not in sections), key=lambda patient: (*patients[patient], patient)
    )
    cohorts: dict[str, list[str]] = {}
    for patient in new:
        cohorts.setdefault(patients[patient][0], []).append(patient)
    totals = _totals(len(patients), fractions)
    held = Counter(sections.values())
    missing = {name: max(totals[name] - held[name], 0) for name in SECTIONS}
    if sum(missing.values()) != len(new):  # Some sections hold more than their total already.
        missing = _apportion(len(new), missing)
    rng = np.random.default_rng(seed)
    block = round(1 / min(fraction for fraction in fractions if fraction > 0))
    shares = _shares({cohort: len(members) for cohort, members in cohorts.items()}, missing, rng)
    for cohort, members in cohorts.items():
        sections |= zip(members, _block_order(shares[cohort], block, rng), strict=True)
    return dict(sorted(sections.items()))


def stratified_folds(patients: Mapping[str, tuple[str, float]], count: int, *, seed: int = 0) -> dict[str, int]:
    """Fold of each patient for a cross-validation, alike in cohort and tumor volume, of equal size to within one.

    Args:
        patients: patient id to cohort and tumor volume in mm3; their order does not matter.
        count: number of folds.
        seed: decides which fold each of `count` patients of like cohort and volume is in.

    Returns:
        Patient id to fold, 0 to count - 1, sorted by id.

    Raises:
        ValueError: fewer than 2 folds, or fewer patients than folds.
    """
    if not 2 <= count <= len(patients):
        raise ValueError(f"--folds is {count}, expected 2 to {len(patients)}, the number of patients")
    rng = np.random.default_rng(seed)
    order = sorted(patients, key=lambda patient: (*patients[patient], patient))
    folds = np.concatenate([rng.permutation(count) for _ in range(0, len(order), count)])
    return dict(sorted(zip(order, folds[: len(order)].tolist(), strict=True)))


def read_split(path: Path, patients: Mapping[str, str], left_out: Collection[str] = ()) -> dict[str, str]:
    """Section of each case from a split file.

    Either a CSV with columns case and split, others allowed, as `write_split` writes it, or two columns without
    header, `vs_gk_12,training`, as published with Vestibular-Schwannoma-SEG. There, vs_gk_12 is patient VS-SEG-012;
    either name is understood. Sections are training, validation, and testing or test.

    The published split may name more cases than are there, as of a partial download; that is told in the log.

    Args:
        path: the CSV file.
        patients: case id to patient id of all cases found.
        left_out: cases that were found and are excluded already; rows for them are no error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no text in UTF-8, missing columns, unknown section or case, two rows for a case, a patient in two
            sections.
    """
    sections: dict[str, str] = {}
    known = {*patients, *left_out}
    for line, row in _split_rows(path):
        name, section = row["case"], row["split"]
        if section not in _SECTION_NAMES:
            raise ValueError(f"{path}, line {line}: found split {section!r}, expected one of {', '.join(SECTIONS)}")
        case = _published_case(name, known)
        if case in sections:
            raise ValueError(f"{path}, line {line}: second row for case {case!r}, expected one; remove it")
        sections[case] = _SECTION_NAMES[section]
    unknown = [case for case in sections if case not in known]
    if unknown and all(_PUBLISHED_NAME.fullmatch(case) for case in unknown):
        logger.warning("%s: %d cases of the published split are not in the input folder", path, len(unknown))
        sections = {case: section for case, section in sections.items() if case in known}
    elif unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(f"{path}: {len(unknown)} cases are not in the input folder: {shown}; remove their rows")
    _refuse_leakage(path, ((patients[case], section) for case, section in sections.items() if case in patients))
    return sections


def read_accepted(path: Path, cases: Collection[str]) -> dict[str, str]:
    """Case to the cell of the column `accept` of a split file; none where there is no such column."""
    return {_published_case(row["case"], cases): row.get("accept", "") for _, row in _split_rows(path)}


def write_split(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a split file that `read_split` reads, in one step: a reader sees the old file or the new one.

    Args:
        path: the CSV file; its folder must exist.
        rows: one per case, with case, patient, cohort and split, and any facts of one's own; those become columns
            after the four, and stay empty where a row lacks them.

    Raises:
        ValueError: a patient in two sections; nothing is written then.
    """
    _refuse_leakage(path, ((str(row["patient"]), str(row["split"])) for row in rows))
    columns = dict.fromkeys([*_COLUMNS, *(column for row in rows for column in row)])
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _check_arguments(
    patients: Mapping[str, tuple[str, float]], fractions: Sequence[float], seed: int, kept: Mapping[str, str]
) -> None:
    """Refuse what `stratified_split` cannot work with."""
    if seed < 0:
        raise ValueError(f"the seed of the split is {seed}, expected 0 or more")
    shown = ", ".join(f"{fraction:g}" for fraction in fractions)
    if len(fractions) != len(SECTIONS):
        raise ValueError(f"found fractions {shown}, expected {len(SECTIONS)}: {', '.join(SECTIONS)}")
    if not all(fraction >= 0 for fraction in fractions) or not abs(sum(fractions) - 1) <= _FRACTION_TOLERANCE:
        raise ValueError(f"found fractions {shown}, expected numbers of 0 or more that sum to 1")
    for patient, (_, volume) in patients.items():
        if not (math.isfinite(volume) and volume >= 0):
            raise ValueError(f"patient {patient}: found volume {volume} mm3, expected a number of 0 or more")
    for patient, section in kept.items():
        if section not in SECTIONS:
            raise ValueError(f"patient {patient}: found section {section!r}, expected one of {', '.join(SECTIONS)}")


def _totals(count: int, fractions: Sequence[float]) -> dict[str, int]:
    """Number of patients per section: largest remainder, then at least one in each section that is wanted."""
    totals = _apportion(count, dict(zip(SECTIONS, fractions, strict=True)))
    if count == 1:
        return {name: int(name == "training") for name in SECTIONS}
    if count >= len(SECTIONS):
        for name, fraction in zip(SECTIONS, fractions, strict=True):
            if fraction > 0 and totals[name] == 0:
                totals[max(SECTIONS, key=totals.__getitem__)] -= 1
                totals[name] = 1
    return totals


def _apportion(count: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to `count`, proportional to the weights by largest remainder.

    Remainders that are equal but for rounding go to testing, then validation, then training.
    """
    whole = sum(weights.values())
    quotas = {name: count * weights[name] / whole for name in SECTIONS}
    numbers = {name: math.floor(quotas[name] + _FRACTION_TOLERANCE) for name in SECTIONS}
    order = sorted(reversed(SECTIONS), key=lambda name: round(numbers[name] - quotas[name], 6))
    for name in order[: count - sum(numbers.values())]:
        numbers[name] += 1
    return numbers


def _shares(sizes: Mapping[str, int], totals: Mapping[str, int], rng: np.random.Generator) -> dict[str, dict[str, int]]:
    """Patients per cohort and section: rows sum to the cohorts' sizes, columns to the totals, all within one of quota.

    Every cohort first gets its quotas rounded down. What is left over is handed out cohort by cohort, at most one per
    section, always to the sections with most left: this meets every sum whenever that is possible (Gale 1957, Ryser
    1957), and it is, as the quotas themselves meet them.
    """
    count = sum(sizes.values())
    quotas = {
        cohort: {name: size * totals[name] / count for name in SECTIONS} for cohort, size in sorted(sizes.items())
    }
    shares = {
        cohort: {name: math.floor(quota + _FRACTION_TOLERANCE) for name, quota in row.items()}
        for cohort, row in quotas.items()
    }
    left = {name: totals[name] - sum(row[name] for row in shares.values()) for name in SECTIONS}
    for cohort in rng.permutation(sorted(sizes)).tolist():
        row = shares[cohort]
        # Of sections with equally many left, the one that the cohort lacks most.
        order = sorted(SECTIONS, key=lambda name: (-left[name], row[name] - quotas[cohort][name]))
        for name in order[: sizes[cohort] - sum(row.values())]:
            row[name] += 1
            left[name] -= 1
    return shares


def _block_order(numbers: Mapping[str, int], block: int, rng: np.random.Generator) -> list[str]:
    """Sections in an order that spreads each evenly over the whole, shuffled within blocks."""
    even = sorted(
        ((index + 0.5) / number, name) for name, number in numbers.items() for index in range(number)
    )  # The j-th of n members of a section belongs at (j + 1/2) / n of the way.
    order: list[str] = []
    for start in range(0, len(even), block):
        order += rng.permutation([name for _, name in even[start : start + block]]).tolist()
    return order


def _split_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells of each row, "case" and "split" among them, as written."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such split file, expected a CSV with columns case,split")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot read it as CSV in UTF-8 ({error}); save it as such") from error
    columns = rows[0][1] if rows else []
    if len(columns) == 2 and columns[1] in _SECTION_NAMES:
        columns = ["case", "split"]
    elif {"case", "split"} <= set(columns):
        del rows[0]
    else:
        found = ", ".join(columns) or "none"
        raise ValueError(f"{path}: found columns {found}, expected case,split in the first line")
    return [(line, dict(zip_longest(columns, row[: len(columns)], fillvalue=""))) for line, row in rows]


def _published_case(name: str, known: Collection[str]) -> str:
    """The case that a row of a split file names; vs_gk_12 is VS-SEG-012 where no case is called vs_gk_12."""
    match = _PUBLISHED_NAME.fullmatch(name)
    if match is None or name in known:
        return name
    numbered = f"VS-SEG-{int(match[1]):03d}"
    return numbered if numbered in known else name


def _refuse_leakage(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Raise an error for a patient in two sections; rows are patient and section."""
    sections: dict[str, str] = {}
    for patient, section in rows:
        if sections.setdefault(patient, section) != section:
            raise ValueError(
                f"{path}: patient {patient} is in {sections[patient]} and {section}; "
                "move all cases of the patient into one section"
            )
