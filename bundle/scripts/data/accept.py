"""What a person has looked at and accepted: `--accept CASE[:CHECK]` and the column `accept` of a split file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from scripts.data.case import ACCEPTABLE

_SHOWN = 10  # Cases that an error lists.


def accepted_checks(
    texts: Sequence[str], cases: Collection[str], *, rows: Mapping[str, str] | None = None
) -> dict[str, set[str]]:
    """Case to the checks that it may fail.

    Args:
        texts: each "CASE:CHECK", or "CASE" for every one of `ACCEPTABLE`.
        cases: all that were found.
        rows: case to the cell of a split file: checks, separated by semicolons, or nothing.

    Raises:
        ValueError: an unknown case, or a check that cannot be accepted; says which there are.
    """
    accepted: dict[str, set[str]] = {}
    for text in texts:
        case, colon, check = text.rpartition(":")
        if text in cases or not colon:
            case, check = text, ""
        if case not in cases:
            shown = ", ".join(sorted(cases)[:_SHOWN]) + (", ..." if len(cases) > _SHOWN else "")
            raise ValueError(f"--accept {text!r}: no case is called {case!r}, expected one of {shown or 'none'}")
        accepted.setdefault(case, set()).update(_known([check] if check else ACCEPTABLE, f"--accept {text!r}"))
    for case, cell in (rows or {}).items():
        checks = [check.strip() for check in cell.split(";") if check.strip()]
        if checks:
            accepted.setdefault(case, set()).update(_known(checks, f"accept of {case!r} in the split file"))
    return accepted


def _known(checks: Iterable[str], where: str) -> list[str]:
    checks = list(checks)
    for check in checks:
        if check not in ACCEPTABLE:
            raise ValueError(
                f"{where}: {check!r} cannot be accepted, expected one of {', '.join(ACCEPTABLE)}. These are judgments "
                "that a person can overrule; what is wrong with a geometry, a grid or values must be corrected in the "
                "files"
            )
    return checks
