"""Stage `publish`: one table or figure of registry.py, with a sidecar that says where it came from."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from minillm.config.strict import hint
from minillm.errors import UserError
from minillm.files import settings_hash, sha256, write_json
from minillm.publish.item_results import ItemResults
from minillm.publish.origins import origins
from minillm.publish.published_numbers import numbers
from minillm.publish.registry import ITEMS
from minillm.publish.settings import PublishSettings

# Endings of the files that an item is written as.
KINDS = {"table": ("csv", "md", "tex"), "figure": ("png", "pdf")}


def run_stage(settings: PublishSettings, *, run_folder: Path, out: Path, paper: Path | None = None) -> None:
    """Make the item that the settings name, from `run_folder` (results/<run>) into `out`.

    paper: the folder of published numbers (config/paper).

    A table is NAME.csv, NAME.md and NAME.tex, a figure NAME.png and NAME.pdf; each comes with NAME.json:
    caption, sources, n, what is missing if nothing was measured, and where the sources came from
    (origins.py). Raises UserError if the name is unknown or a result is damaged.
    """
    name = settings.name
    if name not in ITEMS:
        raise UserError(f"--config: name: unknown item '{name}'; {hint(name, ITEMS)}")
    item = ITEMS[name]
    published = numbers(Path(paper or "config/paper")) if "paper" in item.needs else {}
    results = ItemResults(settings, Path(run_folder), published)
    make = getattr(importlib.import_module(f"minillm.publish.{item.module}"), item.function)
    made: Any
    if item.kind == "table":
        from minillm.publish.tables.sheet import write

        made = make(results)
        write(made, Path(out), name)
    else:
        from minillm.publish.figures.drawing import fonts, save

        if settings.style is None:
            raise UserError(f"--config: style: missing; '{name}' is a figure and needs one")
        with fonts(settings.style):
            made = make(results)
            note = save(made.figure, settings.style, Path(out), name)
        made = dataclasses.replace(made, caption=f"{made.caption} {note}".strip())
    write_json(
        Path(out) / f"{name}.json",
        {
            "name": name,
            "shows": item.shows,
            "caption": made.caption,
            "n": made.n,
            "missing": made.missing,
            "sources": results.sources,
            "settings_sha256": settings_hash(dataclasses.asdict(settings)),
            "files": {f"{name}.{kind}": sha256(Path(out) / f"{name}.{kind}") for kind in KINDS[item.kind]},
            **origins(Path(run_folder), results.sources),
        },
    )
