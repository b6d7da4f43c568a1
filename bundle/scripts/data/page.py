"""One HTML page of what was prepared, to look at: a card with picture per case, and what was left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from scripts.data.case import Outcome
from scripts.data.datalist import SECTIONS
from scripts.data.volume import CaseError
from scripts.files import whole_file

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --soft: #667; --line: #ccd; --paper: #fff; --card: #f6f7f9;
  --alarm: #a33a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --soft: #9aa; --line: #3a3f45; --paper: #16181a;
  --card: #1f2226; --alarm: #ff9d5c; } }
body { margin: 1.5rem auto; max-width: 84rem; padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; } td.number, th.number { text-align: right; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(25rem, 100%), 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem;
  break-inside: avoid; overflow-wrap: anywhere; }
.card.warned { border-color: var(--alarm); } .card h3 { margin: .4rem 0 .2rem; font-size: 1rem; }
.card img { width: 100%; height: auto; display: block; background: #000; }
.nopicture { padding: 3rem 0; text-align: center; color: var(--soft); border: 1px dashed var(--line); }
.card ul { margin: .2rem 0; padding-left: 1.1rem; color: var(--alarm); }
.card dl { display: grid; grid-template-columns: fit-content(36%) 1fr; gap: 0 .8rem; margin: .3rem 0 0;
  font-size: .87rem; }
dt { color: var(--soft); } dd { margin: 0; } .note { color: var(--soft); }
@media print { body { max-width: none; font-size: 10pt; } .cards { grid-template-columns: 1fr 1fr; } }
"""


def overview_path(case: str) -> str:
    """Path of a case's picture, relative to the page."""
    return f"{case}/{case}_overview.png"


def write_overview(
    path: Path, title: str, sections: Mapping[str, Sequence[Outcome]], excluded: Sequence[CaseError] = ()
) -> None:
    """Write the page in one step: counts, cases left out, then a card per case, those with warnings first.

    It needs nothing but the pictures beside it (`overview_path`), no script and no network.

    Args:
        path: HTML file in the folder that holds the cases' folders.
        title: heading of the page.
        sections: training, validation, testing, or what else the cases serve, to those that can be used.
        excluded: what left the others out, a row each.
    """
    cases = [(outcome, section) for section, outcomes in sections.items() for outcome in outcomes]
    cases.sort(key=lambda case: (not case[0].facts.warnings, case[0].case))
    warned = sum(bool(outcome.facts.warnings) for outcome, _ in cases)
    page = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *_counts_table(sections),
        *_excluded_table(excluded),
        f"<h2>Cases ({len(cases)}, {warned} with warnings)</h2>",
        '<p class="note">Radiological convention: the patient\'s right is on the left. The outline is the mask.</p>',
        '<div class="cards">',
        *(_card(path.parent, outcome, section) for outcome, section in cases),
        "</div></body></html>",
    ]
    with whole_file(path) as partial:
        # File names that are not valid text become visible escapes.
        partial.write_text("\n".join(page) + "\n", encoding="utf-8", errors="backslashreplace")


def _counts_table(sections: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Number of cases per cohort and section, with totals; sections of one's own come after the usual three."""
    names = (*SECTIONS, *sorted(name for name, outcomes in sections.items() if outcomes and name not in SECTIONS))
    cohorts = {name: [outcome.cohort for outcome in sections.get(name, ())] for name in names}
    rows: list[list[object]] = []
    for cohort in sorted(set().union(*cohorts.values())):
        counts = [cohorts[name].count(cohort) for name in names]
        rows.append([cohort, *counts, sum(counts)])
    totals = [len(cohorts[name]) for name in names]
    return _table("counts", ("cohort", *names, "total"), [*rows, ["total", *totals, sum(totals)]])


def _excluded_table(excluded: Sequence[CaseError]) -> list[str]:
    """One row per problem that left a case out."""
    heading = f"<h2>Left out ({len({problem.case for problem in excluded})})</h2>"
    if not excluded:
        return [heading, '<p class="note">No case was left out.</p>']
    return [heading, *_table("excluded", CaseError.COLUMNS, [problem.row for problem in excluded])]


def _table(name: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """A table with a header row; numbers are set to the right."""
    lines = [f'<table id="{name}"><thead><tr>', *(f"<th>{escape(column)}</th>" for column in columns)]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        cells = [
            f'<td class="number">{cell}</td>' if isinstance(cell, int) else f"<td>{escape(str(cell))}</td>"
            for cell in row
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return [*lines, "</tbody></table>"]


def _card(folder: Path, case: Outcome, section: str) -> str:
    """Picture, name, warnings and facts of one case."""
    picture = '<div class="nopicture">no picture</div>'
    if (folder / overview_path(case.case)).is_file():
        link = escape(quote(overview_path(case.case)))
        alternative = escape(f"Three planes of {case.case} with the outline of the mask")
        picture = f'<a href="{link}"><img src="{link}" loading="lazy" alt="{alternative}"></a>'
    facts = {"patient": case.patient, "cohort": case.cohort, "section": section, **_measures(case)}
    facts |= case.facts.shown
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in case.facts.warnings)
    return "".join(
        [
            f'<article class="card{" warned" if warnings else ""}">{picture}<h3>{escape(case.case)}</h3>',
            f"<ul>{warnings}</ul>" if warnings else "",
            "<dl>",
            *(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()),
            "</dl></article>",
        ]
    )


def _measures(case: Outcome) -> dict[str, str]:
    """Volume, grid and spacing in words; those that are known."""
    measures = {}
    if case.tumor_mm3 is not None:
        measures["tumor"] = f"{case.tumor_mm3:.0f} mm³ ({case.tumor_mm3 / 1000:.2f} cm³)"
    if case.shape:
        measures["grid"] = " × ".join(map(str, case.shape))
    if case.spacing:
        measures["spacing"] = " × ".join(f"{size:.3g}" for size in case.spacing) + " mm"
    return measures
