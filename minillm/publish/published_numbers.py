"""The published numbers (config/paper/*.csv), and how they are shown next to measured ones."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from minillm.errors import UserError

NEEDED = ("family", "size", "method", "dataset", "metric", "value", "verified", "source")
STATUS = {"yes": "verified", "no": "unverified", "digitised": "digitised"}
GPT4 = re.compile(
    r"openai gpt-4(-\d{4})?"
)  # GPT-4 itself and its dated snapshots, no later model that begins with its name
BESIDE = (
    "In brackets: the published value (its source: config/paper) and the measured one's difference from it; ?: unverified, that is recalled "
    "and not compared with a source. No bracket: the paper has no such number, or it is not known."
)


@dataclass(frozen=True)
class Published:
    """One published number; `status`: verified, unverified or digitised."""

    value: float
    status: str
    source: str


Key = tuple[str, str, str, str, str, str]  # table, model, teacher ("GPT-2 1.5B"), method's label, set, metric


def published(folder: Path) -> list[dict[str, str]]:
    """Rows of table*.csv and figure*.csv in `folder`, with "table" ("1", "figure1") and "teacher" ("GPT-2 1.5B").

    Where a file has no column `teacher`, it is the row "Teacher" of the same family.  Raises UserError, one line, for a missing column, no
    number, or an unknown mark in `verified`.
    """
    rows: list[dict[str, str]] = []
    for path in sorted([*folder.glob("table*.csv"), *folder.glob("figure*.csv")]):
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            lacking = [column for column in NEEDED if column not in (reader.fieldnames or [])]
            if lacking:
                raise UserError(f"{path}:1: no column '{lacking[0]}'; add it")
            of_file = list(reader)
        teachers = {
            row["family"]: f"{row['family']} {row['size']}" for row in of_file if row["method"] == "Teacher"
        }
        for line, row in enumerate(of_file, start=2):
            try:
                float(row["value"])
            except ValueError:
                raise UserError(
                    f"{path}:{line}: value: '{row['value']}' is no number; mend it or remove the row"
                ) from None
            if row["verified"] not in STATUS:
                raise UserError(
                    f"{path}:{line}: verified: '{row['verified']}' is none of {', '.join(STATUS)}; mend it"
                )
            rows.append(
                {"teacher": teachers.get(row["family"], ""), **row, "table": path.stem.removeprefix("table")}
            )
    if not rows:
        raise UserError(f"{folder}: no table*.csv with published numbers; give the folder with --paper")
    return rows


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


def beside(text: str, measured: float | None, other: Published | None, places: int = 1) -> str:
    """ "24.1 ± 0.2 [24.6: -0.5]"; a published value that is unverified has a "?".  Only `text` if either is missing."""
    if measured is None or other is None:
        return text
    mark = "" if other.status == "verified" else "?"
    return f"{text} [{other.value:.{places}f}{mark}: {measured - other.value:+.{places}f}]"


def columns(
    measured: float | None, other: Published | None, prefix: str = ""
) -> dict[str, float | str | None]:
    """The same for a line of a CSV file: empty if there is nothing."""
    both = measured is not None and other is not None
    return {
        f"{prefix}published": other.value if both and other else None,
        f"{prefix}published_status": other.status if both and other else "",
        f"{prefix}difference": measured - other.value if both and other and measured is not None else None,
    }
