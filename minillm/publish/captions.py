"""Texts of Snakemake's report that come from results: the main table, and what an item is made of; reStructuredText."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

SHOWN = 40  # sources of an item


def main_table(run: Path) -> str:
    """tables/main.md of the run's folder with its notes; empty where there is none yet.

    What is escaped there is escaped in reStructuredText too.
    """
    try:
        lines = (run / "tables/main.md").read_text().split("\n")
    except FileNotFoundError:
        return ""
    found: list[str] = []
    table: list[list[str]] = []
    for line in [*lines, ""]:
        if line.startswith("|"):
            table.append([cell.strip().replace("<br>", " ") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif table:
            found += [_csv_table([row for row in table if not row[0].startswith(":--")]), ""]
            table = []
        if line.strip() and not line.startswith("|"):
            found += [line.strip(), ""]
    return "\n".join(found)


def _csv_table(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return ".. csv-table::\n   :header-rows: 1\n\n" + "".join(f"   {line}\n" for line in text.getvalue().splitlines())


def details(run: Path, kind: str, name: str) -> str:
    """Caption, n, sources and settings of an item ("table" or "figure"), from the files beside it; empty where it was not made yet."""
    try:
        sidecar = json.loads((run / f"{kind}s/{name}.json").read_text())
        settings = json.loads((run / f"configs/publish/{name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return ""
    if not isinstance(sidecar, dict) or not {"caption", "n", "missing", "sources"} <= sidecar.keys():
        return ""
    sources = [f"- ``{source}``" for source in sidecar["sources"][:SHOWN]]
    if len(sidecar["sources"]) > SHOWN:
        sources.append(f"- and {len(sidecar['sources']) - SHOWN} more: ``{kind}s/{name}.json``")
    parts = [
        _plain(sidecar["missing"] or sidecar["caption"]),
        f"**n**: {_plain(sidecar['n']) or 'none'}",
        "**Sources**, below the run's folder:" if sources else "**Sources**: no measurement of the run",
        "\n".join(sources),
        f"**Settings** (``configs/publish/{name}.json``)::",
        "\n".join(f"   {line}" for line in json.dumps(settings, indent=1, ensure_ascii=False).split("\n")),
    ]
    return "\n\n".join(filter(None, parts))


def _plain(text: str) -> str:
    """`text` with what reStructuredText takes for markup escaped."""
    return "".join(f"\\{character}" if character in "\\*`_|" else character for character in text)
