"""reStructuredText for Snakemake's report that comes from results: the main table and each item's details."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minillm.config import layout


def captions(run: Path, items: Mapping[str, str]) -> dict[str, Any]:
    """What the report's captions show of the results of a run, as the configuration's keys for them.

    items: name -> "table" or "figure".  Read whenever Snakemake starts, whatever it is to do, so nothing in
    results/ may stop it: a result that cannot be read is said to be damaged.
    """
    return {
        "main_table": _or_damaged(partial(main_table, run)),
        "details": {name: _or_damaged(partial(details, run, kind, name)) for name, kind in items.items()},
    }


def _or_damaged(make: Callable[[], str]) -> str:
    try:
        return make()
    # A damaged file raises many kinds.
    except Exception as error:
        return f"*damaged ({_plain(type(error).__name__)}): remove it and make it again*"


def main_table(run: Path) -> str:
    """tables/main.md of the run's folder, with its notes, as reStructuredText; empty if there is none yet.

    The escapes of the Markdown file are valid in reStructuredText too.
    """
    try:
        lines = (run / layout.table("main", "md")).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return ""
    parts: list[str] = []
    table: list[list[str]] = []
    for line in [*lines, ""]:
        if line.startswith("|"):
            table.append([cell.strip().replace("<br>", " ") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif table:
            parts += [_csv_table([row for row in table if not row[0].startswith(":--")]), ""]
            table = []
        if line.strip() and not line.startswith("|"):
            parts += [line.strip(), ""]
    return "\n".join(parts)


def _csv_table(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    lines = (f"   {line}\n" for line in text.getvalue().splitlines())
    return ".. csv-table::\n   :header-rows: 1\n\n" + "".join(lines)


def details(run: Path, kind: str, name: str) -> str:
    """Caption, n, origins and settings of an item, from its sidecar and settings; empty if it was not made.

    kind: "table" or "figure".
    """
    path_of = layout.table if kind == "table" else layout.figure
    try:
        sidecar = json.loads((run / path_of(name, "json")).read_text(encoding="utf-8"))
        settings = json.loads((run / layout.settings_file(f"publish/{name}")).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return ""
    if not isinstance(sidecar, dict) or not {"caption", "n", "missing", "sources"} <= sidecar.keys():
        return ""
    sources, origins = sidecar["sources"], sidecar.get("origins", [])
    parts = [
        _plain(sidecar["missing"] or sidecar["caption"]),
        f"**n**: {_plain(sidecar['n']) or 'none'}",
        _files("Sources", sources) if sources else "**Sources**: no measurements of the run",
        _files("These were made from", origins) if origins else "",
        *(f"**Sampling**: {_plain(text)}" for text in sidecar.get("sampling", [])),
        _times(sidecar.get("seconds", {})),
        f"**Settings** (``configs/publish/{name}.json``)::",
        "\n".join(f"   {line}" for line in json.dumps(settings, indent=1, ensure_ascii=False).split("\n")),
    ]
    return "\n\n".join(filter(None, parts))


def _files(title: str, paths: Sequence[str]) -> str:
    """The number of files of each kind, and in a fold their names.  The sidecar lists all paths."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for path in paths:
        parts = path.split("/")
        depth = min(2 if parts[0] in ("metrics", "benchmarks") else 1, len(parts) - 1)
        folder = "/".join(parts[depth:-1])
        kinds.setdefault("/".join(parts[:depth]), {}).setdefault(folder, []).append(parts[-1])
    counts = [f"``{kind or '.'}`` ({sum(map(len, folders.values()))})" for kind, folders in kinds.items()]
    lines = [
        f"- ``{'/'.join(filter(None, (kind, folder))) or '.'}``: {_plain(', '.join(names))}"
        for kind, folders in kinds.items()
        for folder, names in folders.items()
    ]
    fold = (
        ".. raw:: html\n\n   <details><summary>Files</summary>",
        "\n".join(lines),
        ".. raw:: html\n\n   </details>",
    )
    return "\n\n".join([f"**{title}**: {', '.join(counts)}", *fold])


def _times(seconds: dict[str, Any]) -> str:
    """Run times of the jobs that made sources and origins, as far as their benchmark files exist."""
    stages = [
        f"{_plain(stage)} {s // 3600}:{s // 60 % 60:02}:{s % 60:02} ({ran['jobs']} "
        f"job{'s' * (ran['jobs'] != 1)})"
        for stage, ran in seconds.items()
        for s in (round(ran["seconds"]),)
    ]
    return f"**Run time**, h:min:s: {', '.join(stages)}" if stages else ""


def _plain(text: str) -> str:
    """`text` with reStructuredText's markup characters escaped."""
    return "".join(f"\\{character}" if character in "\\*`_|" else character for character in text)
