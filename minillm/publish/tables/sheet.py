"""A small table as CSV, Markdown and LaTeX: every table but the main one is a `Sheet`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.files import whole_file
from minillm.publish.style import DASH, latex, latex_row, markdown

# Rows that fit on a page.
PAGE = 45


@dataclass(frozen=True)
class Sheet:
    """A table to read (`columns`, `rows` of texts, `notes`) and its numbers in full (`records`, for the CSV).

    n: what was counted, in words.  missing: one line that says what is missing if nothing was measured.
    texts: indices of the columns that hold running text.  left: how many columns, the names, are aligned
    left.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    records: Sequence[dict[str, Any]]
    n: str = ""
    missing: str = ""
    texts: frozenset[int] = field(default_factory=frozenset)
    left: int = 2


def write(sheet: Sheet, out: Path, name: str) -> None:
    """Write NAME.csv, NAME.md and NAME.tex to `out`."""
    columns = list(dict.fromkeys(key for record in sheet.records for key in record)) or list(sheet.columns)
    with whole_file(out / f"{name}.csv") as partial:
        table_of(sheet.records, columns).to_csv(partial, index=False)
    for kind, text in (("md", as_markdown(sheet)), ("tex", as_latex(sheet))):
        with whole_file(out / f"{name}.{kind}") as partial:
            partial.write_text(text, encoding="utf-8")


def table_of(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """`records` with types kept: in a typed column with missing values, the count 12 would become 12.0."""
    return pd.DataFrame(list(records), columns=list(columns), dtype=object)


def as_markdown(sheet: Sheet) -> str:
    """The table and its notes."""
    lines = [f"**{markdown(sheet.caption)}**", ""]
    if sheet.missing:
        lines += [f"*{markdown(sheet.missing)}*", ""]
    if sheet.rows:
        left = [i < sheet.left or i in sheet.texts for i in range(len(sheet.columns))]
        lines.append("| " + " | ".join(map(markdown, sheet.columns)) + " |")
        lines.append("|" + "|".join(":--" if is_left else "--:" for is_left in left) + "|")
        lines += ["| " + " | ".join(map(markdown, row)) + " |" for row in sheet.rows]
        lines.append("")
    return "\n".join([*lines, "  \n".join(map(markdown, sheet.notes)), ""])


def as_latex(sheet: Sheet) -> str:
    """A booktabs `table`, a `longtable` if longer than a page, or a sentence if there is nothing to show."""
    width = round(0.9 / (len(sheet.texts) + 0.18 * (len(sheet.columns) - len(sheet.texts))), 2)
    kinds = "".join(
        rf"p{{{width}\linewidth}}" if i in sheet.texts else ("l" if i < sheet.left else "r")
        for i in range(len(sheet.columns))
    )
    caption = rf"\caption{{{latex(sheet.caption)}}}"
    note = [rf"\emph{{{latex(sheet.missing)}}}\par"] if sheet.missing else []
    foot = [r"\par\smallskip", r"\parbox{\linewidth}{\footnotesize", *map(latex, sheet.notes), "}"]
    head, body = [r"\toprule", _row(sheet.columns), r"\midrule"], [*map(_row, sheet.rows), r"\bottomrule"]
    if len(sheet.rows) > PAGE:
        lines = [r"% \usepackage{booktabs,longtable}", *note, rf"\begin{{longtable}}{{{kinds}}}"]
        lines += [caption + r" \\", *head, r"\endhead", *body, r"\end{longtable}"]
        return "\n".join([*lines, *foot, ""])
    table = [rf"\begin{{tabular}}{{{kinds}}}", *head, *body, r"\end{tabular}"] if sheet.rows else []
    lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", caption]
    return "\n".join([*lines, *note, *table, *foot, r"\end{table}", ""])


def _row(cells: Sequence[str]) -> str:
    return latex_row(r"\newline ".join(map(latex, cell.splitlines())) for cell in cells)


def decimals(value: tuple[float, float | None] | None, places: int, scale: float = 1.0) -> str:
    """ "0.123 ± 0.004" with `places` decimals; a dash for None."""
    if value is None:
        return DASH
    mean, error = value
    return f"{mean * scale:.{places}f}" + ("" if error is None else f" ± {error * scale:.{places}f}")


def merged_labels(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """`rows` with the first cell empty if it repeats the one above."""
    shown, before = [], None
    for row in rows:
        shown.append([("" if row[0] == before else row[0]), *row[1:]])
        before = row[0]
    return shown
