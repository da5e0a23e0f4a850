"""The published numbers (config/paper/*.csv), and how they appear next to measured ones."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

from minillm.errors import UserError
from minillm.readers import read_text

NEEDED = ("family", "size", "method", "dataset", "metric", "value", "verified", "source")
STATUS = {"yes": "verified", "no": "unverified", "digitised": "digitised"}
# GPT-4 and its dated snapshots, but no later model whose name begins with gpt-4.
GPT4 = re.compile(r"openai gpt-4(-\d{4})?")
BRACKETS = (
    "In brackets: the published value (its source: config/paper) and the difference of the measured value "
    "from it; ?: unverified, that is, recalled and not compared with a source. No brackets: the paper has no "
    "such number, or it is not known."
)


@dataclass(frozen=True)
class Published:
    """One published number; `status`: verified, unverified or digitised."""

    value: float
    status: str
    source: str


# Table, model, teacher ("GPT-2 1.5B"), method's label, set, metric.
Key = tuple[str, str, str, str, str, str]


def published(folder: Path) -> list[dict[str, str]]:
    """Rows of table*.csv and figure*.csv in `folder`.

    Adds the columns "table" ("1", "figure1") and, if the file has none, "teacher" ("GPT-2 1.5B"): the row
    "Teacher" of the same family.  Raises UserError, one line, for a missing column, a value that is not a
    number, or an unknown mark in `verified`.
    """
    rows: list[dict[str, str]] = []
    for path in sorted([*folder.glob("table*.csv"), *folder.glob("figure*.csv")]):
        file_rows = _file_rows(path)
        table = path.stem.removeprefix("table")
        teachers = {
            row["family"]: f"{row['family']} {row['size']}" for row in file_rows if row["method"] == "Teacher"
        }
        for line, row in enumerate(file_rows, start=2):
            where = f"{path}:{line}"
            if not _is_number(row["value"]):
                problem = f"value: '{row['value']}' is not a number; fix it or remove the row"
                raise UserError(f"{where}: {problem}")
            if row["verified"] not in STATUS:
                problem = f"verified: '{row['verified']}' is none of {', '.join(STATUS)}; fix it"
                raise UserError(f"{where}: {problem}")
            rows.append({"teacher": teachers.get(row["family"], ""), **row, "table": table})
    if not rows:
        raise UserError(f"{folder}: no table*.csv with published numbers; give the folder with --paper")
    return rows


def _file_rows(path: Path) -> list[dict[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="", strict=True)
        missing = [column for column in NEEDED if column not in (reader.fieldnames or [])]
        if missing:
            raise UserError(f"{path}:1: no column '{missing[0]}'; add it")
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}: not CSV: {error}; fix it") from None
    for line, row in enumerate(rows, start=2):
        # More fields than columns: they are under the key None.
        if None in row:
            raise UserError(f"{path}:{line}: more fields than columns; quote the ones that hold commas")
    return rows


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def numbers(folder: Path) -> dict[Key, Published]:
    """The published numbers by table, model, teacher, method, set and metric."""
    return {
        (
            row["table"],
            f"{row['family']} {row['size']}",
            row["teacher"],
            row["method"],
            row["dataset"],
            row["metric"],
        ): Published(float(row["value"]), STATUS[row["verified"]], row["source"])
        for row in published(folder)
    }


def bracketed(text: str, measured: float | None, paper: Published | None, places: int = 1) -> str:
    """ "24.1 ± 0.2 [24.6: -0.5]"; "?" marks a value that is not verified.  `text` if either is missing."""
    if measured is None or paper is None:
        return text
    mark = "" if paper.status == "verified" else "?"
    return f"{text} [{paper.value:.{places}f}{mark}: {measured - paper.value:+.{places}f}]"


def columns(
    measured: float | None, paper: Published | None, prefix: str = ""
) -> dict[str, float | str | None]:
    """The same for a line of a CSV file; empty if either is missing."""
    both = measured is not None and paper is not None
    return {
        f"{prefix}published": paper.value if both and paper else None,
        f"{prefix}published_status": paper.status if both and paper else "",
        f"{prefix}difference": measured - paper.value if both and paper and measured is not None else None,
    }
