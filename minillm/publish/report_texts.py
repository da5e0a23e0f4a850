"""reStructuredText for Snakemake's report that comes from results: the main table and each item's details."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.errors import UserError
from minillm.readers import Kind, read_json, read_object, read_text


def restrict(configuration: str) -> None:
    """Render captions with docutils' settings in the file `configuration`: no raw HTML, no other files."""
    os.environ["DOCUTILSCONFIG"] = configuration


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
        what = str(error) if isinstance(error, UserError) else type(error).__name__
        return f"*damaged ({_plain(what)}): remove it and make it again*"


def main_table(run: Path) -> str:
    """tables/main.md of the run's folder, with its notes, as reStructuredText; empty if there is none yet."""
    path = run / layout.table("main", "md")
    if not path.exists():
        return ""
    parts: list[str] = []
    table: list[list[str]] = []
    for line in [*read_text(path).split("\n"), ""]:
        if line.startswith("|"):
            table.append([_from_markdown(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif table:
            parts += [_csv_table([row for row in table if not row[0].startswith("\\:\\-")]), ""]
            table = []
        if line.strip() and not line.startswith("|"):
            parts += [_from_markdown(line), ""]
    return "\n".join(parts)


def _from_markdown(text: str) -> str:
    """A line or cell of our Markdown, with its escapes, bold and line breaks, as reStructuredText."""
    bold = text.count("**") == 2
    parts = []
    for part in re.split(r"(\\.|\*\*|<br>)", text.strip()):
        if part == "**" and bold:
            parts.append(part)
        else:
            parts.append(" " if part == "<br>" else _escaped(part[1:] if part.startswith("\\") else part))
    return " ".join("".join(parts).split())


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
    paths = [run / path_of(name, "json"), run / layout.settings_file(f"publish/{name}")]
    if not all(path.exists() for path in paths):
        return ""
    keys: dict[str, Kind] = {"caption": str, "n": str, "missing": str, "sources": list}
    sidecar = read_object(paths[0], keys, "no such file", "")
    settings = json.dumps(read_json(paths[1]), indent=1, ensure_ascii=False)
    sources, origins = sidecar["sources"], sidecar.get("origins", [])
    parts = [
        _plain(sidecar["missing"] or sidecar["caption"]),
        f"**n**: {_plain(sidecar['n']) or 'none'}",
        _files("Sources", sources) if sources else "**Sources**: no measurements of the run",
        _files("These were made from", origins) if origins else "",
        *(f"**Sampling**: {_plain(text)}" for text in sidecar.get("sampling", [])),
        _times(sidecar.get("seconds", {})),
        f"**Settings** (``configs/publish/{name}.json``)::",
        # docutils also ends a line at U+2028 and others, which JSON leaves as they are.
        "\n".join(f"   {line}" for line in settings.splitlines()),
    ]
    return "\n\n".join(filter(None, parts))


def _files(title: str, paths: Sequence[str]) -> str:
    """The number of files of each kind, and their names in a box that scrolls; the sidecar has them too."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for path in paths:
        parts = path.split("/")
        depth = min(2 if parts[0] in ("metrics", "benchmarks") else 1, len(parts) - 1)
        folder = "/".join(parts[depth:-1])
        kinds.setdefault("/".join(parts[:depth]), {}).setdefault(folder, []).append(parts[-1])
    counts = [f"{_path(kind or '.')} ({sum(map(len, folders.values()))})" for kind, folders in kinds.items()]
    lines = [
        f"   - {_path('/'.join(filter(None, (kind, folder))) or '.')}: {_plain(', '.join(names))}"
        for kind, folders in kinds.items()
        for folder, names in folders.items()
    ]
    # Classes of the report's own style sheet; folding would take raw HTML, which is switched off.
    box = ".. container:: max-h-40 overflow-y-auto"
    return "\n\n".join([f"**{title}**: {', '.join(counts)}", box, "\n".join(lines)])


def _times(seconds: dict[str, Any]) -> str:
    """Run times of the jobs that made sources and origins, as far as their benchmark files exist."""
    stages = [
        f"{_plain(stage)} {s // 3600}:{s // 60 % 60:02}:{s % 60:02} ({ran['jobs']} "
        f"job{'s' * (ran['jobs'] != 1)})"
        for stage, ran in seconds.items()
        for s in (round(ran["seconds"]),)
    ]
    return f"**Run time**, h:min:s: {', '.join(stages)}" if stages else ""


def _path(path: str) -> str:
    return f"``{path}``" if re.fullmatch(r"[\w./-]+", path) else _plain(path)


def _plain(text: str) -> str:
    """`text` as one line in which nothing is markup, wherever it stands."""
    return " ".join(_escaped(text).split())


def _escaped(text: str) -> str:
    """`text` with every mark escaped: also those that begin a list, a directive, a literal or a link."""
    # docutils marks escapes with NUL.
    return re.sub(r"([^\w\s]|_)", r"\\\1", text.replace("\0", ""))
